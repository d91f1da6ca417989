"""Batches of graphs of different sizes, for networks with `stax.Aggregate`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jax_ntk_sketch._checks import check_size

__all__ = ["Graphs", "pad"]


class Graphs(NamedTuple):
    """A batch of n graphs: `fmap.apply(params, graphs.x, pattern=graphs.pattern)`.

    Attributes:
      x: (n, nodes, channels), zero for nodes that are padding.
      pattern: int32 (n, edges, 2), the nodes from and to which edges go, -1 for edges
        that are padding; or a pair of that and weights (n, edges).
      mask: bool (n, nodes), True for nodes that exist.
    """

    x: NDArray
    pattern: NDArray | tuple[NDArray, NDArray]
    mask: NDArray

    def take(self, index: slice | NDArray) -> "Graphs":
        """Return the graphs at a slice or at an array of positions."""
        pattern = self.pattern
        if isinstance(pattern, tuple):
            edges, weights = pattern
            return Graphs(
                self.x[index], (edges[index], weights[index]), self.mask[index]
            )
        return Graphs(self.x[index], pattern[index], self.mask[index])


def pad(
    nodes: Sequence[ArrayLike],
    edges: Sequence[ArrayLike],
    *,
    undirected: bool = True,
    loops: bool = True,
    normalize: bool = False,
    num_nodes: int | None = None,
    num_edges: int | None = None,
) -> Graphs:
    """Return a batch of graphs, padded to one number of nodes and of edges.

    Args:
      nodes: for each graph, the features of its nodes, real `(V_i, channels)`.
      edges: for each graph, the nodes from and to which its edges go, integers
        `(E_i, 2)`.
      undirected: whether to add the reverse of every edge that is not listed both ways.
        Of edges that are listed several times, both directions get the larger number.
      loops: whether to add an edge from each node to itself, as graph neural tangent
        kernels have it, where none is listed.
      normalize: whether to return weights with which every sum over edges is an
        average; otherwise all weights are 1.
      num_nodes, num_edges: the sizes after padding; by default the largest sizes in the
        batch. Edges that `undirected` and `loops` add are counted.

    Returns:
      `Graphs` of NumPy arrays; x has the dtype of `nodes` if it is floating, otherwise
      float32.

    Raises:
      TypeError: a size is not an integer.
      ValueError: `nodes` and `edges` have different lengths; an array has the wrong
        shape or dtype; an edge names a node that does not exist; a size is too small.
        The graph is named.

    Cost: one pass on the host.

    >>> import numpy as np
    >>> from jax_ntk_sketch import graphs
    >>> nodes = [np.ones((3, 1)), np.ones((2, 1))]
    >>> batch = graphs.pad(nodes, [[(0, 1), (1, 2)], [(0, 1)]])
    >>> batch.x.shape, batch.pattern.shape, batch.mask.sum(1).tolist()
    ((2, 3, 1), (2, 7, 2), [3, 2])
    >>> batch.pattern[1].tolist()
    [[0, 1], [1, 0], [0, 0], [1, 1], [-1, -1], [-1, -1], [-1, -1]]
    """
    if len(nodes) != len(edges) or not len(nodes):
        raise ValueError(
            "pad: nodes and edges must hold the same graphs, at least one; got "
            f"{len(nodes)} and {len(edges)}"
        )
    features = [np.asarray(graph) for graph in nodes]
    channels = features[0].shape[-1] if features[0].ndim == 2 else None
    for i, graph in enumerate(features):
        if graph.ndim != 2 or graph.shape[1] != channels:
            raise ValueError(
                f"pad: nodes[{i}] must have shape (nodes, {channels or 'channels'}), "
                f"got {graph.shape}"
            )
    lists = [
        _all_edges(i, pairs, len(features[i]), undirected, loops)
        for i, pairs in enumerate(edges)
    ]
    n = len(features)
    max_nodes = _padded_size("num_nodes", num_nodes, max(map(len, features)))
    max_edges = _padded_size("num_edges", num_edges, max(map(len, lists)))
    dtype = np.result_type(*{graph.dtype for graph in features})
    dtype = dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float32)
    x = np.zeros((n, max_nodes, channels or 0), dtype)
    mask = np.zeros((n, max_nodes), bool)
    pattern = np.full((n, max_edges, 2), -1, np.int32)
    weights = np.zeros((n, max_edges), dtype)
    for i, (graph, pairs) in enumerate(zip(features, lists, strict=True)):
        x[i, : len(graph)] = graph
        mask[i, : len(graph)] = True
        pattern[i, : len(pairs)] = pairs
        in_degree = np.bincount(pairs[:, 1], minlength=max_nodes)
        weights[i, : len(pairs)] = 1 / in_degree[pairs[:, 1]]
    return Graphs(x, (pattern, weights) if normalize else pattern, mask)


def _all_edges(
    number: int, edges: ArrayLike, num_nodes: int, undirected: bool, loops: bool
) -> NDArray:
    """Return the edges of a graph (E, 2), with those that the options add."""
    pairs = np.asarray(edges)
    if not pairs.size:
        pairs = np.zeros((0, 2), np.int32)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(
            f"pad: edges[{number}] must be integers (edges, 2), got shape "
            f"{pairs.shape} and dtype {pairs.dtype}"
        )
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < num_nodes:
        raise ValueError(
            f"pad: edges[{number}] must name nodes from 0 to {num_nodes - 1}, got "
            f"{pairs.min()} to {pairs.max()}"
        )
    parts = [pairs]
    if undirected:
        parts.append(_missing(pairs[:, ::-1], pairs))
    if loops:
        nodes = np.setdiff1d(np.arange(num_nodes), pairs[pairs[:, 0] == pairs[:, 1], 0])
        parts.append(np.repeat(nodes[:, None], 2, axis=1))
    return np.concatenate(parts)


def _missing(wanted: NDArray, edges: NDArray) -> NDArray:
    """Return the edges of `wanted` that `edges` lack, as often as they lack them."""
    pairs, counts = np.unique(wanted, axis=0, return_counts=True)
    both, first = np.unique(np.concatenate([pairs, edges]), axis=0, return_inverse=True)
    listed = np.bincount(first.reshape(-1)[len(pairs) :], minlength=len(both))
    lacking = counts - listed[first.reshape(-1)[: len(pairs)]]
    return np.repeat(pairs, np.maximum(lacking, 0), axis=0)


def _padded_size(name: str, size: int | None, largest: int) -> int:
    return largest if size is None else check_size("pad", name, size, largest)
