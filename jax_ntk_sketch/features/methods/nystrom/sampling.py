"""The choice of landmarks among the rows of a sample."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._numerics import at_least_float32, safe_reciprocal, safe_sqrt
from jax_ntk_sketch._typing import Array, Key
from jax_ntk_sketch.features._maps import warn_few
from jax_ntk_sketch.features.state import Features
from jax_ntk_sketch.kernels import nystrom, rpcholesky
from jax_ntk_sketch.kernels.nystrom import choose_uniform
from jax_ntk_sketch.methods import Nystrom

# The operations of an activation on one entry of a kernel: the arc-cosine functions.
FLOPS_PER_KERNEL_ENTRY = 30

Rows = TypeVar("Rows")

# Landmarks are chosen among at most this number of rows, or twice their own number.
_MAX_CANDIDATES = 4096


def max_candidates(num_landmarks: int) -> int:
    """Return the largest number of rows among which landmarks are chosen."""
    return max(_MAX_CANDIDATES, 2 * num_landmarks)


def candidate_rows(key: Key, n: int, num_landmarks: int) -> Array:
    """Return the indices of the rows, of n, among which landmarks are chosen."""
    most = max_candidates(num_landmarks)
    return jnp.arange(n) if n <= most else choose_uniform(key, n, most)


def padded(rows: Rows) -> tuple[Rows, Array]:
    """Return rows of which the last one is repeated, and which of them were there.

    Their number is one of four between two powers of two, so that few are compiled.
    """
    n = len(jax.tree.leaves(rows)[0])
    step = 1 << max(n.bit_length() - 3, 0)
    index = jnp.minimum(jnp.arange(-(-n // step) * step), n - 1)
    return jax.tree.map(lambda a: a[index], rows), jnp.arange(len(index)) < n


def choose_landmarks(
    method: Nystrom,
    key: Key,
    column: Callable[[Array], Array],
    diagonal: Array,
    num_landmarks: int,
    allowed: Array,
) -> Array:
    """Return the indices of landmarks; `rpcholesky` describes the arguments."""
    n = len(diagonal)
    if num_landmarks == n:
        return jnp.arange(n)
    if method.landmarks == "uniform":
        return choose_uniform(key, n, num_landmarks, allowed)
    return rpcholesky(key, column, diagonal, num_landmarks, allowed=allowed)


class Directions(NamedTuple):
    """The features :math:`K_{xz} R` of a sample with the kernel K.

    Attributes:
      chosen: the rows z of the sample, (l,).
      root: R, (l, columns).
      left_out: the number of directions of the landmarks that R leaves out.
    """

    chosen: Array
    root: Array
    left_out: Array


def learn_directions(
    method: Nystrom,
    key: Key,
    kernel: Callable[[Array, Array], Array],
    diagonal: Array,
    valid: Array,
    *,
    weights: Array,
    num_landmarks: int,
    columns: int,
) -> Directions:
    """Choose landmarks of a sample, and the principal directions of their features.

    Args:
      method: how landmarks are chosen.
      key: a PRNG key.
      kernel: `kernel(rows, others)` returns the kernel of rows of the sample.
      diagonal: the kernel of each row with itself, (n,).
      valid: which rows count, (n,).
      weights: the factors of the rows, (n,).
      num_landmarks: at most n.
      columns: of the features.
    """

    def weighted(rows: Array, others: Array) -> Array:
        k = weights[rows, None] * kernel(rows, others) * weights[None, others]
        return masked(k, valid[rows], valid[others])

    column = functools.partial(weighted, jnp.arange(len(diagonal)))
    squares = diagonal * weights**2
    chosen = choose_landmarks(method, key, column, squares, num_landmarks, valid)
    gram = weighted(chosen, chosen)
    root, left_out = nystrom.principal_sqrt(column(chosen), gram, columns)
    return Directions(chosen, weights[chosen, None] * root, left_out)


def masked(kernel: Array, rows: Array, columns: Array) -> Array:
    """Return a kernel that is zero where a row or a column was not there."""
    return jnp.where(rows[:, None] & columns[None, :], kernel, 0)


def weights(normalize: bool, diagonal: Array) -> Array:
    """Return the factors of rows in the choice of landmarks and directions, (n,).

    Args:
      normalize: whether all rows count alike.
      diagonal: the kernel of each row with itself, (n,).
    """
    if not normalize:
        return jnp.ones_like(diagonal)
    return safe_sqrt(safe_reciprocal(diagonal))


def pad_landmarks(params: dict[str, Array], num_landmarks: int) -> dict[str, Array]:
    """Return arrays with rows of zeros for landmarks that a small sample has not."""
    return {
        name: jnp.pad(array, [(0, num_landmarks - len(array)), (0, 0)][: array.ndim])
        for name, array in params.items()
    }


def warn_left_out(left_out: Array, num_landmarks: int) -> None:
    """Warn of directions of the landmarks that are left out, if any are."""
    nystrom.warn_left_out("NetworkFeatureMap.init", left_out, num_landmarks)


def checked_sample(f: Features, columns: tuple[int, ...]) -> Features:
    """Return the features of a sample in float32 at least, checked if they are known.

    Args:
      f: the features of the sample.
      columns: the columns of each kernel, each of which needs a position of the sample.

    Raises:
      ValueError: there is no example, or an example is not finite.
    """
    owner, rows = "NetworkFeatureMap.init", f.nngp_diag.size
    if not len(f.nngp):
        raise ValueError(f"{owner}: sample must hold at least one example, got none")
    usable = sum(min(rows, number) for number in columns)
    warn_few(owner, rows, usable, sum(columns))
    if not isinstance(f.nngp, jax.core.Tracer):
        bad = ~np.isfinite(np.asarray(f.nngp)).reshape(len(f.nngp), -1).all(1)
        if bad.any():
            raise ValueError(
                f"{owner}: sample must be finite, but its row "
                f"{int(bad.argmax())} has a NaN, an infinity or overflows; leave it out"
            )
    return Features(*map(at_least_float32, f))
