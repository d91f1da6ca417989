"""The Walsh-Hadamard transform, written for matrix units and CPUs alike."""

import jax.numpy as jnp
import numpy as np
import scipy

from jax_ntk_sketch._numerics import matmul, next_power_of_two
from jax_ntk_sketch._typing import Array

# The last factor is one matrix product. The others are butterflies of radix 8 (or
# less), each of which a compiler fuses into one pass over the data: 4 to 5 times faster
# than radix 2 on a CPU core.
_RADIX = 8


def hadamard_transform(x: Array) -> Array:
    r"""Return the orthonormal Walsh-Hadamard transform of each row.

    :math:`H_D x / \sqrt{D}`, with rows in the natural (Sylvester) order.

    Args:
      x: `(..., D)` with `D` a power of two, floating point.

    Returns:
      `(..., D)`, dtype of `x`. A second transform gives `x` back.

    Raises:
      ValueError: `D` is not a power of two.

    Cost: at most `64 D` multiply-adds and `D log2(D/32)` additions a row, in two or
    three passes over memory.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch.sketch import hadamard_transform
    >>> hadamard_transform(jnp.array([1.0, 0.0])).round(4).tolist()
    [0.7070999..., 0.7070999...]
    """
    size = x.shape[-1]
    if size != next_power_of_two(size):
        raise ValueError(
            f"hadamard_transform: the last axis of x must be a power of two, got {size}"
        )
    base = _matrix_size(size)
    # The scale of the whole transform is put into the first factor.
    matrix = jnp.asarray(scipy.linalg.hadamard(base) / np.sqrt(size), x.dtype)
    y = matmul(x.reshape(*x.shape[:-1], size // base, base), matrix)
    stride = base
    while stride < size:
        radix = min(_RADIX, size // stride)
        groups = size // (radix * stride)
        y = _butterfly(y.reshape(*x.shape[:-1], groups, radix, stride))
        stride *= radix
    return y.reshape(x.shape)


def hadamard_flops(size: int) -> int:
    """Return the floating-point operations of `hadamard_transform` on one vector."""
    base = _matrix_size(size)
    return size * (2 * base + (size // base).bit_length() - 1)


def pad_to(x: Array, size: int) -> Array:
    """Pad the last axis of `x` with zeros to `size` entries."""
    if x.shape[-1] == size:
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])


def _matrix_size(size: int) -> int:
    """Return the size of the matrix factor: 64 if radix 8 divides the rest, or 32."""
    bits = size.bit_length() - 1
    return min(size, 64 if bits % 3 == 0 else 32)


def _butterfly(y: Array) -> Array:
    """Multiply the second last axis by the unnormalized Hadamard matrix."""
    parts = [y[..., i, :] for i in range(y.shape[-2])]
    half = 1
    while half < len(parts):
        parts = [
            parts[i] + parts[i + half] if not i & half else parts[i - half] - parts[i]
            for i in range(len(parts))
        ]
        half *= 2
    return jnp.stack(parts, axis=-2)
