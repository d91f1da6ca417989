r"""Arc-cosine kernels, the dual kernels of the rectifier and of its derivative.

For unit vectors `u`, `v` with cosine `alpha` and `w ~ N(0, I)`

    kappa0(alpha) = (pi - arccos(alpha)) / pi             = 2 E 1[w.u > 0] 1[w.v > 0]
    kappa1(alpha) = (sqrt(1 - alpha^2) + alpha (pi - arccos(alpha))) / pi
                                                          = 2 E relu(w.u) relu(w.v)

Source: Cho and Saul, Kernel methods for deep learning (2009), equations 3 to 6.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

__all__ = ["kappa0", "kappa1", "relu_kernels"]

# sin(t) - t cos(t) = t^3 sum_k c_k t^(2k), to 1e-18 relative for 0 <= t <= 1.
_SERIES = [(-1) ** k * (2 * k + 2) / math.factorial(2 * k + 3) for k in range(10)]


def kappa0(alpha: ArrayLike) -> jax.Array:
    r"""The arc-cosine kernel of order 0, `(pi - arccos(alpha)) / pi`.

    Evaluated as `arctan2(sqrt((1 - alpha)(1 + alpha)), -alpha) / pi`, which keeps
    full relative accuracy up to both ends; from 0 at -1 to 1 at 1.

    Args:
      alpha: cosines, any shape; values outside [-1, 1] (rounding) are clipped,
        integers and booleans are converted to the default float.

    Returns:
      Array of the shape and dtype of `alpha`. Its derivative
      `1 / (pi sqrt(1 - alpha^2))` is infinite at -1 and 1; **0 is returned there**,
      so that gradients at coinciding points stay finite.

    Raises:
      TypeError: `alpha` is complex.

    >>> kappa0([-1.0, 0.0, 1.0])
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    alpha, dtype = _as_float("kappa0", alpha)
    return _kappa0(alpha).astype(dtype)


def kappa1(alpha: ArrayLike) -> jax.Array:
    r"""The arc-cosine kernel of order 1.

    `(sqrt(1 - alpha^2) + alpha (pi - arccos(alpha))) / pi`, from 0 at -1 to 1 at 1,
    with full relative accuracy up to both ends. Its derivative is `kappa0(alpha)`,
    computed as such.

    Args:
      alpha: cosines, any shape; values outside [-1, 1] (rounding) are clipped,
        integers and booleans are converted to the default float.

    Returns:
      Array of the shape and dtype of `alpha`.

    Raises:
      TypeError: `alpha` is complex.

    >>> kappa1([-1.0, 1.0])
    Array([0., 1.], dtype=float32)
    >>> float(jax.grad(kappa1)(1.0))
    1.0
    """
    alpha, dtype = _as_float("kappa1", alpha)
    return _kappa1(alpha).astype(dtype)


def relu_kernels(
    nngp: ArrayLike, diag1: ArrayLike, diag2: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""Covariances of `relu` and of its derivative under a Gaussian.

    For `(f, g)` Gaussian with covariance `nngp[i, j]` and variances `diag1[i]`,
    `diag2[j]`, with `N = sqrt(diag1[i] diag2[j])` and `alpha = nngp[i, j] / N`:

        E relu(f) relu(g) = N kappa1(alpha) / 2
        E 1[f > 0] 1[g > 0] = kappa0(alpha) / 2

    Args:
      nngp: covariances between two sets of inputs, (..., n1, n2).
      diag1: variances of the first set, (..., n1), >= 0.
      diag2: variances of the second set, (..., n2), >= 0; None if both sets are
        the same: then the cosine on the diagonal is 1 without rounding, which
        `kappa0`, infinitely steep there, needs.

    Returns:
      The two covariances, both (..., n1, n2). Where a variance is 0 they are 0 and
      1/4 (cosine 0, as in Neural Tangents), and gradients stay finite.

    Raises:
      ValueError: shapes that do not fit.

    >>> relu_kernels(jnp.array([[2.0]]), jnp.array([2.0]))
    (Array([[1.]], dtype=float32), Array([[0.5]], dtype=float32))
    """
    same = diag2 is None
    nngp, diag1 = jnp.asarray(nngp), jnp.asarray(diag1)
    diag2 = diag1 if diag2 is None else jnp.asarray(diag2)
    expected = (*diag1.shape, *diag2.shape[-1:])
    if diag1.ndim < 1 or diag2.ndim < 1 or nngp.shape != expected:
        raise ValueError(
            "relu_kernels: nngp must have shape (..., n1, n2) for diag1 (..., n1) and "
            f"diag2 (..., n2), got {nngp.shape}, {diag1.shape} and {diag2.shape}"
        )
    # The square root of each factor: their product could overflow.
    norms = _safe_sqrt(diag1)[..., :, None] * _safe_sqrt(diag2)[..., None, :]
    diagonal = jnp.eye(nngp.shape[-1], dtype=bool) if same else False
    norms = jnp.where(diagonal, diag1[..., :, None], norms)
    zero = norms == 0
    alpha = jnp.where(zero, 0, nngp / jnp.where(zero, 1, norms))
    alpha = jnp.where(diagonal & ~zero, 1, alpha)
    return _relu_covariance(nngp, norms, alpha), kappa0(alpha) / 2


@jax.custom_jvp
def _kappa0(alpha: jax.Array) -> jax.Array:
    alpha = jnp.clip(alpha, -1, 1)
    return jnp.arctan2(_sine(alpha), -alpha) / math.pi


@_kappa0.defjvp
def _kappa0_jvp(primals, tangents):
    (alpha,), (tangent,) = primals, tangents
    sine = _sine(jnp.clip(alpha, -1, 1))
    end = sine == 0
    slope = jnp.where(end, 0, 1 / (math.pi * jnp.where(end, 1, sine)))
    return _kappa0(alpha), slope * tangent


@jax.custom_jvp
def _kappa1(alpha: jax.Array) -> jax.Array:
    alpha = jnp.clip(alpha, -1, 1)
    sine = _sine(alpha)
    angle = jnp.arctan2(sine, -alpha)  # pi - arccos(alpha)
    # sin(angle) - angle cos(angle) cancels for small angles, that is, near -1.
    square, series = angle * angle, jnp.zeros_like(angle)
    for coefficient in reversed(_SERIES):
        series = series * square + coefficient
    small = angle < 1
    value = jnp.where(small, angle * square * series, sine + alpha * angle)
    return value / math.pi


@_kappa1.defjvp
def _kappa1_jvp(primals, tangents):
    (alpha,), (tangent,) = primals, tangents
    return _kappa1(alpha), _kappa0(alpha) * tangent


@jax.custom_jvp
def _relu_covariance(nngp: jax.Array, norms: jax.Array, alpha: jax.Array) -> jax.Array:
    return norms * kappa1(alpha) / 2


@_relu_covariance.defjvp
def _relu_covariance_jvp(primals, tangents):
    # With alpha = nngp / norms the derivatives are kappa0 / 2 and sine / (2 pi);
    # alpha's own tangent is contained in them. Unlike the chain rule they exist at
    # norms = 0, where the first keeps the slope of relu's linear part.
    nngp, norms, alpha = primals
    d_nngp, d_norms, _ = tangents
    sine = _sine(jnp.clip(alpha, -1, 1))
    tangent = kappa0(alpha) / 2 * d_nngp + sine / (2 * math.pi) * d_norms
    return _relu_covariance(nngp, norms, alpha), tangent


def _sine(alpha: jax.Array) -> jax.Array:
    # Factored, because 1 - alpha^2 cancels near 1 and -1.
    return _safe_sqrt((1 - alpha) * (1 + alpha))


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root with derivative 0 at 0."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def _as_float(name: str, alpha: ArrayLike) -> tuple[jax.Array, jnp.dtype]:
    """`alpha` in at least single precision, and the dtype of the result."""
    array = jnp.asarray(alpha)
    if jnp.iscomplexobj(array):
        raise TypeError(f"{name}: alpha must be real, got dtype {array.dtype}")
    dtype = jnp.result_type(array, float)
    return array.astype(jnp.promote_types(dtype, jnp.float32)), dtype
