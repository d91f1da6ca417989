"""Pooling: sums and averages over positions are linear, so exact on features."""

import dataclasses

import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Array, PyTree
from jax_ntk_sketch.features.graph_inputs import zero_masked
from jax_ntk_sketch.features.layers._spatial import check_window
from jax_ntk_sketch.features.state import Features, Spec, mix_positions
from jax_ntk_sketch.features.step import Context, Step, layer_rule, linear_step
from jax_ntk_sketch.sketch import Window


@layer_rule.register(stax.AvgPool)
@layer_rule.register(stax.SumPool)
def pool_steps(
    layer: stax.AvgPool | stax.SumPool, spec: Spec, context: Context
) -> list[Step]:
    """Return the step of sums or averages over windows."""
    window = Window(layer.window_shape, layer.strides, layer.padding)
    check_window(layer, window, spec)
    if window.trivial:
        return []
    out = dataclasses.replace(
        spec,
        min_cosine=min(spec.min_cosine, 0.0),
        shape=window.output_shape(spec.shape),
        norms_from_features=True,
    )

    def pool(x: Array, power: int = 1) -> Array:
        """Return the sums with this power of the weights."""
        total = window.sum(x)
        if isinstance(layer, stax.SumPool):
            return total
        if layer.normalize_edges:
            return total / window.sum(jnp.ones((*spec.shape, 1), x.dtype)) ** power
        return total * jnp.asarray(window.size**-power, x.dtype)

    def apply(params: PyTree, f: Features) -> Features:
        return mix_positions(spec, f, pool, lambda x: pool(x, 2))

    flops = 2 * spec.live_elements() + 2 * out.live_elements()
    return [linear_step(repr(layer), spec, out, apply, flops=flops)]


@layer_rule.register(stax.GlobalAvgPool)
@layer_rule.register(stax.GlobalSumPool)
def global_pool_steps(
    layer: stax.GlobalAvgPool | stax.GlobalSumPool, spec: Spec, context: Context
) -> list[Step]:
    """Return the step of the sum or average over all positions that exist."""
    if not spec.shape:
        return []
    out = dataclasses.replace(
        spec, min_cosine=min(spec.min_cosine, 0.0), shape=(), norms_from_features=True
    )
    averages = isinstance(layer, stax.GlobalAvgPool)
    axes = tuple(range(1, 1 + len(spec.shape)))

    def apply(params: PyTree, f: Features, mask: Array | None = None) -> Features:
        count: Array | int = spec.pixels if averages else 1
        if mask is not None and averages:
            count = jnp.maximum(mask.sum(axes), 1)[:, None]

        def pool(x: Array) -> Array:
            if mask is None:
                return jnp.mean(x, axes) if averages else jnp.sum(x, axes)
            return zero_masked(x, mask).sum(axes) / count

        return mix_positions(spec, f, pool, lambda x: pool(x) / count)

    return [
        linear_step(
            repr(layer),
            spec,
            out,
            apply,
            flops=spec.live_elements(),
            extra_inputs=("mask",),
        )
    ]
