"""Named arrays and metadata in one file, which is written atomically and verified."""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jax_ntk_sketch._files import atomic_write
from jax_ntk_sketch._typing import Examples
from jax_ntk_sketch.batches.sparse_rows import is_sparse

# Anything that JSON can hold.
Metadata = dict[str, Any]

_VERSION = 1
_HEADER = "header"
# The exceptions that reading another kind of file, or a part of one, may raise.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,  # an array or a number where an archive or an object is expected
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)


def save(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
) -> None:
    """Write arrays and metadata to `path`, atomically.

    Args:
      path: an `.npz` file; its folder is created.
      arrays: the arrays, by name.
      metadata: JSON that describes them.

    Raises:
      OSError: the file cannot be written; the old file stays as it was.
    """
    header = {
        "version": _VERSION,
        "metadata": dict(metadata),
        "digest": _digest_by_name(arrays),
    }
    parts: dict[str, np.ndarray] = {_HEADER: np.array(json.dumps(header)), **arrays}
    with atomic_write(path) as file:
        np.savez(file, **parts)  # type: ignore[arg-type]


def load(
    path: str | os.PathLike,
    *,
    kind: str = "checkpoint",
    remedy: str = "delete it to begin again",
) -> tuple[dict[str, np.ndarray], Metadata]:
    """Return the arrays and the metadata of a file that `save` wrote.

    Args:
      path: the file.
      kind: the name of such a file in error messages.
      remedy: what error messages advise.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of another kind or version, or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop(_HEADER)))
        version, metadata = header["version"], header["metadata"]
        intact = header["digest"] == _digest_by_name(arrays)
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} is not a {kind}, or it is damaged ({error}); {remedy}"
        ) from error
    if version != _VERSION:
        raise ValueError(
            f"{path} has version {version} of the format, but this library reads "
            f"version {_VERSION}; {remedy}"
        )
    if not intact:
        raise ValueError(
            f"{path} is damaged: its arrays are not those that were written; {remedy}"
        )
    return arrays, metadata


def check_run(
    path: str | os.PathLike, metadata: Metadata, fingerprint: Mapping[str, Any]
) -> None:
    """Check that the metadata of a file have the entries of a fingerprint.

    Raises:
      ValueError: they differ. The message names the first entry that does.
    """
    for name, expected in fingerprint.items():
        if metadata.get(name) != expected:
            raise ValueError(
                f"{path} belongs to another run: {name} was {metadata.get(name)!r} "
                f"there and is {expected!r} here; give another path or delete the file"
            )


def read_metadata(path: str | os.PathLike) -> Metadata:
    """Return the metadata of a file that `save` wrote, or {} for any other file.

    The arrays are neither read nor verified.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(json.loads(str(file[_HEADER]))["metadata"])
    except _UNREADABLE:
        return {}


def digest(arrays: Iterable[Examples]) -> str:
    """Return the SHA-256 of the dtypes, the shapes and the entries of arrays, in order.

    Compressed rows of scipy.sparse are arrays too.
    """
    total = hashlib.sha256()
    parts: list[Examples] = []
    for array in arrays:
        if is_sparse(array):
            parts += [array.data, array.indices, array.indptr, np.array(array.shape)]
        else:
            parts.append(array)
    for array in map(np.asarray, parts):
        total.update(f"{array.dtype.str} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _digest_by_name(arrays: Mapping[str, np.ndarray]) -> str:
    names = sorted(arrays)
    return digest([np.array(names), *(arrays[name] for name in names)])
