"""Sets of labeled graphs."""

import dataclasses
import os
import pathlib

import numpy as np

from jax_ntk_sketch._files import check_memory
from jax_ntk_sketch.batches.labels import Label, check_targets, is_text
from jax_ntk_sketch.data._dataset import check_finite, existing_file
from jax_ntk_sketch.data._npz import get_array, read_archive
from jax_ntk_sketch.graphs import Graphs, pad

_NAMES = ("y", "n_nodes", "n_edges", "node_tag", "edge_i", "edge_j")


@dataclasses.dataclass(frozen=True, eq=False)
class GraphDataset:
    """Graphs and their labels.

    Attributes:
      name: the name of the file.
      graphs: x (n, nodes, channels) float32, one-hot tags or attributes of the nodes,
        with `pattern` and `mask`.
      y: (n,) class numbers from 0.
      labels: the file's label of each class, an integer or text.
      folds: pairs of indices, to train and to test on; () where the file has none.
    """

    name: str
    graphs: Graphs
    y: np.ndarray
    labels: tuple[Label, ...]
    folds: tuple[tuple[np.ndarray, np.ndarray], ...]


def load_graphs(path: str | os.PathLike[str]) -> GraphDataset:
    """Return labeled graphs whose nodes have tags, such as MUTAG, from an archive.

    The NumPy archive holds `y`, `n_nodes` and `n_edges`, (n,) each; `node_tag`, the
    tags (nodes,) of the nodes of all graphs one after the other; `edge_i` and `edge_j`,
    the ends of their edges as numbers of nodes within the graph; and optionally
    `fold1_train`, `fold1_test`, `fold2_train`, ..., which are indices of graphs. Tags
    are whole numbers or text, and become one-hot codes. Instead, `node_tag` may be
    attributes (nodes, channels), which stay as they are.

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
    if not len(y):
        raise ValueError(f"{path}: y must hold at least one graph, got none")
    for what, numbers, total in (
        ("n_nodes", sizes, len(tags)),
        ("n_edges", counts, len(first)),
        ("n_edges", counts, len(second)),
    ):
        whole = numbers.dtype.kind in "iu" and numbers.shape == y.shape
        if not whole or numbers.min() < 0 or numbers.sum() != total:
            raise ValueError(
                f"{path}: {what} must hold a whole number for each of the {len(y)} "
                f"graphs, with sum {total}, got {numbers.dtype} of shape "
                f"{numbers.shape} and sum {numbers.sum()}"
            )
    for name, ends in (("edge_i", first), ("edge_j", second)):
        if ends.ndim != 1 or ends.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: {name} must hold whole numbers (edges,), got {ends.dtype} of "
                f"shape {ends.shape}"
            )
    features = _node_features(tags, path)
    check_memory(path, 4 * len(y) * int(sizes.max()) * features.shape[1])
    nodes = np.split(features, np.cumsum(sizes)[:-1])
    edges = np.stack([first, second], axis=1)
    padded = pad(nodes, np.split(edges, np.cumsum(counts)[:-1]))
    y = check_targets(f"{path}", y, "classification")
    labels, classes = np.unique(y, return_inverse=True)
    folds: list[tuple[np.ndarray, np.ndarray]] = []
    while (name := f"fold{len(folds) + 1}_train") in arrays:
        other = name.replace("train", "test")
        parts = arrays[name], get_array(arrays, other, path, expected)
        for part, index in zip((name, other), parts, strict=True):
            whole = index.dtype.kind in "iu" and index.ndim == 1
            if not (whole and np.isin(index, np.arange(len(y))).all()):
                raise ValueError(
                    f"{path}: {part} must hold numbers of graphs from 0 to "
                    f"{len(y) - 1}, got {index.dtype} {index}"
                )
        if np.intersect1d(*parts).size:
            raise ValueError(f"{path}: {name} and {other} must not share graphs")
        folds.append(parts)
    known = tuple(labels.tolist())
    return GraphDataset(path.stem, padded, classes.reshape(-1), known, tuple(folds))


def _node_features(tags: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Return one-hot codes of tags (nodes,), or attributes (nodes, channels)."""
    numbers = tags.dtype.kind in "biuf"
    check_finite(tags, f"{path}: node_tag")
    whole = not numbers or np.array_equal(tags, np.round(tags))
    if numbers and tags.ndim == 2 and (tags.shape[1] > 1 or not whole):
        return tags.astype(np.float32)
    tags = tags[:, 0] if tags.ndim == 2 and tags.shape[1] == 1 else tags
    if tags.ndim != 1 or not (numbers or is_text(tags)):
        raise ValueError(
            f"{path}: node_tag must be tags (nodes,) or numbers (nodes, channels), got "
            f"{tags.dtype} of shape {tags.shape}"
        )
    if not whole:
        raise ValueError(
            f"{path}: node_tag must be whole numbers or text as tags, got "
            f"{tags[tags != np.round(tags)][0]}; give attributes of nodes the shape "
            "(nodes, channels)"
        )
    values, which = np.unique(tags, return_inverse=True)
    check_memory(path, 4 * len(tags) * len(values))
    one_hot = np.zeros((len(tags), len(values)), np.float32)
    one_hot[np.arange(len(tags)), which.reshape(-1)] = 1
    return one_hot
