r"""Dual kernels: Gaussian averages of an activation and of its derivative.

Let (u, v) be Gaussian with variances q1, q2 and covariance c. An activation sigma has
the dual kernels

    k(c, q1, q2) = E sigma(u) sigma(v),     k'(c, q1, q2) = E sigma'(u) sigma'(v),

and k' is the derivative of k by c. With z standard normal and h_l the orthonormal
Hermite polynomials, let a_l(s) = E sigma(s z) h_l(z). Then

    k = sum_l a_l(sqrt q1) a_l(sqrt q2) (c / sqrt(q1 q2))^l,

so that the dependence on the variances is exact, whatever the degree.

After Dropout u and v each contain noise of their own, so that c / q <= r < 1 for an
input and itself. Features are then functions of the part of u without noise, of
variance r q. They see the mean of sigma over the noise, with coefficients a_l r^(l/2).

Source: Daniely, Frostig and Singer, Toward deeper understanding of neural networks
(2016), section 4; Han et al., arXiv 2209.04121, section 3.
"""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._numerics import lift, matmul, safe_sqrt
from jax_ntk_sketch._typing import Array, ArrayLike

# Nodes of the quadrature for a_l: exact for polynomials of degree 199.
_NODES = 100

# Nodes of means over noise: their error is 1e-8 at variance 1. At variance 9 it is 1e-3
# for erf of which half is noise.
_NOISE_NODES = 32

# An elementwise function of arrays.
Scalar: TypeAlias = Callable[[Array], Array]

# From covariances and two variances, which broadcast, to k and k'.
Covariances: TypeAlias = Callable[[Array, Array, Array], tuple[Array, Array]]


class MissingFunctionError(ValueError):
    """The error of an activation that has a kernel, but no function for features."""


class DualActivation:
    """The Gaussian averages of an activation.

    Attributes:
      max_variance: averages of squares exist for variances below it.
    """

    max_variance: float = math.inf

    @property
    def homogeneity_degree(self) -> int | None:
        """The integer p for which k at standard deviations s, t is (s t)^p k at 1, 1.

        The cosine is the same. None where there is no such p.
        """
        return None

    @property
    def needs_normal_lengths(self) -> tuple[bool, bool]:
        """Whether means of sigma, and of sigma', need normal lengths of directions.

        They do not if the function is homogeneous in z, of degree 0 or 1.
        """
        p = self.homogeneity_degree
        return p is None or p > 1, p is None or p > 2

    def value(self, z: Array, s: Array) -> Array:
        """Return sigma at s z, for standard normal z (..., m) and s (...)."""
        raise NotImplementedError

    def slope(self, z: Array, s: Array) -> Array:
        """Return sigma' at s z, for standard normal z (..., m) and s (...)."""
        raise NotImplementedError

    def smoothed_value(self, z: Array, s: Array, kept: Array) -> Array:
        """Return the mean of sigma at s (sqrt(kept) z + sqrt(1 - kept) noise).

        The noise is normal. `kept` (...) is the share of the variance that is z's; with
        all of it the mean is `value`.
        """
        return _mean_over_noise(self.value, z, s, kept)

    def smoothed_slope(self, z: Array, s: Array, kept: Array) -> Array:
        """Return the mean of sigma' at the same argument as in `smoothed_value`."""
        return _mean_over_noise(self.slope, z, s, kept)

    def covariances(self, cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        """Return k and k', elementwise on arrays that broadcast."""
        raise NotImplementedError

    def diagonal(self, q: Array) -> tuple[Array, Array]:
        """Return k and k' at q1 = q2 = c = q."""
        return self.covariances(q, q, q)

    def kernels(
        self, nngp: ArrayLike, diag1: ArrayLike, diag2: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Return k and k' between two sets of inputs.

        Args:
          nngp: covariances, (..., n1, n2).
          diag1: variances of the first set, (..., n1), >= 0.
          diag2: variances of the second set, (..., n2), >= 0. None if both sets are the
            same; the diagonal is then `diagonal`, where the cosine is 1 without
            rounding.

        Returns:
          The two kernels, both (..., n1, n2).

        Raises:
          ValueError: the shapes do not fit, or a variance is negative (where its value
            is known: not under `jit`).
        """
        nngp, diag1 = jnp.asarray(nngp), jnp.asarray(diag1)
        same = diag2 is None
        diag2 = diag1 if diag2 is None else jnp.asarray(diag2)
        expected = (*diag1.shape, *diag2.shape[-1:])
        if diag1.ndim < 1 or diag2.ndim < 1 or nngp.shape != expected:
            raise ValueError(
                "kernels: nngp must have shape (..., n1, n2) for diag1 (..., n1) and "
                f"diag2 (..., n2), got {nngp.shape}, {diag1.shape} and {diag2.shape}"
            )
        for name, diag in (("diag1", diag1), ("diag2", diag2)):
            if isinstance(diag, jax.core.Tracer) or not diag.size:
                continue
            smallest = np.min(np.asarray(diag))
            if smallest < 0:
                raise ValueError(
                    f"kernels: {name} holds variances and must be >= 0, got {smallest}"
                )
        q1 = diag1[..., :, None]
        q2 = lift(diag2[..., None, :], q1)
        value, slope = self.covariances(nngp, q1, q2)
        if same:
            eye = lift(jnp.eye(nngp.shape[-1], dtype=bool), nngp)
            on_diagonal = (k[..., :, None] for k in self.diagonal(diag1))
            value, slope = (
                jnp.where(eye, exact, k)
                for exact, k in zip(on_diagonal, (value, slope), strict=True)
            )
        return value, slope

    def coefficients(self, s: Array, degree: int) -> Array:
        """Return a_0(s) ... a_degree(s), (..., degree + 1) for s (...)."""
        return _hermite_coefficients(self.value, s, degree)

    def slope_coefficients(self, s: Array, degree: int) -> Array:
        """Return the same coefficients of sigma'."""
        return _hermite_coefficients(self.slope, s, degree)


class Smooth(DualActivation):
    """An activation given by a function, its derivative, and closed forms of k, k'."""

    def __init__(
        self,
        fn: Scalar,
        df: Scalar,
        covariances: Covariances,
        max_variance: float = math.inf,
    ) -> None:
        self.fn, self.df = fn, df
        self._covariances, self.max_variance = covariances, max_variance

    def value(self, z: Array, s: Array) -> Array:
        return self.fn(s[..., None] * z)

    def slope(self, z: Array, s: Array) -> Array:
        return self.df(s[..., None] * z)

    def covariances(self, cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        return self._covariances(cov, q1, q2)


@functools.lru_cache
def hermite_nodes(num: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes (K,) of E f(z), and weights times h_l there, (K, degree + 1).

    Nodes whose weights vanish in single precision are left out, so that K <= num.
    """
    z, w = np.polynomial.hermite_e.hermegauss(num)
    w = w / w.sum()
    keep = w > 1e-30
    z, w = z[keep], w[keep]
    h: np.ndarray = np.empty((degree + 1, len(z)))
    h[0] = 1
    for i in range(degree):
        before = h[i - 1] * np.sqrt(i) if i else 0.0
        h[i + 1] = (z * h[i] - before) / np.sqrt(i + 1)
    return z, (w * h).T


def _hermite_coefficients(
    function: Callable[[Array, Array], Array], s: Array, degree: int
) -> Array:
    z, weights = hermite_nodes(max(_NODES, degree + 1), degree)
    values = function(lift(jnp.asarray(z, s.dtype), s[..., None]), s)
    return matmul(values, jnp.asarray(weights, s.dtype))


def _mean_over_noise(
    function: Callable[[Array, Array], Array], z: Array, s: Array, kept: Array
) -> Array:
    mean = safe_sqrt(kept)[..., None] * z
    deviation = safe_sqrt(1 - kept)[..., None]

    def add_node(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        noise, weight = node
        value = function(mean + deviation * noise, s)
        return total + weight * value.astype(z.dtype), None

    nodes, weights = hermite_nodes(_NOISE_NODES, 0)
    pairs = jnp.asarray(nodes, z.dtype), jnp.asarray(weights[:, 0], z.dtype)
    # One node after the other: all together would need 32 times the memory.
    return jax.lax.scan(add_node, jnp.zeros_like(z), pairs)[0]
