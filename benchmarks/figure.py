"""The README's picture, `error.svg`: kernel error against the number of features.

    python benchmarks/figure.py

It is drawn from the table of `fully_connected.py accuracy` in RESULTS.md, whose digest
the picture contains.
"""

import hashlib

import common
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

PATH = common.FOLDER / "error.svg"
SECTION = "fully_connected-accuracy"
# Methods and their lines. Published figures are gray.
STYLES = {
    "variance_reduced": {"color": "C0"},
    "one_pass": {"color": "C1"},
    "ntk_sketch, best degrees": {"color": "C2"},
    "ntk_random_features": {"color": "C3"},
    "published sketch": {"color": "0.55", "linestyle": "--"},
    "published random features": {"color": "0.55", "linestyle": ":"},
}
DEPTHS = {"1": "one hidden layer", "3": "three hidden layers"}


def rows() -> list[dict[str, str]]:
    """Return the rows of the table of relative errors."""
    return common.read_tables(common.read_section(common.RESULTS, SECTION))[0]


def digest() -> str:
    """Return a digest of the table."""
    return hashlib.sha256(repr(rows()).encode()).hexdigest()[:16]


def main() -> None:
    """Draw `error.svg`."""
    figure, axes = pyplot.subplots(1, 2, figsize=(8.6, 4.2))
    for axis, (depth, title) in zip(axes, DEPTHS.items(), strict=True):
        found = [row for row in rows() if row["depth"] == depth]
        features = [int(row["features"]) for row in found]
        for method, style in STYLES.items():
            errors = [float(row[method]) for row in found]
            axis.plot(features, errors, label=method, marker="o", markersize=4, **style)
        axis.set(xscale="log", yscale="log", title=f"MNIST, {title}")
        axis.set(xlabel="features", ylabel="relative error of the NTK")
        axis.set_xticks(features, map(str, features))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(alpha=0.3, which="both")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3)
    figure.tight_layout(rect=(0, 0.15, 1, 1))
    # Text stays text, and identifiers do not change from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": SECTION}):
        figure.savefig(PATH, metadata={"Description": digest(), "Date": None})


if __name__ == "__main__":
    main()
