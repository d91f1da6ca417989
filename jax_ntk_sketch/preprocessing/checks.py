"""Checks of examples, before they reach the host's sums or a device."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

__all__ = ["check_examples", "fitted_dtype", "host_batches", "working_dtype"]

# Size in float64 of the batches that are taken where the caller names none.
_BATCH_BYTES = 2**26


def check_examples(owner: str, x: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Checks that `x` is a real array (n, *shape); any trailing shape where None.

    Returns:
      `x`, a NumPy array where it was no array.

    Raises:
      TypeError: `x` is not real.
      ValueError: `x` has another shape, named.
    """
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        x = np.asarray(x)
    if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == jnp.bool_) or (
        jnp.issubdtype(x.dtype, jnp.complexfloating)
    ):
        raise TypeError(f"{owner}: x must hold real numbers, got dtype {x.dtype}")
    if shape is not None and x.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        hint = "; give one example as x[None]" if x.shape == shape else ""
        raise ValueError(
            f"{owner}: x must have shape (n, {wanted}), examples of the shape that "
            f"was fitted, got {x.shape}{hint}"
        )
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(
            f"{owner}: x must have shape (n, ...), a batch of examples with entries, "
            f"got {x.shape}; give one example as x[None], n numbers as x[:, None]"
        )
    return x


def host_batches(
    owner: str, x: Any, batch_size: int | None
) -> Iterator[NDArray[np.float64]]:
    """Yields consecutive examples of `x` in float64, on the host, all finite.

    Args:
      owner: the function to name in errors.
      x: (n, *shape), checked by `check_examples`.
      batch_size: examples per batch >= 1; None for batches of about 64 MB.

    Raises:
      TypeError, ValueError: a traced x; a bad `batch_size`; an example that has NaN
        or infinite entries, named.
    """
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"{owner} runs on the host and cannot be traced by jit or vmap")
    if batch_size is None:
        batch_size = max(1, _BATCH_BYTES // (8 * int(np.prod(x.shape[1:]))))
    elif isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise TypeError(f"{owner}: batch_size must be an integer, got {batch_size!r}")
    elif batch_size < 1:
        raise ValueError(f"{owner}: batch_size must be positive, got {batch_size}")
    for start in range(0, len(x), batch_size):
        batch = np.asarray(x[start : start + batch_size]).astype(np.float64)
        bad = ~np.isfinite(batch).reshape(len(batch), -1).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{owner}: example {start + int(bad.argmax())} of x has NaN or "
                "infinite entries; remove the example or fill them first "
                "(numpy.nan_to_num)"
            )
        yield batch


def fitted_dtype(owner: str, dtype: Any) -> Any:
    """The dtype of what is fitted: `dtype`, or JAX's default float where None."""
    dtype = jnp.zeros((), dtype).dtype
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"{owner}: dtype must be float32 or float64, got {dtype}")
    return dtype


def working_dtype(x: Any) -> Any:
    """The dtype to compute in: that of a floating x, at least float32."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.result_type(float)
    # What JAX makes of the dtype: of float64, float32 unless x64 is on.
    dtype = jnp.asarray(np.empty(0, x.dtype)).dtype
    return jnp.promote_types(dtype, jnp.float32)
