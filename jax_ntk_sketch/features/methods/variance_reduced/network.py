"""Method "variance_reduced" where the kernel is a function of the cosine."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import normalize_rows, safe_sqrt
from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch.features.methods._zonal_kernel import (
    ZonalKernel,
    before_relu,
    is_zonal,
    zonal_kernel,
)
from jax_ntk_sketch.features.state import Features, Spec, constant_column
from jax_ntk_sketch.features.step import Context, Step, layer_by_layer, network_rule
from jax_ntk_sketch.kernels.zonal_fit import (
    ZonalFit,
    zonal_fit_low_degree,
    zonal_fit_min_error,
)
from jax_ntk_sketch.methods import VarianceReduced
from jax_ntk_sketch.random_features import ZonalFeatures
from jax_ntk_sketch.random_features.zonal import sphere_dim
from jax_ntk_sketch.sketch import SRHT

__all__ = ["zonal_fit"]

# Of the power series; what is left at the cosine .9 is below 1e-3 of the kernel.
_SERIES = 40


@network_rule.register
def variance_reduced_network_steps(
    method: VarianceReduced, net: stax.Layer, spec: Spec, context: Context
) -> list[Step]:
    if not is_zonal(net, context.wants_ntk):
        return layer_by_layer(net, spec, context)
    kernel = zonal_kernel(net, context.wants_ntk, "variance_reduced")
    assert kernel is not None
    stages = before_relu(method, kernel, spec, context)
    return [*stages, _zonal(method, kernel, stages[-1].single_spec, context)]


def zonal_fit(
    method: VarianceReduced, kernel: ZonalKernel, input_dim: int, columns: int
) -> ZonalFit:
    """How `columns` are spent on f of d-dimensional inputs."""
    series, sphere = kernel.series(_SERIES), sphere_dim(input_dim)
    if method.objective == "regression":
        return zonal_fit_low_degree(series, input_dim, sphere, columns)
    low = (
        max(-1.0, -2 * input_dim**-0.5)
        if method.min_cosine is None
        else method.min_cosine
    )
    return zonal_fit_min_error(kernel.function, series, input_dim, sphere, columns, low)


def _zonal(
    method: VarianceReduced, kernel: ZonalKernel, spec: Spec, context: Context
) -> Step:
    d = spec.nngp_dim
    ones = int(kernel.constant > 0)
    fit = zonal_fit(method, kernel, d, max(1, context.max_columns - ones))
    linear = min(fit.linear_columns, d)
    parts: dict[str, SRHT | ZonalFeatures] = {}
    if linear < d:
        parts["linear"] = SRHT(d, linear)
    if fit.zonal_columns and any(fit.weights):
        parts["zonal"] = ZonalFeatures(d, fit.zonal_columns, fit.weights)
    columns = (
        ones
        + int(fit.constant > 0)
        + linear
        + (fit.zonal_columns if "zonal" in parts else 0)
    )

    def init(key: jax.Array):
        keys = jax.random.split(key, max(1, len(parts)))
        pairs = zip(parts.items(), keys, strict=False)
        return {name: part.init(k) for (name, part), k in pairs}

    alpha = np.linspace(-1, 1, 201)
    at_one = float(kernel.function(np.array(1.0)))
    gap = np.abs(fit.values(alpha) - kernel.function(alpha)).max() / (at_one or 1.0)
    gap = math.ceil(1e3 * gap) / 1e3

    def apply(params, f: Features) -> Features:
        unit = normalize_rows(f.nngp, f.nngp_diag)
        norm = safe_sqrt(f.nngp_diag)[..., None]
        flat = parts["linear"].apply(params["linear"], unit) if linear < d else unit
        out = [flat * (norm * math.sqrt(fit.linear))]
        if fit.constant > 0:
            out.insert(0, norm * math.sqrt(fit.constant))
        if "zonal" in parts:
            out.append(norm * parts["zonal"].apply(params["zonal"], unit))
        if kernel.constant > 0:
            out.append(constant_column(f.nngp, math.sqrt(kernel.constant)))
        phi = jnp.concatenate(out, axis=-1)
        norm2 = f.nngp_diag * float(fit.values(np.array(1.0))) + kernel.constant
        if context.wants_ntk:
            return Features(phi[..., :0], phi, norm2)
        return Features(phi, phi[..., :0], norm2)

    def error(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exact = kernel.function(alpha)
        return exact, (fit.values(alpha) - exact) ** 2 + fit.variance(alpha)

    out = Spec(0, columns) if context.wants_ntk else Spec(columns, 0)
    kind: Kind = "ntk" if context.wants_ntk else "nngp"
    degree = max((i for i, w in enumerate(fit.weights) if w), default=1)
    return Step(
        name=f"constant, {linear} linear, {fit.zonal_columns} zonal columns of degree <= {degree}",
        spec=out,
        apply=apply,
        init=init,
        flops=sum(part.flops for part in parts.values()) + 2 * columns,
        live_elements=3 * d + 4 * columns,
        error=error,
        bias=lambda: {kind: gap},
    )
