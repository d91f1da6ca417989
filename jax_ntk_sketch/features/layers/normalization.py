"""LayerNorm and Dropout: scales of features that depend on their norms."""

import dataclasses

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import safe_sqrt
from jax_ntk_sketch._typing import Array, PyTree
from jax_ntk_sketch.features.layers._spatial import resolve_axes
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import Context, Step, layer_rule, linear_step


@layer_rule.register
def layer_norm_steps(layer: stax.LayerNorm, spec: Spec, context: Context) -> list[Step]:
    """Both kernels over the square root of the two variances.

    Gradients of the network take the variances as constant. This is the infinite-width
    limit that Neural Tangents defines.

    Raises:
      ValueError: the layer does not follow a linear layer, or normalizes over axes that
        do not exist or without the channels.
    """
    if not spec.gaussian:
        raise ValueError(
            "LayerNorm must follow a linear layer such as Conv or Dense, which makes "
            "its inputs Gaussian, but it follows the input or a nonlinear layer"
        )
    axes = _variance_axes(layer, spec, context)

    def apply(params: PyTree, f: Features) -> Features:
        variance = f.nngp_diag
        if axes:
            variance = variance.mean(axis=axes, keepdims=True)
        total = variance + jnp.asarray(layer.eps, f.nngp_diag.dtype)
        scale = jax.lax.rsqrt(total)[..., None]
        return Features(f.nngp * scale, f.ntk * scale, f.nngp_diag / total)

    flops = spec.live_elements()
    return [linear_step(repr(layer), spec, spec, apply, flops=flops)]


def _variance_axes(
    layer: stax.LayerNorm, spec: Spec, context: Context
) -> tuple[int, ...]:
    """Return the axes of `nngp_diag` that the variance is averaged over."""
    if isinstance(layer.axis, int):
        return ()
    axes, channels = resolve_axes(layer, layer.axis, spec, context)
    if channels not in axes:
        raise ValueError(
            f"{layer!r}: axis must have the axis of the channels, {channels}, got "
            f"{layer.axis}; a variance is not random only over many channels"
        )
    return tuple(sorted(axis - (axis > channels) for axis in {*axes} - {channels}))


@layer_rule.register
def dropout_steps(layer: stax.Dropout, spec: Spec, context: Context) -> list[Step]:
    """Kernels of one draw over the rate; kernels between two draws do not change.

    Features that depend on the batch contain what is dropped: one column of each kernel
    for each position of each example. Other features keep it in `nngp_diag`.

    Raises:
      ValueError: the layer follows the input.
    """
    if layer.mode == "test" or layer.rate == 1:
        return []
    if spec.before_activations and not spec.gaussian:
        raise ValueError(
            "Dropout must not follow the input, which has no limit of many channels; "
            "put a linear layer before it"
        )
    dropped_columns = context.columns_of_batch(spec)
    out = dataclasses.replace(
        spec,
        nngp_dim=spec.nngp_dim + dropped_columns,
        ntk_dim=spec.ntk_dim + (dropped_columns if spec.ntk_dim else 0),
        gaussian=False,
        min_cosine=min(spec.min_cosine, layer.rate * spec.min_cosine),
        after_dropout=not dropped_columns,
    )

    def dropped(variance: Array) -> Array:
        """Return features that are orthogonal between all positions."""
        columns = jnp.diag(safe_sqrt(variance).reshape(-1))
        return columns.reshape(*variance.shape, dropped_columns)

    def apply(params: PyTree, f: Features) -> Features:
        variance = f.nngp_diag / layer.rate
        if not dropped_columns:
            return f._replace(nngp_diag=variance)
        lost = 1 / layer.rate - 1
        nngp = jnp.concatenate([f.nngp, dropped(lost * f.nngp_diag)], axis=-1)
        ntk = f.ntk
        if spec.ntk_dim:
            ntk_diag = jnp.sum(ntk**2, axis=-1)
            ntk = jnp.concatenate([ntk, dropped(lost * ntk_diag)], axis=-1)
        return Features(nngp, ntk, variance)

    return [linear_step(repr(layer), spec, out, apply)]
