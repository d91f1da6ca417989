"""What a fit found: as text and JSON."""

import dataclasses
import json
import math
from typing import Any

import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch.cli.memory import gigabytes
from jax_ntk_sketch.cli.report import (
    environment,
    environment_text,
    markdown_table,
    strict_json,
)
from jax_ntk_sketch.cli.scoring import Scoring
from jax_ntk_sketch.cli.sources import Training
from jax_ntk_sketch.linear_model import FittedModel

__all__ = ["FitOutcome"]

# Weights are told to be coarse where rounding may have cost more than this.
_COARSE = 1e-2

_KEYS = """\
{estimate}: squared error on new examples, over targets{codes}, estimated from the
training rows alone; training: on these. dof: effective degrees of freedom. rounding:
estimated relative error of the weights from rounding. *: chosen."""


@dataclasses.dataclass(frozen=True)
class FitOutcome:
    """All that a fit found."""

    training: Training
    net: stax.Layer
    method: str
    inputs: tuple[str, ...]
    fitted: FittedModel
    scoring: Scoring
    test: dict[str, float] | None
    seconds: dict[str, float]
    planned_bytes: int
    peak_bytes: int | None
    options: dict[str, Any]

    @property
    def _how(self) -> str:
        folds = self.options["folds"]
        if folds:
            return f"{folds}-fold cross-validation"
        return "generalised cross-validation"

    def _path(self) -> list[dict[str, float | None]]:
        """A row for each value of reg; None where a number is not finite."""
        path, validation = self.fitted.all_models, self.fitted.cross_validation
        rows = []
        for i, reg in enumerate(np.atleast_1d(path.reg)):
            info = path.select(i).info
            row = {
                "reg": float(reg),
                "gcv": float(info.gcv),
                "training": float(info.mse),
                "dof": float(info.effective_dof),
                "condition": float(info.condition),
                "rounding": float(info.rounding),
                "residual": float(info.residual),
            }
            if validation is not None:
                row["cv"] = float(validation.mean[i])
                row["cv_standard_error"] = float(validation.standard_error[i])
            rows.append({k: v if math.isfinite(v) else None for k, v in row.items()})
        return rows

    @property
    def _reg(self) -> float:
        return float(self.fitted.best.reg)

    def to_text(self) -> str:
        """The report for reading."""
        estimate = "cv" if self.fitted.cross_validation is not None else "gcv"
        columns = [estimate, "training", "dof", "condition", "rounding"]
        lines: list[list[Any]] = []
        for row in self._path():
            cells = ["-" if row[c] is None else f"{row[c]:.4g}" for c in columns]
            mark = "*" if row["reg"] == self._reg else ""
            lines.append([f"{row['reg']:.3g}{mark}", *cells])
        classes = self.scoring.classes is not None
        keys = _KEYS.format(
            estimate=estimate, codes=" that are one-hot codes" if classes else ""
        )
        times = ", ".join(f"{name} {s:.1f} s" for name, s in self.seconds.items())
        text = [
            markdown_table(["reg", *columns], lines),
            keys,
            f"Penalty: reg = {self._reg:.3g}, chosen by {self._how}.",
            self._test_text(),
            f"Time: {times}.",
            f"Memory: peak {gigabytes(self.peak_bytes)}, of which "
            f"{gigabytes(self.planned_bytes)} were planned for the fit (Python, JAX "
            "and the data come besides).",
            environment_text(),
        ]
        return "\n\n".join(text[:2]) + "\n\n" + "\n".join(text[2:])

    def _test_text(self) -> str:
        if self.test is None:
            return "Test: there is no test part."
        n = len(self.training.test.x) if self.training.test else 0
        error, baseline = self.test["error"], self.test["baseline"]
        same = "the commonest class" if self.scoring.classes is not None else "the mean"
        if self.scoring.classes is not None:
            found = f"{error:.2%} of {n} rows are wrong"
            return f"Test: {found}; always guessing {same}: {baseline:.2%}."
        return (
            f"Test: mean squared error {error:.5g} on {n} rows; always guessing "
            f"{same}: {baseline:.5g}."
        )

    def warnings(self) -> list[str]:
        """What a user should know before believing the model."""
        out = []
        regs = np.atleast_1d(self.fitted.all_models.reg)
        if len(regs) > 1 and self._reg in (regs.min(), regs.max()):
            side = "least" if self._reg == regs.min() else "largest"
            out.append(
                f"the {side} candidate was chosen, reg = {self._reg:.3g}; give others "
                "with --reg"
            )
        rounding = float(self.fitted.best.info.rounding)
        if rounding > _COARSE:
            out.append(
                f"rounding may have changed the weights by {rounding:.1%}; a larger "
                "--reg or fewer --features help"
            )
        return out

    def to_json(self) -> str:
        """The report for programs; strict JSON."""
        training, fitted = self.training, self.fitted
        content = {
            "data": {
                "name": training.name,
                "task": training.task,
                "num_train": len(training.train.x),
                "num_test": 0 if training.test is None else len(training.test.x),
                "example_shape": list(training.train.x.shape[1:]),
                "skipped": fitted.num_skipped,
                "notes": [*training.notes, *self.inputs],
            },
            "network": json.loads(stax.to_json(self.net)),
            "method": self.method,
            "num_features": fitted.fmap.num_features,
            "reg": self._reg,
            "chosen_by": self._how,
            "path": self._path(),
            "metric": self.scoring.metric,
            "test": self.test,
            "seconds": self.seconds,
            "planned_bytes": self.planned_bytes,
            "peak_bytes": self.peak_bytes,
            "options": self.options,
            "environment": environment(),
        }
        return strict_json(content)
