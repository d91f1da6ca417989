"""NumPy archives and arrays, without pickle."""

import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib

import numpy as np

from jax_ntk_sketch._files import check_memory
from jax_ntk_sketch.data._dataset import (
    Arrays,
    check_finite,
    check_rows,
    existing_file,
)

_EXPECTED = "x_train, y_train, x_test, y_test; or x, y (X, y), optionally test_mask"

# What NumPy and `zipfile` raise for files that are damaged or hostile.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    SyntaxError,
    MemoryError,
    RuntimeError,  # also for encrypted members, unknown compression and deep nesting
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def read_npz(
    path: str | os.PathLike[str], *, test_mask_column: int = 0, targets: bool = True
) -> Arrays:
    """Return the examples of a NumPy archive (`numpy.savez`).

    The arrays are `x_train, y_train`, with or without `x_test, y_test`; or `x, y` (`X,
    y`), with or without `test_mask`, bool (n,) or (n, splits).

    Args:
      path: the file.
      test_mask_column: which split of `test_mask` marks the test rows.
      targets: whether the targets must be there.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not an archive, or arrays are missing or do not fit.
    """
    path = existing_file(path)
    arrays = read_archive(path)
    part = "_train" if "x_train" in arrays else ""
    name = "X" if "X" in arrays and "x" not in arrays and not part else f"x{part}"

    def get(key: str, needed: bool = False) -> np.ndarray | None:
        present = needed or key in arrays
        return get_array(arrays, key, path, _EXPECTED) if present else None

    x, y = get_array(arrays, name, path, _EXPECTED), get(f"y{part}", targets)
    if part or "test_mask" not in arrays:
        x_test, y_test = get("x_test"), get("y_test")
        if x_test is None and y_test is not None:
            get("x_test", needed=True)
        return Arrays(path.stem, x, y, x_test, y_test)
    mask = get_array(arrays, "test_mask", path, _EXPECTED)
    sizes = {len(part) for part in (x, mask, y) if part is not None}
    if mask.dtype != np.bool_ or len(sizes) > 1:
        raise ValueError(
            f"{path}: x, y and test_mask must have n rows each, and test_mask must be "
            f"bool; got {sorted(sizes)} rows and {mask.dtype}"
        )
    mask = mask.reshape(len(x), -1)
    if not 0 <= test_mask_column < mask.shape[1]:
        raise ValueError(
            f"{path}: test_mask_column must be in 0..{mask.shape[1] - 1}, got "
            f"{test_mask_column}"
        )
    # Before the split, while row numbers are those of the file.
    check_finite(x, f"{path.stem}: x")
    test = mask[:, test_mask_column]
    note = f"test rows of split {test_mask_column} of the file's test_mask"
    y, y_test = (None, None) if y is None else (y[~test], y[test])
    return Arrays(path.stem, x[~test], y, x[test], y_test, notes=(note,))


def read_archive(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the numeric and text arrays of an archive; nothing is unpickled.

    Sizes are compared with the memory of the machine before anything is allocated.

    Raises:
      ValueError: the file is not an archive, is damaged or too large, or holds pickles.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_memory(path, sum(member.file_size for member in members))
            return {
                member.filename.removesuffix(".npy"): _read_member(archive, member)
                for member in members
                if member.filename.endswith(".npy")
            }
    except UNREADABLE as error:
        if str(path) in str(error):
            raise
        raise ValueError(
            f"{path} cannot be read as a NumPy archive (.npz) without pickle, or is "
            f"damaged: {error}"
        ) from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Return one array, whose header must fit the size of the member."""
    with archive.open(member) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = "read_array_header_1_0" if first else "read_array_header_2_0"
        shape, _, dtype = getattr(np.lib.format, read)(file)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(
                f"{member.filename} states shape {shape} and {dtype}, but has "
                f"{member.file_size} bytes"
            )
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def get_array(
    arrays: dict[str, np.ndarray], key: str, path: os.PathLike[str], expected: str
) -> np.ndarray:
    """Return the array called `key`.

    Raises:
      ValueError: there is none, or it is a single number; the message states the
        names that were found, and `expected`.
    """
    if key not in arrays:
        found = ", ".join([*arrays][:8]) or "nothing"
        raise ValueError(
            f"{path}: no array {key!r}; found {found}; expected {expected}"
        )
    return check_rows(arrays[key], f"{path}: {key}")


def read_array(path: str | os.PathLike[str]) -> np.memmap:
    """Return the array of a `.npy` file as a memory map.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not an array, or holds pickles.
    """
    path = existing_file(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a .npy file: {error}") from error
    if not isinstance(array, np.memmap):
        raise ValueError(f"{path} holds several arrays, expected a .npy file with one")
    return array
