"""Checks of the spatial axes that a layer needs."""

from jax_ntk_sketch import stax
from jax_ntk_sketch.features.state import Spec
from jax_ntk_sketch.sketch import Window


def _check_window(layer: stax.Layer, window: Window, spec: Spec) -> None:
    check_spatial(layer, spec)
    window.output_shape(spec.shape, owner=repr(layer))


def check_spatial(layer: stax.Layer, spec: Spec) -> None:
    """Refuses features without spatial axes."""
    if not spec.shape:
        raise ValueError(
            f"{layer!r} needs spatial axes, but there are none: examples must be "
            "images (h, w, c) or signals (t, c), and Flatten or a global pooling "
            "layer removes the axes"
        )
