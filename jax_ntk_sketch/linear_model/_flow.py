"""Gradient flow along the eigenvectors of a Gram matrix of features."""

from typing import Self

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch._typing import Array, Dtype
from jax_ntk_sketch.linear_model.ridge import ROUNDING


class GradientFlow:
    """The eigenvectors of a Gram matrix, and functions of its eigenvalues and of time.

    Args:
      values, vectors: eigenvalues (r,), and eigenvectors (m, r).
      reg: the penalty.
      dtype: that of the results.

    Scaled times tau are (..., 1), functions of r eigenvalues (..., r), and factors of
    whole outputs (..., 1, 1). Write a = s^2 + reg. Eigenvalues that rounding cannot
    tell from zero are left out: no training reaches their directions. Targets have a
    part along the features and a part off them, which only the penalty moves.
    """

    def __init__(
        self, values: NDArray, vectors: NDArray, reg: float, dtype: Dtype
    ) -> None:
        smallest = ROUNDING[str(dtype)] * max(values.max(), 0) * len(vectors)
        positive = values > smallest
        self._vectors = vectors[:, positive]
        self.basis = jnp.asarray(self._vectors, dtype)
        self.squares = jnp.asarray(values[positive], dtype)
        self.reg, self.dtype = reg, dtype

    @classmethod
    def of_gram(cls, gram: NDArray, reg: float, dtype: Dtype) -> Self:
        """Return the flow of a Gram matrix (m, m)."""
        return cls(*np.linalg.eigh(gram), reg, dtype)

    @classmethod
    def of_features(cls, phi: NDArray, reg: float, dtype: Dtype) -> Self:
        """Return the flow of features (n, m), without their Gram matrix."""
        _, roots, transposed = np.linalg.svd(phi, full_matrices=False)
        return cls(roots**2, transposed.T, reg, dtype)

    def coordinates(self, moments: NDArray) -> Array:
        """Return V^T `moments` of shape (r, k), computed in double precision."""
        return jnp.asarray(self._vectors.T @ moments, self.dtype)

    def project(self, x: Array, y: Array) -> Array:
        """Return V^T x^T y."""
        return matmul(self.basis.T, matmul(x.T, y))

    def outputs(self, x: Array, gain: Array, coordinates: Array) -> Array:
        """Return x V g c, (..., p, k), from x (p, m), g (..., r) and c (r, k)."""
        return matmul(matmul(x, self.basis), gain[..., None] * coordinates)

    def _decay(self, tau: Array, factor: float = 1.0) -> Array:
        """Return exp(-factor reg tau); without a penalty it is 1 at infinity too."""
        return jnp.exp(-factor * self.reg * tau) if self.reg else jnp.ones_like(tau)

    def gain(self, tau: Array) -> Array:
        """Return (1 - exp(-a tau)) / a, for outputs on other examples."""
        a = self.squares + self.reg
        return -jnp.expm1(-a * tau) / a

    def train_gain(self, tau: Array) -> Array:
        """Return (f(a) - f(reg)) / s^2, f(x) = 1 - exp(-x tau), on training data."""
        return self._decay(tau) * -jnp.expm1(-self.squares * tau) / self.squares

    def train_gain_off(self, tau: Array) -> Array:
        """Return f(reg) = 1 - exp(-reg tau), for targets off the features."""
        return (1 - self._decay(tau))[..., None]

    def prior(self, tau: Array) -> Array:
        """Return the fraction 1 - s^2 (1 - exp(-2 a tau)) / a of the prior variance.

        It is left on other examples, along each direction.
        """
        a, s2 = self.squares + self.reg, self.squares
        return (self.reg + s2 * jnp.exp(-2 * a * tau)) / a

    def train_prior(self, tau: Array) -> Array:
        """Return (f(a) - f(reg)) / s^2 with f(x) = x exp(-2 x tau).

        Neural Tangents uses this fraction of the prior variance on the training set.
        """
        s2 = self.squares
        change = jnp.exp(-2 * s2 * tau) + self.reg * jnp.expm1(-2 * s2 * tau) / s2
        return self._decay(tau, 2.0) * change

    def train_prior_off(self, tau: Array) -> Array:
        """Return f(reg) = reg exp(-2 reg tau), off the features."""
        return self.reg * self._decay(tau, 2.0)[..., None]
