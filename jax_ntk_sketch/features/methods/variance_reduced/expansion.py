r"""The expansion of a dual kernel around the constant part of the cosine.

Let the cosine of two positions be :math:`\alpha = a a' + \rho t \rho' t' c`. Here a and
a' are numbers of each position, :math:`\rho^2 = 1 - a^2`, and c is the inner product of
two unit vectors of dimension D. t is 1, or less after Dropout. A dual kernel k is
expanded around :math:`a a'`,

.. math:: k(\alpha) = \sum_j \frac{k^{(j)}(a a')}{j!} (\rho t \rho' t')^j c^j
   \approx \sum_{l \le 6} g_l g_l' P_l(c).

The weight :math:`g_l` depends on one position only: :math:`a^2` replaces :math:`a a'`.
That is exact for equal a, and for all variances where a = 0. :math:`P_l` are the
Gegenbauer polynomials in D dimensions (`kernels.gegenbauer`).

The series of a step, or of a function with a kink, decays slowly. Its terms of degrees
above 6 can be taken from the function itself on the sphere (`high_degrees`).
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._numerics import safe_sqrt
from jax_ntk_sketch._typing import Array
from jax_ntk_sketch.features.expected_kernels import Kernels
from jax_ntk_sketch.features.layers.activations import duals, on_host
from jax_ntk_sketch.kernels import DualActivation, kappa0, kappa1
from jax_ntk_sketch.kernels.duals.homogeneous import Homogeneous
from jax_ntk_sketch.kernels.gegenbauer import (
    gegenbauer_coefficients,
    gegenbauer_values,
    orthonormal_values,
)
from jax_ntk_sketch.random_features.zonal import sphere_dim

# The degree of the expansion.
DEGREE = 6

# The degree of the Hermite series of an activation without a kink.
_SERIES_DEGREE = 24


def with_kink(dual: DualActivation, *, of_slope: bool) -> Homogeneous | None:
    """Return the activation, or its derivative, if it is a step or has a kink."""
    if not isinstance(dual, Homogeneous):
        return None
    function = dual.derivative if of_slope else dual
    return function if function and function.power <= 1 else None


def expansion_weights(
    dual: DualActivation,
    q: Array,
    a2: Array,
    rho: Array,
    dim: int,
    *,
    of_slope: bool,
    signed: bool,
    t2: Array | float = 1.0,
) -> list[Array]:
    """Return the weights g_0 ... g_6 of each position.

    Args:
      dual: the activation.
      q: variances, (...).
      a2, rho: a^2 and rho, (...).
      dim: D.
      of_slope: whether k is the dual kernel of the derivative.
      signed: a = 0 at all positions; the weights then have the signs of Hermite
        coefficients.
      t2: t^2, (...).
    """
    signs: Array | np.ndarray = np.ones(DEGREE + 1)
    function = with_kink(dual, of_slope=of_slope)
    if function is not None:
        terms = _terms_with_kink(function, q, a2, rho)
    else:
        series = dual.slope_coefficients if of_slope else dual.coefficients
        coefficients = series(safe_sqrt(q), _SERIES_DEGREE)
        terms = _terms_of_series(coefficients, a2, rho)
        if signed:
            signs = jnp.moveaxis(jnp.where(coefficients < 0, -1, 1), -1, 0)
    power = t2
    for j in range(1, len(terms)):
        terms[j], power = terms[j] * power, power * t2
    # Row j has the coefficients of c^j in the Gegenbauer polynomials.
    change = np.stack([gegenbauer_coefficients(row, dim) for row in np.eye(DEGREE + 1)])
    weights = []
    for i in range(DEGREE + 1):
        square = jnp.zeros_like(a2)
        for j in range(DEGREE + 1):
            if change[j, i] > 1e-9:
                square = square + float(change[j, i]) * terms[j]
        weights.append(signs[i] * safe_sqrt(square))
    return weights


def _terms_with_kink(
    function: Homogeneous, q: Array, a2: Array, rho: Array
) -> list[Array]:
    """Return k^(j)(a^2) rho^(2j) / j! for j = 0..6, of p max(x, 0)^k + n max(-x, 0)^k.

    With kappa_k the arc-cosine kernel, k is half the square of p + n (p - n for a step)
    times kappa_k, minus p n alpha (plus p n for a step).
    """
    p, n, power = function.positive, function.negative, function.power
    scale = (p + n) ** 2 / 2 if power else (p - n) ** 2 / 2
    terms = [scale * term for term in _kappa_terms(power, a2, rho)]
    if power:
        terms[0] = terms[0] - p * n * a2
        terms[1] = terms[1] - p * n * rho**2
    else:
        terms[0] = terms[0] + p * n
    at_one = q if power else (q > 0).astype(q.dtype)
    return [at_one * term for term in terms]


@functools.partial(jax.jit, static_argnums=0)
def _kappa_terms(order: int, a2: Array, rho: Array) -> list[Array]:
    r"""Return kappa_order^(j)(a^2) rho^(2j) / j! for j = 0..6.

    With :math:`y = (1-s^2)^{-1/2}`, :math:`\kappa_0' = y / \pi`. The derivatives of y
    are :math:`u_n (1-s^2)^{-n-1/2}` with
    :math:`u_{n+1} = (2n+1) s u_n + n^2 (1-s^2) u_{n-1}`, all positive.
    """
    s = a2
    if order == 0:
        terms, power = [kappa0(s)], rho
    else:
        terms, power = [kappa1(s), kappa0(s) * rho**2], rho**3
    u, u_before = jnp.ones_like(s), jnp.zeros_like(s)
    for n in range(DEGREE + 1 - len(terms)):
        j = len(terms)
        terms.append(u * power / (math.pi * math.factorial(j) * (1 + s) ** (n + 0.5)))
        u_next = (2 * n + 1) * s * u + n * n * rho**2 * (1 + s) * u_before
        u, u_before = u_next, u
    return terms


def _terms_of_series(coefficients: Array, a2: Array, rho: Array) -> list[Array]:
    """Return the same terms of k = sum_i coefficients_i^2 alpha^i."""
    terms = []
    for j in range(DEGREE + 1):
        derivative = jnp.zeros_like(a2)
        for i in range(_SERIES_DEGREE, j - 1, -1):
            derivative = derivative * a2 + math.comb(i, j) * coefficients[..., i] ** 2
        terms.append(derivative * rho ** (2 * j))
    return terms


class HighDegrees(NamedTuple):
    """The degrees above 6 of sgn z, or of -|z|.

    Attributes:
      low_coefficients: the coefficients of h_0 ... h_6, to be subtracted.
      norm: the root mean square of the rest.
    """

    low_coefficients: tuple[float, ...]
    norm: float


@functools.lru_cache
def high_degrees(power: int, dim: int) -> HighDegrees:
    """Return the degrees above 6 of sgn z (power 0) or -|z| (power 1).

    z = t sqrt(dim), where t is the cosine of an angle of density sin^(dim-2).
    """
    angle = (np.arange(100_000) + 0.5) * (np.pi / 100_000)
    log_density = (dim - 2) * np.log(np.sin(angle))
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    t = np.cos(angle)
    values = np.sign(t) if power == 0 else -np.abs(t) * math.sqrt(dim)
    low = (density * values) @ orthonormal_values(t, DEGREE, dim)
    square = density @ values**2 - low @ low
    return HighDegrees(tuple(map(float, low)), math.sqrt(square))


def expanded_kernels(
    dual: DualActivation, k: Kernels, with_high_degrees: bool
) -> Kernels:
    """Return the expected kernels after an activation."""
    norm2 = np.diagonal(k.nngp)
    q = np.maximum(k.variances, norm2) if k.after_dropout else norm2
    positive = np.where(q > 0, q, 1)
    share = norm2 / positive
    a2 = np.clip(np.diagonal(k.constants) / positive, 0, share)
    t2 = (share - a2) / np.where(a2 < 1, 1 - a2, 1)
    length = np.sqrt(q * (share - a2))
    lengths = np.outer(length, length)
    rest = k.nngp - k.constants
    c = np.divide(rest, lengths, where=lengths > 0, out=np.zeros_like(lengths))
    c = np.clip(c, -1, 1)
    np.fill_diagonal(c, 1.0)
    signed, dim = not k.constants.any(), sphere_dim(k.dim)
    weights = on_host(
        functools.partial(_weights, dual, dim, signed), q, a2, np.sqrt(1 - a2), t2
    )
    *pairs, variances, _ = on_host(functools.partial(duals, dual), k.nngp, q)
    p = gegenbauer_values(c, DEGREE, dim)
    means = []
    for of_slope, g, pair in zip((False, True), weights, pairs, strict=True):
        mean = np.einsum("il,jl,ijl->ij", g, g, p)
        function = with_kink(dual, of_slope=of_slope)
        if with_high_degrees and function:
            scale = np.sqrt(np.maximum(np.diagonal(pair) - (g**2).sum(axis=1), 0))
            mean += np.outer(scale, scale) * _high_kernel(function.power, dim, c, p)
        means.append(mean)
    if not k.after_dropout:
        variances = np.diagonal(means[0])
    after = k.through(dual, means[0], means[1], variances)
    g, slope_g = (np.outer(weight[:, 0], weight[:, 0]) for weight in weights)
    # The constant part of the NTK features becomes one column, its norm.
    norm = np.sqrt(np.diagonal(k.ntk_constants))
    constants = np.outer(norm, norm)
    return dataclasses.replace(
        after,
        ntk=after.ntk + (constants - k.ntk_constants) * slope_g,
        constants=g,
        ntk_constants=constants * slope_g,
    )


def _high_kernel(power: int, dim: int, c: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return the kernel of sgn z or |z| without the low degrees, 1 at cosine 1."""
    low, norm = high_degrees(power, dim)
    kernel = np.arcsin(c) * (2 / np.pi)
    if power == 1:
        kernel = (np.sqrt(1 - c**2) + c * np.arcsin(c)) * (2 / np.pi)
    return (kernel - p @ np.square(low)) / norm**2


def _weights(
    dual: DualActivation,
    dim: int,
    signed: bool,
    q: Array,
    a2: Array,
    rho: Array,
    t2: Array,
) -> tuple[Array, ...]:
    """Return the weights (n, 7) of both kernels.

    It is not compiled as a whole, which takes seconds.
    """
    value, slope = (
        expansion_weights(
            dual, q, a2, rho, dim, of_slope=of_slope, signed=signed, t2=t2
        )
        for of_slope in (False, True)
    )
    return jnp.stack(value, -1), jnp.stack(slope, -1)
