"""Layers that act on the channels of each position alone."""

import dataclasses
from collections.abc import Iterable

from jax_ntk_sketch.stax.base import (
    Layer,
    axis_number,
    positive_int,
    scale,
    set_field,
    set_parameterization,
)

__all__ = ["Dense", "Dropout", "Identity", "LayerNorm"]


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
      parameterization: "ntk" or "standard", as in Neural Tangents: in the latter the
        NTK depends on the widths of the finite network, and the network's parameters
        carry the scales `W_std` and `b_std`.
      s: for "standard": the factors by which the widths of the input and of the output
        are multiplied in the finite network.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.

    Source: Sohl-Dickstein et al., arXiv 2001.07301, for "standard".
    """

    out_dim: int
    W_std: float = 1.0
    b_std: float | None = None
    parameterization: str = "ntk"
    s: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        set_field(self, "out_dim", positive_int(self, "out_dim", self.out_dim))
        set_field(self, "W_std", scale(self, "W_std", self.W_std))
        if self.b_std is not None:
            set_field(self, "b_std", scale(self, "b_std", self.b_std))
        set_parameterization(self)


@dataclasses.dataclass(frozen=True, repr=False)
class Dropout(Layer):
    """Each number is kept with probability `rate`, and divided by it.

    In "train" mode the kernels are those between two *different* draws of what is
    dropped, for an example and itself too (there Neural Tangents' are larger, by
    1 / rate, as are those of "exact").

    Args:
      rate: the probability to *keep* a number, 0 < rate <= 1.
      mode: "train", or "test": the identity.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.
    """

    rate: float
    mode: str = "train"

    def __post_init__(self) -> None:
        set_field(self, "rate", scale(self, "rate", self.rate))
        if not 0 < self.rate <= 1:
            raise ValueError(
                "Dropout: rate is the probability to keep a number, 0 < rate <= 1, "
                f"got {self.rate!r}"
            )
        if self.mode not in ("train", "test"):
            raise ValueError(
                f'Dropout: mode must be "train" or "test", got {self.mode!r}'
            )


@dataclasses.dataclass(frozen=True, repr=False)
class Identity(Layer):
    """The layer that changes nothing."""


@dataclasses.dataclass(frozen=True, repr=False)
class LayerNorm(Layer):
    r"""Normalisation over the channels, without learned parameters.

    It must follow a linear layer: only there is its infinite-width limit the
    division by :math:`\sqrt{\mathrm{variance} + \mathrm{eps}}`.

    Args:
      axis: what the variance is taken over, counted with the batch axis: the channel
        axis (-1, or 1 for channels first), or a tuple of it and spatial axes.
      eps: added to the variance, > 0.
      batch_axis: 0.
      channel_axis: where the channels are, if `axis` is a tuple; an integer `axis` is
        that of the channels.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.
    """

    axis: int | tuple[int, ...] = -1
    eps: float = 1e-12
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        axis = self.axis
        if isinstance(axis, Iterable) and not isinstance(axis, str):
            axis = tuple(axis_number(self, "axis", one) for one in axis)
            if not axis:
                raise ValueError("LayerNorm: axis must hold the channel axis, got ()")
            channels = axis_number(self, "channel_axis", self.channel_axis)
        else:
            axis = channels = axis_number(self, "axis", axis)
            if self.channel_axis not in (-1, axis):
                raise ValueError(
                    "LayerNorm: an integer axis is that of the channels, got "
                    f"axis={axis}, channel_axis={self.channel_axis}; give a tuple of "
                    "both"
                )
        set_field(self, "axis", axis)
        set_field(self, "channel_axis", channels)
        if self.batch_axis != 0:
            raise ValueError(f"LayerNorm: batch_axis must be 0, got {self.batch_axis}")
        set_field(self, "eps", scale(self, "eps", self.eps))
        if self.eps == 0:
            raise ValueError("LayerNorm: eps must be positive, got 0")
