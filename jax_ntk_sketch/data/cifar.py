"""CIFAR-10 and CIFAR-100 as their author distributes them."""

import dataclasses
import os
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jax_ntk_sketch.data.dataset import (
    PIXEL_NOTE,
    Dataset,
    existing_file,
    split_dataset,
    to_examples,
)
from jax_ntk_sketch.data.safe_pickle import read_pickle

__all__ = ["load_cifar"]

_PIXELS = 3 * 32 * 32
# More than twice the largest batch that exists.
_MAX_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class _Layout:
    """One form in which the data are distributed: its folder and its files."""

    name: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test)


_FIVE = tuple(f"data_batch_{i}" for i in range(1, 6))
_LAYOUTS = (
    _Layout(
        "CIFAR-10",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        _FIVE,
        "test_batch",
    ),
    _Layout(
        "CIFAR-100",
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        ("train",),
        "test",
    ),
    _Layout(
        "CIFAR-10",
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        tuple(f"{name}.bin" for name in _FIVE),
        "test_batch.bin",
    ),
    _Layout(
        "CIFAR-100",
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        ("train.bin",),
        "test.bin",
    ),
)
_FILES = {file for layout in _LAYOUTS for file in layout.files}
_CLASSES = {"labels": 10, "fine_labels": 100, "coarse_labels": 20}


def load_cifar(
    path: str | os.PathLike,
    *,
    coarse: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Reads CIFAR-10 or CIFAR-100, python or binary version.

    Pickles are read without running them, archives without extracting anything to
    disk. Files beside the batches (`batches.meta`, `readme.html`) are not read.

    Args:
      path: the folder of the batches (`cifar-10-batches-py`, ...), the folder in
        which it or its archive lies, the archive (`cifar-10-python.tar.gz`, ...),
        or one batch.
      coarse: the 20 coarse labels of CIFAR-100 instead of the 100 fine ones.
      test_fraction: part of the images to test on where one batch is given.
      seed: of that draw.

    Returns:
      `Dataset` for classification, x of shape (n, 32, 32, 3), channels red, green,
      blue, bytes divided by 255. Training batches that are missing are named in its
      notes.

    Raises:
      FileNotFoundError: no batches there, or none to train or to test on; nothing
        is ever downloaded.
      ValueError: a damaged, truncated or hostile file, a label out of range,
        `coarse` for CIFAR-10.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        existing_file(path)
    source = find_cifar(path) or path
    if source.is_dir():
        files = _in_folder(source)
    elif _is_archive(source):
        files = _in_archive(source)
    else:
        x, y = _decode(source.name, _read(source), str(source), coarse)
        return split_dataset(
            x,
            y,
            name=source.name.split(".")[0],
            task="classification",
            test_fraction=test_fraction,
            seed=seed,
        )
    batches: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for file, raw in files:
        if file in batches:
            raise ValueError(f"{source}: two files called {file}")
        batches[file] = _decode(file, raw, f"{source}: {file}", coarse)
    return _assemble(batches, source)


def find_cifar(path: str | os.PathLike) -> pathlib.Path | None:
    """Where CIFAR lies: `path` itself, or the one folder or archive in it.

    Returns:
      A folder that holds batches, an archive or a batch; None if there is none.

    Raises:
      ValueError: a folder that holds several sets.
    """
    path = pathlib.Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            pickled = file.read(1) == b"\x80"
        batch = pickled or path.suffix.lower() == ".bin"
        return path if batch or _is_archive(path) else None
    if any((path / file).is_file() for file in _FILES):
        return path
    for candidates in (
        [path / layout.folder for layout in _LAYOUTS],
        [path / layout.archive for layout in _LAYOUTS],
    ):
        found = [candidate for candidate in candidates if candidate.exists()]
        if len(found) > 1:
            names = ", ".join(candidate.name for candidate in found)
            raise ValueError(f"{path} holds {names}; give the path of one of them")
        if found:
            return found[0]
    return None


def _is_archive(path: pathlib.Path) -> bool:
    # By name too: a damaged archive is still meant as one.
    named = path.name.lower().endswith((".tar.gz", ".tgz", ".tar"))
    return named or tarfile.is_tarfile(path)


def _in_folder(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the batches in a folder, one at a time."""
    for file in sorted(_FILES):
        if (folder / file).is_file():
            yield file, _read(folder / file)


def _in_archive(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the batches in an archive, in one pass over it."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                parts = pathlib.PurePosixPath(member.name).parts
                if ".." in parts or member.name.startswith("/"):
                    raise ValueError(
                        f"{path}: entry {member.name!r} points outside of the archive; "
                        "the distributed archives have no such entry"
                    )
                if not parts or parts[-1] not in _FILES or member.isdir():
                    continue
                if not member.isreg():
                    raise ValueError(
                        f"{path}: entry {member.name!r} is a link, expected a file"
                    )
                _check_size(member.size, f"{path}: {member.name}")
                file: Any = archive.extractfile(member)
                yield parts[-1], file.read()
            # To the end, where gzip keeps its checksum.
            rest: Any = archive.fileobj
            while rest.read(2**20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated archive: {error}") from error


def _read(path: pathlib.Path) -> bytes:
    _check_size(path.stat().st_size, str(path))
    return path.read_bytes()


def _check_size(size: int, where: str) -> None:
    if size > _MAX_BYTES:
        raise ValueError(f"{where} has {size} bytes, more than any batch of CIFAR")


def _decode(
    name: str, raw: bytes, where: str, coarse: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8 and labels (n,) int64 of one batch."""
    decode = _binary if name.lower().endswith(".bin") else _pickled
    rows, labels, kind = decode(name, raw, where, coarse)
    if coarse and kind == "labels":
        raise ValueError(f"{where}: coarse labels are CIFAR-100's, this is CIFAR-10")
    wrong = np.flatnonzero((labels < 0) | (labels >= _CLASSES[kind]))
    if len(wrong):
        raise ValueError(
            f"{where}: label {labels[wrong[0]]} of image {wrong[0]} is not one of "
            f"0..{_CLASSES[kind] - 1}"
        )
    # A row is the red, the green, the blue plane, each row by row.
    planes = rows.reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _pickled(
    name: str, raw: bytes, where: str, coarse: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    batch = read_pickle(raw, where)
    kind = "coarse_labels" if coarse else "fine_labels"
    kind = "labels" if "labels" in batch else kind
    for key in ("data", kind):
        if key not in batch:
            raise ValueError(f"{where}: no {key!r}; found {', '.join(batch) or 'none'}")
    rows, labels = batch["data"], batch[kind]
    if not isinstance(rows, np.ndarray) or (
        rows.dtype != np.uint8 or rows.shape[1:] != (_PIXELS,) or not len(rows)
    ):
        state = getattr(rows, "shape", ""), getattr(rows, "dtype", type(rows).__name__)
        raise ValueError(
            f"{where}: data must be a uint8 array (n, {_PIXELS}), got {state}"
        )
    if not (isinstance(labels, np.ndarray) and labels.dtype.kind in "iu") and not (
        isinstance(labels, list) and all(type(label) is int for label in labels)
    ):
        raise ValueError(f"{where}: {kind} must be a list of integers")
    if np.shape(labels) != (len(rows),):
        raise ValueError(f"{where}: {len(rows)} images but {len(labels)} {kind}")
    return rows, np.array([int(label) for label in labels], np.int64), kind


def _binary(
    name: str, raw: bytes, where: str, coarse: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    """Records of 3072 bytes after the label, or the coarse and the fine label."""
    if name.lower() not in _FILES:
        known = ", ".join(sorted(file for file in _FILES if file.endswith(".bin")))
        raise ValueError(f"{where}: not a binary batch by its name, one of {known}")
    kinds = ("labels",) if "batch" in name.lower() else ("coarse_labels", "fine_labels")
    size = len(kinds) + _PIXELS
    if not raw or len(raw) % size:
        raise ValueError(
            f"{where}: {len(raw)} bytes are not a whole number of records of {size}; "
            "truncated, or not a binary batch"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, size)
    column = 0 if coarse else len(kinds) - 1
    labels = records[:, column].astype(np.int64)
    return records[:, len(kinds) :], labels, kinds[column]


def _assemble(batches: dict[str, tuple], source: pathlib.Path) -> Dataset:
    """The `Dataset` of the batches that are there."""
    present = [layout for layout in _LAYOUTS if set(layout.files) & set(batches)]
    if not present:
        raise FileNotFoundError(
            f"{source}: no CIFAR batches; expected {', '.join(_LAYOUTS[0].files)} or "
            "those of CIFAR-100 or of the binary version (nothing is downloaded)"
        )
    if len(present) > 1:
        folders = " and ".join(layout.folder for layout in present)
        raise ValueError(f"{source} mixes the files of {folders}; separate them")
    layout = present[0]
    train = [file for file in layout.train if file in batches]
    missing = [file for file in layout.train if file not in batches]
    if layout.test not in batches or not train:
        absent = layout.test if train else ", ".join(layout.train)
        raise FileNotFoundError(
            f"{source}: no {absent}; give one batch's path to hold out a part of it "
            "instead (nothing is downloaded)"
        )
    x = np.concatenate([batches[file][0] for file in train])
    y = np.concatenate([batches[file][1] for file in train])
    x_test, y_test = batches[layout.test]
    notes = [PIXEL_NOTE]
    for part, count, whole in (("train", len(x), 50000), ("test", len(x_test), 10000)):
        if count != whole:
            lost = f"; missing: {', '.join(missing)}" if part == "train" else ""
            notes.append(f"{count} of {layout.name}'s {whole} {part} images{lost}")
    return Dataset(
        to_examples(x, "x_train")[0],
        y,
        to_examples(x_test, "x_test")[0],
        y_test,
        layout.name,
        "classification",
        True,
        tuple(notes),
    )
