"""`Weighed`: the maps that were weighed for a sample, and how they did."""

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Any

from jax_ntk_sketch._protocol import FeatureMap

_HEAD = ("map", "loss", "over chosen", "flops per example", "seconds")


@dataclasses.dataclass(frozen=True)
class WeighedMap:
    """One map that was weighed.

    Attributes:
      name: what it is, in a few words.
      fmap: the map; None if it cannot have that many columns.
      loss: its loss on the sample, the smaller the better; NaN if it has none.
      flops: operations for the features of one example.
      seconds: what learning it and its features took.
      why_not: why there is no loss; "" if there is one.
    """

    name: str
    fmap: FeatureMap | None
    loss: float
    flops: float
    seconds: float
    why_not: str = ""


@dataclasses.dataclass(frozen=True)
class Weighed:
    """What `weigh` returns; `print` shows a table.

    Attributes:
      maps: the maps that were weighed, those of the smallest loss first.
      chosen: the one that `choose` returns: the cheapest whose loss is hardly larger
        than the smallest one.
      measure: what the loss is.
      num_fitted, num_held_out, num_columns: the rows and columns of the comparison,
        which are fewer than those of the chosen map if the sample is small or large.
      penalty: the penalty over the mean diagonal of the kernel, where there is one.
    """

    maps: tuple[WeighedMap, ...]
    chosen: WeighedMap
    measure: str
    num_fitted: int
    num_held_out: int
    num_columns: int
    penalty: float | None = None

    @classmethod
    def of(cls, entries: Sequence[WeighedMap], hardly: float, **how: Any) -> "Weighed":
        """Return the entries in order, and the cheapest of the best.

        Args:
          entries: the maps that were weighed.
          hardly: the factor by which a loss is hardly larger than the smallest one.
          how: the other attributes.

        Raises:
          ValueError: no entry has a loss.
        """
        known = [entry for entry in entries if math.isfinite(entry.loss)]
        if not known:
            reasons = "; ".join(dict.fromkeys(entry.why_not for entry in entries))
            raise ValueError(f"choose: no map supports this network: {reasons}")
        least = min(entry.loss for entry in known)
        good = [entry for entry in known if entry.loss <= hardly * least]
        chosen = min(good, key=lambda entry: entry.flops)
        known.sort(key=lambda entry: entry.loss)
        others = [entry for entry in entries if entry not in known]
        return cls((*known, *others), chosen, **how)

    @property
    def fmap(self) -> FeatureMap:
        """The map that is chosen."""
        assert self.chosen.fmap is not None
        return self.chosen.fmap

    def _rows(self) -> list[tuple[str, ...]]:
        """Return the cells of the table, the names of the columns first."""
        rows: list[tuple[str, ...]] = [_HEAD]
        for entry in self.maps:
            name, numbers = f"{entry.name}: {entry.why_not}", ("", "", "", "")
            if not entry.why_not:
                name = entry.name + (" (chosen)" if entry is self.chosen else "")
                ratio = entry.loss / (self.chosen.loss or math.nan)
                loss, flops = f"{entry.loss:.4g}", f"{entry.flops:.2g}"
                numbers = loss, f"{ratio:.2f}", flops, f"{entry.seconds:.1f}"
            rows.append((name, *numbers))
        return rows

    def __str__(self) -> str:
        rows = self._rows()
        # The reason why a map has no loss may be long, and stands alone in its row.
        full = [row for row in rows if row[1]]
        widths = [max(map(len, column)) for column in zip(*full, strict=True)]
        lines = [self._caption()]
        for name, *numbers in rows:
            cells = [name.ljust(widths[0])]
            cells += map(str.rjust, numbers, widths[1:])
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def _caption(self) -> str:
        at = "" if self.penalty is None else f", penalty {self.penalty:.2g}"
        return (
            f"loss: {self.measure}; {self.num_columns} columns, {self.num_fitted} "
            f"examples to fit, {self.num_held_out} held out{at}"
        )

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{inner}</tr>"

        head, *rows = self._rows()
        body = "".join(row(cells, "td") for cells in rows)
        caption = f"<caption>{html.escape(self._caption())}</caption>"
        return f"<table>{caption}{row(head, 'th')}{body}</table>"
