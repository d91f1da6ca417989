"""Where examples come from: arrays that can be indexed, or an iterable of batches.

A source slices. It checks lengths but no numbers, which the reader does.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._arrays import column_names, match_columns, sliceable, to_numpy
from jax_ntk_sketch._typing import Examples, PyTree, Targets
from jax_ntk_sketch.batches.sparse_rows import is_sparse, num_examples, to_csr

_EXTRAS = ("pattern", "mask")

# An iterable of batches, or a function that returns one.
Batches: TypeAlias = Iterable[Any] | Callable[[], Iterable[Any]]


class Rows(NamedTuple):
    """Some of a source's examples, unchecked.

    Attributes:
      numbers: the numbers of the examples, counted from 0.
      x: the examples.
      y: their targets, or None.
      weight: their weights, or None.
      extras: arrays that belong to the examples, by name: "pattern" and "mask".
    """

    numbers: range | NDArray
    x: Examples
    y: Targets
    weight: Targets
    extras: dict[str, PyTree]

    def slice(self, start: int, stop: int) -> "Rows":
        """Return the examples from position `start` to `stop`."""
        return self._each(lambda a: a[start:stop], self.numbers[start:stop])

    def take(self, positions: NDArray) -> "Rows":
        """Return copies of the examples at these positions of a whole source."""
        return self._each(lambda a: _take(a, positions), positions)

    def _each(self, take: Callable[[Any], Any], numbers: range | NDArray) -> "Rows":
        y, weight = (None if a is None else take(a) for a in (self.y, self.weight))
        extras = jax.tree.map(take, self.extras)
        return Rows(numbers, take(self.x), y, weight, extras)


class ArraySource:
    """Examples with a length and slices, and arrays of the same length.

    Every index is a position from 0, as in NumPy, whatever labels a table has.

    Args:
      owner: the function to name in errors.
      x: n examples: an array, a memory map, sparse rows, or anything that has a length
        and whose slices NumPy can read.
      y: n targets, or None.
      weight: n weights, or None.
      extras: arrays or pytrees of arrays with n rows, by name; None is left out.
      name: what `owner` calls the examples.

    Attributes:
      num_examples: n.
      feature_names: the names of the columns of x, if it is a table.
    """

    def __init__(
        self,
        owner: str,
        x: Examples,
        y: Targets = None,
        weight: Targets = None,
        extras: Mapping[str, PyTree] | None = None,
        name: str = "x",
    ) -> None:
        self.owner, self.name = owner, name
        _refuse_tracer(owner, name, x)
        self.feature_names = column_names(x)
        x = to_csr(owner, name, x) if is_sparse(x) else sliceable(owner, name, x)
        n = num_examples(x)
        if y is not None:
            y = _as_array(owner, "y", y)
            if len(y) != n:
                raise ValueError(
                    f"{owner}: {name} and y must have one length, got {n} examples and "
                    f"{len(y)} targets"
                )
        if weight is not None:
            weight = _as_array(owner, "sample_weight", weight)
            if weight.shape != (n,):
                raise ValueError(
                    f"{owner}: sample_weight must have shape ({n},), got {weight.shape}"
                )
        arrays = {
            key: jax.tree.map(lambda leaf, key=key: _as_array(owner, key, leaf), value)
            for key, value in (extras or {}).items()
            if value is not None
        }
        for key, value in arrays.items():
            for leaf in jax.tree.leaves(value):
                if leaf.shape[:1] != (n,):
                    raise ValueError(
                        f"{owner}: {key} must have the {n} examples of {name} along "
                        f"its first axis, got shape {leaf.shape}"
                    )
        self.num_examples: int | None = n
        self.all = Rows(range(n), x, y, weight, arrays)

    def first(self, size: int) -> Rows | None:
        """Return what `rows` yields first, or None; it stays to be read."""
        return next(self.rows(size), None)

    def rows(self, size: int) -> Iterator[Rows]:
        """Yield the examples in order, `size` at a time."""
        for start in range(0, self.num_examples or 0, size):
            yield self.all.slice(start, start + size)

    def shuffled(self, size: int, order: NDArray) -> Iterator[Rows]:
        """Yield the examples at the positions `order`, `size` at a time."""
        for start in range(0, len(order), size):
            # Memory maps are read forwards. The order within a batch has no effect.
            yield self.all.take(np.sort(order[start : start + size]))


class BatchSource:
    """Batches of any lengths, from an iterable; long ones are cut.

    A batch is `(x, y)`, `(x, y, weight)`, or a dictionary with the names "x" and "y"
    and, where needed, "weight", "pattern" and "mask". Each pass begins anew: a function
    is called for its iterator, and a data set of Hugging Face is read in batches of the
    reader. Only an iterator is read once.
    """

    num_examples: int | None = None
    feature_names: tuple[str, ...] | None = None

    def __init__(
        self,
        owner: str,
        batches: Batches,
        name: str = "x",
    ) -> None:
        if not isinstance(batches, Iterable) and not callable(batches):
            raise TypeError(
                f"{owner}: {name} must be examples with y, or an iterable of batches "
                f"({name}, y), or a function that returns one, got "
                f"{type(batches).__name__}"
            )
        self.owner, self.name = owner, name
        self.read_once = isinstance(batches, Iterator)
        self._batches = batches
        # What was looked at before the first pass: a loader may take long to start.
        self._head: list[Any] | None = None
        self._last: Iterable[Any] | None = None
        self._count: int | None = None

    def first(self, size: int) -> Rows | None:
        """Return what `rows` yields first, or None; it stays to be read."""
        if self._head is None or is_dataset(self._batches):
            batches = iter(self._opened(size))
            self._head = list(itertools.islice(batches, 1))
            if self.read_once:
                self._batches = itertools.chain(self._head, batches)
        return next(self._cut(self._head, size), None)

    def rows(self, size: int) -> Iterator[Rows]:
        """Yield the examples in order, `size` at a time.

        Raises:
          ValueError: a pass has another number of examples than the one before.
        """
        count = 0
        for rows in self._cut(self._opened(size), size):
            count += len(rows.numbers)
            yield rows
        if self._count not in (None, count):
            raise ValueError(
                f"{self.owner}: {self.name} must yield the same examples in each pass, "
                f"got {count} examples after a pass of {self._count}"
            )
        self._count = count

    def _opened(self, size: int) -> Iterable[Any]:
        """Return the batches from the first one on."""
        batches: Any = self._batches
        if is_dataset(batches):
            return batches.iter(batch_size=size)
        if isinstance(batches, Iterable):
            return batches
        opened = batches()
        used = isinstance(opened, Iterator) and opened is self._last
        if used or not isinstance(opened, Iterable):
            found = "one that was read" if used else type(opened).__name__
            raise TypeError(
                f"{self.owner}: {self.name} is a function, which must return a new "
                f"iterable of batches each time, got {found}"
            )
        self._last = opened
        return opened

    def _cut(self, batches: Iterable[Any], size: int) -> Iterator[Rows]:
        start = 0
        for index, batch in enumerate(batches):
            rows = self._parsed(index, batch)
            n = len(rows.numbers)
            rows = rows._replace(numbers=range(start, start + n))
            for i in range(0, n, size):
                yield rows.slice(i, i + size)
            start += n

    def _parsed(self, index: int, batch: Any) -> Rows:
        owner, name = self.owner, self.name
        if isinstance(batch, tuple | list) and len(batch) in (2, 3):
            batch = dict(zip((name, "y", "weight"), batch, strict=False))
        keys = set(batch) if isinstance(batch, Mapping) else set()
        if not {name, "y"} <= keys <= {name, "y", "weight", *_EXTRAS}:
            found = sorted(keys) if keys else type(batch).__name__
            raise TypeError(
                f"{owner}: batch {index} must be ({name}, y), ({name}, y, weight), or "
                f"a dictionary with {name}, y and perhaps weight, pattern and mask; "
                f"got {found}"
            )
        if np.ndim(batch["y"]) == 0:
            raise TypeError(
                f"{owner}: batch {index} must hold n examples and n targets, got one "
                f"target, {batch['y']!r}; put the examples into batches first"
            )
        extras = {key: batch.get(key) for key in _EXTRAS}
        label = f"{name} of batch {index}"
        if index == 0:
            self.feature_names = column_names(batch[name])
        x = match_columns(owner, label, batch[name], self.feature_names)
        arrays = x, batch["y"], batch.get("weight"), extras
        return ArraySource(owner, *arrays, name=label).all


def is_dataset(batches: object) -> bool:
    """Return whether this is a data set of Hugging Face, which makes batches itself."""
    return hasattr(batches, "column_names") and hasattr(batches, "iter")


def open_source(
    owner: str,
    x: Examples | Batches,
    y: Targets,
    weight: Targets,
    extras: Mapping[str, PyTree],
    *,
    name: str = "x",
    read_again: str = "",
) -> ArraySource | BatchSource:
    """Return the source of a fit: arrays where `y` is given, else batches.

    Args:
      owner, x, y, weight, extras, name: as `ArraySource` takes them.
      read_again: why x is read more than once, or "" if it is not.

    Raises:
      TypeError: the arguments are neither.
      ValueError: arrays do not fit together; batches come with separate weights, or
        from an iterator that would have to be read again.
    """
    if y is not None:
        return ArraySource(owner, x, y, weight, extras, name)
    if hasattr(x, "shape") and not is_dataset(x):
        raise ValueError(f"{owner}: y must be given with {name}, which is an array")
    for key, value in {"sample_weight": weight, **extras}.items():
        if value is not None:
            raise ValueError(
                f"{owner}: {key} must be left out, because batches carry their own: "
                f"yield ({name}, y, weight), or dictionaries"
            )
    source = BatchSource(owner, x, name)
    if read_again and source.read_once:
        raise ValueError(
            f"{owner}: x must not be an iterator, because {read_again}; give a "
            "function that returns a new iterator, a list or an array"
        )
    return source


def _as_array(owner: str, name: str, values: Targets) -> Targets:
    """Return values with a dtype and positional indices; memory maps stay on disk."""
    _refuse_tracer(owner, name, values)
    lazy = hasattr(values, "dtype")
    values = sliceable(owner, name, values) if lazy else to_numpy(owner, name, values)
    if not values.shape:
        raise TypeError(f"{owner}: {name} must hold n numbers, got {values!r}")
    return values


def _refuse_tracer(owner: str, name: str, values: Examples) -> None:
    if isinstance(values, jax.core.Tracer):
        raise TypeError(
            f"{owner}: {name} must not be traced by jit or vmap, because {owner} runs "
            "on the host"
        )


def _take(array: Examples, index: NDArray) -> Examples:
    if isinstance(array, np.ndarray) or is_sparse(array):
        return array[index]
    return np.stack([np.asarray(array[int(i)]) for i in index])
