"""Linear models on features, as ridge regression returns them."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

__all__ = ["RidgeInfo", "RidgeModel"]


class RidgeInfo(NamedTuple):
    """Diagnostics of a solve, NaN if not known; each () or, for several `reg`, (r,).

    Attributes:
      count: examples seen (the sum of their weights), ().
      condition: condition number of the system matrix, the Gram matrix (centred,
        with an intercept) plus the penalty.
      effective_dof: effective degrees of freedom, the trace of G (G + λI)^-1; the
        intercept is not counted.
      residual: norm of the normal equations' residual at the weights as returned,
        relative to that of their right-hand side, in float64.
      rounding: estimate of the weights' relative error from rounding in the sums.
      mse: mean squared error on the examples seen, over all targets.
      gcv: generalised cross-validation, `mse / (1 - dof / count)^2` with the intercept
        in dof: an estimate of the error on new examples, of which leave-one-out is the
        mean over rotations of the data (Golub, Heath, Wahba 1979). Infinite where
        dof reaches the number of examples.
    """

    count: Any
    condition: Any = np.nan
    effective_dof: Any = np.nan
    residual: Any = np.nan
    rounding: Any = np.nan
    mse: Any = np.nan
    gcv: Any = np.nan


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("weights", "intercept", "reg", "info"),
    meta_fields=("num_targets", "num_classes"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class RidgeModel:
    """A linear model on features, or one per value of `reg`.

    Attributes:
      weights: (m, t), or (m,) where `num_targets` is None; with r values of `reg`
        (r, m, t) or (r, m).
      intercept: (t,) or (); with r values of `reg` (r, t) or (r,).
      reg: () or (r,), as given.
      info: `RidgeInfo`.
      num_targets: t, or None for targets of shape (n,).
      num_classes: the number of classes where the targets are one-hot; else None.
    """

    weights: Array
    intercept: Array
    reg: Any
    info: RidgeInfo
    num_targets: int | None = None
    num_classes: int | None = None

    def predict(self, phi: ArrayLike) -> Array:
        """Predictions `phi @ weights + intercept`; for classes, their scores.

        Args:
          phi: (n, m).

        Returns:
          (n, t), or (n,) where `num_targets` is None; with r values of `reg`
          (r, n, t) or (r, n).

        Raises:
          ValueError: `phi` does not have m columns.
        """
        phi = jnp.asarray(phi)
        flat = self.num_targets is None
        weights = self.weights[..., None] if flat else self.weights
        intercept = self.intercept[..., None] if flat else self.intercept
        if phi.ndim != 2 or phi.shape[1] != weights.shape[-2]:
            raise ValueError(
                f"predict: phi must have shape (n, {weights.shape[-2]}), the features "
                f"that the model was fitted on; got {phi.shape}"
            )
        scores = jnp.matmul(phi, weights, precision=jax.lax.Precision.HIGHEST)
        scores = scores + intercept[..., None, :]
        return scores[..., 0] if flat else scores

    def predict_class(self, phi: ArrayLike) -> Array:
        """The class of the largest score, in 0..num_classes - 1.

        Args:
          phi: (n, m).

        Returns:
          (n,) integers; (r, n) with r values of `reg`.

        Raises:
          ValueError: the model was not fitted on class labels.
        """
        if self.num_classes is None:
            raise ValueError(
                "predict_class: the model was fitted on numbers, not on classes; use "
                "predict, or fit_ridge with integer labels"
            )
        return jnp.argmax(self.predict(phi), axis=-1)

    def select(self, index: int) -> "RidgeModel":
        """The model of the `index`-th value of `reg`."""
        if np.ndim(self.reg) == 0:
            raise ValueError("select: the model has a single reg; there is no choice")
        r = len(self.reg)
        if not -r <= index < r:
            raise ValueError(f"select: index must be in [{-r}, {r}), got {index}")
        count, *rest = self.info
        return dataclasses.replace(
            self,
            weights=self.weights[index],
            intercept=self.intercept[index],
            reg=self.reg[index],
            info=RidgeInfo(count, *(np.asarray(value)[index] for value in rest)),
        )

    def best(
        self, phi: ArrayLike | None = None, y: ArrayLike | None = None
    ) -> "RidgeModel":
        """The single-`reg` model with the least error on held-out data.

        Args:
          phi: (n, m) held-out features; without them and y the least `info.gcv`
            decides, which needs no other data.
          y: their targets, shaped as predictions, judged by mean squared error; or
            (n,) integer class labels, judged by the share of wrong classes. Ties go
            to the first.

        Raises:
          ValueError: a single `reg`, targets of another shape, or one of `phi` and
            `y` without the other.
        """
        if (phi is None) != (y is None):
            raise ValueError("best: phi and y go together")
        if phi is None or y is None:
            return self.select(int(np.argmin(np.atleast_1d(self.info.gcv))))
        y = jnp.asarray(y)
        classify = self.num_classes is not None
        guess = self.predict_class(phi) if classify else self.predict(phi)
        if np.ndim(self.reg) == 1 and y.shape != guess.shape[1:]:
            raise ValueError(
                f"best: y must have shape {guess.shape[1:]}, got {y.shape}"
            )
        loss = guess != y if classify else (guess - y) ** 2
        errors = np.asarray(loss, np.float64).reshape(len(guess), -1).mean(axis=1)
        return self.select(int(np.argmin(errors)))
