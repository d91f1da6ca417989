"""Regression in the job: targets, losses, ridge on kernels and on features."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from jax_ntk_sketch.cli.arguments import UsageError
from jax_ntk_sketch.data import Dataset
from jax_ntk_sketch.linear_model import fit_ridge, ridge_penalty

__all__ = ["Targets", "fit_features", "fit_kernel"]


@dataclasses.dataclass(frozen=True)
class Targets:
    """A data set's targets as columns to regress on, and how they are scored.

    Labels become one-hot codes minus 1/classes, numbers lose their training mean,
    so that a regression without intercept, which is what the kernel alone gives,
    starts from indifference.

    Attributes:
      codes: (n, k) float64, of the training rows.
      held_out: bool (n,), the training rows that choose the penalty, a fifth.
    """

    data: Dataset
    codes: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, data: Dataset, seed: int) -> "Targets":
        """The targets of `data`; `seed` draws the held-out rows."""
        if data.task == "classification":
            classes = data.classes
            codes = (data.y_train[:, None] == classes) - 1 / len(classes)
        else:
            codes = data.y_train.reshape(len(data.y_train), -1)
            codes = codes - codes.mean(axis=0)
        n = len(codes)
        held_out = np.zeros(n, bool)
        held_out[np.random.default_rng(seed).permutation(n)[: max(n // 5, 1)]] = True
        return cls(data, codes, held_out)

    @property
    def metric(self) -> str:
        """What `score` gives."""
        regression = self.data.task == "regression"
        return "mean squared error" if regression else "accuracy"

    def held_out_loss(self, predictions: np.ndarray) -> float:
        """Mean squared error of the codes of the held-out rows."""
        return float(np.mean((predictions - self.codes[self.held_out]) ** 2))

    def score(self, predictions: np.ndarray) -> float:
        """Accuracy, or mean squared error, of predicted codes (n_test, k) on test."""
        data = self.data
        if data.task == "classification":
            return float(np.mean(data.classes[predictions.argmax(1)] == data.y_test))
        shape = (len(data.y_test), -1)
        mean = data.y_train.reshape(len(data.y_train), -1).mean(axis=0)
        return float(np.mean((predictions + mean - data.y_test.reshape(shape)) ** 2))

    def baseline(self) -> float:
        """The score of always predicting the commonest label, or the mean."""
        if self.data.task == "classification":
            guess = np.repeat(self.codes.mean(0)[None], len(self.data.y_test), 0)
        else:
            guess = np.zeros((len(self.data.y_test), self.codes.shape[1]))
        return self.score(guess)


def fit_kernel(
    matrix: np.ndarray, cross: np.ndarray, targets: Targets, regs: Sequence[float]
) -> tuple[np.ndarray, float]:
    r"""Solves :math:`(K + n\,\mathrm{reg}\,I) A = Y` on the host in float64.

    Args:
      matrix: K of the training rows, (n, n) float64.
      cross: kernel of the test rows with the training rows, (n_test, n) float64.
      targets: of the n rows.
      regs: candidates, per example, judged on the held-out rows; the final fit is
        on all rows. A single one is taken as it is.

    Returns:
      The predicted codes of the test rows, (n_test, k), and the chosen `reg`.

    Raises:
      UsageError: K plus penalty is singular.

    Cost: n^3/3 operations per candidate, two more matrices of the size of K.
    """
    reg = regs[0]
    if len(regs) > 1:
        fit, held = np.flatnonzero(~targets.held_out), np.flatnonzero(targets.held_out)
        inner, outer = matrix[np.ix_(fit, fit)], matrix[np.ix_(held, fit)]
        losses = [
            targets.held_out_loss(outer @ _solve(inner, value, targets.codes[fit]))
            for value in regs
        ]
        if np.isnan(losses).all():
            raise UsageError(
                "--reg: the kernel plus penalty is singular at every value"
            )
        reg = regs[int(np.nanargmin(losses))]
    predictions = cross @ _solve(matrix, reg, targets.codes)
    if np.isnan(predictions).any():
        raise UsageError(f"--reg: the kernel plus penalty is singular at {reg:g}")
    return predictions, reg


def _solve(matrix: np.ndarray, reg: float, y: np.ndarray) -> np.ndarray:
    """NaN where the matrix plus penalty is not positive definite."""
    shifted = matrix.copy()
    shifted[np.diag_indices(len(matrix))] += ridge_penalty(reg, len(matrix))
    try:
        factor = scipy.linalg.cho_factor(shifted, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return np.full_like(y, np.nan)
    return scipy.linalg.cho_solve(factor, y, check_finite=False)


def fit_features(
    phi_train: np.ndarray,
    phi_test: np.ndarray,
    targets: Targets,
    regs: Sequence[float],
) -> tuple[np.ndarray, float]:
    """Ridge on features, in its kernel form where they outnumber the rows.

    Both forms give the same predictions; the smaller system is solved.

    Args:
      phi_train: (n, m).
      phi_test: (n_test, m).
      targets: of the n rows.
      regs: candidates, as for `fit_kernel`.

    Returns:
      The predicted codes of the test rows, (n_test, k), and the chosen `reg`.

    Raises:
      UsageError: a candidate is too small for the precision of the features.
    """
    n, m = phi_train.shape
    if n < m:
        wide = phi_train.astype(np.float64)
        return fit_kernel(wide @ wide.T, phi_test @ wide.T, targets, regs)
    codes = targets.codes.astype(phi_train.dtype)
    reg = regs[0]
    try:
        if len(regs) > 1:
            fit, held = ~targets.held_out, targets.held_out
            models = fit_ridge(
                phi_train[fit], codes[fit], reg=list(regs), intercept=False
            )
            guesses = np.asarray(models.predict(phi_train[held]), np.float64)
            reg = regs[int(np.argmin([targets.held_out_loss(g) for g in guesses]))]
        model = fit_ridge(phi_train, codes, reg=reg, intercept=False)
    except np.linalg.LinAlgError as error:
        raise UsageError(f"--reg: {error}") from error
    return np.asarray(model.predict(phi_test), np.float64), reg
