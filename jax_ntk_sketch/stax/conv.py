"""Convolutions over 1, 2 or 3 spatial axes."""

import dataclasses
from typing import Any

from jax_ntk_sketch.stax.base import (
    Layer,
    _set_window,
    positive_int,
    scale,
    set_field,
    set_parameterization,
)


@dataclasses.dataclass(frozen=True, repr=False)
class _Filtered(Layer):
    """What transposed and local convolutions have in common."""

    out_chan: int
    filter_shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    padding: str = "VALID"
    W_std: float = 1.0
    b_std: float | None = None
    dimension_numbers: tuple[str, str, str] | None = None
    parameterization: str = "ntk"
    s: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        set_field(self, "out_chan", positive_int(self, "out_chan", self.out_chan))
        _set_window(self, "filter_shape", "strides")
        set_field(self, "W_std", scale(self, "W_std", self.W_std))
        if self.b_std is not None:
            set_field(self, "b_std", scale(self, "b_std", self.b_std))
        if self.dimension_numbers is not None:
            set_field(self, "dimension_numbers", _dimension_numbers(self))
        set_parameterization(self)

    @property
    def channel_axis(self) -> int:
        """Where the channels are, counted with the batch axis."""
        if self.dimension_numbers is None:
            return -1
        return self.dimension_numbers[0].index("C")


@dataclasses.dataclass(frozen=True, repr=False)
class ConvTranspose(_Filtered):
    r"""A transposed convolution: each pixel adds its filter to the output.

    The convolution of the image with `strides - 1` zeros between its pixels, divided by
    :math:`\sqrt{q d}`, q the size of the filter; sizes as of `jax.lax.conv_transpose`.

    Args:
      out_chan, filter_shape, W_std, b_std, dimension_numbers, parameterization, s: as
        of `Conv`.
      strides: how many output pixels lie between two of the input; None for 1.
      padding: "VALID": all that a filter reaches; "SAME": strides times the size;
        "CIRCULAR": the same, wrapped around.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.
    """


@dataclasses.dataclass(frozen=True, repr=False)
class ConvLocal(_Filtered):
    """A convolution whose filters differ from position to position.

    Weights (and biases) are not shared, so that outputs at different positions are
    independent: the kernel between these is zero.

    Args:
      out_chan, filter_shape, strides, padding, W_std, b_std, dimension_numbers,
        parameterization, s: as of `Conv`.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.
    """


@dataclasses.dataclass(frozen=True, repr=False)
class Conv(Layer):
    r"""A convolution, :math:`W * x / \sqrt{q d} + b`, q the size of the filter.

    Weights and biases as in `Dense`; the filter's size counts whole at the edges too,
    where "SAME" pads with zeros, as in `neural_tangents.stax.Conv`.

    Args:
      out_chan: channels of the finite network; infinite-width kernels do not depend
        on it.
      filter_shape: an integer for each spatial axis, such as `(3, 3)`.
      strides: the same; None for 1.
      padding: "VALID", "SAME" (zeros) or "CIRCULAR" (wrapped around).
      W_std: standard deviation of the weights, >= 0.
      b_std: standard deviation of the biases, >= 0; None for no bias.
      dimension_numbers: `(input, filter, output)` as of
        `jax.lax.conv_general_dilated`, such as `("NCHW", "OIHW", "NCHW")`; None for
        channels last. Batch first; the output laid out as the input.
      parameterization: "ntk" or "standard", as in Neural Tangents: in the latter the
        NTK depends on the widths of the finite network, and the network's parameters
        carry the scales `W_std` and `b_std`.
      s: for "standard": the factors by which the widths of the input and of the output
        are multiplied in the finite network.
      dilation: distance between neighbouring entries of the filter, for each spatial
        axis; None for 1. Not known to Neural Tangents.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.
    """

    out_chan: int
    filter_shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    padding: str = "VALID"
    W_std: float = 1.0
    b_std: float | None = None
    dimension_numbers: tuple[str, str, str] | None = None
    parameterization: str = "ntk"
    s: tuple[int, int] = (1, 1)
    dilation: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        set_field(self, "out_chan", positive_int(self, "out_chan", self.out_chan))
        _set_window(self, "filter_shape", "strides", "dilation")
        set_field(self, "W_std", scale(self, "W_std", self.W_std))
        if self.b_std is not None:
            set_field(self, "b_std", scale(self, "b_std", self.b_std))
        if self.dimension_numbers is not None:
            numbers = _dimension_numbers(self)
            set_field(self, "dimension_numbers", numbers)
        set_parameterization(self)

    @property
    def channel_axis(self) -> int:
        """Where the channels are, counted with the batch axis."""
        if self.dimension_numbers is None:
            return -1
        return self.dimension_numbers[0].index("C")


def _dimension_numbers(record: Any) -> tuple[str, str, str]:
    rank = len(record.filter_shape)
    numbers: Any = record.dimension_numbers
    fits = (
        isinstance(numbers, tuple | list)
        and len(numbers) == 3
        and all(isinstance(spec, str) and len(spec) == rank + 2 for spec in numbers)
    )
    if not fits:
        raise ValueError(
            f"{type(record).__name__}: dimension_numbers must be three strings of "
            f"{rank + 2} letters, such as ('NCHW', 'OIHW', 'NCHW') for two spatial "
            f"axes, got {numbers!r}"
        )
    image, filters, out = numbers
    spatial = [letter for letter in image if letter not in "NC"]
    right = (
        image[0] == "N"
        and "C" in (image[1], image[-1])
        and len(set(image)) == rank + 2
        and out == image
        and set(filters) == {"I", "O", *spatial}
        and [letter for letter in filters if letter not in "IO"] == spatial
    )
    if not right:
        raise ValueError(
            f"{type(record).__name__}: dimension_numbers must have the batch first, "
            "channels second or last, the spatial axes in one order and the output "
            f"laid out as the input, got {numbers!r}"
        )
    return (image, filters, out)
