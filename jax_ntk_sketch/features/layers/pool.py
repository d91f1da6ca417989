"""Pooling: sums and averages over positions are linear, so exact on features."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch.features.layers._spatial import _check_window, check_spatial
from jax_ntk_sketch.features.layers.graph import check_mask
from jax_ntk_sketch.features.state import (
    Features,
    Spec,
    dropout_variance,
    with_feature_norms,
)
from jax_ntk_sketch.features.step import Context, Step, layer_rule
from jax_ntk_sketch.sketch import Window


@layer_rule.register(stax.AvgPool)
@layer_rule.register(stax.SumPool)
def pool_steps(
    layer: stax.AvgPool | stax.SumPool, spec: Spec, context: Context
) -> list[Step]:
    window = Window(layer.window_shape, layer.strides, layer.padding)
    _check_window(layer, window, spec)
    out = dataclasses.replace(
        spec,
        min_cosine=min(spec.min_cosine, 0.0),
        shape=window.output_shape(spec.shape),
        norms_from_features=True,
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
        more = (
            pool(dropout_variance(f)[..., None], 2)[..., 0]
            if spec.after_dropout
            else 0.0
        )
        return with_feature_norms(pool(f.nngp), pool(f.ntk), more)

    floats = spec.live_elements() + out.live_elements()
    flops = 2 * spec.live_elements() + 2 * out.live_elements()
    return [
        Step(name=repr(layer), spec=out, apply=apply, flops=flops, live_elements=floats)
    ]


@layer_rule.register(stax.GlobalAvgPool)
@layer_rule.register(stax.GlobalSumPool)
def global_pool_steps(
    layer: stax.GlobalAvgPool | stax.GlobalSumPool, spec: Spec, context: Context
) -> list[Step]:
    """With a mask of the nodes of padded graphs, over those that exist."""
    check_spatial(layer, spec)
    out = dataclasses.replace(
        spec, min_cosine=min(spec.min_cosine, 0.0), shape=(), norms_from_features=True
    )
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
        if spec.after_dropout:
            more = (reduced(dropout_variance(f)[..., None]) / count)[..., 0]
        return with_feature_norms(reduced(f.nngp), reduced(f.ntk), more)

    floats = spec.live_elements() + out.live_elements()
    flops = spec.live_elements()
    name = repr(layer)
    return [
        Step(
            name=name,
            spec=out,
            apply=apply,
            flops=flops,
            live_elements=floats,
            extra_inputs=("mask",),
        )
    ]
