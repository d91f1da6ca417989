"""NumPy archives and arrays, without pickle."""

import os
import zipfile
import zlib

import numpy as np

from jax_ntk_sketch.data._dataset import Arrays, check_finite, existing_file

_EXPECTED = "x_train, y_train, x_test, y_test; or x, y (X, y), optionally test_mask"


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
    x, y = get_array(arrays, name, path, _EXPECTED), arrays.get(f"y{part}")
    if y is None and targets:
        y = get_array(arrays, f"y{part}", path, _EXPECTED)
    if part or "test_mask" not in arrays:
        x_test, y_test = arrays.get("x_test"), arrays.get("y_test")
        return Arrays(path.stem, x, y, x_test, y_test)
    mask = arrays["test_mask"]
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

    Raises:
      ValueError: the file is not an archive, is damaged, or holds pickles.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a NumPy archive (.npz), or is truncated")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: np.asarray(archive[key]) for key in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read as a NumPy archive without pickle: {error}"
        ) from error


def get_array(
    arrays: dict[str, np.ndarray], key: str, path: os.PathLike[str], expected: str
) -> np.ndarray:
    """Return the array called `key`.

    Raises:
      ValueError: there is none; the message states the names that were found, and
        `expected`.
    """
    if key not in arrays:
        found = ", ".join([*arrays][:8]) or "nothing"
        raise ValueError(
            f"{path}: no array {key!r}; found {found}; expected {expected}"
        )
    return arrays[key]


def read_array(path: str | os.PathLike[str]) -> np.memmap:
    """Return the array of a `.npy` file as a memory map.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not an array, or holds pickles.
    """
    path = existing_file(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a .npy file: {error}") from error
    if not isinstance(array, np.memmap):
        raise ValueError(f"{path} holds several arrays, expected a .npy file with one")
    return array
