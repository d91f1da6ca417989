"""The rows of a sample, with targets and the inputs of graphs."""

import dataclasses
import warnings

import jax
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._arrays import to_numpy
from jax_ntk_sketch._typing import Examples, PyTree, Task
from jax_ntk_sketch.batches import labels
from jax_ntk_sketch.batches.sparse_rows import refuse_sparse

# Every so many rows one is held out.
_PARTS = 4

# The fewest rows that can be weighed.
_FEWEST = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a sample.

    Attributes:
      x: examples (n, *shape).
      y: targets (n, t), or None.
      extras: "pattern" and "mask" of graphs, where they are given.
    """

    x: NDArray
    y: NDArray | None
    extras: dict[str, PyTree]

    @classmethod
    def read(
        cls,
        owner: str,
        sample: Examples,
        y: object,
        task: Task | None,
        extras: dict[str, PyTree],
    ) -> "Rows":
        """Return all rows of a sample.

        Raises:
          TypeError: the sample is sparse or complex; y is neither numbers nor labels.
          ValueError: there are too few examples, or one is not finite; y has another
            length or shape.
        """
        refuse_sparse(owner, sample, "sample")
        x = to_numpy(owner, "sample", sample)
        if x.ndim < 2 or len(x) < _FEWEST:
            raise ValueError(
                f"{owner}: sample must hold at least {_FEWEST} examples (n, *shape), "
                f"got shape {x.shape}"
            )
        _check_finite(owner, "sample", x)
        given = {name: value for name, value in extras.items() if value is not None}
        return cls(x, None if y is None else _targets(owner, y, len(x), task), given)

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: NDArray) -> "Rows":
        """Return some of the rows."""
        y = None if self.y is None else self.y[index]
        extras = jax.tree.map(lambda a: np.asarray(a)[index], self.extras)
        return Rows(self.x[index], y, extras)

    def split(self, rng: np.random.Generator, most: int) -> "tuple[Rows, Rows]":
        """Return rows to fit and rows to hold out, of at most `most`, at random."""
        order = rng.permutation(len(self))[:most]
        held_out = len(order) // _PARTS
        return self.take(order[held_out:]), self.take(order[:held_out])


def _check_finite(owner: str, name: str, a: NDArray) -> None:
    if a.dtype.kind == "f":
        bad = ~np.isfinite(a).reshape(len(a), -1).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{owner}: {name} must be finite, but its row {int(bad.argmax())} has "
                "a NaN or an infinity; leave it out"
            )


def _targets(owner: str, y: object, n: int, task: Task | None) -> NDArray:
    """Return targets (n, t), float64; labels become codes of mean 0."""
    values = labels.check_targets(owner, np.asarray(y), task)
    if len(values) != n:
        raise ValueError(
            f"{owner}: y must have a target for each of the {n} examples, got "
            f"{len(values)}"
        )
    if labels.are_labels(values, task):
        classes = labels.find_classes(owner, values, task)
        values = labels.centered_codes(owner, values, classes, np.float64)
    values = values.reshape(n, -1).astype(np.float64)
    _check_finite(owner, "y", values)
    return values


def warn_if_sorted(owner: str, x: NDArray) -> None:
    """Warn if the rows of a sample are sorted by length, as those of its head may be.

    The rank correlation of the lengths with their places is the test.
    """
    n = len(x)
    lengths = np.linalg.norm(x.reshape(n, -1).astype(np.float64), axis=1)
    ranks = np.argsort(np.argsort(lengths, kind="stable"), kind="stable")
    if lengths.min() == lengths.max():
        return
    correlation = float(np.corrcoef(ranks, np.arange(n))[0, 1])
    if abs(correlation) > max(0.5, 5 / n**0.5):
        warnings.warn(
            f"{owner}: the rows of the sample are sorted by length (rank correlation "
            f"{correlation:.2f}); if they are the head of a sorted array, they are not "
            "like the others: draw the sample at random",
            UserWarning,
            stacklevel=4,
        )
