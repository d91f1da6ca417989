"""Convolutions: linear, so exact on features, and kept as windows over the image."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import is_zero
from jax_ntk_sketch._typing import KINDS, Array, Key, Kind, PyTree
from jax_ntk_sketch.features.layers._spatial import check_spatial, check_window
from jax_ntk_sketch.features.patches import materialize_patches
from jax_ntk_sketch.features.state import (
    ExactColumns,
    Features,
    PatchWindow,
    Spec,
    by_position,
    dropout_variance,
    with_feature_norms,
)
from jax_ntk_sketch.features.step import Context, Step, layer_rule, linear_step
from jax_ntk_sketch.sketch import SRHT, Window
from jax_ntk_sketch.stax.scales import recast


@layer_rule.register
def conv_steps(layer: stax.Conv, spec: Spec, context: Context) -> list[Step]:
    """NNGP' = W² A NNGP + b² and NTK' = W² A NTK + NNGP'.

    A is the mean over the pixels of two patches at equal offsets. On features it is a
    direct sum over offsets, which stays a window over the image.
    """
    window = Window(layer.filter_shape, layer.strides, layer.padding, layer.dilation)
    check_window(layer, window, spec)
    if window.trivial:
        dense = recast(layer, stax.Dense, out_dim=layer.out_chan)
        (step,) = layer_rule(dense, spec, context)
        return [dataclasses.replace(step, name=repr(layer))]
    scale = layer.W_std / math.sqrt(window.size)
    b_std = 0.0 if layer.b_std is None else layer.b_std
    # The NTK features get the NNGP features appended. In the standard parameterization
    # the size of the filter is in the mean already.
    appended_scale, ntk_bias = scale, b_std
    if layer.parameterization == "standard":
        appended_scale = math.sqrt(spec.finite_channels / layer.s[0])
        ntk_bias = float(not is_zero(layer.b_std))
    exact = spec.exact_columns
    out = dataclasses.replace(
        spec,
        ntk_dim=spec.ntk_dim + spec.nngp_dim if context.wants_ntk else 0,
        gaussian=True,
        min_cosine=min(spec.min_cosine, 0.0),
        patches=PatchWindow(window, b_std, ntk_bias),
        exact_columns=exact.with_nngp_appended(spec.ntk_dim)
        if context.wants_ntk
        else exact,
        finite_channels=layer.out_chan * layer.s[1],
    )

    def apply(params: PyTree, f: Features) -> Features:
        ntk = f.ntk
        if context.wants_ntk:
            ntk = jnp.concatenate([scale * ntk, appended_scale * f.nngp], axis=-1)
        variance = scale**2 * window.sum(f.nngp_diag[..., None])[..., 0] + b_std**2
        return Features(scale * f.nngp, ntk, variance)

    flops = out.live_elements()
    return [linear_step(repr(layer), spec, out, apply, flops=flops)]


@layer_rule.register
def conv_local_steps(layer: stax.ConvLocal, spec: Spec, context: Context) -> list[Step]:
    """The kernels of a convolution between equal positions, and 0 between others."""
    check_spatial(layer, spec, len(layer.filter_shape))
    steps = layer_rule(_as_conv(layer), spec, context)
    steps[0] = dataclasses.replace(steps[0], name=repr(layer))
    if steps[-1].single_spec.patches:
        steps.append(materialize_patches(steps[-1].single_spec, context))
    return [*steps, _decorrelate_positions(steps[-1].single_spec, context)]


def _as_conv(layer: stax.ConvLocal | stax.ConvTranspose) -> stax.Conv:
    """Return the convolution with the arguments of a layer."""
    return recast(layer, stax.Conv)


def _decorrelate_positions(spec: Spec, context: Context) -> Step:
    """Return the step that makes features orthogonal between positions.

    Each position has columns of its own if these fit. Otherwise it has a sketch of its
    own, whose random signs make products with others zero on average.
    """
    pixels = spec.pixels
    sketch_dim = context.sketch_columns
    sketches = {
        kind: SRHT(spec.dim(kind), sketch_dim)
        for kind in spec.kinds
        if not context.keeps_all_columns
        and pixels > 1
        and pixels * spec.dim(kind) > sketch_dim
    }
    dims = {
        kind: sketch_dim if kind in sketches else pixels * spec.dim(kind)
        for kind in KINDS
    }
    out = dataclasses.replace(
        spec,
        nngp_dim=dims["nngp"],
        ntk_dim=dims["ntk"],
        # Cosines between positions are zero, up to the noise of sketches.
        min_cosine=-1.0 if sketches else min(spec.min_cosine, 0.0),
        norms_from_features=spec.norms_from_features or "nngp" in sketches,
        exact_columns=ExactColumns(),
    )

    def init(key: Key) -> dict[Kind, PyTree]:
        keys = jax.random.split(key, (2, pixels))
        pairs = zip(sketches.items(), keys, strict=False)
        return {kind: jax.vmap(sketch.init)(own) for (kind, sketch), own in pairs}

    def decorrelate(kind: Kind, params: dict[Kind, PyTree], x: Array) -> Array:
        rows = by_position(x)
        if kind in sketches:
            apply_each = jax.vmap(sketches[kind].apply, in_axes=(0, 1), out_axes=1)
            rows = apply_each(params[kind], rows)
        elif dims[kind]:
            identity = jnp.eye(pixels, dtype=x.dtype)
            rows = rows[:, :, None, :] * identity[None, :, :, None]
        return rows.reshape(*x.shape[:-1], dims[kind])

    def apply(params: dict[Kind, PyTree], f: Features) -> Features:
        nngp = decorrelate("nngp", params, f.nngp)
        ntk = decorrelate("ntk", params, f.ntk)
        if "nngp" not in sketches:
            return Features(nngp, ntk, f.nngp_diag)
        extra = dropout_variance(f) if spec.after_dropout else 0.0
        return with_feature_norms(nngp, ntk, extra)

    flops = pixels * sum(sketch.flops for sketch in sketches.values())
    flops += out.live_elements()
    return linear_step("positions apart", spec, out, apply, init=init, flops=flops)


@layer_rule.register
def conv_transpose_steps(
    layer: stax.ConvTranspose, spec: Spec, context: Context
) -> list[Step]:
    """A convolution of the image with zeros between its pixels and around it."""
    check_spatial(layer, spec, len(layer.filter_shape))
    strides = layer.strides or (1,) * len(layer.filter_shape)
    borders = [
        _border(layer.padding, size, stride)
        for size, stride in zip(layer.filter_shape, strides, strict=True)
    ]
    wraps = layer.padding == "CIRCULAR"

    def spread(x: Array) -> Array:
        """Return x (n, *shape, c) with zeros, or a period of it if it is wrapped."""
        between = [(0, step - 1 if wraps else 0, step - 1) for step in strides]
        zero = jnp.zeros((), x.dtype)
        x = jax.lax.pad(x, zero, [(0, 0, 0), *between, (0, 0, 0)])
        mode = "wrap" if wraps else "constant"
        return jnp.pad(x, [(0, 0), *borders, (0, 0)], mode=mode)

    shape = tuple(
        (size - 1) * stride + 1 + (stride - 1) * wraps + sum(border)
        for size, stride, border in zip(spec.shape, strides, borders, strict=True)
    )
    min_cosine = min(spec.min_cosine, 0.0)
    padded = dataclasses.replace(spec, min_cosine=min_cosine, shape=shape)

    def apply(params: PyTree, f: Features) -> Features:
        variance = spread(f.nngp_diag[..., None])[..., 0]
        return Features(spread(f.nngp), spread(f.ntk), variance)

    first = linear_step("zeros between pixels", spec, padded, apply)
    conv = recast(layer, stax.Conv, strides=None, padding="VALID")
    rest = layer_rule(conv, padded, context)
    rest[-1] = dataclasses.replace(rest[-1], name=repr(layer))
    return [first, *rest]


def _border(padding: str, size: int, stride: int) -> tuple[int, int]:
    """Return the pixels before and after the image that make windows the outputs.

    With zeros they are those of `jax.lax.conv_transpose`. Wrapped around, the outputs
    of "VALID" are centered on the period.
    """
    if padding == "VALID":
        return size - 1, stride - 1 + max(size - stride, 0)
    if padding == "SAME":
        total = size + stride - 2
        before = size - 1 if stride > size - 1 else -(-total // 2)
        return before, total - before
    shift = max(size - stride, 0) // 2
    return size - 1 - shift, shift
