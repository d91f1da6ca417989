r"""Duals of polynomials, and of kernels that are power series of the cosine."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch.kernels.arc_cosine import cosine
from jax_ntk_sketch.kernels.duals.base import DualActivation

__all__ = ["ExpNormalizedDual", "HermiteDual", "PolynomialDual"]


@dataclasses.dataclass(frozen=True)
class PolynomialDual(DualActivation):
    r""":math:`\sum_j c_j x^j`.

    Since :math:`x^{2i+l}` has the coefficient
    :math:`(2i+l)! / (2^i i! \sqrt{l!}) s^{2i+l}` of h_l,
    :math:`k = \sum_l g_l(q_1) g_l(q_2) c^l` with polynomials :math:`g_l(q)`: no
    division by a variance. Source: arXiv 2209.04121, theorem 1.
    """

    coef: tuple[float, ...]

    @property
    def power(self) -> int | None:  # type: ignore[override]
        used = [j for j, c in enumerate(self.coef) if c]
        return used[0] if len(used) == 1 else None

    def value(self, z: jax.Array, s: jax.Array) -> jax.Array:
        return _polyval(self.coef, s[..., None] * z)

    def slope(self, z: jax.Array, s: jax.Array) -> jax.Array:
        return _polyval(self._derivative, s[..., None] * z)

    @property
    def _derivative(self) -> tuple[float, ...]:
        return tuple(j * c for j, c in enumerate(self.coef))[1:] or (0.0,)

    def pair(self, cov: jax.Array, q1: jax.Array, q2: jax.Array) -> Any:
        return _series(self.coef, cov, q1, q2), _series(self._derivative, cov, q1, q2)

    def coefficients(self, s: jax.Array, degree: int) -> jax.Array:
        return _coefficients(self.coef, s, degree)

    def slope_coefficients(self, s: jax.Array, degree: int) -> jax.Array:
        return _coefficients(self._derivative, s, degree)


@dataclasses.dataclass(frozen=True)
class HermiteDual(DualActivation):
    """k = c^degree: the Hermite polynomial, scaled to be homogeneous."""

    degree: int

    @property
    def power(self) -> int:  # type: ignore[override]
        return self.degree

    def value(self, z: jax.Array, s: jax.Array) -> jax.Array:
        return _hermite(self.degree, z) * s[..., None] ** self.degree

    def slope(self, z: jax.Array, s: jax.Array) -> jax.Array:
        if self.degree == 0:
            return jnp.zeros_like(z)
        below = HermiteDual(self.degree - 1).value(z, s)
        return below * math.sqrt(self.degree)

    def pair(self, cov: jax.Array, q1: jax.Array, q2: jax.Array) -> Any:
        cov = cov + jnp.zeros_like(q1 * q2)
        if self.degree == 0:
            return jnp.ones_like(cov), jnp.zeros_like(cov)
        return cov**self.degree, self.degree * cov ** (self.degree - 1)

    def coefficients(self, s: jax.Array, degree: int) -> jax.Array:
        one = np.arange(degree + 1) == self.degree
        return jnp.asarray(one, s.dtype) * s[..., None] ** self.degree

    def slope_coefficients(self, s: jax.Array, degree: int) -> jax.Array:
        if self.degree == 0:
            return jnp.zeros((*s.shape, degree + 1), s.dtype)
        below = HermiteDual(self.degree - 1).coefficients(s, degree)
        return below * math.sqrt(self.degree)


@dataclasses.dataclass(frozen=True)
class ExpNormalizedDual(DualActivation):
    r""":math:`k = N e^{\gamma (\alpha + \mathrm{shift})}`, :math:`k' = \gamma k / N`.

    The function with these coefficients, with signs that alternate in pairs, is
    :math:`s e^{\gamma (1 + \mathrm{shift}) / 2} (\cos + \sin)(\sqrt\gamma z)`: bounded.
    """

    gamma: float
    shift: float
    power: int = 1

    @property
    def lengths(self) -> tuple[bool, bool]:
        return True, True  # a wave of z, whatever its power of s

    def value(self, z: jax.Array, s: jax.Array) -> jax.Array:
        return self._wave(z) * s[..., None]

    def slope(self, z: jax.Array, s: jax.Array) -> jax.Array:
        return math.sqrt(self.gamma) * self._wave(z)

    def _wave(self, z: jax.Array) -> jax.Array:
        angle = math.sqrt(self.gamma) * z
        scale = math.exp(self.gamma * (1 + self.shift) / 2)
        return scale * (jnp.cos(angle) + jnp.sin(angle))

    def pair(self, cov: jax.Array, q1: jax.Array, q2: jax.Array) -> Any:
        norms, alpha = cosine(cov, q1, q2)
        slope = jnp.exp(self.gamma * (jnp.clip(alpha, -1, 1) + self.shift))
        return norms * slope, self.gamma * slope

    def coefficients(self, s: jax.Array, degree: int) -> jax.Array:
        return jnp.asarray(self.table(degree), s.dtype) * s[..., None]

    def slope_coefficients(self, s: jax.Array, degree: int) -> jax.Array:
        table = math.sqrt(self.gamma) * self.table(degree)
        return jnp.asarray(table, s.dtype) * jnp.ones_like(s)[..., None]

    def table(self, degree: int) -> np.ndarray:
        """a_l(1) for l = 0..degree, of the wave's signs."""
        order = np.arange(degree + 1)
        factorials = np.array([math.factorial(i) for i in order], float)
        signs = np.where(order % 4 < 2, 1.0, -1.0)
        scale = math.exp(self.gamma * self.shift / 2)
        return scale * signs * np.sqrt(self.gamma**order / factorials)


def _polyval(coef: tuple[float, ...], x: jax.Array) -> jax.Array:
    return jnp.polyval(jnp.asarray(coef[::-1], x.dtype), x)


def _scaled(coef: tuple[float, ...], order: int) -> tuple[float, ...]:
    """Coefficients of g_l in powers of q, l = order."""
    root = math.factorial(order) ** 0.5
    return tuple(
        coef[order + 2 * i]
        * math.factorial(order + 2 * i)
        / (2**i * math.factorial(i) * root)
        for i in range((len(coef) - order + 1) // 2)
    )


def _series(
    coef: tuple[float, ...], cov: jax.Array, q1: jax.Array, q2: jax.Array
) -> jax.Array:
    total = jnp.zeros_like(cov + q1 + q2)
    for order in range(len(coef) - 1, -1, -1):
        g = _scaled(coef, order)
        total = total * cov + _polyval(g, q1) * _polyval(g, q2)
    return total


def _coefficients(coef: tuple[float, ...], s: jax.Array, degree: int) -> jax.Array:
    out = [
        _polyval(_scaled(coef, order), s * s) * s**order
        for order in range(min(degree + 1, len(coef)))
    ]
    out += [jnp.zeros_like(s)] * (degree + 1 - len(out))
    return jnp.stack(out, axis=-1)


def _hermite(degree: int, z: jax.Array) -> jax.Array:
    h, before = jnp.ones_like(z), jnp.zeros_like(z)
    for i in range(degree):
        h, before = (z * h - math.sqrt(i) * before) / math.sqrt(i + 1), h
    return h
