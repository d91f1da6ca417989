"""What a loader returns, and the steps that all loaders share."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

__all__ = ["Dataset"]

TASKS = ("classification", "regression")

# Integer targets with more distinct values than this are taken as numbers.
MAX_CLASSES = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples as NumPy arrays.

    Args:
      x_train: floating array (n, ...), one example per row, finite.
      y_train: targets (n,): numbers or (n, k) of them for regression, labels
        (integers or text) for classification.
      x_test: (n_test, ...), as `x_train`.
      y_test: (n_test,) or (n_test, k), as `y_train`.
      name: what reports call the data.
      task: "classification" or "regression".
      pixels: x holds pixel values that were scaled to [0, 1].
      notes: what was done to the data on the way, one sentence each.

    Raises:
      ValueError: shapes that do not fit, an empty part, an unknown task, or a
        NaN or infinite entry, named by row and column.

    >>> x, y = np.eye(4), np.arange(4.0)
    >>> data = Dataset(x[:3], y[:3], x[3:], y[3:], "unit vectors", "regression")
    >>> data
    Dataset('unit vectors', regression, x_train (3, 4), x_test (1, 4))
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    name: str
    task: str
    pixels: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_task(self.task)
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if x.ndim < 2:
                raise ValueError(
                    f"{self.name}: x_{part} must have shape (n, ...), one example "
                    f"per row, got {x.shape}"
                )
            if len(x) != len(y):
                raise ValueError(
                    f"{self.name}: x_{part} has {len(x)} rows but y_{part} has "
                    f"{len(y)}; they must agree"
                )
            if x.size == 0:
                raise ValueError(f"{self.name}: x_{part} is empty, shape {x.shape}")
            check_finite(x, f"{self.name}: x_{part}")
            check_finite(y, f"{self.name}: y_{part}")
            _check_targets(y, self.task, f"{self.name}: y_{part}")
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise ValueError(
                f"{self.name}: examples of x_train have shape "
                f"{self.x_train.shape[1:]}, those of x_test {self.x_test.shape[1:]}"
            )
        if self.y_train.shape[1:] != self.y_test.shape[1:]:
            raise ValueError(
                f"{self.name}: y_train has shape {self.y_train.shape}, y_test "
                f"{self.y_test.shape}; they must agree after the first axis"
            )

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {self.task}, x_train {self.x_train.shape}, "
            f"x_test {self.x_test.shape})"
        )

    @property
    def classes(self) -> np.ndarray:
        """The distinct labels, sorted (classification only)."""
        if self.task != "classification":
            raise ValueError(f"{self.name}: classes of a regression task")
        return np.unique(np.concatenate([self.y_train, self.y_test]))

    def images(self) -> "Dataset":
        """The same data as (n, height, width, channels), as Conv layers take it.

        Grey images (n, height, width) get a channel axis of size 1.

        Raises:
          ValueError: examples of another shape: rows of a table, flattened images.

        >>> y = np.arange(2)
        >>> grey = Dataset(np.ones((2, 8, 8)), y, np.ones((2, 8, 8)), y, "a", TASKS[0])
        >>> grey.images().x_train.shape
        (2, 8, 8, 1)
        """
        if self.x_train.ndim == 4:
            return self
        shape = self.x_train.shape[1:]
        if len(shape) != 2:
            raise ValueError(
                f"{self.name}: examples of shape {shape} are not images; expected "
                "(height, width) or (height, width, channels), so reshape x_train and "
                "x_test first"
            )
        return dataclasses.replace(
            self,
            x_train=self.x_train[..., None],
            x_test=self.x_test[..., None],
            notes=(*self.notes, f"images of shape {shape} given one channel"),
        )

    def flattened(self) -> "Dataset":
        """The same data with one axis per example, as Dense layers take it."""
        if self.x_train.ndim == 2:
            return self
        shape = self.x_train.shape[1:]
        size = int(np.prod(shape))
        return dataclasses.replace(
            self,
            x_train=self.x_train.reshape(-1, size),
            x_test=self.x_test.reshape(-1, size),
            notes=(*self.notes, f"examples of shape {shape} flattened to ({size},)"),
        )

    def standardized(self) -> "Dataset":
        """Columns shifted and scaled to mean 0, deviation 1 on the training rows.

        Constant columns are shifted only.
        """
        mean = self.x_train.mean(axis=0, dtype=np.float64)
        std = self.x_train.std(axis=0, dtype=np.float64)
        # A constant column's deviation is rounding noise, not exactly zero.
        std = np.where(std > 1e-12 * (1 + np.abs(mean)), std, 1.0)
        dtype = self.x_train.dtype
        return dataclasses.replace(
            self,
            x_train=((self.x_train - mean) / std).astype(dtype),
            x_test=((self.x_test - mean) / std).astype(dtype),
            pixels=False,
            notes=(
                *self.notes,
                "columns standardised with the training rows' mean and deviation",
            ),
        )

    def take(
        self, num_train: int | None, num_test: int | None, *, seed: int = 0
    ) -> "Dataset":
        """At most `num_train` and `num_test` rows, drawn without replacement.

        Args:
          num_train: largest number of training rows, >= 1; None for all.
          num_test: largest number of test rows, >= 1; None for all.
          seed: of the draw; the same seed gives the same rows.

        Returns:
          A `Dataset`; parts that are small enough already stay as they are.
        """
        drawn, notes = draw_rows(
            {"train": len(self.x_train), "test": len(self.x_test)},
            {"train": num_train, "test": num_test},
            seed,
        )
        arrays: dict[str, np.ndarray] = {}
        for part, rows in drawn.items():
            arrays[f"x_{part}"] = getattr(self, f"x_{part}")[rows]
            arrays[f"y_{part}"] = getattr(self, f"y_{part}")[rows]
        return dataclasses.replace(self, **arrays, notes=(*self.notes, *notes))  # type: ignore[arg-type]


def check_finite(array: np.ndarray, where: str) -> None:
    """Raises ValueError naming the first NaN or infinity by row and column."""
    if not np.issubdtype(array.dtype, np.floating):
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    row, *column = (int(i) for i in np.argwhere(~finite)[0])
    place = f"row {row}"
    if column:
        place += f", column {column[0] if len(column) == 1 else tuple(column)}"
    raise ValueError(
        f"{where}: {place} is {array[(row, *column)]} ({int((~finite).sum())} such "
        "entries in all); remove or fill them first"
    )


def to_examples(x: np.ndarray, where: str) -> tuple[np.ndarray, bool]:
    """Examples as floats; 8-bit ones are pixels and divided by 255.

    Returns:
      The array, float32 or (from wide integers and float64) float64, and whether
      it holds pixels.
    """
    if x.dtype == np.uint8:
        pixels = x.astype(np.float32)
        pixels /= 255  # in place: an image set is large
        return pixels, True
    if not (x.dtype == np.bool_ or np.issubdtype(x.dtype, np.number)) or (
        np.issubdtype(x.dtype, np.complexfloating)
    ):
        raise ValueError(f"{where} must hold real numbers, got dtype {x.dtype}")
    dtype = np.float32 if np.can_cast(x.dtype, np.float32) else np.float64
    return x.astype(dtype), False


def to_targets(y: np.ndarray, task: str | None, where: str) -> tuple[np.ndarray, str]:
    """Targets in the form of their task, and that task.

    Without a `task`, text, booleans and at most `MAX_CLASSES` distinct integers
    are labels; everything else is a regression target.
    """
    if task is not None:
        _check_task(task)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim not in (1, 2):
        raise ValueError(f"{where} must have shape (n,) or (n, k), got {y.shape}")
    check_finite(y, where)
    text = y.dtype.kind in "US"
    if not text and y.dtype.kind not in "biuf":
        raise ValueError(f"{where} must hold numbers or labels, got dtype {y.dtype}")
    if task is None:
        labels = text or (y.dtype.kind in "biu" and len(np.unique(y)) <= MAX_CLASSES)
        task = "classification" if labels and y.ndim == 1 else "regression"
    if task == "regression":
        if text:
            raise ValueError(f"{where}: regression needs numbers, got text labels")
        return y.astype(np.float64), task
    if y.dtype.kind == "f":
        if not np.array_equal(y, np.round(y)):
            raise ValueError(
                f"{where}: classification needs whole numbers or text as labels, "
                f"got {y[y != np.round(y)][0]}"
            )
        y = y.astype(np.int64)
    return (y if text else y.astype(np.int64)), task


def draw_rows(
    sizes: dict[str, int], limits: dict[str, int | None], seed: int
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Row numbers of a random subset of each part that is above its limit.

    Args:
      sizes: number of rows of the parts.
      limits: largest number of rows of each, >= 1; None for no limit.
      seed: of NumPy's generator; the same seed gives the same rows.

    Returns:
      Row numbers of the parts that are cut, and a note for each.
    """
    rng = np.random.default_rng(seed)
    rows, notes = {}, []
    for part, n in sizes.items():
        limit = limits[part]
        if limit is None:
            continue
        if limit < 1:
            raise ValueError(f"num_{part} must be at least 1, got {limit}")
        if limit < n:
            rows[part] = rng.permutation(n)[:limit]
            notes.append(f"{limit} of {n} {part} rows drawn with seed {seed}")
    return rows, tuple(notes)


def split_rows(
    n: int, test_fraction: float, seed: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of a random training and test part.

    Args:
      n: number of rows, >= 2.
      test_fraction: in (0, 1); at least one row goes to each part.
      seed: of NumPy's generator; the same seed gives the same parts.
      where: what an error calls the data.

    Returns:
      Two sorted integer arrays that together are 0..n-1.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be in (0, 1), got {test_fraction!r}")
    if n < 2:
        raise ValueError(f"{where}: {n} rows cannot be split into train and test")
    num_test = min(max(round(n * test_fraction), 1), n - 1)
    rows = np.random.default_rng(seed).permutation(n)
    return np.sort(rows[num_test:]), np.sort(rows[:num_test])


def split_dataset(
    x: np.ndarray,
    y: np.ndarray,
    *,
    name: str,
    task: str | None,
    test_fraction: float,
    seed: int,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """A `Dataset` from examples without a test part, which is drawn by `seed`."""
    if len(x) != len(y):
        raise ValueError(f"{name}: x has {len(x)} rows but y has {len(y)}")
    x, pixels = to_examples(x, f"{name}: x")
    check_finite(x, f"{name}: x")  # before the split, while row numbers are the file's
    y, task = to_targets(y, task, f"{name}: y")
    train, test = split_rows(len(x), test_fraction, seed, name)
    if pixels:
        notes = (*notes, PIXEL_NOTE)
    return Dataset(
        x[train],
        y[train],
        x[test],
        y[test],
        name,
        task,
        pixels,
        (*notes, f"{len(test)} of {len(x)} rows held out as test, seed {seed}"),
    )


PIXEL_NOTE = "8-bit values divided by 255"


def existing_file(path: Any) -> pathlib.Path:
    """`path` as a `Path`, or an error if no file is there."""
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    return path


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")


def _check_targets(y: np.ndarray, task: str, where: str) -> None:
    if task == "classification" and y.ndim != 1:
        raise ValueError(
            f"{where} must have shape (n,) for classification, got {y.shape}"
        )
    if y.ndim not in (1, 2):
        raise ValueError(f"{where} must have shape (n,) or (n, k), got {y.shape}")
