"""`LayerNorm` and `Dropout`."""

import dataclasses

from jax_ntk_sketch._checks import check_choice, check_number, set_checked
from jax_ntk_sketch.stax.base import Layer, set_axes, set_field
from jax_ntk_sketch.stax.graph import check_axes


@dataclasses.dataclass(frozen=True, repr=False)
class Dropout(Layer):
    """Numbers that are kept with probability `rate` and divided by it, else 0.

    Inputs of any shape (n, ..., c) keep it. In "train" mode, kernels are those between
    two *different* draws, also for an example and itself. There Neural Tangents has the
    kernel of one draw, which is larger by 1 / rate, and so has method "exact".

    Args:
      rate: the probability to *keep* a number, 0 < rate <= 1.
      mode: "train", or "test" for the identity.

    Raises:
      TypeError: `rate` is not a number.
      ValueError: `rate` is out of range, or `mode` is unknown.

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.Dense(64), stax.Relu(), stax.Dropout(0.9), stax.Dense(1))
    stax.serial(stax.Dense(64), stax.Relu(), stax.Dropout(0.9), stax.Dense(1))
    """

    rate: float
    mode: str = "train"

    def __post_init__(self) -> None:
        set_checked(self, check_number, "rate", above=0, most=1)
        set_checked(self, check_choice, "mode", choices=("train", "test"))


@dataclasses.dataclass(frozen=True, repr=False)
class LayerNorm(Layer):
    r"""Inputs divided by :math:`\sqrt{\mathrm{variance} + \mathrm{eps}}`.

    Inputs (n, ..., c) keep their shape. There are no learned parameters. The layer must
    follow a linear layer, where the variance of infinitely many channels is known.

    Args:
      axis: the axes that the variance is taken over, counted with the batch axis: the
        axis of the channels (-1, or 1 for channels first), or a tuple of it and spatial
        axes.
      eps: a number > 0 that is added to the variance.
      batch_axis: must be 0.
      channel_axis: the axis of the channels if `axis` is a tuple; an integer `axis` is
        the axis of the channels.

    Raises:
      TypeError: an axis is not an integer, or `eps` is not a number.
      ValueError: an axis is the batch axis; `axis` is empty; `axis` and `channel_axis`
        differ; `eps` is not positive; `batch_axis` is not 0.

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.Dense(64), stax.LayerNorm(), stax.Relu(), stax.Dense(1))
    stax.serial(stax.Dense(64), stax.LayerNorm(), stax.Relu(), stax.Dense(1))
    """

    axis: int | tuple[int, ...] = -1
    eps: float = 1e-12
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        set_checked(self, check_axes, "axis")
        set_axes(self)
        if isinstance(self.axis, int):
            if self.channel_axis not in (-1, self.axis):
                raise ValueError(
                    "LayerNorm: an integer axis must be the axis of the channels, got "
                    f"axis={self.axis} and channel_axis={self.channel_axis}; give a "
                    "tuple of both"
                )
            set_field(self, "channel_axis", self.axis)
        set_checked(self, check_number, "eps", above=0)
