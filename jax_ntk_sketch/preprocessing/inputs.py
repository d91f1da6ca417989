"""`Inputs`: from examples as they lie on disk to the inputs of a network."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._typing import Examples, Shape
from jax_ntk_sketch.batches.prepared import Prepared
from jax_ntk_sketch.batches.reader import Nonfinite
from jax_ntk_sketch.preprocessing.covariance import read_moments
from jax_ntk_sketch.preprocessing.examples import standardize_examples
from jax_ntk_sketch.preprocessing.zca import ZCAParams, zca_apply, zca_fit


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The steps between examples and the network, and their learned arrays.

    Attributes:
      shape: (d,) for fully connected networks, (h, w, c) for images.
      pixels: whether values are pixels; then 8-bit ones are divided by 255.
      standardize_columns: whether columns get mean 0 and deviation 1.
      standardize_images: whether each image gets mean 0 and deviation 1.
      zca_reg: the regularization of ZCA whitening, or None for no whitening.
      columns: the learned means and deviations, (2, *shape).
      zca: the learned whitening.
    """

    shape: Shape
    pixels: bool = False
    standardize_columns: bool = False
    standardize_images: bool = False
    zca_reg: float | None = None
    columns: np.ndarray | None = None
    zca: ZCAParams | None = None

    def __call__(self, x: Examples) -> np.ndarray:
        """Return examples (n, ...) as inputs of the network, (n, *shape) float32.

        >>> import numpy as np
        >>> from jax_ntk_sketch.preprocessing.inputs import Inputs
        >>> inputs = Inputs((2,), True, columns=np.array([[0.5, 0.0], [0.5, 1.0]]))
        >>> inputs(np.array([[0, 255]], np.uint8)).tolist()
        [[-1.0, 1.0]]
        """
        x = self._scaled(x)
        if self.columns is not None:
            x = (x - self.columns[0]) / self.columns[1]
        with np.errstate(over="ignore"):  # the reader finds and names infinities
            x = x.astype(np.float32, copy=False)
        if self.standardize_images:
            x = np.asarray(_standardize(x))
        return x if self.zca is None else np.asarray(_whiten(self.zca, x))

    def _scaled(self, x: Examples) -> np.ndarray:
        """Return examples in their own precision, 8-bit pixels divided by 255."""
        x = np.asarray(x)
        if x.dtype == np.uint8 and self.pixels:
            x = np.divide(x, np.float32(255), dtype=np.float32)
        return x.reshape(len(x), *self.shape)

    def learned(self, x: Examples, *, nonfinite: Nonfinite = "raise") -> "Inputs":
        """Return the steps after they learned from training examples.

        Args:
          x: training examples (n, ...), read once for each step that learns.
          nonfinite: "skip" to leave out examples that are not finite.

        Raises:
          ValueError: examples are not finite, or cannot be whitened.
        """
        inputs = self
        if self.standardize_columns:
            scaled = Prepared(x, self.shape, self._scaled)
            moments = read_moments("fit", scaled, columns=True, nonfinite=nonfinite)
            deviation = np.sqrt(moments.covariance)
            # A constant column has a deviation of exactly 0.
            columns = np.stack([moments.mean, np.where(deviation > 0, deviation, 1.0)])
            inputs = dataclasses.replace(inputs, columns=columns)
        if self.zca_reg is not None:
            images = inputs.prepare(x)
            zca = zca_fit(images, reg=self.zca_reg, nonfinite=nonfinite)
            inputs = dataclasses.replace(inputs, zca=zca)
        return inputs

    def prepare(self, x: Examples) -> "Prepared":
        """Return examples that are prepared as slices of them are read."""
        return Prepared(x, self.shape, self)

    def steps(self) -> list[str]:
        """Return a sentence for each step that is done."""
        out = []
        if self.standardize_columns:
            out.append("Columns are standardized with the training rows.")
        if self.standardize_images:
            out.append("Each image is standardized to mean 0 and deviation 1.")
        if self.zca is not None:
            out.append(
                f"ZCA with reg = {self.zca_reg:g} whitens "
                f"{self.zca.effective_rank:.0f} of {math.prod(self.shape)} directions."
            )
        return out

    def saved(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return JSON and arrays for a file, which `restored` reads."""
        fields = {**vars(self)}
        columns, zca = fields.pop("columns"), fields.pop("zca")
        arrays = {} if columns is None else {"columns": columns}
        if zca is not None:
            arrays |= {f"zca.{name}": np.asarray(v) for name, v in vars(zca).items()}
        return fields, arrays

    @classmethod
    def restored(cls, saved: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Inputs":
        """Return the steps that `saved` described.

        Raises:
          ValueError: an array is missing, or has another shape.
        """
        parts = {
            name.removeprefix("zca."): jnp.asarray(array)
            for name, array in arrays.items()
            if name.startswith("zca.")
        }
        saved = saved | {"shape": tuple(saved["shape"])}
        zca = ZCAParams(**parts) if parts else None
        inputs = cls(**saved, columns=arrays.get("columns"), zca=zca)
        learned = inputs.columns is not None, zca is not None
        wanted = inputs.standardize_columns, inputs.zca_reg is not None
        shapes = [] if inputs.columns is None else [inputs.columns.shape]
        if learned != wanted or any(s != (2, *inputs.shape) for s in shapes):
            raise ValueError(
                "the model must have the statistics of its preprocessing, but the "
                "arrays in its file are others; fit it again"
            )
        return inputs


_standardize = jax.jit(standardize_examples)
_whiten = jax.jit(zca_apply)
