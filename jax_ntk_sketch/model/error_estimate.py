"""`ErrorEstimate`: the error to expect on new examples, with an interval."""

import dataclasses
import math

import numpy as np
import scipy
from numpy.typing import NDArray

from jax_ntk_sketch.model.leave_one_out import LeftOut

# The share of the examples that a test set has where its size is not given.
_TEST_SHARE = 10


@dataclasses.dataclass(frozen=True)
class ErrorEstimate:
    """The error of a model on examples that it has not seen.

    Attributes:
      metric: "mean squared error", or "share of wrong labels".
      value: the estimate, the mean over the examples that were left out one by one.
      deviation: the standard deviation of the error of one example.
      num_left_out: the number of examples that were left out; with weights the number
        of equal ones whose mean is as certain.
      num_fitted: the number of examples of the model.
    """

    metric: str
    value: float
    deviation: float
    num_left_out: float
    num_fitted: int

    @classmethod
    def of(
        cls, left_out: LeftOut, num_fitted: int, scale: NDArray | None
    ) -> "ErrorEstimate":
        """Return the estimate from predictions of examples that were left out.

        Args:
          left_out: the predictions.
          num_fitted: the number of examples of the model.
          scale: the mean and the deviation of numbers, (2, t); None for labels.
        """
        n = left_out.effective_number
        if scale is not None:
            errors = np.mean((scale[1] * left_out.residuals) ** 2, axis=1)
            value = left_out.mean(errors)
            deviation = math.sqrt(left_out.mean((errors - value) ** 2))
            return cls("mean squared error", value, deviation, n, num_fitted)
        wrong = left_out.predictions.argmax(axis=1) != left_out.y.argmax(axis=1)
        value = left_out.mean(wrong)
        # Two wrong and two right ones more: the share is not 0 for sure if none is
        # wrong (Agresti and Coull, 1998).
        share = (n * value + 2) / (n + 4)
        deviation = math.sqrt(share * (1 - share))
        return cls("share of wrong labels", value, deviation, n, num_fitted)

    def interval(
        self, level: float = 0.9, *, num_test: int | None = None
    ) -> tuple[float, float]:
        """Return where the error of a test set lies with this probability.

        Args:
          level: the probability, in (0, 1).
          num_test: the number of examples of the test set; by default a tenth of those
            that were fitted. For a large number the interval is that of the expected
            error.

        Returns:
          The ends of the interval; the lower one is at least 0.

        Raises:
          ValueError: an argument is out of its range.

        Guarantee: asymptotically right if examples are independent, and the test set
        is like them. It leaves out that the penalty was chosen by the same examples.

        >>> from jax_ntk_sketch.model import ErrorEstimate
        >>> error = ErrorEstimate("mean squared error", 1.0, 2.0, 900, 900)
        >>> [round(end, 2) for end in error.interval(0.9, num_test=10**9)]
        [0.89, 1.11]
        """
        if not 0 < level < 1:
            raise ValueError(f"interval: level must be in (0, 1), got {level}")
        if num_test is None:
            num_test = max(1, self.num_fitted // _TEST_SHARE)
        if num_test < 1:
            raise ValueError(f"interval: num_test must be at least 1, got {num_test}")
        factor = scipy.special.ndtri((1 + level) / 2)
        both = math.sqrt(1 / self.num_left_out + 1 / num_test)
        half = float(factor * self.deviation * both)
        return max(0.0, self.value - half), self.value + half

    def __str__(self) -> str:
        low, high = self.interval()
        return (
            f"{self.metric} {self.value:.4g}, between {low:.4g} and {high:.4g} on 90% "
            f"of test sets of a tenth as many examples"
        )


def temperature(left_out: LeftOut) -> float:
    """Return the factor of scores whose softmax predicts left-out labels best.

    It has the largest likelihood. One wrong label of each class more, of no score,
    keeps it finite.
    """
    scores, k = left_out.predictions, left_out.y.shape[1]
    number = left_out.y.argmax(axis=1)
    own = scores[np.arange(len(scores)), number]

    def loss(log_factor: float) -> float:
        z = scores * math.exp(log_factor)
        total = scipy.special.logsumexp(z, axis=1).sum()
        certain = scipy.special.logsumexp([math.exp(log_factor), *[0.0] * (k - 1)])
        return float(total - own.sum() * math.exp(log_factor) + certain)

    found = scipy.optimize.minimize_scalar(loss, bounds=(-3.0, 6.0), method="bounded")
    return math.exp(float(found.x))
