"""The subsampled randomized Hadamard transform, for any input and output size."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_input, check_key, set_sizes
from jax_ntk_sketch._numerics import lift, matmul, next_power_of_two
from jax_ntk_sketch._typing import Array, ArrayLike, Key
from jax_ntk_sketch.sketch.hadamard import hadamard_flops, hadamard_transform
from jax_ntk_sketch.sketch.signs import random_signs

# Up to this input size a dense matrix of more than D rows is cheaper than transforms.
_MAX_DENSE_DIM = 64


@dataclasses.dataclass(frozen=True)
class SignedHadamardRows:
    r"""The first `output_dim` rows of stacked random rotations :math:`H\sigma P`.

    H is orthonormal of size D, the next power of two of `input_dim`. P pads with zeros
    and permutes all D entries at random, once. Each further rotation has its own signs
    :math:`\sigma`, and begins only when all rows of the last one are used. Each row r
    has :math:`E\,(r\cdot x)(r\cdot y) = \langle x, y\rangle / D`. The rows are the
    building block of `SRHT` and `TensorSRHT`.

    The published transforms sample rows of H instead of permuting its columns. The
    covariance of two rows depends only on their difference (bitwise, in the group
    that indexes the rows). Its average over permutations is the same for every nonzero
    difference. So the first rows are as good as rows sampled without replacement, and
    the D inputs are gathered instead of every output.
    """

    input_dim: int
    output_dim: int

    @property
    def padded_dim(self) -> int:
        """D, the next power of two of `input_dim`."""
        return next_power_of_two(self.input_dim)

    @property
    def num_blocks(self) -> int:
        """The number of rotations that the rows are taken from."""
        return math.ceil(self.output_dim / self.padded_dim)

    @property
    def flops(self) -> int:
        """Floating-point operations per vector, as the transform is written here."""
        if self._dense:
            return 2 * self.input_dim * self.output_dim
        return self.num_blocks * (hadamard_flops(self.padded_dim) + self.padded_dim)

    @property
    def _dense(self) -> bool:
        """Whether `apply` multiplies by a matrix of the rows."""
        return self.num_blocks > 1 and self.input_dim <= _MAX_DENSE_DIM

    def init(self, key: Key) -> dict[str, Array]:
        """Draw `order` `(D,)` int32 and `sign` `(blocks, D)` int8, 0 for padding."""
        sign_key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, self.padded_dim).astype(jnp.int32)
        sign = random_signs(sign_key, (self.num_blocks, self.padded_dim))
        return {
            "order": jnp.minimum(order, self.input_dim - 1),
            "sign": jnp.where(order < self.input_dim, sign, 0).astype(jnp.int8),
        }

    def apply(self, params: dict[str, Array], x: Array) -> Array:
        """Return the products of the rows with `x` `(..., d)`, `(..., output_dim)`."""
        if not self._dense:
            return self._rotate(params, x)
        return matmul(x, self._rotate(params, jnp.eye(self.input_dim, dtype=x.dtype)))

    def _rotate(self, params: dict[str, Array], x: Array) -> Array:
        # In bounds by construction; checking each index costs more than the gather.
        x = x.at[..., params["order"]].get(mode="promise_in_bounds")
        signs = params["sign"].astype(x.dtype)
        x = x[..., None, :]
        rotated = hadamard_transform(x * lift(signs, x))
        flat = rotated.reshape(*x.shape[:-2], self.num_blocks * self.padded_dim)
        return flat[..., : self.output_dim]


@dataclasses.dataclass(frozen=True)
class SRHT:
    r"""Random signs, Hadamard transform, sampled rows: :math:`\sqrt{D/m} P H \sigma x`.

    Rows are taken without replacement (see `SignedHadamardRows`). Where `output_dim`
    exceeds the padded size D, independent rotations are stacked, so that a multiple of
    D is an exact isometry.

    Args:
      input_dim: d, any positive size; padded with zeros to D, a power of two.
      output_dim: m, any positive size.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is below 1.

    Cost: :math:`\lceil m/D\rceil D \log D` a vector; parameters of 4 D bytes and one
    byte per entry of each rotation.
    Guarantee: unbiased, :math:`E\langle Sx, Sy\rangle = \langle x, y\rangle`; variance
    at most about :math:`(1 - m/D)(\|x\|^2\|y\|^2 + \langle x, y\rangle^2)/m`.
    Source: Ailon and Chazelle (2009); Tropp, "Improved analysis of the subsampled
    randomized Hadamard transform" (2011).

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch.sketch import SRHT
    >>> sketch = SRHT(3, 4)
    >>> out = sketch.apply(sketch.init(jax.random.key(0)), jnp.array([1.0, 2.0, 2.0]))
    >>> round(float(out @ out), 4)
    9.0
    """

    input_dim: int
    output_dim: int

    def __post_init__(self) -> None:
        set_sizes(self, "input_dim", "output_dim")

    @property
    def _rows(self) -> SignedHadamardRows:
        return SignedHadamardRows(self.input_dim, self.output_dim)

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return self._rows.flops + self.output_dim

    def init(self, key: Key) -> dict[str, Array]:
        """Draw signs and rows."""
        return self._rows.init(check_key("SRHT", key))

    def apply(self, params: dict[str, Array], x: ArrayLike) -> Array:
        """Sketch `x` `(..., d)` to `(..., m)`, in the dtype of `x`."""
        x = check_input("SRHT", "x", x, self.input_dim)
        scale = math.sqrt(self._rows.padded_dim / self.output_dim)
        return self._rows.apply(params, x) * jnp.asarray(scale, x.dtype)
