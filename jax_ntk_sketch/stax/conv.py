"""Convolutions over 1, 2 or 3 spatial axes."""

import dataclasses

from jax_ntk_sketch._checks import set_sizes
from jax_ntk_sketch.stax.base import Layer, set_field, set_weights, set_window


@dataclasses.dataclass(frozen=True, repr=False)
class _Convolution(Layer):
    """The arguments that all convolutions have."""

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
        set_sizes(self, "out_chan")
        set_window(self, "filter_shape", "strides")
        set_weights(self)
        if self.parameterization == "standard" and self.b_std == 0:
            raise ValueError(
                f"{type(self).__name__}: b_std must be None or positive with "
                'parameterization="standard", got 0; biases that start at zero and are '
                "trained are supported in Dense"
            )
        if self.dimension_numbers is not None:
            set_field(self, "dimension_numbers", _dimension_numbers(self))

    @property
    def channel_axis(self) -> int:
        """The axis of the channels, counted with the batch axis."""
        if self.dimension_numbers is None:
            return -1
        return self.dimension_numbers[0].index("C")


@dataclasses.dataclass(frozen=True, repr=False)
class Conv(_Convolution):
    r"""A convolution, :math:`W * x / \sqrt{q d} + b`, with filters of q pixels.

    Inputs (n, *spatial, d) have outputs (n, *positions, out_chan). Along each axis
    there are `ceil(size / stride)` positions, and with "VALID" those where the filter
    lies in the image. Weights and biases are as in `Dense`. q counts all pixels of the
    filter, also where "SAME" pads with zeros.

    Args:
      out_chan: the channels of the finite network; in the "ntk" parameterization the
        kernels of infinite width do not depend on it.
      filter_shape: an integer for each spatial axis, such as `(3, 3)`. `()` is for
        flat examples, where the layer is `Dense`.
      strides: an integer for each spatial axis; None for 1.
      padding: "VALID", "SAME" (zeros) or "CIRCULAR" (wrapped around).
      W_std: the standard deviation of the weights, >= 0.
      b_std: the standard deviation of the biases, >= 0; None for no biases.
      dimension_numbers: the layouts `(input, filter, output)` as in
        `jax.lax.conv_general_dilated`, such as `("NCHW", "OIHW", "NCHW")`; None for
        channels last. The batch is first, and the output has the layout of the input.
      parameterization, s: as in `Dense`.
      dilation: the distance of neighboring entries of the filter for each spatial axis;
        None for 1. Neural Tangents does not have it.

    Raises:
      TypeError: a size is not an integer, or a deviation is not a number.
      ValueError: an argument is out of range; `strides` or `dilation` have another
        length than `filter_shape`; `padding` or `dimension_numbers` are not supported.

    >>> from jax_ntk_sketch import stax
    >>> stax.Conv(64, (3, 3), padding="SAME", W_std=1.4)
    stax.Conv(64, (3, 3), padding='SAME', W_std=1.4)
    """

    dilation: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        set_window(self, "filter_shape", "dilation")


@dataclasses.dataclass(frozen=True, repr=False)
class ConvTranspose(_Convolution):
    r"""A transposed convolution: each pixel adds its filter to the output.

    Inputs (n, *spatial, d) have outputs (n, *positions, out_chan), with the sizes of
    `jax.lax.conv_transpose`. It is the convolution of the image with `strides - 1`
    zeros between its pixels, divided by :math:`\sqrt{q d}` with filters of q pixels.

    Args:
      out_chan, filter_shape, W_std, b_std, dimension_numbers, parameterization, s: as
        in `Conv`.
      strides: how many output pixels an input pixel is wide, for each spatial axis;
        None for 1.
      padding: "VALID" for all pixels that a filter reaches, "SAME" for strides times
        the size, and "CIRCULAR" for the same size, wrapped around.

    Raises:
      TypeError: a size is not an integer, or a deviation is not a number.
      ValueError: an argument is out of range, as in `Conv`.

    >>> from jax_ntk_sketch import stax
    >>> stax.ConvTranspose(64, (3, 3), (2, 2), "SAME")
    stax.ConvTranspose(64, (3, 3), strides=(2, 2), padding='SAME')
    """


@dataclasses.dataclass(frozen=True, repr=False)
class ConvLocal(_Convolution):
    """A convolution whose filters differ from position to position.

    Shapes are those of `Conv`. Weights and biases are not shared, so that outputs at
    different positions are independent, and the kernel between them is zero.

    Args:
      out_chan, filter_shape, strides, padding, W_std, b_std, dimension_numbers,
        parameterization, s: as in `Conv`.

    Raises:
      TypeError: a size is not an integer, or a deviation is not a number.
      ValueError: an argument is out of range, as in `Conv`.

    >>> from jax_ntk_sketch import stax
    >>> stax.ConvLocal(64, (3,), padding="SAME")
    stax.ConvLocal(64, (3,), padding='SAME')
    """


def _dimension_numbers(record: _Convolution) -> tuple[str, str, str]:
    """Return the layouts, checked."""
    rank = len(record.filter_shape)
    layouts = record.dimension_numbers
    if (
        not isinstance(layouts, tuple | list)
        or len(layouts) != 3
        or any(not isinstance(one, str) or len(one) != rank + 2 for one in layouts)
    ):
        raise ValueError(
            f"{type(record).__name__}: dimension_numbers must be three strings of "
            f"{rank + 2} letters, such as ('NCHW', 'OIHW', 'NCHW') for two spatial "
            f"axes, got {layouts!r}"
        )
    image, filters, out = layouts
    spatial = [letter for letter in image if letter not in "NC"]
    supported = (
        image[0] == "N"
        and "C" in (image[1], image[-1])
        and len(set(image)) == rank + 2
        and out == image
        and set(filters) == {"I", "O", *spatial}
        and [letter for letter in filters if letter not in "IO"] == spatial
    )
    if not supported:
        raise ValueError(
            f"{type(record).__name__}: dimension_numbers must have the batch first, "
            "channels second or last, the spatial axes in one order and the output "
            f"in the layout of the input, got {layouts!r}"
        )
    return (image, filters, out)
