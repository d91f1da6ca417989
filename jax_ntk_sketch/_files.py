"""Atomic writes: a reader finds the old file or the new one, never a part of it."""

import contextlib
import os
import pathlib
import time
import uuid
from collections.abc import Iterator
from typing import BinaryIO

# Seconds without a write after which a temporary file belongs to a killed process.
_ABANDONED = 600.0


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, and rename it to `path` once it is on disk.

    The temporary file lies in the folder of `path`, which is created. Its name is
    unique, so that several processes may write the same path: the last one wins. If the
    body or the write raises, the old file stays as it was and the temporary file is
    removed. Temporary files that killed processes left are removed by a later write.

    Args:
      path: the file to write or to replace.

    Yields:
      A binary file.

    Raises:
      OSError: the file cannot be written.

    >>> import pathlib, tempfile
    >>> from jax_ntk_sketch._files import atomic_write
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "folder" / "numbers.txt"
    >>> with atomic_write(path) as file:
    ...     _ = file.write(b"1 2 3")
    >>> path.read_text(), [entry.name for entry in path.parent.iterdir()]
    ('1 2 3', ['numbers.txt'])
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _remove_abandoned(path: pathlib.Path) -> None:
    """Remove temporary files for `path` to which nothing was written for a while."""
    prefix = f".{path.name}."
    for entry in os.scandir(path.parent):
        if entry.name.startswith(prefix) and entry.name.endswith(".part"):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > _ABANDONED:
                    os.unlink(entry.path)
