"""Products of two kernels: tensor products of their features, sketched if large."""

import dataclasses

from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch._typing import Array, Key, PyTree
from jax_ntk_sketch.features.methods.exact import factor
from jax_ntk_sketch.sketch import TensorSRHT


@dataclasses.dataclass(frozen=True)
class Product:
    """The map from features x and y to features of the product of their kernels.

    Attributes:
      left, right: the columns of x (..., left) and y (..., right).
      max_columns: the largest number of columns, beyond which products are sketched.
      batch_columns: the number of rows of x, if the kernel of the whole batch is
        factored, which has a column for each row; 0 for tensor products.
    """

    left: int
    right: int
    max_columns: int
    batch_columns: int = 0

    @property
    def columns(self) -> int:
        """The columns of the features of the product."""
        pairs = self.left * self.right
        if pairs == 0:
            return 0
        return self.batch_columns or min(pairs, self.max_columns)

    @property
    def _sketch(self) -> TensorSRHT | None:
        if self.batch_columns or self.left * self.right <= self.max_columns:
            return None
        return TensorSRHT((self.left, self.right), self.max_columns)

    @property
    def flops(self) -> int:
        """Floating-point operations for each row."""
        return self._sketch.flops if self._sketch else self.left * self.right

    def init(self, key: Key) -> PyTree:
        """Draw the sketch, if there is one."""
        return self._sketch.init(key) if self._sketch else ()

    def apply(self, params: PyTree, x: Array, y: Array) -> Array:
        """Return features (..., columns) of the product."""
        if self.columns == 0:
            return x[..., :0]
        if self.batch_columns:
            n = self.batch_columns
            rows = x.reshape(n, -1), y.reshape(n, -1)
            first, second = (matmul(z, z.T) for z in rows)
            return factor(first * second).reshape(*x.shape[:-1], n)
        if self._sketch:
            return self._sketch.apply(params, x, y)
        outer = x[..., :, None] * y[..., None, :]
        return outer.reshape(*x.shape[:-1], x.shape[-1] * y.shape[-1])
