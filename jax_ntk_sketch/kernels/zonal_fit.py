r"""How the columns of a zonal feature map are divided, and its variance.

A kernel of the cosine alpha of unit vectors u, v is estimated by three parts: an exact
constant, a linear part (exact or sketched), and m features
:math:`m^{-1/2} f(w_i\cdot u)` with directions :math:`w_i` from random rotations of
dimension D. Here :math:`f = \sum_{l\ge 2} f_l h_l`, with the orthonormal Gegenbauer
polynomials :math:`h_l` and their multiples :math:`P_l` of `gegenbauer`. For any signs
of the weights :math:`f_l` the expectation of the estimate is

    K^(alpha) = b_0 + b_1 alpha + sum_l f_l^2 P_l(alpha).

Signs that alternate over the even degrees keep f bounded, so that its fourth moment,
the noise, is small. With q the coefficients of :math:`f^2` in the basis h, independent
directions would have the variance V / m,

    V(alpha) = sum_p q_p^2 P_p(alpha) - (sum_l f_l^2 P_l(alpha))^2.

The directions of a full rotation have less: they integrate all quadratic polynomials of
w exactly.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import scipy

from jax_ntk_sketch._numerics import next_power_of_two
from jax_ntk_sketch.kernels.gegenbauer import (
    gegenbauer_coefficients,
    gegenbauer_quadrature,
    gegenbauer_values,
    orthonormal_values,
)

# The degree of a fit by the kernel's error. Above it the error falls by less than 1 %
# (MNIST at 1024 to 16,384 columns), except in few dimensions. There the degree rises
# until there are _MANY times more polynomials than columns.
_DEGREE, _MAX_DEGREE, _MANY = 8, 24, 100

# The largest cosine on which a fit is judged. Pairs beyond it are (near) duplicates,
# about one pair in _PAIRS_PER_DUPLICATE.
_MAX_COSINE, _PAIRS_PER_DUPLICATE = 0.9, 1000

# What a rare cosine counts. Without rare ones, tables of low rank have a large bias: at
# three hidden layers the error is up to twice as large. Counted in full, they cost up
# to 13 % at one hidden layer.
_RARE = 0.1


@dataclasses.dataclass(frozen=True)
class ZonalFit:
    """A division of columns, and the estimate that it gives.

    Attributes:
      input_dim: d, of the vectors.
      sphere_dim: D >= d, of the rotations that directions are taken from.
      constant: b_0.
      linear: b_1.
      linear_columns: d where the linear part is exact, else the rows of its sketch.
      weights: f_l by degree l, with signs; f_0 = f_1 = 0.
      zonal_columns: m, the number of zonal features.
    """

    input_dim: int
    sphere_dim: int
    constant: float
    linear: float
    linear_columns: int
    weights: tuple[float, ...]
    zonal_columns: int

    def values(self, alpha: np.ndarray) -> np.ndarray:
        """Return the expectation of the estimate at cosines `alpha`, any shape."""
        alpha = np.asarray(alpha, float)
        f = np.array(self.weights)
        p = gegenbauer_values(alpha, len(f) - 1, self.sphere_dim)
        return self.constant + self.linear * alpha + p @ f**2

    def variance(self, alpha: np.ndarray) -> np.ndarray:
        """Return the variance of the estimate at cosines `alpha`, any shape.

        The linear and the zonal part are taken as uncorrelated. Within a rotation, only
        the quadratic polynomials of w count as better than independent.
        """
        alpha = np.asarray(alpha, float)
        linear = self.linear**2 * _sketch_variance(alpha, self)
        if self.zonal_columns == 0 or not any(self.weights):
            return linear
        degree = len(self.weights) - 1
        zonal = _ZonalVariance(alpha, degree, self.sphere_dim, self.zonal_columns)
        return linear + zonal(np.array(self.weights))[0]


class _ZonalVariance:
    """The variance of m^-1 sum f(w_i.u) f(w_i.v) at given cosines, with its gradient.

    Attributes:
      alpha: the cosines, (a,) or any shape.
      p: P_0 ... P_2degree at the cosines.
      h: h_0 ... h_degree at quadrature nodes of t = w.u.
      h1, h2: h_1 and h_2 at the nodes.
      to_coefficients: maps values at the nodes to coefficients of h_0 ... h_2degree.
      low: the degrees 0 ... degree.
      inverse: the pseudo-inverse of the covariance, at each cosine, of the three
        functions of w whose sum over a full rotation is constant.
      exact_share: the share of V in the span of these functions that is not noise.
    """

    def __init__(self, alpha: np.ndarray, degree: int, dim: int, num: int) -> None:
        t, w = gegenbauer_quadrature(2 * degree + 2, dim)
        basis = orthonormal_values(t, 2 * degree, dim)
        self.alpha, self.num = alpha, num
        self.p = gegenbauer_values(alpha, 2 * degree, dim)
        self.low = slice(0, degree + 1)
        self.h = basis[:, self.low]
        self.to_coefficients = (basis * w[:, None]).T
        self.h1, self.h2 = basis[:, 1], basis[:, 2]
        # A full rotation sums these to a constant: h_2(w.u), h_2(w.v) and
        # h_1(w.u) h_1(w.v) - alpha.
        gram = np.empty((*alpha.shape, 3, 3))
        gram[..., 0, 0] = gram[..., 1, 1] = 1
        gram[..., 0, 1] = gram[..., 1, 0] = self.p[..., 2]
        mixed = (self.to_coefficients @ (self.h2 * self.h1))[1] * alpha
        for i in (0, 1):
            gram[..., i, 2] = gram[..., 2, i] = mixed
        squares = self.to_coefficients @ (self.h1 * self.h1)
        gram[..., 2, 2] = self.p @ squares**2 - alpha**2
        self.inverse = np.linalg.pinv(gram, hermitian=True)
        # r rows of a rotation of size D have covariance -V/(D-1) there.
        r = num % dim
        self.exact_share = 1 - r * (1 - (r - 1) / (dim - 1)) / num

    def __call__(
        self, f: np.ndarray, weight: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return V / m, and the gradient by f of its sum with `weight` over alpha."""
        values, p = self.h @ f, self.p
        q = self.to_coefficients @ (values * values)
        mean = p[..., self.low] @ (f * f)
        # Coefficients of f h_1 and f h_2, and covariances of f(w.u) f(w.v) with the
        # three functions.
        s1 = self.to_coefficients @ (values * self.h1)
        s2 = (self.to_coefficients @ (values * self.h2))[self.low]
        c2 = p[..., self.low] @ (s2 * f)
        c = np.stack([c2, c2, p @ (s1 * s1) - self.alpha * mean], axis=-1)
        z = np.einsum("...kl,...l->...k", self.inverse, c)
        variance = p @ (q * q) - mean**2 - self.exact_share * (c * z).sum(-1)
        variance = np.maximum(variance, 0) / self.num
        if weight is None:
            return variance, np.zeros_like(f)
        # Reverse mode: g_x is the gradient by x.
        weight = weight / self.num
        g_values = 2 * values * (self.to_coefficients.T @ (2 * q * (weight @ p)))
        g_mean = -2 * weight * mean
        g_c = -2 * self.exact_share * weight[:, None] * z
        g_c2 = (g_c[:, 0] + g_c[:, 1]) @ p[:, self.low]
        g_s1 = 2 * s1 * (g_c[:, 2] @ p)
        g_mean = g_mean - self.alpha * g_c[:, 2]
        g_values += self.h2 * (self.to_coefficients[self.low].T @ (g_c2 * f))
        g_values += self.h1 * (self.to_coefficients.T @ g_s1)
        direct = g_c2 * s2 + 2 * f * (g_mean @ p[:, self.low])
        return variance, self.h.T @ g_values + direct


def _sketch_variance(alpha: np.ndarray, fit: ZonalFit) -> np.ndarray:
    """Return the variance of an SRHT of unit vectors; 0 where it keeps all columns."""
    if fit.linear_columns >= fit.input_dim:
        return np.zeros_like(alpha)
    padded = next_power_of_two(fit.input_dim)
    return (1 + alpha**2) * (1 / fit.linear_columns - 1 / padded)


def zonal_fit_low_degree(
    coefficients: np.ndarray, input_dim: int, sphere_dim: int, num_columns: int
) -> ZonalFit:
    r"""Divide columns for regression: low degrees only.

    A linear model on m features uses at most m functions of the input, the heaviest of
    the kernel's on the data. Those have low degree. There are :math:`\binom{d+p}{p}`
    polynomials of degree <= p. While that exceeds 2 m, columns that mix in higher
    degrees only blur the lower ones. What is cut off is a near-diagonal part of the
    kernel, which the ridge penalty replaces.

    Args:
      coefficients: c_j >= 0 of the kernel's power series in the cosine.
      input_dim: d.
      sphere_dim: D, of the rotations.
      num_columns: of all parts together, >= 1.

    Returns:
      A `ZonalFit` of exactly `num_columns` columns, if the series is not of degree 1.
    """
    degree = 2
    while math.comb(input_dim + degree, degree) < 2 * num_columns:
        degree += 2
    c = np.zeros(max(len(coefficients), 3))
    c[: len(coefficients)] = coefficients
    exact = 4 * input_dim <= num_columns
    linear_columns = input_dim if exact else max(1, num_columns // 8)
    return _from_series(
        c[: degree + 1], input_dim, sphere_dim, linear_columns, num_columns
    )


def _from_series(
    c: np.ndarray,
    input_dim: int,
    sphere_dim: int,
    linear_columns: int,
    num_columns: int,
) -> ZonalFit:
    """Return the fit without bias up to the degree of c, with alternating signs."""
    b = np.maximum(gegenbauer_coefficients(c, sphere_dim), 0)
    signs = np.where(np.arange(len(b)) % 4 < 2, 1, -1)
    f = signs * np.sqrt(b)
    f[:2] = 0
    return ZonalFit(
        input_dim,
        sphere_dim,
        constant=float(b[0]),
        linear=float(b[1]),
        linear_columns=linear_columns,
        weights=tuple(map(float, f)),
        zonal_columns=max(0, num_columns - int(b[0] > 0) - linear_columns),
    )


def zonal_fit_min_error(
    function: Callable[[np.ndarray], np.ndarray],
    coefficients: np.ndarray,
    input_dim: int,
    sphere_dim: int,
    num_columns: int,
    min_cosine: float = -1.0,
    rare_below: float = -1.0,
) -> ZonalFit:
    r"""Divide columns for the smallest error of the kernel: bias and variance together.

    Minimize the mean over cosines in [min_cosine, 0.9] of :math:`(K - \hat K)^2 + V/m`,
    plus a thousandth of :math:`(K - \hat K)^2` at 1. Rare cosines count less. The
    unknowns are b_0, b_1, the f_l and the number of linear columns. Degrees that only
    add noise disappear.

    Args:
      function: the kernel K of the cosine, on arrays in [-1, 1].
      coefficients: of its power series, at which the search begins.
      input_dim, sphere_dim, num_columns: as for `zonal_fit_low_degree`.
      min_cosine: the smallest cosine that matters, in [-1, 0.9).
      rare_below: the cosine below which others are rare, in [-1, 0.9).

    Returns:
      The best `ZonalFit` found by L-BFGS.

    Cost: tenths of a second.
    """
    degree = _DEGREE
    enough = _MANY * num_columns
    while degree < _MAX_DEGREE and math.comb(input_dim + degree, degree) < enough:
        degree += 2
    series = np.zeros(degree + 1)
    series[: len(coefficients)] = coefficients[: degree + 1]
    if num_columns > 2 * input_dim:
        linear_columns = {input_dim}
    else:
        most = min(input_dim, max(1, num_columns - 2))
        linear_columns = {max(1, most * i // 8) for i in (1, 2, 4, 6, 8)}
    starts = [
        _from_series(series, input_dim, sphere_dim, size, num_columns)
        for size in sorted(linear_columns)
    ]
    alpha = np.linspace(
        min_cosine, _MAX_COSINE, 1 + round(50 * (_MAX_COSINE - min_cosine))
    )
    weight = np.where(alpha < rare_below, _RARE, 1.0)
    cosines = alpha, weight / weight.sum()
    start = starts[0]
    if len(starts) > 1:  # a rough comparison is enough to choose
        rough = [
            _minimize_error(function, fit, cosines, 40)
            for fit in starts
            if fit.zonal_columns
        ]
        start = min(rough, key=lambda pair: pair[0], default=(0.0, start))[1]
    if not start.zonal_columns:
        return start
    return _minimize_error(function, start, cosines, 1000)[1]


def _minimize_error(
    function: Callable[[np.ndarray], np.ndarray],
    start: ZonalFit,
    cosines: tuple[np.ndarray, np.ndarray],
    max_iterations: int,
) -> tuple[float, ZonalFit]:
    """Return the smallest objective of `zonal_fit_min_error` from `start`, and its fit.

    The unknowns are x = (sqrt(b_0), sqrt(b_1), f_2, f_3, ...).
    """
    alpha, weight = cosines
    target, at_one = function(alpha), float(function(np.array(1.0)))
    degree = len(start.weights) - 1
    zonal = _ZonalVariance(alpha, degree, start.sphere_dim, start.zonal_columns)
    p = zonal.p[:, : degree + 1]
    sketch = _sketch_variance(alpha, start)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        f = np.concatenate([[0.0, 0.0], x[2:]])
        b0, b1 = x[0] ** 2, x[1] ** 2
        bias = b0 + b1 * alpha + p @ (f * f) - target
        bias_at_one = b0 + b1 + (f * f).sum() - at_one
        variance, gradient = zonal(f, weight)
        noise = variance + b1**2 * sketch
        value = float(weight @ (bias**2 + noise))
        value += bias_at_one**2 / _PAIRS_PER_DUPLICATE
        g_bias = 2 * weight * bias
        g_at_one = 2 * bias_at_one / _PAIRS_PER_DUPLICATE
        gradient = gradient + 2 * f * (g_bias @ p + g_at_one)
        gradient[0] = 2 * x[0] * (g_bias.sum() + g_at_one)
        gradient[1] = 2 * x[1] * (g_bias @ alpha + g_at_one)
        gradient[1] += 4 * x[1] ** 3 * (weight @ sketch)
        return value, gradient

    roots = [start.constant**0.5, start.linear**0.5]
    x0 = np.concatenate([roots, np.array(start.weights)[2:]])
    scale = max(objective(x0)[0], 1e-300)
    found = scipy.optimize.minimize(
        lambda x: tuple(part / scale for part in objective(x)),
        x0,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "ftol": 1e-8},
    )
    x = found.x
    fit = dataclasses.replace(
        start,
        constant=float(x[0] ** 2),
        linear=float(x[1] ** 2),
        weights=(0.0, 0.0, *map(float, x[2:])),
    )
    return float(found.fun) * scale, fit
