r"""Rows of any length: how features follow from those of a row of moderate length.

The variance of a row is about the square of its largest entry, which is infinite or
zero in single precision from entries of 1e19 and 1e-19 on. If the outputs f of a
network are homogeneous, :math:`f(c x) = c^p f(x)`, its features are too. Rows are then
scaled by a power of two, which is exact. Where a network is homogeneous only for very
long or very short rows, only these are scaled.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import evaluate_eagerly
from jax_ntk_sketch._typing import Array
from jax_ntk_sketch.features.state import Features
from jax_ntk_sketch.kernels import DualActivation, dual
from jax_ntk_sketch.kernels.duals.base import MissingFunctionError
from jax_ntk_sketch.stax.combinators import follow


class Degrees(NamedTuple):
    """The degrees p of a network for rows of some lengths; None if there is none.

    Attributes:
      short: for very short rows.
      long: for very long rows.
      all: for rows of any length.
    """

    short: int | None
    long: int | None
    all: int | None


_LINEAR = (
    *(stax.Dense, stax.Conv, stax.ConvLocal, stax.ConvTranspose, stax.Aggregate),
    *(stax.AvgPool, stax.SumPool, stax.GlobalAvgPool, stax.GlobalSumPool),
    *(stax.Identity, stax.Flatten, stax.Dropout, stax.ImageResize, stax.Index),
    *(type(stax.Slice[:]), stax.DotGeneral),
)


@functools.lru_cache(maxsize=256)
def degrees(net: stax.Layer) -> Degrees:
    """Return the degrees of homogeneity of a network."""
    return follow(net, Degrees(1, 1, 1), _after)


def scale_rows(net: stax.Layer, f: Features) -> tuple[Features, Array]:
    """Return inputs of moderate length, and the factors (n,) of the output.

    The factor is NaN where the squared norm of a row overflows all the same.

    Args:
      net: the network.
      f: the inputs (n, *shape, c) as features, with masked nodes at zero.
    """
    return _scale_rows(degrees(net), f)


@functools.partial(jax.jit, static_argnums=0)
def _scale_rows(of: Degrees, f: Features) -> tuple[Features, Array]:
    (short, long, _), x = of, f.nngp
    info, axes = jnp.finfo(x.dtype), tuple(range(1, x.ndim))
    # Squares of squares neither overflow nor underflow within these lengths.
    exponent = (info.maxexp - 16) // (4 * max(1, short or 0, long or 0))
    if of.all is None and exponent <= info.nmant:
        short = long = None  # what is left out is not below rounding
    largest = jnp.max(jnp.abs(x), axis=axes, initial=0)
    power = jnp.frexp(jax.lax.stop_gradient(largest))[1]
    excess, degree = jnp.zeros_like(power), jnp.zeros_like(power)
    for p, outside, limit in (
        (short, (power < -exponent) & (largest > 0), -exponent),
        (long, power > exponent, exponent),
    ):
        if p is not None:
            excess = jnp.where(outside, power - limit, excess)
            degree = jnp.where(outside, p, degree)
    excess = jnp.clip(excess, 2 - info.maxexp, info.maxexp - 2)
    scale = jnp.ldexp(jnp.ones_like(largest), -excess)
    rows = x * scale.reshape(-1, *(1,) * len(axes))
    factor = jnp.ldexp(jnp.ones_like(largest), degree * excess)
    diag = jnp.sum(rows**2, axis=-1)
    finite = jnp.isfinite(jax.lax.stop_gradient(diag)).all(axis=axes[:-1])
    return Features(rows, f.ntk, diag), jnp.where(finite, factor, jnp.nan)


@functools.singledispatch
def _after(layer: stax.Layer, p: Any) -> Degrees:
    """Return the degrees after a layer."""
    if not isinstance(layer, _LINEAR):
        return Degrees(None, None, None)
    return p._replace(short=None, all=None) if getattr(layer, "b_std", None) else p


@_after.register
def _after_activation(layer: stax.Activation, p: Degrees) -> Degrees:
    activation = dual(layer)
    power = activation.homogeneity_degree
    own = Degrees(power, power, power)
    if power is None:
        short = 1 if _is_linear_at_zero(activation) else None
        own = Degrees(short, 1 if isinstance(layer, stax.Gelu) else None, None)
    return Degrees(
        *(
            None if a is None or b is None else a * b
            for a, b in zip(p, own, strict=True)
        )
    )


def _is_linear_at_zero(activation: DualActivation) -> bool:
    def at_zero() -> tuple[float, float]:
        zero, one = jnp.zeros(1), jnp.ones(())
        value, slope = activation.value(zero, one), activation.slope(zero, one)
        return float(value[0]), float(slope[0])

    try:
        value, slope = evaluate_eagerly(at_zero)
    except MissingFunctionError:
        return False
    return value == 0 and slope != 0 and math.isfinite(slope)


@_after.register
def _after_layer_norm(layer: stax.LayerNorm, p: Degrees) -> Degrees:
    return Degrees(None, None if p.long is None else 0, None)


@_after.register(stax.FanInSum)
@_after.register(stax.FanInConcat)
def _after_fan_in(layer: stax.Layer, p: list[Degrees]) -> Degrees:
    ends = zip(*p, strict=True)
    return Degrees(*(end[0] if len({*end}) == 1 else None for end in ends))


@_after.register
def _after_fan_in_prod(layer: stax.FanInProd, p: list[Degrees]) -> Degrees:
    ends = zip(*p, strict=True)
    return Degrees(*(None if None in end else sum(end) for end in ends))
