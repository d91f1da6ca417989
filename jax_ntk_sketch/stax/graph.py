"""Layers over the edges of a graph."""

import dataclasses

from jax_ntk_sketch._checks import check_choice, check_flag, set_checked
from jax_ntk_sketch.stax.base import Layer, check_axis, set_axes


@dataclasses.dataclass(frozen=True, repr=False)
class Aggregate(Layer):
    r"""The sum over the edges that end in each node, :math:`y_j = \sum_i w_{ij} x_i`.

    Inputs (n, nodes, c) are graphs, those with fewer nodes padded with zeros; outputs
    have the same shape. The edges are an input of their own, given as
    `fmap.apply(params, x, pattern=pattern)`:

    * With "DENSE", `pattern` is `(n, nodes, nodes)`. Entry i, j is the weight of the
      edge from i to j, and 0 if there is none.
    * With "SPARSE", `pattern` holds integers `(n, edges, 2)`: the node where each edge
      begins and the node where it ends. An edge with a negative number is padding. An
      edge that is repeated counts again. A pair `(edges, weights)` with weights
      `(n, edges)` is accepted too; Neural Tangents does not have it.

    An undirected edge is given in both directions. If `aggregate_axis` has K axes, a
    node is named by K indices, and patterns are `(n, *sizes, *sizes)` or
    `(n, edges, K, 2)`.

    Args:
      aggregate_axis: the axis or the axes of the nodes, counted with the batch axis;
        None for all but batch and channels.
      batch_axis: must be 0.
      channel_axis: -1, or 1 for channels first.
      to_dense: must be None. Functions that decode patterns are not supported.
      implementation: "DENSE" or "SPARSE".
      signed: whether weights may be negative. Features are more accurate if they may
        not. Negative weights then raise, or give NaN features under `jit`. Neural
        Tangents does not have this argument.

    Raises:
      TypeError: an axis is not an integer, or `signed` not a bool.
      ValueError: an axis is the batch axis; `batch_axis` is not 0; `to_dense` is given;
        `implementation` is unknown.

    Cost: linear in the square of the nodes ("DENSE") or in the edges ("SPARSE").

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.Aggregate(), stax.Dense(64), stax.Relu(), stax.GlobalSumPool())
    stax.serial(stax.Aggregate(), stax.Dense(64), stax.Relu(), stax.GlobalSumPool())

    Source: Du et al., arXiv 1905.13192.
    """

    aggregate_axis: int | tuple[int, ...] | None = None
    batch_axis: int = 0
    channel_axis: int = -1
    to_dense: None = None
    implementation: str = "DENSE"
    signed: bool = False

    def __post_init__(self) -> None:
        set_checked(self, check_axes, "aggregate_axis")
        set_axes(self)
        if self.to_dense is not None:
            raise ValueError(
                f"Aggregate: to_dense must be None, got {self.to_dense!r}; give apply "
                'the dense pattern, or use implementation="SPARSE" and a list of edges'
            )
        set_checked(self, check_choice, "implementation", choices=("DENSE", "SPARSE"))
        set_checked(self, check_flag, "signed")


def check_axes(owner: str, name: str, value: object) -> int | tuple[int, ...]:
    """Return an axis, or a tuple of axes, other than the batch axis."""
    if not isinstance(value, tuple | list):
        return check_axis(owner, name, value)
    if not value:
        raise ValueError(
            f"{owner}: {name} must have at least one axis, got {value!r}; for a "
            "sum over nothing give graphs of one node, (n, 1, channels)"
        )
    return tuple(check_axis(owner, name, axis) for axis in value)
