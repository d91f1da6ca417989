"""What a model is fitted to: examples as numbers, and their targets."""

import dataclasses
import math
import warnings
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._arrays import sliceable, to_numpy
from jax_ntk_sketch._typing import Examples, PyTree, Shape, Targets, Task
from jax_ntk_sketch.batches import labels
from jax_ntk_sketch.batches.source import is_dataset, open_source
from jax_ntk_sketch.batches.sparse_rows import is_sparse, num_examples, to_csr
from jax_ntk_sketch.graphs import Graphs
from jax_ntk_sketch.model.table import Missing, Table
from jax_ntk_sketch.preprocessing.inputs import Inputs

# The most classes. Beyond, one column of weights for each class is the wrong machine.
_MOST_CLASSES = 10_000

# Examples of a data set that makes batches itself.
_BATCH = 1024

# So few different whole numbers may be labels.
_FEW_LABELS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """Examples and targets of a fit.

    Attributes:
      x: examples (n, *shape), numbers; a memory map stays on disk.
      y: labels (n,), or numbers (n,) or (n, t) of mean 0 and deviation 1.
      codes: the columns to regress on, (n, t) float64: numbers, or one-hot codes less
        their mean.
      scale: the mean and the deviation of the numbers before, (2, t); None for labels.
      task: "classification" or "regression".
      extras: "pattern" and "mask" of graphs.
      table: what made numbers of a table, or None.
      weight: (n,) of mean 1, or None.
    """

    x: Examples
    y: NDArray
    codes: NDArray
    scale: NDArray | None
    task: Task
    extras: dict[str, PyTree]
    table: Table | None
    weight: NDArray | None

    @classmethod
    def read(
        cls,
        x: Examples,
        y: Targets,
        *,
        task: Task | None,
        weight: Targets,
        missing: Missing,
        extras: dict[str, PyTree],
    ) -> "Training":
        """Return the examples and targets of arrays, tables, graphs or batches.

        Raises:
          TypeError, ValueError: they are not what `fit` takes.
        """
        if y is None:
            x, y, weight, extras = _gathered(x, weight, extras)
        x, extras, table = _examples(x, missing, extras)
        n = num_examples(x)
        y = to_numpy("fit", "y", y)
        if n != len(y):
            raise ValueError(
                f"fit: x and y must have one length, got {n} examples and {len(y)} "
                "targets"
            )
        if n < 2:
            raise ValueError(f"fit: x must hold at least 2 examples, got {n}")
        y, codes, scale = _targets(y, task)
        task = "classification" if scale is None else "regression"
        return cls(x, y, codes, scale, task, extras, table, _weights(weight, n))

    def __len__(self) -> int:
        return num_examples(self.x)

    @property
    def shape(self) -> Shape:
        """The shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def is_sparse(self) -> bool:
        """Whether the examples are compressed rows."""
        return is_sparse(self.x)

    @property
    def raw(self) -> Inputs:
        """Steps that flatten examples, and divide 8-bit pixels by 255."""
        pixels = self.x.dtype == np.uint8 and len(self.shape) > 1
        return Inputs((math.prod(self.shape),), pixels)

    def prepared(self, inputs: Inputs | None) -> Examples:
        """Return all examples as inputs of a network."""
        return self.x if inputs is None else inputs.prepare(self.x)

    def extras_of(self, rows: NDArray) -> dict[str, PyTree]:
        """Return what belongs to some of the examples."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], self.extras)


def as_numbers(
    owner: str, x: Examples, table: Table | None, extras: dict[str, PyTree]
) -> tuple[Examples, dict[str, PyTree]]:
    """Return examples to predict for as training had them, and what belongs to them."""
    if isinstance(x, Graphs):
        return x.x, {"pattern": x.pattern, "mask": x.mask}
    if table is not None:
        return table(owner, x), extras
    return (x if is_sparse(x) else sliceable(owner, "x", x)), extras


def _examples(
    x: Examples, missing: Missing, extras: dict[str, PyTree]
) -> tuple[Examples, dict[str, PyTree], Table | None]:
    """Return examples as numbers, what belongs to them, and the table that made them.

    Raises:
      TypeError, ValueError: as `Table.learned`; they have no second axis; a number is
        infinite, or missing.
    """
    given = {name: value for name, value in extras.items() if value is not None}
    if isinstance(x, Graphs):
        return x.x, {"pattern": x.pattern, "mask": x.mask}, None
    if is_sparse(x):
        return to_csr("fit", "x", x), given, None
    table = None
    if not given:
        table = Table.learned(x, missing)
    x = table("fit", x) if table is not None else sliceable("fit", "x", x)
    if getattr(x, "ndim", 0) < 2 or math.prod(x.shape[1:]) == 0:
        raise ValueError(
            "fit: x must hold n examples (n, *shape) of at least one number each, got "
            f"shape {np.shape(x)}; write one number per example as x[:, None]"
        )
    return x, given, table


def _gathered(
    x: Any, weight: Targets, extras: dict[str, PyTree]
) -> tuple[NDArray, NDArray, Targets, dict[str, PyTree]]:
    """Return the arrays of batches, which are kept in memory.

    Raises:
      TypeError, ValueError: as `open_source` and its batches; x is an array; there is
        no batch.
    """
    if hasattr(x, "shape") and not is_dataset(x):
        raise TypeError(
            "fit: y must be given together with an array or a table x, got None; or "
            "give x as an iterable of batches (x, y)"
        )
    batches = list(open_source("fit", x, None, weight, extras).rows(_BATCH))
    if not batches:
        raise ValueError("fit: x must hold examples, got no batch")

    def joined(*parts: Any) -> NDArray:
        return np.concatenate([to_numpy("fit", "x", part) for part in parts])

    parts = [(batch.x, batch.y, batch.weight, batch.extras) for batch in batches]
    return jax.tree.map(joined, *parts)


def _targets(y: NDArray, task: Task | None) -> tuple[NDArray, NDArray, NDArray | None]:
    """Return the targets, the columns to regress on, and the scale of numbers.

    Raises:
      TypeError, ValueError: they are neither numbers nor labels, or not finite; or
        there is one class only, or too many.
    """
    y = labels.check_targets("fit", y, task)
    if labels.are_labels(y, task):
        classes = labels.find_classes("fit", y, task)
        present = len(np.unique(y))
        if present < 2:
            raise ValueError(
                f"fit: y must hold at least two classes, got only {y[0].item()!r}"
            )
        if len(classes) > _MOST_CLASSES:
            raise ValueError(
                f"fit: y must hold at most {_MOST_CLASSES} classes, got "
                f'{len(classes)}; if they are numbers, give task="regression"'
            )
        codes = labels.centered_codes("fit", y, classes, np.float64)
        return y, codes, None
    y = y.astype(np.float64)
    if task is None and y.ndim == 1:
        _warn_of_labels(y)
    codes = y.reshape(len(y), -1)
    bad = np.flatnonzero(~np.isfinite(codes).all(axis=1))
    if len(bad):
        raise ValueError(
            f"fit: y must be finite, but its row {bad[0]} is NaN or infinite, as are "
            f"{len(bad)} rows in all; leave them out"
        )
    mean, deviation = codes.mean(axis=0), codes.std(axis=0)
    # A column that rounding alone makes vary is constant.
    constant = deviation <= 1e-12 * np.abs(codes).max(axis=0)
    scale = np.stack([mean, np.where(constant, 1.0, deviation)])
    codes = np.where(constant, 0.0, (codes - mean) / scale[1])
    return codes.reshape(y.shape), codes, scale


def _warn_of_labels(y: NDArray) -> None:
    """Warn of floats that may have been meant as labels: few whole numbers."""
    values = np.unique(y)
    few = 2 <= len(values) <= min(_FEW_LABELS, len(y) // 2)
    if few and np.isfinite(values).all() and (values == np.round(values)).all():
        warnings.warn(
            f"fit: y holds {len(values)} different whole numbers as floats, which are "
            'regressed on as numbers; give task="classification" if they are labels, '
            'and task="regression" if they are not',
            RuntimeWarning,
            stacklevel=4,
        )


def _weights(weight: Targets, n: int) -> NDArray | None:
    """Return weights of mean 1.

    Raises:
      ValueError: there is not one weight for each example, or they are negative, not
        finite, or all zero.
    """
    if weight is None:
        return None
    weight = to_numpy("fit", "sample_weight", weight).astype(np.float64)
    if weight.shape != (n,):
        raise ValueError(
            f"fit: sample_weight must have shape ({n},), got {weight.shape}"
        )
    if not np.isfinite(weight).all() or weight.min() < 0 or not weight.any():
        raise ValueError(
            "fit: sample_weight must be finite, >= 0 and not all 0, got values from "
            f"{weight.min()} to {weight.max()}"
        )
    return weight / weight.mean()


def some_rows(n: int, most: int, rng: np.random.Generator) -> NDArray:
    """Return at most `most` different positions below n, in order."""
    if n <= most:
        return np.arange(n)
    return np.sort(rng.choice(n, most, replace=False))
