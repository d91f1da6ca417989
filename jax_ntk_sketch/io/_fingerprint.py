"""The fingerprint of a feature map: its features of fixed examples."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from numpy.typing import NDArray

from jax_ntk_sketch import stax
from jax_ntk_sketch._protocol import FeatureMap, Origin
from jax_ntk_sketch._typing import Examples, PyTree, Shape
from jax_ntk_sketch.batches.sparse_rows import SparseRows
from jax_ntk_sketch.features._compress import CompressedFeatureMap
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.features._landmarks import LandmarkFeatureMap
from jax_ntk_sketch.features._maps import DerivedFeatureMap
from jax_ntk_sketch.features._sparse_inputs import SparseFeatureMap
from jax_ntk_sketch.io._program import ProgramFeatureMap

# The lengths of the fixed examples, and the coordinates of sparse ones.
_SCALES = 0.3, 1.0, 3.0
_NONZEROS = 64

# The relative difference that rounding on other machines explains. One step feature
# that switches changes the features of an example by 1 / sqrt(num_features).
_TOLERANCE = 1e-2


def input_shape(fmap: FeatureMap, params: PyTree) -> Shape:
    """Return the shape of one example, for which parameters were made.

    Raises:
      KeyError, AttributeError, TypeError: the parameters are those of another map.
    """
    if isinstance(fmap, ProgramFeatureMap):
        return fmap.input_shape
    if isinstance(fmap, CompressedFeatureMap):
        return input_shape(fmap.base, params["base"])
    if isinstance(fmap, LandmarkFeatureMap):
        return params["landmarks"].shape[1:]
    origin = Origin.of(params)
    if origin is None:
        raise ValueError("params must be those that init of a feature map returned")
    return origin.input_shape


def fingerprint(fmap: FeatureMap, params: PyTree) -> NDArray:
    """Return the features of fixed examples, float32 (rows, columns of all kernels).

    Features that depend on the whole batch have their inner products in place of them.

    Cost: one compilation of `apply` for a few rows.
    """
    shape = input_shape(fmap, params)
    x: Examples = _fixed_rows(shape)
    if isinstance(fmap, SparseFeatureMap):
        x = _sparse_rows(shape[0])
    else:
        near = [rows[:2] for rows in _landmarks(params) if rows.shape[1:] == shape]
        x = np.concatenate([x, *near[:1]])
    phi = jax.jit(fmap.apply)(params, x, **_edges(fmap, shape, len(_SCALES)))
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(phi)]
    if fmap.method.batch_dependent:
        leaves = [leaf @ leaf.T for leaf in leaves]
    return np.concatenate(leaves, axis=1)


def are_close(features: NDArray, others: NDArray) -> bool:
    """Return whether two fingerprints are those of equal features."""
    if features.shape != others.shape:
        return False
    if not (np.isfinite(features) == np.isfinite(others)).all():
        return False
    a, b = (
        np.nan_to_num(features, posinf=0, neginf=0),
        np.nan_to_num(others, posinf=0, neginf=0),
    )
    norms = np.linalg.norm(a, axis=1)
    return bool((np.linalg.norm(a - b, axis=1) <= _TOLERANCE * norms).all())


def _fixed_rows(shape: Shape) -> NDArray:
    """Return float32 examples of several lengths, without a generator that may change.

    They are computed in float64 and rounded, so that they are the same everywhere.
    """
    size = math.prod(shape)
    rows = np.sin(1 + np.arange(len(_SCALES) * size) * 0.7).reshape(-1, size)
    rows *= np.array(_SCALES)[:, None]
    return rows.reshape(-1, *shape).astype(np.float32)


def _sparse_rows(d: int) -> SparseRows:
    count = min(d, _NONZEROS)
    values = _fixed_rows((count,))
    columns = np.tile(np.arange(count) * (d // count), len(values))
    rows = np.repeat(np.arange(len(values)), count)
    table = scipy.sparse.csr_array(
        (values.reshape(-1), (rows, columns)), shape=(len(values), d)
    )
    return SparseRows.from_scipy(table)


def _landmarks(params: PyTree) -> list[Any]:
    """Return the landmarks in a pytree of parameters, which are examples or patches.

    Features far from the landmarks of a narrow kernel are zero.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    last = jax.tree_util.DictKey("landmarks")
    return [np.asarray(leaf) for path, leaf in leaves if path and path[-1] == last]


def _edges(fmap: FeatureMap, shape: Shape, n: int) -> dict[str, PyTree]:
    """Return the argument `pattern` for a ring of nodes, if the network needs one."""
    while isinstance(fmap, DerivedFeatureMap):
        fmap = fmap.base
    if not isinstance(fmap, NetworkFeatureMap):
        return {}
    layers = stax.walk(fmap.net, into_branches=True)
    layer = next((la for la in layers if isinstance(la, stax.Aggregate)), None)
    if layer is None:
        return {}
    ndim = len(shape) + 1
    axes = layer.aggregate_axis
    if axes is None:
        axes = tuple(set(range(1, ndim)) - {layer.channel_axis % ndim})
    axes = (axes,) if isinstance(axes, int) else axes
    sizes = tuple(shape[axis % ndim - 1] for axis in sorted(a % ndim for a in axes))
    nodes = np.arange(math.prod(sizes))
    ends = np.stack([nodes, np.roll(nodes, 1)], axis=-1)
    if layer.implementation == "SPARSE":
        pattern = np.stack(np.unravel_index(ends, sizes), axis=1).astype(np.int32)
        pattern = pattern[:, 0] if len(sizes) == 1 else pattern
    else:
        pattern = np.zeros((len(nodes), len(nodes)), np.float32)
        pattern[ends[:, 0], ends[:, 1]] = 1
        pattern = pattern.reshape(*sizes, *sizes)
    return {"pattern": jnp.asarray(np.broadcast_to(pattern, (n, *pattern.shape)))}
