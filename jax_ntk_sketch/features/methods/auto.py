"""Method "auto": the rule that chooses a method without data."""

import dataclasses
import functools
import math
from typing import Any, cast

import jax

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Shape
from jax_ntk_sketch.features._bias import bias
from jax_ntk_sketch.features._steps_of import NetworkMap
from jax_ntk_sketch.features.build import build_steps, has_positions
from jax_ntk_sketch.features.methods._zonal_kernel import why_not_zonal
from jax_ntk_sketch.methods import (
    Method,
    NTKRandomFeatures,
    NTKSketch,
    VarianceReduced,
)

# Layer by layer, and in columns for each input of flat examples. With few, exact linear
# parts leave too few columns for the rest. From many on, what "kernel" adds to each
# layer saves more error than it adds noise.
_FEW_PER_INPUT, _MANY_PER_INPUT = 6, 128

# The same where an activation is smooth. From many on, the degrees above 6 matter that
# only random features have.
_MANY_PER_SMOOTH_INPUT = 512

# With one input it is the bias of the low degrees that decides: random features have
# an error of about this number over the square root of the columns.
_ERROR_OF_RANDOM_FEATURES = 0.7

# In columns, where examples have positions but no edges. Sums over edges and nodes add
# up what low degrees leave out, whatever the number of columns is.
_MANY_COLUMNS = 384


@functools.lru_cache(maxsize=256)
def resolve_method(fmap: NetworkMap, shape: Shape) -> Method:
    """Return what "auto" stands for: the first preference that supports the network.

    It never depends on data, so that `plan` and `init` agree.
    """
    preferences = _preferences(fmap, shape)
    supported = (method for method in preferences if _supports(method, fmap, shape))
    return next(supported, preferences[0])


def _preferences(fmap: NetworkMap, shape: Shape) -> tuple[Method, ...]:
    """Return methods in the order of the error of the kernel.

    `benchmarks/default.py` measures it for kernels that are functions of the cosine.
    """
    kernel, low_degrees = VarianceReduced("kernel"), VarianceReduced("regression")
    sketch, features, m = NTKSketch(), NTKRandomFeatures(), fmap.num_features
    size = math.prod(shape)
    if all(why_not_zonal(fmap.net, kind) is None for kind in fmap.kinds):
        return kernel, low_degrees, features, sketch
    many = 0 if _has_edges(fmap.net) else _MANY_COLUMNS
    if not has_positions(fmap.net, shape):
        many = _MANY_PER_INPUT * size
        if m <= _FEW_PER_INPUT * size:
            return sketch, low_degrees, kernel, features
        if not _is_rectified(fmap.net) and _has_high_degrees(fmap, shape):
            return features, kernel, low_degrees, sketch
    first, second = (kernel, low_degrees) if m >= many else (low_degrees, kernel)
    return first, second, features, sketch


def _has_high_degrees(fmap: NetworkMap, shape: Shape) -> bool:
    """Return whether low degrees lose more than random features of this size."""
    m, size = fmap.num_features, math.prod(shape)
    if size > 1:
        return m >= _MANY_PER_SMOOTH_INPUT * size
    method = VarianceReduced("regression")
    low_degrees: NetworkMap = dataclasses.replace(cast(Any, fmap), method=method)
    if not _supports(method, low_degrees, shape):
        return True
    # Within a trace too, the method is known.
    with jax.ensure_compile_time_eval():
        largest = max(bias(low_degrees, kind, shape) for kind in fmap.kinds)
    return largest > _ERROR_OF_RANDOM_FEATURES / m**0.5


def _has_edges(net: stax.Layer) -> bool:
    """Return whether examples are graphs."""
    layers = stax.walk(net, into_branches=True)
    return any(isinstance(layer, stax.Aggregate) for layer in layers)


def _is_rectified(net: stax.Layer) -> bool:
    """Return whether all activations are linear on both sides of 0."""
    rectified = stax.Relu | stax.LeakyRelu | stax.ABRelu | stax.Abs
    layers = stax.walk(net, into_branches=True)
    activations = (layer for layer in layers if isinstance(layer, stax.Activation))
    return all(isinstance(layer, rectified) for layer in activations)


def _supports(method: Method, fmap: NetworkMap, shape: Shape) -> bool:
    try:
        for kind in fmap.kinds:
            build_steps(fmap.net, method, kind, fmap.num_features, shape, 1)
    except ValueError:
        return False
    return True
