"""The data sets of `default.py`: their rows, networks and exact kernels.

A set is "digits" of scikit-learn or an archive in the folder of the data:

- `uci_regression/NAME.npz` with rows `X` and numbers or integer labels `y`. Inputs and
  numbers are standardized by the fitting rows. Networks are `maps.relu_network(depth)`.
- `graphs/NAME.npz`, which `data.load_graphs` reads. Networks are `recipes.gntk(depth)`.
- `NAME.npz` with `x_train` and labels `y_train`. Grey images are rows over 255. Color
  images are averaged to --side pixels, each channel is standardized by the fitting
  images, and networks are `recipes.cntk(depth)`.
"""

import argparse
import dataclasses
import functools
import pathlib
from typing import Any

import cntk_regression
import common
import graphs
import maps
import numpy as np
from default_opponents import network

import jax_ntk_sketch as jns

SETS = (
    "digits", "mnist", "bike", "elevators", "keggdirected", "kin40k", "pol", "protein",
    "MUTAG", "cifar10_lossless_subset",
)  # fmt: skip
REGS = 10.0 ** np.arange(-8, 0.1, 0.5)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a set, at random.

    Attributes:
      kind: of the networks, as `default_opponents.network` takes it.
      x: examples (n, *shape), float32.
      y: targets (n, t).
      num_fitting: how many of them are fitted; the others are held out.
      pattern: the edges of graphs, or None.
    """

    kind: str
    x: np.ndarray
    y: np.ndarray
    num_fitting: int
    pattern: np.ndarray | None = None

    @property
    def extras(self) -> dict[str, np.ndarray]:
        """What maps take besides x."""
        return {} if self.pattern is None else {"pattern": self.pattern}

    def fitting(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the examples that are fitted, and what maps take besides."""
        n = self.num_fitting
        return self.x[:n], {name: a[:n] for name, a in self.extras.items()}

    def columns(self, use: str, wanted: list[int]) -> list[int]:
        """Return the numbers of columns that count for a use of the maps."""
        most = self.num_fitting // 2 if use == "data" else np.inf
        if self.kind != "relu":
            most = min(most, 1024)
        return [m for m in wanted if m <= most]


@functools.lru_cache(1)
def rows(folder: str | None, name: str, most: int, images: int, side: int) -> Rows:
    """Return at most `most` rows to fit, or `images` images, and rows to hold out."""
    path, pattern, is_table = pathlib.Path(folder or "."), None, False
    kind, held_out = "relu", 1000
    if name == "digits":
        digits = jns.data.load_digits()
        x = np.concatenate([digits.x_train, digits.x_test]).reshape(-1, 64)
        y = np.concatenate([digits.y_train, digits.y_test])
    elif (path / f"graphs/{name}.npz").is_file():
        found = jns.data.load_graphs(path / f"graphs/{name}.npz")
        kind, x, y = "gntk", found.graphs.x, found.y
        pattern = np.asarray(found.graphs.pattern)
    elif (path / f"{name}.npz").is_file():
        x, y = common.arrays(folder, f"{name}.npz", "x_train", "y_train")
        if x.ndim == 4:
            kind, most, held_out = "cntk", images, images
            x, y = x[: 2 * images], y[: 2 * images]
            x = common.averaged(x / 255, side)
        else:
            x, y = x[: most + held_out], y[: most + held_out]
            x = x.reshape(len(x), -1) / 255
    else:
        x, y = common.arrays(folder, f"uci_regression/{name}.npz", "X", "y")
        is_table = True
    order = np.random.default_rng(0).permutation(len(x))[: most + held_out]
    if kind == "cntk":
        # As in `cntk_regression.py`, so that both keep the same exact kernel.
        order = np.arange(len(x))
    n = min(most, len(order) * 3 // 4)
    order = order[: n + held_out]
    x, y = x[order], y[order]
    labels = y.dtype.kind in "iu"
    y = maps.codes(y, y.max() + 1) if labels else y[:, None]
    if is_table:
        (x,) = maps.standardize(x[:n], x)
    if kind == "cntk":
        x = (x - x[:n].mean(axis=(0, 1, 2))) / x[:n].std(axis=(0, 1, 2))
    if not labels:
        (y,) = maps.standardize(y[:n], y)
    pattern = None if pattern is None else pattern[order]
    return Rows(kind, x.astype(np.float32), y, n, pattern)


@dataclasses.dataclass(frozen=True, eq=False)
class Machine:
    """The exact kernel machine.

    Attributes:
      kernel: of at most 1000 fitting rows.
      penalty: the one of the smallest leave-one-out error.
      predictions: of the held-out rows.
    """

    kernel: np.ndarray
    penalty: float
    predictions: np.ndarray


@functools.lru_cache(1)
def machine(
    folder: str | None, output: str, name: str, depth: int, *sizes: int
) -> Machine:
    """Return the machine of a set; `sizes` are the other arguments of `rows`."""
    data = rows(folder, name, *sizes)
    n = data.num_fitting
    if data.kind == "gntk":
        options = argparse.Namespace(blocks=depth, mlp_depth=1)
        whole = jns.graphs.Graphs(data.x, data.pattern, np.ones(data.x.shape[:2]))
        k = graphs.exact_kernel(options, whole)
        k, cross = k[:n, :n], k[n:, :n]
    elif data.kind == "cntk":
        net: Any = network(data.kind, depth)
        k = cntk_regression.exact_kernel(net, data.x, n, output, "ntk")
        k, cross = k[:n], k[n:]
    else:
        k = maps.exact(data.x[:n], None, depth)
        cross = maps.exact(data.x[n:], data.x[:n], depth)
    _, reg, weights = maps.kernel_ridge(k, data.y[:n], REGS)
    return Machine(k[:1000, :1000].copy(), reg * np.trace(k), cross @ weights)
