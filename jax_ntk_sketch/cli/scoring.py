"""Targets as regression takes them, and how predictions of them are judged."""

import dataclasses
from typing import Any

import numpy as np

from jax_ntk_sketch._progress import progress
from jax_ntk_sketch.cli.inputs import View, not_finite
from jax_ntk_sketch.linear_model import FittedModel

__all__ = ["Scoring", "judge", "scores"]

# Examples read at a time to predict.
_BLOCK = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """How targets are fitted and judged.

    Attributes:
      targets: (n,) numbers of classes, or (n,) or (n, t) floats.
      classes: the labels, sorted; None for regression.
      baseline_value: what a constant would predict: the commonest label, or the mean.
    """

    targets: np.ndarray
    classes: np.ndarray | None
    baseline_value: Any

    @classmethod
    def of(cls, y: Any, task: str) -> "Scoring":
        """Of training targets as loaders have them.

        Raises:
          ValueError: one class only.
        """
        if task == "regression":
            return cls(y, None, y.mean(axis=0))
        classes, numbers, counts = np.unique(y, return_inverse=True, return_counts=True)
        if len(classes) < 2:
            raise ValueError(f"all training targets are of one class, {classes[0]!r}")
        return cls(numbers, classes, classes[counts.argmax()])

    @property
    def num_classes(self) -> int | None:
        return None if self.classes is None else len(self.classes)

    @property
    def num_targets(self) -> int:
        """Columns that are regressed on."""
        if self.classes is not None:
            return len(self.classes)
        return 1 if self.targets.ndim == 1 else self.targets.shape[1]

    @property
    def metric(self) -> str:
        return "mean squared error" if self.classes is None else "error"

    def score(self, guess: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """Errors of predictions, and of always predicting the same.

        Args:
          guess: (n, classes) scores, or predictions shaped as the targets.
          y: (n,) labels or (n,) or (n, t) numbers.

        Returns:
          "error", the share of wrong labels or the mean squared error, and "baseline".
        """
        return judge(guess, y, self.classes) | {
            "baseline": float(np.mean(y != self.baseline_value))
            if self.classes is not None
            else float(np.mean((y - self.baseline_value) ** 2))
        }


def judge(
    guess: np.ndarray, y: np.ndarray, classes: np.ndarray | None
) -> dict[str, float]:
    """The share of wrong labels, or the mean squared error.

    Raises:
      ValueError: targets of another kind or shape than the predictions.

    >>> judge(np.array([[0.9, 0.1], [0.2, 0.3]]), np.array([3, 3]), np.array([3, 5]))
    {'error': 0.5}
    """
    if classes is None:
        if y.dtype.kind in "US" or y.shape != guess.shape:
            raise ValueError(
                f"targets have shape {y.shape} and dtype {y.dtype}, the predictions "
                f"{guess.shape}"
            )
        return {"error": float(np.mean((guess - y) ** 2))}
    if (y.dtype.kind in "US") != (classes.dtype.kind in "US") or y.ndim != 1:
        raise ValueError(
            f"targets of dtype {y.dtype}, shape {y.shape}, are not labels like "
            f"{classes[0]!r}, which the model knows"
        )
    return {"error": float(np.mean(classes[guess.argmax(axis=1)] != y))}


def scores(fitted: FittedModel, view: View, show: bool | None) -> np.ndarray:
    """Predictions of all examples, for classes their scores.

    Raises:
      ValueError: examples that are not finite, named.
    """
    parts = []
    starts = range(0, len(view), _BLOCK)
    for start in progress(starts, "predictions", enabled=show):
        rows = view[start : start + _BLOCK]
        finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            raise ValueError(not_finite(start, finite))
        parts.append(fitted.predict(rows))
    return np.concatenate(parts)
