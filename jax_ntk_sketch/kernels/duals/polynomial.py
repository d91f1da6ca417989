r"""Duals of polynomials, and of a kernel that is an exponential of the cosine."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._numerics import lift
from jax_ntk_sketch._typing import Array
from jax_ntk_sketch.kernels.arc_cosine import cosine
from jax_ntk_sketch.kernels.duals.base import DualActivation


@dataclasses.dataclass(frozen=True)
class PolynomialDual(DualActivation):
    r"""The activation :math:`\sum_j c_j x^j`.

    At standard deviation s, :math:`x^{2i+l}` has the Hermite coefficient
    :math:`(2i+l)! / (2^i i! \sqrt{l!}) s^{2i+l}` of degree l. Hence
    :math:`k = \sum_l g_l(q_1) g_l(q_2) c^l` with polynomials :math:`g_l(q)`, and no
    variance is divided by.

    Source: Han et al., arXiv 2209.04121, theorem 1.
    """

    coef: tuple[float, ...]

    @property
    def homogeneity_degree(self) -> int | None:
        nonzero = [j for j, c in enumerate(self.coef) if c]
        return nonzero[0] if len(nonzero) == 1 else None

    @property
    def _derivative(self) -> tuple[float, ...]:
        return tuple(j * c for j, c in enumerate(self.coef))[1:] or (0.0,)

    def value(self, z: Array, s: Array) -> Array:
        return _polyval(self.coef, s[..., None] * z)

    def slope(self, z: Array, s: Array) -> Array:
        return _polyval(self._derivative, s[..., None] * z)

    def covariances(self, cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        return (
            _covariance(self.coef, cov, q1, q2),
            _covariance(self._derivative, cov, q1, q2),
        )

    def coefficients(self, s: Array, degree: int) -> Array:
        return _coefficients(self.coef, s, degree)

    def slope_coefficients(self, s: Array, degree: int) -> Array:
        return _coefficients(self._derivative, s, degree)


@dataclasses.dataclass(frozen=True)
class HermiteDual(DualActivation):
    """The Hermite polynomial, scaled to be homogeneous: k = c^degree."""

    degree: int

    @property
    def homogeneity_degree(self) -> int:
        return self.degree

    def value(self, z: Array, s: Array) -> Array:
        return _hermite(self.degree, z) * s[..., None] ** self.degree

    def slope(self, z: Array, s: Array) -> Array:
        if self.degree == 0:
            return jnp.zeros_like(z)
        lower = HermiteDual(self.degree - 1).value(z, s)
        return lower * math.sqrt(self.degree)

    def covariances(self, cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        cov = cov + jnp.zeros_like(q1 * q2)
        if self.degree == 0:
            return jnp.ones_like(cov), jnp.zeros_like(cov)
        return cov**self.degree, self.degree * cov ** (self.degree - 1)

    def coefficients(self, s: Array, degree: int) -> Array:
        one = np.arange(degree + 1) == self.degree
        power = s[..., None] ** self.degree
        return lift(jnp.asarray(one, s.dtype), power) * power

    def slope_coefficients(self, s: Array, degree: int) -> Array:
        if self.degree == 0:
            return jnp.zeros((*s.shape, degree + 1), s.dtype)
        lower = HermiteDual(self.degree - 1).coefficients(s, degree)
        return lower * math.sqrt(self.degree)


@dataclasses.dataclass(frozen=True)
class ExpNormalizedDual(DualActivation):
    r"""The activation of :math:`k = N e^{\gamma (\alpha + \mathrm{shift})}`.

    Here N is the square root of the product of the variances and alpha the cosine, so
    that :math:`k' = \gamma k / N`. The function with these Hermite coefficients, with
    signs that alternate in pairs, is bounded:
    :math:`s e^{\gamma (1 + \mathrm{shift}) / 2} (\cos + \sin)(\sqrt\gamma z)`.
    """

    gamma: float
    shift: float

    @property
    def homogeneity_degree(self) -> int:
        return 1

    @property
    def needs_normal_lengths(self) -> tuple[bool, bool]:
        return True, True  # a wave of z, whatever its power of s

    def value(self, z: Array, s: Array) -> Array:
        return self._wave(z) * s[..., None]

    def slope(self, z: Array, s: Array) -> Array:
        return math.sqrt(self.gamma) * self._wave(z)

    def _wave(self, z: Array) -> Array:
        angle = math.sqrt(self.gamma) * z
        scale = math.exp(self.gamma * (1 + self.shift) / 2)
        return scale * (jnp.cos(angle) + jnp.sin(angle))

    def covariances(self, cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        norms, alpha = cosine(cov, q1, q2)
        unit = jnp.exp(self.gamma * (jnp.clip(alpha, -1, 1) + self.shift))
        return norms * unit, self.gamma * unit

    def coefficients(self, s: Array, degree: int) -> Array:
        unit = jnp.asarray(self.unit_coefficients(degree), s.dtype)
        return lift(unit, s[..., None]) * s[..., None]

    def slope_coefficients(self, s: Array, degree: int) -> Array:
        unit = math.sqrt(self.gamma) * self.unit_coefficients(degree)
        return jnp.broadcast_to(jnp.asarray(unit, s.dtype), (*s.shape, len(unit)))

    def unit_coefficients(self, degree: int) -> np.ndarray:
        """Return a_l(1) for l = 0..degree, with the signs of the wave."""
        order = np.arange(degree + 1)
        factorials = np.array([math.factorial(i) for i in order], float)
        signs = np.where(order % 4 < 2, 1.0, -1.0)
        scale = math.exp(self.gamma * self.shift / 2)
        return scale * signs * np.sqrt(self.gamma**order / factorials)


def _polyval(coef: tuple[float, ...], x: Array) -> Array:
    return jnp.polyval(jnp.asarray(coef[::-1], x.dtype), x)


def _variance_polynomial(coef: tuple[float, ...], order: int) -> tuple[float, ...]:
    """Return the coefficients of g_l in powers of q, l = order."""
    root = math.factorial(order) ** 0.5
    return tuple(
        coef[order + 2 * i]
        * math.factorial(order + 2 * i)
        / (2**i * math.factorial(i) * root)
        for i in range((len(coef) - order + 1) // 2)
    )


def _covariance(coef: tuple[float, ...], cov: Array, q1: Array, q2: Array) -> Array:
    total = jnp.zeros_like(cov + q1 + q2)
    for order in range(len(coef) - 1, -1, -1):
        g = _variance_polynomial(coef, order)
        total = total * cov + _polyval(g, q1) * _polyval(g, q2)
    return total


def _coefficients(coef: tuple[float, ...], s: Array, degree: int) -> Array:
    """Return a_l(s) = g_l(s^2) s^l for l = 0..degree, (..., degree + 1)."""
    columns = [
        _polyval(_variance_polynomial(coef, order), s * s) * s**order
        for order in range(min(degree + 1, len(coef)))
    ]
    columns += [jnp.zeros_like(s)] * (degree + 1 - len(columns))
    return jnp.stack(columns, axis=-1)


def _hermite(degree: int, z: Array) -> Array:
    h, before = jnp.ones_like(z), jnp.zeros_like(z)
    for i in range(degree):
        h, before = (z * h - math.sqrt(i) * before) / math.sqrt(i + 1), h
    return h
