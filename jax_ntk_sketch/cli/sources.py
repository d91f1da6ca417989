"""What `fit` and `predict` read: loaders' data, and `.npy` files that stay on disk."""

import argparse
import dataclasses
import functools
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jax_ntk_sketch import data
from jax_ntk_sketch._progress import progress
from jax_ntk_sketch.cli.arguments import at_least
from jax_ntk_sketch.data.dataset import PIXEL_NOTE, draw_rows, existing_file, to_targets
from jax_ntk_sketch.data.jpeg import is_jpeg_archive
from jax_ntk_sketch.data.npz import read_arrays

__all__ = [
    "Part",
    "Training",
    "add_source_arguments",
    "examples_to_predict",
    "training_data",
]

_TABLES = (".csv", ".tsv", ".txt", ".data")


class Part(NamedTuple):
    """Examples (n, ...), an array or a memory map, and targets (n,) or (n, t)."""

    x: Any
    y: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """Data to fit and to test on.

    Attributes:
      name: what reports call the data.
      task: "classification" or "regression".
      train, test: the latter None where there is none.
      pixels: 8-bit values, to be divided by 255 or divided already.
      notes: what was done to the data on the way.
    """

    name: str
    task: str
    train: Part
    test: Part | None
    pixels: bool
    notes: tuple[str, ...]


def add_source_arguments(group: argparse._ArgumentGroup, *, fit: bool) -> None:
    """The options that say where data are; `fit` or else `predict` reads them."""
    rows = "" if fit else "; all rows in their order where it marks no test part"
    group.add_argument(
        "--data",
        metavar="PATH",
        help="an .npz archive (also of JPEG files), a .csv table, MNIST idx files, "
        f"CIFAR batches; 'digits' for scikit-learn's bundled images{rows}",
    )
    for name, what in (("x", "examples (n, ...)"), ("y", "targets (n,) or (n, t)")):
        optional = "" if fit or name == "x" else ", if known"
        group.add_argument(
            f"--{name}",
            metavar="NPY",
            help=f"in place of --data: {what} as a .npy file, "
            f"{'read batch by batch' if name == 'x' else 'read whole'}{optional}",
        )
        if fit:
            group.add_argument(
                f"--{name}-test", metavar="NPY", help=f"with --x and --y: {what} to "
                "test on",
            )  # fmt: skip
    group.add_argument(
        "--target", metavar="COL", help="name or index of a table's column to predict"
    )
    group.add_argument(
        "--seed", type=at_least(0), default=0, help="of every random choice"
    )


def training_data(args: argparse.Namespace) -> Training:
    """The data that the options of `fit` name.

    Raises:
      ValueError, OSError, ImportError: they cannot be read, or do not fit.
    """
    _check_source(args)
    if args.data is None:
        if args.y is None:
            raise ValueError("--x needs --y, the targets to fit")
        return _arrays(args)
    pair = [name for name in ("x_test", "y_test") if getattr(args, name) is not None]
    if pair:
        raise ValueError(f"--{pair[0].replace('_', '-')} goes with --x and --y")
    loaded = _load(args, args.data, args.target, args.task)
    loaded = loaded.take(args.num_train, args.num_test, seed=args.seed)
    return Training(
        loaded.name,
        loaded.task,
        Part(loaded.x_train, loaded.y_train),
        Part(loaded.x_test, loaded.y_test),
        loaded.pixels,
        loaded.notes,
    )


def examples_to_predict(
    args: argparse.Namespace, *, task: str, target: str | None, size: int, pixels: bool
) -> Part:
    """The examples that the options of `predict` name, in the order of their file.

    Args:
      task: of the model.
      target: the column that the model was fitted to, if its data were a table.
      size: numbers per example that the model takes.
      pixels: whether the model divides 8-bit values by 255.

    Raises:
      ValueError, OSError, ImportError: they cannot be read, or do not fit.
    """
    _check_source(args)
    if args.data is None:
        x = _open(args.x, "x")
        y = None if args.y is None else to_targets(_open(args.y, "y"), task, args.y)[0]
        return _checked(x, y, args.x)
    path = pathlib.Path(args.data)
    if args.part is None and path.is_file():
        if path.suffix.lower() in _TABLES:
            x, y = _table(path, args.target, target, size)
            return _checked(x, y if y is None else to_targets(y, task, str(path))[0])
        if path.suffix.lower() == ".npz" and not is_jpeg_archive(path):
            return _checked(*_archive(path, task), args.data)
    table = path.suffix.lower() in _TABLES
    loaded = _load(
        args,
        args.data,
        args.target or (target if table else None),
        task if table or path.suffix.lower() == ".npz" else None,
    )
    if loaded.task != task:
        raise ValueError(f"{args.data} is for {loaded.task}, the model for {task}")
    if loaded.pixels and not pixels:
        raise ValueError(
            f"{args.data}: 8-bit pixels, which are divided by 255, but the model was "
            "fitted to numbers that were not; convert one of the two"
        )
    if args.part == "train":
        return Part(loaded.x_train, loaded.y_train)
    return Part(loaded.x_test, loaded.y_test)


def _check_source(args: argparse.Namespace) -> None:
    if (args.data is None) == (args.x is None):
        raise ValueError("give --data PATH, or else --x X.npy (and --y Y.npy)")
    if args.data is not None and args.y is not None:
        raise ValueError("--y goes with --x; --data has targets of its own")
    if args.data is None and args.target is not None:
        raise ValueError("--target is for tables; --x names no table")


def _load(
    args: argparse.Namespace, path: str, target: str | None, task: str | None
) -> data.Dataset:
    if path == "digits":
        if args.target is not None:
            raise ValueError("--target is for tables; --data names no table")
        return data.load_digits(seed=args.seed)
    show = functools.partial(progress, enabled=False if args.no_progress else None)
    return data.load(path, target, task=task, seed=args.seed, progress=show)


def _arrays(args: argparse.Namespace) -> Training:
    """Files of one array each; examples stay on disk."""
    x = _open(args.x, "x")
    y, task = to_targets(_open(args.y, "y"), args.task, args.y)
    train, test = _checked(x, y, args.x), None
    if (args.x_test is None) != (args.y_test is None):
        raise ValueError("--x-test and --y-test go together")
    if args.x_test is not None:
        x_test = _open(args.x_test, "x-test")
        y_test, _ = to_targets(_open(args.y_test, "y-test"), task, args.y_test)
        test = _checked(x_test, y_test, args.x_test)
        for name, a, b in (("x", x, x_test), ("y", y, y_test)):
            if a.shape[1:] != b.shape[1:] or (a.dtype.kind in "US") != (
                b.dtype.kind in "US"
            ):
                raise ValueError(
                    f"--{name} has rows of shape {a.shape[1:]} and dtype {a.dtype}, "
                    f"--{name}-test {b.shape[1:]} and {b.dtype}; they must agree"
                )
    pixels = x.dtype == np.uint8
    notes: tuple[str, ...] = (PIXEL_NOTE,) if pixels else ()
    sizes = {"train": len(x), "test": 0 if test is None else len(test.x)}
    limits = {"train": args.num_train, "test": args.num_test}
    drawn, more = draw_rows(sizes, limits, args.seed)
    if "train" in drawn:
        rows = np.sort(drawn["train"])
        train = Part(x[rows], y[rows])
    if test is not None and test.y is not None and "test" in drawn:
        rows = np.sort(drawn["test"])
        test = Part(test.x[rows], test.y[rows])
    name = pathlib.Path(args.x).stem
    return Training(name, task, train, test, pixels, (*notes, *more))


def _open(path: str, option: str) -> np.ndarray:
    """A `.npy` file as a memory map."""
    file = existing_file(path)
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"--{option} {path} is no .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"--{option} {path} holds several arrays, expected a .npy")
    return array


def _checked(x: np.ndarray, y: np.ndarray | None, where: str = "the table") -> Part:
    """The pair, if the examples are numbers and as many as the targets."""
    if x.ndim < 2 or math.prod(x.shape) == 0:
        raise ValueError(
            f"{where}: examples must have shape (n, ...), n at least 1, got {x.shape}"
        )
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{where}: examples must be real numbers, got {x.dtype}")
    if y is not None and len(x) != len(y):
        raise ValueError(
            f"{where}: {len(x)} examples but {len(y)} targets; they must be as many"
        )
    return Part(x, y)


def _table(
    path: pathlib.Path, target: str | None, fitted: str | None, size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of a table; the target column is the one that was fitted, if it is there."""
    if target is not None:
        return data.read_csv(path, target)
    if fitted is not None:
        try:
            x, y = data.read_csv(path, fitted)
        except ValueError:  # no such column
            pass
        else:
            if x.shape[1] == size:
                return x, y
    return data.read_csv(path, None)


def _archive(path: pathlib.Path, task: str) -> tuple[np.ndarray, np.ndarray | None]:
    """x and y of an archive, of its test part where it marks one."""
    arrays = read_arrays(path)
    part = next((p for p in ("_test", "_train", "") if f"x{p}" in arrays), "")
    name = "X" if "X" in arrays and f"x{part}" not in arrays else f"x{part}"
    if name not in arrays:
        found = ", ".join([*arrays][:8]) or "nothing"
        raise ValueError(f"{path}: no array x, X or x_test; found {found}")
    x, y = arrays[name], arrays.get(f"y{part}")
    if y is not None:
        if len(x) != len(y):
            raise ValueError(f"{path}: {len(x)} examples but {len(y)} targets")
        y, _ = to_targets(y, task, f"{path}: y{part}")
    mask = arrays.get("test_mask")
    if not part and mask is not None:
        mask = mask.reshape(len(x), -1)[:, 0].astype(bool)
        x, y = x[mask], None if y is None else y[mask]
    return x, y
