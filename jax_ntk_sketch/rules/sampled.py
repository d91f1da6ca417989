"""Method "ntk_random_features" (arXiv 2106.07880, Algorithm 2)."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch.methods import NTKRandomFeatures
from jax_ntk_sketch.random_features import (
    DIRECTIONS,
    HadamardPatchDirections,
    ReluFeatures,
    StepFeatures,
)
from jax_ntk_sketch.rules.activation import relu, takes_patches
from jax_ntk_sketch.rules.patches import is_small
from jax_ntk_sketch.rules.stage import Context, Features, Spec, Stage
from jax_ntk_sketch.sketch import SRHT, PatchSRHT

__all__: list[str] = []

# Up to so many channels patches are concatenated: their directions are then better.
_SMALL_PATCH = 64


@takes_patches.register
def _(method: NTKRandomFeatures, spec: Spec, context: Context) -> bool:
    # The dense kinds of directions take patches as they are.
    columns = max(_SMALL_PATCH, _shares(method, context)[0])
    return method.directions == "hadamard" and not is_small(spec, columns)


@relu.register
def _(method: NTKRandomFeatures, spec: Spec, context: Context) -> Stage:
    first, product = _shares(method, context)
    relus = ReluFeatures(spec.nngp, first, method.directions, method.antithetic)
    steps = StepFeatures(spec.nngp, max(1, product), method.directions)
    parts: dict[str, Any] = {"kappa1": _directions(method, spec, relus.num_directions)}
    if context.ntk:
        parts["kappa0"] = _directions(method, spec, product)
        parts["mix"] = _sketch(spec, product)
    if context.ntk and method.product == "tensor_srht":
        parts["turn"] = SRHT(product, product)

    def init(key: jax.Array):
        keys = jax.random.split(key, len(parts))
        pairs = zip(parts.items(), keys, strict=True)
        return {name: part.init(k) for (name, part), k in pairs}

    def apply(params, f: Features) -> Features:
        def of(name: str, x: jax.Array) -> jax.Array:
            return parts[name].apply(params[name], x)

        nngp = relus.activate(of("kappa1", f.nngp))
        ntk = nngp[..., :0]
        if context.ntk:
            step = steps.activate(of("kappa0", f.nngp), f.norm2 > 0)
            if "turn" in parts:
                step = of("turn", step)
            # Both factors carry a scale m^(-1/2); their product needs one.
            ntk = of("mix", f.ntk) * (step * jnp.asarray(product**0.5, step.dtype))
        return Features(nngp, ntk, f.norm2 / 2)

    flops = sum(part.flops for part in parts.values()) + 2 * first + 4 * product
    return Stage(
        "Relu (random features)",
        Spec(first, product),
        apply,
        init,
        flops * spec.pixels,
        spec.floats() + (first + 3 * product) * spec.pixels,
    )


def _shares(method: NTKRandomFeatures, context: Context) -> tuple[int, int]:
    """Columns of the NNGP features and of the product."""
    if not context.ntk:
        return max(1, context.width), 0
    first = max(1, int(method.kappa1_share * context.width))
    return first, max(1, context.width - first)


def _directions(method: NTKRandomFeatures, spec: Spec, num: int) -> Any:
    """Projections of the NNGP features on random directions."""
    if spec.window:
        return HadamardPatchDirections(spec.window, spec.nngp, num, spec.bias)
    return DIRECTIONS[method.directions](spec.nngp, num)


def _sketch(spec: Spec, num: int) -> SRHT | PatchSRHT:
    """A linear sketch of the NTK features."""
    if spec.window:
        return PatchSRHT(spec.window, max(1, spec.ntk), num, spec.bias)
    return SRHT(max(1, spec.ntk), num)
