r"""Polynomials with coefficients >= 0, fitted to kernels of the cosine.

A truncated Taylor series errs most at `alpha = 1`, where kappa0 has a square-root
singularity. A nonnegative least-squares fit of the same degree spreads that error over
the range.

Source: Zandieh, Han, Avron, Shoham, Kim and Shin, Scaling neural tangent kernels via
sketching and random features (2021), section 5.
"""

from collections.abc import Callable

import numpy as np
import scipy


def fit_nonnegative(
    target: Callable[[np.ndarray], np.ndarray], degree: int, *, min_cosine: float = -1.0
) -> tuple[np.ndarray, float]:
    r"""Return the coefficients >= 0 of a polynomial near `target`, and its error.

    Minimize `sum_i (w_i (target(a_i) - sum_j c_j a_i^j))^2` over `c_j >= 0`,
    j = 0..degree, by `scipy.optimize.nnls`. The points a_i are 201 equispaced ones and
    10 more that cluster at 1. The weights rise linearly from 1 at `min_cosine` to 2
    at 1.

    Args:
      target: function of an array of cosines (NumPy float64), elementwise.
      degree: the largest power, >= 0. 8 to 16 suits most kernels; the sketch pays for
        each further degree.
      min_cosine: the smallest cosine that matters, in [-1, 1). Cosines of nonnegative
        data (images) are >= 0, and those after a ReLU layer >= 1 / pi.

    Returns:
      The coefficients, (degree + 1,), of which none, however small, is dropped; and the
      largest absolute error on a dense grid over [min_cosine, 1].

    Raises:
      ValueError: `target` is not finite.

    Cost: a nonnegative least-squares problem with degree + 1 unknowns, milliseconds.

    >>> import numpy as np
    >>> from jax_ntk_sketch.kernels.polynomial_fit import fit_nonnegative
    >>> coefficients, error = fit_nonnegative(lambda a: 0.5 + a**3, 4)
    >>> np.round(coefficients, 6) + 0.0
    array([0.5, 0. , 0. , 1. , 0. ])
    >>> error < 1e-6
    True
    """
    span = 1.0 - min_cosine
    at = np.linspace(min_cosine, 1.0, 201)
    at = np.append(at, 1.0 - span * np.geomspace(5e-3, 1e-6, 10))
    weights = 1 + (at - min_cosine) / span
    powers = weights[:, None] * at[:, None] ** np.arange(degree + 1)
    values = weights * target(at)
    if not np.isfinite(values).all():
        raise ValueError(
            "fit_nonnegative: target must be finite, got a kernel with NaN or infinite "
            "values"
        )
    coefficients, _ = scipy.optimize.nnls(powers, values, maxiter=100 * (degree + 1))
    near_ends = np.geomspace(0.1, 1e-9, 500)
    unit = np.concatenate([np.linspace(0, 1, 2001), near_ends, 1 - near_ends])
    grid = min_cosine + span * unit
    fitted = np.polynomial.polynomial.polyval(grid, coefficients)
    return coefficients, float(np.abs(target(grid) - fitted).max())
