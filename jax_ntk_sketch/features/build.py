"""From a network and a method to the steps of a feature map."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Array, Kind, PyTree, Shape
from jax_ntk_sketch.features.graph_inputs import zero_masked
from jax_ntk_sketch.features.state import (
    Branches,
    ExactColumns,
    Features,
    Spec,
    take_columns,
)
from jax_ntk_sketch.features.step import Context, Step, extra_inputs, network_rule
from jax_ntk_sketch.methods import Method
from jax_ntk_sketch.sketch import SRHT
from jax_ntk_sketch.stax.scales import with_scales

# Layers that remove the spatial axes.
_FLATTENING = (stax.Flatten, stax.GlobalAvgPool, stax.GlobalSumPool)


class TooFewFeaturesError(ValueError):
    """The error of a method that needs more columns than `num_features`.

    Attributes:
      minimum: the number of columns that the method needs for the network.
    """

    def __init__(self, method: Method, num_features: int, minimum: int) -> None:
        super().__init__(
            f"feature_map: num_features must be at least {minimum} for this network "
            f"with {method}, got {num_features}"
        )
        self.minimum = minimum


def build_steps(
    net: stax.Layer,
    method: Method,
    kind: Kind,
    num_features: int,
    shape: Shape,
    batch: int,
    scales: PyTree = None,
) -> list[Step]:
    """Return the steps of the map from inputs to features of one kernel.

    Activations may return as many columns as fit: the largest number for which the
    columns at the output do not exceed `num_features`, times `method.oversample_width`.
    Then zero columns are appended, or the columns are compressed.

    Args:
      net: the network.
      method: the approximation method.
      kind: the kernel.
      num_features: the number of columns at the output.
      shape: the shape of one example.
      batch: the number of examples, for methods whose features depend on it.
      scales: numbers in the place of the scales of the network, which may be traced.

    Raises:
      TooFewFeaturesError: the method needs more columns.
      ValueError: the network cannot be read, or the method does not support it.
    """
    columns = _max_columns(net, method, kind, num_features, shape)
    context = Context(method, kind == "ntk", columns, batch)
    if scales is not None:
        net = with_scales(net, scales)
    steps = _steps(net, context, shape)
    if method.batch_dependent:
        return steps
    return [*steps, _output(kind, steps[-1].single_spec, num_features)]


@functools.lru_cache(maxsize=256)
def _max_columns(
    net: stax.Layer, method: Method, kind: Kind, num_features: int, shape: Shape
) -> int:
    """Return the largest number of columns that an activation may return.

    It is 0 for methods that have as many columns as the batch needs.
    """
    if method.batch_dependent:
        return 0

    def with_columns(max_columns: int) -> list[Step]:
        return _steps(net, Context(method, kind == "ntk", max_columns), shape)

    def fits(max_columns: int) -> bool:
        return with_columns(max_columns)[-1].single_spec.dim(kind) <= budget

    budget = math.ceil(num_features * method.oversample_width)
    needed = with_columns(1)[-1].single_spec.dim(kind)
    if needed > budget and _has_activations(net):
        minimum = math.ceil(needed / method.oversample_width)
        raise TooFewFeaturesError(method, num_features, minimum)
    return _largest(fits, budget, method.max_layer_width * budget)


def _largest(fits: Callable[[int], bool], guess: int, most: int) -> int:
    """Return the largest number in [1, most] that fits, or 1, by bisection.

    The guess is nearly always right, so that it and the next number are tried first.
    """
    fitting, exceeding, number = 1, most + 1, guess
    while exceeding - fitting > 1:
        if fits(number):
            fitting = number
        else:
            exceeding = number
        number = guess + 1 if fitting == guess else (fitting + exceeding) // 2
    return fitting


def _has_activations(net: stax.Layer) -> bool:
    layers = stax.walk(net, into_branches=True)
    return any(isinstance(layer, stax.Activation) for layer in layers)


def _steps(net: stax.Layer, context: Context, shape: Shape) -> list[Step]:
    """Return the steps up to the output of the network."""
    axis = _channel_axis(net, len(shape) + 1)
    context = dataclasses.replace(context, channel_axis=axis)
    first = _input(shape, axis)
    rest = network_rule(context.method, net, first.single_spec, context)
    if "mask" in extra_inputs(rest):
        first = dataclasses.replace(first, extra_inputs=("mask",))
    spec = rest[-1].spec if rest else first.spec
    if isinstance(spec, Branches):
        raise ValueError(
            f"feature_map: net must have one output, got {len(spec.specs)} branches; "
            "end it with FanInSum, FanInProd or FanInConcat"
        )
    if spec.positions or spec.patches:
        raise ValueError(
            "feature_map: net must have outputs without spatial axes, got axes of "
            f"sizes {spec.positions}; end it with Flatten, GlobalAvgPool or "
            "GlobalSumPool (and Dense)"
        )
    return [first, *rest]


def _input(shape: Shape, axis: int) -> Step:
    """Return the step whose kernel is the mean product over the channels.

    Args:
      shape: the shape of one example.
      axis: the axis of the channels, counted with the batch axis; it becomes the last.
    """
    dim = shape[axis - 1]

    def apply(params: PyTree, f: Features, mask: Array | None = None) -> Features:
        x = zero_masked(jnp.moveaxis(f.nngp, axis, -1), mask)
        scaled = x * jnp.asarray(dim**-0.5, x.dtype)
        return Features(scaled, x[..., :0], jnp.sum(scaled**2, axis=-1))

    spec = Spec(
        nngp_dim=dim,
        ntk_dim=0,
        shape=shape[: axis - 1] + shape[axis:],
        exact_columns=ExactColumns(linears=tuple(range(dim))),
        finite_channels=dim,
    )
    return Step(
        name="input",
        spec=spec,
        apply=apply,
        flops=3 * dim * spec.pixels,
        live_elements=2 * spec.live_elements(),
    )


def _channel_axis(net: stax.Layer, ndim: int) -> int:
    """Return the axis of the channels in the input, on which all layers must agree."""
    layer_by_axis: dict[int, stax.Layer] = {}
    for layer in layers_with_positions(net)[0]:
        if not hasattr(layer, "channel_axis"):
            continue
        axis = layer.channel_axis
        if not -ndim < axis < ndim:
            raise ValueError(
                f"{layer!r}: channel_axis must be one of the {ndim} axes of the input, "
                f"the batch included, got {axis}"
            )
        layer_by_axis.setdefault(axis % ndim, layer)
    if len(layer_by_axis) > 1:
        first, second = list(layer_by_axis.values())[:2]
        raise ValueError(
            "feature_map: layers before Flatten or global pooling must agree on the "
            f"axis of the channels, but {first!r} and {second!r} do not; give them the "
            "same channel_axis, or Conv the dimension_numbers"
        )
    return next(iter(layer_by_axis), ndim - 1)


def has_positions(net: stax.Layer, shape: Shape) -> bool:
    """Return whether examples have positions when they reach the first activation."""
    first = next(iter(stax.walk(net)), None)
    return len(shape) > 1 and not isinstance(first, stax.Flatten)


def layers_with_positions(net: stax.Layer) -> tuple[list[stax.Layer], bool]:
    """Return the layers before the spatial axes end, and whether they end in `net`."""
    layers: list[stax.Layer] = []
    for layer in stax.walk(net):
        parts = [([layer], isinstance(layer, _FLATTENING))]
        if isinstance(layer, stax.Parallel):
            parts = [layers_with_positions(branch) for branch in layer.layers]
        for part, _ in parts:
            layers += part
        if any(ends for _, ends in parts):
            return layers, True
    return layers, False


def _output(kind: Kind, spec: Spec, num_features: int) -> Step:
    """Return the step to `num_features` columns: zeros appended, or a compression."""
    columns = spec.dim(kind)
    out = Spec.of_kind(kind, num_features)
    if columns <= num_features:

        def pad(params: PyTree, f: Features) -> Features:
            z = getattr(f, kind)
            z = jnp.pad(z, [(0, 0), (0, num_features - columns)])
            return f._replace(**{kind: z})

        return Step(
            name="output", spec=out, apply=pad, live_elements=columns + num_features
        )
    kept = _kept_columns(kind, spec, num_features)
    rest = tuple(sorted(set(range(columns)) - set(kept)))
    sketch = SRHT(len(rest), num_features - len(kept))

    def compress(params: PyTree, f: Features) -> Features:
        z = getattr(f, kind)
        sketched = sketch.apply(params, take_columns(z, rest))
        z = jnp.concatenate([take_columns(z, kept), sketched], axis=-1)
        return f._replace(**{kind: z})

    return Step(
        name="output (SRHT)",
        spec=out,
        apply=compress,
        init=sketch.init,
        flops=sketch.flops,
        live_elements=2 * columns + num_features,
    )


def _kept_columns(kind: Kind, spec: Spec, num_features: int) -> tuple[int, ...]:
    """Return the exact columns that are not compressed, at most half of the output.

    These are all exact columns, or the constants alone if all of them are too many.
    """
    constants, linears = spec.exact_columns.of_kind(kind)
    for columns in (constants + linears, constants):
        if 2 * len(columns) <= num_features:
            return tuple(sorted(columns))
    return ()
