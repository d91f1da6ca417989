r"""The arc-cosine kernels: dual kernels of the rectifier and of its derivative.

For unit vectors `u`, `v` with cosine `alpha` and `w ~ N(0, I)`

    kappa0(alpha) = (pi - arccos(alpha)) / pi             = 2 E 1[w.u > 0] 1[w.v > 0]
    kappa1(alpha) = (sqrt(1 - alpha^2) + alpha (pi - arccos(alpha))) / pi
                                                          = 2 E relu(w.u) relu(w.v)

Source: Cho and Saul, Kernel methods for deep learning (2009), equations 3 to 6.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._numerics import safe_sqrt
from jax_ntk_sketch._typing import Array, ArrayLike

# sin(t) - t cos(t) = t^3 sum_k c_k t^(2k), to 1e-18 relative for 0 <= t <= 1.
_SINE_SERIES = [(-1) ** k * (2 * k + 2) / math.factorial(2 * k + 3) for k in range(10)]


def kappa0(alpha: ArrayLike) -> Array:
    r"""Return the arc-cosine kernel of order 0, `(pi - arccos(alpha)) / pi`.

    It rises from 0 at -1 to 1 at 1. It is evaluated as
    `arctan2(sqrt((1 - alpha)(1 + alpha)), -alpha) / pi`, which keeps full relative
    accuracy up to both ends.

    Args:
      alpha: Cosines, any shape. Values outside [-1, 1] (rounding) are clipped. Integers
        and booleans are converted to the default float.

    Returns:
      Array of the shape and dtype of `alpha`. The derivative
      `1 / (pi sqrt(1 - alpha^2))` is infinite at -1 and 1; **0 is returned there**,
      so that gradients at coinciding points stay finite.

    Raises:
      TypeError: `alpha` is complex.

    >>> from jax_ntk_sketch.kernels import kappa0
    >>> kappa0([-1.0, 0.0, 1.0])
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    alpha, dtype = _as_float("kappa0", alpha)
    return _kappa0(alpha).astype(dtype)


def kappa1(alpha: ArrayLike) -> Array:
    r"""Return the arc-cosine kernel of order 1.

    It is `(sqrt(1 - alpha^2) + alpha (pi - arccos(alpha))) / pi`, which rises from 0 at
    -1 to 1 at 1. It has full relative accuracy up to both ends. Its derivative is
    `kappa0(alpha)`, and is computed as such.

    Args:
      alpha: Cosines, any shape. Values outside [-1, 1] (rounding) are clipped. Integers
        and booleans are converted to the default float.

    Returns:
      Array of the shape and dtype of `alpha`.

    Raises:
      TypeError: `alpha` is complex.

    >>> import jax
    >>> from jax_ntk_sketch.kernels import kappa1
    >>> kappa1([-1.0, 1.0])
    Array([0., 1.], dtype=float32)
    >>> float(jax.grad(kappa1)(1.0))
    1.0
    """
    alpha, dtype = _as_float("kappa1", alpha)
    return _kappa1(alpha).astype(dtype)


def numpy_kappas(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `kappa0` and `kappa1` of cosines in [-1, 1], in NumPy and float64."""
    sine = np.sqrt((1 - alpha) * (1 + alpha))
    angle = np.arctan2(sine, -alpha)  # pi - arccos(alpha)
    return angle / np.pi, (sine + alpha * angle) / np.pi


def cosine(cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
    """Return `sqrt(q1 q2)` of two variances, and the cosine (0 where that is 0)."""
    # Each factor has its own square root, since the product could overflow. Equal
    # variances are their own root, so that the cosine of an input and itself is 1.
    norms = jnp.where(q1 == q2, (q1 + q2) / 2, safe_sqrt(q1) * safe_sqrt(q2))
    zero = norms == 0
    return norms, jnp.where(zero, 0, cov / jnp.where(zero, 1, norms))


@jax.custom_jvp
def relu_covariance(cov: Array, norms: Array, alpha: Array) -> Array:
    """Return `norms kappa1(alpha) / 2`, where `norms` and `alpha` are of `cosine`."""
    return norms * kappa1(alpha) / 2


@relu_covariance.defjvp
def _relu_covariance_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    # With alpha = cov / norms the derivatives are kappa0 / 2 and sine / (2 pi); alpha's
    # own tangent is contained in them. Unlike the chain rule they exist at norms = 0,
    # where the first keeps the slope of the rectifier's linear part.
    cov, norms, alpha = primals
    d_cov, d_norms, _ = tangents
    sine = _sine(jnp.clip(alpha, -1, 1))
    tangent = kappa0(alpha) / 2 * d_cov + sine / (2 * math.pi) * d_norms
    return relu_covariance(cov, norms, alpha), tangent


@jax.custom_jvp
def _kappa0(alpha: Array) -> Array:
    alpha = jnp.clip(alpha, -1, 1)
    return jnp.arctan2(_sine(alpha), -alpha) / math.pi


@_kappa0.defjvp
def _kappa0_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (alpha,), (tangent,) = primals, tangents
    sine = _sine(jnp.clip(alpha, -1, 1))
    end = sine == 0
    slope = jnp.where(end, 0, 1 / (math.pi * jnp.where(end, 1, sine)))
    return _kappa0(alpha), slope * tangent


@jax.custom_jvp
def _kappa1(alpha: Array) -> Array:
    alpha = jnp.clip(alpha, -1, 1)
    sine = _sine(alpha)
    angle = jnp.arctan2(sine, -alpha)  # pi - arccos(alpha)
    # sin(angle) - angle cos(angle) cancels for small angles, that is, near -1.
    square, series = angle * angle, jnp.zeros_like(angle)
    for coefficient in reversed(_SINE_SERIES):
        series = series * square + coefficient
    small = angle < 1
    value = jnp.where(small, angle * square * series, sine + alpha * angle)
    return value / math.pi


@_kappa1.defjvp
def _kappa1_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (alpha,), (tangent,) = primals, tangents
    return _kappa1(alpha), _kappa0(alpha) * tangent


def _sine(alpha: Array) -> Array:
    # Factored, because 1 - alpha^2 cancels near 1 and -1.
    return safe_sqrt((1 - alpha) * (1 + alpha))


def _as_float(owner: str, alpha: ArrayLike) -> tuple[Array, jnp.dtype]:
    """Return `alpha` in at least single precision, and the dtype of the result."""
    array = jnp.asarray(alpha)
    if jnp.iscomplexobj(array):
        raise TypeError(f"{owner}: alpha must be real, got dtype {array.dtype}")
    dtype = jnp.result_type(array, float)
    return array.astype(jnp.promote_types(dtype, jnp.float32)), dtype
