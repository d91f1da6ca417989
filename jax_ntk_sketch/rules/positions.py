"""Layers that move or mix positions: linear, so exact on features."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch.methods import Exact
from jax_ntk_sketch.rules.patches import settled, sketch_width
from jax_ntk_sketch.rules.stage import (
    Carried,
    Context,
    Features,
    Spec,
    Stage,
    excess,
    own_norms,
    rule,
    summed,
)
from jax_ntk_sketch.sketch import SRHT

__all__: list[str] = []


@rule.register
def conv_transpose_steps(
    layer: stax.ConvTranspose, spec: Spec, context: Context
) -> list[Stage]:
    """A convolution of the image with zeros between its pixels and around it."""
    _check_rank(layer, spec)
    strides = layer.strides or (1,) * len(layer.filter_shape)
    pads = [
        _border(layer.padding, *sizes)
        for sizes in zip(layer.filter_shape, strides, strict=True)
    ]
    wrapped = layer.padding == "CIRCULAR"

    def spread(x: jax.Array) -> jax.Array:
        """(n, *shape, c), a period of it where it is wrapped around."""
        between = [(0, step - 1 if wrapped else 0, step - 1) for step in strides]
        zero = jnp.zeros((), x.dtype)
        x = jax.lax.pad(x, zero, [(0, 0, 0), *between, (0, 0, 0)])
        mode = "wrap" if wrapped else "constant"
        return jnp.pad(x, [(0, 0), *pads, (0, 0)], mode=mode)

    shape = tuple(
        (size - 1) * step + 1 + (step - 1) * wrapped + sum(pad)
        for size, step, pad in zip(spec.shape, strides, pads, strict=True)
    )
    stuffed = dataclasses.replace(spec, low=min(spec.low, 0.0), shape=shape)

    def apply(params, f: Features) -> Features:
        norm2 = spread(f.norm2[..., None])[..., 0]
        return Features(spread(f.nngp), spread(f.ntk), norm2)

    floats = spec.floats() + stuffed.floats()
    first = Stage("zeros between pixels", stuffed, apply, floats=floats)
    conv = stax.Conv(
        layer.out_chan,
        layer.filter_shape,
        W_std=layer.W_std,
        b_std=layer.b_std,
        parameterization=layer.parameterization,
        s=layer.s,
    )
    behind = rule(conv, stuffed, context)
    behind[-1] = dataclasses.replace(behind[-1], name=repr(layer))
    return [first, *behind]


def _border(padding: str, size: int, step: int) -> tuple[int, int]:
    """Pixels before and behind the image, so that windows within are the outputs.

    For zeros those of `jax.lax.conv_transpose`; wrapped around, what that has of
    "VALID" is centred on the period.
    """
    if padding == "VALID":
        return size - 1, step - 1 + max(size - step, 0)
    if padding == "SAME":
        total = size + step - 2
        before = size - 1 if step > size - 1 else -(-total // 2)
        return before, total - before
    shift = max(size - step, 0) // 2
    return size - 1 - shift, shift


@rule.register
def conv_local_steps(
    layer: stax.ConvLocal, spec: Spec, context: Context
) -> list[Stage]:
    """The kernels of a convolution between equal positions, zero between others."""
    _check_rank(layer, spec)
    conv = stax.Conv(
        layer.out_chan,
        layer.filter_shape,
        layer.strides,
        layer.padding,
        layer.W_std,
        layer.b_std,
        parameterization=layer.parameterization,
        s=layer.s,
    )
    stages = rule(conv, spec, context)
    if stages[-1].spec.window:
        stages.append(settled(stages[-1].spec, context))
    stages[0] = dataclasses.replace(stages[0], name=repr(layer))
    return [*stages, _apart(stages[-1].spec, context)]


def _apart(spec: Spec, context: Context) -> Stage:
    """Features that are orthogonal between positions.

    Each position has columns of its own where they fit the width. Elsewhere it has a
    sketch of its own, whose random signs make products with others zero on average.
    """
    pixels = spec.pixels
    kinds = [kind for kind in ("nngp", "ntk") if getattr(spec, kind)]
    width = sketch_width(context)
    whole = {
        kind: isinstance(context.method, Exact)
        or pixels == 1
        or pixels * getattr(spec, kind) <= width
        for kind in kinds
    }
    parts = {
        kind: SRHT(getattr(spec, kind), width) for kind in kinds if not whole[kind]
    }
    columns = {
        kind: pixels * getattr(spec, kind) if whole[kind] else width for kind in kinds
    }
    out = dataclasses.replace(
        spec,
        nngp=columns["nngp"],
        ntk=columns.get("ntk", 0),
        # Cosines between positions are zero up to the noise of the sketches.
        low=min(spec.low, 0.0 if all(whole.values()) else -1.0),
        own_norms=spec.own_norms or "nngp" in parts,
        carried=Carried(),
    )

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, (2, pixels))
        return {
            kind: jax.vmap(part.init)(own)
            for (kind, part), own in zip(parts.items(), keys, strict=False)
        }

    def one(params: Any, kind: str, x: jax.Array) -> jax.Array:
        rows = x.reshape(len(x), pixels, -1)
        if kind in parts:
            sketch = jax.vmap(parts[kind].apply, in_axes=(0, 1), out_axes=1)
            rows = sketch(params[kind], rows)
        elif kind in kinds:
            places = jnp.eye(pixels, dtype=x.dtype)
            rows = rows[:, :, None, :] * places[:, :, None]
        return rows.reshape(*x.shape[:-1], columns.get(kind, 0))

    def apply(params, f: Features) -> Features:
        nngp, ntk = one(params, "nngp", f.nngp), one(params, "ntk", f.ntk)
        if "nngp" not in parts:
            return Features(nngp, ntk, f.norm2)
        return own_norms(nngp, ntk, excess(f) if spec.dropped else 0.0)

    flops = pixels * sum(part.flops for part in parts.values()) + out.floats()
    floats = spec.floats() + out.floats()
    return Stage("positions apart", out, apply, init, flops, floats)


@rule.register
def image_resize_steps(
    layer: stax.ImageResize, spec: Spec, context: Context
) -> list[Stage]:
    ndim = len(spec.shape) + 2
    if len(layer.shape) != ndim or not spec.shape:
        raise ValueError(
            f"{layer!r}: shape must have an entry for each of the {ndim} axes of its "
            "input, batch and channels included"
        )
    channels = layer.channel_axis % ndim
    sizes = [size for i, size in enumerate(layer.shape) if i not in (0, channels)]
    shape = tuple(
        old if new == -1 else new for old, new in zip(spec.shape, sizes, strict=True)
    )
    # Cubic and Lanczos interpolation has negative weights.
    signed = layer.method not in ("nearest", "linear")
    out = dataclasses.replace(summed(spec, signed), shape=shape)
    precision = jax.lax.Precision[layer.precision.upper()]

    def resize(x: jax.Array) -> jax.Array:
        size = (len(x), *shape, x.shape[-1])
        return jax.image.resize(x, size, layer.method, layer.antialias, precision)

    def squares(x: jax.Array) -> jax.Array:
        """Sums with the squares of the weights, which are products over the axes."""
        for axis, (old, new) in enumerate(zip(spec.shape, shape, strict=True), 1):
            one = jnp.eye(old, dtype=x.dtype)
            weights = jax.image.resize(
                one, (old, new), layer.method, layer.antialias, precision
            )
            x = jnp.tensordot(x, weights**2, (axis, 0), precision=precision)
            x = jnp.moveaxis(x, -1, axis)
        return x

    def apply(params, f: Features) -> Features:
        more = squares(excess(f)) if spec.dropped else 0.0
        return own_norms(resize(f.nngp), resize(f.ntk), more)

    floats = spec.floats() + out.floats()
    # At most a matrix for each axis.
    flops = (
        2
        * sum(max(a, b) for a, b in zip(spec.shape, shape, strict=True))
        * max(spec.floats(), out.floats())
    )
    return [Stage(repr(layer), out, apply, flops=flops, floats=floats)]


@rule.register
def dot_general_steps(
    layer: stax.DotGeneral, spec: Spec, context: Context
) -> list[Stage]:
    if layer.lhs is None and layer.rhs is None:
        return []
    is_lhs = layer.rhs is None  # the array is
    other = np.asarray(layer.lhs if is_lhs else layer.rhs)
    ndim = 2 + len(spec.shape)
    axis = layer.channel_axis % ndim if spec.shape else 1
    kept = _dot_axes(layer, (ndim, other.ndim))
    moved = kept.index(axis) if axis in kept else None
    if kept[0] != 0 or moved != layer.channel_axis % len(kept):
        raise ValueError(
            f"{layer!r} takes examples with {ndim} axes to {len(kept)} axes, of which "
            f"{kept} are those of the input (None: of the array): the batch, 0, must "
            f"stay first, and the channels, {axis}, on axis {layer.channel_axis}"
        )
    precision = jax.lax.Precision[(layer.precision or "default").upper()]

    def run(x: jax.Array, other: np.ndarray = other) -> jax.Array:
        left, right = jnp.moveaxis(x, -1, axis), jnp.asarray(other, x.dtype)
        if is_lhs:
            left, right = right, left
        numbers = layer.dimension_numbers
        out = jax.lax.dot_general(left, right, numbers, precision)
        return jnp.moveaxis(out, moved, -1)

    try:
        example = jax.ShapeDtypeStruct((1, *spec.shape, 1), jnp.float32)
        shape = jax.eval_shape(run, example).shape[1:-1]
    except TypeError as error:
        raise ValueError(f"{layer!r} on positions {spec.shape}: {error}") from None
    contracts = layer.dimension_numbers[0] != ((), ())
    signed = bool((other < 0).any())
    out = dataclasses.replace(summed(spec, signed), shape=shape)
    if not contracts:
        out = dataclasses.replace(out, own_norms=spec.own_norms)

    def apply(params, f: Features) -> Features:
        nngp, ntk = run(f.nngp), run(f.ntk)
        if not contracts:
            norm2 = run(f.norm2[..., None], other**2)[..., 0]
            return Features(nngp, ntk, norm2)
        more = run(excess(f)[..., None], other**2)[..., 0] if spec.dropped else 0.0
        return own_norms(nngp, ntk, more)

    floats = spec.floats() + out.floats()
    return [
        Stage(repr(layer), out, apply, flops=2 * other.size * floats, floats=floats)
    ]


def _dot_axes(layer: stax.DotGeneral, ndims: tuple[int, int]) -> list[int | None]:
    """For each axis of the output that of the input, None for one of the array.

    Args:
      ndims: axes of the input and of the array.
    """
    is_lhs = layer.rhs is None
    contracted, batched = (pair[int(is_lhs)] for pair in layer.dimension_numbers)
    own: list[int | None] = [
        axis for axis in range(ndims[0]) if axis not in (*contracted, *batched)
    ]
    others: list[int | None] = [None] * (ndims[1] - len(contracted) - len(batched))
    return [*batched, *(others + own if is_lhs else own + others)]


@rule.register
def index_steps(layer: stax.Index, spec: Spec, context: Context) -> list[Stage]:
    items = _spatial_items(layer, spec)
    try:
        shape = np.broadcast_to(np.zeros(()), spec.shape)[items].shape
    except IndexError as error:
        raise ValueError(f"{layer!r}: {error}") from None
    if 0 in shape:
        raise ValueError(
            f"{layer!r} leaves nothing of the spatial axes, of sizes {spec.shape}"
        )
    index = (slice(None), *items)
    out = dataclasses.replace(spec, shape=shape)

    def apply(params, f: Features) -> Features:
        return Features(f.nngp[index], f.ntk[index], f.norm2[index])

    floats = spec.floats() + out.floats()
    return [Stage(repr(layer), out, apply, floats=floats)]


def _spatial_items(layer: stax.Index, spec: Spec) -> tuple[Any, ...]:
    """The indices of the spatial axes."""
    ndim = len(spec.shape) + 2
    items = list(layer.slices)
    fills = slice(None)
    if Ellipsis in items:
        where = items.index(Ellipsis)
        items[where : where + 1] = [fills] * (ndim - len(items) + 1)
    items += [fills] * (ndim - len(items))
    channels = layer.channel_axis % ndim
    if len(items) > ndim or not all(_is_whole(items[i]) for i in (0, channels)):
        raise ValueError(
            f"{layer!r}: idx must have at most {ndim} entries, and : for the batch, "
            f"axis 0, and the channels, axis {channels}"
        )
    return tuple(item for i, item in enumerate(items) if i not in (0, channels))


def _is_whole(item: Any) -> bool:
    return isinstance(item, slice) and item == slice(None)


def _check_rank(layer: stax.ConvTranspose | stax.ConvLocal, spec: Spec) -> None:
    rank = len(layer.filter_shape)
    if len(spec.shape) != rank:
        raise ValueError(
            f"{layer!r} needs {rank} spatial axes, but there are {len(spec.shape)}, of "
            f"sizes {spec.shape}: examples must be images (h, w, c) or signals (t, c)"
        )
