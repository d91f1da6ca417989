"""Arrays as a file holds them, and datasets: converted, split and checked."""

import dataclasses
import os
import pathlib

import numpy as np

from jax_ntk_sketch._checks import check_choice, check_number, check_size
from jax_ntk_sketch._typing import TASKS, Examples, Task

# Integer targets with more distinct values than this are numbers, not labels.
_MAX_CLASSES = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """The contents of a file as they are: neither split, converted nor checked.

    Attributes:
      name: the name of the data in reports.
      x, y: examples (n, ...) and targets (n,) or (n, t), None where there are none.
      x_test, y_test: the test part, None where the file marks none.
      pixels: whether x holds pixel values in [0, 1] that are not 8-bit.
      columns, target: for tables, the names of the columns of x and of y.
      notes: phrases on parts that were left out or chosen.
    """

    name: str
    x: Examples
    y: np.ndarray | None = None
    x_test: Examples | None = None
    y_test: np.ndarray | None = None
    pixels: bool = False
    columns: tuple[str, ...] = ()
    target: str | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples as NumPy arrays.

    Attributes:
      x_train: (n, ...), one example per row.
      y_train: numbers (n,) or (n, t) for regression, and labels (n,), integers or
        text, for classification.
      x_test, y_test: the same of n_test rows; n_test may be 0.
      name: the name of the data in reports.
      task: "classification" or "regression".
      pixels: whether x holds pixel values in [0, 1], or bytes in a memory map.
      columns: for tables, the names of the columns of x.
      notes: phrases on the steps that were applied to the data.

    Raises:
      ValueError: the shapes do not fit each other, or `task` is unknown.

    >>> import numpy as np
    >>> from jax_ntk_sketch.data import Dataset
    >>> x, y = np.eye(4), np.arange(4.0)
    >>> Dataset(x[:3], y[:3], x[3:], y[3:], "unit vectors", "regression")
    Dataset('unit vectors', regression, x_train (3, 4), x_test (1, 4))
    """

    x_train: Examples
    y_train: np.ndarray
    x_test: Examples
    y_test: np.ndarray
    name: str
    task: Task
    pixels: bool = False
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("Dataset", "task", self.task, TASKS)
        most = 1 if self.task == "classification" else 2
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if x.ndim < 2 or 0 in x.shape[1:] or not 1 <= y.ndim <= most:
                raise ValueError(
                    f"{self.name}: for {self.task} x_{part} must have shape (n, ...) "
                    f"and y_{part} (n,){' or (n, t)' * (most - 1)}, got {x.shape} and "
                    f"{y.shape}"
                )
            if len(x) != len(y):
                raise ValueError(
                    f"{self.name}: x_{part} has {len(x)} rows but y_{part} has {len(y)}"
                )
        for train, test in ((self.x_train, self.x_test), (self.y_train, self.y_test)):
            if train.shape[1:] != test.shape[1:] or not len(train):
                raise ValueError(
                    f"{self.name}: the training and test parts must have rows of one "
                    f"shape, got {train.shape} and {test.shape}"
                )

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {self.task}, x_train {self.x_train.shape}, "
            f"x_test {self.x_test.shape})"
        )

    def images(self) -> "Dataset":
        """Return the data as (n, height, width, channels), as `Conv` layers take them.

        Gray images (n, height, width) get a channel axis of size 1.

        Raises:
          ValueError: examples have another shape, such as rows of a table.

        >>> from jax_ntk_sketch import data
        >>> data.load_digits().images().x_train.shape
        (1438, 8, 8, 1)
        """
        if self.x_train.ndim == 4:
            return self
        if self.x_train.ndim != 3:
            raise ValueError(
                f"{self.name}: examples of shape {self.x_train.shape[1:]} are not "
                "images; reshape them to (height, width) or (height, width, channels)"
            )
        x_train, x_test = self.x_train[..., None], self.x_test[..., None]
        return dataclasses.replace(self, x_train=x_train, x_test=x_test)

    def take(
        self, num_train: int | None, num_test: int | None, *, seed: int = 0
    ) -> "Dataset":
        """Return at most `num_train` and `num_test` rows, drawn without replacement.

        Args:
          num_train: the largest number of training rows, >= 1; None for all.
          num_test: the largest number of test rows, >= 1; None for all.
          seed: the seed of the draw; the same seed gives the same rows.
        """
        rng = np.random.default_rng(seed)
        parts, notes = [], list(self.notes)
        for part, limit in (("train", num_train), ("test", num_test)):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if limit is not None and check_size("take", f"num_{part}", limit) < len(x):
                notes.append(f"{limit} of {len(x)} {part} rows drawn with seed {seed}")
                rows = np.sort(rng.permutation(len(x))[:limit])
                x, y = x[rows], y[rows]
            parts += [x, y]
        x_train, y_train, x_test, y_test = parts
        fields = (self.name, self.task, self.pixels, self.columns, tuple(notes))
        return Dataset(x_train, y_train, x_test, y_test, *fields)


def to_dataset(
    arrays: Arrays,
    *,
    task: Task | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    finite: bool = True,
) -> Dataset:
    """Return arrays with targets as a `Dataset`, converted, split and checked.

    8-bit examples become pixels in [0, 1]. Memory maps stay on disk: they are neither
    converted nor checked here, and without a test part none is drawn from them.

    Args:
      arrays: the contents of a file.
      task: the task; None infers it from the targets, see `to_targets`.
      test_fraction: the part of the rows to test on where the file marks none.
      seed: the seed of that draw.
      finite: whether to refuse examples that are NaN or infinite.

    Raises:
      ValueError: there are no targets, or arrays do not fit or are not finite.
    """
    name, notes = arrays.name, list(arrays.notes)
    is_bytes = arrays.x.dtype == np.uint8
    if is_bytes:
        notes.append("8-bit values divided by 255")
    x, y, task = _to_part(arrays.x, arrays.y, task, name, finite)
    if arrays.x_test is not None:
        if (arrays.x_test.dtype == np.uint8) != is_bytes:
            raise ValueError(f"{name}: only one of x and x_test holds 8-bit pixels")
        where = f"{name}, test part"
        x_test, y_test, _ = _to_part(arrays.x_test, arrays.y_test, task, where, finite)
    elif isinstance(x, np.memmap):
        x_test, y_test = x[:0], y[:0]
    else:
        check_number(name, "test_fraction", test_fraction, above=0, below=1)
        if len(y) < 2:
            raise ValueError(f"{name}: {len(y)} rows cannot be split into two parts")
        count = min(max(round(len(y) * test_fraction), 1), len(y) - 1)
        notes.append(f"{count} of {len(y)} rows held out as test, seed {seed}")
        rows = np.random.default_rng(seed).permutation(len(y))
        test, train = np.sort(rows[:count]), np.sort(rows[count:])
        x, y, x_test, y_test = x[train], y[train], x[test], y[test]
    pixels = is_bytes or arrays.pixels
    fields = (name, task, pixels, arrays.columns, tuple(notes))
    return Dataset(x, y, x_test, y_test, *fields)


def _to_part(
    x: Examples, y: np.ndarray | None, task: Task | None, where: str, finite: bool
) -> tuple[Examples, np.ndarray, Task]:
    """Return examples as floats, targets in the form of their task, and the task."""
    if y is None:
        raise ValueError(f"{where}: there are no targets for the examples")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{where}: x must hold real numbers, got dtype {x.dtype}")
    check_rows(x, f"{where}: x")
    if x.ndim < 2:
        raise ValueError(
            f"{where}: x must have shape (n, ...), got {x.shape}; save n numbers as "
            "x[:, None]"
        )
    if len(x) != len(check_rows(y, f"{where}: y")):
        raise ValueError(f"{where}: x has {len(x)} rows but y has {len(y)}")
    if x.dtype == np.uint8 and not isinstance(x, np.memmap):
        x = np.divide(x, np.float32(255), dtype=np.float32)
    elif not isinstance(x, np.memmap):
        x = x.astype(np.float32 if np.can_cast(x.dtype, np.float32) else np.float64)
        if finite:
            check_finite(x, f"{where}: x")
    return x, *to_targets(y, task, f"{where}: y")


def to_targets(y: np.ndarray, task: Task | None, where: str) -> tuple[np.ndarray, Task]:
    """Return targets in the form of their task, and that task.

    Without a `task`, text, booleans and at most 100 distinct integers are labels;
    everything else is a target of regression.

    Raises:
      ValueError: the targets do not fit the task, or are not finite.
    """
    if task is not None:
        check_choice(where, "task", task, TASKS)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    text = y.dtype.kind in "US"
    if y.ndim not in (1, 2) or not (text or y.dtype.kind in "biuf"):
        raise ValueError(
            f"{where} must hold numbers or labels of shape (n,) or (n, t), got dtype "
            f"{y.dtype} and shape {y.shape}"
        )
    check_finite(y, where)
    if task is None:
        labels = text or (y.dtype.kind in "biu" and len(np.unique(y)) <= _MAX_CLASSES)
        task = "classification" if labels and y.ndim == 1 else "regression"
    if task == "regression":
        if text:
            raise ValueError(f"{where}: regression needs numbers, got text labels")
        return y.astype(np.float64), task
    if text:
        return y, task
    if not np.array_equal(y, np.round(y)):
        raise ValueError(
            f"{where}: classification needs whole numbers or text as labels, got "
            f"{y[y != np.round(y)][0]}"
        )
    return y.astype(np.int64), task


def check_finite(array: np.ndarray, where: str, columns: tuple[str, ...] = ()) -> None:
    """Raise a ValueError that names the first NaN or infinity by row and column."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    bad = np.argwhere(~np.isfinite(array))
    row, *column = map(int, bad[0])
    names = [repr(columns[i]) if columns else str(i) for i in column]
    place = ", column ".join([f"row {row}", *names])
    raise ValueError(
        f"{where}: {place} is {array[(row, *column)]}; fill the {len(bad)} entries "
        "that are NaN or infinite, or remove their rows"
    )


def check_rows(array: np.ndarray, where: str) -> np.ndarray:
    """Return an array that has an axis of rows.

    Raises:
      ValueError: it is a single number.
    """
    if array.ndim < 1:
        raise ValueError(f"{where} must hold an array of rows, got one {array.dtype}")
    return array


def existing_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return `path` as a `Path`.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: `path` is a folder.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    return path
