"""Files: writes that are atomic, reads that end, and one user of a file at a time."""

import contextlib
import hashlib
import os
import pathlib
import stat
import time
import uuid
from collections.abc import Iterator
from io import BufferedReader
from typing import BinaryIO

from jax_ntk_sketch._units import format_bytes

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
    prefix = _hidden_name(path)
    _remove_abandoned(path.parent, prefix)
    temporary = path.with_name(f"{prefix}{uuid.uuid4().hex}.part")
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


def open_regular(path: str | os.PathLike) -> BufferedReader:
    """Open a file for reading that has an end: no pipe, no device and no folder.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: the file cannot be opened.
      ValueError: it is of another kind.
    """
    # A pipe without a writer would be waited for when it is opened.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no file with an end, but a folder, pipe or device")
    return pathlib.Path(path).open("rb")


def machine_bytes() -> int:
    """Return the memory of the machine; 0 if the system does not state it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def check_memory(path: str | os.PathLike, needed: int) -> None:
    """Raise a ValueError if `needed` bytes are more than the memory of the machine."""
    memory = machine_bytes()
    if memory and needed > memory:
        raise ValueError(
            f"{path} takes {format_bytes(needed)} of memory, and there are "
            f"{format_bytes(memory)}"
        )


@contextlib.contextmanager
def locked(owner: str, path: str | os.PathLike) -> Iterator[None]:
    """Keep other processes and threads from entering this context for the same path.

    The lock is that of the operating system on a file beside `path`, and ends with the
    process.

    Raises:
      ValueError: another process or thread is in the context.
    """
    path = pathlib.Path(path)
    lock = path.with_name(f"{_hidden_name(path)}lock")
    with contextlib.ExitStack() as stack:
        ours = True
        # Without such locks, as on Windows and some network disks, nothing is locked.
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock.open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last user may have removed the file since it was opened.
                ours = os.path.samestat(os.stat(lock), os.fstat(file.fileno()))
            except (BlockingIOError, FileNotFoundError):
                ours = False
            if ours:
                stack.callback(lock.unlink, missing_ok=True)
        if not ours:
            raise ValueError(
                f"{owner}: {path} must have one user at a time, and another process "
                "writes it; wait for it, or give another path"
            )
        yield


def _hidden_name(path: pathlib.Path) -> str:
    """Return the beginning of names of files that belong to `path`.

    It has a fixed length, because the name of `path` may be as long as names can be.
    """
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}."


def _remove_abandoned(folder: pathlib.Path, prefix: str) -> None:
    """Remove temporary files to which nothing was written for a while."""
    for entry in os.scandir(folder):
        if entry.name.startswith(prefix) and entry.name.endswith(".part"):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > _ABANDONED:
                    os.unlink(entry.path)
