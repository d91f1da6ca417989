"""Loaders for data on disk: NumPy archives, MNIST, CIFAR, JPEGs, CSV tables, graphs.

All return a `Dataset` (graphs a `GraphDataset`) of NumPy arrays. Nothing is ever
downloaded, and no pickle is ever run.
"""

from jax_ntk_sketch.data.cifar import load_cifar
from jax_ntk_sketch.data.csv_table import load_csv, read_csv
from jax_ntk_sketch.data.dataset import Dataset
from jax_ntk_sketch.data.digits import load_digits
from jax_ntk_sketch.data.graph_sets import GraphDataset, load_graphs
from jax_ntk_sketch.data.idx import load_idx, read_idx
from jax_ntk_sketch.data.jpeg import load_jpeg_npz
from jax_ntk_sketch.data.loading import load
from jax_ntk_sketch.data.npz import load_npz

__all__ = [
    "Dataset",
    "GraphDataset",
    "load",
    "load_cifar",
    "load_csv",
    "load_digits",
    "load_graphs",
    "load_idx",
    "load_jpeg_npz",
    "load_npz",
    "read_csv",
    "read_idx",
]
