"""Networks with branches: several values between layers, and how they are joined."""

import dataclasses
import operator

from jax_ntk_sketch.stax.base import (
    Layer,
    Serial,
    check_layers,
    positive_int,
    set_field,
)

__all__ = [
    "FanIn",
    "FanInConcat",
    "FanInProd",
    "FanInSum",
    "FanOut",
    "Parallel",
    "parallel",
    "repeat",
]


@dataclasses.dataclass(frozen=True, repr=False)
class Parallel(Layer):
    """Layers side by side, each on its own branch; written `parallel(*layers)`."""

    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        set_field(self, "layers", check_layers("parallel", self.layers))
        if not self.layers:
            raise ValueError("parallel: give at least one layer, one for each branch")

    def __repr__(self) -> str:
        return f"stax.parallel({', '.join(map(repr, self.layers))})"


def parallel(*layers: Layer) -> Parallel:
    """Applies layers side by side, one to each branch, as `neural_tangents.stax`.

    Args:
      *layers: records of this module, as many as there are branches: behind
        `FanOut(len(layers))` or another `parallel`.

    Returns:
      A `Parallel` record.

    Raises:
      TypeError, ValueError: an argument that is not a layer record, or none.
    """
    return Parallel(layers)


def repeat(layer: Layer, n: int) -> Serial:
    """A layer n times in a row, each with weights of its own.

    Raises:
      TypeError, ValueError: `layer` is no record, or n is no positive integer.

    >>> from jax_ntk_sketch import stax
    >>> repeat(stax.serial(stax.Relu(), stax.Dense(9)), 2).layers[1]
    stax.serial(stax.Relu(), stax.Dense(9))
    """
    if isinstance(n, bool) or not hasattr(n, "__index__") or operator.index(n) < 1:
        raise ValueError(f"repeat: n must be a positive integer, got {n!r}")
    return Serial((layer,) * operator.index(n))


@dataclasses.dataclass(frozen=True, repr=False)
class FanOut(Layer):
    """`num` branches, each of them what enters."""

    num: int

    def __post_init__(self) -> None:
        set_field(self, "num", positive_int(self, "num", self.num))


@dataclasses.dataclass(frozen=True, repr=False)
class FanIn(Layer):
    """Base of the layers that make one value of several branches.

    Each is an infinite-width limit for *independent* branches: every branch, but one
    perhaps, needs a linear layer of its own. As in Neural Tangents nobody checks that.
    """


@dataclasses.dataclass(frozen=True, repr=False)
class FanInSum(FanIn):
    """The sum of the branches, which must all be Gaussian (end in linear layers)."""


@dataclasses.dataclass(frozen=True, repr=False)
class FanInProd(FanIn):
    """The product of the branches, number by number."""


@dataclasses.dataclass(frozen=True, repr=False)
class FanInConcat(FanIn):
    """The branches side by side.

    Args:
      axis: the channels, counted with the batch axis (then their widths in the finite
        network weigh the kernels, and a linear layer must come next), or a spatial axis
        (then all branches must be Gaussian, and positions of different branches are
        independent).
    """

    axis: int = -1

    def __post_init__(self) -> None:
        if isinstance(self.axis, bool) or not hasattr(self.axis, "__index__"):
            raise TypeError(f"FanInConcat: axis must be an integer, got {self.axis!r}")
        set_field(self, "axis", operator.index(self.axis))
        if self.axis == 0:
            raise ValueError("FanInConcat: axis must not be 0, the batch axis")
