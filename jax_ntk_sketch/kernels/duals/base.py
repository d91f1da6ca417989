r"""Dual kernels: Gaussian averages of an activation and of its derivative.

For (u, v) Gaussian with variances q1, q2 and covariance c an activation has

    k(c, q1, q2) = E sigma(u) sigma(v),     k'(c, q1, q2) = E sigma'(u) sigma'(v),

and k' is the derivative of k by c. With z standard normal and h_l the orthonormal
Hermite polynomials, a_l(s) = E sigma(s z) h_l(z),

    k = sum_l a_l(sqrt q1) a_l(sqrt q2) (c / sqrt(q1 q2))^l:

the dependence on the variances is kept exactly, whatever the degree.

Behind Dropout u and v each hold noise of their own, so that c / q <= r < 1 for an input
and itself. Features are then functions of the rest of u, of variance r q, and what they
see of sigma is its mean over the noise, with the coefficients a_l r^(l/2).

Source: Daniely, Frostig and Singer, Toward deeper understanding of neural networks
(2016), section 4; Han et al., arXiv 2209.04121, section 3.
"""

import concurrent.futures
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_ntk_sketch._numerics import safe_sqrt

__all__ = [
    "DualActivation",
    "MissingFunctionError",
    "Smooth",
    "evaluate_eagerly",
    "hermite_nodes",
]

# Of the quadrature for a_l: exact for polynomials of degree 199.
_NODES = 100

# For means over noise: to 1e-8 at variance 1, to 1e-3 (erf, half of it noise) at 9.
_NOISE_NODES = 32


def evaluate_eagerly(f: Callable[[], Any]) -> Any:
    """`f()`, computed now even inside of a function that is being traced.

    Traces belong to a thread, so it runs in another. (On JAX 0.7.0
    `jax.ensure_compile_time_eval` fails on functions with derivatives of their own.)
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(f).result()


class MissingFunctionError(ValueError):
    """The activation has a kernel, but no function to draw features of."""


class DualActivation:
    """What an activation does to EnsemblePrediction.

    Attributes:
      power: k where the kernel of norms s is that of unit norms times s^k, else None.
      most: variances have to be below it, for averages of squares to exist.
    """

    power: int | None
    most: float = math.inf

    @property
    def lengths(self) -> tuple[bool, bool]:
        """Whether averages of sigma and sigma' take the lengths of normal directions.

        Not if they are homogeneous in z, of degree 0 or 1.
        """
        k = self.power
        return k is None or k > 1, k is None or k > 2

    def value(self, z: jax.Array, s: jax.Array) -> jax.Array:
        """sigma at s z, for standard normal z; z (..., m), s (...)."""
        raise NotImplementedError

    def slope(self, z: jax.Array, s: jax.Array) -> jax.Array:
        """sigma' at s z."""
        raise NotImplementedError

    def smoothed_value(self, z: jax.Array, s: jax.Array, kept: jax.Array) -> jax.Array:
        """The mean of sigma at s (sqrt(kept) z + sqrt(1 - kept) noise), noise normal.

        kept (...) is the share of the variance that is z's; all of it: `value`.
        """
        return _smoothed(self.value, z, s, kept)

    def smoothed_slope(self, z: jax.Array, s: jax.Array, kept: jax.Array) -> jax.Array:
        """Likewise of sigma'."""
        return _smoothed(self.slope, z, s, kept)

    def pair(self, cov: jax.Array, q1: jax.Array, q2: jax.Array) -> Any:
        """k and k', elementwise on arrays that broadcast."""
        raise NotImplementedError

    def diagonal(self, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """k and k' at variances q = q1 = q2 = c."""
        return self.pair(q, q, q)

    def kernels(
        self, nngp: ArrayLike, diag1: ArrayLike, diag2: ArrayLike | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """k and k' between two sets of inputs.

        Args:
          nngp: covariances, (..., n1, n2).
          diag1: variances of the first set, (..., n1), >= 0.
          diag2: of the second, (..., n2); None if both sets are the same: then the
            diagonal is that of `diagonal`, where the cosine is 1 without rounding.

        Returns:
          The two kernels, both (..., n1, n2).

        Raises:
          ValueError: shapes that do not fit, or a negative variance (where its value
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
            if np.min(np.asarray(diag)) < 0:
                raise ValueError(
                    f"kernels: {name} holds variances and must be >= 0, got "
                    f"{np.min(np.asarray(diag))}"
                )
        q1, q2 = diag1[..., :, None], diag2[..., None, :]
        value, slope = self.pair(nngp, q1, q2)
        if same:
            eye = jnp.eye(nngp.shape[-1], dtype=bool)
            one, other = (k[..., :, None] for k in self.diagonal(diag1))
            value, slope = jnp.where(eye, one, value), jnp.where(eye, other, slope)
        return value, slope

    def coefficients(self, s: jax.Array, degree: int) -> jax.Array:
        """a_0(s) ... a_degree(s): `(..., degree + 1)` for s `(...)`."""
        return _average(self.value, s, degree)

    def slope_coefficients(self, s: jax.Array, degree: int) -> jax.Array:
        """Likewise of sigma'."""
        return _average(self.slope, s, degree)


class Smooth(DualActivation):
    """A function of one number, its derivative, and closed forms of k and k'."""

    power = None

    def __init__(self, fn: Any, df: Any, pair: Any, most: float = math.inf) -> None:
        self.fn, self.df, self._pair, self.most = fn, df, pair, most

    def value(self, z: jax.Array, s: jax.Array) -> jax.Array:
        return self.fn(s[..., None] * z)

    def slope(self, z: jax.Array, s: jax.Array) -> jax.Array:
        return self.df(s[..., None] * z)

    def pair(self, cov: jax.Array, q1: jax.Array, q2: jax.Array) -> Any:
        return self._pair(cov, q1, q2)


@functools.lru_cache
def hermite_nodes(num: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (K,) of E f(z), and weights times h_0 ... h_degree there, (K, degree + 1).

    Nodes whose weights vanish in single precision are left out.
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


def _average(f: Any, s: jax.Array, degree: int) -> jax.Array:
    z, weights = hermite_nodes(max(_NODES, degree + 1), degree)
    values = f(jnp.asarray(z, s.dtype), s)
    weighted = jnp.asarray(weights, s.dtype)
    return jnp.matmul(values, weighted, precision=jax.lax.Precision.HIGHEST)


def _smoothed(f: Any, z: jax.Array, s: jax.Array, kept: jax.Array) -> jax.Array:
    mean = safe_sqrt(kept)[..., None] * z
    deviation = safe_sqrt(1 - kept)[..., None]

    def step(total: jax.Array, node: Any) -> tuple[jax.Array, None]:
        noise, weight = node
        return total + weight * f(mean + deviation * noise, s).astype(z.dtype), None

    nodes, weights = hermite_nodes(_NOISE_NODES, 0)
    pairs = jnp.asarray(nodes, z.dtype), jnp.asarray(weights[:, 0], z.dtype)
    # One node after the other: together they would need 32 times the memory.
    return jax.lax.scan(step, jnp.zeros_like(z), pairs)[0]
