"""The steps of a feature map, which are built once for each shape."""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp

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


@functools.lru_cache(maxsize=256)
def traced_elements(fmap: NetworkMap, shape: Shape) -> int:
    """Return the numbers in memory per example in all steps, as JAX traces them.

    It is 0 if the method depends on the batch, or if the network needs the edges of
    graphs, whose number is not known.
    """
    if fmap.method.batch_dependent:
        return 0
    # So many that what does not grow with the examples hardly counts.
    x = jax.ShapeDtypeStruct((256, *shape), jnp.float32)
    most = max(_traced_bytes(steps_of(fmap, kind, shape), x) for kind in fmap.kinds)
    return most // (4 * x.shape[0])


def _traced_bytes(steps: list[Step], x: jax.ShapeDtypeStruct) -> int:
    def draw() -> PyTree:
        keys = jax.random.split(jax.random.key(0), len(steps))
        return draw_params(steps, keys, None, {})

    def run(x: Array, *leaves: Array) -> PyTree:
        return run_steps(steps, jax.tree.unflatten(tree, leaves), first_features(x), {})

    leaves, tree = jax.tree.flatten(jax.eval_shape(draw))
    return traced_bytes(run, x, *leaves)
