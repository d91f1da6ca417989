"""Nonlinear layers: what precedes them is checked here, the method does the rest."""

import dataclasses
import functools

import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch.kernels.power_series import kappa_values
from jax_ntk_sketch.methods import Method
from jax_ntk_sketch.rules.patches import settled
from jax_ntk_sketch.rules.stage import Context, Spec, Stage, rule

__all__ = ["relu", "takes_patches"]


@rule.register
def _(layer: stax.Relu, spec: Spec, context: Context) -> list[Stage]:
    if not spec.gaussian:
        raise ValueError(
            "Relu must follow a linear layer such as Dense (its inputs must be "
            "Gaussian), but it follows the input or another Relu"
        )
    before: list[Stage] = []
    if spec.window and not takes_patches(context.method, spec, context):
        before = [settled(spec, context)]
        spec = before[-1].spec
    stage = relu(context.method, spec, context)
    # Two rectified Gaussians of cosine c have the cosine kappa1(c).
    low = float(kappa_values(np.array(spec.low))[1])
    out = dataclasses.replace(
        stage.spec,
        low=low,
        shape=spec.positions,
        own_norms=spec.own_norms,
        raw=False,
    )
    return [*before, dataclasses.replace(stage, spec=out)]


@functools.singledispatch
def takes_patches(method: Method, spec: Spec, context: Context) -> bool:
    """Whether the method's `relu` reads patches of these sizes from their image."""
    return False


@functools.singledispatch
def relu(method: Method, spec: Spec, context: Context) -> Stage:
    """The stage of a `Relu` layer; one implementation per layer-by-layer method.

    It returns at most `context.width` columns, NNGP and NTK together (NNGP alone
    where the NTK is not wanted), or the least that it can.
    """
    raise TypeError(f"method {method!r} has no rule for Relu")
