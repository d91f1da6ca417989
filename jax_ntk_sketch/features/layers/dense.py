"""Linear layers: exact for every method, since they act on features linearly."""

import dataclasses
import math

import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch.features.state import Features, Spec, constant_column
from jax_ntk_sketch.features.step import Context, Step, layer_rule


@layer_rule.register
def dense_steps(layer: stax.Dense, spec: Spec, context: Context) -> list[Step]:
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
            nngp = jnp.concatenate([nngp, constant_column(nngp, layer.b_std)], axis=-1)
            norm2 = norm2 + layer.b_std**2
        if not context.ntk:
            return Features(nngp, f.ntk, norm2)
        appended = nngp
        if standard:
            appended = f.nngp * math.sqrt(spec.width / layer.s[0])
            if bias:
                appended = jnp.concatenate(
                    [appended, constant_column(nngp, 1.0)], axis=-1
                )
        ntk = jnp.concatenate([layer.W_std * f.ntk, appended], axis=-1)
        return Features(nngp, ntk, norm2)

    floats = spec.floats() + out.floats()
    return [Step(repr(layer), out, apply, flops=out.floats(), floats=floats)]
