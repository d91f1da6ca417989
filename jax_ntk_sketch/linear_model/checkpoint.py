"""Files that are either the old one or the new one, whatever happens in between."""

import hashlib
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jax_ntk_sketch.batches.sparse_rows import is_sparse

__all__ = ["describe", "digest", "load", "save"]

_VERSION = 1
_HEADER = "header"
# What reading another kind of file, or a part of one, may raise.
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
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Writes arrays and a description to `path`, atomically.

    A new file beside it is written, flushed to the disk and renamed, so that a reader
    and a later start find the old file whole or the new one whole.

    Args:
      path: `.npz`; its folder is created.
      arrays: by name.
      about: numbers and strings that say what the arrays belong to.

    Raises:
      OSError: the file cannot be written; the old one is as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"version": _VERSION, "about": dict(about), "digest": _digest(arrays)}
    # One name, so that what a killed run leaves is overwritten by the next.
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            parts: dict[str, Any] = {_HEADER: np.array(json.dumps(header)), **arrays}
            np.savez(file, **parts)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def load(
    path: str | os.PathLike,
    about: Mapping[str, Any] | None = None,
    *,
    kind: str = "checkpoint",
    advice: str = "delete it to begin again",
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of `save` and their description.

    Args:
      path: the file.
      about: what the description must say, entry by entry; None for anything.
      kind, advice: what errors call the file, and say to do.

    Raises:
      FileNotFoundError: there is none.
      ValueError: not such a file, a damaged one, one of another version, or one whose
        description differs: the entries that do are named.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop(_HEADER)))
        version, found = header["version"], header["about"]
        whole = header["digest"] == _digest(arrays)
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} is no {kind}, or a damaged one ({error}); {advice}"
        ) from error
    if version != _VERSION:
        raise ValueError(
            f"{path} has version {version} of the format, this library reads {_VERSION}"
        )
    if not whole:
        raise ValueError(
            f"{path} is damaged: its arrays are not those that were written; {advice}"
        )
    for key, wanted in (about or {}).items():
        if found.get(key) != wanted:
            raise ValueError(
                f"{path} belongs to another run: {key} was {found.get(key)!r} there "
                f"and is {wanted!r} here; give another path, or delete it"
            )
    return arrays, found


def describe(path: str | os.PathLike) -> dict[str, Any]:
    """The description of a file that `save` wrote, without its arrays; else {}."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(json.loads(str(file[_HEADER]))["about"])
    except _UNREADABLE:
        return {}


def digest(arrays: Iterable[Any]) -> str:
    """SHA-256 of arrays (compressed rows too), their dtypes and shapes, in order."""
    total = hashlib.sha256()
    parts: list[Any] = []
    for array in arrays:
        if is_sparse(array):
            parts += [array.data, array.indices, array.indptr, np.array(array.shape)]
        else:
            parts.append(array)
    for array in map(np.asarray, parts):
        total.update(f"{array.dtype.str} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    names = sorted(arrays)
    return digest([np.array(names), *(arrays[name] for name in names)])
