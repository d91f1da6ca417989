"""CIFAR-10 and CIFAR-100 as their author distributes them."""

import io
import os
import pathlib
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jax_ntk_sketch.data._dataset import Arrays

_PIXELS = 3 * 32 * 32
# More than twice the largest batch that exists.
_MAX_BYTES = 2**29


class _Layout(NamedTuple):
    """A dataset as it is distributed: its folder, archive, files and labels."""

    name: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    key: str
    num_classes: int


_FIVE = tuple(f"data_batch_{i}" for i in range(1, 6))
_LAYOUTS = (
    _Layout("CIFAR-10", "cifar-10-batches-py", "cifar-10-python.tar.gz", _FIVE,
            "test_batch", "labels", 10),
    _Layout("CIFAR-100", "cifar-100-python", "cifar-100-python.tar.gz", ("train",),
            "test", "fine_labels", 100),
)  # fmt: skip
_FILES = {file for layout in _LAYOUTS for file in (*layout.train, layout.test)}


def find_cifar(path: pathlib.Path) -> pathlib.Path | None:
    """Return the folder of the batches or their archive, at `path` or in it."""
    if path.is_file():
        name = path.name.lower()
        return path if name.endswith((".tar.gz", ".tgz", ".tar")) else None
    if any((path / layout.test).is_file() for layout in _LAYOUTS):
        return path
    names = [layout.folder for layout in _LAYOUTS]
    names += [layout.archive for layout in _LAYOUTS]
    return next((path / name for name in names if (path / name).exists()), None)


def read_cifar(source: str | os.PathLike[str]) -> Arrays:
    """Return the images of CIFAR-10 or CIFAR-100, Python version.

    Pickles are read without importing or calling anything that they name. Archives
    are read without extracting anything to disk.

    Args:
      source: the folder of the batches, or their archive.

    Returns:
      Images (n, 32, 32, 3) uint8, channels red, green, blue, and labels (the fine ones
      of CIFAR-100). Missing training batches are named in the notes.

    Raises:
      FileNotFoundError: there are no batches to train or to test on; nothing is
        downloaded.
      ValueError: a file is damaged, truncated or hostile, or a label is out of range.
    """
    source = pathlib.Path(source)
    batches = dict(_in_folder(source) if source.is_dir() else _in_archive(source))
    layout = next((one for one in _LAYOUTS if one.test in batches), _LAYOUTS[0])
    train = [name for name in layout.train if name in batches]
    if layout.test not in batches or not train:
        raise FileNotFoundError(
            f"{source}: expected {', '.join(layout.train)} and {layout.test}, found "
            f"{', '.join(batches) or 'none of them'} (nothing is downloaded)"
        )
    *parts, (x_test, y_test) = (
        read_batch(batches[name], f"{source}: {name}", layout.key, layout.num_classes)
        for name in (*train, layout.test)
    )
    x, y = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    missing = ", ".join(name for name in layout.train if name not in batches)
    notes = (f"without the batches {missing}",) if missing else ()
    return Arrays(layout.name, x, y, x_test, y_test, notes=notes)


def _in_folder(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the batches in a folder."""
    for name in sorted(_FILES):
        if (folder / name).is_file():
            _check_size((folder / name).stat().st_size, f"{folder / name}")
            yield name, (folder / name).read_bytes()


def _in_archive(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the batches in an archive, in one pass over it."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = pathlib.PurePosixPath(member.name).name
                if name not in _FILES or member.isdir():
                    continue
                if not member.isreg():
                    raise ValueError(
                        f"{path}: entry {member.name!r} is a link, expected a file"
                    )
                _check_size(member.size, f"{path}: {member.name}")
                file: Any = archive.extractfile(member)
                yield name, file.read()
            # To the end, where gzip keeps its checksum.
            rest: Any = archive.fileobj
            while rest.read(2**20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated archive: {error}") from error


def _check_size(size: int, where: str) -> None:
    if size > _MAX_BYTES:
        raise ValueError(f"{where} has {size} bytes, more than any batch of CIFAR")


def read_batch(
    raw: bytes, where: str, key: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 32, 32, 3) uint8 and labels (n,) int64 of one batch.

    Args:
      raw: the contents of the file.
      where: the name of the file in error messages.
      key: the name of the labels.
      num_classes: labels are below this number.

    Raises:
      ValueError: the contents are not such a batch.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(raw), encoding="bytes").load()
        batch = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
        rows, labels = batch["data"].value, batch[key]
    # A hostile or damaged pickle may raise almost anything.
    except Exception as error:
        raise ValueError(
            f"{where} is not a batch of CIFAR: {type(error).__name__}: {error}"
        ) from error
    if rows.dtype != np.uint8 or rows.shape[1:] != (_PIXELS,) or not len(rows):
        raise ValueError(
            f"{where}: data must be a uint8 array (n, {_PIXELS}), got {rows.dtype} "
            f"{rows.shape}"
        )
    whole = isinstance(labels, list) and len(labels) == len(rows)
    if not whole or not all(
        type(label) is int and 0 <= label < num_classes for label in labels
    ):
        raise ValueError(
            f"{where}: {key} must be a list of {len(rows)} integers in "
            f"0..{num_classes - 1}"
        )
    # A row is the red, the green and the blue plane, each row by row.
    planes = rows.reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(labels)


class _BatchUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing.

    A pickle is a program that may call whatever `find_class` returns. The batches name
    the constructors of NumPy's arrays only. Even these are not handed out, because a
    crafted state of a `numpy.dtype` makes NumPy read bytes as addresses; stand-ins
    that build plain numeric arrays take their place.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name that the batches use."""
        known: dict[str, Callable[..., Any]] = {
            "numpy.core.multiarray._reconstruct": lambda *args: _Array(),
            "numpy._core.multiarray._reconstruct": lambda *args: _Array(),
            "numpy.ndarray": lambda *args: None,
            "numpy.dtype": lambda code, *args: _Dtype(code),
            # How protocol 2 of Python 3 writes bytes.
            "_codecs.encode": lambda text, coding: text.encode("latin1"),
        }
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which no batch of CIFAR uses"
            )
        return known[f"{module}.{name}"]


class _Dtype:
    """The dtype of an array of integers or floats."""

    __slots__ = ("code",)

    def __init__(self, code: str | bytes) -> None:
        self.code = code.decode() if isinstance(code, bytes) else str(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.code = order.replace("|", "") + self.code


class _Array:
    """An array of integers or floats, empty until its state is set."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        plain = np.dtype(dtype.code)
        if plain.kind not in "iuf":
            raise pickle.UnpicklingError(f"an array has dtype {dtype.code!r}")
        array = np.frombuffer(content, plain)
        self.value = array.reshape(shape, order="F" if fortran else "C")
