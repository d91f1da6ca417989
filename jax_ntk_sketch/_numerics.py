"""Numerics that all parts of the package share."""

import concurrent.futures
import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._typing import Array, Dtype, PyTree

T = TypeVar("T")


def matmul(a: Array, b: Array) -> Array:
    """Return the matrix product in full precision: TF32 and bfloat16 are ruled out."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def safe_sqrt(x: Array) -> Array:
    """Return the square root, with derivative 0 at 0, and 0 for rounding below 0."""
    zero = x <= 0
    # The argument of the root is nearly 0 as well: a compiler may compute x twice,
    # rounded differently, and find it positive in one place only.
    small = jnp.finfo(x.dtype).eps ** 2
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, small, x)))


def safe_reciprocal(x: Array) -> Array:
    """Return 1 / x, and 0 where x <= 0."""
    zero = x <= 0
    return jnp.where(zero, 0, 1 / jnp.where(zero, 1, x))


def normalize_rows(x: Array, norm2: Array) -> Array:
    """Return `x` (..., a) over the square root of `norm2` (...); 0 where that is 0."""
    zero = norm2 <= 0
    scale = jnp.where(zero, 0, jax.lax.rsqrt(jnp.where(zero, 1, norm2)))
    return x * scale[..., None]


def lift(v: Array, x: Array) -> Array:
    """Return v with axes of size 1 in front, so that its rank is that of x.

    Arrays of different ranks raise where a user sets `jax_numpy_rank_promotion`.
    """
    return v.reshape((1,) * (x.ndim - v.ndim) + v.shape)


def is_zero(number: Any) -> bool:
    """Return whether a number is None or 0; an array, which may be traced, is not."""
    return number is None or (not isinstance(number, jax.Array) and number == 0)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum of two arrays and its rounding error: `a + b = s + e`.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch._numerics import two_sum
    >>> s, e = two_sum(jnp.float32(1e8), jnp.float32(1.0))
    >>> float(s), float(e)
    (100000000.0, 1.0)

    Source: Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B.
    """
    s = a + b
    b_part = s - a
    return s, (a - (s - b_part)) + (b - b_part)


def at_least_float32(x: Array) -> Array:
    """Return `x` in float32 where its dtype is narrower: half precision is storage."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def evaluate_eagerly(function: Callable[[], T]) -> T:
    """Return `function()`, computed now even inside a function that is being traced.

    A trace belongs to a thread, so the function runs in another one. (On JAX 0.7.0
    `jax.ensure_compile_time_eval` fails on functions with custom derivatives.)
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def known_size(owner: str, what: str, size: Any, remedy: str) -> int:
    """Return a size, which is a number and not a symbol.

    Raises:
      ValueError: it is a symbol, as while a function is exported for any size.
    """
    if not isinstance(size, int):
        raise ValueError(
            f"{owner}: the number of {what} must be known, got {size}; {remedy}"
        )
    return size


def in_batches(run: Callable[[PyTree], PyTree], x: PyTree, size: int) -> PyTree:
    """Return `run(x)`, computed for consecutive rows of x, `size` at a time.

    Args:
      run: a function of rows, which are independent of each other.
      x: arrays with equally many rows.
      size: at least 1.

    Raises:
      ValueError: the number of rows is a symbol.
    """
    total = known_size(
        "apply with batch_size",
        "examples",
        jax.tree.leaves(x)[0].shape[0],
        "export apply with batch_size=None",
    )
    count = total // size
    if count == 0:
        return run(x)

    def blocks(z: Array) -> Array:
        return z[: count * size].reshape(count, size, *z.shape[1:])

    whole = jax.lax.map(run, jax.tree.map(blocks, x))
    out = jax.tree.map(lambda z: z.reshape(count * size, *z.shape[2:]), whole)
    if count * size == total:
        return out
    rest = run(jax.tree.map(lambda z: z[count * size :], x))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)


def native_dtype(dtype: Dtype) -> np.dtype:
    """Return a dtype in the byte order of the machine that JAX computes with.

    Floats of more than 8 bytes become float64, those of 1 byte float32, and integers of
    fewer bits int8 or uint8.
    """
    dtype = np.dtype(dtype)
    if dtype.kind == "f" and dtype.itemsize > 8:
        return np.dtype(np.float64)
    if dtype.kind in "biufc":
        return dtype.newbyteorder("=")
    if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 2:
        return np.dtype(np.float32)
    if jnp.issubdtype(dtype, jnp.signedinteger) and dtype.kind == "V":
        return np.dtype(np.int8)
    if jnp.issubdtype(dtype, jnp.unsignedinteger) and dtype.kind == "V":
        return np.dtype(np.uint8)
    return dtype


def working_dtype(dtype: Dtype) -> np.dtype:
    """Return the dtype to compute in: at least float32; the default for integers."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.dtype(jnp.result_type(float))
    # Without x64, JAX turns float64 into float32.
    dtype = jax.dtypes.canonicalize_dtype(native_dtype(dtype))
    return jnp.promote_types(dtype, jnp.float32)


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n` >= 1.

    >>> from jax_ntk_sketch._numerics import next_power_of_two
    >>> [next_power_of_two(n) for n in (1, 2, 3, 64, 65)]
    [1, 2, 4, 64, 128]
    """
    return 1 << (n - 1).bit_length()


def last_power_of_two(n: int) -> int:
    """Return the largest power of two that is at most `n`, or 1.

    >>> from jax_ntk_sketch._numerics import last_power_of_two
    >>> [last_power_of_two(n) for n in (-3, 1, 3, 64, 65)]
    [1, 1, 2, 64, 64]
    """
    return 1 << max(n, 1).bit_length() - 1


@functools.cache
def seconds_per_flop() -> float:
    """Return the seconds of one operation of a large float32 product on the host."""
    a = np.ones((1024, 1024), np.float32)
    a @ a
    start = time.perf_counter()
    a @ a
    return (time.perf_counter() - start) / (2 * 1024**3)
