"""Standardization of each example by itself, without a fit."""

import operator
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jax_ntk_sketch._arrays import to_jax
from jax_ntk_sketch._checks import check_examples, check_number
from jax_ntk_sketch._numerics import working_dtype
from jax_ntk_sketch._typing import Array, ArrayLike


def standardize_examples(
    x: ArrayLike, *, axis: int | Sequence[int] | None = None, eps: float = 0.0
) -> Array:
    r"""Return every example with mean 0 and standard deviation 1.

    .. math:: x_i \mapsto (x_i - m_i) / \sqrt{v_i + \mathrm{eps}}

    Here :math:`m_i` and :math:`v_i` are the mean and the variance of the entries of
    example i. This removes brightness and contrast from images, which otherwise
    dominate a kernel. It gives all examples the same norm, sqrt(d). Training and test
    images are treated alike, because no example depends on another one.

    Args:
      x: (n, *shape), real. Integers such as uint8 images become the default float
        without rescaling; the result depends on their scale only if eps > 0.
      axis: the axes of x whose entries share a mean and a variance, without axis 0; by
        default all of them. For example, axis (1, 2) of images (n, height, width,
        channels) standardizes each channel of each image.
      eps: a number >= 0, in squared units of x. It keeps nearly constant examples from
        being amplified. Coates, Lee and Ng use 10 for pixels from 0 to 255.

    Returns:
      An array of the shape of x. Its dtype is that of x, or the default float if x
      holds integers. A constant example becomes zeros, with finite gradients. NaN and
      infinity spread over their own example only.

    Raises:
      TypeError: x is complex, eps is not a number, or an axis is not an integer.
      ValueError: x is not a batch of examples, eps is negative or not finite, or an
        axis is 0, out of range or repeated.

    Source: Coates, Lee, Ng, "An analysis of single-layer networks in unsupervised
    feature learning" (AISTATS 2011), section 3.1.1.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch import preprocessing
    >>> preprocessing.standardize_examples(jnp.array([[1.0, 3.0], [5.0, 5.0]]))
    Array([[-1.,  1.],
           [ 0.,  0.]], dtype=float32)
    """
    owner = "standardize_examples"
    x = to_jax(owner, "x", check_examples(owner, x))
    eps = check_number(owner, "eps", eps, least=0)
    axes = _check_axes(owner, axis, x.ndim)
    dtype = working_dtype(x.dtype)
    out_dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else dtype
    x = x.astype(dtype)
    # Relative to its first entry, a constant example is exactly 0.
    first = tuple(slice(0, 1) if i in axes else slice(None) for i in range(x.ndim))
    x = x - lax.stop_gradient(x[first])
    x = x - jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=axes, keepdims=True) + eps
    # The square root has no gradient at 0, and 0 / 1 is the desired 0.
    x = x / jnp.sqrt(jnp.where(variance == 0, 1.0, variance))
    return x.astype(out_dtype)


def _check_axes(
    owner: str, axis: int | Sequence[int] | None, ndim: int
) -> tuple[int, ...]:
    """Return the axes as positive numbers."""
    if axis is None:
        return tuple(range(1, ndim))
    try:
        axes = tuple(
            map(operator.index, axis if isinstance(axis, Sequence) else (axis,))
        )
    except TypeError:
        raise TypeError(
            f"{owner}: axis must be None, an integer or a sequence of integers, got "
            f"{axis!r}"
        ) from None
    axes = tuple(i + ndim if i < 0 else i for i in axes)
    if not axes or len(set(axes)) < len(axes) or not all(0 < i < ndim for i in axes):
        raise ValueError(
            f"{owner}: axis must name different axes from 1 to {ndim - 1}, got "
            f"{axis!r}; axis 0 counts the examples, which are standardized one by one"
        )
    return axes
