"""What the job on images found: as a table, Markdown, JSON and a figure."""

import dataclasses
import json
from typing import Any

from jax_ntk_sketch import stax, validation
from jax_ntk_sketch.cli.memory import mebibytes
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
from jax_ntk_sketch.validation.report import Comparison, Estimate

__all__ = ["ImageRow", "ImagesOutcome"]

_KEYS = """\
accuracy: on the test images, of ridge regression whose penalty was chosen on held-out
training images; pixels: the same on the pixels, before any preprocessing, and a
constant. images/s: of all training and test images, compiled. batch: images at a time.
Memory in MiB: plan, what a batch and the parameters take by the plan; kept, the
features of all images; grown, by how much the process's resident memory rose at its
peak while it featurised, compiled: plan + kept or less, and some tens for the runtime;
peak, all that was resident then, with Python, JAX, compiled code and data. compile:
with a first draw and a first batch; fit: choosing the penalty and solving."""

_ERRORS = """\
error: of the kernel matrix of {num} training images against the exact one, relative
Frobenius norm; centred: the same after double centring; mean ± standard error of
{seeds} draws. """


@dataclasses.dataclass(frozen=True)
class ImageRow:
    """One feature map.

    Attributes:
      batch_size: images per call.
      planned_bytes: of a batch and the parameters.
      feature_bytes: of the features of all images.
      grown_bytes: how much resident memory rose at its peak; None where unknown.
      peak_bytes: all that was resident at the peak; None where unknown.
      num_images: featurised in `seconds["features"]`.
      accuracy: on the test images.
      reg: the penalty.
      seconds: "compile", "features" and "fit".
      comparison: the kernel's errors; None if not asked for or not possible.
    """

    method: str
    num_features: int
    batch_size: int
    planned_bytes: int
    feature_bytes: int
    grown_bytes: int | None
    peak_bytes: int | None
    num_images: int
    accuracy: float
    reg: float
    seconds: dict[str, float]
    comparison: Comparison | None = None

    @property
    def memory(self) -> tuple[int | None, ...]:
        """Bytes: planned, of the features, grown, at the peak."""
        return (
            self.planned_bytes,
            self.feature_bytes,
            self.grown_bytes,
            self.peak_bytes,
        )

    @property
    def images_per_second(self) -> float:
        """Of featurising, compiled."""
        return self.num_images / max(self.seconds["features"], 1e-9)


@dataclasses.dataclass(frozen=True)
class ImagesOutcome(Report):
    """All that the job found.

    Attributes:
      why: a sentence on the preprocessing.
      chance: accuracy of the commonest class.
      pixels: accuracy, penalty and seconds of ridge regression on the pixels.
      exact: what the exact kernel is, or why there is none.
      exact_seconds: "compile" and "run"; empty without it.
    """

    data: Dataset
    why: str
    net: stax.Layer
    chance: float
    pixels: dict[str, float]
    exact: str
    exact_seconds: dict[str, float]
    rows: tuple[ImageRow, ...]
    options: dict[str, Any]

    def table(self) -> str:
        """A Markdown table, the pixels first."""
        header = ["method", "num_features", "error", "centred", "accuracy", "images/s"]
        header += ["batch", "plan", "kept", "grown", "peak"]
        header += ["compile s", "features s", "fit s"]
        lines: list[list[Any]] = [
            [
                "pixels",
                self.data.x_train[0].size,
                "",
                "",
                f"{self.pixels['accuracy']:.4f}",
            ]
            + [""] * 8
            + [f"{self.pixels['seconds']:.2f}"]
        ]
        for row in self.rows:
            errors = row.comparison.ntk if row.comparison else None
            lines.append(
                [row.method, row.num_features]
                + ([errors.relative, errors.centered] if errors else ["", ""])
                + [f"{row.accuracy:.4f}", f"{row.images_per_second:.0f}"]
                + [row.batch_size]
                + [mebibytes(count) for count in row.memory]
                + [f"{row.seconds[key]:.2f}" for key in ("compile", "features", "fit")]
            )
        return markdown_table(header, lines)

    def keys(self) -> str:
        """What the columns of the table mean."""
        compared = [row.comparison for row in self.rows if row.comparison]
        errors = ""
        if compared:
            num, seeds = compared[0].num_examples, compared[0].num_seeds
            errors = _ERRORS.format(num=num, seeds=seeds)
        return errors + _KEYS

    def to_markdown(self, *, with_figure: bool = True) -> str:
        """The report for reading."""
        image = "![error and accuracy](report.png)"
        return (
            "\n\n".join(
                [
                    f"# Convolutional NTK features of {self.data.name}",
                    f"{describe_data(self.data)} {self.why}",
                    f"Network: `{self.net!r}`. Exact kernel: {self.exact}. "
                    f"{environment_text()}",
                    self.table(),
                    f"{self.keys()} Always guessing the commonest class gives "
                    f"{self.chance:.4f}.",
                    image if with_figure else "No figure: matplotlib is not installed.",
                ]
            )
            + "\n"
        )

    def to_json(self) -> str:
        """The report for programs; strict JSON."""
        data = self.data
        rows = []
        for row in self.rows:
            content = dataclasses.asdict(row)
            del content["comparison"]
            errors = row.comparison and json.loads(row.comparison.to_json())
            rows.append(
                content | {"images_per_second": row.images_per_second, "errors": errors}
            )
        content = {
            "data": {
                "name": data.name,
                "num_train": len(data.x_train),
                "num_test": len(data.x_test),
                "image_shape": list(data.x_train.shape[1:]),
                "notes": list(data.notes),
            },
            "network": json.loads(stax.to_json(self.net)),
            "chance": self.chance,
            "pixels": self.pixels,
            "exact": {"kernel": self.exact, "seconds": self.exact_seconds},
            "rows": rows,
            "options": self.options,
            "environment": environment(),
        }
        return strict_json(content)

    def figure(self) -> bytes | None:
        """Error and accuracy against `num_features`: a PNG; None without matplotlib."""
        figure = new_figure()
        if figure is None:
            return None
        compared = [row.comparison for row in self.rows if row.comparison]
        axes = figure.subplots(1, 2 if compared else 1, squeeze=False)[0]
        if compared:
            validation.plot_comparisons(compared, axes[0])
        draw_scores(
            axes[-1],
            [(r.method, r.num_features, Estimate((r.accuracy,))) for r in self.rows],
            "accuracy",
            ("ridge on pixels", self.pixels["accuracy"]),
        )
        figure.suptitle(f"{self.data.name}, NTK of a convolutional network")
        return figure_png(figure)
