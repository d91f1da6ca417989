r"""Closed-form NNGP and NTK of fully connected ReLU networks of any depth.

With dense layers l = 0..depth and a rectifier between each two, for inputs of size d,

    nngp_0 = W_0^2 <x, y> / d + b_0^2,               ntk_0 = nngp_0
    nngp_l = W_l^2 N kappa1(alpha) / 2 + b_l^2
    ntk_l  = W_l^2 ntk_{l-1} kappa0(alpha) / 2 + nngp_l

where `N^2 = nngp_{l-1}(x, x) nngp_{l-1}(y, y)` and `alpha = nngp_{l-1}(x, y) / N`.

Source: Jacot, Gabriel and Hongler, Neural tangent kernel (2018), proposition 1 and
theorem 1; scaling as in `neural_tangents.stax` ("ntk" parameterization).
"""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch.kernels.duals.homogeneous import relu_kernels

__all__ = ["fully_connected_diag", "fully_connected_kernel"]

Scale = float | Sequence[float | None] | None


def fully_connected_kernel(
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    get: str | tuple[str, ...] = "ntk",
    depth: int,
    W_std: Scale = 1.0,
    b_std: Scale = None,
) -> Any:
    r"""The exact kernel of a fully connected ReLU network, all pairs of two batches.

    Without biases and with one `W_std` the NTK is
    `(W_std^2 / 2)^depth W_std^2 / d |x| |y| K_depth(cos)`, see `ntk_coefficients`.

    Args:
      x1: inputs, (n1, d); integers and booleans are converted to the default float.
      x2: inputs, (n2, d); None for `x1` itself: then the cosines on the diagonal
        are exactly 1, which single precision needs there.
      get: "ntk", "nngp" or a tuple of them.
      depth: number of hidden ReLU layers, >= 0; there are depth + 1 dense layers.
      W_std: standard deviation of the weights, one number or depth + 1, >= 0.
      b_std: standard deviation of the biases, one number or depth + 1, >= 0; None
        for no bias.

    Returns:
      (n1, n2), in the dtype of the inputs; for a tuple `get`, a named tuple of such
      arrays. Differentiable with finite gradients, also at zero vectors and where
      `x1` and `x2` coincide.

    Raises:
      TypeError, ValueError: an argument of the wrong type, shape or range, named.

    Cost: n1 n2 (d + O(depth)) operations, O(n1 n2) memory; no batching.

    Accuracy: to rounding, except for the NTK of rows of `x1` and `x2` that (almost)
    coincide: kappa0 is infinitely steep there and turns a relative rounding error
    eps into sqrt(eps), about 2e-4 in single precision.

    >>> x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> fully_connected_kernel(x, depth=1, W_std=2**0.5).round(4)
    Array([[50.,  0.],
           [ 0.,  0.]], dtype=float32)
    """
    where = "fully_connected_kernel"
    names = _names(where, get)
    weights, biases = _scales(where, depth, W_std, b_std)
    x1 = _inputs(where, "x1", x1)
    if x2 is None:
        dtype = x1.dtype
        both = _kernels(_promoted(x1), None, weights, biases)
    else:
        x2 = _inputs(where, "x2", x2)
        if x1.shape[1] != x2.shape[1]:
            raise ValueError(
                f"{where}: x1 and x2 must have the same number of columns, "
                f"got {x1.shape} and {x2.shape}"
            )
        dtype = jnp.result_type(x1, x2)
        x1, x2 = x1.astype(dtype), x2.astype(dtype)
        both = _kernels(_promoted(x1), _promoted(x2), weights, biases)
    return _select(get, names, both, dtype)


def fully_connected_diag(
    x: ArrayLike,
    *,
    get: str | tuple[str, ...] = "ntk",
    depth: int,
    W_std: Scale = 1.0,
    b_std: Scale = None,
) -> Any:
    r"""The diagonal of `fully_connected_kernel(x, ...)`: exact squared norms.

    `nngp_l = W_l^2 nngp_{l-1} / 2 + b_l^2`, `ntk_l = W_l^2 ntk_{l-1} / 2 + nngp_l`.

    Args:
      x: inputs, (n, d).
      get, depth, W_std, b_std: as for `fully_connected_kernel`.

    Returns:
      (n,), in the dtype of `x`; for a tuple `get`, a named tuple. O(n d) operations.

    Raises:
      TypeError, ValueError: an argument of the wrong type, shape or range, named.

    >>> fully_connected_diag(jnp.array([[3.0, 4.0]]), depth=3, W_std=2**0.5).round(2)
    Array([100.], dtype=float32)
    """
    where = "fully_connected_diag"
    names = _names(where, get)
    weights, biases = _scales(where, depth, W_std, b_std)
    x = _inputs(where, "x", x)
    return _select(get, names, _diag(_promoted(x), weights, biases), x.dtype)


@jax.jit
def _kernels(x1, x2, weights, biases):
    """NNGP and NTK; `weights` and `biases` are W_l^2 and b_l^2, depth + 1 of each."""
    first, second = x1, x1 if x2 is None else x2
    # HIGHEST: the reduced precision that GPUs default to spoils Gram matrices.
    nngp = jnp.matmul(first, second.T, precision=jax.lax.Precision.HIGHEST)
    nngp = ntk = weights[0] * nngp / first.shape[1] + biases[0]
    diag1 = weights[0] * _mean_square(first) + biases[0]
    diag2 = None if x2 is None else weights[0] * _mean_square(second) + biases[0]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        nngp, slopes = relu_kernels(nngp, diag1, diag2)
        nngp = weight * nngp + bias
        ntk = weight * ntk * slopes + nngp
        diag1 = weight * diag1 / 2 + bias
        diag2 = None if diag2 is None else weight * diag2 / 2 + bias
    return {"nngp": nngp, "ntk": ntk}


@jax.jit
def _diag(x, weights, biases):
    nngp = ntk = weights[0] * _mean_square(x) + biases[0]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        nngp = weight * nngp / 2 + bias
        ntk = weight * ntk / 2 + nngp
    return {"nngp": nngp, "ntk": ntk}


def _mean_square(x: jax.Array) -> jax.Array:
    return (x * x).sum(1) / x.shape[1]


def _names(where: str, get: str | tuple[str, ...]) -> tuple[str, ...]:
    names = (get,) if isinstance(get, str) else tuple(get)
    valid = all(name in ("ntk", "nngp") for name in names)
    if not (names and valid) or len(set(names)) < len(names):
        raise ValueError(
            f"{where}: get must be 'ntk', 'nngp' or a tuple of the two, got {get!r}"
        )
    return names


def _select(get, names, both, dtype):
    values = [both[name].astype(dtype) for name in names]
    return values[0] if isinstance(get, str) else _named_tuple(names)(*values)


@functools.lru_cache
def _named_tuple(names: tuple[str, ...]) -> type:
    # Cached: jax compares pytrees by type.
    return collections.namedtuple("Kernels", names)


def _scales(
    where: str, depth: int, W_std: Scale, b_std: Scale
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The squares of the standard deviations of every dense layer."""
    layers = check_size(where, "depth", depth, 0) + 1
    return (
        _squares(where, "W_std", W_std, layers),
        _squares(where, "b_std", 0.0 if b_std is None else b_std, layers),
    )


def _squares(where: str, name: str, value: Any, layers: int) -> tuple[Any, ...]:
    several = isinstance(value, Sequence) or np.ndim(value) == 1
    values = tuple(value) if several else (value,) * layers
    if len(values) != layers:
        raise ValueError(
            f"{where}: {name} must be one number or one per dense layer, "
            f"depth + 1 = {layers} of them, got {len(values)}"
        )
    if name == "b_std":
        values = tuple(0.0 if item is None else item for item in values)
    squares = []
    for item in values:
        if not isinstance(item, jax.core.Tracer):  # else: differentiated, not checked
            try:
                item = float(item)
            except (TypeError, ValueError):
                raise TypeError(
                    f"{where}: {name} must consist of numbers, got {item!r}"
                ) from None
            if not 0 <= item < float("inf"):
                raise ValueError(
                    f"{where}: {name} must be finite and >= 0, got {item!r}"
                )
        squares.append(item**2)
    return tuple(squares)


def _inputs(where: str, name: str, x: ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(
            f"{where}: {name} must be a matrix (n, d) with d >= 1, got shape {x.shape}"
        )
    if jnp.iscomplexobj(x):
        raise TypeError(f"{where}: {name} must be real, got dtype {x.dtype}")
    return x.astype(jnp.result_type(x, float))


def _promoted(x: jax.Array) -> jax.Array:
    """Half precision is computed in single precision."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
