"""Errors with error bars: as text, Markdown, JSON and plots."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_ntk_sketch._files import atomic_write
from jax_ntk_sketch.validation.measures import loglog_slope

__all__ = [
    "Comparison",
    "Estimate",
    "KernelErrors",
    "markdown_table",
    "plot_comparisons",
]

_TITLES = {
    "relative": "relative",
    "centered": "centered",
    "max_abs": "largest entry",
    "spectral": "spectral",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its standard error.

    Args:
      values: one finite number per seed.

    >>> Estimate((1.0, 2.0, 3.0)).mean, str(Estimate((1.0, 2.0, 3.0)))
    (2.0, '2.0 ± 0.6')
    >>> str(Estimate((0.25,)))
    '0.25'
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        values = tuple(map(float, self.values))
        if not values or not all(map(math.isfinite, values)):
            raise ValueError(f"Estimate: values must be finite numbers, got {values}")
        object.__setattr__(self, "values", values)

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.values))

    @property
    def standard_error(self) -> float | None:
        """The mean's standard error; None with one seed, which does not tell it."""
        count = len(self.values)
        return float(np.std(self.values, ddof=1)) / count**0.5 if count > 1 else None

    def __str__(self) -> str:
        error = self.standard_error
        if not error or error < 1e-12 * abs(self.mean):  # equal but for rounding
            return f"{self.mean:.4g}"
        if max(abs(self.mean), error) < 1e-4:
            return f"{self.mean:.1e} ± {error:.0e}"
        # One digit of the error, and the mean's decimals down to it.
        places = min(max(-int(f"{error:.0e}".partition("e")[2]), 0), 6)
        return f"{self.mean:.{places}f} ± {error:.{places}f}"


@dataclasses.dataclass(frozen=True)
class KernelErrors:
    """The errors of one kernel; see `jax_ntk_sketch.validation.measures`.

    Attributes:
      relative: relative Frobenius error.
      centered: the same of the doubly centred kernels.
      max_abs: largest entry error over the largest entry.
      spectral: the least ε with (1-ε)(K+λI) ⪯ K_hat+λI ⪯ (1+ε)(K+λI), λ = reg n.
    """

    relative: Estimate
    centered: Estimate
    max_abs: Estimate
    spectral: Estimate


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` returns: errors of a feature map, by kernel.

    Attributes:
      num_features: columns of the features.
      num_examples: rows n compared on.
      num_seeds: independent draws of the features.
      reg: penalty per example of the spectral error.
      ntk, nngp: `KernelErrors`, or None if not asked for.
      label: a name for tables and plots.

    >>> four = KernelErrors(*[Estimate((0.1, 0.2))] * 4)
    >>> report = Comparison(64, 10, 2, 1e-3, ntk=four, label="sketch")
    >>> Comparison.from_json(report.to_json()) == report
    True
    """

    num_features: int
    num_examples: int
    num_seeds: int
    reg: float
    ntk: KernelErrors | None = None
    nngp: KernelErrors | None = None
    label: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kernels compared, among "ntk" and "nngp"."""
        return tuple(k for k in ("ntk", "nngp") if getattr(self, k) is not None)

    def __str__(self) -> str:
        """An aligned table, a line per kernel."""
        rows = _rows([self])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in rows
        ]
        return "\n".join([line.rstrip() for line in lines] + [_note([self])])

    def to_markdown(self) -> str:
        """A Markdown table, a line per kernel."""
        return markdown_table([self])

    def to_json(self) -> str:
        """Strict JSON; besides the values of every seed, their mean and error."""
        data = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        for kind in self.kinds:
            data[kind] = {
                name: {
                    "mean": estimate.mean,
                    "standard_error": estimate.standard_error,
                    "values": list(estimate.values),
                }
                for name, estimate in vars(data[kind]).items()
            }
        return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Comparison":
        """Reads what `to_json` wrote.

        Raises:
          ValueError: the text is not JSON, or not of a comparison.
        """
        data = json.loads(text)
        try:
            for kind in ("ntk", "nngp"):
                if data[kind] is not None:
                    data[kind] = KernelErrors(
                        **{
                            name: Estimate(tuple(item["values"]))
                            for name, item in data[kind].items()
                        }
                    )
            return cls(**data)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"from_json: not a comparison: {error!r}") from error

    def plot(self, target: Any = None) -> Any:
        """Draws every error with its standard error, on a logarithmic axis.

        Args:
          target: a path to write (PNG, PDF, SVG by its suffix), matplotlib axes to
            draw on, or None for new axes.

        Returns:
          The matplotlib axes.

        Raises:
          ImportError: matplotlib is missing.
        """

        def draw(ax: Any) -> None:
            places = np.arange(len(_TITLES))
            for i, kind in enumerate(self.kinds):
                estimates = [getattr(getattr(self, kind), name) for name in _TITLES]
                shift = 0.1 * (i - (len(self.kinds) - 1) / 2)
                _error_bars(ax, places + shift, estimates, fmt=".", label=kind)
            ax.set_yscale("log")
            ax.set_xticks(places, list(_TITLES.values()))
            ax.set_ylabel("error")
            name = f"{self.label}, " if self.label else ""
            ax.set_title(f"{name}{self.num_features} features")
            ax.legend()

        return _draw(draw, target)


def markdown_table(comparisons: Sequence[Comparison]) -> str:
    """A Markdown table of several comparisons, a line per comparison and kernel.

    Raises:
      ValueError: no comparisons.
    """
    head, *rows = _rows(comparisons)
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{_note(comparisons)}\n"


def plot_comparisons(
    comparisons: Sequence[Comparison],
    target: Any = None,
    *,
    kind: str = "ntk",
    measure: str = "relative",
) -> Any:
    """Draws an error against num_features, log-log, a line per label.

    The legend gives each line's fitted slope (see `loglog_slope`).

    Args:
      comparisons: at several `num_features`, told apart by `label`.
      target: a path to write, matplotlib axes, or None for new axes.
      kind: "ntk" or "nngp".
      measure: "relative", "centered", "max_abs" or "spectral".

    Returns:
      The matplotlib axes.

    Raises:
      ValueError: an unknown `measure`, or no comparison of this kind.
      ImportError: matplotlib is missing.
    """
    if measure not in _TITLES:
        raise ValueError(
            f"plot_comparisons: measure must be among {tuple(_TITLES)}, got {measure!r}"
        )
    chosen = [c for c in comparisons if kind in c.kinds]
    if not chosen:
        raise ValueError(f"plot_comparisons: no comparison of kind {kind!r}")

    def draw(ax: Any) -> None:
        for label in dict.fromkeys(c.label for c in chosen):
            line = sorted(
                (c for c in chosen if c.label == label), key=lambda c: c.num_features
            )
            sizes = [c.num_features for c in line]
            estimates = [getattr(getattr(c, kind), measure) for c in line]
            means = [estimate.mean for estimate in estimates]
            name = label or kind
            if len(set(sizes)) > 1 and min(means) > 0:
                name += f" (slope {loglog_slope(sizes, means):.2f})"
            _error_bars(ax, sizes, estimates, fmt=".-", label=name)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ticks = sorted({c.num_features for c in chosen})
        ax.set_xticks(ticks, list(map(str, ticks)))
        ax.set_xlabel("num_features")
        ax.set_ylabel(f"{_TITLES[measure]} error of the {kind.upper()}")
        ax.legend()

    return _draw(draw, target)


def _rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    if not comparisons:
        raise ValueError("there are no comparisons to tabulate")
    labelled = any(c.label for c in comparisons)
    rows = [["method"] * labelled + ["num_features", "kernel", *_TITLES.values()]]
    for c in comparisons:
        for kind in c.kinds:
            cells = [str(getattr(getattr(c, kind), name)) for name in _TITLES]
            # A bar in a label would end its Markdown cell.
            label = [c.label.replace("|", "/")] * labelled
            rows.append([*label, str(c.num_features), kind, *cells])
    return rows


def _note(comparisons: Sequence[Comparison]) -> str:
    def both(name: str) -> str:
        return "/".join(
            dict.fromkeys(format(getattr(c, name), "g") for c in comparisons)
        )

    seeds = both("num_seeds")
    error = "no standard error" if seeds == "1" else "mean ± standard error"
    return (
        f"{both('num_examples')} examples; {error} over {seeds} "
        f"seed{'s' * (seeds != '1')}; spectral error at reg = {both('reg')}."
    )


def _error_bars(ax: Any, x: Any, estimates: Sequence[Estimate], **style: Any) -> None:
    means = [estimate.mean for estimate in estimates]
    bars = [estimate.standard_error or 0.0 for estimate in estimates]
    ax.errorbar(x, means, yerr=bars, capsize=3, **style)


def _draw(draw: Any, target: Any) -> Any:
    """Calls `draw` on axes; writes them if `target` is a path."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'Plots need matplotlib: pip install "jax_ntk_sketch[plots]"'
        ) from error
    if target is not None and not isinstance(target, str | os.PathLike):
        draw(target)
        return target
    # A Figure of its own, so that pyplot's global list does not keep it alive.
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.add_subplot()
    draw(ax)
    if target is not None:
        path = pathlib.Path(target)
        with atomic_write(path) as file:
            figure.savefig(file, format=path.suffix[1:] or "png", dpi=150)
    return ax
