"""Tables with a row for each example, read by pandas."""

import gzip
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_ntk_sketch.data._dataset import Arrays, check_finite, existing_file

if TYPE_CHECKING:
    import pandas

_TEXT = (".csv", ".tsv", ".txt", ".data")


def is_table(path: str | os.PathLike[str]) -> bool:
    """Return whether the name of a file is the name of a table."""
    return _kind(pathlib.Path(path)) in (*_TEXT, ".parquet", ".feather")


def read_table(
    path: str | os.PathLike[str],
    target: str | int | None = None,
    *,
    columns: Sequence[str] | None = None,
) -> Arrays:
    """Return the rows of a table in their order.

    Every column but the target is a feature, and must hold finite numbers.

    Args:
      path: CSV or another text table, UTF-8, plain or `.gz`, separated by commas,
        semicolons, tabs or spaces, with or without a line of names; or Parquet or
        Feather, which need pyarrow.
      target: the name of the target column, or its index, negative from the end; None
        where there is no target.
      columns: the names of the features to read, in this order, as a model was fitted
        to them. Other columns are left out with a note, and `target` need not be
        among the columns.

    Raises:
      ImportError: pandas is not installed, or pyarrow where it is needed.
      FileNotFoundError: there is no such file.
      ValueError: the file is not a table, a column is missing, or a cell is not a
        finite number; the row (from 0) and the column are named.
    """
    path = existing_file(path)
    frame, notes = _read_frame(path)
    names = list(frame.columns)
    if columns is None:
        chosen = None if target is None else _find_column(target, names, path)
        columns = [name for name in names if name != chosen]
    else:
        chosen = str(target) if str(target) in names else None
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(
                f"{path}: the model was fitted to columns that are missing here: "
                f"{_listing(missing)}; the table has {_listing(names)}"
            )
        extra = [name for name in names if name not in (*columns, chosen)]
        if extra:
            notes.append(f"columns left out, unknown to the model: {_listing(extra)}")
    if not columns:
        raise ValueError(f"{path}: there are no columns besides the target {chosen!r}")
    x = np.stack([_numbers(frame[name], name, path) for name in columns], axis=1)
    check_finite(x, str(path), tuple(columns))
    y = None if chosen is None else _targets(frame[chosen], chosen, path)
    about = {"columns": tuple(columns), "target": chosen, "notes": tuple(notes)}
    return Arrays(path.name.split(".")[0], x, y, **about)  # type: ignore[arg-type]


def _kind(path: pathlib.Path) -> str:
    """Return the suffix of a file in lower case, without `.gz`."""
    return pathlib.Path(path.name.lower().removesuffix(".gz")).suffix


def _read_frame(path: pathlib.Path) -> tuple["pandas.DataFrame", list[str]]:
    """Return all columns with their names as text, and notes."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"{path}: tables are read by pandas, which is not installed; "
            'pip install "jax_ntk_sketch[tables]"'
        ) from error
    readers = {".parquet": pandas.read_parquet, ".feather": pandas.read_feather}
    try:
        frame = readers.get(_kind(path), _read_text)(path)
    except (ValueError, EOFError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    notes = []
    if len(frame.columns) > 1 and frame.columns[0] in ("", "Unnamed: 0"):
        # Spreadsheets and `DataFrame.to_csv` write row numbers without a name.
        frame = frame.iloc[:, 1:]
        notes.append("the first column, which has no name, was left out")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice) or not len(frame):
        wrong = f"several columns are called {_listing(twice)}"
        raise ValueError(f"{path}: {wrong if len(twice) else 'the table has no rows'}")
    return frame, notes


def _read_text(path: pathlib.Path) -> "pandas.DataFrame":
    """Return a text table, having found its separator and whether it has names."""
    import pandas

    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        lines = enumerate(file)
        skip, line = next((pair for pair in lines if pair[1].strip()), (0, ""))
    separator = max(",;\t", key=line.count)
    options: dict[str, Any] = {
        "header": None,
        "sep": separator if separator in line else r"\s+",
        "skipinitialspace": True,
        "encoding": "utf-8-sig",
    }
    head = pandas.read_csv(path, nrows=2, dtype=str, keep_default_na=False, **options)
    rows = head.to_numpy().tolist()
    first, second = ([_is_number(cell) for cell in row] for row in (rows[0], rows[-1]))
    # The first row holds names where none of its cells is a number, or where text
    # stands above a number.
    named = not any(first) or any(
        cell.strip() and not above and below
        for cell, above, below in zip(rows[0], first, second, strict=True)
    )
    if not named:
        return pandas.read_csv(path, low_memory=False, **options)
    if len(rows) == 1:
        return head[:0].set_axis(rows[0], axis=1)
    frame = pandas.read_csv(path, low_memory=False, skiprows=skip + 1, **options)
    if len(frame.columns) != len(rows[0]):
        raise ValueError(
            f"the first line has {len(rows[0])} names, the next one "
            f"{len(frame.columns)} cells"
        )
    return frame.set_axis(rows[0], axis=1)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _find_column(target: str | int, names: list[str], path: pathlib.Path) -> str:
    """Return the name of the target column."""
    if str(target) in names:
        return str(target)
    try:
        return names[int(target)]
    except (ValueError, IndexError):
        raise ValueError(
            f"{path}: no column {target!r} for the target; the columns are "
            f"{_listing(names)}"
        ) from None


def _numbers(column: "pandas.Series", name: str, path: pathlib.Path) -> np.ndarray:
    """Return a column as float64.

    Raises:
      ValueError: a cell is empty or is not a number.
    """
    import pandas

    numbers = pandas.to_numeric(column, errors="coerce")
    bad = np.asarray(numbers.isna())
    dates = column.dtype.kind in "mM"
    if dates or bad.any():
        row = int(np.argmax(bad))
        cell = column.iloc[row]
        shown = "empty or NaN" if pandas.isna(cell) else repr(str(cell))
        raise ValueError(
            f"{path}: row {row}, column {name!r} is {shown}, expected a number; "
            f"convert or remove the {bad.sum() or len(column)} rows with such cells"
        )
    return numbers.to_numpy(np.float64)


def _targets(column: "pandas.Series", name: str, path: pathlib.Path) -> np.ndarray:
    """Return integers, floats or text.

    Raises:
      ValueError: a target is missing.
    """
    missing = np.asarray(column.isna())
    if missing.any():
        row = int(np.argmax(missing))
        raise ValueError(f"{path}: row {row} has no target, column {name!r}")
    y = np.array(column.tolist())
    return np.char.strip(y) if y.dtype.kind == "U" else y


def _listing(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
