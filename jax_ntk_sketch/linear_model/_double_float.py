r"""Gram matrices to more digits than the dtype holds, without double precision.

Ridge weights lose as many digits as the condition number of the Gram matrix has, so
a float32 Gram matrix (7 digits) is too coarse where reg matters. A pair of float32
matrices `total + carry` holds 14 digits; what is needed then is products that fill
them. Split a block of rows as `A = H + L` with few enough bits in `H` that float32
sums of its products are exact. Then

.. math:: A^\top A = H^\top H + C + C^\top, \qquad C = (H + L/2)^\top L,

where the first product is exact and the second is small. That makes two float32
matrix products in place of one, on any device, and a relative error of 1e-12 to
4e-10 in spectral norm (the most where columns have heavy tails).

Source: the splitting is that of Ozaki, Ogita, Oishi, Rump, "Error-free
transformations of matrix multiplication by using fast routines of matrix
multiplication", Numer. Algorithms 59 (2012), cut to two slices for the symmetric
case; sums by Knuth's two-sum.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from jax_ntk_sketch._numerics import two_sum

# Rows per exact product. Fewer leave more bits for H (8 with 256 rows, and a third
# of the error with 64), more need fewer passes over the sums (a tenth faster at 1024).
_BLOCK = 256

# Full precision in every product: TF32 would round L to 11 bits.
_PRECISION = jax.lax.Precision.HIGHEST


def add_gram(total: Array, carry: Array, rows: Array) -> tuple[Array, Array]:
    """Adds `rows.T @ rows` to the matrix held as the sum `total + carry`.

    Args:
      total, carry: (k, k), one dtype; `carry` is what `total` has no digits for.
      rows: (n, k), the same dtype, any n.

    Returns:
      The new `total` and `carry`, (k, k) each.

    Cost: 4 n k^2 flops (2 n k^2 in float64), 4 k^2 numbers of working memory.
    """
    n, k = rows.shape
    block = max(1, min(_BLOCK, n))
    blocks = -(-n // block)
    # Zero rows add nothing.
    rows = jnp.pad(rows, ((0, blocks * block - n), (0, 0)))

    def add(sums: tuple[Array, Array], a: Array) -> tuple[tuple[Array, Array], None]:
        product, rest = _gram(a)
        s, e = two_sum(sums[0], product)
        return two_sum(s, e + (sums[1] + rest)), None

    sums, _ = jax.lax.scan(add, (total, carry), rows.reshape(blocks, block, k))
    return sums


def _gram(a: Array) -> tuple[Array, Array | float]:
    """`a.T @ a` as the sum of a large part and a small one."""
    if a.dtype != jnp.float32:
        return jnp.matmul(a.T, a, precision=_PRECISION), 0.0
    # Integers up to 2^bits have products up to 2^(2 bits), of which float32 sums as
    # many as a has rows without rounding if that stays within its 24 bits.
    bits = (24 - math.ceil(math.log2(a.shape[0]))) // 2
    # The power of two under each column's largest entry: the bits of its exponent.
    largest = jax.lax.bitcast_convert_type(jnp.max(jnp.abs(a), axis=0), jnp.int32)
    power = jax.lax.bitcast_convert_type(largest & 0x7F800000, jnp.float32)
    step = jnp.maximum(power, 2.0**-100) * 2.0 ** (1 - bits)
    high = jnp.round(a / step) * step
    low = a - high
    cross = jnp.matmul((0.5 * (a + high)).T, low, precision=_PRECISION)
    return jnp.matmul(high.T, high, precision=_PRECISION), cross + cross.T
