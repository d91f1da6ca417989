"""Examples in chunks of one length, checked, whatever they come from."""

import dataclasses
import itertools
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch.batches.sparse_rows import (
    SparseRows,
    capacity,
    is_sparse,
    num_examples,
    pack,
    readable,
)
from jax_ntk_sketch.features._transform import in_caches

__all__ = [
    "Chunk",
    "Source",
    "check_options",
    "features",
    "features_like",
    "warn_skipped",
]


class Chunk(NamedTuple):
    """Examples `start`, `start + 1`, ..., filled up with ones of weight 0.

    Attributes:
      start: number of the first example.
      x: (size, *shape), or `SparseRows` of that shape; y: (size, t) or (size,) floats;
        weight: (size,). Zeros where an example or its target is not finite.
      kept: (count,) which of the examples are finite.
    """

    start: int
    x: Any
    y: np.ndarray
    weight: np.ndarray
    kept: np.ndarray

    def skipped(self, owner: str, finite: Any, nonfinite: str) -> int:
        """How many examples are left out, given which have finite features.

        Raises:
          ValueError: there are such and `nonfinite` is "raise"; they are named.
        """
        finite = np.asarray(finite)[: len(self.kept)]
        bad = np.flatnonzero(~(self.kept & finite))
        if len(bad) and nonfinite == "raise":
            some = ", ".join(str(self.start + i) for i in bad[:5])
            more = ", ..." if len(bad) > 5 else ""
            last = self.start + len(self.kept) - 1
            raise ValueError(
                f"{owner}: examples {self.start} to {last}: {len(bad)} of them are not "
                f"finite, or their targets or features are not ({some}{more}, from 0); "
                'repair them, or leave them out with nonfinite="skip"'
            )
        return len(bad)


def features(
    fmap: Any, params: Any, x: Any, weight: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features of a chunk, its weights, and which rows are finite; the others are 0."""
    phi = fmap.apply(params, x, batch_size=in_caches(fmap, x.shape))
    finite = jnp.isfinite(phi).all(axis=1)
    return jnp.where(finite[:, None], phi, 0), jnp.where(finite, weight, 0), finite


def features_like(fmap: Any, params: Any, x: Any) -> jax.ShapeDtypeStruct:
    """Shape of the features of `x[:1]`, and the dtype in which they are summed."""
    one = x[:1] if is_sparse(x) else jnp.asarray(x[:1])
    phi = jax.eval_shape(fmap.apply, params, one)
    return phi.update(dtype=jnp.promote_types(phi.dtype, jnp.float32))


def _take(array: Any, rows: np.ndarray) -> np.ndarray:
    """Some rows of an array, a memory map, or whatever has integer indices."""
    if isinstance(array, np.ndarray) or is_sparse(array):
        return array[rows]
    return np.stack([np.asarray(array[int(i)]) for i in rows])


def check_options(owner: str, fmap: Any, nonfinite: str, **sizes: Any) -> None:
    """Checks what all fits take; `sizes` are integers >= 1."""
    if nonfinite not in ("raise", "skip"):
        raise ValueError(
            f'{owner}: nonfinite must be "raise" or "skip", got {nonfinite!r}'
        )
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{owner}: {name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{owner}: {name} must be at least 1, got {value}")
    if not isinstance(getattr(fmap, "get", None), str):
        raise ValueError(f'{owner}: fmap must have one kernel, get="ntk" or get="nngp"')


def warn_skipped(owner: str, count: int) -> None:
    """Says how many examples a fit left out, if it did, where `owner` was called."""
    if count:
        warnings.warn(
            f"{owner}: {count} examples that are not finite were left out",
            RuntimeWarning,
            stacklevel=3,
        )


class Source:
    """Arrays or batches of examples.

    Attributes:
      n: the number of examples, where it is known.
      num_classes: of class labels, else None.
      once: whether it can be read only once.
    """

    def __init__(
        self,
        owner: str,
        data: Any,
        y: Any,
        weight: Any,
        num_classes: int | None,
        size: int,
    ) -> None:
        self.owner, self.size, self.num_classes = owner, size, num_classes
        self.once = isinstance(data, Iterator)
        self.n: int | None = None
        if y is not None:
            data = readable(owner, "data", data)
            if num_examples(data) != len(y):
                raise ValueError(
                    f"{self.owner}: data has {num_examples(data)} examples and y "
                    f"{len(y)}; they must be as many"
                )
            if weight is not None and np.shape(weight) != (len(y),):
                raise ValueError(
                    f"{self.owner}: sample_weight must have shape ({len(y)},), got "
                    f"{np.shape(weight)}"
                )
            self.n = len(y)
            y = y if hasattr(y, "dtype") else np.asarray(y)
            if y.ndim == 1 and y.dtype.kind in "bui" and num_classes is None and len(y):
                self.num_classes = max(2, int(np.max(y)) + 1)
            self._arrays = data, y, weight
        elif hasattr(data, "shape"):
            raise ValueError(f"{self.owner}: data is an array, so y must be given too")
        elif weight is not None:
            raise ValueError(
                f"{self.owner}: batches carry their weights, as (x, y, weight)"
            )
        self._data = data
        self._shape: tuple[Any, ...] | None = None
        # Entries of a sparse chunk: it only grows, so that little is compiled again.
        self._room = capacity(data, size) if is_sparse(data) else 1

    def first(self) -> tuple[int, Any, Any, Any] | None:
        """The first that `raw` will yield; it stays to be read."""
        if not self.once:
            return next(self.raw(), None)
        data = self._data
        head = list(itertools.islice(data, 1))
        self._data = head
        first = next(self.raw(), None)
        self._data = itertools.chain(head, data)
        return first

    def count(self, done: int = 0) -> int | None:
        """How many chunks there are behind the first `done`, where it is known."""
        return None if self.n is None else -(-self.n // self.size) - done

    def chunks(self, done: int = 0, order: np.ndarray | None = None) -> Iterator[Chunk]:
        """The chunks behind the first `done`; examples of arrays in a given order."""
        for raw in self.raw(done) if order is None else self._shuffled(order):
            yield self._chunk(*raw)

    def _shuffled(self, order: np.ndarray) -> Iterator[tuple[int, Any, Any, Any]]:
        x, y, weight = self._arrays
        for start in range(0, len(order), self.size):
            rows = order[start : start + self.size]
            # Memory maps are read forwards; within a batch the order is of no effect.
            places = np.sort(rows)
            part = None if weight is None else np.asarray(weight)[places]
            yield start, _take(x, places), _take(y, places), part

    def raw(self, done: int = 0) -> Iterator[tuple[int, Any, Any, Any]]:
        """(number of the first example, x, y, weight) of each, as they come."""
        if self.n is not None:
            x, y, weight = self._arrays
            for start in range(done * self.size, self.n, self.size):
                rows = slice(start, start + self.size)
                part = None if weight is None else weight[rows]
                yield start, x[rows], y[rows], part
            return
        start = number = 0
        for index, batch in enumerate(self._data):
            if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
                raise TypeError(
                    f"{self.owner}: batch {index} must be (x, y) or (x, y, weight), "
                    f"got {type(batch).__name__}"
                )
            x, y, weight = (*batch, None) if len(batch) == 2 else batch
            x = readable(self.owner, f"batch {index}", x)
            count = num_examples(x)
            if count != len(y) or (weight is not None and len(weight) != len(y)):
                raise ValueError(
                    f"{self.owner}: batch {index} has {count} examples and {len(y)} "
                    "targets"
                )
            for i in range(0, count, self.size):
                rows = slice(i, i + self.size)
                if number >= done:
                    part = None if weight is None else weight[rows]
                    yield start + i, x[rows], y[rows], part
                number += 1
            start += count

    def _chunk(self, start: int, x: Any, y: Any, weight: Any) -> Chunk:
        x, y = x if is_sparse(x) else np.asarray(x), np.asarray(y)
        where = f"{self.owner}: examples {start} to {start + len(y) - 1}"
        shape = (x.shape[1:], y.shape[1:], y.dtype.kind in "bui" and y.ndim == 1)
        if self._shape is None:
            self._shape = shape
        if shape != self._shape:
            raise ValueError(
                f"{where} have shape {x.shape[1:]} and targets {y.shape[1:]} of dtype "
                f"{y.dtype}, unlike those before: {self._shape[0]} and {self._shape[1]}"
            )
        w = np.ones(len(y), np.float32) if weight is None else np.asarray(weight)
        if not (w >= 0).all() or not np.isfinite(w).all():
            raise ValueError(f"{where}: weights must be finite and >= 0")
        y = self._targets(where, y)
        kept = np.isfinite(y).reshape(len(y), -1).all(axis=1)
        fill = [(0, self.size - len(y))]
        if is_sparse(x):
            x = self._sparse(x, kept)
        else:
            kept &= np.isfinite(x).reshape(len(x), -1).all(axis=1)
            zero = np.zeros((), x.dtype)
            x = np.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, zero)
            x = np.pad(x, fill + [(0, 0)] * (x.ndim - 1))
        y = np.where(kept.reshape(-1, *[1] * (y.ndim - 1)), y, 0)
        y = np.pad(y, fill + [(0, 0)] * (y.ndim - 1))
        w = np.pad(np.where(kept, w, 0), fill)
        return Chunk(start, x, y, w, kept)

    def _sparse(self, x: Any, kept: np.ndarray) -> SparseRows:
        """The chunk of compressed rows; updates which of them are finite."""
        packed = pack(x, self.size, self._room)
        self._room = packed.nnz
        bad = packed.rows[~np.isfinite(packed.values)]
        kept[bad] = False
        # What fills up belongs to a row behind the last.
        good = np.append(kept, np.zeros(self.size + 1 - len(kept), bool))
        values = np.where(good[packed.rows], packed.values, 0)
        return dataclasses.replace(packed, values=values.astype(packed.dtype))

    def _targets(self, where: str, y: np.ndarray) -> np.ndarray:
        classes = self.num_classes
        labels = y.ndim == 1 and y.dtype.kind in "bui"
        if classes is None:
            if labels:
                raise ValueError(
                    f"{where}: num_classes must be given with batches of class labels "
                    "(to regress on numbers, make y float)"
                )
            return y
        if not labels:
            raise TypeError(
                f"{where}: num_classes is given, so y must be integer labels of shape "
                f"(n,); got {y.dtype} of shape {y.shape}"
            )
        outside = np.flatnonzero((y < 0) | (y >= classes))
        if len(outside):
            raise ValueError(
                f"{where}: label {y[outside[0]]} is outside the classes 0.."
                f"{classes - 1}"
            )
        # Centred codes, as `fit_ridge` has them.
        return np.eye(classes, dtype=np.float32)[y.astype(int)] - np.float32(
            1 / classes
        )
