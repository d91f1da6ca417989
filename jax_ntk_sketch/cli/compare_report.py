"""The report of `compare`, from its JSON: tables, Markdown and a plot."""

import io
from collections.abc import Sequence

from jax_ntk_sketch import validation
from jax_ntk_sketch._units import format_bytes
from jax_ntk_sketch.cli.report import Json, markdown_table, strict_json
from jax_ntk_sketch.validation.report import Comparison, Estimate

_ERRORS = ("kernel error", "centered", "spectral", "test error", "distance")
_COSTS = ("rows/s", "memory", "compile s", "features s", "fit s")


def tables(content: Json) -> str:
    """Return a Markdown table of errors, references first, and one of costs."""
    lines: list[Json] = [
        {"method": name, "test error": f"{content[f'{name}_error']:.4g}"}
        for name in ("constant", "inputs")
    ]
    if (exact := content["exact"]) is not None:
        error = f"{exact['error']:.4g}"
        times = _seconds(exact["seconds"])
        lines.append({"method": _exact(content), "test error": error, **times})
    for row in content["rows"]:
        line: Json = {"method": row["method"], "features": row["num_features"]}
        line |= _seconds(row["seconds"]) | {"test error": Estimate(row["test_error"])}
        line |= {"rows/s": f"{row['rows_per_second']:.0f}"}
        line |= {"memory": format_bytes(row["bytes"])}
        if row["distance"]:
            line["distance"] = Estimate(row["distance"])
        if errors := row["kernel_error"]:
            names = zip(_ERRORS, ("relative", "centered", "spectral"), strict=False)
            line |= {title: Estimate(errors[name]["values"]) for title, name in names}
        lines.append(line)
    parts = []
    for columns in (_ERRORS, _COSTS):
        header = ["method", "features", *columns]
        shown = [line for line in lines if not line.keys().isdisjoint(columns)]
        cells = [[line.get(name, "") for name in header] for line in shown]
        parts.append(markdown_table(header, cells))
    return "\n\n".join(parts)


def _seconds(seconds: dict[str, float]) -> dict[str, str]:
    return {f"{name} s": f"{value:.2f}" for name, value in seconds.items()}


def legend(content: Json) -> str:
    """Return a list of the meaning of the columns of the tables."""
    lines = [
        f"test error: the {content['metric']} of ridge regression on the "
        f"{content['data']['num_test']} test rows. Held-out training rows choose the "
        "penalty.",
        "constant, inputs: the best constant prediction, and regression on the inputs.",
    ]
    if content["exact"] is not None:
        lines += [
            f"{_exact(content)}: exact regression with the kernel.",
            "distance: between the predictions and those of exact regression, relative "
            "to the norm of these.",
        ]
    if content["rows"][0]["kernel_error"]:
        lines += [
            "kernel error: the relative Frobenius error of the kernel matrix of "
            f"{content['num_compare']} training rows.",
            "centered: the same after double centering.",
            "spectral: the smallest e with (1-e)(K+L) <= K_hat+L <= (1+e)(K+L), where "
            "L is the penalty.",
        ]
    if (draws := content["options"]["num_seeds"]) > 1:
        lines.append(f"±: the standard error of {draws} draws.")
    lines += [
        "memory: the parameters and one example.",
        "features s: the features of all rows, or the exact kernel with compilation.",
        "fit s: choosing the penalty and solving.",
    ]
    return "\n".join(f"- {line}" for line in lines)


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
    missing = "There is no plot, because matplotlib is not installed."
    picture = "![kernel error and test error](report.png)" if plot else missing
    options, versions = content["options"], content["environment"].items()
    parts = [
        f"# `{options['network']}` on {content['data']['name']}",
        heading,
        *content["notes"],
        tables(content),
        legend(content),
        picture,
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
        sizes = [row["num_features"] for row in line]
        errors = [Estimate(row["test_error"]) for row in line]
        means = [error.mean for error in errors]
        bars = [error.standard_error or 0.0 for error in errors]
        right.errorbar(sizes, means, bars, fmt=".-", capsize=3, label=method)
    if content["exact"] is not None:
        level = content["exact"]["error"]
        right.axhline(level, color="black", ls="--", label=_exact(content))
    right.set_xscale("log", base=2)
    ylabel = f"test error ({content['metric']})"
    right.set(xlabel="num_features", ylabel=ylabel)
    # Below the axes, where it covers nothing.
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
