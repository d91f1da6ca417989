"""The rows of a sample, with targets and the inputs of graphs."""

import dataclasses
import warnings

import jax
import numpy as np
import scipy
from numpy.typing import NDArray

from jax_ntk_sketch._arrays import to_numpy
from jax_ntk_sketch._typing import Examples, PyTree, Shape, Task
from jax_ntk_sketch.batches import labels
from jax_ntk_sketch.batches.sparse_rows import is_sparse, num_examples, to_csr

# Every so many rows one is held out.
_PARTS = 4

# The fewest rows that can be weighed.
_FEWEST = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a sample.

    Attributes:
      x: examples (n, *shape), or compressed rows (n, d) if they are sparse.
      y: targets (n, t), or None.
      extras: "pattern" and "mask" of graphs, where they are given.
    """

    x: Examples
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
          TypeError: the sample is complex; y is neither numbers nor labels.
          ValueError: there are too few examples, or one is not finite; y has another
            length or shape; the sample is sparse and has edges or nodes.
        """
        given = {name: value for name, value in extras.items() if value is not None}
        if is_sparse(sample):
            x = to_csr(owner, "sample", sample)
            if given:
                raise ValueError(
                    f"{owner}: {next(iter(given))} must be None for a sparse sample, "
                    "because graphs are dense; give sample as an array"
                )
        else:
            x = to_numpy(owner, "sample", sample)
        if x.ndim < 2 or num_examples(x) < _FEWEST:
            raise ValueError(
                f"{owner}: sample must hold at least {_FEWEST} examples (n, *shape), "
                f"got shape {x.shape}"
            )
        _check_finite(owner, "sample", x)
        n = num_examples(x)
        return cls(x, None if y is None else _targets(owner, y, n, task), given)

    def __len__(self) -> int:
        return num_examples(self.x)

    @property
    def shape(self) -> Shape:
        """The shape of one example."""
        return self.x.shape[1:]

    @property
    def is_sparse(self) -> bool:
        """Whether the examples are compressed rows."""
        return is_sparse(self.x)

    def take(self, index: NDArray) -> "Rows":
        """Return some of the rows."""
        y = None if self.y is None else self.y[index]
        extras = jax.tree.map(lambda a: np.asarray(a)[index], self.extras)
        return Rows(self.x[index], y, extras)

    def with_rows(self, other: "Rows") -> "Rows":
        """Return these rows and those of another sample after them, without targets."""
        x = self.x, other.x
        joined = (
            scipy.sparse.vstack(x, format="csr")
            if self.is_sparse
            else np.concatenate(x)
        )
        extras = jax.tree.map(
            lambda *parts: np.concatenate(parts), self.extras, other.extras
        )
        return Rows(joined, None, extras)

    def split(self, rng: np.random.Generator, most: int) -> "tuple[Rows, Rows]":
        """Return rows to fit and rows to hold out, of at most `most`, at random."""
        order = rng.permutation(len(self))[:most]
        held_out = len(order) // _PARTS
        return self.take(order[held_out:]), self.take(order[:held_out])


def dense_coordinates(fitting: Rows, held_out: Rows) -> tuple[Rows, Rows]:
    r"""Return dense rows with the kernels of sparse rows; dense rows as they are.

    .. math:: X X^\top / d = Z Z^\top / r, \qquad Z = \sqrt{r / d}\, V \Lambda^{1/2}

    Here :math:`X X^\top = V \Lambda V^\top` has rank r, at most the number of rows.
    The kernels of networks of flat examples depend on these products only.
    """
    if not fitting.is_sparse:
        return fitting, held_out
    x = fitting.with_rows(held_out).x.astype(np.float64)
    values, vectors = scipy.linalg.eigh((x @ x.T).toarray(), check_finite=False)
    kept = values > np.finfo(np.float64).eps * len(values) * values[-1]
    kept[-1] = True  # if all rows are zero
    scale = np.sqrt(kept.sum() / x.shape[1] * np.maximum(values[kept], 0))
    dtype = np.promote_types(fitting.x.dtype, np.float32)
    z = np.split((vectors[:, kept] * scale).astype(dtype), [len(fitting)])
    return (
        dataclasses.replace(fitting, x=z[0]),
        dataclasses.replace(held_out, x=z[1]),
    )


def _row_numbers(x: Examples) -> NDArray:
    """Return the row of each entry of compressed rows."""
    return np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))


def _check_finite(owner: str, name: str, a: Examples) -> None:
    if a.dtype.kind != "f":
        return
    if is_sparse(a):
        bad = _row_numbers(a)[~np.isfinite(a.data)]
    else:
        bad = np.flatnonzero(~np.isfinite(a).reshape(len(a), -1).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{owner}: {name} must be finite, but its row {bad[0]} has a NaN or an "
            "infinity; leave it out"
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


def _lengths(x: Examples) -> NDArray:
    """Return the norm of each example, (n,)."""
    if is_sparse(x):
        squares = x.data.astype(np.float64) ** 2
        return np.sqrt(np.bincount(_row_numbers(x), squares, minlength=x.shape[0]))
    return np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1)


def warn_if_sorted(owner: str, x: Examples) -> None:
    """Warn if the rows of a sample are sorted by length, as those of its head may be.

    The rank correlation of the lengths with their places is the test.
    """
    n, lengths = num_examples(x), _lengths(x)
    # Equal lengths share the mean of their ranks, because their order says nothing.
    _, places, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2)[places]
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
