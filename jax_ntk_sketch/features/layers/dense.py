"""Fully connected layers: linear, so exact on features for every method."""

import dataclasses
import math

import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import is_zero
from jax_ntk_sketch._typing import PyTree
from jax_ntk_sketch.features.state import Features, Spec, with_constant
from jax_ntk_sketch.features.step import Context, Step, layer_rule, linear_step


@layer_rule.register
def dense_steps(layer: stax.Dense, spec: Spec, context: Context) -> list[Step]:
    """NNGP' = W² NNGP + b² and NTK' = W² NTK + NNGP': scale, and append columns.

    In the standard parameterization NTK' = W² NTK + width NNGP + 1, with the width of
    the finite network that enters, and without the 1 if there is no bias. There is one
    if `b_std` is 0, because it is trained.
    """
    if not spec.shape and layer.channel_axis not in (-1, 1):
        raise ValueError(
            f"{layer!r}: channel_axis must be -1 or 1 where inputs are flat, got "
            f"{layer.channel_axis}"
        )
    standard = layer.parameterization == "standard"
    bias = int(not is_zero(layer.b_std))
    trained_bias = int(layer.b_std is not None) if standard else bias
    before = spec.exact_columns
    with_bias = before._replace(constants=(*before.constants, spec.nngp_dim))
    exact, ntk_dim = with_bias if bias else before, 0
    if context.wants_ntk:
        appended_exact = with_bias if trained_bias else before
        exact = exact.with_nngp_appended(spec.ntk_dim, appended_exact)
        ntk_dim = spec.ntk_dim + spec.nngp_dim + trained_bias
    out = dataclasses.replace(
        spec,
        nngp_dim=spec.nngp_dim + bias,
        ntk_dim=ntk_dim,
        gaussian=True,
        exact_columns=exact,
        finite_channels=layer.out_dim * (layer.s[1] if standard else 1),
    )

    def apply(params: PyTree, f: Features) -> Features:
        nngp = with_constant(layer.W_std * f.nngp, layer.b_std)
        variance = layer.W_std**2 * f.nngp_diag
        if layer.b_std is not None and bias:
            variance = variance + layer.b_std**2
        if not context.wants_ntk:
            return Features(nngp, f.ntk, variance)
        appended = nngp
        if standard:
            width = spec.finite_channels / layer.s[0]
            appended = with_constant(f.nngp * math.sqrt(width), trained_bias)
        ntk = jnp.concatenate([layer.W_std * f.ntk, appended], axis=-1)
        return Features(nngp, ntk, variance)

    flops = out.live_elements()
    return [linear_step(repr(layer), spec, out, apply, flops=flops)]
