r"""Method "nystrom", layer by layer: landmarks among the patches of a sample.

At an activation with dual kernels k and k', with P the features (patches of them,
behind a convolution), psi those of the NTK, and landmarks z among the P and psi of a
sample,

    nngp' = k(<P, z>, |P|^2, |z|^2) R1
    ntk'  = <psi, psi_z> k'(<P, z>, |P|^2, |z|^2) R0

The roots R1 and R0 hold principal directions of the features of the sample's patches.
The product kernel of the NTK is never sketched as a tensor product.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch._numerics import at_least_float32, safe_sqrt
from jax_ntk_sketch.features.methods.nystrom.network import (
    FLOPS_PER_KERNEL_ENTRY,
    candidates,
    check_sample,
    choose,
    most_candidates,
)
from jax_ntk_sketch.features.state import Features, PatchWindow, Spec
from jax_ntk_sketch.features.step import Context, Step, accepts_patches, activation_rule
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.kernels.nystrom import principal_sqrt
from jax_ntk_sketch.methods import Nystrom
from jax_ntk_sketch.sketch import Window

__all__: list[str] = []

# Of all columns those of the NNGP features, where both are wanted. From a quarter to
# the half NTK errors hardly differ; the number of landmarks is what counts.
_SHARE = 0.4


@accepts_patches.register
def nystrom_accepts_patches(method: Nystrom, spec: Spec, context: Context) -> bool:
    return True


@activation_rule.register
def nystrom_step(
    method: Nystrom, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    width, both = context.max_columns, context.wants_ntk
    first = max(1, round(_SHARE * width)) if both else width
    product = max(1, width - first) if both else 0
    slots = math.ceil(method.oversample * (width / 2 if both else width))
    slots = max(slots, first, product)
    # Without a convolution each position is its own patch.
    patches = spec.patches or PatchWindow(Window((1,) * len(spec.shape)))
    window, bias, ntk_bias = patches.window, patches.nngp_bias, patches.ntk_bias
    dims = (
        window.patch_dim(spec.nngp_dim, bias),
        window.patch_dim(spec.ntk_dim, ntk_bias),
    )

    def variances(norm2: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
        """For k and for k'."""
        if not spec.after_dropout:
            return norm2, own
        # No cosine is 1, not that of an example and itself.
        return (jnp.maximum(norm2, own),) * 2

    def init(key: jax.Array) -> dict[str, jax.Array]:
        shapes: dict[str, tuple[int, ...]] = {"z": (slots, dims[0]), "norm2": (slots,)}
        shapes["root1"] = (slots, first)
        if both:
            shapes |= {"psi": (slots, dims[1]), "root0": (slots, product)}
        return {name: jnp.zeros(shape) for name, shape in shapes.items()}

    @jax.jit
    def learn(key: jax.Array, f: Features) -> dict[str, jax.Array]:
        k1, k2 = jax.random.split(key)
        index = candidates(k1, f.nngp_diag.size, slots)
        norm2 = f.nngp_diag.reshape(-1)[index]
        x = _patches(window, bias, f.nngp, index)
        x2 = jnp.sum(x**2, axis=-1)
        q = variances(norm2, x2)
        psi = _patches(window, ntk_bias, f.ntk, index) if both else x[:, :0]

        def kernels(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Of all candidates and the candidates i."""
            z = (q[0][i], q[1][i])
            kernel, derivative = _kernels(dual, _dot(x, x[i]), q, z)
            return kernel, _dot(psi, psi[i]) * derivative

        def column(i: jax.Array) -> jax.Array:
            kernel, ntk = kernels(i)
            return kernel + ntk  # what Dense or Conv makes the NTK

        num = min(slots, len(index))
        value, slope = dual.diagonal(q[0])[0], dual.diagonal(q[1])[1]
        if spec.after_dropout:
            value, slope = dual.covariances(x2, q[0], q[0])
        own = value + jnp.sum(psi**2, axis=-1) * slope
        i = choose(method, k2, column, own, num)
        kernel, ntk = kernels(i)
        z = (q[0][i], q[1][i])
        same = z if spec.after_dropout else None
        gram, derivative = _kernels(dual, _dot(x[i], x[i]), z, same)
        params = {"z": x[i], "norm2": norm2[i]}
        params["root1"] = principal_sqrt(kernel, gram, first)
        if both:
            gram = _dot(psi[i], psi[i]) * derivative
            params |= {"psi": psi[i], "root0": principal_sqrt(ntk, gram, product)}
        # A small sample leaves landmarks that are not used.
        return {
            name: jnp.pad(array, [(0, slots - num), (0, 0)][: array.ndim])
            for name, array in params.items()
        }

    def fit(key: jax.Array, f: Features) -> dict[str, jax.Array]:
        check_sample(f)
        return learn(key, Features(*map(at_least_float32, f)))

    def apply(params: Any, f: Features) -> Features:
        dtype, f = f.nngp.dtype, Features(*map(at_least_float32, f))
        params = {name: array.astype(f.nngp.dtype) for name, array in params.items()}
        z = variances(params["norm2"], jnp.sum(params["z"] ** 2, axis=-1))
        x2 = window.sum(jnp.sum(f.nngp**2, axis=-1, keepdims=True))[..., 0] + bias**2
        dots = _project(window, bias, f.nngp, params["z"])
        q = variances(f.nngp_diag, x2)
        kernel, derivative = _kernels(dual, dots, q, z)
        nngp = _dot(kernel, params["root1"].T)
        ntk = nngp[..., :0]
        if both:
            derivative *= _project(window, ntk_bias, f.ntk, params["psi"])
            ntk = _dot(derivative, params["root0"].T)
        norm2 = dual.diagonal(q[0])[0]
        if spec.norms_from_features and not spec.after_dropout:
            norm2 = jnp.sum(nngp**2, axis=-1)
        return Features(*(x.astype(dtype) for x in (nngp, ntk, norm2)))

    kinds = 2 if both else 1
    flops = slots * (2 * sum(dims) + kinds * FLOPS_PER_KERNEL_ENTRY + 2 * width)
    floats = spec.live_elements() + spec.pixels * (4 * kinds * slots + width)
    return Step(
        name=f"{slots} landmarks",
        spec=Spec(first, product),
        apply=apply,
        init=init,
        flops=spec.pixels * flops,
        live_elements=floats,
        fit=fit,
        fit_elements=most_candidates(slots) * (sum(dims) + 4 * slots + width),
    )


def _kernels(
    dual: DualActivation,
    dots: jax.Array,
    x: tuple[jax.Array, jax.Array],
    z: tuple[jax.Array, jax.Array] | None,
) -> tuple[jax.Array, jax.Array]:
    """The dual kernels of features with inner products `dots` (..., m).

    x (...) and z (m,) are pairs of variances, the exact norms and the features' own:
    they differ where exact ones are known. With those k is right between different
    examples. k', infinitely steep at the cosine 1, needs the cosines of the features:
    on images of 8 x 8 pixels without pools and Relu the centred NTK error is .087, with
    the exact norms .111.
    """
    same = x if z is None else z
    most = safe_sqrt(x[0])[..., None] * safe_sqrt(same[0])
    clipped = jnp.clip(dots, -most, most)
    kernel, _ = dual.kernels(clipped, x[0], None if z is None else z[0])
    return kernel, dual.kernels(dots, x[1], None if z is None else z[1])[1]


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
