"""Archives of JPEG files: many small photographs in one `.npz`."""

import io
import pathlib
import zipfile
from collections.abc import Iterable

import numpy as np

from jax_ntk_sketch._progress import progress
from jax_ntk_sketch.data import Dataset


def is_one(path: pathlib.Path) -> bool:
    """Return whether there is an archive of JPEG files, by the names of its arrays."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "jpeg_train.npy" in archive.namelist()


def load(path: pathlib.Path, num_train: int, num_test: int) -> Dataset:
    """Return training and test images in [0, 1] and labels; only these are decoded.

    The archive holds `jpeg_train`, uint8, the files one after the other;
    `offsets_train`, integers (n + 1,), where image i is bytes offsets[i] to
    offsets[i + 1]; `y_train` (n,); and the same for `test`. At most `num_train` and
    `num_test` images are drawn, without replacement.
    """
    rng = np.random.default_rng(0)
    parts: list[np.ndarray] = []
    with np.load(path, allow_pickle=False) as archive:
        for part, limit in (("train", num_train), ("test", num_test)):
            jpeg, offsets, y = (
                archive[f"{name}_{part}"] for name in ("jpeg", "offsets", "y")
            )
            rows = np.arange(len(y))
            if limit < len(y):
                rows = rng.permutation(len(y))[:limit]
            images = _decode(jpeg, offsets, progress(rows, f"decoding {part} images"))
            parts += [images.astype(np.float32) / 255, y[rows].astype(np.int64)]
    x_train, y_train, x_test, y_test = parts
    fields = (path.stem, "classification", True)
    return Dataset(x_train, y_train, x_test, y_test, *fields)


def _decode(jpeg: np.ndarray, offsets: np.ndarray, rows: Iterable[int]) -> np.ndarray:
    from PIL import Image

    images = []
    for row in rows:
        file = io.BytesIO(jpeg[offsets[row] : offsets[row + 1]].tobytes())
        with Image.open(file, formats=("JPEG",)) as image:
            images.append(np.asarray(image))
    return np.stack(images)
