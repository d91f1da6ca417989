"""Archives of JPEG files: many small photographs in one `.npz`."""

import io
import os
import zipfile
from collections.abc import Callable, Iterable

import numpy as np

from jax_ntk_sketch.data.dataset import (
    PIXEL_NOTE,
    Dataset,
    draw_rows,
    existing_file,
    to_examples,
    to_targets,
)
from jax_ntk_sketch.data.npz import get_array, read_arrays

__all__ = ["load_jpeg_npz"]

_EXPECTED = "jpeg_train, offsets_train, y_train, jpeg_test, offsets_test, y_test"
# As `jax_ntk_sketch._progress.progress`.
Progress = Callable[[Iterable, str], Iterable]


def load_jpeg_npz(
    path: str | os.PathLike,
    *,
    num_train: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dataset:
    """Reads a NumPy archive of JPEG files; decodes only the images asked for.

    Its arrays are `jpeg_train`, uint8, the files one after the other;
    `offsets_train`, integer (n + 1,), where image i is bytes offsets[i] to
    offsets[i + 1]; `y_train` (n,); and the same for `test`.

    Args:
      path: the file.
      num_train: at most so many training images, drawn without replacement; the
        same ones as `load_jpeg_npz(path).take(num_train, num_test, seed=seed)`
        has. None for all.
      num_test: likewise.
      seed: of the draw.
      progress: `jax_ntk_sketch._progress.progress`, or what else wraps the loop over
        the images of a part, given a few words for it.

    Returns:
      `Dataset` for classification; x of shape (n, rows, columns, 3), or
      (n, rows, columns) if all images are grey; bytes divided by 255.

    Raises:
      ImportError: Pillow is not installed.
      FileNotFoundError: no such file.
      ValueError: not an archive, arrays missing or that do not fit, an image that
        is damaged or unlike the first, named by its row.

    Cost: about 6000 images of 32x32 a second on one core.
    """
    path = existing_file(path)
    arrays = read_arrays(path)
    keys = ("jpeg", "offsets", "y")
    parts = {
        part: [get_array(arrays, f"{key}_{part}", path, _EXPECTED) for key in keys]
        for part in ("train", "test")
    }
    for part, (jpeg, offsets, y) in parts.items():
        _check_part(jpeg, offsets, y, f"{path}: {{}}_{part}")
    sizes = {part: len(y) for part, (_, _, y) in parts.items()}
    drawn, notes = draw_rows(sizes, {"train": num_train, "test": num_test}, seed)
    x, targets = {}, {}
    for part, (jpeg, offsets, y) in parts.items():
        rows = drawn.get(part, np.arange(len(y)))
        shown = progress(rows, f"decoding {part} images") if progress else rows
        images = _decode(jpeg, offsets, shown, len(rows), f"{path}: {part}")
        x[part], _ = to_examples(images, f"x_{part}")
        labels, task = to_targets(y, "classification", f"{path}: y_{part}")
        targets[part] = labels[rows]
    return Dataset(
        x["train"],
        targets["train"],
        x["test"],
        targets["test"],
        path.stem,
        task,
        pixels=True,
        notes=(PIXEL_NOTE, *notes),
    )


def is_jpeg_archive(path: str | os.PathLike) -> bool:
    """Whether a `.npz` holds JPEG files, by the names of its arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "jpeg_train.npy" in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False  # `load_npz` says what is wrong with it


def _check_part(
    jpeg: np.ndarray, offsets: np.ndarray, y: np.ndarray, where: str
) -> None:
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1:
        raise ValueError(
            f"{where.format('jpeg')} must be uint8 (bytes,), got {jpeg.dtype} "
            f"{jpeg.shape}"
        )
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 2:
        raise ValueError(
            f"{where.format('offsets')} must be integers (n + 1,), got "
            f"{offsets.dtype} {offsets.shape}"
        )
    if len(y) != len(offsets) - 1 or y.ndim != 1:
        raise ValueError(
            f"{where.format('offsets')} is for {len(offsets) - 1} images but "
            f"{where.format('y')} has shape {y.shape}"
        )
    falling = np.flatnonzero(offsets[1:] <= offsets[:-1])
    if offsets[0] != 0 or offsets[-1] != len(jpeg) or len(falling):
        wrong = (
            f"does not rise after entry {falling[0]}"
            if len(falling)
            else (f"runs from {offsets[0]} to {offsets[-1]}")
        )
        raise ValueError(
            f"{where.format('offsets')} {wrong}; it must rise from 0 to the "
            f"{len(jpeg)} bytes of {where.format('jpeg')}"
        )


def _decode(
    jpeg: np.ndarray, offsets: np.ndarray, rows: Iterable, count: int, where: str
) -> np.ndarray:
    """The images of some rows, uint8 (count, height, width[, 3])."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "decoding JPEG files needs Pillow, which is not installed; "
            "pip install pillow"
        ) from error
    out, size, mode = np.empty(0), None, None
    for i, row in enumerate(rows):
        file = io.BytesIO(jpeg[offsets[row] : offsets[row + 1]].tobytes())
        try:
            # One format only: Pillow's other decoders see no byte of it.
            with Image.open(file, formats=("JPEG",)) as image:
                if size is None:
                    size, mode = image.size, image.mode
                    if mode not in ("L", "RGB"):
                        raise ValueError(
                            f"{where} image {row} has mode {mode}, expected L (grey) "
                            "or RGB"
                        )
                    channels = (3,) if mode == "RGB" else ()
                    out = np.empty((count, size[1], size[0], *channels), np.uint8)
                elif (image.size, image.mode) != (size, mode):
                    raise ValueError(
                        f"{where} image {row} is {image.size} {image.mode}, the first "
                        f"one {size} {mode}; all must be alike"
                    )
                out[i] = np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{where} image {row} is not a sound JPEG file: {error}"
            ) from error
    return out
