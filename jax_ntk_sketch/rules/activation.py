"""Nonlinear layers: what precedes them is checked here, the method does the rest."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch.kernels import Dual
from jax_ntk_sketch.kernels.dual import untraced
from jax_ntk_sketch.methods import Method
from jax_ntk_sketch.rules.patches import settled
from jax_ntk_sketch.rules.stage import Context, Features, Spec, Stage, rule

__all__ = ["nonlinear", "reference_coefficients", "takes_patches"]


@rule.register
def activation_steps(
    layer: stax.Activation, spec: Spec, context: Context
) -> list[Stage]:
    name = type(layer).__name__
    if not spec.gaussian:
        raise ValueError(
            f"{name} must follow a linear layer such as Dense (its inputs must be "
            "Gaussian), but it follows the input or another nonlinear layer"
        )
    before: list[Stage] = []
    if spec.window and not takes_patches(context.method, spec, context):
        before = [settled(spec, context)]
        spec = before[-1].spec
    dual = _dual(layer)
    stage = nonlinear(context.method, dual, spec, context)
    if dual.most < math.inf:
        stage = dataclasses.replace(stage, apply=_checked(stage.apply, dual.most))
    out = dataclasses.replace(
        stage.spec,
        low=_low(dual, spec.low),
        shape=spec.positions,
        own_norms=spec.own_norms,
        dropped=spec.dropped,
        raw=False,
        width=spec.width,
    )
    return [
        *before,
        dataclasses.replace(stage, spec=out, name=f"{name} ({stage.name})"),
    ]


def _checked(apply: Callable[..., Features], most: float) -> Callable[..., Features]:
    """NaN where variances are so large that the kernel is infinite.

    Features are finite there, and mean nothing.
    """

    def checked(params: Any, f: Features) -> Features:
        finite = f.norm2 < most
        out = apply(params, f)
        nngp, ntk = (jnp.where(finite[..., None], z, jnp.nan) for z in out[:2])
        return Features(nngp, ntk, jnp.where(finite, out.norm2, jnp.nan))

    return checked


@functools.singledispatch
def takes_patches(method: Method, spec: Spec, context: Context) -> bool:
    """Whether the method's `nonlinear` reads such patches from their image."""
    return False


@functools.singledispatch
def nonlinear(method: Method, dual: Dual, spec: Spec, context: Context) -> Stage:
    """The stage of an activation; one implementation per layer-by-layer method.

    It returns at most `context.width` columns, NNGP and NTK together (NNGP alone
    where the NTK is not wanted), or the least that it can.
    """
    raise TypeError(f"method {method!r} has no rule for activations")


# A function has one dual, which what is computed from it is remembered by.
_dual = functools.lru_cache(maxsize=256)(kernels.dual)


@functools.lru_cache(maxsize=256)
def reference_coefficients(dual: Dual, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Squares of the Hermite coefficients of the activation and of its derivative.

    At variance 1; rounding is set to 0.
    """

    def both() -> list[np.ndarray]:
        one = jnp.ones(())
        functions = (dual.coefficients, dual.slope_coefficients)
        return [np.asarray(f(one, degree), np.float64) ** 2 for f in functions]

    squares = untraced(both)
    first, second = (np.where(c > 1e-9 * max(c.sum(), 1e-30), c, 0) for c in squares)
    return first, second


@functools.lru_cache(maxsize=256)
def _low(dual: Dual, low: float) -> float:
    """The least cosine behind an activation, where it does not depend on variances."""
    if dual.power is None:
        return -1.0

    def kernel() -> np.ndarray:
        alpha, one = jnp.linspace(low, 1, 101), jnp.ones(())
        return np.asarray(dual.pair(alpha, one, one)[0], np.float64)

    values = untraced(kernel)
    # Rounded down: it is in single precision.
    return max(-1.0, float(values.min() / values[-1]) - 1e-6) if values[-1] else -1.0
