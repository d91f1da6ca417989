"""Patches: kept as a window over an image for as long as nobody needs them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch.methods import Exact
from jax_ntk_sketch.rules.projection import Patches
from jax_ntk_sketch.rules.stage import (
    Carried,
    Context,
    Features,
    Spec,
    Stage,
    constant,
)

__all__ = ["concatenated", "is_small", "settled", "sketch_width", "sketched"]


def is_small(spec: Spec, columns: int) -> bool:
    """Whether patches of the NNGP features have at most `columns` channels."""
    assert spec.window is not None
    return spec.window.patch_dim(spec.nngp, spec.bias) <= columns


def sketch_width(context: Context) -> int:
    """Columns of the sketch of each kernel's features."""
    return max(1, context.width // 2 if context.ntk else context.width)


def settled(spec: Spec, context: Context) -> Stage:
    """Patches as features: concatenated where that fits the width, or sketched.

    It also fits where there was no nonlinear layer yet: the columns are then functions
    of few inputs.
    """
    fits = is_small(spec, context.width)
    if fits or spec.raw or isinstance(context.method, Exact):
        return concatenated(spec)
    return sketched(spec, context)


def sketched(spec: Spec, context: Context) -> Stage:
    """Patches as features, a `PatchSRHT` of those of each kernel.

    Of channels that are carried exactly, the means over the window are columns of their
    own, and the sketch is that of the rest.
    """
    assert spec.window is not None
    width = sketch_width(context)
    c = spec.carried
    constants, linears = len(c.constants), len(c.linears)
    exact = {
        "nngp": (*c.constants, *c.linears),
        "ntk": (*c.ntk_constants, *c.ntk_linears),
    }
    ones = int(spec.bias != 0 and any(exact.values()))
    out = _without_window(
        spec,
        width + len(exact["nngp"]) + ones,
        width + len(exact["ntk"]) + ones if spec.ntk else 0,
    )
    if any(exact.values()):
        # A constant coordinate of the patches joins the constants, in front.
        first, second = constants + ones, len(c.ntk_constants) + ones
        carried = Carried(
            tuple(range(first)),
            tuple(range(first, first + linears)),
            tuple(range(second)) if spec.ntk else (),
            tuple(range(second, second + len(c.ntk_linears))),
        )
        out = dataclasses.replace(out, carried=carried)
    kinds = [kind for kind in ("nngp", "ntk") if getattr(spec, kind)]
    biases = {"nngp": spec.bias, "ntk": spec.ntk_bias}
    parts = {
        kind: Patches(spec.window, getattr(spec, kind), biases[kind]).sketch(width)
        for kind in kinds
    }

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key)
        pairs = zip(parts.items(), keys, strict=False)
        return {kind: p.part.init(k) for (kind, p), k in pairs}

    def one(params: Any, kind: str, x: jax.Array) -> jax.Array:
        part, columns = parts[kind], exact[kind]
        z = part.apply(params[kind], x)
        if not columns and not ones:
            return z
        means = part.source.means(x, columns)
        along, bias = part.along(params[kind], columns, x.dtype)
        z = z - jnp.matmul(means, along) - (bias if ones else 0)
        front = [constant(z, biases[kind])] if ones else []
        return jnp.concatenate([*front, means, z], axis=-1)

    def apply(params, f: Features) -> Features:
        done = {kind: one(params, kind, getattr(f, kind)) for kind in kinds}
        return Features(done["nngp"], done.get("ntk", done["nngp"][..., :0]), f.norm2)

    flops = sum(p.part.flops for p in parts.values()) * spec.pixels
    floats = 2 * spec.floats() + 2 * out.floats()
    return Stage("patches (SRHT)", out, apply, init, flops, floats)


def concatenated(spec: Spec) -> Stage:
    """Patches as features, all their channels side by side."""
    window, bias, ntk_bias = spec.window, spec.bias, spec.ntk_bias
    assert window is not None
    ntk = window.patch_dim(spec.ntk, ntk_bias) if spec.ntk else 0
    nngp = window.patch_dim(spec.nngp, bias)
    carried = spec.carried.repeated(spec, window.size)
    if bias:
        carried = carried._replace(constants=(*carried.constants, nngp - 1))
        if spec.ntk:
            carried = carried._replace(ntk_constants=(*carried.ntk_constants, ntk - 1))
    out = dataclasses.replace(_without_window(spec, nngp, ntk), carried=carried)

    def apply(params, f: Features) -> Features:
        nngp = window.patches(f.nngp, bias)
        ntk = window.patches(f.ntk, ntk_bias) if spec.ntk else nngp[..., :0]
        return Features(nngp, ntk, f.norm2)

    floats = spec.floats() + out.floats()
    return Stage("patches", out, apply, flops=out.floats(), floats=floats)


def _without_window(spec: Spec, nngp: int, ntk: int) -> Spec:
    return dataclasses.replace(
        spec,
        nngp=nngp,
        ntk=ntk,
        shape=spec.positions,
        window=None,
        bias=0.0,
        ntk_bias=0.0,
        carried=Carried(),
    )
