"""Activations that are functions of the user's own.

Both keep the shape of their input, (n, ..., c).
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from jax_ntk_sketch._checks import set_checked, set_sizes
from jax_ntk_sketch._typing import Array
from jax_ntk_sketch.stax.activations import Activation
from jax_ntk_sketch.stax.base import check_callable

# A function of arrays that acts on each number, such as `jax.numpy.tanh`.
Function: TypeAlias = Callable[[Array], Array]

# (covariance, variance of u, variance of v) to a mean over Gaussian u and v.
KernelFunction: TypeAlias = Callable[[Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True, repr=False)
class Elementwise(Activation):
    """A function of your own, applied to each number.

    A network with this layer can be printed and compared, but it cannot be saved as
    JSON. Its `repr` has the name of the function only.

    Args:
      fn: takes an array of any shape to an array of that shape, elementwise, in
        `jax.numpy`, and is differentiable. It may be None for method "exact".
      nngp_fn: takes (covariance, variance of u, variance of v) to the mean of
        fn(u) fn(v), all of them arrays of one shape. By default the mean is computed by
        Gauss-Hermite quadrature.
      d_nngp_fn: does the same for the derivative of `fn`. By default it is the
        derivative of `nngp_fn` with respect to the covariance.

    Raises:
      TypeError: an argument is not a function.
      ValueError: neither `fn` nor `nngp_fn` is given, or `d_nngp_fn` alone.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(64), stax.Elementwise(jnp.tanh), stax.Dense(1))
    """

    fn: Function | None = None
    nngp_fn: KernelFunction | None = None
    d_nngp_fn: KernelFunction | None = None

    def __post_init__(self) -> None:
        set_checked(self, check_callable, "fn", "nngp_fn", "d_nngp_fn")
        if self.fn is None and self.nngp_fn is None:
            raise ValueError("Elementwise: fn or nngp_fn must be given, got neither")
        if self.d_nngp_fn is not None and self.nngp_fn is None:
            raise ValueError("Elementwise: nngp_fn must be given with d_nngp_fn")


@dataclasses.dataclass(frozen=True, repr=False)
class ElementwiseNumerical(Activation):
    """A function of your own, whose kernels come from a quadrature of a given size.

    Args:
      fn: a function as in `Elementwise`.
      deg: the number of Gauss-Hermite nodes, >= 1. With few nodes Neural Tangents has
        different K(x, z) and K(z, x), and features have the mean of both.
      df: the derivative of `fn`; by default JAX's.

    Raises:
      TypeError: `fn` or `df` is not a function, or `deg` not an integer.
      ValueError: `deg` is less than 1.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(64), stax.ElementwiseNumerical(jnp.tanh, 25))
    """

    fn: Function
    deg: int
    df: Function | None = None

    def __post_init__(self) -> None:
        set_checked(self, check_callable, "fn", "df")
        set_sizes(self, "deg")
