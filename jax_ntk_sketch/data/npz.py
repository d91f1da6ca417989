"""NumPy archives."""

import os
import zipfile
import zlib

import numpy as np

from jax_ntk_sketch.data.dataset import (
    PIXEL_NOTE,
    Dataset,
    check_finite,
    existing_file,
    split_dataset,
    to_examples,
    to_targets,
)

__all__ = ["load_npz"]

_EXPECTED = "x_train, y_train, x_test, y_test; or x, y (X, y), optionally test_mask"


def load_npz(
    path: str | os.PathLike,
    *,
    task: str | None = None,
    split: int = 0,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Reads a NumPy archive (`numpy.savez`).

    Its arrays are `x_train, y_train` with or without `x_test, y_test`, or `x, y`
    (`X, y`), with or without `test_mask`, bool (n,) or (n, splits): column k marks
    the test rows of split k. Without a test part, one is drawn. uint8 examples
    are pixels and divided by 255. Object arrays (pickles) are refused.

    Args:
      path: the file.
      task: "classification" or "regression"; None to tell by the targets: text,
        booleans and up to 100 distinct integers are labels.
      split: column of `test_mask`.
      test_fraction: part of the rows to test on where the file marks none.
      seed: of that draw.

    Returns:
      `Dataset` with x of shape (n, ...), float32 or float64.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an archive, arrays missing or that do not fit, NaN or Inf
        named by row and column.
    """
    path = existing_file(path)
    name = path.stem
    arrays = read_arrays(path)
    if "jpeg_train" in arrays:
        raise ValueError(f"{path} holds JPEG files; read it with load_jpeg_npz or load")
    if "x_train" in arrays:
        if ("x_test" in arrays) != ("y_test" in arrays):
            raise ValueError(f"{path}: x_test and y_test must come together")
        x, y = arrays["x_train"], get_array(arrays, "y_train", path)
        if "x_test" not in arrays:
            return split_dataset(
                x, y, name=name, task=task, test_fraction=test_fraction, seed=seed
            )
        return _parts(x, y, arrays["x_test"], arrays["y_test"], name, task)
    x = get_array(arrays, "x" if "x" in arrays else "X", path)
    y = get_array(arrays, "y", path)
    if "test_mask" not in arrays:
        return split_dataset(
            x, y, name=name, task=task, test_fraction=test_fraction, seed=seed
        )
    if len(x) != len(y):
        raise ValueError(f"{name}: x has {len(x)} rows but y has {len(y)}")
    mask = _mask(arrays["test_mask"], len(x), split, path)
    # Before the split, while row numbers are the file's.
    check_finite(x, f"{name}: x")
    check_finite(y, f"{name}: y")
    note = f"test rows of split {split} of the file's test_mask"
    return _parts(x[~mask], y[~mask], x[mask], y[mask], name, task, (note,))


def read_arrays(path) -> dict[str, np.ndarray]:
    """The numeric and text arrays of an archive, without ever unpickling."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a NumPy archive (.npz), or is cut short")
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                arrays[key] = np.asarray(archive[key])
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read as a NumPy archive without pickle: {error}"
        ) from error
    return arrays


def get_array(
    arrays: dict[str, np.ndarray], key: str, path, expected: str = _EXPECTED
) -> np.ndarray:
    """The array called `key`, or an error that names those found and `expected`."""
    if key not in arrays:
        found = ", ".join([*arrays][:8]) + (", ..." if len(arrays) > 8 else "")
        raise ValueError(
            f"{path}: no array {key!r}; found {found or 'nothing'}; expected {expected}"
        )
    return arrays[key]


def _mask(masks: np.ndarray, n: int, split: int, path) -> np.ndarray:
    if masks.dtype != np.bool_ or masks.ndim not in (1, 2) or len(masks) != n:
        raise ValueError(
            f"{path}: test_mask must be bool (n,) or (n, splits) with n = {n}, got "
            f"{masks.dtype} {masks.shape}"
        )
    masks = masks.reshape(n, -1)
    if not 0 <= split < masks.shape[1]:
        raise ValueError(
            f"split must be in 0..{masks.shape[1] - 1} for the test_mask of {path}, "
            f"got {split}"
        )
    return masks[:, split]


def _parts(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    name: str,
    task: str | None,
    notes: tuple[str, ...] = (),
) -> Dataset:
    x_train, pixels = to_examples(x_train, f"{name}: x_train")
    x_test, test_pixels = to_examples(x_test, f"{name}: x_test")
    if pixels != test_pixels:
        raise ValueError(f"{name}: only one of x_train and x_test holds 8-bit pixels")
    y_train, task = to_targets(y_train, task, f"{name}: y_train")
    y_test, _ = to_targets(y_test, task, f"{name}: y_test")
    if pixels:
        notes = (PIXEL_NOTE, *notes)
    return Dataset(x_train, y_train, x_test, y_test, name, task, pixels, notes)
