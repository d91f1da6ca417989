"""Named arrays and their description in one file, which is verified when it is read.

The format is that of safetensors: the length of a JSON header as 8 bytes, the header,
and the bytes of the arrays. Any reader of this format reads the arrays. The header has
the description, and a SHA-256 of the whole file in which its own digits are zeros.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._files import atomic_write, check_memory, open_regular
from jax_ntk_sketch._units import format_bytes

# Anything that JSON can hold.
Description = dict[str, Any]

_FORMAT, _VERSION = "jax_ntk_sketch", "2"
_DTYPES = {
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BLANK = b"0" * 64
# Names of a hundred thousand columns or classes take a few megabytes.
_LARGEST_HEADER = 2**26


class TensorFile(NamedTuple):
    """What a file holds.

    Attributes:
      kind: what the file is, for example "checkpoint".
      description: JSON that describes the arrays.
      arrays: the arrays, by name.
    """

    kind: str
    description: Description
    arrays: dict[str, NDArray]


def write(
    path: str | os.PathLike,
    kind: str,
    description: Mapping[str, Any],
    arrays: Mapping[str, NDArray],
) -> None:
    """Write arrays and their description, atomically.

    Args:
      path: the file to write or to replace; its folder is created.
      kind: what the file is.
      description: JSON.
      arrays: numbers, by name.

    Raises:
      OSError: the file cannot be written; the old file stays as it was.
      TypeError: the description is not JSON, or an array does not hold numbers.
    """
    metadata = {"format": _FORMAT, "version": _VERSION, "kind": kind}
    metadata["sha256"] = _BLANK.decode()
    metadata["description"] = json.dumps(description)
    header: dict[str, Any] = {"__metadata__": metadata}
    start, parts = 0, []
    for name, array in sorted(arrays.items()):
        if array.dtype.newbyteorder("<") not in _NAMES:
            raise TypeError(f"save: {name} must hold numbers, got {array.dtype}")
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        parts.append(_bytes_of(array))
        offsets = [start, start + array.nbytes]
        entry = {"dtype": _NAMES[array.dtype], "shape": array.shape}
        header[name] = entry | {"data_offsets": offsets}
        start = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    size = len(text).to_bytes(8, "little")
    digest = hashlib.sha256(size + text)
    for part in parts:
        digest.update(part)
    with atomic_write(path) as file:
        file.write(size + text.replace(_BLANK, digest.hexdigest().encode(), 1))
        for part in parts:
            file.write(part)


def read(path: str | os.PathLike, expected: str, remedy: str) -> TensorFile:
    """Return what `write` wrote.

    The memory is that of the file. The header is checked before anything is allocated.

    Args:
      path: the file.
      expected: what the file should be, in error messages.
      remedy: what error messages advise.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: the file cannot be opened.
      ValueError: the file is of another kind or version, or it is damaged.
    """
    try:
        with open_regular(path) as file:
            total = os.fstat(file.fileno()).st_size
            size = file.read(8)
            if size.startswith(b"PK\3\4"):
                raise ValueError(
                    "it is a zip archive, as files of earlier versions are; these did "
                    "not state what their features are and are no longer read"
                )
            length = int.from_bytes(size, "little")
            if length > min(total - 8, _LARGEST_HEADER):
                raise ValueError("it has no header")
            text = file.read(length)
            metadata, entries = _parsed(text, total - 8 - length)
            check_memory("it", total)
            claimed = str(metadata["sha256"]).encode()
            digest = hashlib.sha256(size + text.replace(claimed, _BLANK, 1))
            arrays = {}
            for name, dtype, shape in entries:
                array = np.empty(shape, dtype)
                data = _bytes_of(array)
                if file.readinto(data) != data.nbytes:
                    raise ValueError("it has no end")
                digest.update(data)
                arrays[name] = array
        if digest.hexdigest().encode() != claimed:
            raise ValueError("its contents are not those that were written")
        description = json.loads(metadata["description"])
    except (ValueError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a {expected}, or it is damaged ({_reason(error)}); {remedy}"
        ) from error
    return TensorFile(metadata["kind"], description, arrays)


def kind_of(path: str | os.PathLike) -> str | None:
    """Return what a file says that it is; None for other files. Nothing is verified."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                return None
            metadata = json.loads(file.read(length))["__metadata__"]
            return metadata["kind"] if metadata["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def digest(arrays: list[NDArray]) -> str:
    """Return the SHA-256 of the dtypes, the shapes and the entries of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        update_digest(total, array)
    return total.hexdigest()


def update_digest(total: Any, array: NDArray) -> None:
    """Add the dtype, the shape and the entries of an array to a hash of `hashlib`."""
    total.update(f"{array.dtype.str} {array.shape}".encode())
    total.update(_bytes_of(np.ascontiguousarray(array)))


def _bytes_of(array: NDArray) -> memoryview:
    """Return the memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def _parsed(
    text: bytes, size: int
) -> tuple[dict[str, str], list[tuple[str, np.dtype, tuple[int, ...]]]]:
    """Return the metadata of a header, and the names, dtypes and shapes of its arrays.

    Raises:
      ValueError, KeyError, TypeError: the header is another one, or its arrays do not
        take `size` bytes.
    """
    header = json.loads(text)
    metadata = header.pop("__metadata__")
    if metadata["format"] != _FORMAT:
        raise ValueError("another program wrote it")
    if metadata["version"] != _VERSION:
        raise ValueError(
            f"it has version {metadata['version']} of the format, and this library "
            f"reads version {_VERSION}"
        )
    entries, start = [], 0
    for name, entry in header.items():
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        if not all(type(n) is int and 0 <= n < 2**48 for n in shape):
            raise ValueError(f"{name} has the shape {shape}")
        stop = start + math.prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [start, stop]:
            raise ValueError(f"{name} has another size than its shape")
        entries.append((name, dtype, shape))
        start = stop
    if start != size:
        raise ValueError(
            f"its arrays take {format_bytes(start)}, and there are {format_bytes(size)}"
        )
    return metadata, entries


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, in one line."""
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    return f"{str(error)[:300] or type(error).__name__}".replace("\n", " ")
