"""From a network and a method to the stages of a feature map."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch.features.state import (
    Branches,
    ExactColumns,
    Features,
    Spec,
    take_columns,
)
from jax_ntk_sketch.features.step import Context, Step, network_rule
from jax_ntk_sketch.methods import Exact, Method, NTKSketch
from jax_ntk_sketch.sketch import SRHT

# Examples of a sample that a step works on at a time.
_FIT_BATCH = 32


def fit_steps(
    built: list[Step],
    keys: jax.Array | list[jax.Array],
    sample: Features,
    inputs: dict[str, Any],
) -> list[Any]:
    """Parameters of all stages, each learned from what those before it return."""
    last = max(i for i, stage in enumerate(built) if stage.fit)
    f, params = sample, []
    for i, (stage, key) in enumerate(zip(built, keys, strict=True)):
        p = stage.learn(key, f, **inputs)
        params.append(p)
        if i < last:

            def run(some, stage=stage, p=p):
                return stage.run(p, some[0], **some[1])

            f = in_batches(run, (f, inputs), _FIT_BATCH)
    return params


def fit_peak_bytes(built: list[Step], count: int) -> int:
    """Peak bytes of `fit` with a sample of `count`, in float32."""
    last = max((i for i, stage in enumerate(built) if stage.fit), default=0)
    most = 0
    for before, stage in itertools.pairwise(built[: last + 1]):
        batch = min(count, _FIT_BATCH)
        passing = count * stage.spec.live_elements() + batch * stage.live_elements
        most = max(
            most, count * before.spec.live_elements() + stage.fit_elements + passing
        )
    return 4 * most


def in_batches(run: Callable[[Any], Any], x: Any, size: int) -> Any:
    """`run` on consecutive rows of an array or of several, `size` at a time, joined."""
    total = len(jax.tree.leaves(x)[0])
    count = total // size
    if count == 0:
        return run(x)

    def blocks(z: jax.Array) -> jax.Array:
        return z[: count * size].reshape(count, size, *z.shape[1:])

    whole = jax.lax.map(run, jax.tree.map(blocks, x))
    out = jax.tree.map(lambda z: z.reshape(count * size, *z.shape[2:]), whole)
    if count * size == total:
        return out
    rest = run(jax.tree.map(lambda z: z[count * size :], x))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)


# Layers behind which there are no spatial axes.
_REMOVES = (stax.Flatten, stax.GlobalAvgPool, stax.GlobalSumPool)


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
    shape: tuple[int, ...],
    batch: int,
) -> list[Step]:
    """All stages of the map from inputs (n, *shape) to `num_features` of `kind`.

    Nonlinear layers are given the largest width with which the linear layers behind
    them do not exceed `num_features`; what is left over is zero columns.

    Raises:
      ValueError: `num_features` is less than the method needs; the least is named.
    """

    def build(width: int) -> list[Step]:
        axis = _channel_axis(net, len(shape) + 1)
        context = Context(method, kind == "ntk", width, batch, axis)
        first = _input(shape, axis)
        built = [first, *network_rule(method, net, first.single_spec, context)]
        if isinstance(built[-1].spec, Branches):
            raise ValueError(
                f"the network ends in {len(built[-1].spec.specs)} branches: end it "
                "with FanInSum, FanInProd or FanInConcat"
            )
        if built[-1].spec.positions or built[-1].spec.window:
            raise ValueError(
                "the network's output still has spatial axes, of sizes "
                f"{built[-1].spec.positions}: end it with Flatten, GlobalAvgPool or "
                "GlobalSumPool (and Dense)"
            )
        return built

    if isinstance(method, Exact):
        return build(0)
    oversample, most = 1.0, 2
    if isinstance(method, NTKSketch):
        # Linear parts of few dimensions leave most of a layer's width unused.
        oversample, most = method.oversample, 16
    budget = math.ceil(num_features * oversample)
    least = _columns(build(1), kind)
    if least > budget and any(
        isinstance(x, stax.Activation) for x in stax.walk(net, into_branches=True)
    ):
        raise TooFewFeaturesError(method, num_features, math.ceil(least / oversample))
    # Widest that fits, narrowest that need not: without a Dense at the end the NTK is
    # only a part of a nonlinear layer's columns.
    # Nearly always that is the budget itself, which is looked at first.
    low, high, middle = 1, most * budget + 1, budget
    while high - low > 1:
        fits = _columns(build(middle), kind) <= budget
        low, high = (middle, high) if fits else (low, middle)
        middle = budget + 1 if low == budget else (low + high) // 2
    built = build(low)
    return [*built, _output(kind, built[-1].single_spec, num_features)]


def _columns(built: list[Step], kind: Kind) -> int:
    return built[-1].single_spec.dim(kind)


def _input(shape: tuple[int, ...], axis: int) -> Step:
    """Neural Tangents' input kernel: the inner product over the channels.

    Inside, channels are the last axis.
    """
    dim = shape[axis - 1]
    spatial = shape[: axis - 1] + shape[axis:]

    def apply(params, f: Features) -> Features:
        x = jnp.moveaxis(f.nngp, axis, -1)
        scaled = x * jnp.asarray(dim**-0.5, x.dtype)
        return Features(scaled, x[..., :0], jnp.sum(scaled**2, axis=-1))

    carried = ExactColumns(linears=tuple(range(dim)))
    spec = Spec(dim, 0, shape=spatial, exact_columns=carried, finite_channels=dim)
    floats = 2 * spec.live_elements()
    return Step(
        name="input",
        spec=spec,
        apply=apply,
        flops=3 * dim * spec.pixels,
        live_elements=floats,
    )


def _channel_axis(net: stax.Layer, ndim: int) -> int:
    """The axis of the channels in the input, on which all layers must agree."""
    stated: dict[int, stax.Layer] = {}
    for layer in _with_positions(net)[0]:
        if hasattr(layer, "channel_axis"):
            axis = layer.channel_axis
        elif isinstance(layer, stax.Dense) and ndim > 2:
            axis = -1
        else:
            continue
        if not -ndim < axis < ndim:
            raise ValueError(
                f"{layer!r} has its channels on axis {axis}, but the input has {ndim} "
                "axes, the batch included"
            )
        stated.setdefault(axis % ndim, layer)
    if len(stated) > 1:
        first, second = list(stated.values())[:2]
        raise ValueError(
            f"{first!r} and {second!r} disagree on the axis of the channels; give all "
            "layers before Flatten or global pooling the same one"
            + (
                " (a Dense layer acts on the last axis: with channels first use Conv "
                "of filter size 1)"
                if any(isinstance(layer, stax.Dense) for layer in (first, second))
                else ""
            )
        )
    return next(iter(stated), ndim - 1)


def _with_positions(net: stax.Layer) -> tuple[list[stax.Layer], bool]:
    """The layers that see the input's spatial axes, and whether one removes them."""
    seen: list[stax.Layer] = []
    for layer in stax.walk(net):
        parts = [([layer], isinstance(layer, _REMOVES))]
        if isinstance(layer, stax.Parallel):
            parts = [_with_positions(branch) for branch in layer.layers]
        for layers, _ in parts:
            seen += layers
        if any(ends for _, ends in parts):
            return seen, True
    return seen, False


def _output(kind: Kind, spec: Spec, num_features: int) -> Step:
    """Exactly `num_features` columns: zeros appended, or a final compression."""
    columns = spec.dim(kind)
    out = Spec(num_features, 0) if kind == "nngp" else Spec(0, num_features)
    if columns <= num_features:

        def pad(params, f: Features) -> Features:
            z = getattr(f, kind)
            z = jnp.pad(z, [(0, 0), (0, num_features - columns)])
            return f._replace(**{kind: z})

        return Step(
            name="output", spec=out, apply=pad, live_elements=columns + num_features
        )
    kept = _kept(kind, spec, num_features)
    left = tuple(sorted(set(range(columns)) - set(kept)))
    sketch = SRHT(len(left), num_features - len(kept))

    def compress(params, f: Features) -> Features:
        z = getattr(f, kind)
        rest = sketch.apply(params, take_columns(z, left))
        z = jnp.concatenate([take_columns(z, kept), rest], axis=-1)
        return f._replace(**{kind: z})

    return Step(
        name="output (SRHT)",
        spec=out,
        apply=compress,
        init=sketch.init,
        flops=sketch.flops,
        live_elements=2 * columns + num_features,
    )


def _kept(kind: Kind, spec: Spec, num_features: int) -> tuple[int, ...]:
    """Exact columns that are not compressed: half of `num_features` at most.

    All of them, or if they are too many the constants alone.
    """
    c = spec.exact_columns
    constants, linears = c.constants, c.linears
    if kind == "ntk":
        constants, linears = c.ntk_constants, c.ntk_linears
    for some in (constants + linears, constants):
        if 2 * len(some) <= num_features:
            return tuple(sorted(some))
    return ()
