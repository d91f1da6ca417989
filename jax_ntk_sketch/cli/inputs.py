"""What is done to examples before a network sees them, the same when predicting."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import preprocessing
from jax_ntk_sketch._progress import progress

__all__ = ["Inputs", "View", "not_finite"]

# Examples at a time in passes that learn the preprocessing.
_BLOCK = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """From examples as they lie on disk to float32 arrays of the network's shape.

    Attributes:
      shape: (d,) for fully connected networks, (h, w, c) for images.
      pixels: values are those of pixels, and 8-bit ones are divided by 255.
      each: each example is given mean 0 and deviation 1, after the columns.
      columns: None, or the means and deviations (2, d) that columns are shifted and
        scaled by.
      zca: None, or a whitening, the last step.
    """

    shape: tuple[int, ...]
    pixels: bool
    each: bool = False
    columns: np.ndarray | None = None
    zca: preprocessing.ZCAParams | None = None

    def __call__(self, x: Any) -> np.ndarray:
        """Examples (n, ...) ready for the network, (n, *shape) float32.

        >>> inputs = Inputs((2,), True, columns=np.array([[0.5, 0.0], [0.5, 1.0]]))
        >>> inputs(np.array([[0, 255]], np.uint8)).tolist()
        [[-1.0, 1.0]]
        """
        x = self._scaled(x)
        if self.columns is not None:
            mean, deviation = self.columns.reshape(2, *self.shape)
            x = (x - mean) / deviation
        with np.errstate(over="ignore"):  # infinities are found later, and named
            x = x.astype(np.float32, copy=False)
        if self.each:
            x = np.asarray(_standardize(x))
        return x if self.zca is None else np.asarray(_whiten(self.zca, x))

    def learned(
        self,
        x: Any,
        *,
        columns: bool,
        zca_reg: float | None,
        skip: bool,
        show: bool | None,
    ) -> "Inputs":
        """The same with columns' means and deviations, and whitening, of examples.

        Args:
          x: training examples (n, ...), read once for each.
          columns: whether to shift and scale columns.
          zca_reg: None for no whitening, else as in `preprocessing.zca_fit`.
          skip: leave out examples that are not finite in place of an error.
          show: whether a progress bar is shown; None for where somebody looks.

        Raises:
          ValueError: examples that are not finite.
        """
        inputs = self
        if columns:
            state = preprocessing.covariance_init(self.shape, diagonal=True)
            label = "means and deviations"
            for rows in _blocks(x, self._scaled, label, skip, show):
                state = preprocessing.covariance_update(state, rows)
            mean, variance = state.mean.ravel(), state.covariance.ravel()
            deviation = np.sqrt(variance)
            # A constant column's deviation is rounding noise, not exactly zero.
            varies = deviation > 1e-12 * (1 + np.abs(mean))
            pair = np.stack([mean, np.where(varies, deviation, 1.0)])
            inputs = dataclasses.replace(inputs, columns=pair)
        if zca_reg is not None:
            state = preprocessing.covariance_init(self.shape)
            for rows in _blocks(x, inputs, "covariance for ZCA", skip, show):
                state = preprocessing.covariance_update(state, rows)
            zca = preprocessing.zca_from_covariance(state, reg=zca_reg)
            inputs = dataclasses.replace(inputs, zca=zca)
        return inputs

    def _scaled(self, x: Any) -> np.ndarray:
        """The first step, in the precision of the examples."""
        x = np.asarray(x)
        if x.dtype == np.uint8 and self.pixels:
            x = x.astype(np.float32) / np.float32(255)
        return x.reshape(len(x), *self.shape)

    def steps(self) -> list[str]:
        """What is done, one phrase each."""
        out = []
        if self.columns is not None:
            out.append("columns standardised with the training rows")
        if self.each:
            out.append("each image standardised to mean 0, deviation 1")
        if self.zca is not None:
            rank = float(self.zca.effective_rank)
            of = math.prod(self.shape)
            out.append(f"ZCA whitening, {rank:.0f} of {of} directions whitened")
        return out

    def notes(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a file keeps: JSON and arrays; `restored` reads it."""
        arrays = {} if self.columns is None else {"columns": self.columns}
        if self.zca is not None:
            for field in dataclasses.fields(self.zca):
                arrays[f"zca.{field.name}"] = np.asarray(getattr(self.zca, field.name))
        about = {"shape": list(self.shape), "pixels": self.pixels, "each": self.each}
        return about, arrays

    @classmethod
    def restored(cls, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Inputs":
        """What `notes` described."""
        zca = None
        if "zca.mean" in arrays:
            names = [
                field.name for field in dataclasses.fields(preprocessing.ZCAParams)
            ]
            zca = preprocessing.ZCAParams(
                *(jnp.asarray(arrays[f"zca.{name}"]) for name in names)
            )
        return cls(
            tuple(about["shape"]),
            about["pixels"],
            about["each"],
            arrays.get("columns"),
            zca,
        )


class View:
    """Examples on disk or in memory, prepared as slices of them are read."""

    def __init__(self, x: Any, inputs: Inputs):
        self._x, self._inputs = x, inputs

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._inputs(self._x[rows])


def _blocks(
    x: Any, step: Callable, label: str, skip: bool, show: bool | None
) -> Iterator[np.ndarray]:
    """What `step` makes of the examples that are finite, block by block."""
    for start in progress(range(0, len(x), _BLOCK), label, enabled=show):
        rows = step(x[start : start + _BLOCK])
        finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if not finite.all() and not skip:
            raise ValueError(not_finite(start, finite))
        yield rows[finite]


def not_finite(start: int, finite: np.ndarray) -> str:
    """What is wrong with a block of examples of which not all are finite."""
    bad = start + np.flatnonzero(~finite)
    some = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    return (
        f"examples {start} to {start + len(finite) - 1}: {len(bad)} of them are NaN or "
        f"infinite ({some}, from 0); repair or remove them"
    )


_standardize = jax.jit(preprocessing.standardize_examples)
_whiten = jax.jit(preprocessing.zca_apply)
