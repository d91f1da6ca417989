"""The standard deviations of a network, as arrays beside its record.

Records keep plain floats. To differentiate or to trace, a network is read with other
numbers in the place of these, in a record that is not checked and cannot be compared.
"""

import copy
import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jax_ntk_sketch._numerics import is_zero
from jax_ntk_sketch._typing import PyTree
from jax_ntk_sketch.stax.base import Layer, walk

L = TypeVar("L", bound=Layer)

# The fields that are scales. An embedding of positions is decomposed by NumPy, so that
# `W_pos_emb_std` is not one of them.
_NAMES = ("W_std", "W_key_std", "W_value_std", "W_query_std", "W_out_std", "b_std")


def scales_of(net: Layer) -> tuple[dict[str, float], ...]:
    """Return the scales of each layer that has some, branches included, in order.

    A layer without biases, whose `b_std` is None or 0, has no `b_std` here.

    >>> from jax_ntk_sketch import stax
    >>> from jax_ntk_sketch.stax.scales import scales_of
    >>> scales_of(stax.serial(stax.Dense(9, 1.4, 0.1), stax.Relu(), stax.Dense(1)))
    ({'W_std': 1.4, 'b_std': 0.1}, {'W_std': 1.0})
    """
    found = (_of_layer(layer) for layer in walk(net, into_branches=True))
    return tuple(scales for scales in found if scales)


def with_scales(net: L, scales: PyTree) -> L:
    """Return the network with other numbers as its scales, for one reading.

    Args:
      net: the network.
      scales: a pytree of scalars like `scales_of(net)`, which may be traced.
    """
    return _replaced(net, list(scales))


def check_scales(owner: str, net: Layer, scales: PyTree) -> None:
    """Check that a pytree holds a scalar in each place of `scales_of(net)`.

    Raises:
      ValueError: it has another structure, or holds other things than scalars.
    """
    wanted = scales_of(net)
    shapes = jax.tree.map(jnp.shape, scales)
    if shapes != jax.tree.map(lambda _: (), wanted):
        raise ValueError(
            f"{owner}: scales must be scalars in the places of {wanted}, which "
            f"fmap.scales() returns, got {jax.tree.map(_describe, scales)}"
        )


def recast(layer: Layer, record: type[L], **changes: Any) -> L:
    """Return a record with the fields of a layer that it shares, without checks.

    Scales may be traced. The layer has been checked, and so has its scale.
    """
    fields = {field.name: field.default for field in dataclasses.fields(record)}
    fields |= {name: value for name, value in vars(layer).items() if name in fields}
    new = object.__new__(record)
    vars(new).update(fields | changes)
    return new


def _of_layer(layer: Layer) -> dict[str, float]:
    values = {name: getattr(layer, name, None) for name in _NAMES}
    if is_zero(values["b_std"]):
        del values["b_std"]
    return {name: value for name, value in values.items() if value is not None}


def _replaced(net: L, remaining: list[dict[str, Any]]) -> L:
    """Return the network with scales of the front of a list, which are taken off."""
    if hasattr(net, "layers"):
        changes = {"layers": tuple(_replaced(layer, remaining) for layer in net.layers)}
    elif _of_layer(net):
        changes = remaining.pop(0)
    else:
        return net
    new = copy.copy(net)
    vars(new).update(changes)
    return new


def _describe(leaf: Any) -> Any:
    return leaf if jnp.shape(leaf) == () else f"shape {jnp.shape(leaf)}"
