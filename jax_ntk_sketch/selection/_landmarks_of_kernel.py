"""The features of `Nystrom` of rows whose kernel is known: the map need not compile."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch._typing import Array, Key
from jax_ntk_sketch.features.methods.nystrom import sampling
from jax_ntk_sketch.methods import Nystrom


@functools.partial(jax.jit, static_argnames=("landmarks", "num_landmarks", "columns"))
def _learn(
    key: Key,
    k: Array,
    weights: Array,
    *,
    landmarks: str,
    num_landmarks: int,
    columns: int,
) -> sampling.Directions:
    return sampling.learn_directions(
        Nystrom(landmarks),
        key,
        lambda rows, others: k[rows[:, None], others[None, :]],
        jnp.diagonal(k),
        jnp.ones(len(k), bool),
        weights=weights,
        num_landmarks=num_landmarks,
        columns=columns,
    )


def features_of_kernel(
    key: Key, method: Nystrom, columns: int, k: NDArray, cross: NDArray
) -> tuple[NDArray, NDArray]:
    """Return the features of the fitting rows (n, m) and the held-out ones, float64.

    Args:
      key: a PRNG key.
      method: of the whole network.
      columns: m.
      k: the kernel of the fitting rows, (n, n).
      cross: the kernel of held-out and fitting rows, (h, n).
    """
    gram, rows = (jnp.asarray(a, jnp.result_type(float)) for a in (k, cross))
    normalize = method.normalize is not False
    chosen, root, _ = _learn(
        key,
        gram,
        sampling.weights(normalize, jnp.diagonal(gram)),
        landmarks=method.landmarks,
        num_landmarks=min(len(k), math.ceil(method.oversample * columns)),
        columns=columns,
    )
    phi, new = (
        np.asarray(matmul(a[:, chosen], root), np.float64) for a in (gram, rows)
    )
    return phi, new
