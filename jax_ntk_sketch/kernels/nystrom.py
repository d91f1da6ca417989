r"""Landmarks: a few examples whose kernel columns span most of the kernel.

Let :math:`K_{xz}` be the kernel's columns at the landmarks z, and :math:`K_{zz}` the
kernel among them. The Nystrom approximation has the features

.. math:: \phi(x) = K_{xz} R, \qquad R R^\top = K_{zz}^{-1}, \qquad
   \phi \phi^\top = K_{xz} K_{zz}^{-1} K_{zx}.

It is the orthogonal projection, in the kernel's space, on the landmarks. It is exact at
them, and never larger than the kernel in the order of positive semidefinite matrices.
The same holds for the projection on a part of that space, for example on the principal
directions of the features of a sample.

Source: Williams and Seeger, Using the Nystrom method to speed up kernel machines
(2000); Chen, Epperly, Tropp and Webber, Randomly pivoted Cholesky, arXiv 2207.06503,
Algorithms 4.1 and 4.2 (in blocks).
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch._typing import Array, Key

# The largest number of landmarks that are drawn together. Those of one block are chosen
# without knowledge of each other, but matrix products are fast: blocks of 16 to 128
# were equally good for 1024 landmarks on MNIST.
_MAX_BLOCK = 128

# Of a loop of `rpcholesky`: the factor, the diagonal that is left, which indices are
# free, and the chosen indices.
_Pivots: TypeAlias = tuple[Array, Array, Array, Array]


def rpcholesky(
    key: Key,
    column: Callable[[Array], Array],
    diagonal: Array,
    num_landmarks: int,
    *,
    block: int | None = None,
    allowed: Array | None = None,
) -> Array:
    r"""Choose landmarks by randomly pivoted Cholesky.

    A landmark i is drawn with probability proportional to what the landmarks before it
    leave of the diagonal, :math:`d_i = K_{ii} - (K_{xz} K_{zz}^{-1} K_{zx})_{ii}`. The
    landmarks of one block are drawn together, without replacement.

    Args:
      key: a PRNG key.
      column: a function of indices (b,) of examples that returns their columns of the
        kernel, (n, b).
      diagonal: the kernel of each example with itself, (n,), >= 0.
      num_landmarks: 1 <= num_landmarks <= n.
      block: landmarks that are drawn together, >= 1. The default is an eighth of
        `num_landmarks`, at most 128.
      allowed: bool (n,), which examples may be chosen before all others; None for all.

    Returns:
      Indices (num_landmarks,), int32, all different. Where fewer landmarks span the
      kernel (equal examples, zero vectors), the others are uniform among the rest.

    Raises:
      TypeError: `num_landmarks` or `block` is not an integer.
      ValueError: `num_landmarks` or `block` is out of its range.

    Cost: O(n num_landmarks^2) operations, in matrix products, and n `num_landmarks`
    numbers of memory.
    Guarantee: the expected trace of :math:`K - \hat K` is at most `1 + e` times that of
    the best approximation of rank r, for about `r/e + r log(1/(e eta))` landmarks. Here
    eta is the best approximation's share of the trace (Theorem 5.1, blocks of one).

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch.kernels import rpcholesky
    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> column = lambda index: x @ x[index].T
    >>> chosen = rpcholesky(jax.random.key(0), column, jnp.sum(x**2, 1), 2, block=1)
    >>> sorted(float(norm) for norm in x[chosen].sum(0))
    [1.0, 1.0]
    """
    n = diagonal.shape[0]
    num_landmarks = _check_count("rpcholesky", "num_landmarks", num_landmarks, n)
    if block is None:
        block = min(_MAX_BLOCK, -(-num_landmarks // 8))
    block = min(check_size("rpcholesky", "block", block), num_landmarks)
    diagonal = jax.lax.stop_gradient(diagonal)  # the choice has no gradient
    allowed = jnp.ones(n, bool) if allowed is None else allowed
    diagonal = jnp.where(allowed, diagonal, 0)
    floor = 10 * jnp.finfo(diagonal.dtype).eps * diagonal
    num_blocks = -(-num_landmarks // block)

    def choose_block(
        state: _Pivots, numbered_key: tuple[Array, Key]
    ) -> tuple[_Pivots, None]:
        factor, left, free, chosen = state
        i, block_key = numbered_key
        index = _draw(block_key, left, free, block)
        # Columns of what is left of the kernel, and a Cholesky factor of their block.
        columns = jax.lax.stop_gradient(column(index)) - matmul(factor, factor[index].T)
        columns = matmul(columns, inverse_sqrt(columns[index]).root)
        left = left - jnp.sum(columns**2, axis=-1)
        # Rounding must not be taken for directions that are left.
        left = jnp.where(left > floor, left, 0).at[index].set(0)
        factor = jax.lax.dynamic_update_slice(factor, columns, (0, i * block))
        chosen = jax.lax.dynamic_update_slice(chosen, index, (i * block,))
        return (factor, left, free.at[index].set(False), chosen), None

    start = (
        jnp.zeros((n, num_blocks * block), diagonal.dtype),
        diagonal,
        allowed,
        jnp.zeros(num_blocks * block, jnp.int32),
    )
    keys = jnp.arange(num_blocks), jax.random.split(key, num_blocks)
    (_, _, _, chosen), _ = jax.lax.scan(choose_block, start, keys)
    return chosen[:num_landmarks]


def choose_uniform(key: Key, n: int, num: int, allowed: Array | None = None) -> Array:
    """Return `num` different indices below n, (num,) int32, all equally likely.

    Those that are `allowed`, bool (n,), come before all others.

    Raises:
      TypeError: `num` is not an integer.
      ValueError: `num` is not in 1..n.
    """
    num = _check_count("choose_uniform", "num", num, n)
    allowed = jnp.ones(n, bool) if allowed is None else allowed
    return _draw(key, jnp.ones(n, jnp.float32), allowed, num)


class InverseRoot(NamedTuple):
    """The square root R of an inverse, (m, m), or some columns of it.

    Attributes:
      root: R.
      left_out: the number of directions of a matrix that rounding has made indefinite,
        which R leaves out; int32 ().
    """

    root: Array
    left_out: Array


def inverse_sqrt(k: Array) -> InverseRoot:
    r"""Return R with :math:`R R^\top = (k + \delta I)^{-1}`, by Cholesky factorization.

    Rows and columns are first scaled to a diagonal of ones. Then delta is the smallest
    of eps, 10 eps, 100 eps, ... for which the factorization exists. The error is that
    of a kernel a little larger: :math:`K_{xz} R R^\top K_{zx}` stays below the kernel.

    Where delta would have to be the square root of eps or more, rounding has made the
    kernel indefinite. The directions whose eigenvalues are not larger than the absolute
    value of the smallest one are then left out, and the others are inverted exactly.

    Args:
      k: (m, m), symmetric positive semidefinite up to rounding.

    Returns:
      An `InverseRoot`. Its root has zero rows where k has.

    Cost: O(m^3) operations.
    """
    eps = float(jnp.finfo(k.dtype).eps)
    diagonal = jnp.diagonal(k)
    nonzero = diagonal > 10 * eps * jnp.max(diagonal, initial=0)
    scale = jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, diagonal, 1)), 0)
    unit = k * scale[:, None] * scale[None, :]
    eye = jnp.eye(len(k), dtype=k.dtype)
    unit = (unit + unit.T) / 2 + jnp.where(nonzero, 0, 1).astype(k.dtype)[None, :] * eye

    def factor(unit: Array, delta: Array) -> Array:
        return jnp.linalg.cholesky(unit + delta * eye, symmetrize_input=False)

    def has_failed(state: tuple[Array, Array]) -> Array:
        delta, root = state
        return ~jnp.isfinite(root).all() & (delta < eps**0.5)

    def try_larger(state: tuple[Array, Array]) -> tuple[Array, Array]:
        delta = 10 * state[0]
        return delta, factor(constant, delta)

    def invert(root: Array) -> tuple[Array, Array]:
        inverse = jax.scipy.linalg.solve_triangular(root, eye, lower=True).T
        return inverse, jnp.zeros((), jnp.int32)

    def project(root: Array) -> tuple[Array, Array]:
        values, vectors = jnp.linalg.eigh(unit)
        kept = values > jnp.abs(values[0])
        inverse = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1)), 0)
        return vectors * inverse[None, :], jnp.sum(~kept, dtype=jnp.int32)

    # A loop of unknown length has no gradient, and delta is a constant for it.
    start, constant = jnp.asarray(eps, k.dtype), jax.lax.stop_gradient(unit)
    first = start, factor(constant, start)
    delta, _ = jax.lax.while_loop(has_failed, try_larger, first)
    root = factor(unit, delta)
    definite = jnp.isfinite(root).all() | ~jnp.isfinite(unit).all()
    inverse, left_out = jax.lax.cond(definite, invert, project, root)
    return InverseRoot(inverse * scale[:, None], left_out)


def principal_sqrt(cross: Array, gram: Array, num_features: int) -> InverseRoot:
    r"""Return R for features :math:`K_{xz} R`: principal directions of a sample's.

    Among all projections in the space that the landmarks span, this one leaves the
    smallest trace of :math:`K - \hat K` on the sample.

    Args:
      cross: the kernel between a sample and the landmarks, (n, m).
      gram: the kernel of the landmarks, (m, m).
      num_features: >= 1.

    Returns:
      An `InverseRoot` with a root (m, num_features). For m <= num_features it is that
      of `inverse_sqrt(gram)` and columns of zeros.

    Cost: O(n m^2 + m^3) operations.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch.kernels.nystrom import principal_sqrt
    >>> x = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> phi = x @ x.T @ principal_sqrt(x @ x.T, x @ x.T, 1).root
    >>> (phi @ phi.T).round(3)
    Array([[4., 0.],
           [0., 0.]], dtype=float32)
    """
    root, left_out = inverse_sqrt(gram)
    m = len(gram)
    if m <= num_features:
        return InverseRoot(jnp.pad(root, [(0, 0), (0, num_features - m)]), left_out)
    phi = matmul(cross, root)
    directions = _leading_directions(matmul(phi.T, phi), num_features)
    return InverseRoot(matmul(root, directions), left_out)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _leading_directions(a: Array, count: int) -> Array:
    """Return orthonormal columns (m, count) that span the largest eigenvalues of a."""
    return jnp.linalg.eigh(a)[1][:, len(a) - count :]


@_leading_directions.defjvp
def _leading_directions_jvp(
    count: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """Return the derivative of the space, with no rotation within it.

    Equal eigenvalues on one side are no obstacle, as they are for those of `eigh`.
    """
    values, vectors = jnp.linalg.eigh(primals[0])
    split = len(values) - count
    rest, kept = vectors[:, :split], vectors[:, split:]
    gap = values[None, split:] - values[:split, None]
    tied = gap <= jnp.finfo(values.dtype).eps * values[-1]
    turned = matmul(rest.T, matmul(tangents[0], kept))
    return kept, matmul(rest, jnp.where(tied, 0, turned / jnp.where(tied, 1, gap)))


def warn_left_out(owner: str, left_out: Array, num_landmarks: int) -> None:
    """Warn of directions that an `InverseRoot` leaves out, if their number is known."""
    if isinstance(left_out, jax.core.Tracer) or not int(left_out):
        return
    warnings.warn(
        f"{owner}: rounding makes the kernel of the landmarks indefinite, so that "
        f"{int(left_out)} of its {num_landmarks} directions are left out; center and "
        "scale the examples, or give them in float64 with jax_enable_x64",
        stacklevel=2,
    )


def _draw(key: Key, weights: Array, free: Array, num: int) -> Array:
    """Draw different free indices, each next in proportion to the weights left.

    They have the largest values of `log(weights) + Gumbel noise`.
    """
    noise = jax.random.gumbel(key, weights.shape, jnp.float32)
    # Below any index that has a weight, however large its noise.
    no_weight = jnp.where(weights > 0, 0, -1e6)
    log = jnp.log(jnp.where(weights > 0, weights, 1)).astype(jnp.float32)
    score = jnp.where(free, log + no_weight + noise, -jnp.inf)
    return jax.lax.top_k(score, num)[1].astype(jnp.int32)


def _check_count(owner: str, name: str, num: int, n: int) -> int:
    num = check_size(owner, name, num)
    if num > n:
        raise ValueError(
            f"{owner}: {name} must be at most the number of examples, {n}, got {num}"
        )
    return num
