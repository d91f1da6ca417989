"""From a network and a method to the stages of a feature map."""

import functools
import math

import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch.methods import Exact, Method, NTKSketch
from jax_ntk_sketch.rules.stage import Context, Features, Spec, Stage, rule
from jax_ntk_sketch.sketch import SRHT

__all__ = ["layered", "pipeline", "stages"]


def layered(net: stax.Layer, spec: Spec, context: Context) -> list[Stage]:
    """The stages of `net`, layer by layer."""
    return rule(net, spec, context)


@functools.singledispatch
def pipeline(
    method: Method, net: stax.Layer, spec: Spec, context: Context
) -> list[Stage]:
    """The stages between input and output; by default those of each layer in turn.

    Methods that read the network as a whole register an implementation of their own.
    """
    return layered(net, spec, context)


def stages(
    net: stax.Layer, method: Method, kind: str, num_features: int, dim: int, batch: int
) -> list[Stage]:
    """All stages of the map from inputs (n, dim) to `num_features` features of `kind`.

    Nonlinear layers are given the largest width with which the linear layers behind
    them do not exceed `num_features`; what is left over is zero columns.

    Raises:
      ValueError: `num_features` is less than the method needs; the least is named.
    """

    def build(width: int) -> list[Stage]:
        context = Context(method, kind == "ntk", width, batch)
        first = _input(dim)
        return [first, *pipeline(method, net, first.spec, context)]

    if isinstance(method, Exact):
        return build(0)
    oversample = method.oversample if isinstance(method, NTKSketch) else 1.0
    budget = math.ceil(num_features * oversample)
    least = _columns(build(1), kind)
    if least > budget and any(isinstance(x, stax.Relu) for x in stax.walk(net)):
        raise ValueError(
            f"num_features must be at least {math.ceil(least / oversample)} for this "
            f"network with {method}, got {num_features}"
        )
    low, high = 1, budget + 1  # widest that fits, narrowest that need not
    while high - low > 1:
        middle = (low + high) // 2
        fits = _columns(build(middle), kind) <= budget
        low, high = (middle, high) if fits else (low, middle)
    built = build(low)
    return [*built, _output(kind, built[-1].spec, num_features)]


def _columns(built: list[Stage], kind: str) -> int:
    return getattr(built[-1].spec, kind)


def _input(dim: int) -> Stage:
    """Neural Tangents' input kernel: the inner product over the dimension."""

    def apply(params, f: Features) -> Features:
        x = f.nngp
        scaled = x * jnp.asarray(dim**-0.5, x.dtype)
        return Features(scaled, x[:, :0], jnp.sum(scaled**2, axis=-1))

    return Stage("input", Spec(dim, 0), apply, flops=3 * dim, floats=2 * dim)


def _output(kind: str, spec: Spec, num_features: int) -> Stage:
    """Exactly `num_features` columns: zeros appended, or a final compression."""
    columns = getattr(spec, kind)
    out = Spec(num_features, 0) if kind == "nngp" else Spec(0, num_features)
    if columns <= num_features:

        def pad(params, f: Features) -> Features:
            z = getattr(f, kind)
            z = jnp.pad(z, [(0, 0), (0, num_features - columns)])
            return f._replace(**{kind: z})

        return Stage("output", out, pad, floats=columns + num_features)
    sketch = SRHT(columns, num_features)

    def compress(params, f: Features) -> Features:
        return f._replace(**{kind: sketch.apply(params, getattr(f, kind))})

    return Stage(
        "output (SRHT)",
        out,
        compress,
        sketch.init,
        sketch.flops,
        columns + num_features,
    )
