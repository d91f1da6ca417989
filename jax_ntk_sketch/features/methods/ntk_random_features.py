r"""Method "ntk_random_features": random features of the dual kernels of activations.

At an activation sigma let x be the NNGP features of an example and y its NTK features,
and let the rows of W and W0 be random directions. The features after the activation are

    x' = m1^(-1/2) sigma(W x),        y' = (S y) * sigma'(W0 x)

with m1 the number of rows of W. S is a random linear sketch of y to as many columns as
W0 has rows, and * is the entrywise product. The inner product of y' estimates that of
the tensor product of y and sigma'(W0 x). In the published variant,
`product="tensor_srht"`, sigma'(W0 x) is sketched as well.

After Dropout the variance q of an example exceeds |x|^2. The features then take the
means of sigma and sigma' over independent noise of variance q - |x|^2.

Source: arXiv 2106.07880, Algorithm 2 and Section 3.2.
"""

import functools

import jax.numpy as jnp

from jax_ntk_sketch._numerics import normalize_rows, safe_reciprocal, safe_sqrt
from jax_ntk_sketch._typing import Array, PyTree
from jax_ntk_sketch.features.patches import Patches, fits_concatenated
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import Context, Step, accepts_patches, activation_rule
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.methods import NTKRandomFeatures
from jax_ntk_sketch.random_features.directions import (
    DIRECTIONS,
    MAX_DENSE_DIM,
    Directions,
    HadamardPatchDirections,
    NormalLengths,
)
from jax_ntk_sketch.sketch import SRHT
from jax_ntk_sketch.sketch.random_map import RandomMap, init_each


@accepts_patches.register
def ntk_random_features_accepts_patches(
    method: NTKRandomFeatures, spec: Spec, context: Context
) -> bool:
    # Dense directions take concatenated patches, and are better where these are small.
    columns = max(MAX_DENSE_DIM, _column_shares(method, context)[0])
    return method.directions == "hadamard" and not fits_concatenated(spec, columns)


@activation_rule.register
def ntk_random_features_step(
    method: NTKRandomFeatures, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    nngp_columns, ntk_columns = _column_shares(method, context)
    parts = _random_maps(method, dual, spec, nngp_columns, ntk_columns)
    patches = Patches.of(spec, "nngp")

    def apply(params: dict[str, PyTree], f: Features) -> Features:
        variance = norm2 = f.nngp_diag
        value, slope = dual.value, dual.slope
        if spec.after_dropout:
            norm2 = patches.squared_norms(f.nngp)
            variance = jnp.maximum(variance, norm2)
            kept = norm2 * safe_reciprocal(variance)
            value = functools.partial(dual.smoothed_value, kept=kept)
            slope = functools.partial(dual.smoothed_slope, kept=kept)
        deviation = safe_sqrt(variance)

        def standard_normal(name: str) -> Array:
            projections = parts[name].apply(params[name], f.nngp)
            return normalize_rows(projections, norm2)

        z = standard_normal("nngp_directions")
        if method.antithetic:
            z = jnp.concatenate([z, -z[..., : nngp_columns - z.shape[-1]]], axis=-1)
        nngp = value(z, deviation) * jnp.asarray(nngp_columns**-0.5, z.dtype)
        ntk = nngp[..., :0]
        if context.wants_ntk:
            slopes = slope(standard_normal("slope_directions"), deviation)
            if "slope_sketch" in parts:
                slopes = parts["slope_sketch"].apply(params["slope_sketch"], slopes)
            # The sketch has a scale ntk_columns^(-1/2); the slopes need none.
            ntk = parts["ntk_sketch"].apply(params["ntk_sketch"], f.ntk) * slopes
        return Features(nngp, ntk, dual.diagonal(variance)[0])

    flops = sum(part.flops for part in parts.values())
    flops += 2 * nngp_columns + 4 * ntk_columns
    columns = nngp_columns + 3 * ntk_columns
    return Step(
        name="random features",
        spec=Spec(nngp_columns, ntk_columns),
        apply=apply,
        init=functools.partial(init_each, parts),
        flops=flops * spec.pixels,
        live_elements=spec.live_elements() + columns * spec.pixels,
    )


def _random_maps(
    method: NTKRandomFeatures,
    dual: DualActivation,
    spec: Spec,
    nngp_columns: int,
    ntk_columns: int,
) -> dict[str, RandomMap]:
    """Return the random maps of an activation; none of the NTK if it has no columns."""
    num_directions = (nngp_columns + 1) // 2 if method.antithetic else nngp_columns
    value_lengths, slope_lengths = dual.needs_normal_lengths

    def directions(output_dim: int, normal_lengths: bool) -> RandomMap:
        unit = _directions(method, spec, output_dim)
        # After Dropout all functions are smoothed, and none is homogeneous.
        if method.directions == "gaussian" or not (
            normal_lengths or spec.after_dropout
        ):
            return unit
        return NormalLengths(unit)

    parts = {"nngp_directions": directions(num_directions, value_lengths)}
    if ntk_columns:
        parts["slope_directions"] = directions(ntk_columns, slope_lengths)
        parts["ntk_sketch"] = Patches.of(spec, "ntk").sketch(ntk_columns)
        if method.product == "tensor_srht":
            parts["slope_sketch"] = SRHT(ntk_columns, ntk_columns)
    return parts


def _column_shares(method: NTKRandomFeatures, context: Context) -> tuple[int, int]:
    """Return the columns of the NNGP features and of the NTK features."""
    if not context.wants_ntk:
        return max(1, context.max_columns), 0
    nngp_columns = max(1, int(method.nngp_fraction * context.max_columns))
    return nngp_columns, max(1, context.max_columns - nngp_columns)


def _directions(
    method: NTKRandomFeatures, spec: Spec, output_dim: int
) -> Directions | HadamardPatchDirections:
    """Return projections of the NNGP features on random directions."""
    patches = Patches.of(spec, "nngp")
    if patches.window:
        return HadamardPatchDirections(
            patches.window, patches.channels, output_dim, patches.bias
        )
    return DIRECTIONS[method.directions](spec.nngp_dim, output_dim)
