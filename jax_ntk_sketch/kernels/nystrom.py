r"""Landmarks: a few examples whose kernel columns span most of the kernel.

With the kernel's columns at the landmarks, `K_xz`, and among them, `K_zz`,

    phi(x) = K_xz R,   R R^T = K_zz^(-1),   phi phi^T = K_xz K_zz^(-1) K_zx

is the Nystrom approximation: the orthogonal projection, in the kernel's space, on the
landmarks. It is exact at them, and never larger than the kernel in the order of
positive semidefinite matrices; nor is the projection on a part of that space, such as
the principal directions of the features of a sample.

Source: Williams and Seeger, Using the Nystrom method to speed up kernel machines
(2000); Chen, Epperly, Tropp and Webber, Randomly pivoted Cholesky, arXiv 2207.06503,
Algorithms 4.1 and 4.2 (in blocks).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_size

__all__ = ["choose_uniform", "inverse_sqrt", "principal_sqrt", "rpcholesky"]

# Landmarks that are drawn at a time: at most so many, and at most an eighth. Those of
# one block are chosen without knowledge of each other, but matrix products are fast;
# on MNIST, 1024 landmarks in blocks of 16, 64 and 128 are equally good.
_BLOCK = 128


def rpcholesky(
    key: jax.Array,
    column: Callable[[jax.Array], jax.Array],
    diagonal: jax.Array,
    num: int,
    *,
    block: int | None = None,
) -> jax.Array:
    r"""Indices of landmarks by randomly pivoted Cholesky.

    Each is drawn with a probability in proportion to what the landmarks before it leave
    of the kernel's diagonal, `d_i = K_ii - (K_xz K_zz^(-1) K_zx)_ii`, in blocks whose
    members are drawn together, without replacement.

    Args:
      key: a PRNG key.
      column: indices (b,) of examples to their columns of the kernel, (n, b).
      diagonal: the kernel of each example with itself, (n,), >= 0.
      num: landmarks, 1 <= num <= n.
      block: landmarks that are drawn at a time, >= 1; by default an eighth of `num`,
        at most 128.

    Returns:
      Indices (num,), int32, all different. Where the kernel is spanned by fewer (equal
      examples, zero vectors), the others are uniform among those left.

    Raises:
      ValueError: `num` is not in the range.

    Cost: O(n num^2) operations, in matrix products, and n `num` numbers of memory.

    Guarantee: the expected trace of `K - K_hat` is at most `(1 + e)` times the best
    of rank r, for num about `r/e + r log(1/(e eta))`, where eta is the best's share of
    the trace (Theorem 5.1, blocks of one).

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> column = lambda index: x @ x[index].T
    >>> chosen = rpcholesky(jax.random.key(0), column, jnp.sum(x**2, 1), 2, block=1)
    >>> sorted(float(norm) for norm in x[chosen].sum(0))
    [1.0, 1.0]
    """
    n = diagonal.shape[0]
    num = _check(num, n)
    if block is None:
        block = min(_BLOCK, -(-num // 8))
    block = min(check_size("rpcholesky", "block", block, 1), num)
    floor = 10 * jnp.finfo(diagonal.dtype).eps * diagonal
    blocks = -(-num // block)  # what is drawn beyond num is not used

    def step(i, carry):
        factor, left, free, chosen = carry
        index = _draw(keys[i], left, free, block)
        # Columns of what is left of the kernel, and a Cholesky factor of their block.
        columns = column(index) - _matmul(factor, factor[index].T)
        columns = _matmul(columns, inverse_sqrt(columns[index]))
        left = left - jnp.sum(columns**2, axis=-1)
        # Rounding must not be taken for directions that are left.
        left = jnp.where(left > floor, left, 0).at[index].set(0)
        factor = jax.lax.dynamic_update_slice(factor, columns, (0, i * block))
        chosen = jax.lax.dynamic_update_slice(chosen, index, (i * block,))
        return factor, left, free.at[index].set(False), chosen

    keys = jax.random.split(key, blocks)
    carry = (
        jnp.zeros((n, blocks * block), diagonal.dtype),
        diagonal,
        jnp.ones(n, bool),
        jnp.zeros(blocks * block, jnp.int32),
    )
    return jax.lax.fori_loop(0, blocks, step, carry)[3][:num]


def choose_uniform(key: jax.Array, n: int, num: int) -> jax.Array:
    """`num` different indices below n, (num,) int32, all equally likely."""
    num = _check(num, n)
    left, free = jnp.ones(n, jnp.float32), jnp.ones(n, bool)
    return _draw(key, left, free, num)


def inverse_sqrt(k: jax.Array) -> jax.Array:
    r"""R with :math:`R R^\top = (k + \delta I)^{-1}`, by a Cholesky factorisation.

    Rows and columns are scaled to a diagonal of ones before; delta is then the least of
    eps, 10 eps, 100 eps, ... with which the factorisation exists. The error is that
    of a kernel a little larger: `K_xz R R^T K_zx` stays below the kernel.

    Args:
      k: (m, m), symmetric positive semidefinite up to rounding.

    Returns:
      (m, m), upper triangular up to rounding; zero rows and columns where k has them.
    """
    eps = jnp.finfo(k.dtype).eps
    diag = jnp.diagonal(k)
    largest = jnp.max(diag, initial=0)
    alive = diag > 10 * eps * largest
    scale = jnp.where(alive, jax.lax.rsqrt(jnp.where(alive, diag, 1)), 0)
    unit = k * scale[:, None] * scale
    eye = jnp.eye(len(k), dtype=k.dtype)
    unit = (unit + unit.T) / 2 + jnp.where(alive, 0, 1) * eye

    def factor(delta):
        return jnp.linalg.cholesky(unit + delta * eye, symmetrize_input=False)

    def failed(carry):
        delta, root = carry
        return ~jnp.isfinite(root).all() & (delta < 1)

    def again(carry):
        delta = 10 * carry[0]
        return delta, factor(delta)

    start = (eps, factor(eps))
    _, root = jax.lax.while_loop(failed, again, start)
    inverse = jax.scipy.linalg.solve_triangular(root, eye, lower=True).T
    return inverse * scale[:, None]


def principal_sqrt(cross: jax.Array, gram: jax.Array, num: int) -> jax.Array:
    r"""R for `num` features `K_xz R`: the principal directions of those of a sample.

    Among all projections in the space that the landmarks span, that with the least
    trace of `K - K_hat` on the sample.

    Args:
      cross: the kernel between a sample and the landmarks, (n, m).
      gram: the kernel of the landmarks, (m, m).
      num: features, >= 1.

    Returns:
      (m, num). For m <= num `inverse_sqrt(gram)` and columns of zeros.

    Cost: O(n m^2 + m^3) operations.

    >>> x = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> phi = x @ x.T @ principal_sqrt(x @ x.T, x @ x.T, 1)
    >>> (phi @ phi.T).round(3)
    Array([[4., 0.],
           [0., 0.]], dtype=float32)
    """
    root = inverse_sqrt(gram)
    m = len(gram)
    if m <= num:
        return jnp.pad(root, [(0, 0), (0, num - m)])
    phi = _matmul(cross, root)
    return _matmul(root, jnp.linalg.eigh(_matmul(phi.T, phi))[1][:, m - num :])


def _draw(key: jax.Array, weights: jax.Array, free: jax.Array, num: int) -> jax.Array:
    """Different free indices, each next in proportion to the weights left.

    The largest of `log(weights) + Gumbel noise`.
    """
    noise = jax.random.gumbel(key, weights.shape, jnp.float32)
    # Beyond any that has a weight, however large its noise.
    nothing = jnp.where(weights > 0, 0, -1e6)
    log = jnp.log(jnp.where(weights > 0, weights, 1)).astype(jnp.float32)
    score = jnp.where(free, log + nothing + noise, -jnp.inf)
    return jax.lax.top_k(score, num)[1].astype(jnp.int32)


def _check(num: int, n: int) -> int:
    num = check_size("rpcholesky", "num", num, 1)
    if num > n:
        raise ValueError(f"num must be at most the number of examples, {n}, got {num}")
    return num


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
