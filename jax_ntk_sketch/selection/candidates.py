"""The feature maps that `choose` weighs."""

from collections.abc import Callable
from typing import TypeAlias

from jax_ntk_sketch import stax
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import Get
from jax_ntk_sketch.features._compress import CompressedFeatureMap
from jax_ntk_sketch.features._feature_map import feature_map
from jax_ntk_sketch.features._sparse_inputs import with_sparse_inputs
from jax_ntk_sketch.methods import (
    Method,
    NTKRandomFeatures,
    NTKSketch,
    Nystrom,
    OnePass,
    VarianceReduced,
)

# A map with this number of columns, for a sample with this number of rows.
Candidate: TypeAlias = Callable[[int, int], FeatureMap]

# Directions are those of three landmarks for each column, as for `Nystrom()`, or of a
# large number. Beyond the largest number there is one landmark for each column.
_PER_DIRECTION, _MANY_LANDMARKS, _MOST_LANDMARKS = 3, 4096, 8192

# How many columns are compressed to one, and the largest number of them.
WIDTH, _MOST_WIDE = 8, 32768

# The least size of the sketches of sparse examples, and their size per column.
_SKETCH_DIM, _PER_COLUMN = 4096, 4


def most_landmarks(num_features: int) -> int:
    """Return the most landmarks that a map with so many columns has."""
    directions = min(_PER_DIRECTION * num_features, _MOST_LANDMARKS)
    return max(num_features, directions, _MANY_LANDMARKS)


def candidates(
    net: stax.Layer, get: Get, *, sparse: bool = False
) -> dict[str, Candidate]:
    """Return what is weighed for a network, by name: maps of dense or sparse rows."""

    def of_inputs(fmap: FeatureMap, m: int) -> FeatureMap:
        if not sparse:
            return fmap
        size = max(_SKETCH_DIM, _PER_COLUMN * m)
        return with_sparse_inputs(fmap, sketch_dim=size)

    def of_method(method: Method) -> Candidate:
        def make(m: int, n: int) -> FeatureMap:
            fmap = feature_map(net, num_features=m, get=get, method=method)
            return of_inputs(fmap, m)

        return make

    def landmarks(kind: str, most: float, normalize: bool) -> Candidate:
        def make(m: int, n: int) -> FeatureMap:
            # More landmarks than rows would be zeros.
            number = min(n, most * m, most_landmarks(m))
            method = Nystrom(kind, max(1.0, number / m), normalize)
            fmap = feature_map(net, num_features=m, get=get, method=method)
            return of_inputs(fmap, m)

        return make

    def compressed(method: Method) -> Candidate:
        def make(m: int, n: int) -> FeatureMap:
            wide = max(m, min(WIDTH * m, _MOST_WIDE))
            base = feature_map(net, num_features=wide, get=get, method=method)
            return CompressedFeatureMap(of_inputs(base, m), m)

        return make

    many = float("inf")
    return {
        "landmarks": landmarks("rpcholesky", 1, True),
        "landmarks, raw": landmarks("rpcholesky", 1, False),
        "landmarks, uniform": landmarks("uniform", 1, True),
        "directions": landmarks("rpcholesky", _PER_DIRECTION, True),
        "directions, raw": landmarks("rpcholesky", _PER_DIRECTION, False),
        "directions of all": landmarks("rpcholesky", many, True),
        "directions of all, raw": landmarks("rpcholesky", many, False),
        "variance reduced": of_method(VarianceReduced("kernel")),
        "variance reduced, low degrees": of_method(VarianceReduced("regression")),
        "random features": of_method(NTKRandomFeatures()),
        "sketch": of_method(NTKSketch()),
        "one pass": of_method(OnePass(2)),
        "compressed": compressed(VarianceReduced("kernel")),
        "compressed random features": compressed(NTKRandomFeatures()),
    }
