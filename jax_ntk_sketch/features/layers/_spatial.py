"""Checks of the spatial axes that a layer needs."""

from collections.abc import Sequence

from jax_ntk_sketch import stax
from jax_ntk_sketch.features.state import Spec
from jax_ntk_sketch.features.step import Context
from jax_ntk_sketch.sketch import Window


def check_window(layer: stax.Layer, window: Window, spec: Spec) -> None:
    """Check that the window fits on the spatial axes.

    Raises:
      ValueError: the window has another number of axes, or does not fit.
    """
    if window.rank:
        check_spatial(layer, spec)
    window.output_shape(spec.shape, owner=repr(layer))


def check_spatial(layer: stax.Layer, spec: Spec, rank: int | None = None) -> None:
    """Check that features have spatial axes, and how many.

    Raises:
      ValueError: there are none, or there are not `rank` of them.
    """
    found = len(spec.shape)
    if (found == 0) if rank is None else (found != rank):
        count = "spatial axes" if rank is None else f"{rank} spatial axes"
        raise ValueError(
            f"{layer!r} needs {count}, got {found or 'none'}; examples must be images "
            "(h, w, c) or signals (t, c), and Flatten or a global pooling layer "
            "removes the axes"
        )


def resolve_axes(
    layer: stax.LayerNorm | stax.FanInConcat,
    axes: Sequence[int],
    spec: Spec,
    context: Context,
) -> tuple[list[int], int]:
    """Return axes of a layer counted from the batch axis, and the one of the channels.

    Raises:
      ValueError: an axis does not exist, or is the batch axis.
    """
    ndim = 2 + len(spec.shape)
    numbers = [axis % ndim for axis in axes]
    if 0 in numbers or any(not -ndim < axis < ndim for axis in axes):
        raise ValueError(
            f"{layer!r}: axis must be among the {ndim} axes that features have here, "
            f"without the batch axis, got {layer.axis}"
        )
    return numbers, context.channel_axis % ndim if spec.shape else 1
