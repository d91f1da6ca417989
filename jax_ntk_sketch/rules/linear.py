"""Linear layers: exact for every method, since they act on features linearly."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch.kernels.arc_cosine import safe_root
from jax_ntk_sketch.methods import Exact
from jax_ntk_sketch.rules.patches import settled
from jax_ntk_sketch.rules.stage import (
    Branches,
    Context,
    Features,
    Spec,
    Stage,
    constant,
    rule,
)

__all__: list[str] = []

# Layers that do not care about patches, or do something better with them.
_KEEP_PATCHES = (
    stax.Serial,
    stax.Identity,
    stax.Activation,
    stax.FanOut,
)


@rule.register
def identity_steps(layer: stax.Identity, spec: Spec, context: Context) -> list[Stage]:
    return []


@rule.register
def serial_steps(layer: stax.Serial, spec: Spec, context: Context) -> list[Stage]:
    stages: list[Stage] = []
    for inner in layer.layers:
        before = stages[-1].spec if stages else spec
        _check_branches(inner, before)
        if isinstance(before, Branches):
            stages += rule(inner, before, context)
            continue
        if before.window and not isinstance(inner, _KEEP_PATCHES):
            stages.append(settled(before, context))
            before = stages[-1].spec
        stages += rule(inner, before, context)
    return stages


def _check_branches(layer: stax.Layer, spec: Spec | Branches) -> None:
    joins = isinstance(layer, stax.Parallel | stax.FanIn)
    passes = joins or isinstance(layer, stax.Serial | stax.Identity)
    if isinstance(spec, Branches) and not passes:
        raise ValueError(
            f"{layer!r} follows {len(spec.specs)} branches, but takes one input: join "
            "them by FanInSum, FanInProd or FanInConcat, or put layers on each by "
            "parallel"
        )
    if joins and not isinstance(spec, Branches):
        raise ValueError(
            f"{layer!r} needs branches, but one input enters it: put FanOut(n) before "
            "it"
        )


@rule.register
def dense_steps(layer: stax.Dense, spec: Spec, context: Context) -> list[Stage]:
    """NNGP' = W² NNGP + b² and NTK' = W² NTK + NNGP': scale, and append columns.

    In the standard parameterization NTK' = W² NTK + width NNGP + 1, without the 1 if
    there is no bias, and with the width of the finite network that enters.
    """
    standard = layer.parameterization == "standard"
    bias = 1 if layer.b_std else 0
    nngp = spec.nngp + bias
    ntk = spec.ntk + nngp if context.ntk else 0
    carried = spec.carried
    if bias:
        carried = carried._replace(constants=(*carried.constants, spec.nngp))
    if context.ntk:
        carried = carried.joined(spec)
    out = dataclasses.replace(
        spec,
        nngp=nngp,
        ntk=ntk,
        gaussian=True,
        carried=carried,
        width=layer.out_dim * layer.s[1],
    )

    def apply(params, f: Features) -> Features:
        nngp = layer.W_std * f.nngp
        norm2 = layer.W_std**2 * f.norm2
        if layer.b_std:
            nngp = jnp.concatenate([nngp, constant(nngp, layer.b_std)], axis=-1)
            norm2 = norm2 + layer.b_std**2
        if not context.ntk:
            return Features(nngp, f.ntk, norm2)
        appended = nngp
        if standard:
            appended = f.nngp * math.sqrt(spec.width / layer.s[0])
            if bias:
                appended = jnp.concatenate([appended, constant(nngp, 1.0)], axis=-1)
        ntk = jnp.concatenate([layer.W_std * f.ntk, appended], axis=-1)
        return Features(nngp, ntk, norm2)

    floats = spec.floats() + out.floats()
    return [Stage(repr(layer), out, apply, flops=out.floats(), floats=floats)]


@rule.register
def layer_norm_steps(
    layer: stax.LayerNorm, spec: Spec, context: Context
) -> list[Stage]:
    """Both kernels over the root of their variances; gradients see these as constant.

    That is the infinite-width limit that Neural Tangents defines.
    """
    if not spec.gaussian:
        raise ValueError(
            "LayerNorm must follow a linear layer such as Conv or Dense (its inputs "
            "must be Gaussian), but it follows the input or a nonlinear layer"
        )
    axes = _normalised_axes(layer, spec, context)

    def apply(params, f: Features) -> Features:
        variance = f.norm2.mean(axis=axes, keepdims=True) if axes else f.norm2
        total = variance + jnp.asarray(layer.eps, f.norm2.dtype)
        scale = jax.lax.rsqrt(total)[..., None]
        return Features(f.nngp * scale, f.ntk * scale, f.norm2 / total)

    floats = 2 * spec.floats()
    return [Stage(repr(layer), spec, apply, flops=spec.floats(), floats=floats)]


def _normalised_axes(
    layer: stax.LayerNorm, spec: Spec, context: Context
) -> tuple[int, ...]:
    """The axes of `norm2` that the variance is taken over, besides the channels."""
    if isinstance(layer.axis, int):
        return ()
    ndim = 2 + len(spec.shape)
    channels = context.channel_axis % ndim if spec.shape else 1
    if any(not -ndim <= axis < ndim or axis % ndim == 0 for axis in layer.axis):
        raise ValueError(
            f"{layer!r}: features have {ndim} axes here, the batch included, which "
            "cannot be normalised over"
        )
    axes = {axis % ndim for axis in layer.axis}
    if channels not in axes:
        raise ValueError(
            f"{layer!r}: axis must hold the channels, axis {channels}: only over many "
            "of them a variance is not random"
        )
    return tuple(sorted(axis - (axis > channels) for axis in axes - {channels}))


@rule.register
def dropout_steps(layer: stax.Dropout, spec: Spec, context: Context) -> list[Stage]:
    """Variances over the rate; the kernel between two draws is what it was.

    Exact features show what is dropped of an example to itself: a column of its own for
    each position of each example.
    """
    if layer.mode == "test" or layer.rate == 1:
        return []
    if spec.raw and not spec.gaussian:
        raise ValueError(
            "Dropout cannot follow the input, which has no limit of many channels; "
            "put a linear layer before it"
        )
    rows = context.batch * spec.pixels if isinstance(context.method, Exact) else 0
    out = dataclasses.replace(
        spec,
        nngp=spec.nngp + rows,
        gaussian=False,
        low=min(spec.low, layer.rate * spec.low),
        dropped=not rows,
    )

    def apply(params, f: Features) -> Features:
        norm2 = f.norm2 / layer.rate
        if not rows:
            return f._replace(norm2=norm2)
        columns = jnp.diag(safe_root(norm2 - f.norm2).reshape(-1))
        columns = columns.reshape(*norm2.shape, rows)
        return Features(jnp.concatenate([f.nngp, columns], axis=-1), f.ntk, norm2)

    return [Stage(repr(layer), out, apply, floats=spec.floats() + out.floats())]
