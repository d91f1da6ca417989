"""Layers that move or mix positions: linear, so exact on features."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Array, PyTree
from jax_ntk_sketch.features.patches import sketch_patches
from jax_ntk_sketch.features.state import (
    Features,
    PatchWindow,
    Spec,
    after_weighted_sum,
    mix_positions,
)
from jax_ntk_sketch.features.step import Context, Step, layer_rule, linear_step
from jax_ntk_sketch.sketch import Window


@layer_rule.register
def identity_steps(layer: stax.Identity, spec: Spec, context: Context) -> list[Step]:
    """Return no steps."""
    return []


@layer_rule.register
def flatten_steps(layer: stax.Flatten, spec: Spec, context: Context) -> list[Step]:
    """The mean over positions of both kernels: a direct sum over all of them.

    It is formed if it fits, or if there was no activation yet. Otherwise it is
    sketched, with the image as one patch.
    """
    if not spec.shape:
        return []
    sketch = None
    nngp_dim, ntk_dim = spec.pixels * spec.nngp_dim, spec.pixels * spec.ntk_dim
    exact_columns = spec.exact_columns.repeated(spec, spec.pixels)
    formed = spec.before_activations or context.keeps_all_columns
    if not formed and nngp_dim > context.sketch_columns:
        image = dataclasses.replace(spec, patches=PatchWindow(Window(spec.shape)))
        sketch = sketch_patches(image, context)
        nngp_dim, ntk_dim = sketch.spec.nngp_dim, sketch.spec.ntk_dim
        exact_columns = sketch.single_spec.exact_columns
    out = dataclasses.replace(
        spec,
        nngp_dim=nngp_dim,
        ntk_dim=ntk_dim,
        min_cosine=min(spec.min_cosine, 0.0),
        shape=(),
        exact_columns=exact_columns,
        finite_channels=spec.finite_channels * spec.pixels,
    )

    def apply(params: PyTree, f: Features) -> Features:
        variance = f.nngp_diag.mean(axis=tuple(range(1, f.nngp_diag.ndim)))
        scale = jnp.asarray(spec.pixels**-0.5, f.nngp.dtype)
        f = Features(f.nngp * scale, f.ntk * scale, variance)
        if sketch is not None:
            f = sketch.apply(params, f)
        n = variance.shape[0]
        return Features(
            f.nngp.reshape(n, nngp_dim), f.ntk.reshape(n, ntk_dim), variance
        )

    elements = spec.live_elements()
    step = linear_step(
        "Flatten", spec, out, apply, work_elements=elements, flops=elements
    )
    if sketch is not None:
        flops = elements + sketch.flops
        step = dataclasses.replace(
            step, name="Flatten (SRHT)", init=sketch.init, flops=flops
        )
    return [step]


@layer_rule.register
def image_resize_steps(
    layer: stax.ImageResize, spec: Spec, context: Context
) -> list[Step]:
    """Return the step of weighted sums along each axis.

    Raises:
      ValueError: `shape` has another number of axes than the input.
    """
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

    def resize(x: Array) -> Array:
        size = (x.shape[0], *shape, x.shape[-1])
        return jax.image.resize(x, size, layer.method, layer.antialias, precision)

    def resize_squared(x: Array) -> Array:
        """Return the sums with squared weights, which are products over the axes."""
        for axis, (old, new) in enumerate(zip(spec.shape, shape, strict=True), 1):
            identity = jnp.eye(old, dtype=x.dtype)
            weights = jax.image.resize(
                identity, (old, new), layer.method, layer.antialias, precision
            )
            x = jnp.tensordot(x, weights**2, (axis, 0), precision=precision)
            x = jnp.moveaxis(x, -1, axis)
        return x

    def apply(params: PyTree, f: Features) -> Features:
        return mix_positions(spec, f, resize, resize_squared)

    # At most the product with a matrix for each axis.
    longest = sum(max(pair) for pair in zip(spec.shape, shape, strict=True))
    flops = 2 * longest * max(spec.live_elements(), out.live_elements())
    return [linear_step(repr(layer), spec, out, apply, flops=flops)]


@layer_rule.register
def dot_general_steps(
    layer: stax.DotGeneral, spec: Spec, context: Context
) -> list[Step]:
    """Return the step of the product with the array.

    Raises:
      ValueError: the axes do not fit, or batch or channels do not stay where they are.
    """
    if layer.lhs is None and layer.rhs is None:
        return []
    array_is_left = layer.rhs is None
    array = np.asarray(layer.lhs if array_is_left else layer.rhs)
    ndim = 2 + len(spec.shape)
    axis = layer.channel_axis % ndim if spec.shape else 1
    origins = _output_axes(layer, ndim, array.ndim)
    channels = origins.index(axis) if axis in origins else None
    if origins[0] != 0 or channels != layer.channel_axis % len(origins):
        raise ValueError(
            f"{layer!r}: dimension_numbers must leave the batch on axis 0 and the "
            f"channels on axis {layer.channel_axis}, but the output has the axes "
            f"{origins} of the input (None: of the array), and the channels are on "
            f"axis {axis} of the input"
        )
    precision = jax.lax.Precision[(layer.precision or "default").upper()]

    def multiply(x: Array, array: np.ndarray = array) -> Array:
        left, right = jnp.moveaxis(x, -1, axis), jnp.asarray(array, x.dtype)
        if array_is_left:
            left, right = right, left
        numbers = layer.dimension_numbers
        out = jax.lax.dot_general(left, right, numbers, precision)
        return jnp.moveaxis(out, channels, -1)

    def multiply_squared(x: Array) -> Array:
        return multiply(x, array**2)

    try:
        example = jax.ShapeDtypeStruct((1, *spec.shape, 1), jnp.float32)
        shape = jax.eval_shape(multiply, example).shape[1:-1]
    except TypeError as error:
        raise ValueError(f"{layer!r} on positions {spec.shape}: {error}") from None
    out = after_weighted_sum(spec, signed=bool((array < 0).any()))
    sums = layer.dimension_numbers[0] != ((), ())
    if not sums:
        out = dataclasses.replace(out, norms_from_features=spec.norms_from_features)
    out = dataclasses.replace(out, shape=shape)

    def apply(params: PyTree, f: Features) -> Features:
        if sums:
            return mix_positions(spec, f, multiply, multiply_squared)
        variance = multiply_squared(f.nngp_diag[..., None])[..., 0]
        return Features(multiply(f.nngp), multiply(f.ntk), variance)

    flops = 2 * array.size * (spec.live_elements() + out.live_elements())
    return [linear_step(repr(layer), spec, out, apply, flops=flops)]


def _output_axes(
    layer: stax.DotGeneral, ndim: int, array_ndim: int
) -> list[int | None]:
    """Return the axis of the input for each axis of the output; None for the array's.

    Args:
      layer: the record.
      ndim, array_ndim: the number of axes of the input and of the array.
    """
    array_is_left = layer.rhs is None
    contracted, batched = (pair[int(array_is_left)] for pair in layer.dimension_numbers)
    free: list[int | None] = [
        axis for axis in range(ndim) if axis not in (*contracted, *batched)
    ]
    free_of_array: list[int | None] = [None] * (
        array_ndim - len(contracted) - len(batched)
    )
    if array_is_left:
        return [*batched, *free_of_array, *free]
    return [*batched, *free, *free_of_array]


@layer_rule.register
def index_steps(layer: stax.Index, spec: Spec, context: Context) -> list[Step]:
    """Return the step that takes positions.

    Raises:
      ValueError: the index does not fit the axes, or takes no positions.
    """
    entries = _spatial_entries(layer, spec)
    try:
        shape = np.broadcast_to(np.zeros(()), spec.shape)[entries].shape
    except IndexError as error:
        raise ValueError(f"{layer!r}: {error}") from None
    if 0 in shape:
        raise ValueError(
            f"{layer!r}: idx must take positions, but it takes none of the spatial "
            f"axes, of sizes {spec.shape}"
        )
    index = (slice(None), *entries)
    out = dataclasses.replace(spec, shape=shape)

    def apply(params: PyTree, f: Features) -> Features:
        return Features(f.nngp[index], f.ntk[index], f.nngp_diag[index])

    return [linear_step(repr(layer), spec, out, apply)]


def _spatial_entries(layer: stax.Index, spec: Spec) -> tuple[Any, ...]:
    """Return the entries of the index for the spatial axes."""
    ndim = len(spec.shape) + 2
    entries = list(layer.slices)
    whole = slice(None)
    if Ellipsis in entries:
        i = entries.index(Ellipsis)
        entries[i : i + 1] = [whole] * (ndim - len(entries) + 1)
    entries += [whole] * (ndim - len(entries))
    channels = layer.channel_axis % ndim
    if len(entries) > ndim or any(entries[i] != whole for i in (0, channels)):
        raise ValueError(
            f"{layer!r}: idx must have at most {ndim} entries, and : for the batch, "
            f"axis 0, and the channels, axis {channels}"
        )
    return tuple(item for i, item in enumerate(entries) if i not in (0, channels))
