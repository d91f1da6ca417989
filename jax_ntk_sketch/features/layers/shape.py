"""Layers that move or mix positions: linear, so exact on features."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch.features.patches import sketch_patches, sketch_width
from jax_ntk_sketch.features.state import (
    Features,
    Spec,
    after_weighted_sum,
    dropout_variance,
    with_feature_norms,
)
from jax_ntk_sketch.features.step import Context, Step, layer_rule
from jax_ntk_sketch.methods import Exact
from jax_ntk_sketch.sketch import Window


@layer_rule.register
def identity_steps(layer: stax.Identity, spec: Spec, context: Context) -> list[Step]:
    return []


@layer_rule.register
def image_resize_steps(
    layer: stax.ImageResize, spec: Spec, context: Context
) -> list[Step]:
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
    out = dataclasses.replace(after_weighted_sum(spec, signed), shape=shape)
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
        more = squares(dropout_variance(f)) if spec.after_dropout else 0.0
        return with_feature_norms(resize(f.nngp), resize(f.ntk), more)

    floats = spec.live_elements() + out.live_elements()
    # At most a matrix for each axis.
    flops = (
        2
        * sum(max(a, b) for a, b in zip(spec.shape, shape, strict=True))
        * max(spec.live_elements(), out.live_elements())
    )
    return [
        Step(name=repr(layer), spec=out, apply=apply, flops=flops, live_elements=floats)
    ]


@layer_rule.register
def dot_general_steps(
    layer: stax.DotGeneral, spec: Spec, context: Context
) -> list[Step]:
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
    out = dataclasses.replace(after_weighted_sum(spec, signed), shape=shape)
    if not contracts:
        out = dataclasses.replace(out, norms_from_features=spec.norms_from_features)

    def apply(params, f: Features) -> Features:
        nngp, ntk = run(f.nngp), run(f.ntk)
        if not contracts:
            norm2 = run(f.nngp_diag[..., None], other**2)[..., 0]
            return Features(nngp, ntk, norm2)
        more = (
            run(dropout_variance(f)[..., None], other**2)[..., 0]
            if spec.after_dropout
            else 0.0
        )
        return with_feature_norms(nngp, ntk, more)

    floats = spec.live_elements() + out.live_elements()
    return [
        Step(
            name=repr(layer),
            spec=out,
            apply=apply,
            flops=2 * other.size * floats,
            live_elements=floats,
        )
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


@layer_rule.register
def index_steps(layer: stax.Index, spec: Spec, context: Context) -> list[Step]:
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
        return Features(f.nngp[index], f.ntk[index], f.nngp_diag[index])

    floats = spec.live_elements() + out.live_elements()
    return [Step(name=repr(layer), spec=out, apply=apply, live_elements=floats)]


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


@layer_rule.register
def flatten_steps(layer: stax.Flatten, spec: Spec, context: Context) -> list[Step]:
    """The mean over positions, of both kernels: a direct sum over all of them.

    It is formed where it fits the width, or costs no columns of ours (before the first
    nonlinear layer); elsewhere it is sketched.
    """
    if not spec.shape:
        return []
    scale = spec.pixels**-0.5
    flat = dataclasses.replace(spec, min_cosine=min(spec.min_cosine, 0.0), shape=())
    whole = spec.before_activations or isinstance(context.method, Exact)
    if whole or spec.pixels * spec.nngp_dim <= sketch_width(context):
        nngp, ntk = spec.pixels * spec.nngp_dim, spec.pixels * spec.ntk_dim
        carried = spec.exact_columns.repeated(spec, spec.pixels)
        name, sketch = "Flatten", None
    else:  # the image is one patch
        sketch = sketch_patches(
            dataclasses.replace(spec, window=Window(spec.shape)), context
        )
        nngp, ntk = sketch.single_spec.nngp_dim, sketch.single_spec.ntk_dim
        carried = sketch.single_spec.exact_columns
        name = "Flatten (SRHT)"
    out = dataclasses.replace(
        flat,
        nngp_dim=nngp,
        ntk_dim=ntk,
        exact_columns=carried,
        finite_channels=spec.finite_channels * spec.pixels,
    )

    def apply(params, f: Features) -> Features:
        norm2 = f.nngp_diag.mean(axis=tuple(range(1, f.nngp_diag.ndim)))
        factor = jnp.asarray(scale, f.nngp.dtype)
        f = Features(f.nngp * factor, f.ntk * factor, norm2)
        if sketch is not None:
            f = sketch.apply(params, f)
        n = len(norm2)
        return Features(f.nngp.reshape(n, nngp), f.ntk.reshape(n, ntk), norm2)

    floats = 2 * spec.live_elements() + out.live_elements()
    if sketch is None:
        return [
            Step(
                name=name,
                spec=out,
                apply=apply,
                flops=spec.live_elements(),
                live_elements=floats,
            )
        ]
    flops = spec.live_elements() + sketch.flops
    return [
        Step(
            name=name,
            spec=out,
            apply=apply,
            init=sketch.init,
            flops=flops,
            live_elements=floats,
        )
    ]
