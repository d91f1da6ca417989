"""Parts of reports: tables, environment, and files that a failure leaves whole."""

import argparse
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

import jax_ntk_sketch
from jax_ntk_sketch._files import atomic_write
from jax_ntk_sketch.data import Dataset

# The content of a report, as JSON has it.
Json: TypeAlias = dict[str, Any]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, aligned so that it reads as plain text too.

    >>> from jax_ntk_sketch.cli.report import markdown_table
    >>> print(markdown_table(["m", "error"], [[16, 0.25], [256, 0.0625]]))
    | m   | error  |
    | --- | ------ |
    | 16  | 0.25   |
    | 256 | 0.0625 |
    """
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    )


def describe(data: Dataset) -> str:
    """Return a sentence on the data and on the steps that were applied to them."""
    notes = "".join(f"; {note}" for note in data.notes)
    return (
        f"Data: {data.name}, {data.task}, {len(data.x_train)} training and "
        f"{len(data.x_test)} test rows of shape {data.x_train.shape[1:]}{notes}."
    )


def summary(data: Dataset, args: argparse.Namespace) -> Json:
    """Return the data, the options, the versions and the device of a report."""
    about: Json = {name: getattr(data, name) for name in ("name", "task", "notes")}
    about |= {"num_train": len(data.x_train), "num_test": len(data.x_test)}
    return {
        "data": {**about, "example_shape": data.x_train.shape[1:]},
        "options": {name: value for name, value in vars(args).items() if name != "run"},
        "environment": {
            "jax_ntk_sketch": jax_ntk_sketch.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "device": jax.devices()[0].device_kind,
        },
    }


def strict_json(content: Json) -> str:
    """Return readable JSON without NaN or infinity."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_files(
    folder: pathlib.Path, files: Mapping[str, bytes | str]
) -> list[pathlib.Path]:
    """Write files, name to contents, into a folder and return their paths.

    Raises:
      OSError: the disk refuses; the files that were there before are whole.
    """
    for name, contents in files.items():
        with atomic_write(folder / name) as file:
            file.write(contents.encode() if isinstance(contents, str) else contents)
    return [folder / name for name in files]
