"""Targets as regression takes them, and how predictions of them are judged."""

import dataclasses

import numpy as np

from jax_ntk_sketch._typing import Task


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """The training targets of a task.

    Attributes:
      y: (n,) class numbers, or (n,) or (n, t) floats.
      classes: the labels, sorted, or None for regression.
      best_constant: the best constant prediction: the commonest label, or the mean.
    """

    y: np.ndarray
    classes: np.ndarray | None
    best_constant: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray, task: Task) -> "Targets":
        """Return the targets of a task.

        Raises:
          ValueError: there is one class only.
        """
        if task == "regression":
            return cls(y, None, y.mean(axis=0))
        classes, numbers, counts = np.unique(y, return_inverse=True, return_counts=True)
        if len(classes) < 2:
            raise ValueError(f"all training targets are of one class, {classes[0]!r}")
        return cls(numbers, classes, classes[counts.argmax()])

    @property
    def labels(self) -> np.ndarray:
        """The labels (n,), or the numbers `y` of regression."""
        return self.y if self.classes is None else self.classes[self.y]

    @property
    def num_classes(self) -> int | None:
        """The number of classes, or None for regression."""
        return None if self.classes is None else len(self.classes)

    @property
    def num_targets(self) -> int:
        """The number of columns that are regressed on."""
        return self.num_classes or (1 if self.y.ndim == 1 else self.y.shape[1])

    @property
    def metric(self) -> str:
        """The name of the error that `error_of` returns."""
        return "mean squared error" if self.classes is None else "share of wrong labels"

    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return columns to regress on without intercept, and their offset.

        The offset is 1/classes for one-hot codes, and the mean for numbers. A kernel
        alone gives a regression without intercept, which then starts from
        indifference.
        """
        if self.classes is None:
            columns = self.y.reshape(len(self.y), -1)
            offset = columns.mean(axis=0)
        else:
            columns = np.eye(len(self.classes))[self.y]
            offset = np.full(len(self.classes), 1 / len(self.classes))
        return columns - offset, offset

    def baseline(self, y: np.ndarray) -> float:
        """Return the error of the best constant prediction."""
        wrong = y != self.best_constant
        if self.classes is None:
            wrong = (y - self.best_constant) ** 2
        return float(np.mean(wrong))


def error_of(
    prediction: np.ndarray, y: np.ndarray, classes: np.ndarray | None
) -> float:
    """Return the share of wrong labels, or the mean squared error.

    Args:
      prediction: scores (n, classes), or numbers shaped as the targets.
      y: labels (n,), or numbers (n,) or (n, t).
      classes: the labels, or None for regression.

    Raises:
      ValueError: the targets have another kind or shape than the predictions.

    >>> import numpy as np
    >>> from jax_ntk_sketch.cli.targets import error_of
    >>> scores = np.array([[0.9, 0.1], [0.2, 0.3]])
    >>> error_of(scores, np.array([3, 3]), classes=np.array([3, 5]))
    0.5
    """
    text = y.dtype.kind in "US"
    if classes is None:
        if text or y.shape != prediction.shape:
            raise ValueError(
                f"targets have shape {y.shape} and dtype {y.dtype}, predictions have "
                f"shape {prediction.shape}"
            )
        return float(np.mean((prediction - y) ** 2))
    if text != (classes.dtype.kind in "US") or y.ndim != 1:
        raise ValueError(
            f"targets of dtype {y.dtype} and shape {y.shape} are not labels like "
            f"{classes[0]!r}, which the model was fitted to"
        )
    return float(np.mean(classes[prediction.argmax(axis=1)] != y))
