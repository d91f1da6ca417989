"""Graphs of different sizes as arrays: what networks with `stax.Aggregate` take."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Graphs", "pad"]


class Graphs(NamedTuple):
    """n graphs; `fmap.apply(params, graphs.x, pattern=graphs.pattern)`.

    Attributes:
      x: (n, nodes, channels), zeros in nodes that are padding.
      pattern: int32 (n, edges, 2), from and to, -1 in edges that are padding; or a
        pair of that and weights (n, edges).
      mask: bool (n, nodes), True in nodes that exist.
    """

    x: Any
    pattern: Any
    mask: Any

    def take(self, index: Any) -> "Graphs":
        """Some of the graphs."""
        pattern = self.pattern
        if isinstance(pattern, tuple):
            pattern = tuple(part[index] for part in pattern)
        else:
            pattern = pattern[index]
        return Graphs(self.x[index], pattern, self.mask[index])


def pad(
    nodes: Sequence[Any],
    edges: Sequence[Any],
    *,
    undirected: bool = True,
    loops: bool = True,
    normalize: bool = False,
    num_nodes: int | None = None,
    num_edges: int | None = None,
) -> Graphs:
    """Fills graphs up to the same number of nodes and edges.

    Args:
      nodes: for each graph `(V_i, channels)`, real.
      edges: for each graph `(E_i, 2)` integers, its nodes from and to which edges go.
      undirected: every edge (but loops) goes both ways.
      loops: an edge from each node to itself is added, as graph neural tangent kernels
        have it.
      normalize: weights that make every sum over edges an average, in place of 1.
      num_nodes, num_edges: sizes to fill up to; by default the largest that occur. (Of
        `num_edges`, the ones that these options add count.)

    Returns:
      `Graphs`, NumPy arrays; x keeps the dtype of `nodes` where it is floating.

    Raises:
      ValueError: sequences of different lengths, arrays of the wrong shape, an edge of
        a node that does not exist, a size that is too small; the graph is named.

    Cost: one pass on the host.

    >>> graphs = pad([np.ones((3, 1)), np.ones((2, 1))], [[(0, 1), (1, 2)], [(0, 1)]])
    >>> graphs.x.shape, graphs.pattern.shape, graphs.mask.sum(1).tolist()
    ((2, 3, 1), (2, 7, 2), [3, 2])
    >>> graphs.pattern[1].tolist()
    [[0, 1], [1, 0], [0, 0], [1, 1], [-1, -1], [-1, -1], [-1, -1]]
    """
    if len(nodes) != len(edges) or not len(nodes):
        raise ValueError(
            "pad: nodes and edges must be of the same graphs, at least one; got "
            f"{len(nodes)} and {len(edges)}"
        )
    rows = [np.asarray(one) for one in nodes]
    channels = rows[0].shape[-1] if rows[0].ndim == 2 else None
    for i, one in enumerate(rows):
        if one.ndim != 2 or one.shape[1] != channels:
            raise ValueError(
                f"pad: nodes[{i}] must have shape (nodes, {channels or 'channels'}), "
                f"got {one.shape}"
            )
    ends = [_edges(i, e, len(rows[i]), undirected, loops) for i, e in enumerate(edges)]
    n = len(rows)
    most = _size("num_nodes", num_nodes, max(map(len, rows)))
    many = _size("num_edges", num_edges, max(map(len, ends)))
    dtype = np.result_type(*{one.dtype for one in rows})
    dtype = dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float32)
    x = np.zeros((n, most, channels or 0), dtype)
    mask = np.zeros((n, most), bool)
    pattern = np.full((n, many, 2), -1, np.int32)
    weights = np.zeros((n, many), dtype)
    for i, (one, pairs) in enumerate(zip(rows, ends, strict=True)):
        x[i, : len(one)] = one
        mask[i, : len(one)] = True
        pattern[i, : len(pairs)] = pairs
        into = np.bincount(pairs[:, 1], minlength=most)
        weights[i, : len(pairs)] = 1 / into[pairs[:, 1]]
    return Graphs(x, (pattern, weights) if normalize else pattern, mask)


def _edges(
    number: int, pairs: Any, nodes: int, undirected: bool, loops: bool
) -> np.ndarray:
    """All edges of a graph, (E, 2)."""
    pairs = np.asarray(pairs)
    if not pairs.size:
        pairs = np.zeros((0, 2), np.int32)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(
            f"pad: edges[{number}] must be integers (edges, 2), got shape "
            f"{pairs.shape} and dtype {pairs.dtype}"
        )
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < nodes:
        raise ValueError(
            f"pad: edges[{number}] must name nodes from 0 to {nodes - 1}, got "
            f"{pairs.min()} to {pairs.max()}"
        )
    parts = [pairs]
    if undirected:
        parts.append(pairs[pairs[:, 0] != pairs[:, 1], ::-1])
    if loops:
        parts.append(np.repeat(np.arange(nodes)[:, None], 2, axis=1))
    return np.concatenate(parts)


def _size(name: str, given: int | None, least: int) -> int:
    if given is None:
        return least
    if given < least:
        raise ValueError(f"pad: {name} must be at least {least}, got {given}")
    return given
