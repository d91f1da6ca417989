"""The linear models that ridge regression returns, and their diagnostics."""

import dataclasses
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._arrays import to_numpy
from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch._typing import Array, ArrayLike
from jax_ntk_sketch.batches.labels import Label, decoder


@partial(jax.jit, static_argnums=3)
def _scores(phi: Array, weights: Array, intercept: Array, flat: bool) -> Array:
    """Return the scores of features, where `flat` targets have no second axis."""
    if flat:
        weights, intercept = weights[..., None], intercept[..., None]
    scores = matmul(phi, weights) + intercept[..., None, :]
    return scores[..., 0] if flat else scores


class RidgeInfo(NamedTuple):
    r"""Diagnostics of a solve, NaN where a fit does not compute them.

    Each is a number, or has shape (r,) for r values of `reg`.

    Attributes:
      count: (), the number of examples, or the sum of their weights.
      condition: the condition number of the system, the (centered) Gram matrix G plus
        the penalty.
      effective_dof: the effective degrees of freedom, the trace of
        :math:`G (G + \lambda I)^{-1}`, without the intercept.
      residual: the norm of the residual of the normal equations over the norm of their
        right-hand side, in float64, for the weights as returned.
      rounding: an estimate of the relative error that rounding in the sums causes in
        the weights.
      mse: the mean squared error on the examples, over all targets.
      gcv: generalized cross-validation, `mse / (1 - dof / n)**2` for n examples of
        positive weight, where dof includes the intercept. It estimates the error on new
        examples, and is the rotation-invariant form of leave-one-out (Golub, Heath,
        Wahba 1979). It is infinite where dof reaches n.
    """

    count: Any  # `tuple.count` forbids a narrower type
    condition: float | np.ndarray = np.nan
    effective_dof: float | np.ndarray = np.nan
    residual: float | np.ndarray = np.nan
    rounding: float | np.ndarray = np.nan
    mse: float | np.ndarray = np.nan
    gcv: float | np.ndarray = np.nan


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("weights", "intercept", "reg", "info"),
    meta_fields=("num_targets", "classes"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class RidgeModel:
    """A linear model on features, or one model for each of r values of `reg`.

    Attributes:
      weights: (m, t), or (m,) if `num_targets` is None; (r, m, t) or (r, m) for r
        values of `reg`.
      intercept: (t,) or (); (r, t) or (r,) for r values of `reg`.
      reg: () or (r,), the penalty per example.
      info: `RidgeInfo`.
      num_targets: t, or None for targets of shape (n,).
      classes: the labels in the order of the targets, if these are one-hot codes; else
        None.
    """

    weights: Array
    intercept: Array
    reg: np.ndarray
    info: RidgeInfo
    num_targets: int | None = None
    classes: tuple[Label, ...] | None = None

    @property
    def num_classes(self) -> int | None:
        """The number of classes, None if the targets are not classes."""
        return None if self.classes is None else len(self.classes)

    def predict(self, phi: ArrayLike) -> Array:
        """Return `phi @ weights + intercept`; for classes, one score per class.

        Args:
          phi: (n, m) features.

        Returns:
          (n, t), or (n,) if `num_targets` is None; (r, n, t) or (r, n) for r values of
          `reg`.

        Raises:
          ValueError: phi does not have m columns.
        """
        phi = jnp.asarray(phi)
        flat = self.num_targets is None
        m = self.weights.shape[-1 if flat else -2]
        if phi.ndim != 2 or phi.shape[1] != m:
            raise ValueError(
                f"RidgeModel.predict: phi must have shape (n, {m}), got {phi.shape}; "
                "give the features that the model was fitted on"
            )
        return _scores(phi, self.weights, self.intercept, flat)

    def predict_class(self, phi: ArrayLike) -> Array | np.ndarray:
        """Return the label of the class of the largest score.

        Args:
          phi: (n, m) features.

        Returns:
          (n,) labels, integers or text as those of the fit; (r, n) for r values of
          `reg`. They are a JAX array if the labels are numbered from 0 on, so that this
          can be traced, and a NumPy array for other labels.

        Raises:
          ValueError: the model was not fitted on class labels, or phi does not have m
            columns.
        """
        if self.classes is None:
            raise ValueError(
                "RidgeModel.predict_class: the model must be fitted on class labels, "
                "got a model of numbers; use predict, or fit integer labels"
            )
        numbers = jnp.argmax(self.predict(phi), axis=-1)
        decode = decoder(self.classes)
        return numbers if decode is None else decode(np.asarray(numbers))

    def select(self, index: int) -> "RidgeModel":
        """Return the model of one of r values of `reg`.

        Args:
          index: its position, in [-r, r).

        Raises:
          ValueError: the model has a single `reg`, or the index is out of range.
        """
        if np.ndim(self.reg) == 0:
            raise ValueError(
                "RidgeModel.select: the model must have several values of reg, got a "
                f"single reg, {self.reg:g}; use the model itself"
            )
        r = len(self.reg)
        if not -r <= index < r:
            raise ValueError(
                f"RidgeModel.select: index must be in [{-r}, {r}), got {index}"
            )
        count, *others = self.info
        return dataclasses.replace(
            self,
            weights=self.weights[index],
            intercept=self.intercept[index],
            reg=self.reg[index],
            info=RidgeInfo(count, *(np.asarray(value)[index] for value in others)),
        )

    def best(
        self, phi: ArrayLike | None = None, y: ArrayLike | None = None
    ) -> "RidgeModel":
        """Return the model of the `reg` with the smallest error on held-out data.

        The first of several equal errors wins. If no error is finite, the largest `reg`
        is taken, with a warning.

        Args:
          phi: (n, m) held-out features. Without phi and y, the smallest `info.gcv`
            decides, which needs no other data.
          y: the targets of these examples. Targets of the shape of predictions are
            compared by the mean squared error, (n,) class labels by the fraction of
            wrong classes.

        Raises:
          ValueError: the model has a single `reg`, y has another shape, or only one of
            phi and y is given.
        """
        if (phi is None) != (y is None):
            raise ValueError("RidgeModel.best: phi and y must be given together")
        if phi is None or y is None:
            errors = np.atleast_1d(self.info.gcv)
            return self.select(smallest("RidgeModel.best", "gcv", errors, self.reg))
        y = to_numpy("RidgeModel.best", "y", y)
        classify = self.classes is not None
        predict = self.predict_class if classify else self.predict
        predictions = np.asarray(predict(phi))
        if np.ndim(self.reg) == 1 and y.shape != predictions.shape[1:]:
            raise ValueError(
                f"RidgeModel.best: y must have shape {predictions.shape[1:]}, got "
                f"{y.shape}"
            )
        loss = predictions != y if classify else (predictions - y) ** 2
        errors = np.asarray(loss, np.float64).reshape(len(predictions), -1).mean(axis=1)
        return self.select(smallest("RidgeModel.best", "error", errors, self.reg))


def smallest(owner: str, what: str, errors: np.ndarray, reg: np.ndarray) -> int:
    """Return the position of the smallest finite error, the first of several.

    If there is none, the position of the largest `reg`, with a warning.
    """
    finite = np.isfinite(errors)
    if finite.any():
        return int(np.argmin(np.where(finite, errors, np.inf)))
    if len(errors) > 1:
        warnings.warn(
            f"{owner}: the {what} is not finite for any of the {len(errors)} values of "
            "reg, so that it cannot choose, and the largest reg is taken; give larger "
            "values, or held-out examples",
            RuntimeWarning,
            stacklevel=3,
        )
    return int(np.argmax(reg))


def make_model(
    weights: ArrayLike,
    intercept: ArrayLike,
    reg: ArrayLike,
    info: RidgeInfo,
    num_targets: int | None,
    classes: tuple[Label, ...] | None = None,
) -> RidgeModel:
    """Return a model from weights (..., m, t) and intercepts (..., t), t = 1 for None.

    The other arguments are the fields of the model.
    """
    weights, intercept = jnp.asarray(weights), jnp.asarray(intercept)
    if num_targets is None:
        weights, intercept = weights[..., 0], intercept[..., 0]
    regs: Any = reg if isinstance(reg, jax.core.Tracer) else np.asarray(reg)
    return RidgeModel(weights, intercept, regs, info, num_targets, classes)


def model_to_arrays(model: RidgeModel) -> dict[str, np.ndarray]:
    """Return the arrays of a model by name, on the host."""
    parts = {"weights": model.weights, "intercept": model.intercept, "reg": model.reg}
    parts |= {f"info.{name}": value for name, value in model.info._asdict().items()}
    return {name: np.asarray(value) for name, value in parts.items()}


def model_from_arrays(
    arrays: Mapping[str, np.ndarray],
    num_targets: int | None,
    classes: tuple[Label, ...] | None,
) -> RidgeModel:
    """Return the model that `model_to_arrays` described."""
    return RidgeModel(
        weights=jnp.asarray(arrays["weights"]),
        intercept=jnp.asarray(arrays["intercept"]),
        reg=arrays["reg"],
        info=RidgeInfo(*(arrays[f"info.{name}"] for name in RidgeInfo._fields)),
        num_targets=num_targets,
        classes=classes,
    )
