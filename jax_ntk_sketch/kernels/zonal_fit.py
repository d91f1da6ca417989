r"""What the columns of a zonal feature map are spent on.

A kernel of the angle is estimated by an exact constant, an exact or sketched linear
part, and features :math:`m^{-1/2} f(w_i\cdot u)` with
:math:`f = \sum_{l\ge 2} f_l h_l` and directions :math:`w_i` from rotations
(`gegenbauer`): for any signs of the :math:`f_l` the expectation is

    K^(alpha) = b_0 + b_1 alpha + sum_l f_l^2 P_l(alpha).

Signs that alternate over the even degrees keep f bounded, so that its fourth moment,
the noise, is small. The variance has a closed form: with q the coefficients of
:math:`f^2` in the basis h,

    V(alpha) = sum_p q_p^2 P_p(alpha) - (sum_l f_l^2 P_l(alpha))^2,

less what a full rotation integrates exactly: the quadratic polynomials of w.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jax_ntk_sketch.kernels.gegenbauer import (
    gegenbauer_coefficients,
    gegenbauer_quadrature,
    gegenbauer_values,
    orthonormal_values,
)

__all__ = ["ZonalFit", "zonal_fit_low_degree", "zonal_fit_min_error"]

# Degrees above lower the error by less than 1 % (MNIST at 1024 to 16,384 columns). In
# few dimensions there are more: as many degrees as there are not yet so many times more
# polynomials than columns. In 10 dimensions they take a third off what ridge loses.
_DEGREE, _MOST, _PLENTY = 8, 24, 100

# The end of the cosines on which a fit is judged; pairs beyond are (near) duplicates,
# of which there is one in so many.
_HIGH, _COUNT = 0.9, 1000


@dataclasses.dataclass(frozen=True)
class ZonalFit:
    """A division of columns and the estimate that it gives.

    Attributes:
      input_dim: d, of the vectors.
      sphere_dim: D >= d, of the rotations that directions are taken from.
      constant: b_0.
      linear: b_1.
      linear_columns: d where that part is exact, else the rows of its sketch.
      weights: f_l by degree l, with signs; f_0 = f_1 = 0.
      num: zonal columns.
    """

    input_dim: int
    sphere_dim: int
    constant: float
    linear: float
    linear_columns: int
    weights: tuple[float, ...]
    num: int

    def values(self, alpha: np.ndarray) -> np.ndarray:
        """The expectation of the estimate at cosines `alpha`."""
        alpha = np.asarray(alpha, float)
        f = np.array(self.weights)
        p = gegenbauer_values(alpha, len(f) - 1, self.sphere_dim)
        return self.constant + self.linear * alpha + p @ f**2

    def variance(self, alpha: np.ndarray) -> np.ndarray:
        """The variance of the estimate at cosines `alpha`, for independent rotations.

        Uncorrelated parts; inside a rotation only the quadratic polynomials of w are
        counted as better than independent.
        """
        alpha = np.asarray(alpha, float)
        out = self.linear**2 * _sketch_variance(alpha, self)
        if self.num == 0 or not any(self.weights):
            return out
        model = _Variance(alpha, len(self.weights) - 1, self.sphere_dim, self.num)
        return out + model(np.array(self.weights))[0]


class _Variance:
    """Variance of m^-1 sum f(w_i.u) f(w_i.v) at given cosines, and its gradient."""

    def __init__(self, alpha: np.ndarray, degree: int, dim: int, num: int):
        t, w = gegenbauer_quadrature(2 * degree + 2, dim)
        basis = orthonormal_values(t, 2 * degree, dim)
        self.alpha, self.num = alpha, num
        self.p = gegenbauer_values(alpha, 2 * degree, dim)
        self.min_cosine = slice(0, degree + 1)
        self.h = basis[:, self.min_cosine]
        self.project = (basis * w[:, None]).T  # values at the nodes to coefficients
        self.h1, self.h2 = basis[:, 1], basis[:, 2]
        # What a full rotation sums to a constant: h_2(u), h_2(v), h_1(u) h_1(v) - a.
        gram = np.empty((*alpha.shape, 3, 3))
        gram[..., 0, 0] = gram[..., 1, 1] = 1
        gram[..., 0, 1] = gram[..., 1, 0] = self.p[..., 2]
        mixed = (self.project @ (self.h2 * self.h1))[1] * alpha
        for i in (0, 1):
            gram[..., i, 2] = gram[..., 2, i] = mixed
        squares = self.project @ (self.h1 * self.h1)
        gram[..., 2, 2] = self.p @ squares**2 - alpha**2
        self.inverse = np.linalg.pinv(gram, hermitian=True)
        # r rows of a rotation of size D have covariance -V/(D-1) there.
        r = num % dim
        self.exact = 1 - r * (1 - (r - 1) / (dim - 1)) / num

    def __call__(
        self, f: np.ndarray, weight: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """V / m, and the gradient of its sum with `weight` over the cosines."""
        values, p = self.h @ f, self.p
        q = self.project @ (values * values)
        mean = p[..., self.min_cosine] @ (f * f)
        s1, s2 = self.project @ (values * self.h1), self.project @ (values * self.h2)
        s2 = s2[self.min_cosine]
        one = p[..., self.min_cosine] @ (s2 * f)
        y = np.stack([one, one, p @ (s1 * s1) - self.alpha * mean], axis=-1)
        z = np.einsum("...kl,...l->...k", self.inverse, y)
        variance = p @ (q * q) - mean**2 - self.exact * (y * z).sum(-1)
        variance = np.maximum(variance, 0) / self.num
        if weight is None:
            return variance, np.zeros_like(f)
        weight = weight / self.num
        g_values = 2 * values * (self.project.T @ (2 * q * (weight @ p)))
        g_mean = -2 * weight * mean
        g_y = -2 * self.exact * weight[:, None] * z
        g_one = (g_y[:, 0] + g_y[:, 1]) @ p[:, self.min_cosine]
        g_s1 = 2 * s1 * (g_y[:, 2] @ p)
        g_mean = g_mean - self.alpha * g_y[:, 2]
        g_values += self.h2 * (self.project[self.min_cosine].T @ (g_one * f))
        g_values += self.h1 * (self.project.T @ g_s1)
        direct = g_one * s2 + 2 * f * (g_mean @ p[:, self.min_cosine])
        return variance, self.h.T @ g_values + direct


def _sketch_variance(alpha: np.ndarray, fit: ZonalFit) -> np.ndarray:
    """Of an SRHT's inner product of unit vectors; none where it keeps all columns."""
    if fit.linear_columns >= fit.input_dim:
        return np.zeros_like(alpha)
    padded = 1 << (fit.input_dim - 1).bit_length()
    return (1 + alpha**2) * (1 / fit.linear_columns - 1 / padded)


def zonal_fit_low_degree(
    coefficients: np.ndarray, input_dim: int, sphere_dim: int, columns: int
) -> ZonalFit:
    r"""Columns for regression: low degrees only, as many as the columns can tell apart.

    A linear model on m features uses at most m functions of the input, the heaviest of
    the kernel's on the data. Those have low degree: there are
    :math:`\binom{d+p}{p}` polynomials of degree <= p, and while that exceeds 2 m,
    columns that mix in higher degrees only blur the lower ones (measured: on MNIST
    degree 2 loses a sixth less of the exact machine's predictions at 1024 columns than
    the whole series, which has the smaller kernel error). What is cut off is a
    near-diagonal part of the kernel, whose place the penalty takes.

    Args:
      coefficients: c_j >= 0 of the kernel's power series in the cosine.
      input_dim: d.
      sphere_dim: D, of the rotations.
      columns: in all, >= 1.

    Returns:
      A `ZonalFit` of exactly `columns` columns, if the series is not of degree 1.
    """
    degree = 2
    while math.comb(input_dim + degree, degree) < 2 * columns:
        degree += 2
    c = np.zeros(max(len(coefficients), 3))
    c[: len(coefficients)] = coefficients
    c = c[: degree + 1]
    linear = input_dim if 4 * input_dim <= columns else max(1, columns // 8)
    return _from_series(c, input_dim, sphere_dim, linear, columns)


def _from_series(
    c: np.ndarray, input_dim: int, sphere_dim: int, linear: int, columns: int
) -> ZonalFit:
    """Without bias up to the degree of c: signs alternate over even and odd degrees."""
    b = np.maximum(gegenbauer_coefficients(c, sphere_dim), 0)
    signs = np.where(np.arange(len(b)) % 4 < 2, 1, -1)
    f = signs * np.sqrt(b)
    f[:2] = 0
    num = max(0, columns - int(b[0] > 0) - linear)
    weights = tuple(map(float, f))
    return ZonalFit(
        input_dim, sphere_dim, float(b[0]), float(b[1]), linear, weights, num
    )


def zonal_fit_min_error(
    function: Callable[[np.ndarray], np.ndarray],
    coefficients: np.ndarray,
    input_dim: int,
    sphere_dim: int,
    columns: int,
    low: float = -1.0,
) -> ZonalFit:
    r"""Columns for the least error of the kernel: bias and variance together.

    Minimises the mean over cosines in [low, 0.9] of (K - K^)^2 + V, plus a thousandth
    of (K - K^)^2 at 1, over b_0, b_1, the f_l and the number of linear columns.
    Degrees that only add noise disappear by themselves.

    Args:
      function: the kernel of the cosine, on arrays in [-1, 1].
      coefficients: of its power series, where the search begins.
      input_dim, sphere_dim, columns: as for `zonal_fit_low_degree`.
      low: in [-1, .9), the least cosine that matters.

    Returns:
      The best `ZonalFit` found, by L-BFGS for each number of linear columns; some
      tenths of a second.
    """
    degree = _DEGREE
    while degree < _MOST and math.comb(input_dim + degree, degree) < _PLENTY * columns:
        degree += 2
    full = min(input_dim, max(1, columns - 2))
    options = {input_dim} if columns > 2 * input_dim else set()
    if not options:
        options = {max(1, full * i // 8) for i in (1, 2, 4, 6, 8)}
    starts = [
        _from_series(_padded(coefficients, degree), input_dim, sphere_dim, k, columns)
        for k in sorted(options)
    ]
    if len(starts) > 1:  # a rough comparison is enough to choose
        starts = [
            min(
                (_optimised(function, s, low, 40) for s in starts if s.num),
                key=lambda pair: pair[0],
                default=(0.0, starts[0]),
            )[1]
        ]
    return _optimised(function, starts[0], low, 1000)[1] if starts[0].num else starts[0]


def _padded(coefficients: np.ndarray, degree: int) -> np.ndarray:
    c = np.zeros(degree + 1)
    c[: len(coefficients)] = coefficients[: degree + 1]
    return c


def _optimised(
    function: Callable[[np.ndarray], np.ndarray],
    start: ZonalFit,
    low: float,
    iterations: int,
) -> tuple[float, ZonalFit]:
    alpha = np.linspace(low, _HIGH, 1 + round(50 * (_HIGH - low)))
    target, at_one = function(alpha), float(function(np.array(1.0)))
    weight = np.full(len(alpha), 1 / len(alpha))
    degree = len(start.weights) - 1
    model = _Variance(alpha, degree, start.sphere_dim, start.num)
    p = model.p[:, : degree + 1]
    sketch = _sketch_variance(alpha, start)

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        f = np.concatenate([[0.0, 0.0], z[2:]])
        b0, b1 = z[0] ** 2, z[1] ** 2
        bias = b0 + b1 * alpha + p @ (f * f) - target
        gap = b0 + b1 + (f * f).sum() - at_one
        variance, gradient = model(f, weight)
        noise = variance + b1**2 * sketch
        value = float(weight @ (bias**2 + noise)) + gap**2 / _COUNT
        slope, end = 2 * weight * bias, 2 * gap / _COUNT
        gradient = gradient + 2 * f * (slope @ p + end)
        gradient[0] = 2 * z[0] * (slope.sum() + end)
        gradient[1] = 2 * z[1] * (slope @ alpha + end) + 4 * z[1] ** 3 * (
            weight @ sketch
        )
        return value, gradient

    z0 = np.concatenate(
        [[start.constant**0.5, start.linear**0.5], np.array(start.weights)[2:]]
    )
    scale = max(objective(z0)[0], 1e-300)
    # SciPy's optimizers take half as long to import as JAX.
    import scipy.optimize

    found = scipy.optimize.minimize(
        lambda z: tuple(part / scale for part in objective(z)),
        z0,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "ftol": 1e-8},
    )
    z = found.x
    fit = dataclasses.replace(
        start,
        constant=float(z[0] ** 2),
        linear=float(z[1] ** 2),
        weights=(0.0, 0.0, *map(float, z[2:])),
    )
    return float(found.fun) * scale, fit
