r"""Method "nystrom", layer by layer: landmarks among the patches of a sample.

At a `Relu`, with P the features (patches of them, behind a convolution), psi those of
the NTK, and landmarks z among the P and psi of a sample,

    nngp' = |P| kappa1(cos(P, z)) R1 / sqrt(2)
    ntk'  = <psi, psi_z> kappa0(cos(P, z)) R0 / 2

The roots R1 and R0 hold principal directions of the features of the sample's patches.
The product kernel of the NTK is never sketched as a tensor product.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch.kernels import principal_root, relu_kernels
from jax_ntk_sketch.methods import Nystrom
from jax_ntk_sketch.rules.activation import relu, takes_patches
from jax_ntk_sketch.rules.nystrom import (
    ENTRY,
    candidates,
    check_sample,
    choose,
    most_candidates,
    promoted,
)
from jax_ntk_sketch.rules.stage import (
    Context,
    Features,
    Spec,
    Stage,
    normalised,
    safe_sqrt,
)
from jax_ntk_sketch.sketch import Window

__all__: list[str] = []

# Of all columns those of the NNGP features, where both are wanted. From a quarter to
# the half NTK errors hardly differ; the number of landmarks is what counts.
_SHARE = 0.4


@takes_patches.register
def _(method: Nystrom, spec: Spec, context: Context) -> bool:
    return True


@relu.register
def _(method: Nystrom, spec: Spec, context: Context) -> Stage:
    width, both = context.width, context.ntk
    first = max(1, round(_SHARE * width)) if both else width
    product = max(1, width - first) if both else 0
    slots = math.ceil(method.oversample * (width / 2 if both else width))
    slots = max(slots, first, product)
    # Without a convolution each position is its own patch.
    window, bias = spec.window or Window((1,) * len(spec.shape)), spec.bias
    p, q = (window.patch_dim(size, bias) for size in (spec.nngp, spec.ntk))

    def init(key: jax.Array) -> dict[str, jax.Array]:
        shapes = {"z": (slots, p), "root1": (slots, first)}
        if both:
            shapes |= {"psi": (slots, q), "root0": (slots, product)}
        return {name: jnp.zeros(shape) for name, shape in shapes.items()}

    @jax.jit
    def learn(key: jax.Array, f: Features) -> dict[str, jax.Array]:
        k1, k2 = jax.random.split(key)
        index = candidates(k1, f.norm2.size, slots)
        norm2 = f.norm2.reshape(-1)[index]
        norm = safe_sqrt(norm2)[:, None]
        x = normalised(_patches(window, bias, f.nngp, index), norm2)
        x2 = jnp.sum(x**2, axis=-1)
        psi = _patches(window, bias, f.ntk, index) if both else x[:, :0]

        def kernels(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Of all candidates and the candidates i, divided by the norms of i."""
            kernel, derivative = _kernels(_dot(x, x[i]), x2, x2[i])
            return norm * kernel, _dot(psi, psi[i]) * derivative

        def column(i: jax.Array) -> jax.Array:
            kernel, ntk = kernels(i)
            return norm[i, 0] * kernel + ntk  # what Dense or Conv makes the NTK

        num = min(slots, len(index))
        own = (norm2 + jnp.sum(psi**2, axis=-1)) / 2
        i = choose(method, k2, column, own, num)
        kernel, ntk = kernels(i)
        gram, derivative = _kernels(_dot(x[i], x[i]), x2[i], None)
        params = {"z": x[i], "root1": principal_root(kernel, gram, first)}
        if both:
            gram = _dot(psi[i], psi[i]) * derivative
            params |= {"psi": psi[i], "root0": principal_root(ntk, gram, product)}
        # A small sample leaves landmarks that are not used.
        more = [(0, slots - num), (0, 0)]
        return {name: jnp.pad(array, more) for name, array in params.items()}

    def fit(key: jax.Array, f: Features) -> dict[str, jax.Array]:
        check_sample(f)
        return learn(key, Features(*map(promoted, f)))

    def apply(params: Any, f: Features) -> Features:
        dtype, f = f.nngp.dtype, Features(*map(promoted, f))
        params = {name: array.astype(f.nngp.dtype) for name, array in params.items()}
        z2 = jnp.sum(params["z"] ** 2, axis=-1)
        # |P|^2 / norm2, which is 1 where norm2 are the features' own norms.
        x2 = window.sum(jnp.sum(f.nngp**2, axis=-1, keepdims=True)) + bias**2
        x2 = jnp.where(f.norm2 > 0, x2[..., 0] / jnp.where(f.norm2 > 0, f.norm2, 1), 0)
        dots = normalised(_project(window, bias, f.nngp, params["z"]), f.norm2)
        kernel, derivative = _kernels(dots, x2, z2)
        nngp = _dot(safe_sqrt(f.norm2)[..., None] * kernel, params["root1"].T)
        ntk = nngp[..., :0]
        if both:
            derivative *= _project(window, bias, f.ntk, params["psi"])
            ntk = _dot(derivative, params["root0"].T)
        norm2 = jnp.sum(nngp**2, axis=-1) if spec.own_norms else f.norm2 / 2
        return Features(*(x.astype(dtype) for x in (nngp, ntk, norm2)))

    kinds = 2 if both else 1
    flops = slots * (2 * (p + q) + kinds * ENTRY + 2 * width)
    floats = spec.floats() + spec.pixels * (4 * kinds * slots + width)
    return Stage(
        f"Relu ({slots} landmarks)",
        Spec(first, product),
        apply,
        init,
        spec.pixels * flops,
        floats,
        fit,
        fit_floats=most_candidates(slots) * (p + q + 4 * slots + width),
    )


def _kernels(
    dots: jax.Array, x2: jax.Array, z2: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """kappa1 / 2 and kappa0 / 2 of features over their norms, with inner products
    `dots` (..., m) and squares x2 (...), z2 (m,).

    The squares are 1, except where norms are exact and features are not. Then kappa1
    of `dots` is right between different examples. kappa0, infinitely steep at 1, needs
    the cosines: on images of 8 x 8 pixels without pools the centred NTK error is .087,
    from the products .111.
    """

    def ones(a: jax.Array) -> jax.Array:
        return (a > 0).astype(dots.dtype)

    kernel, _ = relu_kernels(dots, ones(x2), None if z2 is None else ones(z2))
    return kernel, relu_kernels(dots, x2, z2)[1]


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products of rows: (..., k) and (m, k) to (..., m)."""
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _project(window: Window, bias: float, x: jax.Array, z: jax.Array) -> jax.Array:
    """Inner products of all patches of `x` (n, *spatial, c) with the rows of z (m, p).

    A sum over the offsets in the window: patches are not formed.
    """
    c = x.shape[-1]
    total: Any = bias * z[:, -1] if bias else 0
    for i, pixels in enumerate(window.shifts(x)):
        total = total + _dot(pixels, z[:, i * c : (i + 1) * c])
    return total


def _patches(window: Window, bias: float, x: jax.Array, index: jax.Array) -> jax.Array:
    """Some of the patches of `x` (n, *spatial, c), of all images, (len(index), p)."""
    *axes, c = x.shape
    # The numbers of the pixels in each patch; 0 is the border.
    pixels = jnp.arange(1, 1 + math.prod(axes)).reshape(*axes, 1)
    numbers = window.patches(pixels).reshape(-1, window.size)[index]
    rows = jnp.concatenate([jnp.zeros((1, c), x.dtype), x.reshape(-1, c)])
    parts = [rows[numbers].reshape(len(index), -1)]
    if bias:
        parts.append(jnp.full((len(index), 1), bias, x.dtype))
    return jnp.concatenate(parts, axis=-1)
