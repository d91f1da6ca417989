"""Standardisation of channels by their mean and deviation over a training set."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jax_ntk_sketch.preprocessing.checks import (
    check_examples,
    fitted_dtype,
    working_dtype,
)
from jax_ntk_sketch.preprocessing.covariance import CovarianceState, covariance_of

__all__ = [
    "ColumnStandardization",
    "standardize_columns_apply",
    "standardize_columns_fit",
    "standardize_columns_from_covariance",
]


@partial(jax.tree_util.register_dataclass, data_fields=("mean", "std"), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class ColumnStandardization:
    """The mean and standard deviation of every channel; (c,) each, one dtype."""

    mean: Array
    std: Array


def standardize_columns_fit(
    x: ArrayLike, *, batch_size: int | None = None
) -> ColumnStandardization:
    """Mean and standard deviation of each channel over examples and pixels.

    For tables (n, d) a channel is a column, and this is the usual standardisation of
    fully connected kernels. For convolutional kernels on images see
    `jax_ntk_sketch.preprocessing.zca`.

    Args:
      x: training examples (n, *spatial, c), channels last, n >= 2; real, integers as
        they are. Never test examples.
      batch_size: examples per float64 copy; None for copies of about 64 MB.

    Returns:
      `ColumnStandardization` in the dtype of x (float32 for coarser ones, the default float
      for integers).

    Raises:
      TypeError, ValueError: a traced or complex x, too few examples, NaN or infinite
        entries (the example is named).

    Cost: one pass on the host in float64. For data that do not fit in memory, feed
    `covariance_update` with x.reshape(-1, c) and finish by `standardize_columns_from_covariance`.

    >>> params = standardize_columns_fit(np.array([[0.0, 5.0], [2.0, 5.0]]))
    >>> standardize_columns_apply(params, np.array([[3.0, 6.0]]))
    Array([[2., 1.]], dtype=float32)
    """
    examples = check_examples("standardize_columns_fit", x)
    state = covariance_of(
        "standardize_columns_fit", examples, batch_size, channels=True
    )
    return standardize_columns_from_covariance(state, dtype=working_dtype(examples))


def standardize_columns_from_covariance(
    state: CovarianceState, *, dtype: Any = None
) -> ColumnStandardization:
    """Standardisation of channels from a streamed covariance.

    Args:
      state: of rows of c channels, from `covariance_init(c, diagonal=True)`, or with
        all covariances; two rows or more.
      dtype: float32 or float64; default JAX's default float.

    Raises:
      TypeError, ValueError: another state or dtype.
    """
    if state.mean.ndim != 1:
        raise ValueError(
            "standardize_columns_from_covariance: the state must be of rows of channels, mean (c,),"
            f" got mean {state.mean.shape}; update it with x.reshape(-1, c)"
        )
    if state.count < 2:
        raise ValueError(
            "standardize_columns_from_covariance: the state must have seen 2 rows or more, got "
            f"{int(state.count)}; covariance_update it first"
        )
    dtype = fitted_dtype("standardize_columns_from_covariance", dtype)
    variance = state.covariance
    if variance.ndim == 2:
        variance = variance.diagonal()
    return ColumnStandardization(
        jnp.asarray(state.mean, dtype), jnp.asarray(variance**0.5, dtype)
    )


def standardize_columns_apply(params: ColumnStandardization, x: ArrayLike) -> Array:
    """`(x - mean) / std` in every channel; one that was constant is only centred.

    Args:
      params: `ColumnStandardization` of c channels.
      x: (n, *spatial, c), real; integers as they are.

    Returns:
      The shape of x; its dtype, or that of `params` for integers.

    Raises:
      TypeError, ValueError: at trace time; complex x, another number of channels.
    """
    x = jnp.asarray(check_examples("standardize_columns_apply", x))
    if x.shape[-1] != len(params.mean):
        raise ValueError(
            f"standardize_columns_apply: {len(params.mean)} channels were fitted, so x must have "
            f"shape (n, ..., {len(params.mean)}), channels last, got {x.shape}"
        )
    out = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else params.mean.dtype
    scale = jnp.where(params.std == 0, 1.0, params.std)
    return ((x - params.mean) / scale).astype(out)
