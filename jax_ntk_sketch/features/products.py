"""Products of two kernels: tensor products of their features, sketched if large."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch.features.methods.exact import factor
from jax_ntk_sketch.features.state import Spec
from jax_ntk_sketch.features.step import Context
from jax_ntk_sketch.methods import Exact
from jax_ntk_sketch.sketch import TensorSRHT

__all__ = ["Product"]


@dataclasses.dataclass(frozen=True)
class Product:
    """Features (..., columns) of the product of the kernels of x and y.

    Attributes:
      left, right: columns of x (..., left) and y (..., right).
      most: columns at most, but for "exact".
      rows: of x in all, for "exact", which factors their kernel; else 0.
    """

    left: int
    right: int
    most: int
    rows: int = 0

    @classmethod
    def at(cls, left: int, right: int, most: int, spec: Spec, context: Context) -> Any:
        """At each position of each example."""
        exact = isinstance(context.method, Exact)
        return cls(left, right, most, context.batch_size * spec.pixels if exact else 0)

    @property
    def columns(self) -> int:
        every = self.left * self.right
        return 0 if every == 0 else self.rows or min(every, self.most)

    @property
    def _sketch(self) -> TensorSRHT | None:
        if self.rows or self.left * self.right <= self.most:
            return None
        return TensorSRHT((self.left, self.right), self.most)

    @property
    def flops(self) -> int:
        """For each row."""
        return self._sketch.flops if self._sketch else self.left * self.right

    def init(self, key: jax.Array) -> Any:
        return self._sketch.init(key) if self._sketch else ()

    def apply(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        if self.columns == 0:
            return x[..., :0]
        if self.rows:
            grams = [
                jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)
                for z in (x.reshape(self.rows, -1), y.reshape(self.rows, -1))
            ]
            return factor(grams[0] * grams[1]).reshape(*x.shape[:-1], self.rows)
        if self._sketch:
            return self._sketch.apply(params, x, y)
        outer = x[..., :, None] * y[..., None, :]
        return outer.reshape(*x.shape[:-1], -1)
