r"""Method "variance_reduced", layer by layer.

At a Relu the features of one example (or patch) P split into what is the same for all
examples, P_c, what is linear in the input, and the rest. With a^2 = |P_c|^2 / |P|^2 and
e the direction of P - P_c, the cosine of two examples is a a' + rho rho' <e, e'>, where
rho^2 = 1 - a^2, and both arc-cosine kernels are expanded around a a':

    kappa(alpha) = sum_j kappa^(j)(a a') / j! (rho rho')^j <e, e'>^j.

The coefficients are taken as g_j(a) g_j(a'), exact for a = a'. The term j = 0 is one
exact column, the linear channels of j = 1 are exact columns, and all else is one zonal
function of w.e with alternating signs. The NTK's product has its constant and linear
parts exact likewise; the rest is a random projection of psi times a zonal function.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import kernels
from jax_ntk_sketch.kernels.gegenbauer import (
    gegenbauer_coefficients,
    gegenbauer_values,
    orthonormal_values,
)
from jax_ntk_sketch.methods import VarianceReduced
from jax_ntk_sketch.random_features import zonal_sum
from jax_ntk_sketch.rules.activation import relu, takes_patches
from jax_ntk_sketch.rules.projection import Patches
from jax_ntk_sketch.rules.stage import (
    Carried,
    Context,
    Features,
    Spec,
    Stage,
    safe_sqrt,
)

__all__: list[str] = []

# Of the expansion; what is left out at <e, e'> = 1 is in the plan.
_DEGREE = 6

_SIGNS = tuple(1.0 if i % 4 < 2 else -1.0 for i in range(_DEGREE + 1))


@takes_patches.register
def _(method: VarianceReduced, spec: Spec, context: Context) -> bool:
    return True


@relu.register
def _(method: VarianceReduced, spec: Spec, context: Context) -> Stage:
    columns = context.width
    first = max(1, columns // 2 if context.ntk else columns)
    c = spec.carried
    linears = c.linears if 4 * (len(c.linears) + 1) <= first else ()
    phi = Patches(spec.window, spec.nngp, spec.bias)
    num1 = max(1, first - 1 - len(linears))
    first = 1 + len(linears) + num1
    parts = {"kappa1": phi.directions(num1)}

    psi = Patches(spec.window, max(1, spec.ntk), spec.bias)
    product, num0 = 0, 0
    ntk_linears: tuple[int, ...] = ()
    has_constant = bool(c.ntk_constants) or bool(spec.bias)
    if context.ntk:
        share = max(1, columns - first)
        both = len(c.ntk_linears) + has_constant * len(linears)
        if 2 * (both + 1) <= share:
            ntk_linears = c.ntk_linears
        exact = int(has_constant) + len(ntk_linears)
        exact += has_constant * len(linears)
        num0 = max(1, share - exact)
        product = exact + num0
        parts |= {"kappa0": phi.directions(num0), "mix": psi.sketch(num0)}

    def init(key: jax.Array):
        keys = jax.random.split(key, len(parts))
        pairs = zip(parts.items(), keys, strict=True)
        return {name: p.part.init(k) for (name, p), k in pairs}

    def apply(params, f: Features) -> Features:
        dtype = f.nngp.dtype
        wide = jnp.promote_types(dtype, jnp.float32)  # half precision is for storage
        x, y = f.nngp.astype(wide), f.ntk.astype(wide)
        norm2 = phi.norm2(x)
        inverse = _inverse(norm2)
        constants = phi.means(x, c.constants)
        a2 = (jnp.sum(constants**2, axis=-1) + spec.bias**2) * inverse
        a2 = jnp.clip(a2, 0, 1)
        rho = safe_sqrt(1 - a2)
        to_unit = safe_sqrt(_inverse(norm2 * (1 - a2)))[..., None]
        means = phi.means(x, linears) * to_unit

        def zonal(name: str, g: list[jax.Array]):
            """f(w.e) with all degrees; and its linear part on the exact channels."""
            part = parts[name]
            z = part.apply(params[name], x)
            along, bias = part.along(params[name], (*c.constants, *linears), x.dtype)
            k = len(c.constants)
            z = z - jnp.matmul(constants, along[:k]) - (bias if spec.bias else 0)
            z = z * to_unit
            weights = [g[i][..., None] * _SIGNS[i] for i in range(_DEGREE + 1)]
            linear_weight, jump = weights[1], jnp.zeros((), x.dtype)
            if method.objective == "kernel":
                known, norm = _tail(int(name[-1]), part.dim)
                left = sum(gi**2 for gi in g)
                scale = safe_sqrt((norm2 > 0) - left)[..., None] * (1 / norm)
                bent = jnp.sign(z) if name == "kappa0" else -jnp.abs(z)
                jump = scale * bent
                weights = [w - scale * c for w, c in zip(weights, known, strict=True)]
            all_degrees = zonal_sum(z * part.dim**-0.5, weights, part.dim) + jump
            linear = jnp.matmul(means, along[k:]) * linear_weight
            return all_degrees, linear

        half = safe_sqrt(norm2 / 2)[..., None]
        some = norm2 > 0
        g = _weights(1, a2, rho, parts["kappa1"].dim, some)
        values, linear = zonal("kappa1", g)
        rest = (values - linear - g[0][..., None]) * num1**-0.5
        nngp = half * jnp.concatenate(
            [g[0][..., None], g[1][..., None] * means, rest], axis=-1
        )
        ntk = nngp[..., :0]
        if context.ntk:
            g = _weights(0, a2, rho, parts["kappa0"].dim, some)
            values, linear = zonal("kappa0", g)
            mixed = parts["mix"].apply(params["mix"], y)
            along, bias = parts["mix"].along(
                params["mix"], (*c.ntk_constants, *ntk_linears), x.dtype
            )
            k = len(c.ntk_constants)
            psi_constants = psi.means(y, c.ntk_constants)
            psi_linears = psi.means(y, ntk_linears)
            constant_part = jnp.matmul(psi_constants, along[:k])
            if spec.bias:
                constant_part = constant_part + bias
            exact_part = constant_part + jnp.matmul(psi_linears, along[k:])
            g0, g1 = g[0][..., None], g[1][..., None]
            rest = mixed * values - exact_part * g0 - constant_part * linear
            out = [rest]
            out.insert(0, psi_linears * g0)
            if has_constant:
                merged = safe_sqrt(jnp.sum(psi_constants**2, axis=-1) + spec.bias**2)[
                    ..., None
                ]
                out = [merged * g0, merged * g1 * means, *out]
            ntk = jnp.concatenate(out, axis=-1) * jnp.asarray(0.5**0.5, x.dtype)
        norm2 = jnp.sum(nngp**2, axis=-1)
        return Features(*(z.astype(dtype) for z in (nngp, ntk, norm2)))

    start = int(has_constant)
    more = has_constant * len(linears) + len(ntk_linears)
    carried = Carried(
        (0,),
        tuple(range(1, 1 + len(linears))),
        (0,) if has_constant and context.ntk else (),
        tuple(range(start, start + more)) if context.ntk else (),
    )

    def bias() -> str:
        orders = (1, 0) if context.ntk else (1,)
        means = bool(c.constants) or bool(spec.bias)
        worst = [
            _bias(o, parts[f"kappa{o}"].dim, method.objective, means) for o in orders
        ]
        return "bias <= " + ", ".join(
            f"{value:.2f} of {kind}"
            for value, kind in zip(worst, ("nngp", "ntk"), strict=False)
        )

    flops = sum(p.part.flops for p in parts.values())
    flops += (5 * _DEGREE + 2 * len(linears) + 8) * (num1 + num0)
    return Stage(
        "Relu (constant, linear, zonal)",
        Spec(first, product, carried=carried),
        apply,
        init,
        flops * spec.pixels,
        spec.floats() + (first + 4 * product) * spec.pixels,
        bias=bias,
    )


def _inverse(x: jax.Array) -> jax.Array:
    """1 / x, and 0 at 0."""
    zero = x <= 0
    return jnp.where(zero, 0, 1 / jnp.where(zero, 1, x))


def _weights(
    order: int, a2: jax.Array, rho: jax.Array, dim: int, some: Any = True
) -> list[jax.Array]:
    r"""g_l(a) of kappa_order, l = 0..6: coefficients of Gegenbauer's polynomials.

    They are 0 where `some` is not true.

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
        out.append(safe_sqrt(jnp.where(some, total + jnp.zeros_like(s), 0)))
    return out


@functools.lru_cache
def _bias(order: int, dim: int, objective: str, means: bool) -> float:
    """The largest difference of kappa_order and what its features expect.

    Over all a, a' (0 where inputs have no common part) and <e, e'>, rounded up.
    """
    a2 = np.linspace(0, 1, 41) if means else np.zeros(1)
    c = np.linspace(-1, 1, 81)
    with jax.ensure_compile_time_eval():
        rho = np.sqrt(1 - a2)
        weights = _weights(order, jnp.asarray(a2), jnp.asarray(rho), dim)
        g = np.stack([np.asarray(w, np.float64) for w in weights]).T
        alpha = np.sqrt(np.outer(a2, a2))[..., None] + np.outer(rho, rho)[..., None] * c
        kappa = kernels.kappa0 if order == 0 else kernels.kappa1
        exact = np.asarray(kappa(np.minimum(alpha, 1)), np.float64)
    p = gegenbauer_values(c, _DEGREE, dim)
    expected = np.einsum("il,jl,cl->ijc", g, g, p)
    if objective == "kernel":
        known, norm = _tail(order, dim)
        # Of sgn z and |z|, without the degrees that are known.
        whole = np.arcsin(c) * (2 / np.pi)
        if order == 1:
            whole = (np.sqrt(1 - c**2) + c * np.arcsin(c)) * (2 / np.pi)
        rest = (whole - p @ np.square(known)) / norm**2
        scale = np.sqrt(np.maximum(1 - (g**2).sum(axis=1), 0))
        expected += np.outer(scale, scale)[..., None] * rest
    return math.ceil(100 * np.abs(exact - expected).max()) / 100


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
