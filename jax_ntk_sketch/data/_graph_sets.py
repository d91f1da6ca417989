"""Sets of labeled graphs."""

import dataclasses
import os

import numpy as np

from jax_ntk_sketch.data._dataset import existing_file
from jax_ntk_sketch.data._npz import get_array, read_archive
from jax_ntk_sketch.graphs import Graphs, pad

_NAMES = ("y", "n_nodes", "n_edges", "node_tag", "edge_i", "edge_j")


@dataclasses.dataclass(frozen=True, eq=False)
class GraphDataset:
    """Graphs and their labels.

    Attributes:
      name: the name of the file.
      graphs: x (n, nodes, tags) one-hot float32, with `pattern` and `mask`.
      y: (n,) class numbers from 0.
      labels: the file's label of each class.
      folds: pairs of indices, to train and to test on; () where the file has none.
    """

    name: str
    graphs: Graphs
    y: np.ndarray
    labels: tuple[int, ...]
    folds: tuple[tuple[np.ndarray, np.ndarray], ...]


def load_graphs(path: str | os.PathLike[str]) -> GraphDataset:
    """Return labeled graphs whose nodes have tags, such as MUTAG, from an archive.

    The NumPy archive holds `y`, `n_nodes` and `n_edges`, (n,) each; `node_tag`, the
    tags of the nodes of all graphs one after the other; `edge_i` and `edge_j`, the
    ends of their edges as numbers of nodes within the graph; and optionally
    `fold1_train`, `fold1_test`, `fold2_train`, ..., which are indices of graphs.

    Args:
      path: the file. Its graphs are undirected, and each node gets an edge to itself;
        see `jax_ntk_sketch.graphs.pad`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not an archive, or arrays are missing or do not fit.
    """
    path = existing_file(path)
    arrays = read_archive(path)
    expected = ", ".join(_NAMES)
    y, sizes, counts, tags, first, second = (
        get_array(arrays, name, path, expected) for name in _NAMES
    )
    for what, numbers, total in (
        ("n_nodes", sizes, len(tags)),
        ("n_edges", counts, len(first)),
        ("n_edges", counts, len(second)),
    ):
        if numbers.shape != y.shape or numbers.sum() != total:
            raise ValueError(
                f"{path}: {what} must hold a number for each of the {len(y)} graphs, "
                f"with sum {total}, got shape {numbers.shape} and sum {numbers.sum()}"
            )
    values, tag_numbers = np.unique(tags, return_inverse=True)
    one_hot = np.eye(len(values), dtype=np.float32)[tag_numbers.reshape(-1)]
    edges = np.stack([first, second], axis=1)
    nodes = np.split(one_hot, np.cumsum(sizes)[:-1])
    padded = pad(nodes, np.split(edges, np.cumsum(counts)[:-1]))
    labels, classes = np.unique(y, return_inverse=True)
    folds: list[tuple[np.ndarray, np.ndarray]] = []
    while (name := f"fold{len(folds) + 1}_train") in arrays:
        test = get_array(arrays, name.replace("train", "test"), path, expected)
        folds.append((arrays[name], test))
    known = tuple(int(label) for label in labels)
    return GraphDataset(path.stem, padded, classes.reshape(-1), known, tuple(folds))
