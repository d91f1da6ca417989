"""Method "one_pass": one polynomial for a whole fully connected network."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import normalize_rows, safe_sqrt
from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch.features.methods._zonal_kernel import (
    ZonalKernel,
    before_relu,
    zonal_kernel,
)
from jax_ntk_sketch.features.methods.ntk_sketch import noise_weights
from jax_ntk_sketch.features.state import Features, Spec, constant_column
from jax_ntk_sketch.features.step import Context, Step, layer_by_layer, network_rule
from jax_ntk_sketch.features.widths import allocate_columns, polysketch_width
from jax_ntk_sketch.kernels.polynomial_fit import fit_nonnegative
from jax_ntk_sketch.methods import OnePass
from jax_ntk_sketch.sketch import PolySketch

__all__ = ["Polynomial", "polynomial"]


class Polynomial(NamedTuple):
    """Coefficients >= 0 by power, and their largest error on [low, 1] over f(1)."""

    coefficients: np.ndarray
    max_error: float


def polynomial(method: OnePass, kernel: ZonalKernel) -> Polynomial:
    """The polynomial that the method takes for the kernel of the cosine."""
    at_one = float(kernel.function(np.array(1.0)))
    if method.coefficients == "taylor":
        coefficients = kernel.series(method.degree)
        error = at_one - float(coefficients.sum())
    else:
        fit = fit_nonnegative(
            kernel.function, method.degree, min_cosine=method.min_cosine
        )
        coefficients, error = np.array(fit.coefficients), fit.max_error
    return Polynomial(coefficients, error / at_one if at_one else 0.0)


@network_rule.register
def one_pass_network_steps(
    method: OnePass, net: stax.Layer, spec: Spec, context: Context
) -> list[Step]:
    kernel = zonal_kernel(net, context.wants_ntk, "one_pass")
    if kernel is None:
        return layer_by_layer(net, spec, context)
    stages = before_relu(method, kernel, spec, context)
    return [*stages, _polynomial(method, kernel, stages[-1].single_spec, context)]


def _polynomial(
    method: OnePass, kernel: ZonalKernel, spec: Spec, context: Context
) -> Step:
    fit = polynomial(method, kernel)
    a, c = spec.nngp_dim, fit.coefficients
    ones = int(c[0] > 0) + int(kernel.constant > 0)
    sizes = _sizes(c[1:], a, context.max_columns - ones)
    columns = ones + sum(sizes)
    poly = PolySketch(a, len(sizes), sizes, polysketch_width(columns), method.leaf)

    def apply(params, f: Features) -> Features:
        z = poly.apply(params, normalize_rows(f.nngp, f.nngp_diag))
        norm = safe_sqrt(f.nngp_diag)[..., None]
        parts = [
            norm * jnp.asarray(math.sqrt(cj), zj.dtype) * zj
            for cj, zj in zip(c, z, strict=True)
            if cj > 0
        ]
        if kernel.constant > 0:
            parts.append(constant_column(f.nngp, math.sqrt(kernel.constant)))
        out = jnp.concatenate(parts, axis=-1)
        norm2 = f.nngp_diag * float(c.sum()) + kernel.constant
        if context.wants_ntk:
            return Features(out[:, :0], out, norm2)
        return Features(out, out[:, :0], norm2)

    out = Spec(0, columns) if context.wants_ntk else Spec(columns, 0)
    name = f"one polynomial of degree {len(sizes)}"
    kind: Kind = "ntk" if context.wants_ntk else "nngp"
    bias = math.ceil(1e4 * fit.max_error) / 1e4
    floats = 2 * a + 2 * columns + 4 * poly.inner_width
    return Step(
        name=name,
        spec=out,
        apply=apply,
        init=poly.init,
        flops=poly.flops + 2 * columns,
        live_elements=floats,
        bias=lambda: {kind: bias},
    )


def _sizes(c: np.ndarray, input_dim: int, total: int) -> tuple[int, ...]:
    """Columns of the powers 1..p, the linear one exact where that is less noisy.

    Noise is counted as in `noise_weights`; a sketched linear part without replacement
    has c_1^2 (1/m_1 - 1/d), an exact one none.
    """
    weights = noise_weights(np.concatenate([[0.0], c]))[1:]

    def noise(sizes: np.ndarray) -> float:
        used = (weights > 0) & (np.arange(len(c)) > 0)
        linear = c[0] ** 2 * max(0.0, 1 / max(sizes[0], 1) - 1 / input_dim)
        return linear + float((weights[used] ** 2 / sizes[used]).sum())

    sketched = np.array(allocate_columns(weights, total))
    rest = weights.copy()
    rest[0] = 0.0
    exact = np.array(allocate_columns(rest, max(total - input_dim, 0)))
    exact[0] = input_dim if c[0] > 0 else 0
    fits = exact.sum() <= total
    best = exact if fits and noise(exact) <= noise(sketched) else sketched
    return tuple(int(size) for size in best)
