"""What the main job found: as a table, Markdown, JSON and a figure."""

import dataclasses
import json
from typing import Any

from jax_ntk_sketch import stax, validation
from jax_ntk_sketch.cli.report import (
    Report,
    describe_data,
    draw_scores,
    environment,
    environment_text,
    figure_png,
    markdown_table,
    new_figure,
    strict_json,
)
from jax_ntk_sketch.data import Dataset
from jax_ntk_sketch.validation.report import Comparison, Estimate, KernelErrors

__all__ = ["Outcome", "Row"]

_KEYS = """\
error: of the kernel matrix of {num_compare} training rows against the exact one,
relative Frobenius norm; centred: the same after double centring; spectral: the smallest
e with (1-e)(K+L) <= K_hat+L <= (1+e)(K+L) at L = {reg:.3g} n. {metric}: on the test
rows, of ridge regression whose penalty was chosen on held-out training rows. Mean ±
standard error of {num_seeds} draws. compile: once; features: those of all training and
test rows (exact: the kernel); fit: choosing the penalty and solving."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One feature map.

    Attributes:
      comparison: its kernel errors.
      score: on the test rows, a value per seed.
      reg: the penalty, chosen with the first draw.
      seconds: "compile", "features" and "fit", the latter two means over seeds.
    """

    method: str
    num_features: int
    comparison: Comparison
    score: Estimate
    reg: float
    seconds: dict[str, float]

    @property
    def errors(self) -> KernelErrors:
        """Of the NTK."""
        assert self.comparison.ntk is not None  # asked for by the job
        return self.comparison.ntk


@dataclasses.dataclass(frozen=True)
class Outcome(Report):
    """All that the job found; `exact_*` are of exact NTK regression."""

    data: Dataset
    net: stax.Layer
    kernel_source: str
    metric: str
    baseline: float
    exact_score: float
    exact_reg: float
    exact_seconds: dict[str, float]
    num_compare: int
    rows: tuple[Row, ...]
    options: dict[str, Any]

    def table(self) -> str:
        """A Markdown table, exact regression first."""
        header = ["method", "num_features", "error", "centred", "spectral"]
        header += [self.metric, "compile s", "features s", "fit s"]
        exact = self.exact_seconds
        lines: list[list[Any]] = [
            ["exact NTK", "", "0", "0", "0", f"{self.exact_score:.4g}"]
            + [f"{exact[name]:.2f}" for name in ("compile", "kernel", "fit")]
        ]
        for row in self.rows:
            errors = row.errors
            lines.append(
                [row.method, row.num_features]
                + [errors.relative, errors.centered, errors.spectral, row.score]
                + [
                    f"{row.seconds[name]:.2f}"
                    for name in ("compile", "features", "fit")
                ]
            )
        return markdown_table(header, lines)

    def keys(self) -> str:
        """What the columns of the table mean."""
        return _KEYS.format(
            num_compare=self.num_compare,
            reg=self.exact_reg,
            metric=self.metric,
            num_seeds=self.options["num_seeds"],
        )

    def to_markdown(self, *, with_figure: bool = True) -> str:
        """The report for reading."""
        image = "![error and score](report.png)"
        return (
            "\n\n".join(
                [
                    f"# The NTK of a fully connected network on {self.data.name}",
                    describe_data(self.data),
                    f"Network: `{self.net!r}`. Exact kernel: {self.kernel_source}. "
                    f"{environment_text()}",
                    self.table(),
                    f"{self.keys()} Always guessing the same gives "
                    f"{self.baseline:.4g}.",
                    image if with_figure else "No figure: matplotlib is not installed.",
                ]
            )
            + "\n"
        )

    def to_json(self) -> str:
        """The report for programs; strict JSON."""
        data = self.data
        content = {
            "data": {
                "name": data.name,
                "task": data.task,
                "num_train": len(data.x_train),
                "num_test": len(data.x_test),
                "num_inputs": data.x_train.shape[1],
                "notes": list(data.notes),
            },
            "network": json.loads(stax.to_json(self.net)),
            "metric": self.metric,
            "baseline": self.baseline,
            "exact": {
                "kernel": self.kernel_source,
                "score": self.exact_score,
                "reg": self.exact_reg,
                "seconds": self.exact_seconds,
            },
            "rows": [
                {
                    "method": row.method,
                    "num_features": row.num_features,
                    "errors": json.loads(row.comparison.to_json()),
                    "score": {
                        "mean": row.score.mean,
                        "standard_error": row.score.standard_error,
                        "values": list(row.score.values),
                    },
                    "reg": row.reg,
                    "seconds": row.seconds,
                }
                for row in self.rows
            ],
            "options": self.options,
            "environment": environment(),
        }
        return strict_json(content)

    def figure(self) -> bytes | None:
        """Error and score against `num_features` as a PNG; None without matplotlib."""
        figure = new_figure()
        if figure is None:
            return None
        left, right = figure.subplots(1, 2)
        validation.plot_comparisons([row.comparison for row in self.rows], left)
        draw_scores(
            right,
            [(row.method, row.num_features, row.score) for row in self.rows],
            self.metric,
            ("exact NTK", self.exact_score),
        )
        figure.suptitle(f"{self.data.name}, NTK of a fully connected network")
        return figure_png(figure)
