"""Activations: what comes before is checked here, and the method gives the step."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch._numerics import evaluate_eagerly
from jax_ntk_sketch._typing import Array, PyTree
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
    """Return the step of the method, after patches are formed if it does not read them.

    Raises:
      ValueError: the layer does not follow a linear layer.
    """
    name = type(layer).__name__
    if not spec.gaussian:
        raise ValueError(
            f"{name} must follow a linear layer such as Dense, which makes its inputs "
            "Gaussian, but it follows the input or another nonlinear layer"
        )
    before: list[Step] = []
    if spec.patches and not accepts_patches(context.method, spec, context):
        before = [materialize_patches(spec, context)]
        spec = before[-1].single_spec
    dual = cached_dual(layer)
    step = activation_rule(context.method, dual, spec, context)
    apply = step.apply
    if dual.max_variance < math.inf:
        apply = _nan_beyond(dual.max_variance, apply)
    out = dataclasses.replace(
        step.single_spec,
        min_cosine=min_cosine_after(dual, spec.min_cosine),
        shape=spec.positions,
        norms_from_features=spec.norms_from_features,
        after_dropout=spec.after_dropout,
        before_activations=False,
        finite_channels=spec.finite_channels,
    )
    name = f"{name} ({step.name})"
    return [*before, dataclasses.replace(step, name=name, spec=out, apply=apply)]


def _nan_beyond(
    max_variance: float, apply: Callable[..., Features]
) -> Callable[..., Features]:
    """Return the function with NaN where the kernel is infinite.

    The features are finite there, but they have no meaning.
    """

    def checked(params: PyTree, f: Features) -> Features:
        finite = f.nngp_diag < max_variance
        out = apply(params, f)
        nngp, ntk = (jnp.where(finite[..., None], z, jnp.nan) for z in out[:2])
        return Features(nngp, ntk, jnp.where(finite, out.nngp_diag, jnp.nan))

    return checked


# One dual for each record, because results are cached by the dual.
cached_dual = functools.lru_cache(maxsize=256)(kernels.dual)


# The number of examples whose expected kernels are computed.
NUM_EXAMPLES = 32


@functools.partial(jax.jit, static_argnums=0)
def duals(dual: DualActivation, cov: Array, q: Array) -> tuple[Array, ...]:
    """Return the kernels of values and slopes for all pairs, and their diagonals."""
    return *dual.kernels(cov, q, q), *dual.diagonal(q)


def on_host(function: Callable[..., Any], *arrays: np.ndarray) -> list[np.ndarray]:
    """Return arrays that a compiled function returns, in NumPy and float64."""

    def run() -> list[np.ndarray]:
        out = function(*(jnp.asarray(array, jnp.float32) for array in arrays))
        return [np.asarray(array, np.float64) for array in out]

    return evaluate_eagerly(run)


@functools.lru_cache(maxsize=256)
def reference_coefficients(
    dual: DualActivation, degree: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return squared Hermite coefficients of an activation and of its derivative.

    They are those at variance 1, (degree + 1,) each. Rounding errors are set to 0.
    """

    @jax.jit
    def coefficients(one: Array) -> tuple[Array, Array]:
        return dual.coefficients(one, degree), dual.slope_coefficients(one, degree)

    squares = (c**2 for c in on_host(coefficients, np.ones(())))
    values, slopes = (np.where(c > 1e-9 * max(c.sum(), 1e-30), c, 0) for c in squares)
    return values, slopes


@functools.lru_cache(maxsize=256)
def min_cosine_after(dual: DualActivation, before: float) -> float:
    """Return the smallest cosine after an activation, from the smallest one before.

    It is -1 if the cosine depends on the variances.
    """
    if dual.homogeneity_degree is None:
        return -1.0

    # In the shape in which the expected kernels are computed, which is compiled once.
    n = NUM_EXAMPLES
    alpha = np.linspace(before, 1, n * n).reshape(n, n)
    values = on_host(functools.partial(duals, dual), alpha, np.ones(n))[0].ravel()
    if not values[-1]:
        return -1.0
    # A little less, because the values are in single precision.
    return max(-1.0, float(values.min() / values[-1]) - 1e-6)
