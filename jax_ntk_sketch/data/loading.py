"""One loader for whatever lies at a path."""

import os
import pathlib

from jax_ntk_sketch.data.cifar import find_cifar, load_cifar
from jax_ntk_sketch.data.csv_table import load_csv
from jax_ntk_sketch.data.dataset import Dataset
from jax_ntk_sketch.data.idx import load_idx
from jax_ntk_sketch.data.jpeg import Progress, is_jpeg_archive, load_jpeg_npz
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
    num_train: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dataset:
    """Loads a dataset from disk; what lies there tells its kind.

    Args:
      path: `.npz`: `load_jpeg_npz` if it holds JPEG files, `load_npz` otherwise;
        `.csv`, `.tsv`, `.txt`, `.data`: `load_csv`; a folder with CIFAR's batches,
        its archive or its folder in it, a `.tar.gz`, a `.bin` or a pickle:
        `load_cifar`; another folder, or a file with an idx or gzip header:
        `load_idx`.
      target: column name or index, for tables (required) and only for them.
      task: "classification" or "regression"; None to tell by the targets.
      split: column of the `test_mask` of an archive.
      test_fraction: part of the rows to test on where the data mark none.
      num_train: at most so many training rows, drawn as by `Dataset.take`; None
        for all.
      num_test: likewise.
      seed: of these draws.
      progress: `jax_ntk_sketch._progress.progress`, or None: what shows how far the
        decoding of JPEG files got.

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
    if kind == "jpeg":
        _check_labels_only(path, target, task, "JPEG archives")
        return load_jpeg_npz(
            path, num_train=num_train, num_test=num_test, seed=seed, progress=progress
        )
    loaded = _load(kind, path, target, task, split, test_fraction, seed)
    return loaded.take(num_train, num_test, seed=seed)


def _load(
    kind: str,
    path: pathlib.Path,
    target: str | int | None,
    task: str | None,
    split: int,
    test_fraction: float,
    seed: int,
) -> Dataset:
    """The whole dataset, of a kind other than "jpeg"."""
    if kind == "table":
        if target is None:
            raise ValueError(
                f"{path}: a table needs target, the name or index of the column to "
                "predict"
            )
        return load_csv(path, target, task=task, test_fraction=test_fraction, seed=seed)
    if kind == "npz":
        _check_no_target(path, target)
        return load_npz(
            path, task=task, split=split, test_fraction=test_fraction, seed=seed
        )
    if kind == "cifar":
        _check_labels_only(path, target, task, "CIFAR batches")
        return load_cifar(path, test_fraction=test_fraction, seed=seed)
    _check_labels_only(path, target, task, "idx files")
    return load_idx(path, test_fraction=test_fraction, seed=seed)


def _check_no_target(path: pathlib.Path, target: str | int | None) -> None:
    if target is not None:
        raise ValueError(
            f"{path}: target ({target!r}) is for tables; here the targets are an "
            "array or file of their own"
        )


def _check_labels_only(
    path: pathlib.Path, target: str | int | None, task: str | None, kind: str
) -> None:
    _check_no_target(path, target)
    if task == "regression":
        raise ValueError(f"{path}: {kind} hold labels, so task is classification")


def _kind(path: pathlib.Path) -> str:
    if path.is_dir():
        if find_cifar(path):
            return "cifar"
        if any(path.glob("t*-*ubyte*")):
            return "idx"
        raise FileNotFoundError(
            f"{path}: neither MNIST's idx files (train-images-idx3-ubyte, ...) nor "
            "CIFAR's batches (data_batch_1, ...) are in this folder (nothing is "
            "downloaded)"
        )
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return "jpeg" if is_jpeg_archive(path) else "npz"
    if suffix in _TABLES:
        return "table"
    if find_cifar(path):
        return "cifar"
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic[:2] == b"\x1f\x8b" or magic[:2] == b"\0\0":
        return "idx"
    if magic == b"PK\x03\x04":
        return "jpeg" if is_jpeg_archive(path) else "npz"
    raise ValueError(
        f"{path}: unknown kind of file; expected .npz, .csv (.tsv, .txt, .data), "
        "MNIST idx files, CIFAR batches (.tar.gz, .bin, python) or a folder of them"
    )
