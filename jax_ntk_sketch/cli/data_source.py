"""The data that the options name: to fit a model to, and to predict for."""

import argparse
import pathlib

import numpy as np

from jax_ntk_sketch._typing import Examples
from jax_ntk_sketch.data._dataset import Arrays, Dataset, to_dataset, to_targets
from jax_ntk_sketch.data._digits import read_digits
from jax_ntk_sketch.data._load import read
from jax_ntk_sketch.data._npz import read_array
from jax_ntk_sketch.linear_model import FittedModel

_NPY_OPTIONS = ("targets", "test_data", "test_targets")


def training_data(
    args: argparse.Namespace, *, finite: bool = True
) -> tuple[Dataset, str | None]:
    """Return all data to fit and test on, and the name of the target column.

    Arrays of .npy files stay on disk.

    Args:
      args: the options of `fit` or `compare`.
      finite: whether to refuse examples that are NaN or infinite.

    Raises:
      ValueError, OSError, ImportError: the data cannot be read, or do not fit.
    """
    if _is_npy(args):
        if args.targets is None:
            raise ValueError("--data X.npy needs --targets Y.npy")
        if (args.test_data is None) != (args.test_targets is None):
            raise ValueError("--test-data and --test-targets go together")
        arrays = _read_npy(args)
    else:
        arrays = _read(args, args.target_column, None)
    loaded = to_dataset(arrays, task=args.task, seed=args.seed, finite=finite)
    return loaded, arrays.target


def examples_to_predict(
    args: argparse.Namespace, fitted: FittedModel, pixels: bool
) -> tuple[Examples, np.ndarray | None, tuple[str, ...]]:
    """Return examples in the order of their file, their targets if known, and notes.

    Where the file marks a test part, the examples are this part.

    Args:
      args: the options of `predict`.
      fitted: the model, with the names of the columns that it was fitted to, and with
        its task and the name of the target column as metadata.
      pixels: whether the model divides 8-bit values by 255.

    Raises:
      ValueError, OSError, ImportError: the data cannot be read, or do not fit.
    """
    if _is_npy(args):
        arrays = _read_npy(args)
    else:
        target = args.target_column or fitted.metadata["target"]
        arrays = _read(args, target, fitted.feature_names or ())
        if args.target_column is not None and arrays.y is None:
            raise ValueError(f"{args.data}: no column {args.target_column!r}")
    if arrays.x.dtype == np.uint8 and not pixels:
        raise ValueError(
            f"{args.data}: 8-bit pixels are divided by 255, but the model was fitted "
            "to numbers that were not; convert one of the two"
        )
    x, y = arrays.x, arrays.y
    if arrays.x_test is not None:
        x, y = arrays.x_test, arrays.y_test
    if y is not None:
        if len(x) != len(y):
            raise ValueError(f"{args.data}: {len(x)} examples but {len(y)} targets")
        y, _ = to_targets(y, fitted.metadata["task"], f"{args.data}: targets")
    return x, y, arrays.notes


def _is_npy(args: argparse.Namespace) -> bool:
    """Return whether --data is an .npy file, and check the options beside it."""
    if pathlib.Path(args.data).suffix == ".npy":
        if args.target_column is not None:
            raise ValueError("--target-column is for tables, and --data is an array")
        return True
    for name in _NPY_OPTIONS:
        if getattr(args, name, None) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} goes with --data X.npy; other data have "
                "targets and test rows of their own"
            )
    return False


def _read(
    args: argparse.Namespace, target: str | None, columns: tuple[str, ...] | None
) -> Arrays:
    if args.data != "digits":
        return read(args.data, target, columns=columns, targets=columns is None)
    if args.target_column is not None:
        raise ValueError("--target-column is for tables, and --data names no table")
    return read_digits()


def _read_npy(args: argparse.Namespace) -> Arrays:
    """Return arrays of .npy files; the examples are memory maps."""
    paths = [args.data, *(getattr(args, name, None) for name in _NPY_OPTIONS)]
    x, y, x_test, y_test = (None if p is None else read_array(p) for p in paths)
    for path, array in zip(paths[::2], (x, x_test), strict=True):
        if array is not None and (array.ndim < 2 or not array.size):
            raise ValueError(
                f"{path}: examples must have shape (n, ...) with n at least 1, got "
                f"{array.shape}"
            )
    return Arrays(pathlib.Path(args.data).stem, x, y, x_test, y_test)
