"""Method "one_pass": one polynomial for a whole fully connected network."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch.methods import OnePass
from jax_ntk_sketch.rules.pipeline import layered, pipeline
from jax_ntk_sketch.rules.sketched import noise_weights
from jax_ntk_sketch.rules.stage import (
    Context,
    Features,
    Spec,
    Stage,
    allocate,
    constant,
    inner_width,
    normalised,
    safe_sqrt,
)
from jax_ntk_sketch.sketch import PolySketch

__all__ = ["ZonalKernel", "zonal_kernel"]


class ZonalKernel(NamedTuple):
    r"""The kernel of a network as :math:`N f(\cos) + c` of linear features.

    Attributes:
      prefix: the linear layers before the first Relu; N and cos are those of their
        NNGP features.
      coefficients: of f, powers 0..degree, >= 0.
      constant: c, from biases after the last Relu.
      max_error: the largest error of the polynomial on [low, 1] over f(1).
    """

    prefix: stax.Serial
    coefficients: np.ndarray
    constant: float
    max_error: float


def zonal_kernel(net: stax.Layer, ntk: bool, method: OnePass) -> ZonalKernel | None:
    """Reads `net` as a `ZonalKernel`; None for a network without a Relu.

    Raises:
      ValueError: the network has biases where the kernel is then no function of the
        cosine, or layers other than Dense, Relu and Identity.
    """
    layers = list(stax.walk(net))
    for layer in layers:
        if not isinstance(layer, stax.Dense | stax.Relu | stax.Identity | stax.Flatten):
            raise ValueError(
                'method "one_pass" is for fully connected networks, got the layer '
                f'{layer!r}; use method="ntk_random_features" or "ntk_sketch"'
            )
    relus = [i for i, layer in enumerate(layers) if isinstance(layer, stax.Relu)]
    if not relus:
        return None
    for layer in layers[relus[0] :]:
        if isinstance(layer, stax.Flatten):
            raise ValueError(
                'method "one_pass" is for flat examples: begin with Flatten, or use '
                'method="ntk_random_features" or "ntk_sketch"'
            )
    prefix, block = layers[: relus[0]], layers[relus[0] : relus[-1] + 1]
    dense = [layer for layer in prefix if isinstance(layer, stax.Dense)]
    for layer in [*dense[1:], *block] if ntk else block:
        if isinstance(layer, stax.Dense) and layer.b_std:
            raise ValueError(
                'method "one_pass" needs a kernel that depends on the cosine alone, '
                "so it supports biases only on the first Dense layer and behind the "
                f"last Relu; {layer!r} has one elsewhere. Use b_std=None there, or "
                'method="ntk_random_features" or "ntk_sketch"'
            )
    # Without biases but the first, each Dense before the first Relu adds the NNGP
    # kernel once more to the NTK, so that the entering NTK is a multiple of it.
    multiple = len(dense)
    suffix, nngp_constant, ntk_constant = [], 0.0, 0.0
    for layer in layers[relus[-1] + 1 :]:
        if isinstance(layer, stax.Dense):
            square = layer.W_std**2
            nngp_constant = square * nngp_constant + (layer.b_std or 0.0) ** 2
            ntk_constant = square * ntk_constant + nngp_constant
            layer = dataclasses.replace(layer, b_std=None)
        suffix.append(layer)
    block = block + suffix

    def function(alpha: np.ndarray) -> np.ndarray:
        values = kernels.relu_block_values(block, alpha)
        if not ntk:
            return values.nngp
        return values.ntk_additive + multiple * alpha * values.ntk_multiplicative

    at_one = float(function(np.array(1.0)))
    if method.coefficients == "taylor":
        series = kernels.relu_block_series(block, method.degree)
        coefficients = series.nngp
        if ntk:
            shifted = np.concatenate([[0.0], series.ntk_multiplicative[:-1]])
            coefficients = series.ntk_additive + multiple * shifted
        error = at_one - float(coefficients.sum())
    else:
        fit = kernels.fit_nonnegative(function, method.degree, low=method.low)
        coefficients, error = np.array(fit.coefficients), fit.max_error
    return ZonalKernel(
        stax.serial(*prefix),
        coefficients,
        ntk_constant if ntk else nngp_constant,
        error / at_one if at_one else 0.0,
    )


@pipeline.register
def _(method: OnePass, net: stax.Layer, spec: Spec, context: Context) -> list[Stage]:
    kernel = zonal_kernel(net, context.ntk, method)
    if kernel is None:
        return layered(net, spec, context)
    linear = dataclasses.replace(context, ntk=False)
    stages = layered(kernel.prefix, spec, linear)
    if not (stages and stages[-1].spec.gaussian):
        raise ValueError("Relu must follow a linear layer such as Dense")
    if stages[-1].spec.shape:
        raise ValueError(
            'method "one_pass" is for flat examples, but the first Relu still has '
            f"spatial axes, of sizes {stages[-1].spec.shape}: begin with Flatten"
        )
    return [*stages, _polynomial(method, kernel, stages[-1].spec, context)]


def _polynomial(
    method: OnePass, kernel: ZonalKernel, spec: Spec, context: Context
) -> Stage:
    a, c = spec.nngp, kernel.coefficients
    ones = int(c[0] > 0) + int(kernel.constant > 0)
    sizes = _sizes(c[1:], a, context.width - ones)
    columns = ones + sum(sizes)
    poly = PolySketch(a, len(sizes), sizes, inner_width(columns), method.leaf)

    def apply(params, f: Features) -> Features:
        z = poly.apply(params, normalised(f.nngp, f.norm2))
        norm = safe_sqrt(f.norm2)[..., None]
        parts = [
            norm * jnp.asarray(math.sqrt(cj), zj.dtype) * zj
            for cj, zj in zip(c, z, strict=True)
            if cj > 0
        ]
        if kernel.constant > 0:
            parts.append(constant(f.nngp, math.sqrt(kernel.constant)))
        out = jnp.concatenate(parts, axis=-1)
        norm2 = f.norm2 * float(c.sum()) + kernel.constant
        if context.ntk:
            return Features(out[:, :0], out, norm2)
        return Features(out, out[:, :0], norm2)

    out = Spec(0, columns) if context.ntk else Spec(columns, 0)
    name = f"one polynomial of degree {len(sizes)}, fit error {kernel.max_error:.1g}"
    floats = 2 * a + 2 * columns + 4 * poly.inner_width
    return Stage(name, out, apply, poly.init, poly.flops + 2 * columns, floats)


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

    sketched = np.array(allocate(weights, total))
    rest = weights.copy()
    rest[0] = 0.0
    exact = np.array(allocate(rest, max(total - input_dim, 0)))
    exact[0] = input_dim if c[0] > 0 else 0
    fits = exact.sum() <= total
    best = exact if fits and noise(exact) <= noise(sketched) else sketched
    return tuple(int(size) for size in best)
