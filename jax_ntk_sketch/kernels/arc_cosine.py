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

from jax_ntk_sketch._numerics import safe_sqrt

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
def relu_covariance(nngp: jax.Array, norms: jax.Array, alpha: jax.Array) -> jax.Array:
    """`norms kappa1(alpha) / 2`, for alpha = nngp / norms, or 0 where norms are."""
    return norms * kappa1(alpha) / 2


@relu_covariance.defjvp
def _covariance_jvp(primals, tangents):
    # With alpha = nngp / norms the derivatives are kappa0 / 2 and sine / (2 pi);
    # alpha's own tangent is contained in them. Unlike the chain rule they exist at
    # norms = 0, where the first keeps the slope of relu's linear part.
    nngp, norms, alpha = primals
    d_nngp, d_norms, _ = tangents
    sine = _sine(jnp.clip(alpha, -1, 1))
    tangent = kappa0(alpha) / 2 * d_nngp + sine / (2 * math.pi) * d_norms
    return relu_covariance(nngp, norms, alpha), tangent


def _sine(alpha: jax.Array) -> jax.Array:
    # Factored, because 1 - alpha^2 cancels near 1 and -1.
    return safe_sqrt((1 - alpha) * (1 + alpha))


def cosine(cov: jax.Array, q1: jax.Array, q2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The root of the product of two variances, and the cosine, 0 where that is 0."""
    # The root of each factor: their product could overflow. Equal variances are their
    # own root, so that the cosine of an input and itself is 1.
    norms = jnp.where(q1 == q2, (q1 + q2) / 2, safe_sqrt(q1) * safe_sqrt(q2))
    zero = norms == 0
    return norms, jnp.where(zero, 0, cov / jnp.where(zero, 1, norms))


def _as_float(name: str, alpha: ArrayLike) -> tuple[jax.Array, jnp.dtype]:
    """`alpha` in at least single precision, and the dtype of the result."""
    array = jnp.asarray(alpha)
    if jnp.iscomplexobj(array):
        raise TypeError(f"{name}: alpha must be real, got dtype {array.dtype}")
    dtype = jnp.result_type(array, float)
    return array.astype(jnp.promote_types(dtype, jnp.float32)), dtype
