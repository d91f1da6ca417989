"""Layers over the edges of a graph."""

import dataclasses
from typing import Any

from jax_ntk_sketch.stax.base import Layer, axis_number, set_axes, set_field

__all__ = ["Aggregate"]

_IMPLEMENTATIONS = ("DENSE", "SPARSE")


@dataclasses.dataclass(frozen=True, repr=False)
class Aggregate(Layer):
    r"""The sum over the edges that end in each node, :math:`y_j = \sum_i w_{ij} x_i`.

    Examples are graphs `(n, nodes, channels)`, fewer nodes filled up with zeros; the
    edges are an input of their own, `fmap.apply(params, x, pattern=pattern)`:

    * "DENSE": `pattern` `(n, nodes, nodes)`, its entry i, j the weight of the edge
      from i to j, 0 for none. Cost: the square of the nodes.
    * "SPARSE": integers `(n, edges, 2)`, the nodes from which and to which each edge
      goes; a negative number marks an edge that is padding. Equal edges count as often
      as they are there. Also `(edges, weights)` with weights `(n, edges)`, which
      Neural Tangents does not know. Cost: the edges.

    Undirected edges are there in both directions. Where `aggregate_axis` are K axes,
    nodes are K indices: `(n, *sizes, *sizes)`, or `(n, edges, K, 2)`.

    Args:
      aggregate_axis: the axis or axes of the nodes, counted with the batch axis; None
        for all but batch and channels.
      batch_axis: 0.
      channel_axis: -1, or 1 for channels first.
      to_dense: None; Neural Tangents' function that decodes patterns would be no data.
      implementation: "DENSE" or "SPARSE".
      signed: whether weights may be negative. Where they may not, as for sums and
        averages over neighbours, features are better, and negative ones are refused
        (under `jit` they make features NaN). Not known to Neural Tangents.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.

    Source: Du et al., arXiv 1905.13192.
    """

    aggregate_axis: int | tuple[int, ...] | None = None
    batch_axis: int = 0
    channel_axis: int = -1
    to_dense: None = None
    implementation: str = "DENSE"
    signed: bool = False

    def __post_init__(self) -> None:
        axes: Any = self.aggregate_axis
        if isinstance(axes, tuple | list):
            axes = tuple(axis_number(self, "aggregate_axis", axis) for axis in axes)
            if not axes:
                raise ValueError(
                    "Aggregate: aggregate_axis must name at least one axis"
                )
        elif axes is not None:
            axes = axis_number(self, "aggregate_axis", axes)
        set_field(self, "aggregate_axis", axes)
        set_axes(self)
        if self.to_dense is not None:
            raise ValueError(
                "Aggregate: to_dense must be None, a function is no data; give apply "
                'the dense pattern, or implementation="SPARSE" a list of edges'
            )
        if self.implementation not in _IMPLEMENTATIONS:
            raise ValueError(
                "Aggregate: implementation must be "
                f"{' or '.join(map(repr, _IMPLEMENTATIONS))}, got "
                f"{self.implementation!r}"
            )
        if not isinstance(self.signed, bool):
            raise TypeError(f"Aggregate: signed must be a bool, got {self.signed!r}")
