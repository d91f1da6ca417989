"""Method "ntk_sketch" (arXiv 2104.00415; arXiv 2106.07880, Algorithm 1)."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import kernels
from jax_ntk_sketch.methods import NTKSketch
from jax_ntk_sketch.rules.activation import relu
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
from jax_ntk_sketch.sketch import PolySketch, TensorSRHT, next_power_of_two

__all__ = ["noise_weights"]


def noise_weights(coefficients: np.ndarray) -> np.ndarray:
    """How many columns each power deserves, relative to the others.

    The noise of power j in m_j columns is about c_j^2 j / m_j (linear in j, as the
    tree has it); the sum over j is least where m_j is proportional to c_j sqrt(j).
    """
    return np.asarray(coefficients) * np.sqrt(np.arange(len(coefficients)))


@relu.register
def _(method: NTKSketch, spec: Spec, context: Context) -> Stage:
    a = spec.nngp
    c = _coefficients(method, 1, method.kappa1_degree, spec.low)
    b = _coefficients(method, 0, method.kappa0_degree, spec.low)
    degree = method.kappa1_degree
    if context.ntk:
        degree = max(degree, method.kappa0_degree)
    c, b = (
        np.pad(c, (0, degree + 1 - len(c))),
        np.pad(b, (0, max(0, degree + 1 - len(b)))),
    )

    # Columns: kappa1's one constant and sizes[j] of power j. kappa0's are not part of
    # the output; its powers from 2 on weigh so little that a quarter of the width is
    # enough for them, and what the Hadamard transform would pad with is used too.
    first = context.width // 2 if context.ntk else context.width
    sizes = np.array(allocate(noise_weights(c)[1:], max(first - 1, 0)))
    sizes[0] = min(sizes[0], a)
    first = 1 + int(sizes.sum())
    product = max(1, context.width - first) if context.ntk else 0
    inner = np.zeros_like(sizes)
    if context.ntk:
        weights = noise_weights(b)[1:]
        weights[0] = 0  # the linear part of kappa0 is the features themselves
        padded = next_power_of_two(1 + a + context.width // 4)
        inner = np.array(allocate(weights, padded - 1 - a))
    dims = tuple(int(max(s, i)) for s, i in zip(sizes, inner, strict=True))
    poly = PolySketch(a, degree, dims, inner_width(context.width), method.leaf)
    dotted = 1 + a + int(inner.sum())
    mix = TensorSRHT((max(1, spec.ntk), dotted), max(1, product))

    def powers(z, coefficients, columns):
        parts = [constant(z[0], coefficients[0] ** 0.5)]
        for zj, cj, size in zip(z[1:], coefficients[1:], columns, strict=True):
            if size:
                scale = (cj * zj.shape[-1] / size) ** 0.5
                parts.append(jnp.asarray(scale, zj.dtype) * zj[..., :size])
        return jnp.concatenate(parts, axis=-1)

    def init(key: jax.Array):
        poly_key, mix_key = jax.random.split(key)
        params = {"powers": poly.init(poly_key)}
        return params | ({"mix": mix.init(mix_key)} if context.ntk else {})

    def apply(params, f: Features) -> Features:
        unit = normalised(f.nngp, f.norm2)
        z = poly.apply(params["powers"], unit)
        half = jnp.asarray(0.5**0.5, unit.dtype)
        nngp = powers(z, c, sizes) * (half * safe_sqrt(f.norm2))[..., None]
        ntk = f.ntk
        if context.ntk:
            exact = (z[0], unit, *z[2:])
            dot = powers(exact, b, [a, *inner[1:]])
            ntk = half * mix.apply(params["mix"], ntk, dot)
        norm2 = jnp.sum(nngp**2, axis=-1) if spec.own_norms else f.norm2 / 2
        return Features(nngp, ntk, norm2)

    return Stage(
        "Relu (sketch)",
        Spec(first, product),
        apply,
        init,
        flops=spec.pixels
        * (poly.flops + (mix.flops + dotted if context.ntk else 0) + first),
        floats=spec.floats() + spec.pixels * (sum(dims) + dotted + 4 * context.width),
    )


def _coefficients(method: NTKSketch, order: int, degree: int, low: float) -> np.ndarray:
    if method.coefficients == "taylor":
        series = (kernels.kappa0_coefficients, kernels.kappa1_coefficients)
        return np.array(series[order](degree))
    fits = (kernels.fit_kappa0, kernels.fit_kappa1)
    return np.array(fits[order](degree, low=low).coefficients)
