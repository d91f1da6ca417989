"""The steps of a feature map, which are built once for each shape."""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._traced_memory import traced_bytes
from jax_ntk_sketch._typing import Array, Get, Kind, PyTree, Shape
from jax_ntk_sketch.features._error_formula import first_features
from jax_ntk_sketch.features.build import build_steps
from jax_ntk_sketch.features.fitting import draw_params, fit_peak_bytes, run_steps
from jax_ntk_sketch.features.step import Step
from jax_ntk_sketch.methods import Method


class NetworkMap(Protocol):
    """What the steps of a `NetworkFeatureMap` depend on."""

    def __hash__(self) -> int: ...
    @property
    def net(self) -> stax.Layer: ...
    @property
    def num_features(self) -> int: ...
    @property
    def get(self) -> Get: ...
    @property
    def method(self) -> Method: ...
    @property
    def kinds(self) -> tuple[Kind, ...]: ...


@functools.lru_cache(maxsize=256)
def steps_of(fmap: NetworkMap, kind: Kind, shape: Shape, batch: int = 1) -> list[Step]:
    """Return the steps to the features of one kernel."""
    # Methods that do not depend on the batch share one entry of the cache.
    if batch != 1 and not fmap.method.batch_dependent:
        return steps_of(fmap, kind, shape)
    return build_steps(fmap.net, fmap.method, kind, fmap.num_features, shape, batch)


def scaled_steps(
    fmap: NetworkMap, kind: Kind, shape: Shape, batch: int, scales: PyTree
) -> list[Step]:
    """Return the steps with these scales, which cannot be cached if there are some."""
    if scales is None:
        return steps_of(fmap, kind, shape, batch)
    m = fmap.num_features
    return build_steps(fmap.net, fmap.method, kind, m, shape, batch, scales)


def learns(fmap: NetworkMap, shape: Shape) -> bool:
    """Return whether any step learns from data."""
    return any(step.fit for kind in fmap.kinds for step in steps_of(fmap, kind, shape))


def fit_bytes(fmap: NetworkMap, shape: Shape, count: int) -> int:
    """Return the peak bytes of learning from `count` examples; 0 if no step learns."""
    kinds = (steps_of(fmap, kind, shape) for kind in fmap.kinds)
    return max(fit_peak_bytes(steps, count) for steps in kinds)


def traced_elements(
    fmap: NetworkMap, shape: Shape, extras: dict[str, PyTree] | None = None
) -> int:
    """Return the numbers in memory per example in all steps, as JAX traces them.

    It is 0 if the method depends on the batch, or if the network needs the edges of
    graphs and they are not among the extra inputs.
    """
    leaves, tree = jax.tree.flatten(extras or {})
    layouts = tuple((leaf.shape[1:], np.dtype(leaf.dtype)) for leaf in leaves)
    return _traced_elements(fmap, shape, layouts, tree)


@functools.lru_cache(maxsize=256)
def _traced_elements(
    fmap: NetworkMap, shape: Shape, layouts: tuple[Any, ...], tree: Any
) -> int:
    if fmap.method.batch_dependent:
        return 0
    # So many that what does not grow with the examples hardly counts.
    count = 256
    x = jax.ShapeDtypeStruct((count, *shape), jnp.float32)
    rows = [jax.ShapeDtypeStruct((count, *s), dtype) for s, dtype in layouts]
    inputs = jax.tree.unflatten(tree, rows)
    all_steps = [steps_of(fmap, kind, shape) for kind in fmap.kinds]
    most = max(_traced_bytes(steps, x, inputs) for steps in all_steps)
    return most // (4 * count)


def _traced_bytes(
    steps: list[Step], x: jax.ShapeDtypeStruct, inputs: dict[str, PyTree]
) -> int:
    def draw() -> PyTree:
        keys = jax.random.split(jax.random.key(0), len(steps))
        return draw_params(steps, keys, None, {})

    def run(x: Array, inputs: dict[str, PyTree], params: PyTree) -> PyTree:
        return run_steps(steps, params, first_features(x), inputs)

    return traced_bytes(run, x, inputs, jax.eval_shape(draw))
