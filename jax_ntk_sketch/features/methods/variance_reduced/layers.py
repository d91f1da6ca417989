r"""Method "variance_reduced", layer by layer.

At an activation the features of one example (or patch) P split into what is the same
for all examples, P_c, what is linear in the input, and the rest. With
a^2 = |P_c|^2 / |P|^2 and e the direction of P - P_c, the cosine of two examples is
a a' + rho rho' <e, e'>, where rho^2 = 1 - a^2, and both dual kernels are expanded
around a a':

    k(alpha) = sum_j k^(j)(a a') / j! (rho rho')^j <e, e'>^j.

Behind Dropout the variance, q, is more than |P|^2 and takes its place, so that a^2 +
rho^2 = |P|^2 / q. The term j has then a factor t^j t'^j, t^2 = rho^2 / (1 - a^2), more.
The coefficients are taken as g_j g_j', exact for equal a and |P|; where nothing is the
same for all examples they are exact for all |P|. The term j = 0 is one exact column,
the linear channels of j = 1 are exact columns, and all else is one zonal function of
w.e with alternating signs. The NTK's product has its constant and linear parts exact
likewise; the rest is a random projection of psi times a zonal function.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import kernels
from jax_ntk_sketch._numerics import evaluate_eagerly, safe_reciprocal, safe_sqrt
from jax_ntk_sketch._typing import Kind, PyTree
from jax_ntk_sketch.features.layers.activations import reference_coefficients
from jax_ntk_sketch.features.patches import Patches
from jax_ntk_sketch.features.state import ExactColumns, Features, Spec
from jax_ntk_sketch.features.step import Context, Step, accepts_patches, activation_rule
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.kernels.duals.homogeneous import Homogeneous
from jax_ntk_sketch.kernels.gegenbauer import (
    gegenbauer_coefficients,
    gegenbauer_values,
    orthonormal_values,
)
from jax_ntk_sketch.methods import VarianceReduced
from jax_ntk_sketch.random_features.zonal import gegenbauer_series_sum

__all__: list[str] = []

# Of the expansion; what is left out at <e, e'> = 1 is in the plan.
_DEGREE = 6

# Of the Hermite series of an activation that is no rectifier.
_SERIES = 24

_SIGNS = tuple(1.0 if i % 4 < 2 else -1.0 for i in range(_DEGREE + 1))


@accepts_patches.register
def variance_reduced_accepts_patches(
    method: VarianceReduced, spec: Spec, context: Context
) -> bool:
    return True


@activation_rule.register
def variance_reduced_step(
    method: VarianceReduced, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    columns = context.max_columns
    first = max(1, columns // 2 if context.wants_ntk else columns)
    c = spec.exact_columns
    phi, psi = Patches.of(spec, "nngp"), Patches.of(spec, "ntk")
    # Even functions have no linear part, unless something constant shifts them.
    means_known = bool(c.constants) or bool(phi.bias)
    some = means_known or reference_coefficients(dual, 1)[0][1] > 0
    linears = c.linears if some and 4 * len(c.linears) <= first else ()
    num1 = max(1, first - 1 - len(linears))
    first = 1 + len(linears) + num1
    parts = {"kappa1": phi.directions(num1)}

    product, num0 = 0, 0
    ntk_linears: tuple[int, ...] = ()
    has_constant = bool(c.ntk_constants) or bool(psi.bias)
    tails = {o: _kinked(dual, o) for o in (0, 1) if method.objective == "kernel"}
    if context.wants_ntk:
        share = max(1, columns - first)
        both = len(c.ntk_linears) + has_constant * len(linears)
        if 2 * both <= share:
            ntk_linears = c.ntk_linears
        exact = int(has_constant) + len(ntk_linears)
        exact += has_constant * len(linears)
        num0 = max(1, share - exact)
        product = exact + num0
        parts |= {"kappa0": phi.directions(num0), "mix": psi.sketch(num0)}

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(parts))
        pairs = zip(parts.items(), keys, strict=True)
        return {name: p.init(k) for (name, p), k in pairs}

    def apply(params: PyTree, f: Features) -> Features:
        dtype = f.nngp.dtype
        wide = jnp.promote_types(dtype, jnp.float32)  # half precision is for storage
        x, y = f.nngp.astype(wide), f.ntk.astype(wide)
        own = q = phi.squared_norms(x)
        r: Any = 1.0
        if spec.after_dropout:
            q = jnp.maximum(f.nngp_diag.astype(wide), own)
            r = own * safe_reciprocal(q)
        constants = phi.channel_means(x, c.constants)
        a2 = (jnp.sum(constants**2, axis=-1) + phi.bias**2) * safe_reciprocal(q)
        a2 = jnp.clip(a2, 0, r)
        rho = safe_sqrt(1 - a2)
        ratio = (r - a2) * safe_reciprocal(1 - a2) if spec.after_dropout else 1.0
        to_unit = safe_sqrt(safe_reciprocal(q * (r - a2)))[..., None]
        means = phi.channel_means(x, linears) * to_unit

        def zonal(
            name: str, g: list[jax.Array], total: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            """f(w.e) with all degrees; and its linear part on the exact channels."""
            part = parts[name]
            z = part.apply(params[name], x)
            along, bias = part.apply_to_channel_means(
                params[name], (*c.constants, *linears), x.dtype
            )
            k = len(c.constants)
            z = z - jnp.matmul(constants, along[:k]) - (bias if phi.bias else 0)
            z = z * to_unit
            weights = [g[i][..., None] * _SIGNS[i] for i in range(_DEGREE + 1)]
            linear_weight, jump = weights[1], jnp.zeros((), x.dtype)
            tail = tails.get(int(name[-1]))
            if tail:
                known, norm = _tail(tail.power, part.sphere_dim)
                left = total - sum(gi**2 for gi in g)
                scale = safe_sqrt(left)[..., None] * (1 / norm)
                bent = -jnp.abs(z) if tail.power else jnp.sign(z)
                jump = scale * bent
                weights = [w - scale * c for w, c in zip(weights, known, strict=True)]
            all_degrees = (
                gegenbauer_series_sum(
                    z * part.sphere_dim**-0.5, weights, part.sphere_dim
                )
                + jump
            )
            linear = jnp.matmul(means, along[k:]) * linear_weight
            return all_degrees, linear

        total, slopes = (
            dual.covariances(own, q, q) if spec.after_dropout else dual.diagonal(q)
        )
        g = _weights(
            dual, 1, q, a2, rho, parts["kappa1"].sphere_dim, not means_known, ratio
        )
        values, linear = zonal("kappa1", g, total)
        rest = (values - linear - g[0][..., None]) * num1**-0.5
        nngp = jnp.concatenate([g[0][..., None], g[1][..., None] * means, rest], -1)
        ntk = nngp[..., :0]
        if context.wants_ntk:
            dim = parts["kappa0"].sphere_dim
            g = _weights(dual, 0, q, a2, rho, dim, not means_known, ratio)
            values, linear = zonal("kappa0", g, jnp.where(q > 0, slopes, 0))
            mixed = parts["mix"].apply(params["mix"], y)
            along, bias = parts["mix"].apply_to_channel_means(
                params["mix"], (*c.ntk_constants, *ntk_linears), x.dtype
            )
            k = len(c.ntk_constants)
            psi_constants = psi.channel_means(y, c.ntk_constants)
            psi_linears = psi.channel_means(y, ntk_linears)
            constant_part = jnp.matmul(psi_constants, along[:k])
            if psi.bias:
                constant_part = constant_part + bias
            exact_part = constant_part + jnp.matmul(psi_linears, along[k:])
            g0, g1 = g[0][..., None], g[1][..., None]
            rest = mixed * values - exact_part * g0 - constant_part * linear
            out = [rest]
            out.insert(0, psi_linears * g0)
            if has_constant:
                merged = safe_sqrt(jnp.sum(psi_constants**2, axis=-1) + psi.bias**2)[
                    ..., None
                ]
                out = [merged * g0, merged * g1 * means, *out]
            ntk = jnp.concatenate(out, axis=-1)
        norm2 = jnp.sum(nngp**2, axis=-1)
        if spec.after_dropout:
            norm2 = dual.diagonal(q)[0]
        return Features(*(z.astype(dtype) for z in (nngp, ntk, norm2)))

    start = int(has_constant)
    more = has_constant * len(linears) + len(ntk_linears)
    carried = ExactColumns(
        (0,),
        tuple(range(1, 1 + len(linears))),
        (0,) if has_constant and context.wants_ntk else (),
        tuple(range(start, start + more)) if context.wants_ntk else (),
    )

    def bias() -> dict[Kind, float]:
        orders: dict[Kind, int] = {"nngp": 1}
        if context.wants_ntk:
            orders["ntk"] = 0
        return {
            kind: _bias(
                dual,
                order,
                parts[f"kappa{order}"].sphere_dim,
                bool(tails.get(order)),
                means_known,
                spec.after_dropout,
            )
            for kind, order in orders.items()
        }

    flops = sum(p.flops for p in parts.values())
    flops += (5 * _DEGREE + 2 * len(linears) + 8) * (num1 + num0)
    return Step(
        name="constant, linear, zonal",
        spec=Spec(first, product, exact_columns=carried),
        apply=apply,
        init=init,
        flops=flops * spec.pixels,
        live_elements=spec.live_elements() + (first + 4 * product) * spec.pixels,
        bias=bias,
    )


def _kinked(dual: DualActivation, order: int) -> Homogeneous | None:
    """The activation, or its derivative (order 0), if it is a step or has a kink.

    Its series then decays slowly.
    """
    if not isinstance(dual, Homogeneous):
        return None
    function = dual if order else dual.derivative
    return function if function and function.power <= 1 else None


def _weights(
    dual: DualActivation,
    order: int,
    norm2: jax.Array,
    a2: jax.Array,
    rho: jax.Array,
    dim: int,
    signed: bool,
    ratio: jax.Array | float = 1.0,
) -> list[jax.Array]:
    """g_0 ... g_6, coefficients of Gegenbauer's polynomials of the sphere in `dim`.

    Args:
      order: 1 for the activation, 0 for its derivative.
      norm2, a2, rho: |P|^2 (behind Dropout q), a^2 and (1 - a^2)^(1/2).
      signed: a is 0 everywhere; then they have the signs of Hermite coefficients.
      ratio: t^2, less than 1 behind Dropout.
    """
    signs: Any = np.ones(_DEGREE + 1)
    terms: list[Any]
    kinked = _kinked(dual, order)
    if kinked:
        # With u = kappa_k: half the square of p + n (p - n for a step) times u, and
        # -p n alpha (p n) more.
        p, n, power = kinked.positive, kinked.negative, kinked.power
        square = norm2 if power else (norm2 > 0).astype(norm2.dtype)
        scale = (p + n) ** 2 / 2 if power else (p - n) ** 2 / 2
        terms = [scale * t for t in _kappa_terms(power, a2, rho)]
        linear = [-p * n * a2, -p * n * rho**2] if power else [p * n]
        for j, term in enumerate(linear):
            terms[j] = terms[j] + term
        terms = [square * t for t in terms]
    else:
        s = safe_sqrt(norm2)
        series = dual.coefficients if order else dual.slope_coefficients
        a = series(s, _SERIES)
        terms = []
        for j in range(_DEGREE + 1):
            t = jnp.zeros_like(a2)
            for i in range(_SERIES, j - 1, -1):
                t = t * a2 + math.comb(i, j) * a[..., i] ** 2
            terms.append(t * rho ** (2 * j))
        if signed:
            signs = jnp.moveaxis(jnp.where(a < 0, -1, 1), -1, 0)
    terms = [t * ratio**j for j, t in enumerate(terms)]
    change = np.stack(
        [gegenbauer_coefficients(row, dim) for row in np.eye(_DEGREE + 1)]
    )
    out = []
    for i in range(_DEGREE + 1):
        total = sum(
            float(change[j, i]) * terms[j]
            for j in range(_DEGREE + 1)
            if change[j, i] > 1e-9
        )
        out.append(signs[i] * safe_sqrt(total + jnp.zeros_like(a2)))
    return out


def _kappa_terms(order: int, a2: jax.Array, rho: jax.Array) -> list[jax.Array]:
    r"""kappa_order^(j)(a^2) rho^(2j) / j! for j = 0..6.

    With :math:`y = (1-s^2)^{-1/2}`, :math:`\kappa_0' = y / \pi`; the derivatives of y
    are :math:`u_n (1-s^2)^{-n-1/2}` with
    :math:`u_{n+1} = (2n+1) s u_n + n^2 (1-s^2) u_{n-1}`, all positive.
    """
    s = a2
    terms = [kernels.kappa1(s), kernels.kappa0(s) * rho**2]
    power = rho**3
    if order == 0:
        terms, power = [kernels.kappa0(s)], rho
    u, before = jnp.ones_like(s), jnp.zeros_like(s)
    for n in range(_DEGREE + 1 - len(terms)):
        j = len(terms)
        terms.append(u * power / (math.pi * math.factorial(j) * (1 + s) ** (n + 0.5)))
        u, before = (2 * n + 1) * s * u + n * n * rho**2 * (1 + s) * before, u
    return terms


@functools.lru_cache(maxsize=64)
def _bias(
    dual: DualActivation, order: int, dim: int, tail: bool, means: bool, dropped: bool
) -> float:
    """The largest difference of a dual kernel and what its features expect.

    At variance 1, relative to the kernel at cosine 1 (of derivatives, at most; as much
    of the NTK), over all a, a' (0 where inputs have no common part), <e, e'> and,
    behind Dropout, t and t', rounded up.
    """
    fine = dual.homogeneity_degree is not None
    a2 = np.linspace(0, 1, 41 if fine else 11) if means else np.zeros(1)
    c = np.linspace(-1, 1, 81 if fine else 41)
    ratio = np.linspace(0, 1, 5 if fine else 3) if dropped else np.ones(1)
    a2, ratio = (z.reshape(-1) for z in np.meshgrid(a2, ratio))
    rho = np.sqrt(1 - a2)
    rest = rho * np.sqrt(ratio)
    alpha = np.sqrt(np.outer(a2, a2))[..., None] + np.outer(rest, rest)[..., None] * c
    own = a2 + rest**2

    def evaluate() -> tuple[np.ndarray, ...]:
        one = jnp.ones(())
        inputs = (jnp.ones(len(a2)), jnp.asarray(a2), jnp.asarray(rho))
        weights = _weights(dual, order, *inputs, dim, not means, jnp.asarray(ratio))
        pair = dual.covariances(jnp.asarray(np.minimum(alpha, 1)), one, one)
        whole = dual.diagonal(one)[1 - order]
        seen = (
            dual.covariances(jnp.asarray(own), one, one)[1 - order]
            if dropped
            else whole
        )
        parts = (jnp.stack(weights, -1), pair[1 - order], seen, whole)
        return tuple(np.asarray(part, np.float64) for part in parts)

    g, exact, seen, total = evaluate_eagerly(evaluate)
    p = gegenbauer_values(c, _DEGREE, dim)
    expected = np.einsum("il,jl,cl->ijc", g, g, p)
    kinked = _kinked(dual, order)
    if tail and kinked:
        known, norm = _tail(kinked.power, dim)
        # Of sgn z and |z|, without the degrees that are known.
        whole = np.arcsin(c) * (2 / np.pi)
        if kinked.power == 1:
            whole = (np.sqrt(1 - c**2) + c * np.arcsin(c)) * (2 / np.pi)
        rest = (whole - p @ np.square(known)) / norm**2
        scale = np.sqrt(np.maximum(seen - (g**2).sum(axis=1), 0))
        expected += np.outer(scale, scale)[..., None] * rest
    if not total:
        return 0.0
    return math.ceil(100 * np.abs(exact - expected).max() / total) / 100


@functools.lru_cache
def _tail(order: int, dim: int) -> tuple[tuple[float, ...], float]:
    """Of sgn z, or -|z|: coefficients up to degree 6, and the norm of the rest.

    z = t sqrt(dim), and t is the cosine of an angle of density sin^(dim-2).
    """
    angle = (np.arange(100_000) + 0.5) * (np.pi / 100_000)
    log = (dim - 2) * np.log(np.sin(angle))
    density = np.exp(log - log.max())
    density /= density.sum()
    t = np.cos(angle)
    values = np.sign(t) if order == 0 else -np.abs(t) * math.sqrt(dim)
    h = orthonormal_values(t, _DEGREE, dim)
    known = (density * values) @ h
    rest = density @ values**2 - known @ known
    return tuple(map(float, known)), math.sqrt(rest)
