"""The subsampled randomised Hadamard transform, for any input and output size."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch.sketch.base import check_input, check_key, check_size
from jax_ntk_sketch.sketch.hadamard import (
    hadamard_transform,
    next_power_of_two,
    pad_to,
)

__all__ = ["SRHT", "SignedHadamardRows"]


@dataclasses.dataclass(frozen=True)
class SignedHadamardRows:
    r"""`num_rows` rows of stacked random rotations :math:`H \mathrm{diag}(\sigma)`.

    The rows of one rotation are taken without replacement, and a further, independent
    rotation begins only when all rows of the last one are used. H is orthonormal of
    size D, the next power of two of `input_dim`; vectors are padded with zeros.
    The building block of SRHT and TensorSRHT; each row r has
    :math:`E\,(r\cdot x)(r\cdot y) = \langle x, y\rangle / D`.
    """

    input_dim: int
    num_rows: int

    @property
    def padded_dim(self) -> int:
        """D, the next power of two of `input_dim`."""
        return next_power_of_two(self.input_dim)

    @property
    def num_blocks(self) -> int:
        """How many rotations the rows are taken from."""
        return math.ceil(self.num_rows / self.padded_dim)

    @property
    def flops(self) -> int:
        """Floating-point operations per vector, as the transform is written here."""
        d = self.padded_dim
        base = min(d, 64)
        return self.num_blocks * d * (2 * base + int(math.log2(d // base)) + 1)

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws `sign` `(blocks, d)` int8 and `row` `(num_rows,)` int32."""
        sign_key, row_key = jax.random.split(key)
        shape = (self.num_blocks, self.input_dim)
        order = jax.vmap(lambda k: jax.random.permutation(k, self.padded_dim))(
            jax.random.split(row_key, self.num_blocks)
        )
        start = self.padded_dim * jnp.arange(self.num_blocks, dtype=jnp.int32)
        rows = (order.astype(jnp.int32) + start[:, None]).reshape(-1)
        return {
            "sign": jax.random.rademacher(sign_key, shape, jnp.int8),
            "row": rows[: self.num_rows],
        }

    def apply(self, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        """The products of the rows with `x` `(..., d)`: `(..., num_rows)`."""
        signed = x[..., None, :] * params["sign"].astype(x.dtype)
        rotated = hadamard_transform(pad_to(signed, self.padded_dim))
        flat = rotated.reshape(*x.shape[:-1], self.num_blocks * self.padded_dim)
        return jnp.take(flat, params["row"], axis=-1)


@dataclasses.dataclass(frozen=True)
class SRHT:
    r"""Random signs, Hadamard transform, sampled rows: :math:`\sqrt{D/m} P H \sigma x`.

    Rows are sampled without replacement; where `output_dim` exceeds the padded size
    D, independent rotations are stacked, so that a multiple of D is an exact isometry.

    Args:
      input_dim: d, any positive size; padded with zeros to D, a power of two.
      output_dim: m, any positive size.

    Cost: :math:`\lceil m/D\rceil D \log D` a vector; parameters d + 4 m bytes.
    Guarantee: unbiased, :math:`E\langle Sx, Sy\rangle = \langle x, y\rangle`; variance
    at most about :math:`(1 - m/D)(\|x\|^2\|y\|^2 + \langle x, y\rangle^2)/m`.
    Source: Ailon and Chazelle (2009); Tropp, "Improved analysis of the subsampled
    randomized Hadamard transform" (2011).

    >>> sketch = SRHT(3, 4)
    >>> out = sketch.apply(sketch.init(jax.random.key(0)), jnp.array([1.0, 2.0, 2.0]))
    >>> round(float(out @ out), 4)
    9.0
    """

    input_dim: int
    output_dim: int

    def __post_init__(self) -> None:
        check_size("SRHT", "input_dim", self.input_dim)
        check_size("SRHT", "output_dim", self.output_dim)

    @property
    def _rows(self) -> SignedHadamardRows:
        return SignedHadamardRows(self.input_dim, self.output_dim)

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return self._rows.flops + self.output_dim

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws signs and rows."""
        return self._rows.init(check_key("SRHT", key))

    def apply(self, params: dict[str, jax.Array], x: Any) -> jax.Array:
        """Sketches `x` `(..., d)` to `(..., m)`, dtype of `x`."""
        x = check_input("SRHT", "x", x, self.input_dim)
        scale = math.sqrt(self._rows.padded_dim / self.output_dim)
        return self._rows.apply(params, x) * jnp.asarray(scale, x.dtype)
