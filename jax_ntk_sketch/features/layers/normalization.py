"""LayerNorm and Dropout: scales of features that depend on their norms."""

import dataclasses

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import safe_sqrt
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import Context, Step, layer_rule
from jax_ntk_sketch.methods import Exact


@layer_rule.register
def layer_norm_steps(layer: stax.LayerNorm, spec: Spec, context: Context) -> list[Step]:
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
        variance = f.nngp_diag.mean(axis=axes, keepdims=True) if axes else f.nngp_diag
        total = variance + jnp.asarray(layer.eps, f.nngp_diag.dtype)
        scale = jax.lax.rsqrt(total)[..., None]
        return Features(f.nngp * scale, f.ntk * scale, f.nngp_diag / total)

    floats = 2 * spec.live_elements()
    return [
        Step(
            name=repr(layer),
            spec=spec,
            apply=apply,
            flops=spec.live_elements(),
            live_elements=floats,
        )
    ]


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


@layer_rule.register
def dropout_steps(layer: stax.Dropout, spec: Spec, context: Context) -> list[Step]:
    """Variances over the rate; the kernel between two draws is what it was.

    Exact features show what is dropped of an example to itself: a column of its own for
    each position of each example.
    """
    if layer.mode == "test" or layer.rate == 1:
        return []
    if spec.before_activations and not spec.gaussian:
        raise ValueError(
            "Dropout cannot follow the input, which has no limit of many channels; "
            "put a linear layer before it"
        )
    rows = context.batch_size * spec.pixels if isinstance(context.method, Exact) else 0
    out = dataclasses.replace(
        spec,
        nngp_dim=spec.nngp_dim + rows,
        gaussian=False,
        min_cosine=min(spec.min_cosine, layer.rate * spec.min_cosine),
        after_dropout=not rows,
    )

    def apply(params, f: Features) -> Features:
        norm2 = f.nngp_diag / layer.rate
        if not rows:
            return f._replace(nngp_diag=norm2)
        columns = jnp.diag(safe_sqrt(norm2 - f.nngp_diag).reshape(-1))
        columns = columns.reshape(*norm2.shape, rows)
        return Features(jnp.concatenate([f.nngp, columns], axis=-1), f.ntk, norm2)

    return [
        Step(
            name=repr(layer),
            spec=out,
            apply=apply,
            live_elements=spec.live_elements() + out.live_elements(),
        )
    ]
