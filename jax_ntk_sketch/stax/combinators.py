"""Networks with branches: several values between layers, and how they are joined."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from jax_ntk_sketch._checks import check_size, set_checked, set_sizes
from jax_ntk_sketch.stax.base import Layer, Serial, check_axis, check_layers, set_field


@dataclasses.dataclass(frozen=True, repr=False)
class Parallel(Layer):
    """Layers side by side, each on its own branch; `parallel(*layers)` makes one.

    Args:
      layers: a layer for each branch, at least one.

    Raises:
      TypeError: one of the layers is not a record.
      ValueError: there are no layers.

    >>> from jax_ntk_sketch import stax
    >>> stax.Parallel((stax.Dense(8), stax.Identity()))
    stax.parallel(stax.Dense(8), stax.Identity())
    """

    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        set_field(self, "layers", check_layers("parallel", self.layers))
        if not self.layers:
            raise ValueError(
                "parallel: layers must have at least one layer, one for each branch"
            )

    def __repr__(self) -> str:
        return f"stax.parallel({', '.join(map(repr, self.layers))})"


def parallel(*layers: Layer) -> Parallel:
    """Return the layer that applies one layer to each branch.

    Args:
      *layers: records of this module, one for each branch that enters: after
        `FanOut(len(layers))` or another `parallel`.

    Returns:
      A `Parallel` record. Its outputs are branches, which a `FanIn` layer joins.

    Raises:
      TypeError: an argument is not a record.
      ValueError: there are no arguments.

    >>> from jax_ntk_sketch import stax
    >>> block = stax.serial(stax.Relu(), stax.Dense(8))
    >>> branches = stax.parallel(block, stax.Identity())
    >>> residual = stax.serial(stax.FanOut(2), branches, stax.FanInSum())
    """
    return Parallel(layers)


def repeat(layer: Layer, n: int) -> Serial:
    """Return a layer n times in a row, each time with other weights.

    Args:
      layer: a record whose output has the shape of its input.
      n: how many times, at least 0; with 0 it is the identity.

    Returns:
      A `Serial` record.

    Raises:
      TypeError: `layer` is not a record, or n is not an integer.
      ValueError: n is negative.

    >>> from jax_ntk_sketch import stax
    >>> stax.repeat(stax.serial(stax.Relu(), stax.Dense(9)), 2).layers[1]
    stax.serial(stax.Relu(), stax.Dense(9))
    """
    return Serial((layer,) * check_size("repeat", "n", n, 0))


@dataclasses.dataclass(frozen=True, repr=False)
class FanOut(Layer):
    """The layer that makes `num` branches, each of them its input.

    Args:
      num: the number of branches, at least 1.

    Raises:
      TypeError: `num` is not an integer.
      ValueError: `num` is less than 1.

    >>> from jax_ntk_sketch import stax
    >>> stax.FanOut(2)
    stax.FanOut(2)
    """

    num: int

    def __post_init__(self) -> None:
        set_sizes(self, "num")


@dataclasses.dataclass(frozen=True, repr=False)
class FanIn(Layer):
    """The base of the layers that join branches.

    Each is the infinite-width limit of *independent* branches: all branches except for
    one need a linear layer of their own. This is not checked.
    """


@dataclasses.dataclass(frozen=True, repr=False)
class FanInSum(FanIn):
    """The sum of branches of one shape (n, ..., c), which is the shape of the output.

    All branches must be Gaussian, that is, end in linear layers.

    >>> from jax_ntk_sketch import stax
    >>> branches = stax.parallel(stax.Dense(8), stax.Identity())
    >>> stax.serial(stax.Dense(8), stax.FanOut(2), branches, stax.FanInSum()).layers[-1]
    stax.FanInSum()
    """


@dataclasses.dataclass(frozen=True, repr=False)
class FanInProd(FanIn):
    """The entrywise product of branches of one shape (n, ..., c).

    >>> from jax_ntk_sketch import stax
    >>> branches = stax.parallel(stax.Dense(8), stax.Dense(8))
    >>> stax.serial(stax.FanOut(2), branches, stax.FanInProd()).layers[-1]
    stax.FanInProd()
    """


@dataclasses.dataclass(frozen=True, repr=False)
class FanInConcat(FanIn):
    """The branches side by side along one axis.

    The output has the sum of their sizes on the axis, and their sizes on other axes.
    Kernels are weighted by the widths of the finite network if the axis is that of the
    channels, and a linear layer must come next. On a spatial axis all branches must be
    Gaussian, and positions of different branches are independent.

    Args:
      axis: the axis of the channels or a spatial axis, counted with the batch axis.

    Raises:
      TypeError: the axis is not an integer.
      ValueError: the axis is the batch axis.

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.FanInConcat(-1), stax.Dense(8))
    stax.serial(stax.FanInConcat(), stax.Dense(8))
    """

    axis: int = -1

    def __post_init__(self) -> None:
        set_checked(self, check_axis, "axis")


def follow(net: Layer, state: Any, after: Callable[[Layer, Any], Any]) -> Any:
    """Return what a state becomes along a network.

    Args:
      net: the network.
      state: what enters it. Between `FanOut` and the layer that joins the branches
        there is a list, with the state of each branch.
      after: takes a layer and the state before it, and returns the state after it. It
        is called for all records but `Serial`, `Parallel` and `FanOut`.

    >>> from jax_ntk_sketch import stax
    >>> from jax_ntk_sketch.stax.combinators import follow
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> follow(net, 0, lambda layer, count: count + isinstance(layer, stax.Dense))
    2
    """
    if isinstance(net, Serial):
        return functools.reduce(
            lambda s, layer: follow(layer, s, after), net.layers, state
        )
    if isinstance(net, Parallel):
        branches = zip(net.layers, state, strict=True)
        return [follow(branch, one, after) for branch, one in branches]
    return [state] * net.num if isinstance(net, FanOut) else after(net, state)
