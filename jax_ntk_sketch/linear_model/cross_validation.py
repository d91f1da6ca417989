"""K-fold cross-validation of ridge regression from one pass over the data."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch.linear_model.model import smallest
from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    check_reg,
    ridge_merge,
    ridge_solve,
    sums_on_host,
)


class CrossValidation(NamedTuple):
    """The held-out errors of ridge regression, for k folds and r values of `reg`.

    Attributes:
      reg: (r,), the values of `reg`.
      errors: (k, r), the mean squared error on each fold, over its examples and
        targets. It is infinite where the system of the other folds is singular.
      mean: (r,), the mean of the errors, weighted by the counts of the folds.
      standard_error: (r,), the standard error of that mean.
    """

    reg: NDArray
    errors: NDArray
    mean: NDArray
    standard_error: NDArray

    @property
    def best(self) -> float:
        """The value of `reg` with the smallest mean error; the largest if several.

        If no mean error is finite, there is a warning, and it is the largest of all.
        """
        owner, what = "CrossValidation.best", "mean error of the folds"
        chosen = self.mean[smallest(owner, what, self.mean, self.reg)]
        same = np.isclose(self.mean, chosen, rtol=0, atol=0, equal_nan=True)
        return float(self.reg[same].max())


def ridge_cross_validate(
    states: Sequence[RidgeState],
    reg: float | Sequence[float],
    *,
    intercept: bool = True,
) -> CrossValidation:
    r"""Return the errors on each fold of the model that the other folds give.

    A fold is the set of examples that one state has seen. A single pass over the data
    therefore suffices: each batch or row is added to one of k states. The sums of a
    fold also give the squared error of any linear model on it,
    :math:`\sum |\Phi w + b - y|^2 = z^\top S z` with z = (w, -1, b).

    Args:
      states: k >= 2 folds of at least one example each.
      reg: one value or a sequence of r values, as for `ridge_solve`.
      intercept: as for `ridge_solve`.

    Returns:
      `CrossValidation`. The model on all data is then
      `ridge_solve(functools.reduce(ridge_merge, states), reg=cv.best)`. A warning names
      the values of `reg` with which a system is singular.

    Raises:
      TypeError: a state is traced, or `reg` does not hold numbers.
      ValueError: there are fewer than two folds, the folds differ in their sizes, a
        fold is empty, or `reg` is negative or not finite.
      numpy.linalg.LinAlgError: a system is singular with all values of `reg`.

    Cost: k solves for all values of `reg`, and the memory of k + 1 states.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch import linear_model
    >>> phi, y = jnp.eye(6)[:, :3] + 1.0, jnp.arange(6.0)
    >>> empty = linear_model.ridge_init(3, None)
    >>> folds = [linear_model.ridge_update(empty, phi[i::2], y[i::2]) for i in (0, 1)]
    >>> linear_model.ridge_cross_validate(folds, [0.1, 1.0]).errors.shape
    (2, 2)
    """
    owner = "ridge_cross_validate"
    if len(states) < 2:
        raise ValueError(
            f"{owner}: states must hold at least two folds, got {len(states)}"
        )
    values = np.atleast_1d(check_reg(owner, reg))
    errors = np.full((len(states), len(values)), np.inf)
    counts = np.zeros(len(states))
    for i, fold in enumerate(states):
        others = [state for j, state in enumerate(states) if j != i]
        model = ridge_solve(
            functools.reduce(ridge_merge, others),
            values.tolist(),
            intercept=intercept,
            singular="drop",
        )
        sums = sums_on_host(owner, fold)
        counts[i] = sums[-1, -1]
        weights = np.asarray(model.weights, np.float64)
        biases = np.asarray(model.intercept, np.float64)
        if fold.num_targets is None:
            weights, biases = weights[..., None], biases[..., None]
        t = weights.shape[-1]
        minus = np.broadcast_to(-np.eye(t), (len(weights), t, t))
        z = np.concatenate([weights, minus, biases[:, None, :]], axis=1)
        squares = ((sums @ z) * z).sum(axis=(1, 2))
        solved = np.isin(values, model.reg)
        errors[i, solved] = np.maximum(squares, 0) / (counts[i] * t)
    share = counts / counts.sum()
    mean = share @ errors
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        variance = share**2 @ (errors - mean) ** 2 * len(states) / (len(states) - 1)
    return CrossValidation(values, errors, mean, np.sqrt(variance))
