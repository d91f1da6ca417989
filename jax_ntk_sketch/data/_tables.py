"""Tables with a row for each example, read by pandas."""

import csv
import os
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jax_ntk_sketch.data._dataset import Arrays, check_finite, existing_file
from jax_ntk_sketch.data._text_tables import read_text_table

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
      path: CSV or another text table, plain or `.gz`, separated by commas, semicolons,
        tabs, bars or spaces, with or without a line of names; or Parquet or Feather,
        which need pyarrow. Text is UTF-8, or else UTF-16 or Latin-1. Comments before
        the table begin with #. Decimal commas are read where cells are not separated by
        commas.
      target: the name of the target column, or its index, negative from the end; None
        where there is no target. Names that are numbers are known by it.
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
    frame, notes = _read_frame(path, target, columns)
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


def _read_frame(
    path: pathlib.Path, target: str | int | None, columns: Sequence[str] | None
) -> tuple["pandas.DataFrame", list[str]]:
    """Return all columns with their names as text, and notes."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"{path}: tables are read by pandas, which is not installed; "
            'pip install "jax_ntk_sketch[tables]"'
        ) from error
    readers = {".parquet": pandas.read_parquet, ".feather": pandas.read_feather}
    notes: list[str] = []
    try:
        if _kind(path) in _TEXT:
            frame, notes = read_text_table(path, target, columns)
        else:
            frame = readers[_kind(path)](path)
    except (ValueError, EOFError, OSError, zlib.error, csv.Error) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    if len(frame.columns) > 1 and frame.columns[0] in ("", "Unnamed: 0"):
        # Spreadsheets and `DataFrame.to_csv` write row numbers without a name.
        frame = frame.iloc[:, 1:]
        notes.append("the first column, which has no name, was left out")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice) or not len(frame):
        wrong = f"several columns are called {_listing(twice)}"
        raise ValueError(f"{path}: {wrong if len(twice) else 'the table has no rows'}")
    return frame, notes


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
        comma = re.fullmatch(r"[+-]?\d+,\d+", str(cell)) is not None
        raise ValueError(
            f"{path}: row {row}, column {name!r} is {shown}, expected a number; "
            f"convert or remove the {bad.sum() or len(column)} rows with such cells"
            + "; write numbers with decimal points"
            * comma
        )
    return numbers.to_numpy(np.float64)


def _targets(column: "pandas.Series", name: str, path: pathlib.Path) -> np.ndarray:
    """Return integers, floats or text.

    Raises:
      ValueError: a target is missing, or is text where most are numbers.
    """
    import pandas

    missing = np.asarray(column.isna())
    if missing.any():
        row = int(np.argmax(missing))
        raise ValueError(
            f"{path}: row {row} has no target, column {name!r}: it is empty, or a word "
            "for a missing number such as NA"
        )
    y = np.array(column.tolist())
    if y.dtype.kind != "U":
        return y
    y = np.char.strip(y)
    numbers = np.asarray(pandas.to_numeric(pandas.Series(y), errors="coerce").notna())
    if 1 > numbers.mean() >= 0.5:
        row = int(np.argmin(numbers))
        raise ValueError(
            f"{path}: row {row}, column {name!r} is {str(y[row])!r}, expected a number "
            "as in other rows; repair the cell, or name all classes by words"
        )
    return y


def _listing(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
