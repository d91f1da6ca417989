"""Kernel ridge regression and ridge regression on features, chosen and judged alike."""

from collections.abc import Sequence

import numpy as np
import scipy.linalg

from jax_ntk_sketch.cli.targets import Targets, error_of
from jax_ntk_sketch.data import Dataset
from jax_ntk_sketch.linear_model import fit_ridge

# Candidates for the penalty, relative to the mean of the kernel's diagonal.
RELATIVE_REGS = tuple(10.0**power for power in range(-6, 1))


class Regression:
    """The regression task of a dataset, for kernels and for features.

    The penalty is chosen on a fifth of the training rows, and the model is then fitted
    to all of them. There is no intercept, because a kernel alone has none.

    Attributes:
      targets: the training targets.
      regs: candidates for the penalty per example; None for values relative to the
        mean of the diagonal of the kernel.
    """

    def __init__(self, data: Dataset, regs: Sequence[float] | None, seed: int) -> None:
        self.targets = Targets.of(data.y_train, data.task)
        self.regs = regs
        self._y_test = data.y_test
        self._codes, self._offset = self.targets.codes()
        n = len(self._codes)
        rows = np.random.default_rng(seed).permutation(n)
        self._held, self._fit = np.sort(rows[: n // 5]), np.sort(rows[n // 5 :])

    def error(self, predictions: np.ndarray) -> float:
        """Return the test error of predictions of `on_kernel` or `on_features`."""
        guess, classes = predictions + self._offset, self.targets.classes
        if classes is None:
            guess = guess.reshape(self._y_test.shape)
        return error_of(guess, self._y_test, classes)

    def on_kernel(
        self, matrix: np.ndarray, cross: np.ndarray, reg: float | None = None
    ) -> tuple[np.ndarray, float]:
        r"""Solve :math:`(K + n\,\mathrm{reg}\,I) A = Y` on the host in float64.

        Args:
          matrix: K of the training rows, (n, n) float64.
          cross: the kernel of the test rows with the training rows, (n_test, n).
          reg: the penalty; None to choose it.

        Returns:
          Predictions of the test rows less their offset, (n_test, t), and the penalty.

        Raises:
          numpy.linalg.LinAlgError: K plus the penalty is singular.

        Cost: n³/3 operations per candidate, and memory of two more matrices like K.
        """
        if reg is None:
            regs = self._candidates(float(np.diag(matrix).mean()))
            inner = matrix[np.ix_(self._fit, self._fit)]
            outer = matrix[np.ix_(self._held, self._fit)]
            y = self._codes[self._fit]
            weights = (ridge_weights(inner, value, y) for value in regs)
            losses = [self._loss(outer @ w) for w in weights]
            reg = self._best(regs, losses)
        predictions = cross @ ridge_weights(matrix, reg, self._codes)
        if np.isnan(predictions).any():
            raise np.linalg.LinAlgError(f"the kernel plus {reg:g} is singular")
        return predictions, reg

    def on_features(
        self, phi: np.ndarray, phi_test: np.ndarray, reg: float | None = None
    ) -> tuple[np.ndarray, float]:
        """Solve ridge regression on features, as a kernel where these outnumber rows.

        Both forms give the same predictions, and the smaller system is solved.

        Args:
          phi: features of the training rows, (n, m).
          phi_test: features of the test rows, (n_test, m).
          reg: the penalty; None to choose it.

        Returns:
          As `on_kernel`.

        Raises:
          numpy.linalg.LinAlgError: a penalty is too small for the precision of the
            features.
        """
        n, m = phi.shape
        if n < m:
            wide = phi.astype(np.float64)
            return self.on_kernel(wide @ wide.T, phi_test @ wide.T, reg)
        codes = self._codes.astype(phi.dtype)
        if reg is None:
            scale = float(np.square(phi, dtype=np.float64).sum(axis=1).mean())
            regs = self._candidates(scale)
            x, y = phi[self._fit], codes[self._fit]
            models = fit_ridge(x, y, reg=regs, intercept=False)
            guesses = np.asarray(models.predict(phi[self._held]), np.float64)
            reg = self._best(regs, [self._loss(guess) for guess in guesses])
        model = fit_ridge(phi, codes, reg=reg, intercept=False)
        return np.asarray(model.predict(phi_test), np.float64), reg

    def _candidates(self, scale: float) -> list[float]:
        return list(self.regs or [(scale or 1.0) * value for value in RELATIVE_REGS])

    @staticmethod
    def _best(regs: Sequence[float], losses: Sequence[float]) -> float:
        """Return the penalty of the smallest finite loss."""
        finite = np.isfinite(losses)
        if not finite.any():
            raise np.linalg.LinAlgError(
                "no penalty gives finite predictions: the kernel plus each is singular"
            )
        return regs[int(np.argmin(np.where(finite, losses, np.inf)))]

    def _loss(self, guess: np.ndarray) -> float:
        return float(np.mean((guess - self._codes[self._held]) ** 2))


def ridge_weights(matrix: np.ndarray, reg: float, y: np.ndarray) -> np.ndarray:
    """Return (matrix + n reg I)^-1 y, or NaN where this system is singular."""
    shifted = matrix.copy()
    shifted[np.diag_indices(len(matrix))] += reg * len(matrix)
    try:
        factor = scipy.linalg.cho_factor(shifted, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return np.full_like(y, np.nan)
    return scipy.linalg.cho_solve(factor, y, check_finite=False)
