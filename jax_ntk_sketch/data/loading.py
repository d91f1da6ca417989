"""One loader for whatever lies at a path."""

import os
import pathlib

from jax_ntk_sketch.data.csv_table import load_csv
from jax_ntk_sketch.data.dataset import Dataset
from jax_ntk_sketch.data.idx import load_idx
from jax_ntk_sketch.data.npz import load_npz

__all__ = ["load"]

_TABLES = (".csv", ".tsv", ".txt", ".data")


def load(
    path: str | os.PathLike,
    target: str | int | None = None,
    *,
    task: str | None = None,
    split: int = 0,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Loads a NumPy archive, MNIST idx files or a CSV table, told by what is there.

    Args:
      path: `.npz`: `load_npz`; a folder, or a file with an idx or gzip header:
        `load_idx`; `.csv`, `.tsv`, `.txt`, `.data`: `load_csv`.
      target: column name or index, for tables (required) and only for them.
      task: "classification" or "regression"; None to tell by the targets.
      split: column of the `test_mask` of an archive.
      test_fraction: part of the rows to test on where the data mark none.
      seed: of that draw.

    Returns:
      A `Dataset`.

    Raises:
      FileNotFoundError: nothing at `path`.
      ValueError: of unknown kind, or what the loader of its kind says.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    kind = _kind(path)
    if kind == "table":
        if target is None:
            raise ValueError(
                f"{path}: a table needs target, the name or index of the column to "
                "predict"
            )
        return load_csv(path, target, task=task, test_fraction=test_fraction, seed=seed)
    if target is not None:
        raise ValueError(
            f"{path}: target ({target!r}) is for tables; here the targets are an "
            "array or file of their own"
        )
    if kind == "npz":
        return load_npz(
            path, task=task, split=split, test_fraction=test_fraction, seed=seed
        )
    if task == "regression":
        raise ValueError(f"{path}: idx files hold labels, so task is classification")
    return load_idx(path, test_fraction=test_fraction, seed=seed)


def _kind(path: pathlib.Path) -> str:
    if path.is_dir():
        return "idx"
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return "npz"
    if suffix in _TABLES:
        return "table"
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic[:2] == b"\x1f\x8b" or magic[:2] == b"\0\0":
        return "idx"
    if magic == b"PK\x03\x04":
        return "npz"
    raise ValueError(
        f"{path}: unknown kind of file; expected .npz, .csv (.tsv, .txt, .data), "
        "MNIST idx files or a folder of them"
    )
