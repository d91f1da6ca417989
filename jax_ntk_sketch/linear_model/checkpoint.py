"""Checkpoints of `fit`: the sums so far, and what they are sums of."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch import _tensor_file
from jax_ntk_sketch._tensor_file import Description
from jax_ntk_sketch.batches.reader import Batch

_KIND = "checkpoint"
_REMEDY = "give the path of a checkpoint of this fit, or of a file that does not exist"

# The relative difference of sums that rounding and other machines explain.
_ROUNDING = 1e-2


def save(
    path: str | os.PathLike,
    arrays: Mapping[str, NDArray],
    description: Mapping[str, Any],
) -> None:
    """Write arrays and their description to `path`, atomically.

    Raises:
      OSError: the file cannot be written; the old file stays as it was.
    """
    _tensor_file.write(path, _KIND, description, arrays)


def load(path: str | os.PathLike) -> tuple[dict[str, NDArray], Description]:
    """Return the arrays and the description of a file that `save` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of another kind or version, or it is damaged.
    """
    kind, description, arrays = _tensor_file.read(path, _KIND, _REMEDY)
    if kind != _KIND:
        raise ValueError(f"{path} is a {kind} and not a {_KIND}; {_REMEDY}")
    return arrays, description


def check_entry(
    path: str | os.PathLike, description: Description, name: str, expected: Any
) -> None:
    """Check an entry of the description of a checkpoint.

    Raises:
      ValueError: it is another one.
    """
    if description.get(name) != expected:
        raise ValueError(
            f"{path} belongs to another run: {name} was {description.get(name)!r} "
            f"there and is {expected!r} here; give another path or delete the file"
        )


class Summed:
    """A running digest of the examples that were summed."""

    def __init__(self) -> None:
        self._total = hashlib.sha256()
        self.first = self.all = ""

    def add(self, batch: Batch) -> None:
        """Add the examples of a batch: what is summed of them, with their weights."""
        parts = batch.x, batch.y, batch.weight, batch.extras
        for leaf in jax.tree.leaves(parts):
            _tensor_file.update_digest(self._total, np.asarray(leaf))
        self.all = self._total.hexdigest()
        self.first = self.first or self.all


def are_close(sums: NDArray, others: NDArray | None) -> bool:
    """Return whether two sums of features are those of one feature map.

    Args:
      sums, others: (2, m), the sums of the features and of their squares.
    """
    if others is None or sums.shape != others.shape:
        return False
    # A sum of n numbers is at most the square root of n times that of their squares;
    # the last feature is 1.
    scale = np.sqrt(np.abs(sums[1] * sums[1, -1])), np.abs(sums[1])
    return bool((np.abs(sums - others) <= _ROUNDING * np.stack(scale)).all())
