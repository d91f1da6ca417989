"""Checks of the arrays besides x: the edges and the nodes of graphs."""

import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Array, PyTree, Shape

# The layers that read each of the arrays, for the error message.
_READERS = {
    "pattern": "stax.Aggregate",
    "mask": "stax.Aggregate, stax.GlobalSelfAttention, stax.GlobalSumPool or "
    "stax.GlobalAvgPool",
}

# Layers that act on each node by itself, and those that read the mask.
_WITH_MASK = (
    stax.Activation,
    stax.Aggregate,
    stax.Dense,
    stax.Dropout,
    stax.FanIn,
    stax.FanOut,
    stax.GlobalAvgPool,
    stax.GlobalSelfAttention,
    stax.GlobalSumPool,
    stax.Identity,
)


def check_extra_inputs(
    owner: str,
    layers: Iterable[stax.Layer],
    names: tuple[str, ...],
    x: Array,
    given: Mapping[str, PyTree],
) -> dict[str, PyTree]:
    """Return the arrays besides x that are given, as JAX arrays.

    Args:
      owner: the function to name in the message.
      layers: the layers of the network up to those that remove the nodes.
      names: the arrays that the steps of the network read.
      x: (n, ...), the examples.
      given: arrays by name, or None.

    Raises:
      ValueError: the network needs an array that is not given, or cannot use one; an
        array is not for n examples.
    """
    if "pattern" in names and given["pattern"] is None:
        raise ValueError(
            f"{owner}: pattern must be given, the edges of the graphs x, because the "
            "network has stax.Aggregate"
        )
    inputs = {name: value for name, value in given.items() if value is not None}
    for name, value in inputs.items():
        if name not in names:
            raise ValueError(
                f"{owner}: {name} must be None, because the network has no "
                f"{_READERS[name]}, which reads it"
            )
        inputs[name] = jax.tree.map(jnp.asarray, value)
        for leaf in jax.tree.leaves(inputs[name]):
            if leaf.shape[:1] != (x.shape[0],):
                raise ValueError(
                    f"{owner}: {name} must have the {x.shape[0]} examples of x along "
                    f"its first axis, got {describe(inputs[name])}"
                )
    if "mask" in inputs:
        _check_layers_with_mask(owner, layers)
    return inputs


def _check_layers_with_mask(owner: str, layers: Iterable[stax.Layer]) -> None:
    """Check that nodes meet only along edges and in the global pool."""
    for layer in layers:
        alone = isinstance(layer, _WITH_MASK)
        if isinstance(layer, stax.Conv):
            size = math.prod(layer.filter_shape) * math.prod(layer.strides or (1,))
            alone = size == 1
        if isinstance(layer, stax.LayerNorm):
            alone = isinstance(layer.axis, int) or len(layer.axis) == 1
        if not alone:
            raise ValueError(
                f"{owner}: mask must be None, because the network has {layer!r}; with "
                "a mask, nodes may meet in stax.Aggregate and global pooling only"
            )


def check_mask(mask: Array | None, shape: Shape) -> None:
    """Check the mask of the nodes, which has the shape (n, *nodes), or is None.

    Raises:
      ValueError: it has another shape, or another dtype than bool.
    """
    if mask is not None and (mask.shape != shape or mask.dtype != bool):
        raise ValueError(
            f"NetworkFeatureMap.apply: mask must be a bool for each node, {shape}, "
            f"True where it exists, got {describe(mask)}"
        )


def zero_masked(x: Array, mask: Array | None) -> Array:
    """Return x (n, *nodes, c) with zeros for nodes that do not exist.

    Raises:
      ValueError: as `check_mask`.
    """
    check_mask(mask, x.shape[:-1])
    return x if mask is None else jnp.where(mask[..., None], x, 0)


def describe(value: PyTree) -> str:
    """Return dtypes and shapes of one or several arrays, for an error message."""
    parts = value if isinstance(value, tuple | list) else [value]
    return " and ".join(
        f"{getattr(part, 'dtype', type(part).__name__)} {getattr(part, 'shape', '')}"
        for part in parts
    )
