"""Examples that are prepared as slices of them are read."""

from collections.abc import Callable

import numpy as np

from jax_ntk_sketch._typing import Examples, Shape


class Prepared:
    """Examples on disk or in memory, prepared as slices of them are read.

    Args:
      x: examples (n, ...).
      shape: the shape of a prepared example.
      step: the function that prepares some of the examples.
    """

    def __init__(
        self, x: Examples, shape: Shape, step: Callable[[Examples], np.ndarray]
    ) -> None:
        self._x, self._step = x, step
        self.shape: Shape = (len(x), *shape)
        self.ndim, self.dtype = len(self.shape), step(x[:1]).dtype

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._step(self._x[rows])

    def spaced(self, count: int) -> np.ndarray:
        """Return at most `count` evenly spaced examples, those that are finite.

        Raises:
          ValueError: none of them is finite.
        """
        count = min(count, len(self))
        rows = self[np.arange(count) * len(self) // count]
        rows = rows[np.isfinite(rows).reshape(count, -1).all(axis=1)]
        if not len(rows):
            raise ValueError("none of the training examples looked at is finite")
        return rows
