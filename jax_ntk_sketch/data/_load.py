"""One loader for all kinds of files and folders."""

import os
import pathlib

from jax_ntk_sketch._typing import Task
from jax_ntk_sketch.data._cifar import find_cifar, read_cifar
from jax_ntk_sketch.data._dataset import Arrays, Dataset, to_dataset
from jax_ntk_sketch.data._idx import is_idx, read_idx
from jax_ntk_sketch.data._npz import read_npz
from jax_ntk_sketch.data._tables import is_table, read_table


def load(
    path: str | os.PathLike[str],
    target: str | int | None = None,
    *,
    task: Task | None = None,
    test_mask_column: int = 0,
    test_fraction: float = 0.2,
    num_train: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Return a dataset from disk, whose kind is found by looking at it.

    - `.csv`, `.tsv`, `.txt`, `.data` (also `.gz`), `.parquet`, `.feather`: a table with
      names or without, read by pandas. A first column without a name is left out.
    - `.npz`: arrays `x_train, y_train` with or without `x_test, y_test`; or `x, y` (`X,
      y`) with or without `test_mask`, bool (n,) or (n, splits).
    - MNIST's idx files: the folder of the four.
    - CIFAR-10 or CIFAR-100, Python version: the folder of the batches or its `.tar.gz`.

    8-bit examples are pixels and are divided by 255. Nothing is downloaded, and no
    code in a file is run.

    Args:
      path: a file or a folder.
      target: the name or index of the target column, for tables and only for them.
      task: "classification" or "regression"; None infers it from the targets: text,
        booleans and up to 100 distinct integers are labels.
      test_mask_column: which split of an archive's `test_mask` is used.
      test_fraction: the part of the rows to test on where the data mark none.
      num_train: the largest number of training rows, see `Dataset.take`.
      num_test: the largest number of test rows.
      seed: the seed of these draws.

    Returns:
      A `Dataset`; x is float32 or float64.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ImportError: a table needs pandas, which is not installed.
      ValueError: the kind is unknown, the file is damaged, or an entry is not finite.

    >>> import tempfile
    >>> import numpy as np
    >>> from jax_ntk_sketch import data
    >>> path = tempfile.mkdtemp() + "/cubes.npz"
    >>> x = np.linspace(-1.0, 1.0, 10)
    >>> np.savez(path, x=x[:, None], y=x**3)
    >>> data.load(path)
    Dataset('cubes', regression, x_train (8, 1), x_test (2, 1))
    """
    arrays = read(path, target, test_mask_column=test_mask_column)
    loaded = to_dataset(arrays, task=task, test_fraction=test_fraction, seed=seed)
    return loaded.take(num_train, num_test, seed=seed)


def read(
    path: str | os.PathLike[str],
    target: str | int | None = None,
    *,
    columns: tuple[str, ...] | None = None,
    test_mask_column: int = 0,
    targets: bool = True,
) -> Arrays:
    """Return the data at `path` as they are: neither split, converted nor checked.

    Args:
      path: a file or a folder, see `load`.
      target: the target column of a table; with `columns` it may be absent.
      columns: the columns of a table that a model was fitted to, or None for all.
      test_mask_column: see `load`.
      targets: whether an archive must hold targets.

    Raises:
      FileNotFoundError, ImportError, ValueError: see `load`.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if is_table(path):
        if target is None and columns is None:
            raise ValueError(
                f"{path}: a table needs a target column, given by its name or index"
            )
        return read_table(path, target, columns=columns)
    if target is not None and columns is None:
        raise ValueError(
            f"{path}: a target column ({target!r}) is for tables; here the targets are "
            "an array or a file of their own"
        )
    if path.suffix.lower() == ".npz":
        return read_npz(path, test_mask_column=test_mask_column, targets=targets)
    if (cifar := find_cifar(path)) is not None:
        return read_cifar(cifar)
    if is_idx(path):
        return read_idx(path)
    raise (FileNotFoundError if path.is_dir() else ValueError)(
        f"{path}: unknown kind of data; expected a table (.csv, .parquet, ...), .npz, "
        "MNIST's idx files (train-images-idx3-ubyte, ...), or CIFAR's batches "
        "(data_batch_1, ...) in a folder or .tar.gz (nothing is downloaded)"
    )
