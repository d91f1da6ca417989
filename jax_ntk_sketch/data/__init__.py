"""Loaders for data on disk: tables, NumPy archives, MNIST, CIFAR, and graphs.

`load` returns a `Dataset` of NumPy arrays, and `load_graphs` a `GraphDataset`. Nothing
is downloaded, and no code in a file is run.
"""

from jax_ntk_sketch.data._dataset import Dataset
from jax_ntk_sketch.data._digits import load_digits
from jax_ntk_sketch.data._graph_sets import GraphDataset, load_graphs
from jax_ntk_sketch.data._load import load

__all__ = ["Dataset", "GraphDataset", "load", "load_digits", "load_graphs"]
