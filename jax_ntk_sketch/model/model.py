"""`Model`: what `jax_ntk_sketch.fit` returns."""

import dataclasses
import html
import os
from typing import Any

import jax
import numpy as np
import scipy
from numpy.typing import NDArray

from jax_ntk_sketch import io
from jax_ntk_sketch._typing import Examples
from jax_ntk_sketch.batches.prepared import Prepared
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.features._transform import transform
from jax_ntk_sketch.features.methods.nystrom.network import replaces_network
from jax_ntk_sketch.kernels.exact import diagonal_kernels
from jax_ntk_sketch.linear_model import FittedModel
from jax_ntk_sketch.model.error_estimate import ErrorEstimate, temperature
from jax_ntk_sketch.model.leave_one_out import LeftOut, Spread
from jax_ntk_sketch.model.size import Work
from jax_ntk_sketch.model.table import Table
from jax_ntk_sketch.model.training import as_numbers

# The probabilities whose quantiles are kept, and the rows that are worked on at a time.
_PROBABILITIES = np.linspace(0, 1, 1001)
_BLOCK = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Uncertainty:
    r"""How uncertain predictions are, learned from examples that were left out.

    The model is the mean of a Gaussian process with noise :math:`\sigma^2`. Its
    variance at x is :math:`\sigma^2 (1 + h(x))`, with h the leverage.

    Attributes:
      spread: the leverages h.
      penalty: :math:`\lambda`, the variance of the noise over that of the prior.
      noise: :math:`\sigma^2` of each target, (t,), in the units of the regression.
      quantiles: of the absolute residuals over their deviations, (1001, t).
      temperature: the factor of scores whose softmax is a probability.
    """

    spread: Spread
    penalty: float
    noise: NDArray
    quantiles: NDArray
    temperature: float

    @classmethod
    def of(cls, left_out: LeftOut, spread: Spread, penalty: float) -> "Uncertainty":
        """Return what residuals say of the noise."""
        squares = left_out.residuals**2 / (1 + left_out.leverages)[:, None]
        noise = np.average(squares, axis=0, weights=left_out.weight)
        quantiles = np.quantile(np.sqrt(squares), _PROBABILITIES, axis=0)
        return cls(spread, penalty, noise, quantiles, temperature(left_out))


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A kernel machine that was fitted to data, with what is known of its errors.

    Attributes:
      fitted: the features and the linear model on them, for inputs that are numbers.
      table: the step from tables to numbers, or None.
      scale: the mean and the deviation of the targets, (2, t), which `fitted` does not
        know; None for labels.
      error: the error to expect on new examples.
      uncertainty: what `predict_variance`, `predict_interval` and `predict_proba` use.
      work: the columns, seconds and bytes that were announced.
      seconds: the seconds that were spent.
      sentences: what was chosen, and why.
    """

    fitted: FittedModel
    table: Table | None
    scale: NDArray | None
    error: ErrorEstimate
    uncertainty: Uncertainty
    work: Work
    seconds: float
    sentences: tuple[str, ...]

    @property
    def classes(self) -> tuple[Any, ...] | None:
        """The labels in the order of scores and probabilities; None for numbers."""
        return self.fitted.best.classes

    def predict(self, x: Examples, **options: Any) -> NDArray:
        """Return predictions in the unit of the targets; for classes these are scores.

        Args:
          x: n examples, as the fit took them. The columns of a table are found by
            their names.
          options: `max_bytes`, `batch_size`, `progress`, `mesh`, `pattern` and `mask`,
            as `FittedModel.predict` takes them.

        Returns:
          `(n,)` or `(n, t)` numbers, or `(n, k)` scores of the classes.

        Raises:
          TypeError, ValueError: x is not like the examples of the fit.
        """
        return self._unscaled(self._scores("predict", x, options))

    def predict_class(self, x: Examples, **options: Any) -> NDArray:
        """Return the label of the largest score, (n,); arguments as for `predict`.

        Raises:
          ValueError: the model was fitted to numbers; or as `predict`.
        """
        self._check_labels("predict_class")
        scores = self._scores("predict_class", x, options)
        return np.asarray(self.classes)[scores.argmax(axis=1)]

    def predict_proba(self, x: Examples, **options: Any) -> NDArray:
        """Return the probabilities of the classes, (n, k); arguments as for `predict`.

        They are the softmax of the scores times one factor, which has the largest
        likelihood on the examples that were left out.

        Raises:
          ValueError: the model was fitted to numbers; or as `predict`.
        """
        self._check_labels("predict_proba")
        scores = self._scores("predict_proba", x, options).astype(np.float64)
        return scipy.special.softmax(self.uncertainty.temperature * scores, axis=1)

    def predict_variance(self, x: Examples, **options: Any) -> NDArray:
        r"""Return the variance of new targets, noise included, shaped as `predict`.

        It is :math:`\sigma^2 (1 + h(x))` with the leverage h. What the features leave
        out of K(x, x) is added where the exact kernel is known. For labels it is that
        of the one-hot codes, (n, k).

        Raises:
          TypeError, ValueError: as `predict`.
        """
        _, relative = self._scores_and_variance("predict_variance", x, options)
        out = relative[:, None] * self.uncertainty.noise
        if self.scale is not None:
            out = out * self.scale[1] ** 2
        return out[:, 0] if self.fitted.best.num_targets is None else out

    def predict_interval(
        self, x: Examples, *, level: float = 0.9, **options: Any
    ) -> NDArray:
        """Return intervals for new targets, the lower ends first: (2, n) or (2, n, t).

        The half width is the deviation at x times the quantile of the residuals of
        examples that were left out, in units of their deviations. Residuals need not
        be Gaussian.

        Args:
          x, options: as for `predict`.
          level: the probability, in (0, 1).

        Raises:
          ValueError: `level` is out of its range, or the model was fitted to labels; or
            as `predict`.
        """
        if self.scale is None:
            raise ValueError(
                "predict_interval: the model must be fitted to numbers, got labels; "
                "use predict_proba"
            )
        if not 0 < level < 1:
            raise ValueError(f"predict_interval: level must be in (0, 1), got {level}")
        quantiles = self.uncertainty.quantiles.T
        factor = np.array([np.interp(level, _PROBABILITIES, q) for q in quantiles])
        scores, relative = self._scores_and_variance("predict_interval", x, options)
        half = np.sqrt(relative)[:, None] * factor * self.scale[1]
        middle = self._unscaled(scores)
        half = half.reshape(middle.shape)
        return np.stack([middle - half, middle + half])

    def save(self, path: str | os.PathLike) -> None:
        """Write the model to a file, which `jax_ntk_sketch.io.load` reads.

        Raises:
          OSError, TypeError, ValueError: as `jax_ntk_sketch.io.save`.
        """
        io.save(path, self)

    def __str__(self) -> str:
        fmap = self.fitted.fmap
        lines = [f"{fmap.num_features} features, {fmap.method!r}", *self.sentences]
        return "\n".join([*lines, f"Expected on new examples: {self.error}."])

    def _repr_html_(self) -> str:
        return "<br>".join(map(html.escape, str(self).splitlines()))

    def _check_labels(self, owner: str) -> None:
        if self.classes is None:
            raise ValueError(
                f"{owner}: the model must be fitted to labels, got a model of numbers; "
                'use predict, or fit with task="classification"'
            )

    def _numbers(
        self, owner: str, x: Examples, options: dict[str, Any]
    ) -> tuple[Examples, dict[str, Any]]:
        """Return examples as numbers, and the options with what belongs to them."""
        names = "pattern", "mask"
        extras = {name: options[name] for name in names if name in options}
        x, extras = as_numbers(owner, x, self.table, extras)
        return x, options | extras

    def _scores(self, owner: str, x: Examples, options: dict[str, Any]) -> NDArray:
        x, options = self._numbers(owner, x, options)
        return self.fitted.predict(x, **options)

    def _unscaled(self, scores: NDArray) -> NDArray:
        """Return scores in the unit of the targets; those of classes as they are."""
        if self.scale is None:
            return scores
        mean, deviation = self.scale
        out = scores.reshape(len(scores), len(mean)) * deviation + mean
        return out.reshape(scores.shape)

    def _scores_and_variance(
        self, owner: str, x: Examples, options: dict[str, Any]
    ) -> tuple[NDArray, NDArray]:
        """Return scores, and variances of new targets over that of the noise, (n,)."""
        x, options = self._numbers(owner, x, options)
        fitted, own = self.fitted, self.uncertainty
        if (step := fitted.preprocessing) is not None:
            x = Prepared(x, step.shape, step)
        options = {"progress": False, **options}
        extras = {k: options.pop(k) for k in ("pattern", "mask") if k in options}
        scores, variances = [], []
        for start in range(0, max(1, x.shape[0]), _BLOCK):
            rows = slice(start, start + _BLOCK)
            some = x[rows]
            given = jax.tree.map(lambda a, rows=rows: a[rows], extras)
            phi = np.asarray(
                transform(fitted.fmap, fitted.params, some, **options, **given)
            )
            left = _left_out_of_kernel(fitted.fmap, some, phi.astype(np.float64))
            scores.append(np.asarray(fitted.best.predict(phi)))
            variances.append(1 + own.spread(phi) + left / own.penalty)
        return np.concatenate(scores), np.concatenate(variances)


def _left_out_of_kernel(fmap: Any, x: NDArray, phi: NDArray) -> NDArray | float:
    """Return K(x, x) without the squared norms of the features, where K is known."""
    if not isinstance(fmap, NetworkFeatureMap) or np.ndim(x) != 2:
        return 0.0
    if not replaces_network(fmap.net):
        return 0.0
    kernels = diagonal_kernels(fmap.net, np.asarray(x) * x.shape[1] ** -0.5)
    exact = np.asarray(getattr(kernels, str(fmap.get)), np.float64)
    return np.maximum(exact - np.square(phi).sum(axis=1), 0)
