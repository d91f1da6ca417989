"""Files that are either the old one or the new one, whatever happens in between."""

import hashlib
import json
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jax_ntk_sketch.sparse_rows import is_sparse

__all__ = ["digest", "load", "save"]

_VERSION = 1
_HEADER = "header"


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
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            parts: dict[str, Any] = {_HEADER: np.array(json.dumps(header)), **arrays}
            np.savez(file, **parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise


def load(
    path: str | os.PathLike, about: Mapping[str, Any] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of `save` and their description.

    Args:
      path: the file.
      about: what the description must say, entry by entry; None for anything.

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
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no checkpoint, or a damaged one ({error}); delete it to begin "
            "again"
        ) from error
    if version != _VERSION:
        raise ValueError(
            f"{path} has version {version} of the format, this library reads {_VERSION}"
        )
    if not whole:
        raise ValueError(
            f"{path} is damaged: its arrays are not those that were written; delete it "
            "to begin again"
        )
    for key, wanted in (about or {}).items():
        if found.get(key) != wanted:
            raise ValueError(
                f"{path} belongs to another run: {key} was {found.get(key)!r} there "
                f"and is {wanted!r} here; give another path, or delete it"
            )
    return arrays, found


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
