r"""Leave-one-out predictions of ridge regression, exact, from sums and features.

With the sums over all n examples, let :math:`\bar\phi` be the mean of the features and

.. math:: A = \sum_i w_i (\phi_i - \bar\phi)(\phi_i - \bar\phi)^\top + \lambda I.

The leverage of example i is :math:`h_i = w_i (1 / \sum w + (\phi_i - \bar\phi)^\top
A^{-1} (\phi_i - \bar\phi))`. The residual of example i under the model of all other
examples is its residual under the model of all, divided by :math:`1 - h_i`.

Source: Golub, Heath and Wahba (1979); Rasmussen and Williams, Gaussian Processes for
Machine Learning (2006), section 5.4.2.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy
from numpy.typing import NDArray

# A leverage beyond this one is 1: no other example says anything of this one.
_MOST_LEVERAGE = 1 - 1e-9

# The features that are solved for at a time.
_BLOCK = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    r"""How far features are from those of the training examples.

    Attributes:
      mean: :math:`\bar\phi`, (m,).
      root: the lower Cholesky factor of A, (m, m).
      total: the sum of the weights.
    """

    mean: NDArray
    root: NDArray
    total: float

    @classmethod
    def of(cls, sums: NDArray, num_features: int, penalty: float) -> "Spread":
        r"""Return the factor of A from the sums of `RidgeState`.

        Args:
          sums: (m + t + 1, m + t + 1) float64.
          num_features: m.
          penalty: :math:`\lambda`.

        Raises:
          numpy.linalg.LinAlgError: A is not positive definite to rounding.
        """
        m, total = num_features, float(sums[-1, -1])
        mean = sums[-1, :m] / total
        a = sums[:m, :m] - np.outer(total * mean, mean)
        a[np.diag_indices(m)] += penalty
        root = scipy.linalg.cholesky(a, lower=True, overwrite_a=True)
        return cls(mean, root, total)

    def __call__(self, phi: NDArray) -> NDArray:
        """Return the leverages of features (k, m) of weight 1, (k,)."""
        squares = [np.zeros(0)]
        for start in range(0, len(phi), _BLOCK):
            away = (phi[start : start + _BLOCK] - self.mean).T
            solved = scipy.linalg.solve_triangular(
                self.root, away, lower=True, check_finite=False
            )
            squares.append(np.square(solved).sum(axis=0))
        return 1 / self.total + np.concatenate(squares)


@dataclasses.dataclass(frozen=True, eq=False)
class LeftOut:
    """Predictions for examples by models that have not seen them.

    Attributes:
      y: the targets, (k, t) float64.
      predictions: (k, t).
      leverages: (k,), of the model of all other examples and an example of weight 1.
      weight: (k,), the weights of the examples.
    """

    y: NDArray
    predictions: NDArray
    leverages: NDArray
    weight: NDArray

    @classmethod
    def of(
        cls, fitted: NDArray, y: NDArray, leverages: NDArray, weight: NDArray
    ) -> "LeftOut":
        """Return them from predictions (k, t) and leverages of the model of all."""
        left = 1 - np.minimum(weight * leverages, _MOST_LEVERAGE)
        residuals = (y - fitted) / left[:, None]
        return cls(y, y - residuals, leverages / left, weight)

    @property
    def residuals(self) -> NDArray:
        """The targets without the predictions, (k, t)."""
        return self.y - self.predictions

    @property
    def mean_squared_error(self) -> float:
        """The mean over examples, by their weights, and over targets."""
        return self.mean(np.mean(self.residuals**2, axis=1))

    def mean(self, values: NDArray) -> float:
        """Return the mean of a value for each example, (k,), by their weights."""
        return float(np.average(values, weights=self.weight))

    @property
    def effective_number(self) -> float:
        """The number of examples of equal weight whose mean is as certain."""
        return float(self.weight.sum() ** 2 / np.square(self.weight).sum())


def least(evaluate: Callable[[int], float], count: int, start: int, all_: bool) -> int:
    """Return the position of the least value of a function of 0 to count - 1.

    Args:
      evaluate: the function, which may be infinite; it is called once for a position.
      count: the number of positions.
      start: where the search begins.
      all_: whether all are evaluated. Otherwise the search goes downhill from `start`,
        and looks two positions beyond the least value so far.

    >>> from jax_ntk_sketch.model.leave_one_out import least
    >>> least(lambda i: abs(i - 7), count=20, start=3, all_=False)
    7
    """
    values: dict[int, float] = {}

    def value(i: int) -> float:
        if i not in values:
            values[i] = evaluate(i)
        return values[i]

    if all_:
        return min(range(count), key=value)
    best = start
    while True:
        near = range(max(0, best - 2), min(count, best + 3))
        found = min(near, key=value)
        if value(found) >= value(best):
            return best
        best = found
