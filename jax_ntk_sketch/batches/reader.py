"""The reader of examples: checked batches of one size, whatever they come from.

`transform`, `compress`, the fits, the preprocessing and the command line read through
`Reader`. It knows no feature map. It makes arrays of what a source slices, checks their
shapes and dtypes, finds examples that are not finite, and pads the last batch.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._arrays import check_real, to_numpy
from jax_ntk_sketch._checks import check_choice, check_size
from jax_ntk_sketch._numerics import last_power_of_two
from jax_ntk_sketch._progress import progress as with_progress
from jax_ntk_sketch._typing import TASKS, Array, Dtype, Examples, PyTree, Task
from jax_ntk_sketch.batches.labels import (
    Label,
    are_labels,
    centered_codes,
    check_targets,
    find_classes,
)
from jax_ntk_sketch.batches.source import ArraySource, BatchSource, Rows
from jax_ntk_sketch.batches.sparse_rows import SparseRows, capacity, is_sparse, pack

# What happens to examples that hold NaN or infinity.
Nonfinite: TypeAlias = Literal["raise", "skip"]

# Examples of a batch where the caller names no size, and the bytes they may take.
_EXAMPLES = 1024
_BYTES = 2**26


class Batch(NamedTuple):
    """Examples that were read, padded with zeros of weight 0.

    Attributes:
      numbers: int (count,), the numbers of the `count` examples that were read.
      x: (size, *shape), or `SparseRows` of that shape; zeros where `finite` is False.
      y: float (size,) or (size, t), or None; for labels their centered one-hot codes.
      weight: (size,); zeros where `finite` is False, and in the padding.
      extras: pytrees of arrays (size, ...), by name: "pattern" and "mask".
      finite: bool (count,), which of the examples hold finite numbers only.
    """

    numbers: NDArray
    x: Examples
    y: NDArray | None
    weight: NDArray
    extras: dict[str, PyTree]
    finite: NDArray

    @property
    def inputs(self) -> tuple[Examples, dict[str, PyTree], NDArray]:
        """What the features of a batch are computed from: `x`, `extras`, `weight`."""
        return self.x, self.extras, self.weight

    @property
    def num_skipped(self) -> int:
        """The number of examples that are not finite."""
        return int(np.sum(~self.finite))


class Reader:
    """Checked batches of one size.

    Args:
      source: where the examples come from.
      batch_size: examples in a batch, on each device; by default 1024, or the largest
        power of two that takes at most 64 MiB if that is fewer.
      num_devices: how many devices share a batch; None if it is not split, so that
        examples may be sparse.
      num_classes: the number of classes if the targets are labels from 0 on. Arrays
        may have any integers or text; their different labels are the default.
      task: what the targets are; None to infer it from their dtype.
      nonfinite: "raise" or "skip"; None is "raise" for an owner without this option.
      pad: whether the last batch is padded to the size of the others.
      dtype: the dtype of x; by default its own, or what JAX makes of it.
      most: a function of some examples, which returns the most that a batch may have
        where no size is given.

    Attributes:
      size: examples in a batch, on all devices.
      num_examples: the number of examples; None if it is not known.
      classes: the labels in order, None if targets are not labels.

    >>> import numpy as np
    >>> from jax_ntk_sketch.batches.reader import Reader
    >>> from jax_ntk_sketch.batches.source import ArraySource
    >>> x = np.arange(10.0).reshape(5, 2)
    >>> reader = Reader(ArraySource("example", x), batch_size=3)
    >>> [(batch.x.shape, batch.numbers.tolist()) for batch in reader.batches()]
    [((3, 2), [0, 1, 2]), ((3, 2), [3, 4])]
    """

    def __init__(
        self,
        source: ArraySource | BatchSource,
        *,
        batch_size: int | None = None,
        num_devices: int | None = None,
        num_classes: int | None = None,
        task: Task | None = None,
        nonfinite: Nonfinite | None = None,
        pad: bool = True,
        dtype: Dtype = None,
        most: Callable[[Examples], int] | None = None,
    ) -> None:
        self.source, self.owner, self.name = source, source.owner, source.name
        self.num_examples = source.num_examples
        if nonfinite is not None:
            check_choice(self.owner, "nonfinite", nonfinite, ("raise", "skip"))
        self.nonfinite, self._pad, self._dtype = nonfinite, pad, dtype
        self._split = num_devices is not None
        if batch_size is None:
            batch_size = self._default_size(most)
        batch_size = check_size(self.owner, "batch_size", batch_size)
        self.size = batch_size * (num_devices or 1)
        self.task = task
        self.classes = self._find_classes(num_classes)
        self._layout: dict[str, str] = {}
        # Entries of a sparse batch. They only grow, so that little is compiled again.
        self._entries = 1
        if isinstance(source, ArraySource) and is_sparse(source.all.x):
            self._entries = capacity(source.all.x, self.size)

    def first(self) -> Rows | None:
        """Return the first batch unchecked; it stays to be read."""
        return self.source.first(self.size)

    def template(self) -> Batch | None:
        """Return a padded batch of the first example; None without examples."""
        rows = self.source.first(1)
        if rows is None and isinstance(self.source, ArraySource):
            rows = self.source.all
        return None if rows is None else self._checked(rows)

    def batches(
        self,
        *,
        order: NDArray | None = None,
        label: str = "",
        progress: bool | None = False,
    ) -> Iterator[Batch]:
        """Return an iterator of the batches.

        Args:
          order: the positions of the examples to read from arrays, in this order; None
            for all examples.
          label, progress: what is read, and whether progress is shown, as
            `with_progress` takes them.

        Raises:
          TypeError: arrays that do not hold real numbers, or targets of another kind
            than `num_classes` asks for.
          ValueError: examples that differ in shape or dtype from the first, that are
            not finite, or whose label is not one of the classes.
        """
        n = self.num_examples
        if order is None:
            rows = self.source.rows(self.size)
        else:
            assert isinstance(self.source, ArraySource)
            rows, n = self.source.shuffled(self.size, order), len(order)
        count = None if n is None else -(-n // self.size)
        return with_progress(map(self._checked, rows), label, count, progress)

    def count_skipped(self, batch: Batch, finite: Array) -> int:
        """Return how many examples of a batch are left out.

        Args:
          batch: the batch.
          finite: bool (size,), which of the rows have finite features.

        Raises:
          ValueError: features are not finite, and the reader is to raise.
        """
        good = np.asarray(finite)[: len(batch.finite)] | ~batch.finite
        self._refuse(f"the features of {self.name}", batch.numbers, good)
        return int(np.sum(~(good & batch.finite)))

    def _default_size(self, most: Callable[[Examples], int] | None) -> int:
        rows = self.source.first(1)
        if rows is None:
            return _EXAMPLES
        x, largest = rows.x, _EXAMPLES
        if is_sparse(x):
            size = 12 * x.nnz
        else:
            x = to_numpy(self.owner, self.name, x)
            size = x.size * np.dtype(self._dtype or x.dtype).itemsize
        if most is not None and x.ndim > 1:
            largest = min(largest, most(x))
        return min(largest, last_power_of_two(_BYTES // max(size, 1)))

    def _checked(self, rows: Rows) -> Batch:
        owner, x = self.owner, rows.x
        x = x if is_sparse(x) else to_numpy(owner, self.name, x)
        extras = {
            name: jax.tree.map(functools.partial(to_numpy, owner, name), value)
            for name, value in rows.extras.items()
        }
        y = None if rows.y is None else to_numpy(owner, "y", rows.y)
        y = None if y is None else check_targets(owner, y, self.task)
        numbers, count = np.asarray(rows.numbers), len(rows.numbers)
        where = f"{owner}: examples {min(rows.numbers, default=0)} to "
        where += str(max(rows.numbers, default=0))
        self._check_layout(where, x, y, extras)
        finite = np.ones(count, bool)
        size = self.size if self._pad else count
        if is_sparse(x):
            x = pack(x, size, self._entries)
            self._entries = x.nnz
            self._find(self.name, numbers, x.values, finite, x)
        else:
            with np.errstate(over="ignore"):  # what overflows is not finite
                x = x.astype(self._device_dtype(x.dtype), copy=False)
            self._find(self.name, numbers, x, finite)
        for name, value in extras.items():
            for leaf in jax.tree.leaves(value):
                self._find(name, numbers, leaf, finite)
        weight = np.ones(count, np.float32)
        if rows.weight is not None:
            weight = to_numpy(owner, "sample_weight", rows.weight)
            if not (np.isfinite(weight) & (weight >= 0)).all():
                raise ValueError(f"{where}: weights must be finite and >= 0")
        if y is not None:
            y = self._targets(where, y, x.dtype)
            self._find("y", numbers, y, finite)
        pad = functools.partial(_zero_and_pad, finite=finite, size=size)
        x = _zero(x, finite) if isinstance(x, SparseRows) else pad(x)
        y, weight, extras = jax.tree.map(pad, (y, weight, extras))
        return Batch(numbers, x, y, weight, extras, finite)

    def _check_layout(
        self, where: str, x: Examples, y: NDArray | None, extras: PyTree
    ) -> None:
        """Check that the arrays are of the right kind, and like those before."""
        owner, name = self.owner, self.name
        check_real(owner, name, x.dtype)
        if x.ndim < 2:
            raise ValueError(
                f"{owner}: {name} must hold n examples, (n, d) or (n, *spatial, c); "
                f"its first slice has shape {x.shape}"
            )
        if is_sparse(x) and self._split:
            raise ValueError(
                f"{owner}: mesh splits dense examples only, and these are sparse; "
                "leave mesh out, or join the sums of each process with ridge_merge"
            )
        layout = {name: f"shape {x.shape[1:]} and {self._device_dtype(x.dtype)}"}
        if y is not None:
            kind = "labels" if are_labels(y, self.task) else "numbers"
            layout["y"] = f"shape {y.shape[1:]} and {kind}"
        for key in ("pattern", "mask"):
            leaves = jax.tree.leaves(extras.get(key))
            layout[key] = f"shapes {[leaf.shape[1:] for leaf in leaves]}"
        self._layout = self._layout or layout
        for key, found in layout.items():
            if found != self._layout[key]:
                raise ValueError(
                    f"{where}: {key} must have {self._layout[key]}, as those before, "
                    f"got {found}"
                )

    def _device_dtype(self, dtype: Dtype) -> Dtype:
        """Return the dtype that a device gets, for which the host converts."""
        if self._dtype is not None:
            return np.dtype(self._dtype)
        return jax.dtypes.canonicalize_dtype(dtype)

    def _find(
        self,
        name: str,
        numbers: NDArray,
        values: NDArray,
        finite: NDArray,
        sparse: SparseRows | None = None,
    ) -> None:
        """Mark the examples that are not finite in `finite`, or raise."""
        if not jnp.issubdtype(values.dtype, jnp.floating):
            return
        good = np.isfinite(values)
        if good.all():
            return
        row, *entry = np.argwhere(~good)[0]
        if sparse is None:
            rows = good.reshape(len(good), -1).all(axis=1)
        else:
            rows = np.ones(len(finite), bool)
            rows[sparse.rows[~good]] = False
            entry = [sparse.indices[row]]
        self._refuse(name, numbers, rows, tuple(map(int, entry)))
        finite &= rows

    def _refuse(
        self, name: str, numbers: NDArray, good: NDArray, entry: tuple[int, ...] = ()
    ) -> None:
        """Raise an error that names examples that are not good, unless they may be."""
        if good.all() or self.nonfinite == "skip":
            return
        bad = numbers[~good].tolist()
        which = f"example{'s' * (len(bad) > 1)} {', '.join(map(str, bad[:5]))}"
        which += f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        at = f", first at {entry}" if entry else ""
        skip = "" if self.nonfinite is None else ', or leave out with nonfinite="skip"'
        raise ValueError(
            f"{self.owner}: {name} must be finite, got NaN or infinity in {which} "
            f"(counted from 0){at}; repair or remove such examples{skip}"
        )

    def _find_classes(self, num_classes: int | None) -> tuple[Label, ...] | None:
        """Return the classes that are known before the first batch is read."""
        if self.task is not None:
            check_choice(self.owner, "task", self.task, TASKS)
        if num_classes is not None:
            if self.task == "regression":
                raise ValueError(
                    f"{self.owner}: num_classes must be None for a regression, got "
                    f"{num_classes!r}"
                )
            return tuple(range(check_size(self.owner, "num_classes", num_classes, 2)))
        y = self.source.all.y if isinstance(self.source, ArraySource) else None
        if y is None or not len(y) or (self.task is None and y.dtype.kind == "f"):
            return None
        y = check_targets(self.owner, to_numpy(self.owner, "y", y), self.task)
        labels = are_labels(y, self.task)
        return find_classes(self.owner, y, self.task) if labels else None

    def _targets(self, where: str, y: NDArray, dtype: Dtype) -> NDArray:
        """Return numbers as they are, and centered one-hot codes of labels."""
        labels = are_labels(y, self.task)
        if self.classes is None:
            if labels:
                raise ValueError(
                    f"{where}: num_classes must be given with batches of class labels, "
                    "which are numbered from 0; to regress on numbers, give "
                    'task="regression"'
                )
            return y
        if not labels:
            raise TypeError(
                f"{where}: y must be labels of shape (n,), because num_classes is "
                f"given; got {y.dtype} of shape {y.shape}"
            )
        return centered_codes(where, y, self.classes, dtype)


def warn_skipped(
    owner: str, count: int, action: str = "left out", stacklevel: int = 3
) -> None:
    """Warn that examples were skipped, if any, where `owner` was called."""
    if count:
        warnings.warn(
            f"{owner}: {action} {count} "
            + ("example that is" if count == 1 else "examples that are")
            + " not finite",
            RuntimeWarning,
            stacklevel=stacklevel,
        )


def _zero_and_pad(array: NDArray, finite: NDArray, size: int) -> NDArray:
    """Return an array of `size` rows, zeros where examples are not finite."""
    if not finite.all():
        keep = finite.reshape(-1, *[1] * (array.ndim - 1))
        array = np.where(keep, array, np.zeros((), array.dtype))
    if len(array) < size:
        rest = [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1)
        array = np.pad(array, rest)
    return array


def _zero(x: SparseRows, finite: NDArray) -> SparseRows:
    """Return sparse rows, zeros where examples are not finite."""
    if finite.all():
        return x
    keep = np.append(finite, np.zeros(len(x) + 1 - len(finite), bool))[x.rows]
    return dataclasses.replace(x, values=np.where(keep, x.values, 0).astype(x.dtype))
