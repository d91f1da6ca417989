"""Standardization of each column by its mean and deviation over a training set."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from jax_ntk_sketch._arrays import to_jax
from jax_ntk_sketch._checks import check_examples
from jax_ntk_sketch._numerics import working_dtype
from jax_ntk_sketch._typing import Array, ArrayLike, Examples
from jax_ntk_sketch.batches.reader import Nonfinite
from jax_ntk_sketch.preprocessing.covariance import read_moments


@partial(jax.tree_util.register_dataclass, data_fields=("mean", "std"), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class ColumnStandardization:
    """The statistics of c columns.

    Attributes:
      mean: (c,), float32 or float64.
      std: (c,), the standard deviations, of the same dtype.
    """

    mean: Array
    std: Array


def standardize_columns_fit(
    x: Examples, *, batch_size: int | None = None, nonfinite: Nonfinite = "raise"
) -> ColumnStandardization:
    """Return the mean and the standard deviation of each column.

    The columns of a table (n, d) are its d features. The columns of images are their
    channels; their statistics are over examples and pixels. Fully connected kernels
    usually need this step. For convolutional kernels on images see `zca_fit`.

    Args:
      x: training examples (n, *spatial, c), channels last, n >= 2, real. Integers are
        not rescaled.
      batch_size: the number of examples in a float64 copy, >= 1. By default 1024, or
        fewer if they take more than 64 MiB.
      nonfinite: "raise" to raise an error that names examples with NaN or infinity;
        "skip" to leave them out, with a warning.

    Returns:
      `ColumnStandardization` in the dtype of x. It is float32 if x is coarser, and the
      default float if x holds integers.

    Raises:
      TypeError: x is complex or traced, or `batch_size` is not an integer.
      ValueError: x has another shape or fewer than two examples, `batch_size` is
        smaller than 1, or an example has NaN or infinite entries. The message names
        the example.

    Cost: one pass on the host in float64. x may be a memory map.

    >>> import numpy as np
    >>> from jax_ntk_sketch import preprocessing
    >>> x = np.array([[0.0, 5.0], [2.0, 5.0]])
    >>> params = preprocessing.standardize_columns_fit(x)
    >>> preprocessing.standardize_columns_apply(params, np.array([[3.0, 6.0]]))
    Array([[2., 1.]], dtype=float32)
    """
    owner = "standardize_columns_fit"
    examples = check_examples(owner, x)
    moments = read_moments(
        owner, examples, columns=True, batch_size=batch_size, nonfinite=nonfinite
    )
    dtype = working_dtype(examples.dtype)
    mean, std = moments.mean, moments.covariance**0.5
    return ColumnStandardization(jnp.asarray(mean, dtype), jnp.asarray(std, dtype))


def standardize_columns_apply(params: ColumnStandardization, x: ArrayLike) -> Array:
    """Return `(x - mean) / std` in each column.

    A column that was constant in training is only centered.

    Args:
      params: `ColumnStandardization` of c columns.
      x: (n, *spatial, c), real. Integers are not rescaled.

    Returns:
      An array of the shape of x. Its dtype is that of x, or that of `params` if x holds
      integers.

    Raises:
      TypeError: x is complex.
      ValueError: x has another number of columns.
    """
    owner = "standardize_columns_apply"
    x = to_jax(owner, "x", check_examples(owner, x))
    c = len(params.mean)
    if x.shape[-1] != c:
        raise ValueError(
            f"{owner}: x must have shape (n, ..., {c}), because {c} columns were "
            f"fitted, got {x.shape}; put the channels of images last"
        )
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else params.mean.dtype
    scale = jnp.where(params.std == 0, 1.0, params.std)
    return ((x - params.mean) / scale).astype(dtype)
