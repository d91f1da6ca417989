"""Linear layers: exact for every method, since they act on features linearly."""

import dataclasses

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
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
def _(layer: stax.Identity, spec: Spec, context: Context) -> list[Stage]:
    return []


@rule.register
def _(layer: stax.Serial, spec: Spec, context: Context) -> list[Stage]:
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
def _(layer: stax.Dense, spec: Spec, context: Context) -> list[Stage]:
    """NNGP' = W² NNGP + b² and NTK' = W² NTK + NNGP': scale, and append columns."""
    bias = 1 if layer.b_std else 0
    nngp = spec.nngp + bias
    ntk = spec.ntk + nngp if context.ntk else 0
    carried = spec.carried
    if bias:
        carried = carried._replace(constants=(*carried.constants, spec.nngp))
    if context.ntk:
        carried = carried.joined(spec)
    out = dataclasses.replace(
        spec, nngp=nngp, ntk=ntk, gaussian=True, carried=carried, width=layer.out_dim
    )

    def apply(params, f: Features) -> Features:
        nngp = layer.W_std * f.nngp
        norm2 = layer.W_std**2 * f.norm2
        if layer.b_std:
            nngp = jnp.concatenate([nngp, constant(nngp, layer.b_std)], axis=-1)
            norm2 = norm2 + layer.b_std**2
        ntk = f.ntk
        if context.ntk:
            ntk = jnp.concatenate([layer.W_std * ntk, nngp], axis=-1)
        return Features(nngp, ntk, norm2)

    floats = spec.floats() + out.floats()
    return [Stage(repr(layer), out, apply, flops=out.floats(), floats=floats)]


@rule.register
def _(layer: stax.LayerNorm, spec: Spec, context: Context) -> list[Stage]:
    """Both kernels over the root of their variances; gradients see these as constant.

    That is the infinite-width limit that Neural Tangents defines.
    """
    if not spec.gaussian:
        raise ValueError(
            "LayerNorm must follow a linear layer such as Conv or Dense (its inputs "
            "must be Gaussian), but it follows the input or a Relu"
        )

    def apply(params, f: Features) -> Features:
        total = f.norm2 + jnp.asarray(layer.eps, f.norm2.dtype)
        scale = jax.lax.rsqrt(total)[..., None]
        return Features(f.nngp * scale, f.ntk * scale, f.norm2 / total)

    floats = 2 * spec.floats()
    return [Stage(repr(layer), spec, apply, flops=spec.floats(), floats=floats)]
