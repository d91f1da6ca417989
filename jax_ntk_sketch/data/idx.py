"""The idx format of the MNIST files."""

import gzip
import math
import os
import pathlib
import zlib

import numpy as np

from jax_ntk_sketch.data.dataset import (
    PIXEL_NOTE,
    Dataset,
    existing_file,
    split_dataset,
    to_examples,
    to_targets,
)

__all__ = ["load_idx", "read_idx"]

# Third byte of the header; all numbers are big-endian.
_DTYPES: dict[int, np.dtype] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def load_idx(
    path: str | os.PathLike,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Reads MNIST's idx files, plain or gzip-compressed.

    Args:
      path: a folder with the four files (`train-images-idx3-ubyte[.gz]`, ...), or
        one images file whose labels file, named alike, lies beside it.
      test_fraction: part of the images to test on where only one file is given.
      seed: of that draw.

    Returns:
      `Dataset` for classification, x of shape (n, rows, columns); bytes are pixels
      and divided by 255.

    Raises:
      FileNotFoundError: a file is missing; nothing is ever downloaded.
      ValueError: a wrong header, a truncated file, counts that do not agree.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        x_train, y_train, x_test, y_test = (
            read_idx(_in_folder(path, name)) for name in _NAMES
        )
        name = path.resolve().name
        _check_labels(x_train, y_train, f"{path}: train")
        _check_labels(x_test, y_test, f"{path}: t10k")
        x_train, pixels = to_examples(x_train, f"{name}: x_train")
        x_test, _ = to_examples(x_test, f"{name}: x_test")
        y_train, task = to_targets(y_train, "classification", f"{name}: y_train")
        y_test, _ = to_targets(y_test, task, f"{name}: y_test")
        notes = (PIXEL_NOTE,) if pixels else ()
        return Dataset(x_train, y_train, x_test, y_test, name, task, pixels, notes)
    path = existing_file(path)
    labels = _labels_of(path)
    x, y = read_idx(path), read_idx(labels)
    _check_labels(x, y, str(path))
    return split_dataset(
        x,
        y,
        name=path.name.split(".")[0],
        task="classification",
        test_fraction=test_fraction,
        seed=seed,
    )


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Reads one idx file, plain or gzip-compressed, as an array.

    The header is two zero bytes, a byte for the type, a byte for the number of
    axes, and each axis' size as a big-endian 32-bit integer.

    Args:
      path: the file.

    Returns:
      Array of the header's shape and type, in the machine's byte order.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an idx file, or one that is truncated or too long.
    """
    path = existing_file(path)
    raw = path.read_bytes()
    # By content, not by name: browsers unpack .gz files and keep the name.
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged or truncated gzip: {error}") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _DTYPES or raw[3] == 0:
        raise ValueError(
            f"{path} is not an idx file: it begins with {raw[:4].hex(' ') or 'nothing'}"
            ", expected 00 00, a type (08 for bytes) and the number of axes"
        )
    dtype, ndim = _DTYPES[raw[2]], raw[3]
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise ValueError(f"{path}: truncated idx header, {len(raw)} of {start} bytes")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", ndim, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        state = "truncated" if len(raw) < expected else "too long"
        raise ValueError(
            f"{path}: {state} idx file, {len(raw)} bytes where its header, shape "
            f"{shape}, says {expected}"
        )
    array = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _in_folder(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file called `name`, or with `.idx` for `-idx`, and with or without .gz."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            if (folder / f"{spelling}{suffix}").is_file():
                return folder / f"{spelling}{suffix}"
    raise FileNotFoundError(
        f"{folder}: no {name} or {name}.gz; a folder must hold the four MNIST files "
        f"{', '.join(_NAMES)} (nothing is downloaded)"
    )


def _labels_of(images: pathlib.Path) -> pathlib.Path:
    """The labels file beside an images file, with or without .gz."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    if name == images.name:
        raise ValueError(
            f"{images}: give the images file ('images' in its name); its labels are "
            "looked for beside it"
        )
    bare = name.removesuffix(".gz")
    for candidate in (name, bare, f"{bare}.gz"):
        if (images.parent / candidate).is_file():
            return images.parent / candidate
    raise FileNotFoundError(f"{images}: its labels file {name} is not beside it")


def _check_labels(x: np.ndarray, y: np.ndarray, where: str) -> None:
    if x.ndim < 2 or y.ndim != 1:
        raise ValueError(
            f"{where}: expected images (n, ...) and labels (n,), got shapes {x.shape} "
            f"and {y.shape}"
        )
    if len(x) != len(y):
        raise ValueError(f"{where}: {len(x)} images but {len(y)} labels")
