"""Linear layers: exact for every method, since they act on features linearly."""

import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch.rules.stage import Context, Features, Spec, Stage, constant, rule

__all__: list[str] = []


@rule.register
def _(layer: stax.Identity, spec: Spec, context: Context) -> list[Stage]:
    return []


@rule.register
def _(layer: stax.Serial, spec: Spec, context: Context) -> list[Stage]:
    stages: list[Stage] = []
    for inner in layer.layers:
        stages += rule(inner, stages[-1].spec if stages else spec, context)
    return stages


@rule.register
def _(layer: stax.Dense, spec: Spec, context: Context) -> list[Stage]:
    """NNGP' = W² NNGP + b² and NTK' = W² NTK + NNGP': scale, and append columns."""
    bias = 1 if layer.b_std else 0
    nngp = spec.nngp + bias
    out = Spec(nngp, spec.ntk + nngp if context.ntk else 0, True, spec.low)

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

    columns = out.nngp + out.ntk
    floats = spec.nngp + spec.ntk + columns
    return [Stage(repr(layer), out, apply, flops=columns, floats=floats)]
