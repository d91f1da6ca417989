"""The idx format of the MNIST files."""

import gzip
import math
import os
import pathlib
import zlib
from typing import BinaryIO

import numpy as np

from jax_ntk_sketch._files import check_memory
from jax_ntk_sketch.data._dataset import Arrays, existing_file

# Third byte of the header; all numbers are big-endian.
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
# The bytes of the longest header, which has 255 axes.
_HEADER = 4 + 4 * 255


def is_idx(path: pathlib.Path) -> bool:
    """Return whether `path` is a folder with MNIST's files."""
    return path.is_dir() and any(path.glob("t*-*ubyte*"))


def read_idx(folder: pathlib.Path) -> Arrays:
    """Return the images and labels of MNIST's idx files, plain or gzip-compressed.

    Args:
      folder: the folder of the four files (`train-images-idx3-ubyte[.gz]`, ...).

    Raises:
      FileNotFoundError: a file is missing; nothing is downloaded.
      ValueError: a header is wrong, a file is truncated, or counts do not agree.
    """
    train, test = (_images_and_labels(folder, part) for part in ("train", "t10k"))
    return Arrays(folder.resolve().name, *train, *test)


def _images_and_labels(
    folder: pathlib.Path, part: str
) -> tuple[np.ndarray, np.ndarray]:
    names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    x, y = (read_idx_file(_find(folder, name)) for name in names)
    if x.ndim < 2 or y.ndim != 1:
        raise ValueError(
            f"{folder}: expected images (n, ...) and labels (n,) of {part}, got shapes "
            f"{x.shape} and {y.shape}"
        )
    if len(x) != len(y):
        raise ValueError(f"{folder}: {part} has {len(x)} images but {len(y)} labels")
    return x, y


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return a file by its name, with `.idx` for `-idx`, and with or without .gz."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            if (folder / f"{spelling}{suffix}").is_file():
                return folder / f"{spelling}{suffix}"
    raise FileNotFoundError(
        f"{folder}: no {name} or {name}.gz; MNIST is four files, images and labels of "
        "train and of t10k (nothing is downloaded)"
    )


def read_idx_file(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array of one idx file, in the byte order of the machine.

    The header is two zero bytes, a byte for the type, a byte for the number of axes,
    and the size of each axis as a big-endian 32-bit integer.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not an idx file, or is truncated or too long.
    """
    path = existing_file(path)
    try:
        with path.open("rb") as file:
            # By content, not by name: browsers unpack .gz files and keep the name.
            packed = file.read(2) == _GZIP
            file.seek(0)
            if packed:
                return _read_array(path, gzip.GzipFile(fileobj=file), None)
            return _read_array(path, file, path.stat().st_size)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated gzip: {error}") from error


def _read_array(
    path: pathlib.Path, file: BinaryIO | gzip.GzipFile, size: int | None
) -> np.ndarray:
    """Return the array of an open file of `size` bytes, None if it is compressed.

    No more bytes are read than the header states, and one.
    """
    raw = file.read(_HEADER)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _DTYPES or raw[3] == 0:
        raise ValueError(
            f"{path} is not an idx file: it begins with {raw[:4].hex(' ') or 'nothing'}"
            ", expected 00 00, a type (08 for bytes) and the number of axes"
        )
    dtype, start = np.dtype(_DTYPES[raw[2]]), 4 + 4 * raw[3]
    if len(raw) < start:
        raise ValueError(f"{path}: truncated idx header, {len(raw)} of {start} bytes")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", raw[3], 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if size is None or size >= expected:
        check_memory(path, expected)
    needed = expected + 1 if size is None else min(size, expected + 1)
    parts = [raw]
    while needed > (found := sum(map(len, parts))):
        parts.append(file.read(min(needed - found, 2**24)))
        if not parts[-1]:
            break
    raw = b"".join(parts)
    if len(raw) != expected:
        state = "truncated" if len(raw) < expected else "too long"
        count = len(raw) if len(raw) < expected else "more"
        raise ValueError(
            f"{path}: {state} idx file, {count} bytes where its header, shape {shape}, "
            f"states {expected}"
        )
    array = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))
