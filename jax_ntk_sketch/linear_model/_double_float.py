r"""Gram matrices with more digits than their dtype has, without double precision.

Ridge weights lose as many digits as the condition number of the Gram matrix has. A
float32 Gram matrix, with 7 digits, is therefore too coarse where `reg` matters. A pair
of float32 matrices `total + carry` holds 14 digits, if products can fill them. Split a
block of rows as `A = H + L`, with so few bits in `H` that float32 sums of its products
are exact. Then

.. math:: A^\top A = H^\top H + C + C^\top, \qquad C = (H + L/2)^\top L,

where the first product is exact and the second one is small. Two float32 matrix
products replace one, on any device. The relative error in spectral norm is 1e-12 to
4e-10; columns with heavy tails have the largest one.

Source: the splitting is that of Ozaki, Ogita, Oishi, Rump, "Error-free transformations
of matrix multiplication by using fast routines of matrix multiplication", Numer.
Algorithms 59 (2012), with two slices for the symmetric case. The sums use Knuth's
two-sum.
"""

import math

import jax
import jax.numpy as jnp

from jax_ntk_sketch._numerics import matmul, two_sum
from jax_ntk_sketch._typing import Array

# The rows per exact product. Fewer rows leave more bits for H: 8 bits with 256 rows, a
# third of the error with 64. More rows need fewer passes over the sums: 1024 rows take
# a tenth less time.
_BLOCK = 256


def add_gram(total: Array, carry: Array, rows: Array) -> tuple[Array, Array]:
    """Return `total + carry + rows.T @ rows`, again as a sum of two matrices.

    Args:
      total: (k, k), the sum so far as rounded to its dtype.
      carry: (k, k), the digits that `total` cannot hold.
      rows: (n, k) of the same dtype, any n.

    Returns:
      The new `total` and `carry`.

    Cost: 4 n k^2 flops (2 n k^2 in float64) and 4 k^2 numbers of working memory.
    """
    n, k = rows.shape
    block = max(1, min(_BLOCK, n))
    blocks = -(-n // block)
    # Rows of zeros add nothing.
    rows = jnp.pad(rows, ((0, blocks * block - n), (0, 0)))

    def add(sums: tuple[Array, Array], a: Array) -> tuple[tuple[Array, Array], None]:
        product, rest = _gram(a)
        s, e = two_sum(sums[0], product)
        return two_sum(s, e + (sums[1] + rest)), None

    sums, _ = jax.lax.scan(add, (total, carry), rows.reshape(blocks, block, k))
    return sums


def _gram(a: Array) -> tuple[Array, Array | float]:
    """Return `a.T @ a` as the sum of a large exact part and a small one."""
    if a.dtype != jnp.float32:
        return matmul(a.T, a), 0.0
    # Integers up to 2^bits have products up to 2^(2 bits). A float32 sum of as many
    # products as `a` has rows is exact if it fits into 24 bits.
    bits = (24 - math.ceil(math.log2(a.shape[0]))) // 2
    # The power of two below the largest entry of each column: its exponent bits.
    largest = jax.lax.bitcast_convert_type(jnp.max(jnp.abs(a), axis=0), jnp.int32)
    power = jax.lax.bitcast_convert_type(largest & 0x7F800000, jnp.float32)
    step = jnp.maximum(power, 2.0**-100) * 2.0 ** (1 - bits)
    high = jnp.round(a / step) * step
    low = a - high
    # `matmul` rules out TF32, which would round `low` to 11 bits.
    cross = matmul((0.5 * (a + high)).T, low)
    return matmul(high.T, high), cross + cross.T
