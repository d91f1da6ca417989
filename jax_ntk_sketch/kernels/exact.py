"""Exact kernels between two batches, read layer by layer from a network's record.

With a subscript for the examples that a diagonal belongs to, `Dense` takes

    nngp' = W^2 nngp + b^2,                  ntk' = W^2 ntk + nngp'

an activation those of its `dual`, and `LayerNorm` divides both kernels by
`sqrt((nngp_xx + eps)(nngp_zz + eps))`, in which gradients see no parameters.

Source: Jacot, Gabriel and Hongler, Neural tangent kernel (2018), proposition 1 and
theorem 1; `neural_tangents.stax` for the scaling and for `LayerNorm`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_ntk_sketch import stax
from jax_ntk_sketch.kernels.duals.activations import dual

__all__ = [
    "Cross",
    "Diagonal",
    "cross_kernel",
    "diagonal",
    "fully_connected",
    "propagate",
]


class Diagonal(NamedTuple):
    """Both kernels of each example with itself, (n,) each."""

    nngp: jax.Array
    ntk: jax.Array


class Cross(NamedTuple):
    """Both kernels between two batches.

    Attributes:
      nngp, ntk: (n, m).
      x: the diagonals of the first batch, (n,).
      z: those of the second, (m,); None where it is the first.
    """

    nngp: jax.Array
    ntk: jax.Array
    x: Diagonal
    z: Diagonal | None


def fully_connected(net: stax.Layer) -> bool:
    """Whether `net` has only the layers that this module knows."""
    known = stax.Dense | stax.Activation | stax.Identity | stax.LayerNorm | stax.Flatten
    known |= stax.FanOut | stax.FanInSum | stax.FanInProd
    return all(
        isinstance(layer, known)
        and getattr(layer, "parameterization", "ntk") == "ntk"
        and isinstance(getattr(layer, "axis", 0), int)
        for layer in stax.walk(net, into_branches=True)
    )


def cross_kernel(
    net: stax.Layer, x: ArrayLike, z: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""The exact NNGP kernel and NTK of a fully connected network.

    Args:
      net: `Dense`, activations, `Identity` and `LayerNorm` layers; `Flatten` changes
        nothing.
      x: inputs, (n, d), real.
      z: inputs, (m, d); None for `x` itself: then the cosines on the diagonal are
        exactly 1, which single precision needs there.

    Returns:
      NNGP kernel and NTK, (n, m) each, as Neural Tangents scales them.

    Raises:
      ValueError: shapes that do not fit.
      TypeError: a layer that is not listed above.

    Cost: n m (d + O(layers)) operations, O(n m) memory.

    >>> net = stax.serial(stax.Dense(9, 2**0.5), stax.Relu(), stax.Dense(1, 2**0.5))
    >>> nngp, ntk = cross_kernel(net, jnp.array([[3.0, 4.0]]))
    >>> round(float(nngp[0, 0]), 3), round(float(ntk[0, 0]), 3)
    (25.0, 50.0)
    """
    x = jnp.asarray(x)
    x = x.astype(jnp.result_type(x, float))
    z = None if z is None else jnp.asarray(z).astype(x.dtype)
    other = x if z is None else z
    if x.ndim != 2 or other.ndim != 2 or x.shape[1] != other.shape[1]:
        raise ValueError(
            "cross_kernel: x and z must be matrices (n, d) and (m, d), got shapes "
            f"{x.shape} and {other.shape}"
        )
    scale = jnp.asarray(x.shape[1] ** -0.5, x.dtype)
    both = propagate(net, x * scale, None if z is None else z * scale)
    return both.nngp, both.ntk


def propagate(net: stax.Layer, x: jax.Array, z: jax.Array | None) -> Cross:
    """Both kernels of `net` on inputs whose inner products enter it: (n, d), (m, d)."""
    nngp = jnp.matmul(x, (x if z is None else z).T, precision=jax.lax.Precision.HIGHEST)
    start = Cross(nngp, jnp.zeros_like(nngp), _start(x), None)
    if z is not None:
        start = start._replace(z=_start(z))
    return _cross(net, start)


def diagonal(net: stax.Layer, x: jax.Array) -> Diagonal:
    """Both kernels of each example (n, d) with itself; scaled as in `propagate`."""
    return _diagonal(net, _start(x))


def _start(x: jax.Array) -> Diagonal:
    norm2 = jnp.sum(x**2, axis=-1)
    return Diagonal(norm2, jnp.zeros_like(norm2))


@functools.singledispatch
def _cross(layer: stax.Layer, k: Any) -> Any:
    """What a layer does to both kernels."""
    raise TypeError(f"no kernel between two batches for the layer {layer!r}")


@functools.singledispatch
def _diagonal(layer: stax.Layer, k: Any) -> Any:
    """What a layer does to both kernels of an example with itself."""
    raise TypeError(f"no kernel for the layer {layer!r}")


def _diagonals(layer: stax.Layer, k: Cross) -> tuple[Diagonal, Diagonal | None]:
    return _diagonal(layer, k.x), None if k.z is None else _diagonal(layer, k.z)


@_cross.register
def serial_cross(layer: stax.Serial, k: Cross) -> Cross:
    for inner in layer.layers:
        k = _cross(inner, k)
    return k


@_diagonal.register
def serial_diagonal(layer: stax.Serial, k: Diagonal) -> Diagonal:
    for inner in layer.layers:
        k = _diagonal(inner, k)
    return k


@_cross.register(stax.Identity)
@_cross.register(stax.Flatten)
@_diagonal.register(stax.Identity)
@_diagonal.register(stax.Flatten)
def identity_kernels(layer: stax.Layer, k):
    return k


@_cross.register(stax.FanOut)
@_diagonal.register(stax.FanOut)
def fan_out_kernels(layer: stax.FanOut, k):
    return [k] * layer.num


@_cross.register
def parallel_cross(layer: stax.Parallel, k: list[Cross]):
    return [_cross(*pair) for pair in zip(layer.layers, k, strict=True)]


@_diagonal.register
def parallel_diagonal(layer: stax.Parallel, k: list[Diagonal]):
    return [_diagonal(*pair) for pair in zip(layer.layers, k, strict=True)]


@_cross.register(stax.FanInSum)
@_diagonal.register(stax.FanInSum)
def fan_in_sum_kernels(layer: stax.FanInSum, k):
    return jax.tree.map(lambda *parts: sum(parts), *k)


@_cross.register(stax.FanInProd)
def fan_in_prod_cross(layer: stax.FanInProd, k: list[Cross]) -> Cross:
    x = _diagonal(layer, [one.x for one in k])
    z = None if k[0].z is None else _diagonal(layer, [one.z for one in k])
    return Cross(*_product(k), x, z)


@_diagonal.register(stax.FanInProd)
def fan_in_prod_diagonal(layer: stax.FanInProd, k: list[Diagonal]) -> Diagonal:
    return Diagonal(*_product(k))


def _product(k: list) -> tuple[jax.Array, jax.Array]:
    nngp, ntk = k[0].nngp, k[0].ntk
    for one in k[1:]:
        nngp, ntk = nngp * one.nngp, ntk * one.nngp + nngp * one.ntk
    return nngp, ntk


@_cross.register
def dense_cross(layer: stax.Dense, k: Cross) -> Cross:
    return Cross(*_dense(layer, k.nngp, k.ntk), *_diagonals(layer, k))


@_diagonal.register
def dense_diagonal(layer: stax.Dense, k: Diagonal) -> Diagonal:
    return Diagonal(*_dense(layer, k.nngp, k.ntk))


def _dense(
    layer: stax.Dense, nngp: jax.Array, ntk: jax.Array
) -> tuple[jax.Array, jax.Array]:
    if layer.parameterization != "ntk":
        raise TypeError(f'no kernel for {layer!r}; parameterization must be "ntk"')
    square = layer.W_std**2
    nngp = square * nngp + (layer.b_std or 0.0) ** 2
    return nngp, square * ntk + nngp


@_cross.register
def activation_cross(layer: stax.Activation, k: Cross) -> Cross:
    z = None if k.z is None else k.z.nngp
    nngp, derivative = dual(layer).kernels(k.nngp, k.x.nngp, z)
    return Cross(nngp, k.ntk * derivative, *_diagonals(layer, k))


@_diagonal.register
def activation_diagonal(layer: stax.Activation, k: Diagonal) -> Diagonal:
    nngp, derivative = dual(layer).diagonal(k.nngp)
    return Diagonal(nngp, k.ntk * derivative)


@_cross.register
def layer_norm_cross(layer: stax.LayerNorm, k: Cross) -> Cross:
    rows = _inverse_root(layer, k.x)
    columns = rows if k.z is None else _inverse_root(layer, k.z)
    scale = rows[:, None] * columns
    return Cross(k.nngp * scale, k.ntk * scale, *_diagonals(layer, k))


@_diagonal.register
def layer_norm_diagonal(layer: stax.LayerNorm, k: Diagonal) -> Diagonal:
    scale = _inverse_root(layer, k) ** 2
    return Diagonal(k.nngp * scale, k.ntk * scale)


def _inverse_root(layer: stax.LayerNorm, k: Diagonal) -> jax.Array:
    return jax.lax.rsqrt(k.nngp + jnp.asarray(layer.eps, k.nngp.dtype))
