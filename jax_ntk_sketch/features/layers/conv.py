"""Convolutions: linear, so exact on features, and kept as windows over the image."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch.features.layers._spatial import _check_window
from jax_ntk_sketch.features.patches import materialize_patches, sketch_width
from jax_ntk_sketch.features.state import (
    ExactColumns,
    Features,
    Spec,
    dropout_variance,
    with_feature_norms,
)
from jax_ntk_sketch.features.step import Context, Step, layer_rule
from jax_ntk_sketch.methods import Exact
from jax_ntk_sketch.sketch import SRHT, Window


@layer_rule.register
def conv_transpose_steps(
    layer: stax.ConvTranspose, spec: Spec, context: Context
) -> list[Step]:
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
    stuffed = dataclasses.replace(
        spec, min_cosine=min(spec.min_cosine, 0.0), shape=shape
    )

    def apply(params, f: Features) -> Features:
        norm2 = spread(f.nngp_diag[..., None])[..., 0]
        return Features(spread(f.nngp), spread(f.ntk), norm2)

    floats = spec.live_elements() + stuffed.live_elements()
    first = Step(
        name="zeros between pixels", spec=stuffed, apply=apply, live_elements=floats
    )
    conv = stax.Conv(
        layer.out_chan,
        layer.filter_shape,
        W_std=layer.W_std,
        b_std=layer.b_std,
        parameterization=layer.parameterization,
        s=layer.s,
    )
    behind = layer_rule(conv, stuffed, context)
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


@layer_rule.register
def conv_local_steps(layer: stax.ConvLocal, spec: Spec, context: Context) -> list[Step]:
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
    stages = layer_rule(conv, spec, context)
    if stages[-1].single_spec.window:
        stages.append(materialize_patches(stages[-1].single_spec, context))
    stages[0] = dataclasses.replace(stages[0], name=repr(layer))
    return [*stages, _decorrelate_positions(stages[-1].single_spec, context)]


def _decorrelate_positions(spec: Spec, context: Context) -> Step:
    """Features that are orthogonal between positions.

    Each position has columns of its own where they fit the width. Elsewhere it has a
    sketch of its own, whose random signs make products with others zero on average.
    """
    pixels = spec.pixels
    kinds = spec.kinds
    width = sketch_width(context)
    whole = {
        kind: isinstance(context.method, Exact)
        or pixels == 1
        or pixels * spec.dim(kind) <= width
        for kind in kinds
    }
    parts = {kind: SRHT(spec.dim(kind), width) for kind in kinds if not whole[kind]}
    columns = {
        kind: pixels * spec.dim(kind) if whole[kind] else width for kind in kinds
    }
    out = dataclasses.replace(
        spec,
        nngp_dim=columns["nngp"],
        ntk_dim=columns.get("ntk", 0),
        # Cosines between positions are zero up to the noise of the sketches.
        min_cosine=min(spec.min_cosine, 0.0 if all(whole.values()) else -1.0),
        norms_from_features=spec.norms_from_features or "nngp" in parts,
        exact_columns=ExactColumns(),
    )

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, (2, pixels))
        return {
            kind: jax.vmap(part.init)(own)
            for (kind, part), own in zip(parts.items(), keys, strict=False)
        }

    def one(params: Any, kind: Kind, x: jax.Array) -> jax.Array:
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
            return Features(nngp, ntk, f.nngp_diag)
        return with_feature_norms(
            nngp, ntk, dropout_variance(f) if spec.after_dropout else 0.0
        )

    flops = pixels * sum(part.flops for part in parts.values()) + out.live_elements()
    floats = spec.live_elements() + out.live_elements()
    return Step(
        name="positions apart",
        spec=out,
        apply=apply,
        init=init,
        flops=flops,
        live_elements=floats,
    )


def _check_rank(layer: stax.ConvTranspose | stax.ConvLocal, spec: Spec) -> None:
    rank = len(layer.filter_shape)
    if len(spec.shape) != rank:
        raise ValueError(
            f"{layer!r} needs {rank} spatial axes, but there are {len(spec.shape)}, of "
            f"sizes {spec.shape}: examples must be images (h, w, c) or signals (t, c)"
        )


@layer_rule.register
def conv_steps(layer: stax.Conv, spec: Spec, context: Context) -> list[Step]:
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
        (stage,) = layer_rule(dense, spec, context)
        return [dataclasses.replace(stage, name=repr(layer))]
    scale = layer.W_std / math.sqrt(window.size)
    b_std = layer.b_std or 0.0
    standard = layer.parameterization == "standard"
    # Of the NNGP features among those of the NTK; the filter's size is in the mean.
    appended = math.sqrt(spec.finite_channels / layer.s[0]) if standard else scale
    out = dataclasses.replace(
        spec,
        ntk_dim=spec.ntk_dim + spec.nngp_dim if context.wants_ntk else 0,
        gaussian=True,
        exact_columns=spec.exact_columns.joined(spec)
        if context.wants_ntk
        else spec.exact_columns,
        min_cosine=min(spec.min_cosine, 0.0),
        window=window,
        bias=b_std,
        ntk_bias=float(b_std > 0) if standard else b_std,
        finite_channels=layer.out_chan * layer.s[1],
    )

    def apply(params, f: Features) -> Features:
        nngp = scale * f.nngp
        ntk = f.ntk
        if context.wants_ntk:
            ntk = jnp.concatenate([scale * ntk, appended * f.nngp], axis=-1)
        norm2 = scale**2 * window.sum(f.nngp_diag[..., None])[..., 0] + b_std**2
        return Features(nngp, ntk, norm2)

    floats = spec.live_elements() + out.live_elements()
    return [
        Step(
            name=repr(layer),
            spec=out,
            apply=apply,
            flops=out.live_elements(),
            live_elements=floats,
        )
    ]
