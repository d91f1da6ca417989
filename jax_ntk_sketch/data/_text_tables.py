"""Text tables as people write them: encodings, separators, comments, headers."""

import csv
import gzip
import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas

_SEPARATORS = ";\t|,"
# The lines by which a table is judged.
_LINES = 100
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_DECIMAL_POINT = re.compile(r"[+-]?\d*\.\d+")
_BINARY = {
    b"PK\x03\x04": "an archive or an Excel file",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"PAR1": "a Parquet file",
}


class _Form(NamedTuple):
    """How a text table is written.

    Attributes:
      options: the options of `pandas.read_csv`.
      names: the names of the columns, None if there are none.
      notes: phrases on what is unusual.
    """

    options: dict[str, Any]
    names: list[str] | None
    notes: list[str]


def read_text_table(
    path: pathlib.Path, target: str | int | None, columns: Sequence[str] | None
) -> tuple["pandas.DataFrame", list[str]]:
    """Return the columns of a text table, and phrases on what is unusual.

    Args:
      path: the file, plain or compressed by gzip, whatever its name.
      target: the target column. Numbers in the first line are names if it is one of
        them.
      columns: the columns that are wanted. Numbers in the first line are names, too, if
        these are among them.

    Raises:
      ValueError, EOFError, OSError: the file is not a text table.
    """
    import pandas

    names = set(columns or ()) - {str(i) for i in range(len(columns or ()))}
    try:
        form = _find_form(path, target, names, "utf-8-sig")
        frame = pandas.read_csv(path, **form.options)
    except UnicodeDecodeError:
        form = _find_form(path, target, names, "latin-1")
        frame = pandas.read_csv(path, **form.options)
        form.notes.append("the text is not UTF-8, and was read as Latin-1")
    if form.names is not None:
        if len(form.names) != len(frame.columns):
            raise ValueError(
                f"the first line has {len(form.names)} names, the next one "
                f"{len(frame.columns)} cells"
            )
        frame.columns = form.names
    empty = frame.isna().all(axis=1).to_numpy()
    if len(frame.columns) > 1 and empty.any():
        form.notes.append(f"empty rows were left out, {empty.sum()} of them")
        # Again, so that integers are not floats for the sake of the empty rows.
        again = pandas.read_csv(path, dtype_backend="numpy_nullable", **form.options)
        frame = again.set_axis(frame.columns, axis=1)[~empty]
    unnamed = form.names is None or frame.columns[-1] == ""
    if len(frame.columns) > 1 and unnamed and frame.iloc[:, -1].isna().all():
        # After a separator at the end of each line.
        frame = frame.iloc[:, :-1]
        form.notes.append("the last column, which is empty, was left out")
    return frame, form.notes


def _find_form(
    path: pathlib.Path, target: str | int | None, wanted: set[str], encoding: str
) -> _Form:
    with path.open("rb") as file:
        start = file.read(4)
    for magic, kind in _BINARY.items():
        if start == magic:
            raise ValueError(f"it is {kind}, whatever its name; save it as CSV")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    packed = start[:2] == b"\x1f\x8b"
    with _open(path, packed, encoding) as file:
        comment, skip, lines = _first_lines(file)
    if not lines:
        raise ValueError("it is empty")
    separator = _separator(lines)
    rows = [_cells(line, separator) for line in lines]
    first, second = rows[0], rows[min(1, len(rows) - 1)]
    names: list[str] | None = None
    numeric = bool(wanted) and wanted <= set(first)
    if numeric or _are_names(first, second) or _is_numeric_name(target, first):
        names, skip = first, skip + 1
        if len(second) == len(first) + 1 and not second[-1]:
            names = [*first, ""]  # a separator at the end of each line
        elif len(second) == len(first) + 1 and _are_row_names(rows[1:]):
            names = ["", *first]
    elif comment and len(words := _cells(comment, separator)) == len(first):
        names = words
    cells = [cell for row in rows for cell in row]
    commas = separator != "," and any(map(_DECIMAL_COMMA.fullmatch, cells))
    commas = commas and not any(map(_DECIMAL_POINT.fullmatch, cells))
    options: dict[str, Any] = {
        "header": None,
        "sep": separator,
        "skipinitialspace": True,
        "skiprows": skip,
        "encoding": encoding,
        "compression": "gzip" if packed else None,
        "decimal": "," if commas else ".",
        "low_memory": False,
    }
    if names is not None and len(rows) == 1:
        options["names"] = range(len(names))  # there are no rows
    return _Form(options, names, ["numbers have decimal commas"] * commas)


def _open(path: pathlib.Path, packed: bool, encoding: str) -> IO[str]:
    if packed:
        return gzip.open(path, "rt", encoding=encoding)
    return path.open(encoding=encoding)


def _first_lines(file: IO[str]) -> tuple[str, int, list[str]]:
    """Return the last comment before the table, its place, and its first lines."""
    comment, lines = "", enumerate(file)
    for number, line in lines:
        if line.startswith("#"):
            comment = line.lstrip("# ").strip()
        elif line.strip():
            rest = [text for _, text in itertools.islice(lines, _LINES) if text.strip()]
            return comment, number, [line, *rest]
    return comment, 0, []


def _separator(lines: Sequence[str]) -> str:
    """Return the separator of cells: one of some characters, or any spaces."""
    first, second = lines[0], lines[min(1, len(lines) - 1)]
    for separator in _SEPARATORS:
        if 0 < first.count(separator) == second.count(separator):
            return separator
    separator = max(_SEPARATORS, key=first.count)
    return separator if separator in first else r"\s+"


def _cells(line: str, separator: str) -> list[str]:
    if separator == r"\s+":
        return line.split()
    text = [line.rstrip("\r\n")]
    cells = next(csv.reader(text, delimiter=separator, skipinitialspace=True), [])
    return [cell.strip() for cell in cells]


def _are_names(first: list[str], second: list[str]) -> bool:
    """Return whether the first row holds names.

    None of its cells is a number, or text stands above a number.
    """
    above, below = ([_is_number(cell) for cell in row] for row in (first, second))
    return not any(above) or any(
        cell and not number and under
        for cell, number, under in zip(first, above, below, strict=False)
    )


def _are_row_names(rows: list[list[str]]) -> bool:
    """Return whether the first cells count the rows, or none of them is a number."""
    cells = [row[0] for row in rows]
    counts = any(
        cells == [str(start + i) for i in range(len(cells))] for start in (0, 1)
    )
    return counts or not any(map(_is_number, cells))


def _is_numeric_name(target: str | int | None, first: list[str]) -> bool:
    """Return whether the target is a cell of the first row, and no index of one."""
    if target is None or str(target) not in first:
        return False
    try:
        return not -len(first) <= int(target) < len(first)
    except ValueError:
        return True


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True
