"""Method "ntk_random_features" (arXiv 2106.07880, Algorithm 2)."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch.methods import NTKRandomFeatures
from jax_ntk_sketch.random_features import ReluFeatures, StepFeatures
from jax_ntk_sketch.rules.activation import relu
from jax_ntk_sketch.rules.stage import Context, Features, Spec, Stage
from jax_ntk_sketch.sketch import SRHT, TensorSRHT

__all__: list[str] = []


@relu.register
def _(method: NTKRandomFeatures, spec: Spec, context: Context) -> Stage:
    if context.ntk:
        first = max(1, int(method.kappa1_share * context.width))
        product = max(1, context.width - first)
    else:
        first, product = max(1, context.width), 0
    kappa1 = ReluFeatures(spec.nngp, first, method.directions, method.antithetic)
    kappa0 = StepFeatures(spec.nngp, max(1, product), method.directions)
    mix: SRHT | TensorSRHT
    if method.product == "direct":
        mix = SRHT(max(1, spec.ntk), max(1, product))
    else:
        mix = TensorSRHT((max(1, product), max(1, spec.ntk)), max(1, product))

    def init(key: jax.Array):
        keys = jax.random.split(key, 3)
        params: dict[str, Any] = {"kappa1": kappa1.init(keys[0])}
        if context.ntk:
            params |= {"kappa0": kappa0.init(keys[1]), "mix": mix.init(keys[2])}
        return params

    def apply(params, f: Features) -> Features:
        ntk = f.ntk
        if context.ntk:
            step = kappa0.apply(params["kappa0"], f.nngp)
            if isinstance(mix, TensorSRHT):
                ntk = mix.apply(params["mix"], step, ntk)
            else:
                # Both factors carry a scale m^(-1/2); their product needs one.
                scale = jnp.asarray(product**0.5, ntk.dtype)
                ntk = mix.apply(params["mix"], ntk) * (step * scale)
        return Features(kappa1.apply(params["kappa1"], f.nngp), ntk, f.norm2 / 2)

    flops = kappa1.flops + (kappa0.flops + mix.flops + product if context.ntk else 0)
    floats = spec.nngp + spec.ntk + first + 3 * product
    return Stage(
        "Relu (random features)", Spec(first, product), apply, init, flops, floats
    )
