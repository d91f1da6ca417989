"""Layers that act on the channels of each position alone."""

import dataclasses

from jax_ntk_sketch.stax.base import Layer, axis_number, positive_int, scale, set_field

__all__ = ["Dense", "Identity", "LayerNorm"]


@dataclasses.dataclass(frozen=True, repr=False)
class Dense(Layer):
    r"""A fully connected layer, :math:`W x / \sqrt{d} + b`.

    Weights and biases are independent normal with standard deviations `W_std` and
    `b_std` ("ntk" parameterization), as in `neural_tangents.stax.Dense`.

    Args:
      out_dim: width of the finite network; infinite-width kernels do not depend
        on it.
      W_std: standard deviation of the weights, >= 0.
      b_std: standard deviation of the biases, >= 0; None for no bias.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.
    """

    out_dim: int
    W_std: float = 1.0
    b_std: float | None = None

    def __post_init__(self) -> None:
        set_field(self, "out_dim", positive_int(self, "out_dim", self.out_dim))
        set_field(self, "W_std", scale(self, "W_std", self.W_std))
        if self.b_std is not None:
            set_field(self, "b_std", scale(self, "b_std", self.b_std))


@dataclasses.dataclass(frozen=True, repr=False)
class Identity(Layer):
    """The layer that changes nothing."""


@dataclasses.dataclass(frozen=True, repr=False)
class LayerNorm(Layer):
    r"""Normalisation over the channels of each position, without learned parameters.

    It must follow a linear layer: only there is its infinite-width limit the
    division by :math:`\sqrt{\mathrm{variance} + \mathrm{eps}}`.

    Args:
      axis: the channel axis, counted with the batch axis: -1, or 1 for channels first.
      eps: added to the variance, > 0.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.
    """

    axis: int = -1
    eps: float = 1e-12

    def __post_init__(self) -> None:
        set_field(self, "axis", axis_number(self, "axis", self.axis))
        set_field(self, "eps", scale(self, "eps", self.eps))
        if self.eps == 0:
            raise ValueError("LayerNorm: eps must be positive, got 0")
