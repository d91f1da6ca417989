"""Method "ntk_random_features" (arXiv 2106.07880, Algorithm 2)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch._numerics import normalize_rows, safe_reciprocal, safe_sqrt
from jax_ntk_sketch.features.patches import Patches, fits_concatenated
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import Context, Step, accepts_patches, activation_rule
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.methods import NTKRandomFeatures
from jax_ntk_sketch.random_features import (
    DIRECTIONS,
    HadamardPatchDirections,
    NormalLengths,
)
from jax_ntk_sketch.sketch import SRHT, PatchSRHT

__all__: list[str] = []

# Up to so many channels patches are concatenated: their directions are then better.
_SMALL_PATCH = 64


@accepts_patches.register
def ntk_random_features_accepts_patches(
    method: NTKRandomFeatures, spec: Spec, context: Context
) -> bool:
    # The dense kinds of directions take patches as they are.
    columns = max(_SMALL_PATCH, _shares(method, context)[0])
    return method.directions == "hadamard" and not fits_concatenated(spec, columns)


@activation_rule.register
def ntk_random_features_step(
    method: NTKRandomFeatures, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    first, product = _shares(method, context)
    num1 = (first + 1) // 2 if method.antithetic else first
    phi = Patches(spec.window, spec.nngp_dim, spec.bias)
    parts: dict[str, Any] = {"kappa1": _directions(method, spec, num1)}
    if context.wants_ntk:
        parts["kappa0"] = _directions(method, spec, product)
        parts["mix"] = _sketch(spec, product)
    if context.wants_ntk and method.product == "tensor_srht":
        parts["turn"] = SRHT(product, product)
    # Behind Dropout all functions are smoothed, and none is homogeneous.
    for name, lengthy in zip(
        ("kappa1", "kappa0"), dual.needs_normal_lengths, strict=True
    ):
        lengthy = lengthy or spec.after_dropout
        if name in parts and lengthy and method.directions != "gaussian":
            parts[name] = NormalLengths(parts[name], _dim(parts[name]))

    def init(key: jax.Array):
        keys = jax.random.split(key, len(parts))
        pairs = zip(parts.items(), keys, strict=True)
        return {name: part.init(k) for (name, part), k in pairs}

    def apply(params, f: Features) -> Features:
        norm2 = own = f.nngp_diag
        value: Any = dual.value
        slope: Any = dual.slope
        if spec.after_dropout:
            own = phi.norm2(f.nngp)
            norm2 = jnp.maximum(norm2, own)
            kept = own * safe_reciprocal(norm2)
            value = functools.partial(dual.smoothed_value, kept=kept)
            slope = functools.partial(dual.smoothed_slope, kept=kept)
        s = safe_sqrt(norm2)

        def normal(name: str) -> jax.Array:
            return normalize_rows(parts[name].apply(params[name], f.nngp), own)

        z = normal("kappa1")
        if method.antithetic:
            z = jnp.concatenate([z, -z[..., : first - num1]], axis=-1)
        nngp = value(z, s) * jnp.asarray(first**-0.5, z.dtype)
        ntk = nngp[..., :0]
        if context.wants_ntk:
            slopes = slope(normal("kappa0"), s)
            if "turn" in parts:
                slopes = parts["turn"].apply(params["turn"], slopes)
            # The sketch has a scale product^(-1/2); the slopes need none.
            ntk = parts["mix"].apply(params["mix"], f.ntk) * slopes
        return Features(nngp, ntk, dual.diagonal(norm2)[0])

    flops = sum(part.flops for part in parts.values()) + 2 * first + 4 * product
    return Step(
        name="random features",
        spec=Spec(first, product),
        apply=apply,
        init=init,
        flops=flops * spec.pixels,
        live_elements=spec.live_elements() + (first + 3 * product) * spec.pixels,
    )


def _dim(directions: Any) -> int:
    """Of the sphere that the directions are on."""
    if isinstance(directions, HadamardPatchDirections):
        window = directions.window
        return window.patch_dim(directions.channels, directions.bias)
    return getattr(directions, "padded_dim", directions.input_dim)


def _shares(method: NTKRandomFeatures, context: Context) -> tuple[int, int]:
    """Columns of the NNGP features and of the product."""
    if not context.wants_ntk:
        return max(1, context.max_columns), 0
    first = max(1, int(method.nngp_fraction * context.max_columns))
    return first, max(1, context.max_columns - first)


def _directions(method: NTKRandomFeatures, spec: Spec, num: int) -> Any:
    """Projections of the NNGP features on random directions."""
    if spec.window:
        return HadamardPatchDirections(spec.window, spec.nngp_dim, num, spec.bias)
    return DIRECTIONS[method.directions](spec.nngp_dim, num)


def _sketch(spec: Spec, num: int) -> SRHT | PatchSRHT:
    """A linear sketch of the NTK features."""
    if spec.window:
        return PatchSRHT(spec.window, max(1, spec.ntk_dim), num, spec.ntk_bias)
    return SRHT(max(1, spec.ntk_dim), num)
