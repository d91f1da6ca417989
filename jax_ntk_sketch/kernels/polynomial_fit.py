r"""Polynomials with coefficients >= 0 fitted to kernels of the cosine.

A Taylor series truncated at a min_cosine degree errs most at `alpha = 1`, where kappa0 has
a square-root singularity; a nonnegative least-squares fit of the same degree spreads
that error over the range. Source: Zandieh, Han, Avron, Shoham, Kim and Shin, Scaling
neural tangent kernels via sketching and random features (2021), section 5.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from jax_ntk_sketch import stax
from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch.kernels.power_series import relu_block_values

__all__ = [
    "PolynomialFit",
    "fit_kappa0",
    "fit_kappa1",
    "fit_nonnegative",
    "fit_ntk",
]


@dataclasses.dataclass(frozen=True)
class PolynomialFit:
    """A polynomial with coefficients >= 0 and how well it fits; hashable.

    Attributes:
      coefficients: of powers 0..degree; none, however small, is dropped.
      max_error: largest absolute error on a dense grid over [min_cosine, max_cosine].
      min_cosine, max_cosine: the range of the fit.
    """

    coefficients: tuple[float, ...]
    max_error: float
    min_cosine: float
    max_cosine: float

    def __call__(self, alpha: ArrayLike) -> np.ndarray:
        """The polynomial at `alpha`, any shape, in double precision."""
        alpha = np.asarray(alpha, np.float64)
        return np.polynomial.polynomial.polyval(alpha, np.array(self.coefficients))


def fit_nonnegative(
    target: Callable[[np.ndarray], ArrayLike],
    degree: int,
    *,
    min_cosine: float = -1.0,
    max_cosine: float = 1.0,
    min_degree: int = 0,
    points: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> PolynomialFit:
    r"""Fits `target` by a polynomial with coefficients >= 0.

    Minimises `sum_i (weights_i (target(a_i) - sum_j c_j a_i^j))^2` over `c_j >= 0`,
    j = min_degree..degree, by `scipy.optimize.nnls`; under 1 ms at degree 8,
    2 ms at 128.

    Args:
      target: function of an array of cosines (NumPy float64), elementwise.
      degree: the largest power, >= 0. 8 to 16 suits most kernels; the price of more
        is paid by the sketch.
      min_cosine, max_cosine: the range to fit on, -1 <= min_cosine < max_cosine <= 1. Cosines of nonnegative
        data (images) lie in [0, 1], those behind a ReLU layer in [1/pi, 1].
      min_degree: the smallest power.
      points: where to fit, (p,), in [min_cosine, max_cosine]. Default: 201 equispaced points and
        10 more that cluster at `max_cosine`.
      weights: of the residuals, (p,), >= 0. Default: rising linearly from 1 at `min_cosine`
        to 2 at `max_cosine`.

    Returns:
      A `PolynomialFit`, with the largest error over [min_cosine, max_cosine].

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.

    >>> fit = fit_nonnegative(lambda a: 0.5 + a**3, 4)
    >>> np.round(fit.coefficients, 6) + 0.0
    array([0.5, 0. , 0. , 1. , 0. ])
    >>> fit.max_error < 1e-6
    True
    """
    degree = check_size("fit_nonnegative", "degree", degree, 0)
    min_degree = check_size("fit_nonnegative", "min_degree", min_degree, 0)
    if min_degree > degree:
        raise ValueError(
            "fit_nonnegative: min_degree must not exceed degree, "
            f"got {min_degree} > {degree}"
        )
    if not -1 <= min_cosine < max_cosine <= 1:
        raise ValueError(
            "fit_nonnegative: the range must satisfy -1 <= min_cosine < max_cosine <= 1, "
            f"got min_cosine={min_cosine!r}, max_cosine={max_cosine!r}"
        )
    span = max_cosine - min_cosine
    if points is None:
        at = np.linspace(min_cosine, max_cosine, 201)
        at = np.append(at, max_cosine - span * np.geomspace(5e-3, 1e-6, 10))
    else:
        at = _vector("points", points)
        if not ((min_cosine <= at) & (at <= max_cosine)).all():
            raise ValueError(
                f"fit_nonnegative: points must lie in [{min_cosine}, {max_cosine}], "
                f"got {at.min()} to {at.max()}"
            )
    scale = (
        1 + (at - min_cosine) / span if weights is None else _vector("weights", weights)
    )
    if scale.shape != at.shape or (scale < 0).any():
        raise ValueError(
            f"fit_nonnegative: weights must be {at.size} numbers >= 0, one per point, "
            f"got {scale.size}, the smallest {scale.min()}"
        )

    powers = scale[:, None] * at[:, None] ** np.arange(min_degree, degree + 1)
    # SciPy's optimizers take half as long to import as JAX.
    from scipy.optimize import nnls

    solution, _ = nnls(
        powers, scale * _evaluate(target, at), maxiter=100 * (degree + 1)
    )
    coefficients = np.append(np.zeros(min_degree), solution)
    fit = PolynomialFit(
        tuple(coefficients.tolist()), 0.0, float(min_cosine), float(max_cosine)
    )
    near = np.geomspace(0.1, 1e-9, 500)
    unit = np.concatenate([np.linspace(0, 1, 2001), near, 1 - near])
    grid = min_cosine + span * unit
    error = np.abs(_evaluate(target, grid) - fit(grid)).max()
    return dataclasses.replace(fit, max_error=float(error))


def fit_kappa0(
    degree: int, *, min_cosine: float = -1.0, max_cosine: float = 1.0
) -> PolynomialFit:
    """`fit_nonnegative` of `kappa0` on [min_cosine, max_cosine].

    >>> round(fit_kappa0(8).max_error, 3)  # of the Taylor series: 0.091
    0.037
    """
    return fit_nonnegative(
        _kappa0, degree, min_cosine=min_cosine, max_cosine=max_cosine
    )


def fit_kappa1(
    degree: int, *, min_cosine: float = -1.0, max_cosine: float = 1.0
) -> PolynomialFit:
    """`fit_nonnegative` of `kappa1` on [min_cosine, max_cosine].

    >>> round(fit_kappa1(8).max_error, 4)  # of the Taylor series: 0.0035
    0.0003
    """
    return fit_nonnegative(
        _kappa1, degree, min_cosine=min_cosine, max_cosine=max_cosine
    )


def fit_ntk(
    depth: int, degree: int, *, min_cosine: float = -1.0, max_cosine: float = 1.0
) -> PolynomialFit:
    """`fit_nonnegative` of the normalised NTK `K_depth` on [min_cosine, max_cosine].

    Args:
      depth: number of hidden ReLU layers, >= 0; `ntk_coefficients` has the formula.
      degree: the largest power, >= 0.
      min_cosine, max_cosine: the range to fit on.

    >>> round(fit_ntk(1, 8).max_error, 3)  # of the Taylor series: 0.094
    0.031
    """
    depth = check_size("fit_ntk", "depth", depth, 0)
    layers = (stax.Relu(), stax.Dense(1, W_std=2**0.5)) * depth

    def ntk(alpha: np.ndarray) -> np.ndarray:
        # The first dense layer, before these, makes the entering NTK alpha.
        block = relu_block_values(layers, alpha)
        return block.ntk_additive + alpha * block.ntk_multiplicative

    return fit_nonnegative(ntk, degree, min_cosine=min_cosine, max_cosine=max_cosine)


def _kappa0(alpha: np.ndarray) -> np.ndarray:
    return 2 * relu_block_values([stax.Relu()], alpha).ntk_multiplicative


def _kappa1(alpha: np.ndarray) -> np.ndarray:
    return 2 * relu_block_values([stax.Relu()], alpha).nngp


def _vector(name: str, value: ArrayLike) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"fit_nonnegative: {name} must be a one-dimensional array of finite "
            f"numbers, got {value!r}"
        )
    return array


def _evaluate(target: Callable[[np.ndarray], ArrayLike], at: np.ndarray) -> np.ndarray:
    values = np.asarray(target(at), np.float64)
    if values.shape != at.shape or not np.isfinite(values).all():
        raise ValueError(
            "fit_nonnegative: target must return one finite number per cosine, got "
            f"shape {values.shape} for {at.shape}"
            + ("" if np.isfinite(values).all() else " with NaN or infinite values")
        )
    return values
