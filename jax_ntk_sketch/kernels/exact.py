r"""The exact kernels of fully connected networks, read layer by layer from a record.

Write `nngp` and `ntk` for the two kernels of a pair of inputs, and `q` for the NNGP
kernel of an input with itself. The input kernel is `nngp = <x, z> / d`, `ntk = 0`. Then

    Dense       nngp' = W_std^2 nngp + b_std^2,    ntk' = W_std^2 ntk + nngp'
    activation  nngp' = k(nngp, q_x, q_z),         ntk' = ntk k'(nngp, q_x, q_z)
    LayerNorm   both kernels over sqrt((q_x + eps)(q_z + eps))

where `k` and `k'` are the covariances of the activation's `dual`.

Source: Jacot, Gabriel and Hongler, Neural tangent kernel (2018), proposition 1 and
theorem 1; `neural_tangents.stax` for the scaling and for `LayerNorm`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._checks import check_get
from jax_ntk_sketch._numerics import at_least_float32, matmul
from jax_ntk_sketch._typing import Array, ArrayLike, Get, kernels_tuple
from jax_ntk_sketch.kernels.duals.activations import dual
from jax_ntk_sketch.stax.combinators import follow

_SUPPORTED = (
    stax.Dense,
    stax.Activation,
    stax.LayerNorm,
    stax.Identity,
    stax.Flatten,
    stax.FanOut,
    stax.FanInSum,
    stax.FanInProd,
)


class KernelPair(NamedTuple):
    """Both kernels: between two batches (n, m), or of each input with itself (n,)."""

    nngp: Array
    ntk: Array


class _Kernels(NamedTuple):
    """What flows from layer to layer.

    Attributes:
      cross: the kernels between two batches; None where only diagonals are wanted.
      x: the kernels of each input of the first batch with itself.
      z: the same for the second batch; None where it is the first one.
    """

    cross: KernelPair | None
    x: KernelPair
    z: KernelPair | None

    def map(self, function: Callable[[KernelPair], KernelPair]) -> "_Kernels":
        """Apply a function that acts on each entry of the kernels alone."""
        return _Kernels(
            None if self.cross is None else function(self.cross),
            function(self.x),
            None if self.z is None else function(self.z),
        )

    def map_diagonals(self, function: Callable[[KernelPair], KernelPair]) -> "_Kernels":
        """Apply a function to the diagonals, and leave `cross` out."""
        return self._replace(cross=None).map(function)


def supports_exact_kernel(net: stax.Layer) -> bool:
    """Return whether `exact_kernel` can read `net`.

    All layers must be `Dense` of parameterization "ntk", activations, `LayerNorm` over
    the channels, `Identity`, `Flatten`, or branches of these.

    >>> from jax_ntk_sketch import stax
    >>> from jax_ntk_sketch.kernels import supports_exact_kernel
    >>> supports_exact_kernel(stax.serial(stax.Dense(1), stax.Relu()))
    True
    >>> supports_exact_kernel(stax.Conv(1, (3, 3)))
    False
    """
    return _unsupported_layer(net) is None


def exact_kernel(
    net: stax.Layer, x: ArrayLike, z: ArrayLike | None = None, *, get: Get
) -> Array | KernelPair:
    r"""Return the exact kernel of a fully connected network between two batches.

    Args:
      net: a network of the layers that `supports_exact_kernel` lists; `Flatten` changes
        nothing.
      x: inputs, (n, d), real. Integers and booleans are converted to the default float.
      z: inputs, (m, d), real; None for `x` itself. The cosines on the diagonal are then
        exactly 1, which single precision needs there.
      get: "ntk", "nngp" or a tuple of both.

    Returns:
      (n, m), in the dtype of the inputs and in the scale of Neural Tangents. For a
      tuple `get`, a named tuple of such arrays in the order of `get`. Gradients are
      finite, also at zero vectors and where `x` and `z` coincide.

    Raises:
      TypeError: `net` has a layer that is not supported, or an input is complex.
      ValueError: `x` and `z` are not matrices of as many columns each, or `get` is
        neither a kernel nor a tuple of kernels.

    Cost: n m (d + O(layers)) operations and O(n m) memory, without batching.
    Guarantee: exact to rounding, except for the NTK of rows of `x` and `z` that almost
    coincide. `kappa0` is infinitely steep there and turns a relative rounding error
    eps into sqrt(eps), about 2e-4 in single precision.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch import kernels, stax
    >>> net = stax.serial(stax.Dense(9, 2**0.5), stax.Relu(), stax.Dense(1, 2**0.5))
    >>> x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> kernels.exact_kernel(net, x, get="ntk").round(4)
    Array([[50.,  0.],
           [ 0.,  0.]], dtype=float32)
    >>> ntk, nngp = kernels.exact_kernel(net, x, get=("ntk", "nngp"))
    """
    kinds = check_get("exact_kernel", get)
    layer = _unsupported_layer(net)
    if layer is not None:
        raise TypeError(
            'exact_kernel: net must consist of Dense of parameterization "ntk", '
            "activations, LayerNorm over the channels, Identity, Flatten and branches "
            f"of these, got {layer!r}; use jax_ntk_sketch.interop.neural_tangents."
            'to_stax or method="exact"'
        )
    x = _check_inputs("x", x)
    dtype = x.dtype
    if z is not None:
        z = _check_inputs("z", z)
        if x.shape[1] != z.shape[1]:
            raise ValueError(
                "exact_kernel: x and z must have the same number of columns, got "
                f"shapes {x.shape} and {z.shape}"
            )
        dtype = jnp.result_type(x, z)
        z = at_least_float32(z.astype(dtype))
    pair = _exact_kernels(net, at_least_float32(x.astype(dtype)), z)
    values = [getattr(pair, kind).astype(dtype) for kind in kinds]
    return values[0] if isinstance(get, str) else kernels_tuple(kinds)(*values)


def pairwise_kernels(net: stax.Layer, x: Array, z: Array | None = None) -> KernelPair:
    """Return both kernels (n, m) of inputs (n, d), (m, d) scaled by `d**-0.5`."""
    nngp = matmul(x, (x if z is None else z).T)
    second = None if z is None else _input_diagonal(z)
    start = _Kernels(KernelPair(nngp, jnp.zeros_like(nngp)), _input_diagonal(x), second)
    return follow(net, start, _after).cross


def diagonal_kernels(net: stax.Layer, x: Array) -> KernelPair:
    """Return both kernels (n,) of each input (n, d) with itself, scaled likewise."""
    start = _Kernels(None, _input_diagonal(x), None)
    return follow(net, start, _after).x


@functools.partial(jax.jit, static_argnums=0)
def _exact_kernels(net: stax.Layer, x: Array, z: Array | None) -> KernelPair:
    scale = jnp.asarray(x.shape[1] ** -0.5, x.dtype)
    return pairwise_kernels(net, x * scale, None if z is None else z * scale)


def _unsupported_layer(net: stax.Layer) -> stax.Layer | None:
    """Return the first layer without a rule of this module, or None."""
    for layer in stax.walk(net, into_branches=True):
        # Widths enter the kernel of another parameterization.
        standard = getattr(layer, "parameterization", "ntk") != "ntk"
        # `LayerNorm` over several axes is for images.
        several_axes = not isinstance(getattr(layer, "axis", 0), int)
        if not isinstance(layer, _SUPPORTED) or standard or several_axes:
            return layer
    return None


def _check_inputs(name: str, x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(
            f"exact_kernel: {name} must be a matrix (n, d) with d >= 1, got shape "
            f"{x.shape}"
        )
    if jnp.iscomplexobj(x):
        raise TypeError(f"exact_kernel: {name} must be real, got dtype {x.dtype}")
    return x.astype(jnp.result_type(x, float))


def _input_diagonal(x: Array) -> KernelPair:
    norm2 = jnp.sum(x**2, axis=-1)
    return KernelPair(norm2, jnp.zeros_like(norm2))


@functools.singledispatch
def _after(layer: stax.Layer, k: Any) -> _Kernels:
    """Return the kernels after a layer; one implementation per record type."""
    raise TypeError(f"{layer!r} has no rule for exact kernels")


@_after.register(stax.Identity)
@_after.register(stax.Flatten)
def _after_identity(layer: stax.Layer, k: _Kernels) -> _Kernels:
    return k


@_after.register
def _after_dense(layer: stax.Dense, k: _Kernels) -> _Kernels:
    weight, bias = layer.W_std**2, 0.0 if layer.b_std is None else layer.b_std**2

    def dense(pair: KernelPair) -> KernelPair:
        nngp = weight * pair.nngp + bias
        return KernelPair(nngp, weight * pair.ntk + nngp)

    return k.map(dense)


@_after.register
def _after_activation(layer: stax.Activation, k: _Kernels) -> _Kernels:
    activation = dual(layer)

    def on_diagonal(pair: KernelPair) -> KernelPair:
        nngp, slope = activation.diagonal(pair.nngp)
        return KernelPair(nngp, pair.ntk * slope)

    after = k.map_diagonals(on_diagonal)
    if k.cross is None:
        return after
    q_z = None if k.z is None else k.z.nngp
    nngp, slope = activation.kernels(k.cross.nngp, k.x.nngp, q_z)
    return after._replace(cross=KernelPair(nngp, k.cross.ntk * slope))


@_after.register
def _after_layer_norm(layer: stax.LayerNorm, k: _Kernels) -> _Kernels:
    def scale(pair: KernelPair) -> Array:
        return jax.lax.rsqrt(pair.nngp + jnp.asarray(layer.eps, pair.nngp.dtype))

    def scaled(pair: KernelPair, factor: Array) -> KernelPair:
        return KernelPair(pair.nngp * factor, pair.ntk * factor)

    after = k.map_diagonals(lambda pair: scaled(pair, scale(pair) ** 2))
    if k.cross is None:
        return after
    rows, columns = scale(k.x), scale(k.x if k.z is None else k.z)
    return after._replace(cross=scaled(k.cross, rows[:, None] * columns[None, :]))


@_after.register
def _after_fan_in_sum(layer: stax.FanInSum, k: list[_Kernels]) -> _Kernels:
    return jax.tree.map(lambda *parts: sum(parts), *k)


@_after.register
def _after_fan_in_prod(layer: stax.FanInProd, k: list[_Kernels]) -> _Kernels:
    def product(first: KernelPair, second: KernelPair) -> KernelPair:
        ntk = first.ntk * second.nngp + first.nngp * second.ntk
        return KernelPair(first.nngp * second.nngp, ntk)

    def is_pair(node: object) -> bool:
        return isinstance(node, KernelPair)

    return functools.reduce(
        lambda *two: jax.tree.map(product, *two, is_leaf=is_pair), k
    )
