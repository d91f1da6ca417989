"""K-fold cross-validation of ridge regression from one pass over the data."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    ridge_merge,
    ridge_solve,
    sums_on_host,
)

__all__ = ["CrossValidation", "ridge_cross_validate"]


class CrossValidation(NamedTuple):
    """Held-out errors of ridge regression.

    Attributes:
      reg: (r,) the values tried.
      errors: (k, r) mean squared errors of each fold, over its examples and targets;
        infinite for values of `reg` with which the other folds' system is singular.
      mean: (r,) their mean, weighted by the folds' counts.
      standard_error: (r,) of that mean, from the folds' differences.
    """

    reg: np.ndarray
    errors: np.ndarray
    mean: np.ndarray
    standard_error: np.ndarray

    @property
    def best(self) -> float:
        """The value of least mean error; ties go to the largest."""
        least = np.flatnonzero(self.mean == self.mean.min())
        return float(self.reg[least].max())


def ridge_cross_validate(
    states: Sequence[RidgeState], reg: Any, *, intercept: bool = True
) -> CrossValidation:
    r"""Errors on each fold of the model that the other folds give.

    A fold is all that one state has seen, so that a single pass over the data, each
    batch or row going to one of k states, is enough. The sums of a fold also give the
    squared error of any linear model on it,
    :math:`\sum |\Phi w + b - y|^2 = z^\top S z` with z = (w, -1, b).

    Args:
      states: k >= 2 folds, each of at least one example.
      reg: one value or a sequence of r, per example as in `ridge_solve`.
      intercept: as in `ridge_solve`.

    Returns:
      `CrossValidation`. The model on all data is then
      `ridge_solve(functools.reduce(ridge_merge, states), reg=cv.best)`.

    Values of `reg` with which a system is singular are warned of as in `ridge_solve`.

    Raises:
      TypeError, ValueError, numpy.linalg.LinAlgError: as `ridge_solve` where it drops
        such values; fewer than two
        folds, or folds of different sizes of features.

    Cost: k solves of all values of `reg`, and the memory of k + 1 states.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch.linear_model import ridge_init, ridge_update
    >>> phi, y = jnp.eye(6)[:, :3] + 1.0, jnp.arange(6.0)
    >>> folds = [ridge_update(ridge_init(3, None), phi[i::2], y[i::2]) for i in (0, 1)]
    >>> ridge_cross_validate(folds, [0.1, 1.0]).errors.shape
    (2, 2)
    """
    if len(states) < 2:
        raise ValueError(
            f"ridge_cross_validate: at least two folds are needed, got {len(states)}"
        )
    values = np.atleast_1d(np.asarray(reg, np.float64))
    errors = np.full((len(states), len(values)), np.inf)
    counts = np.zeros(len(states))
    for i, held in enumerate(states):
        others = [state for j, state in enumerate(states) if j != i]
        model = ridge_solve(
            functools.reduce(ridge_merge, others),
            values.tolist(),
            intercept=intercept,
            singular="drop",
        )
        sums = sums_on_host(held, "ridge_cross_validate")
        counts[i] = sums[-1, -1]
        weights = np.asarray(model.weights, np.float64)
        biases = np.asarray(model.intercept, np.float64)
        if held.num_targets is None:
            weights, biases = weights[..., None], biases[..., None]
        t = weights.shape[-1]
        minus = np.broadcast_to(-np.eye(t), (len(weights), t, t))
        z = np.concatenate([weights, minus, biases[:, None, :]], axis=1)
        squares = ((sums @ z) * z).sum(axis=(1, 2))
        solved = np.isin(values, model.reg)
        errors[i, solved] = np.maximum(squares, 0) / (counts[i] * t)
    share = counts / counts.sum()
    mean = share @ errors
    with np.errstate(invalid="ignore"):  # infinity less infinity
        spread = share**2 @ (errors - mean) ** 2 * len(states) / (len(states) - 1)
    return CrossValidation(values, errors, mean, np.sqrt(spread))
