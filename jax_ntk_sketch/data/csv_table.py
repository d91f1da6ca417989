"""Tables of numbers as text."""

import csv
import os

import numpy as np

from jax_ntk_sketch.data.dataset import Dataset, existing_file, split_dataset

__all__ = ["load_csv", "read_csv"]


def load_csv(
    path: str | os.PathLike,
    target: str | int,
    *,
    header: bool | None = None,
    task: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Reads a table of numbers, separated by commas, semicolons or tabs.

    All columns but the target are features and must be numbers. A target column
    of text holds class names.

    Args:
      path: the file, UTF-8.
      target: name of the target column, or its index from 0; negative ones count
        from the end.
      header: whether the first line holds names; None to tell: it does if none of
        its cells is a number.
      task: "classification" or "regression"; None to tell by the targets: text and
        up to 100 distinct integers are labels.
      test_fraction: part of the rows to test on, in (0, 1).
      seed: of that draw.

    Returns:
      `Dataset` with x of shape (n, columns - 1), float64.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no such column; a cell that is not a finite number, or a row of
        another length, named by line and column.
    """
    x, y = read_csv(path, target, header=header)
    assert y is not None  # a target was given
    name = existing_file(path).stem
    return split_dataset(
        x, y, name=name, task=task, test_fraction=test_fraction, seed=seed
    )


def read_csv(
    path: str | os.PathLike, target: str | int | None, *, header: bool | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """All rows of a table in their order, for `load_csv` and to predict.

    Args:
      path, target, header: as `load_csv`; None as target where there is none.

    Returns:
      x (n, columns - 1) float64 and the targets (n,), integers, floats or text; all
      columns and None where there is no target.

    Raises:
      FileNotFoundError, ValueError: as `load_csv`.
    """
    path = existing_file(path)
    lines, rows = _read(path)
    if header is None:
        header = not any(_is_number(cell) for cell in rows[0])
    width = len(rows[0])
    names = [cell.strip() for cell in rows[0]] if header else None
    if header:
        lines, rows = lines[1:], rows[1:]
    if not rows:
        raise ValueError(f"{path}: a header but no rows")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            raise ValueError(
                f"{path}, line {line}: {len(row)} cells where the first line has "
                f"{width}"
            )
    column = None if target is None else _column(target, names, width, path)
    if column is not None and width < 2:
        raise ValueError(f"{path}: one column only; it needs features and a target")

    def place(row: int, col: int) -> str:
        title = f"column {names[col]!r}" if names else f"column {col}"
        return f"{path}, row {row} (line {lines[row]}), {title}"

    features = [i for i in range(width) if i != column]
    x = np.empty((len(rows), len(features)))
    for i, row in enumerate(rows):
        for k, j in enumerate(features):
            x[i, k] = _number(row[j], place, i, j)
    if column is None:
        return x, None
    return x, _targets([row[column] for row in rows], column, place)


def _read(path) -> tuple[list[int], list[list[str]]]:
    """Line numbers (from 1) and cells of the lines that are not empty."""
    try:
        # utf-8-sig drops the byte-order mark that spreadsheets write.
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter)
            numbered = [(reader.line_num, row) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a text table: {error}") from error
    if not numbered:
        raise ValueError(f"{path} is empty")
    return [line for line, _ in numbered], [row for _, row in numbered]


def _column(target: str | int, names: list[str] | None, width: int, path) -> int:
    """Index of the target column."""
    known = ", ".join(names) if names else f"0..{width - 1} (no header)"
    if names and isinstance(target, str) and target in names:
        if names.count(target) > 1:
            raise ValueError(
                f"{path}: target {target!r} names {names.count(target)} columns; give "
                "an index"
            )
        return names.index(target)
    try:
        index = int(target)
    except ValueError:
        raise ValueError(
            f"{path}: no column {target!r} for target; columns: {known}"
        ) from None
    if not -width <= index < width:
        raise ValueError(
            f"{path}: target {index} is not one of {width} columns: {known}"
        )
    return index % width


def _targets(cells: list[str], column: int, place) -> np.ndarray:
    """Integers, floats, or text where no cell is a number."""
    cells = [cell.strip() for cell in cells]
    if not any(_is_number(cell) for cell in cells) and all(cells):
        return np.array(cells)
    try:
        return np.array([int(cell) for cell in cells], np.int64)
    except (ValueError, OverflowError):
        return np.array([_number(c, place, i, column) for i, c in enumerate(cells)])


def _number(cell: str, place, row: int, col: int) -> float:
    try:
        value = float(cell)
    except ValueError:
        what = repr(cell) if cell.strip() else "empty"
        raise ValueError(f"{place(row, col)} is {what}, expected a number") from None
    if not np.isfinite(value):
        raise ValueError(
            f"{place(row, col)} is {value}; remove or fill such cells first"
        )
    return value


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
