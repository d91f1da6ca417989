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
    nngp = spec.nngp_dim + bias
    ntk = spec.ntk_dim + nngp if context.wants_ntk else 0
    carried = spec.exact_columns
    if bias:
        carried = carried._replace(constants=(*carried.constants, spec.nngp_dim))
    if context.wants_ntk:
        carried = carried.joined(spec)
    out = dataclasses.replace(
        spec,
        nngp_dim=nngp,
        ntk_dim=ntk,
        gaussian=True,
        exact_columns=carried,
        finite_channels=layer.out_dim * layer.s[1],
    )

    def apply(params, f: Features) -> Features:
        nngp = layer.W_std * f.nngp
        norm2 = layer.W_std**2 * f.nngp_diag
        if layer.b_std:
            nngp = jnp.concatenate([nngp, constant_column(nngp, layer.b_std)], axis=-1)
            norm2 = norm2 + layer.b_std**2
        if not context.wants_ntk:
            return Features(nngp, f.ntk, norm2)
        appended = nngp
        if standard:
            appended = f.nngp * math.sqrt(spec.finite_channels / layer.s[0])
            if bias:
                appended = jnp.concatenate(
                    [appended, constant_column(nngp, 1.0)], axis=-1
                )
        ntk = jnp.concatenate([layer.W_std * f.ntk, appended], axis=-1)
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
