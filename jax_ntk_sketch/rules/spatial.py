"""Layers over spatial axes: linear, so exact on features."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch.methods import Exact
from jax_ntk_sketch.rules.graph import check_mask
from jax_ntk_sketch.rules.patches import sketch_width, sketched
from jax_ntk_sketch.rules.stage import (
    Context,
    Features,
    Spec,
    Stage,
    excess,
    own_norms,
    rule,
)
from jax_ntk_sketch.sketch import Window

__all__ = ["check_spatial"]


@rule.register
def conv_steps(layer: stax.Conv, spec: Spec, context: Context) -> list[Stage]:
    """With A the mean over the pixels of two patches, at equal offsets:
    NNGP' = W² A NNGP + b² and NTK' = W² A NTK + NNGP'. On features the mean is a direct
    sum over offsets, which stays a window over the image.
    """
    window = Window(layer.filter_shape, layer.strides, layer.padding, layer.dilation)
    _check_window(layer, window, spec)
    if window.trivial:
        dense = stax.Dense(
            layer.out_chan, layer.W_std, layer.b_std, layer.parameterization, layer.s
        )
        (stage,) = rule(dense, spec, context)
        return [dataclasses.replace(stage, name=repr(layer))]
    scale = layer.W_std / math.sqrt(window.size)
    b_std = layer.b_std or 0.0
    standard = layer.parameterization == "standard"
    # Of the NNGP features among those of the NTK; the filter's size is in the mean.
    appended = math.sqrt(spec.width / layer.s[0]) if standard else scale
    out = dataclasses.replace(
        spec,
        ntk=spec.ntk + spec.nngp if context.ntk else 0,
        gaussian=True,
        carried=spec.carried.joined(spec) if context.ntk else spec.carried,
        low=min(spec.low, 0.0),
        window=window,
        bias=b_std,
        ntk_bias=float(b_std > 0) if standard else b_std,
        width=layer.out_chan * layer.s[1],
    )

    def apply(params, f: Features) -> Features:
        nngp = scale * f.nngp
        ntk = f.ntk
        if context.ntk:
            ntk = jnp.concatenate([scale * ntk, appended * f.nngp], axis=-1)
        norm2 = scale**2 * window.sum(f.norm2[..., None])[..., 0] + b_std**2
        return Features(nngp, ntk, norm2)

    floats = spec.floats() + out.floats()
    return [Stage(repr(layer), out, apply, flops=out.floats(), floats=floats)]


@rule.register(stax.AvgPool)
@rule.register(stax.SumPool)
def pool_steps(
    layer: stax.AvgPool | stax.SumPool, spec: Spec, context: Context
) -> list[Stage]:
    window = Window(layer.window_shape, layer.strides, layer.padding)
    _check_window(layer, window, spec)
    out = dataclasses.replace(
        spec,
        low=min(spec.low, 0.0),
        shape=window.output_shape(spec.shape),
        own_norms=True,
    )

    def pool(x: jax.Array, power: int = 1) -> jax.Array:
        """With this power of the weights."""
        total = window.sum(x)
        if isinstance(layer, stax.SumPool):
            return total
        if layer.normalize_edges:
            return total / window.sum(jnp.ones((*spec.shape, 1), x.dtype)) ** power
        return total * jnp.asarray(window.size**-power, x.dtype)

    def apply(params, f: Features) -> Features:
        more = pool(excess(f)[..., None], 2)[..., 0] if spec.dropped else 0.0
        return own_norms(pool(f.nngp), pool(f.ntk), more)

    floats = spec.floats() + out.floats()
    flops = 2 * spec.floats() + 2 * out.floats()
    return [Stage(repr(layer), out, apply, flops=flops, floats=floats)]


@rule.register(stax.GlobalAvgPool)
@rule.register(stax.GlobalSumPool)
def global_pool_steps(
    layer: stax.GlobalAvgPool | stax.GlobalSumPool, spec: Spec, context: Context
) -> list[Stage]:
    """With a mask of the nodes of padded graphs, over those that exist."""
    check_spatial(layer, spec)
    out = dataclasses.replace(spec, low=min(spec.low, 0.0), shape=(), own_norms=True)
    mean = isinstance(layer, stax.GlobalAvgPool)
    axes = tuple(range(1, 1 + len(spec.shape)))

    def apply(params, f: Features, mask: jax.Array | None = None) -> Features:
        count: Any = spec.pixels if mean else 1
        if mask is not None:
            check_mask(mask, (len(f.nngp), *spec.shape))
            count = jnp.maximum(mask.sum(axes), 1)[:, None] if mean else 1

        def reduced(x: jax.Array) -> jax.Array:
            if mask is None:
                return jnp.mean(x, axes) if mean else jnp.sum(x, axes)
            return jnp.where(mask[..., None], x, 0).sum(axes) / count

        more: jax.Array | float = 0.0
        if spec.dropped:
            more = (reduced(excess(f)[..., None]) / count)[..., 0]
        return own_norms(reduced(f.nngp), reduced(f.ntk), more)

    floats = spec.floats() + out.floats()
    flops = spec.floats()
    name = repr(layer)
    return [Stage(name, out, apply, flops=flops, floats=floats, takes=("mask",))]


@rule.register
def flatten_steps(layer: stax.Flatten, spec: Spec, context: Context) -> list[Stage]:
    """The mean over positions, of both kernels: a direct sum over all of them.

    It is formed where it fits the width, or costs no columns of ours (before the first
    nonlinear layer); elsewhere it is sketched.
    """
    if not spec.shape:
        return []
    scale = spec.pixels**-0.5
    flat = dataclasses.replace(spec, low=min(spec.low, 0.0), shape=())
    whole = spec.raw or isinstance(context.method, Exact)
    if whole or spec.pixels * spec.nngp <= sketch_width(context):
        nngp, ntk = spec.pixels * spec.nngp, spec.pixels * spec.ntk
        carried = spec.carried.repeated(spec, spec.pixels)
        name, sketch = "Flatten", None
    else:  # the image is one patch
        sketch = sketched(dataclasses.replace(spec, window=Window(spec.shape)), context)
        nngp, ntk = sketch.spec.nngp, sketch.spec.ntk
        carried = sketch.spec.carried
        name = "Flatten (SRHT)"
    out = dataclasses.replace(
        flat, nngp=nngp, ntk=ntk, carried=carried, width=spec.width * spec.pixels
    )

    def apply(params, f: Features) -> Features:
        norm2 = f.norm2.mean(axis=tuple(range(1, f.norm2.ndim)))
        factor = jnp.asarray(scale, f.nngp.dtype)
        f = Features(f.nngp * factor, f.ntk * factor, norm2)
        if sketch is not None:
            f = sketch.apply(params, f)
        n = len(norm2)
        return Features(f.nngp.reshape(n, nngp), f.ntk.reshape(n, ntk), norm2)

    floats = 2 * spec.floats() + out.floats()
    if sketch is None:
        return [Stage(name, out, apply, flops=spec.floats(), floats=floats)]
    flops = spec.floats() + sketch.flops
    return [Stage(name, out, apply, sketch.init, flops, floats)]


def _check_window(layer: stax.Layer, window: Window, spec: Spec) -> None:
    check_spatial(layer, spec)
    try:
        window.output_shape(spec.shape)
    except ValueError as error:
        raise ValueError(f"{layer!r}: {error}") from None


def check_spatial(layer: stax.Layer, spec: Spec) -> None:
    """Refuses features without spatial axes."""
    if not spec.shape:
        raise ValueError(
            f"{layer!r} needs spatial axes, but there are none: examples must be "
            "images (h, w, c) or signals (t, c), and Flatten or a global pooling "
            "layer removes the axes"
        )
