"""`plot_comparisons`: errors against the number of features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from jax_ntk_sketch._checks import check_choice
from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch.validation.measures import loglog_slope
from jax_ntk_sketch.validation.report import TITLES, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_comparisons(
    comparisons: Sequence[Comparison],
    axes: "Axes | None" = None,
    *,
    kind: Kind = "ntk",
    measure: Literal["relative", "centered", "max_abs", "spectral"] = "relative",
) -> "Axes":
    """Draw an error against num_features, with a line for each label.

    Both axes are logarithmic. The legend states the slope of each line (see
    `loglog_slope`), and the bars are standard errors.

    Args:
      comparisons: comparisons at several `num_features`; those with the same `label`
        are joined by a line.
      axes: the matplotlib axes to draw on; None for new ones, whose file
        `axes.figure.savefig` writes.
      kind: "ntk" or "nngp".
      measure: "relative", "centered", "max_abs" or "spectral".

    Returns:
      The axes.

    Raises:
      ValueError: the measure is unknown; there is no comparison of this kind.
      ImportError: matplotlib is not installed.
    """
    check_choice("plot_comparisons", "measure", measure, tuple(TITLES))
    chosen = [c for c in comparisons if kind in c.kinds]
    if not chosen:
        raise ValueError(
            f"plot_comparisons: comparisons must hold one of kind {kind!r}, got none"
        )
    axes = _new_axes() if axes is None else axes
    for label in dict.fromkeys(c.label for c in chosen):
        line = sorted(
            (c for c in chosen if c.label == label), key=lambda c: c.num_features
        )
        sizes = [c.num_features for c in line]
        estimates = [getattr(getattr(c, kind), measure) for c in line]
        means = [estimate.mean for estimate in estimates]
        bars = [estimate.standard_error or 0.0 for estimate in estimates]
        name = label or kind
        if len(set(sizes)) > 1 and min(means) > 0:
            name += f" (slope {loglog_slope(sizes, means):.2f})"
        axes.errorbar(sizes, means, yerr=bars, capsize=3, fmt=".-", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({c.num_features for c in chosen})
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.set_xlabel("num_features")
    axes.set_ylabel(f"{TITLES[measure]} error of the {kind.upper()}")
    # Below the axes, where it covers nothing.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    return axes


def _new_axes() -> "Axes":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'plot_comparisons needs matplotlib: pip install "jax_ntk_sketch[plots]"'
        ) from error
    # Outside of pyplot, whose global list would keep the figure alive.
    return Figure(figsize=(6, 4), layout="constrained").add_subplot()
