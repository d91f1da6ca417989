"""Pooling over windows, or over all spatial axes."""

import dataclasses

from jax_ntk_sketch.stax.base import (
    Layer,
    _set_axis,
    _set_window,
)


@dataclasses.dataclass(frozen=True, repr=False)
class AvgPool(Layer):
    """The average over windows.

    Args:
      window_shape: an integer for each spatial axis.
      strides: the same; None for 1, as in `neural_tangents.stax.AvgPool`.
      padding: "VALID", "SAME" (zeros) or "CIRCULAR" (wrapped around).
      normalize_edges: with "SAME", divide by the number of pixels in the window that
        lie in the image; otherwise by the window's size.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.
    """

    window_shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    padding: str = "VALID"
    normalize_edges: bool = False
    channel_axis: int = -1

    def __post_init__(self) -> None:
        _set_window(self, "window_shape", "strides")
        _set_axis(self)
        if not isinstance(self.normalize_edges, bool):
            raise TypeError(
                f"AvgPool: normalize_edges must be a bool, got {self.normalize_edges!r}"
            )


@dataclasses.dataclass(frozen=True, repr=False)
class SumPool(Layer):
    """The sum over windows; arguments as of `AvgPool`."""

    window_shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    padding: str = "VALID"
    channel_axis: int = -1

    def __post_init__(self) -> None:
        _set_window(self, "window_shape", "strides")
        _set_axis(self)


@dataclasses.dataclass(frozen=True, repr=False)
class GlobalAvgPool(Layer):
    """The average over all spatial axes, which it removes."""

    channel_axis: int = -1

    def __post_init__(self) -> None:
        _set_axis(self)


@dataclasses.dataclass(frozen=True, repr=False)
class GlobalSumPool(Layer):
    """The sum over all spatial axes, which it removes."""

    channel_axis: int = -1

    def __post_init__(self) -> None:
        _set_axis(self)
