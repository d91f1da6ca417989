"""Report folders, written so that a failure leaves the old report whole."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from jax_ntk_sketch.cli.arguments import UsageError

__all__ = ["check_folder", "markdown_table", "write_folder"]


def check_folder(folder: str | os.PathLike) -> pathlib.Path:
    """The path of a folder that `write_folder` will be able to write.

    Raises:
      UsageError: it is a file, or it or its parent cannot be written.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file, expected a folder")
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--output {folder}: cannot write in {existing}")
    return folder


def write_folder(
    folder: pathlib.Path, files: Mapping[str, bytes | str | None]
) -> list[pathlib.Path]:
    """Writes `files` (name -> contents) into `folder`, all or none.

    Everything is written beside the old files first and moved over them by
    `os.replace` once all of it is on disk. A file whose contents are None is removed;
    others in the folder stay.

    Returns:
      The paths written.

    Raises:
      OSError: the disk refuses; the old files are still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = pathlib.Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    written = []
    try:
        for name, contents in files.items():
            if contents is None:
                continue
            raw = contents.encode() if isinstance(contents, str) else contents
            with open(staging / name, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
        for name, contents in files.items():
            if contents is None:
                (folder / name).unlink(missing_ok=True)
            else:
                os.replace(staging / name, folder / name)
                written.append(folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return written


def markdown_table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table, aligned so that it reads as plain text too.

    >>> print(markdown_table(["m", "error"], [[16, 0.25], [256, 0.0625]]))
    | m   | error  |
    | --- | ------ |
    | 16  | 0.25   |
    | 256 | 0.0625 |
    """
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    return "\n".join(lines)
