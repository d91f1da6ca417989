"""Tables as rows of numbers: levels as one-hot codes, and missing cells."""

import dataclasses
import datetime
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._arrays import listing, one_array, table_columns, to_numpy
from jax_ntk_sketch._typing import Examples

# What happens to cells without a value.
Missing: TypeAlias = Literal["raise", "impute"]

# A column of text with more levels than this is a name or a note, and not a category.
_MOST_LEVELS = 1000

_NO_VALUE = ("nan", "None", "NaT", "<NA>")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      name: its name, or its number as text.
      levels: what its cells say, in order; None for numbers.
      fill: the number in place of a missing one; None where none may be missing.
    """

    name: str
    levels: tuple[str, ...] | None = None
    fill: float | None = None

    @property
    def width(self) -> int:
        """The number of columns of numbers."""
        return 1 if self.levels is None else len(self.levels)

    @classmethod
    def learned(cls, name: str, cells: NDArray, missing: Missing) -> "Column":
        """Return the column of training rows.

        Raises:
          TypeError: the cells are dates, or neither numbers nor text.
          ValueError: a cell is missing and `missing` is "raise"; no cell has a value;
            or there are too many levels.
        """
        _check_no_dates(name, cells)
        absent = _is_missing(cells)
        if absent.any():
            row, count = int(np.flatnonzero(absent)[0]), int(absent.sum())
            if missing == "raise":
                raise ValueError(
                    f"fit: column {name!r} of x must have no missing cells, got {count}"
                    f', the first one in row {row}; give missing="impute", or leave '
                    "the column out"
                )
            if count == len(cells):
                raise ValueError(
                    f"fit: column {name!r} of x must have values, but all its cells "
                    "are missing; leave it out"
                )
        if _are_numbers(cells, absent):
            values = cells[~absent].astype(np.float64)
            fill = float(np.median(values)) if missing == "impute" else None
            return cls(name, None, fill)
        levels = tuple(sorted({str(cell) for cell in cells[~absent]}))
        if len(levels) > min(_MOST_LEVELS, max(20, len(cells) // 2)):
            raise ValueError(
                f"fit: column {name!r} of x must be numbers or categories, got "
                f"{len(levels)} different texts in {len(cells)} rows; leave it out, or "
                "encode it as numbers"
            )
        return cls(name, levels, 0.0 if missing == "impute" else None)

    def numbers(self, owner: str, cells: NDArray) -> NDArray:
        """Return the cells as numbers (n, width), float64.

        Raises:
          TypeError: text is where numbers were.
          ValueError: a cell is missing, and was not imputed in training.
        """
        absent = _is_missing(cells)
        if absent.any() and self.fill is None:
            raise ValueError(
                f"{owner}: column {self.name!r} of x must have no missing cells, got "
                f'one in row {int(np.flatnonzero(absent)[0])}; fit with missing="impute'
                '" to replace them'
            )
        if self.levels is None:
            if not _are_numbers(cells, absent):
                raise TypeError(
                    f"{owner}: column {self.name!r} of x must hold numbers, as in "
                    f"training, got {_first_text(cells, absent)!r}"
                )
            out = np.full(len(cells), self.fill or 0.0)
            out[~absent] = cells[~absent].astype(np.float64)
            return out[:, None]
        known = np.array(self.levels, str)
        texts = np.array([str(cell) for cell in cells])
        place = np.minimum(np.searchsorted(known, texts), len(known) - 1)
        same = (known[place] == texts) & ~absent
        if (unknown := set(texts[~same & ~absent].tolist())) and owner != "fit":
            warnings.warn(
                f"{owner}: column {self.name!r} of x has levels that training had not, "
                f"{listing(sorted(unknown))}; they count as none of those it had",
                RuntimeWarning,
                stacklevel=4,
            )
        codes = np.zeros((len(cells), len(known)))
        codes[np.flatnonzero(same), place[same]] = 1
        return codes


@dataclasses.dataclass(frozen=True)
class Table:
    """The columns of the training rows; called, it makes numbers of other rows.

    Attributes:
      columns: in their order.
      named: whether the columns of a table are found by their names.
    """

    columns: tuple[Column, ...]
    named: bool

    @property
    def width(self) -> int:
        """The number of columns of numbers."""
        return sum(column.width for column in self.columns)

    @classmethod
    def learned(cls, x: Examples, missing: Missing) -> "Table | None":
        """Return the columns of training rows, or None for plain arrays of numbers.

        Raises:
          TypeError, ValueError: as `Column.learned`.
        """
        found = _cells(x)
        if found is None:
            return None
        names, columns = found
        plain = all(column.dtype.kind in "biuf" for column in columns)
        named = table_columns(x) is not None
        if plain and not named and missing == "raise":
            return None
        learned = [
            Column.learned(str(name), cells, missing)
            for name, cells in zip(names, columns, strict=True)
        ]
        return cls(tuple(learned), named)

    def __call__(self, owner: str, x: Examples) -> NDArray:
        """Return the rows of a table or an array as numbers (n, width), float64.

        Raises:
          TypeError, ValueError: a column is missing, or as `Column.numbers`.
        """
        names = [column.name for column in self.columns]
        found = _cells(x)
        if found is None:
            raise TypeError(
                f"{owner}: x must be a table or an array (n, {len(names)}), as in "
                f"training, got shape {np.shape(x)}"
            )
        given, cells = [str(name) for name in found[0]], found[1]
        if self.named and table_columns(x) is not None:
            absent = [name for name in names if name not in given]
            if absent:
                raise ValueError(
                    f"{owner}: x must have the columns that the model was fitted to, "
                    f"{listing(names)}, got a table without {listing(absent)}"
                )
            cells = [cells[given.index(name)] for name in names]
        elif len(cells) != len(names):
            raise ValueError(
                f"{owner}: x must have {len(names)} columns, got {len(cells)}"
            )
        parts = [
            column.numbers(owner, column_cells)
            for column, column_cells in zip(self.columns, cells, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def sentences(self) -> list[str]:
        """Return what was done, in a few sentences."""
        out = []
        coded = [column for column in self.columns if column.levels is not None]
        if coded:
            levels = sum(column.width for column in coded)
            names = listing([column.name for column in coded])
            out.append(f"One-hot codes of {levels} levels stand for {names}.")
        if any(column.fill is not None for column in self.columns):
            out.append("Medians replace missing numbers.")
        return out

    def saved(self) -> dict[str, Any]:
        """Return JSON, which `restored` reads."""
        columns = [dataclasses.asdict(column) for column in self.columns]
        return {"columns": columns, "named": self.named}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "Table":
        """Return the table that `saved` described."""
        columns = [
            Column(c["name"], c["levels"] and tuple(c["levels"]), c["fill"])
            for c in saved["columns"]
        ]
        return cls(tuple(columns), bool(saved["named"]))


def _cells(x: Examples) -> tuple[Sequence[Any], list[NDArray]] | None:
    """Return the names and the cells of the columns; None if x has other axes."""
    found = table_columns(x)
    if found is not None:
        names, columns = found
        texts = map(_texts, columns)
        return names, [
            one_array(column) if cells is None else cells
            for column, cells in zip(columns, texts, strict=True)
        ]
    if isinstance(x, list | tuple):
        array = to_numpy("fit", "x", x)
        # One text makes texts of all numbers beside it.
        x = np.array(x, object) if array.dtype.kind == "U" else array
    if not isinstance(x, np.ndarray) or x.ndim != 2:
        return None
    return range(x.shape[1]), list(x.T)


def _texts(column: Any) -> NDArray | None:
    """Return the cells of a column of categories, whatever they are made of."""
    name = str(getattr(column, "dtype", getattr(column, "type", "")))
    if name.lower().startswith(("categor", "enum", "dictionary")):
        cells = np.empty(len(column), object)
        cells[:] = [None if str(v) in _NO_VALUE else str(v) for v in column.to_numpy()]
        return cells
    return None


def _is_missing(cells: NDArray) -> NDArray:
    if cells.dtype.kind == "f":
        return np.isnan(cells)
    if cells.dtype.kind != "O":
        return np.zeros(len(cells), bool)
    return np.array(
        [not isinstance(v, str) and str(v) in _NO_VALUE for v in cells], bool
    )


def _are_numbers(cells: NDArray, absent: NDArray) -> bool:
    if cells.dtype.kind != "O":
        return cells.dtype.kind in "biuf"
    kinds = int | float | np.number | np.bool_
    return all(isinstance(cell, kinds) for cell in cells[~absent])


def _first_text(cells: NDArray, absent: NDArray) -> str:
    numbers = int | float | np.number
    present = cells[~absent]
    return str(next(v for v in present if not isinstance(v, numbers)))


def _check_no_dates(name: str, cells: NDArray) -> None:
    dates = datetime.date | datetime.timedelta | np.datetime64
    is_object = cells.dtype.kind == "O"
    if cells.dtype.kind in "mM" or (
        is_object and any(isinstance(cell, dates) for cell in cells)
    ):
        raise TypeError(
            f"fit: column {name!r} of x must hold numbers or text, got dates; make "
            "numbers of them, for example the days since the first one, the weekday "
            "and the hour"
        )
