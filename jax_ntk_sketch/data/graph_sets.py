"""Sets of labelled graphs."""

import dataclasses
import os

import numpy as np

from jax_ntk_sketch.data.dataset import existing_file
from jax_ntk_sketch.data.npz import get_array, read_arrays
from jax_ntk_sketch.graphs import Graphs, pad

__all__ = ["GraphDataset", "load_graphs"]


@dataclasses.dataclass(frozen=True, eq=False)
class GraphDataset:
    """Graphs and what they are labelled with.

    Attributes:
      name: of the file.
      graphs: x (n, nodes, tags) one-hot, float32, pattern and mask.
      y: (n,) class numbers from 0.
      labels: the file's label of each class.
      folds: pairs of indices, to train and to test on; () where there are none.
    """

    name: str
    graphs: Graphs
    y: np.ndarray
    labels: tuple[int, ...]
    folds: tuple[tuple[np.ndarray, np.ndarray], ...]


def load_graphs(
    path: str | os.PathLike,
    *,
    undirected: bool = True,
    loops: bool = True,
    normalize: bool = False,
) -> GraphDataset:
    """Reads labelled graphs whose nodes have tags, such as MUTAG, from an archive.

    A NumPy archive with `y` (n,), `n_nodes` and `n_edges` (n,), the nodes of all graphs
    one after the other, `node_tag` (their sum,), and their edges likewise, `edge_i` and
    `edge_j`, numbers of nodes within the graph; optionally `fold1_train`,
    `fold1_test`, `fold2_train`, ...: indices of graphs.

    Args:
      path: the file.
      undirected, loops, normalize: see `jax_ntk_sketch.graphs.pad`.

    Returns:
      `GraphDataset`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an archive, arrays missing or that do not fit.
    """
    path = existing_file(path)
    arrays = read_arrays(path)
    names = ("y", "n_nodes", "n_edges", "node_tag", "edge_i", "edge_j")
    y, sizes, counts, tags, first, second = (
        get_array(arrays, name, path) for name in names
    )
    for what, total, found in (
        ("n_nodes", sizes, len(tags)),
        ("n_edges", counts, len(first)),
        ("n_edges", counts, len(second)),
    ):
        if total.shape != y.shape or total.sum() != found:
            raise ValueError(
                f"{path}: {what} must be a number for each of the {len(y)} graphs, of "
                f"sum {found}, got {total.shape} of sum {total.sum()}"
            )
    values, numbers = np.unique(tags, return_inverse=True)
    one_hot = np.eye(len(values), dtype=np.float32)[numbers.reshape(-1)]
    edges = np.stack([first, second], axis=1)
    padded = pad(
        np.split(one_hot, np.cumsum(sizes)[:-1]),
        np.split(edges, np.cumsum(counts)[:-1]),
        undirected=undirected,
        loops=loops,
        normalize=normalize,
    )
    labels, classes = np.unique(y, return_inverse=True)
    folds: list[tuple[np.ndarray, np.ndarray]] = []
    while f"fold{len(folds) + 1}_train" in arrays:
        number = len(folds) + 1
        parts = [
            get_array(arrays, f"fold{number}_{part}", path)
            for part in ("train", "test")
        ]
        folds.append((parts[0], parts[1]))
    known = tuple(int(label) for label in labels)
    return GraphDataset(path.stem, padded, classes.reshape(-1), known, tuple(folds))
