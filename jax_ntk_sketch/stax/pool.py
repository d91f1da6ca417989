"""Pooling over windows, or over all spatial axes."""

import dataclasses

from jax_ntk_sketch._checks import check_flag, set_checked
from jax_ntk_sketch.stax.base import Layer, set_axes, set_window


@dataclasses.dataclass(frozen=True, repr=False)
class AvgPool(Layer):
    """The average over windows.

    Inputs (n, *spatial, c) have outputs (n, *positions, c), with the positions of
    `Conv`.

    Args:
      window_shape: an integer for each spatial axis.
      strides: an integer for each spatial axis; None for 1.
      padding: "VALID", "SAME" (zeros) or "CIRCULAR" (wrapped around).
      normalize_edges: with "SAME", whether to divide by the number of pixels of the
        window that lie in the image, or by the size of the window.
      batch_axis: must be 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError: a size or the axis is not an integer, or `normalize_edges` not a bool.
      ValueError: a size is below 1; `strides` have another length than `window_shape`;
        `padding` is not supported; the axis is the batch axis; `batch_axis` is not 0.

    >>> from jax_ntk_sketch import stax
    >>> stax.AvgPool((2, 2), (2, 2))
    stax.AvgPool((2, 2), strides=(2, 2))
    """

    window_shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    padding: str = "VALID"
    normalize_edges: bool = False
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        set_window(self, "window_shape", "strides")
        set_checked(self, check_flag, "normalize_edges")
        set_axes(self)


@dataclasses.dataclass(frozen=True, repr=False)
class SumPool(Layer):
    """The sum over windows.

    Inputs (n, *spatial, c) have outputs (n, *positions, c), with the positions of
    `Conv`.

    Args:
      window_shape, strides, padding, batch_axis, channel_axis: as in `AvgPool`.

    Raises:
      TypeError: a size or the axis is not an integer.
      ValueError: an argument is out of range, as in `AvgPool`.

    >>> from jax_ntk_sketch import stax
    >>> stax.SumPool((2, 2), (2, 2))
    stax.SumPool((2, 2), strides=(2, 2))
    """

    window_shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    padding: str = "VALID"
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        set_window(self, "window_shape", "strides")
        set_axes(self)


@dataclasses.dataclass(frozen=True, repr=False)
class GlobalAvgPool(Layer):
    """The average over all spatial axes; inputs (n, *spatial, c) have outputs (n, c).

    Args:
      batch_axis: must be 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError: the axis is not an integer.
      ValueError: the axis is the batch axis; `batch_axis` is not 0.

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.Conv(64, (3, 3)), stax.Relu(), stax.GlobalAvgPool())
    stax.serial(stax.Conv(64, (3, 3)), stax.Relu(), stax.GlobalAvgPool())
    """

    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        set_axes(self)


@dataclasses.dataclass(frozen=True, repr=False)
class GlobalSumPool(Layer):
    """The sum over all spatial axes; inputs (n, *spatial, c) have outputs (n, c).

    Args:
      batch_axis: must be 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError: the axis is not an integer.
      ValueError: the axis is the batch axis; `batch_axis` is not 0.

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.Aggregate(), stax.Dense(64), stax.GlobalSumPool())
    stax.serial(stax.Aggregate(), stax.Dense(64), stax.GlobalSumPool())
    """

    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        set_axes(self)
