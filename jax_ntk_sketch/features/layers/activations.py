"""Nonlinear layers: what precedes them is checked here, the method does the rest."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch._numerics import evaluate_eagerly
from jax_ntk_sketch.features.patches import materialize_patches
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import (
    Context,
    Step,
    accepts_patches,
    activation_rule,
    layer_rule,
)
from jax_ntk_sketch.kernels import DualActivation


@layer_rule.register
def activation_steps(
    layer: stax.Activation, spec: Spec, context: Context
) -> list[Step]:
    name = type(layer).__name__
    if not spec.gaussian:
        raise ValueError(
            f"{name} must follow a linear layer such as Dense (its inputs must be "
            "Gaussian), but it follows the input or another nonlinear layer"
        )
    before: list[Step] = []
    if spec.window and not accepts_patches(context.method, spec, context):
        before = [materialize_patches(spec, context)]
        spec = before[-1].single_spec
    dual = _dual(layer)
    stage = activation_rule(context.method, dual, spec, context)
    if dual.max_variance < math.inf:
        stage = dataclasses.replace(
            stage, apply=_checked(stage.apply, dual.max_variance)
        )
    out = dataclasses.replace(
        stage.single_spec,
        min_cosine=_low(dual, spec.min_cosine),
        shape=spec.positions,
        norms_from_features=spec.norms_from_features,
        after_dropout=spec.after_dropout,
        before_activations=False,
        finite_channels=spec.finite_channels,
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
        finite = f.nngp_diag < most
        out = apply(params, f)
        nngp, ntk = (jnp.where(finite[..., None], z, jnp.nan) for z in out[:2])
        return Features(nngp, ntk, jnp.where(finite, out.nngp_diag, jnp.nan))

    return checked


# A function has one dual, which what is computed from it is remembered by.
_dual = functools.lru_cache(maxsize=256)(kernels.dual)


@functools.lru_cache(maxsize=256)
def reference_coefficients(
    dual: DualActivation, degree: int
) -> tuple[np.ndarray, np.ndarray]:
    """Squares of the Hermite coefficients of the activation and of its derivative.

    At variance 1; rounding is set to 0.
    """

    def both() -> list[np.ndarray]:
        one = jnp.ones(())
        functions = (dual.coefficients, dual.slope_coefficients)
        return [np.asarray(f(one, degree), np.float64) ** 2 for f in functions]

    squares = evaluate_eagerly(both)
    first, second = (np.where(c > 1e-9 * max(c.sum(), 1e-30), c, 0) for c in squares)
    return first, second


@functools.lru_cache(maxsize=256)
def _low(dual: DualActivation, low: float) -> float:
    """The least cosine behind an activation, where it does not depend on variances."""
    if dual.homogeneity_degree is None:
        return -1.0

    def kernel() -> np.ndarray:
        alpha, one = jnp.linspace(low, 1, 101), jnp.ones(())
        return np.asarray(dual.covariances(alpha, one, one)[0], np.float64)

    values = evaluate_eagerly(kernel)
    # Rounded down: it is in single precision.
    return max(-1.0, float(values.min() / values[-1]) - 1e-6) if values[-1] else -1.0
