"""Patches: kept as a window over an image for as long as nobody needs them."""

import dataclasses
from typing import Any

import jax

from jax_ntk_sketch.methods import Exact
from jax_ntk_sketch.rules.stage import Context, Features, Spec, Stage
from jax_ntk_sketch.sketch import PatchSRHT
from jax_ntk_sketch.sketch.patch_srht import patches

__all__ = ["concatenated", "is_small", "settled"]


def is_small(spec: Spec, columns: int) -> bool:
    """Whether patches of the NNGP features have at most `columns` channels."""
    assert spec.window is not None
    return spec.window.size * spec.nngp + bool(spec.bias) <= columns


def settled(spec: Spec, context: Context) -> Stage:
    """Patches as features: concatenated where that fits the width, or sketched.

    It also fits where there was no nonlinear layer yet: the columns are then functions
    of few inputs.
    """
    fits = is_small(spec, context.width)
    if fits or spec.raw or isinstance(context.method, Exact):
        return concatenated(spec)
    assert spec.window is not None
    width = max(1, context.width // 2 if context.ntk else context.width)
    sketch = {
        kind: PatchSRHT(spec.window, getattr(spec, kind), width, spec.bias)
        for kind in ("nngp", "ntk")
        if getattr(spec, kind)
    }
    out = dataclasses.replace(
        spec,
        nngp=width,
        ntk=width if spec.ntk else 0,
        shape=spec.positions,
        window=None,
        bias=0.0,
    )

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key)
        return {k: s.init(q) for (k, s), q in zip(sketch.items(), keys, strict=False)}

    def apply(params, f: Features) -> Features:
        done = {
            kind: s.apply(params[kind], getattr(f, kind)) for kind, s in sketch.items()
        }
        return Features(done["nngp"], done.get("ntk", done["nngp"][..., :0]), f.norm2)

    flops = sum(s.flops for s in sketch.values()) * spec.pixels
    floats = 2 * spec.floats() + 2 * out.floats()
    return Stage("patches (SRHT)", out, apply, init, flops, floats)


def concatenated(spec: Spec) -> Stage:
    """Patches as features, all their channels side by side."""
    window, bias = spec.window, spec.bias
    assert window is not None

    def width(columns: int) -> int:
        return window.size * columns + bool(bias) if columns else 0

    out = dataclasses.replace(
        spec,
        nngp=width(spec.nngp),
        ntk=width(spec.ntk),
        shape=spec.positions,
        window=None,
        bias=0.0,
    )

    def apply(params, f: Features) -> Features:
        nngp = patches(window, f.nngp, bias)
        if spec.ntk:
            ntk = patches(window, f.ntk, bias)
        else:
            ntk = nngp[..., :0]
        return Features(nngp, ntk, f.norm2)

    floats = spec.floats() + out.floats()
    return Stage("patches", out, apply, flops=out.floats(), floats=floats)
