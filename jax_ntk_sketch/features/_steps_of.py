"""The steps of a feature map, which are built once for each shape."""

import functools
from typing import Protocol

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Get, Kind, PyTree, Shape
from jax_ntk_sketch.features.build import build_steps
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
