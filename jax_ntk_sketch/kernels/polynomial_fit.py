r"""Polynomials with coefficients >= 0, fitted to kernels of the cosine.

A truncated Taylor series errs most at `alpha = 1`, where kappa0 has a square-root
singularity. A nonnegative least-squares fit of the same degree spreads that error over
the range.

Source: Zandieh, Han, Avron, Shoham, Kim and Shin, Scaling neural tangent kernels via
sketching and random features (2021), section 5.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import scipy

from jax_ntk_sketch._checks import check_size


@dataclasses.dataclass(frozen=True)
class PolynomialFit:
    """A polynomial with coefficients >= 0 and its error; hashable.

    Attributes:
      coefficients: of powers 0..degree; none, however small, is dropped.
      max_error: largest absolute error on a dense grid over [min_cosine, max_cosine].
      min_cosine, max_cosine: the range of the fit.
    """

    coefficients: tuple[float, ...]
    max_error: float
    min_cosine: float
    max_cosine: float

    def __call__(self, alpha: npt.ArrayLike) -> np.ndarray:
        """Return the polynomial at `alpha`, any shape, in double precision."""
        alpha = np.asarray(alpha, np.float64)
        return np.polynomial.polynomial.polyval(alpha, np.array(self.coefficients))


def fit_nonnegative(
    target: Callable[[np.ndarray], npt.ArrayLike],
    degree: int,
    *,
    min_cosine: float = -1.0,
    max_cosine: float = 1.0,
    min_degree: int = 0,
    points: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
) -> PolynomialFit:
    r"""Fit `target` by a polynomial with coefficients >= 0.

    Minimize `sum_i (weights_i (target(a_i) - sum_j c_j a_i^j))^2` over `c_j >= 0`,
    j = min_degree..degree, by `scipy.optimize.nnls`.

    Args:
      target: function of an array of cosines (NumPy float64), elementwise.
      degree: the largest power, >= 0. 8 to 16 suits most kernels; the sketch pays for
        each further degree.
      min_cosine, max_cosine: the range of the fit, with
        -1 <= min_cosine < max_cosine <= 1. Cosines of nonnegative data (images) lie in
        [0, 1], and those after a ReLU layer in [1/pi, 1].
      min_degree: the smallest power, >= 0.
      points: cosines at which to fit, (p,), inside the range. The default is 201
        equispaced points and 10 more that cluster at `max_cosine`.
      weights: of the residuals, (p,), >= 0. The default rises linearly from 1 at
        `min_cosine` to 2 at `max_cosine`.

    Returns:
      A `PolynomialFit`, with the largest error over [min_cosine, max_cosine].

    Raises:
      TypeError: a degree is not an integer.
      ValueError: a degree, the range, `points` or `weights` breaks its rule above, or
        `target` does not return one finite number for each cosine.

    Cost: a nonnegative least-squares problem with degree + 1 unknowns, milliseconds.

    >>> import numpy as np
    >>> from jax_ntk_sketch.kernels.polynomial_fit import fit_nonnegative
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
            "fit_nonnegative: the range must satisfy -1 <= min_cosine < max_cosine "
            f"<= 1, got min_cosine={min_cosine!r}, max_cosine={max_cosine!r}"
        )
    at, scale = _points_and_weights(points, weights, min_cosine, max_cosine)
    powers = scale[:, None] * at[:, None] ** np.arange(min_degree, degree + 1)
    values = scale * _evaluate(target, at)
    solution, _ = scipy.optimize.nnls(powers, values, maxiter=100 * (degree + 1))
    coefficients = np.append(np.zeros(min_degree), solution)
    fit = PolynomialFit(
        tuple(coefficients.tolist()), 0.0, float(min_cosine), float(max_cosine)
    )
    near_ends = np.geomspace(0.1, 1e-9, 500)
    unit = np.concatenate([np.linspace(0, 1, 2001), near_ends, 1 - near_ends])
    grid = min_cosine + (max_cosine - min_cosine) * unit
    error = np.abs(_evaluate(target, grid) - fit(grid)).max()
    return dataclasses.replace(fit, max_error=float(error))


def _points_and_weights(
    points: npt.ArrayLike | None,
    weights: npt.ArrayLike | None,
    min_cosine: float,
    max_cosine: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the checked points of a fit and the weights of their residuals."""
    span = max_cosine - min_cosine
    if points is None:
        at = np.linspace(min_cosine, max_cosine, 201)
        at = np.append(at, max_cosine - span * np.geomspace(5e-3, 1e-6, 10))
    else:
        at = _check_vector("points", points)
        if not ((min_cosine <= at) & (at <= max_cosine)).all():
            raise ValueError(
                f"fit_nonnegative: points must lie in [{min_cosine}, {max_cosine}], "
                f"got {at.min()} to {at.max()}"
            )
    if weights is None:
        return at, 1 + (at - min_cosine) / span
    scale = _check_vector("weights", weights)
    if scale.shape != at.shape or (scale < 0).any():
        raise ValueError(
            f"fit_nonnegative: weights must be {at.size} numbers >= 0, one per point, "
            f"got {scale.size}, the smallest {scale.min()}"
        )
    return at, scale


def _check_vector(name: str, value: npt.ArrayLike) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"fit_nonnegative: {name} must be a one-dimensional array of finite "
            f"numbers, got {value!r}"
        )
    return array


def _evaluate(
    target: Callable[[np.ndarray], npt.ArrayLike], at: np.ndarray
) -> np.ndarray:
    values = np.asarray(target(at), np.float64)
    if values.shape != at.shape or not np.isfinite(values).all():
        raise ValueError(
            "fit_nonnegative: target must return one finite number per cosine, got "
            f"shape {values.shape} for {at.shape}"
            + ("" if np.isfinite(values).all() else " with NaN or infinite values")
        )
    return values
