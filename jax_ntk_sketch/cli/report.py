"""Reports: their parts, and folders of them that a failure leaves whole."""

import argparse
import io
import json
import os
import pathlib
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jax_ntk_sketch
from jax_ntk_sketch.cli.arguments import UsageError, usage_errors
from jax_ntk_sketch.data import Dataset
from jax_ntk_sketch.validation.report import Estimate

__all__ = [
    "Report",
    "check_file",
    "check_folder",
    "chosen_options",
    "describe_data",
    "draw_scores",
    "environment",
    "environment_text",
    "figure_png",
    "markdown_table",
    "new_figure",
    "strict_json",
    "write_folder",
]


def check_folder(folder: str | os.PathLike, option: str = "--output") -> pathlib.Path:
    """The path of a folder that `write_folder` will be able to write.

    Raises:
      UsageError: it is a file, or it or its parent cannot be written.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{option} {folder} is a file, expected a folder")
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {folder}: cannot write in {existing}")
    return folder


def check_file(path: str, option: str, suffixes: Sequence[str]) -> pathlib.Path:
    """The path of a file that can be written in place of what may be there.

    Raises:
      UsageError: another suffix, a folder, or its folder cannot be written.
    """
    file = pathlib.Path(path)
    if file.suffix not in suffixes:
        raise UsageError(f"{option} {path}: must end in {' or '.join(suffixes)}")
    if file.is_dir():
        raise UsageError(f"{option} {path} is a folder, expected a file")
    existing = check_folder(file.parent, option)
    while not existing.exists():
        existing = existing.parent
    try:
        # Permissions do not tell of all that a file system refuses.
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot write in {existing}") from error
    return file


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


class Report:
    """What a job found; a subclass says it as a table, text, JSON and a figure."""

    def table(self) -> str:
        """A Markdown table."""
        raise NotImplementedError

    def keys(self) -> str:
        """What the columns of the table mean."""
        raise NotImplementedError

    def to_markdown(self, *, with_figure: bool = True) -> str:
        """The report for reading."""
        raise NotImplementedError

    def to_json(self) -> str:
        """The report for programs; strict JSON."""
        raise NotImplementedError

    def figure(self) -> bytes | None:
        """A PNG; None without matplotlib."""
        raise NotImplementedError

    def files(self) -> dict[str, bytes | str | None]:
        """The files of the report: name to contents; None where there is none."""
        figure = self.figure()
        return {
            "report.json": self.to_json(),
            "report.md": self.to_markdown(with_figure=figure is not None),
            "report.png": figure,
        }

    def publish(self, folder: pathlib.Path) -> None:
        """Prints the table and writes the files.

        Raises:
          UsageError: the folder cannot be written.
        """
        print(f"\n{self.table()}\n\n{self.keys()}")
        with usage_errors():
            written = write_folder(folder, self.files())
        print(f"\nReport: {', '.join(map(str, written))}")


def strict_json(content: Mapping[str, Any]) -> str:
    """JSON without NaN or infinity, for people to read too."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def chosen_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run, without what the command line added to them."""
    return {k: v for k, v in vars(args).items() if k not in ("run", "command")}


def describe_data(data: Dataset) -> str:
    """A sentence on the data, and what was done to them."""
    size = int(np.prod(data.x_train.shape[1:]))
    notes = "".join(f"; {note}" for note in data.notes)
    return (
        f"Data: {data.name}, {data.task}, {len(data.x_train)} training and "
        f"{len(data.x_test)} test rows of {size} numbers{notes}."
    )


def environment() -> dict[str, str]:
    return {
        "jax_ntk_sketch": jax_ntk_sketch.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }


def environment_text() -> str:
    env = environment()
    return (
        f"jax_ntk_sketch {env['jax_ntk_sketch']}, JAX {env['jax']}, Python "
        f"{env['python']}, device {env['device']}."
    )


def new_figure() -> Any:
    """A matplotlib figure for two plots; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(10, 4), layout="constrained")


def draw_scores(
    ax: Any,
    points: Sequence[tuple[str, int, Estimate]],
    metric: str,
    reference: tuple[str, float],
) -> None:
    """Draws scores against `num_features`, a line per method, and a level to reach.

    Args:
      ax: matplotlib axes.
      points: method, num_features and score of each feature map.
      metric: what the score is.
      reference: name and score of what is drawn as a horizontal line.
    """
    for method in dict.fromkeys(point[0] for point in points):
        line = [point for point in points if point[0] == method]
        ax.errorbar(
            [size for _, size, _ in line],
            [score.mean for *_, score in line],
            yerr=[score.standard_error or 0.0 for *_, score in line],
            fmt="o-",
            capsize=3,
            label=method,
        )
    ax.axhline(reference[1], color="black", ls="--", label=reference[0])
    ax.set_xscale("log", base=2)
    ax.set_xlabel("num_features")
    ax.set_ylabel(f"test {metric}")
    ax.legend()


def figure_png(figure: Any) -> bytes:
    """A matplotlib figure as the contents of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
