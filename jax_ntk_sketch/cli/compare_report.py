"""The report of `compare`, from its JSON: a table, Markdown and a plot."""

import io
from collections.abc import Sequence

from jax_ntk_sketch import validation
from jax_ntk_sketch._units import format_bytes
from jax_ntk_sketch.cli.report import Json, markdown_table, strict_json
from jax_ntk_sketch.validation.report import Comparison, Estimate


def table(content: Json) -> str:
    """Return a Markdown table, references first."""
    header = [
        "method",
        "features",
        "kernel error",
        "centered",
        "spectral",
        "test error",
    ]
    header += ["distance", "rows/s", "memory", "compile s", "features s", "fit s"]
    lines: list[list[object]] = []
    for name in ("constant", "inputs"):
        lines.append([name, *[""] * 4, f"{content[f'{name}_error']:.4g}", *[""] * 6])
    if (exact := content["exact"]) is not None:
        times = [f"{exact[f'{name}_seconds']:.2f}" for name in ("features", "fit")]
        lines.append(
            [_exact(content), *[""] * 4, f"{exact['error']:.4g}", *[""] * 4, *times]
        )
    for row in content["rows"]:
        errors = row["kernel_error"] or {}
        names = ("relative", "centered", "spectral")
        lines.append(
            [
                row["method"],
                row["num_features"],
                *(Estimate(errors[n]["values"]) if errors else "" for n in names),
                Estimate(row["test_error"]),
                Estimate(row["distance"]) if row["distance"] else "",
                f"{row['rows_per_second']:.0f}",
                format_bytes(row["bytes"]),
                *(f"{row['seconds'][n]:.2f}" for n in ("compile", "features", "fit")),
            ]
        )
    return markdown_table(header, lines)


def legend(content: Json) -> str:
    """Return the meaning of the columns of the table."""
    text = (
        f"Test error: {content['metric']} of ridge regression on the "
        f"{content['data']['num_test']} test rows, with a penalty chosen on held-out "
        "training rows. References: the best constant prediction, and ridge regression "
        "on the inputs."
    )
    if content["exact"] is not None:
        text += (
            f" {_exact(content)}: exact regression with the kernel. Distance: between "
            "predictions and those of exact regression, relative to the norm of these."
        )
    if content["rows"][0]["kernel_error"]:
        text += (
            " Kernel error: relative Frobenius error of the kernel matrix of "
            f"{content['num_compare']} training rows; centered: the same after double "
            "centering; spectral: the smallest e with (1-e)(K+L) <= K_hat+L <= "
            "(1+e)(K+L), where L is the penalty."
        )
    return (
        f"{text} Mean ± standard error of {content['options']['num_seeds']} draws. "
        "Memory: parameters and one example. Features s: of all rows (exact: the "
        "kernel, compiled and run); fit s: choosing the penalty and solving."
    )


def files(
    content: Json, heading: str, comparisons: Sequence[Comparison]
) -> dict[str, bytes | str]:
    """Return the files of the report, name to contents.

    Args:
      content: the report as JSON.
      heading: sentences on the data and the network.
      comparisons: the kernel errors, for the plot.
    """
    plot = _plot(content, comparisons)
    options, versions = content["options"], content["environment"].items()
    parts = [
        f"# `{options['network']}` on {content['data']['name']}",
        heading,
        *content["notes"],
        table(content),
        legend(content),
        "![kernel error and test error](report.png)"
        if plot
        else "There is no plot, because matplotlib is not installed.",
        f"Versions: {', '.join(f'{name} {value}' for name, value in versions)}.",
    ]
    out: dict[str, bytes | str] = {"report.json": strict_json(content)}
    out["report.md"] = "\n\n".join(parts) + "\n"
    return out | ({"report.png": plot} if plot else {})


def _exact(content: Json) -> str:
    return f"exact {content['options']['kernel'].upper()}"


def _plot(content: Json, comparisons: Sequence[Comparison]) -> bytes | None:
    """Return a PNG of errors against num_features; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if comparisons:
        kind = content["options"]["kernel"]
        validation.plot_comparisons(comparisons, left, kind=kind)
    rows = content["rows"]
    for method in dict.fromkeys(row["method"] for row in rows):
        line = [row for row in rows if row["method"] == method]
        errors = [Estimate(row["test_error"]) for row in line]
        right.errorbar(
            [row["num_features"] for row in line],
            [error.mean for error in errors],
            yerr=[error.standard_error or 0.0 for error in errors],
            fmt=".-",
            capsize=3,
            label=method,
        )
    if content["exact"] is not None:
        level = content["exact"]["error"]
        right.axhline(level, color="black", ls="--", label=_exact(content))
    right.set_xscale("log", base=2)
    right.set_xlabel("num_features")
    right.set_ylabel(f"test error ({content['metric']})")
    right.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
