"""`LayerNorm` and `Dropout`."""

import dataclasses
from collections.abc import Iterable

from jax_ntk_sketch.stax.base import (
    Layer,
    axis_number,
    scale,
    set_field,
)


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
