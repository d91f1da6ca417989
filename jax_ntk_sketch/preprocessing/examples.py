"""Standardisation of each example by itself: nothing to fit."""

import math
import operator
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jax_ntk_sketch.preprocessing.checks import check_examples, working_dtype

__all__ = ["standardize_examples"]


def standardize_examples(
    x: ArrayLike, *, axis: int | Sequence[int] | None = None, eps: float = 0.0
) -> Array:
    r"""Gives every example mean 0 and standard deviation 1.

    .. math:: x_i \mapsto (x_i - m_i) / \sqrt{v_i + \mathrm{eps}},

    with the mean :math:`m_i` and variance :math:`v_i` of the entries of example i. It
    takes brightness and contrast out of images, which otherwise dominate a kernel,
    and makes the input norm the same for all: sqrt(d). No other example is looked at,
    so training and test images are treated alike without a fit.

    Args:
      x: (n, *shape), real; integers (uint8 images) are converted to the default float
        as they are, which changes nothing here unless eps > 0.
      axis: axes of x whose entries share a mean and a variance, without the first;
        None for all. Axis (1, 2) of images (n, height, width, channels) standardises
        each channel of each image.
      eps: >= 0, in squared units of x; keeps what is nearly constant from being
        blown up. 10 was used for pixels 0..255 (Coates, Lee, Ng).

    Returns:
      The shape of x; its dtype, or the default float for integers. A constant example
      becomes zeros, with finite gradients. NaN and infinity spread over their example.

    Raises:
      TypeError, ValueError: at trace time; a bad x, axis or eps.

    Source: Coates, Lee, Ng, "An analysis of single-layer networks in unsupervised
    feature learning" (AISTATS 2011), section 3.1.1.

    >>> standardize_examples(jnp.array([[1.0, 3.0], [5.0, 5.0]]))
    Array([[-1.,  1.],
           [ 0.,  0.]], dtype=float32)
    """
    x = jnp.asarray(check_examples("standardize_examples", x))
    if isinstance(eps, bool | str) or not (math.isfinite(eps) and eps >= 0):
        raise ValueError(
            f"standardize_examples: eps must be finite and >= 0, got {eps!r}"
        )
    axes = _axes(axis, x.ndim)
    dtype = working_dtype(x)
    out = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else dtype
    x = x.astype(dtype)
    # Relative to the first entry, so that a constant example is 0 exactly.
    first = tuple(slice(0, 1) if i in axes else slice(None) for i in range(x.ndim))
    x = x - lax.stop_gradient(x[first])
    x = x - jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=axes, keepdims=True) + eps
    # sqrt has no gradient at 0; and 0 / 1 is the 0 that we want.
    x = x / jnp.sqrt(jnp.where(variance == 0, 1.0, variance))
    return x.astype(out)


def _axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """The axes as positive numbers, checked."""
    if axis is None:
        return tuple(range(1, ndim))
    try:
        given = tuple(
            map(operator.index, axis if isinstance(axis, Sequence) else (axis,))
        )
    except TypeError:
        raise TypeError(
            f"standardize_examples: axis must be None, an integer or several, got {axis!r}"
        ) from None
    axes = tuple(i + ndim if i < 0 else i for i in given)
    if not axes or len(set(axes)) < len(axes) or not all(0 < i < ndim for i in axes):
        raise ValueError(
            f"standardize_examples: axis must name different axes from 1 to {ndim - 1} (axis 0 "
            f"counts the examples, which are standardised one by one), got {axis!r}"
        )
    return axes
