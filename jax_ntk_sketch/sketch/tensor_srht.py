"""TensorSRHT: a sketch of the tensor product of two vectors, from two transforms."""

import dataclasses
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_input, check_key, check_size, set_sizes
from jax_ntk_sketch._typing import Array, ArrayLike, Key
from jax_ntk_sketch.sketch.srht import SignedHadamardRows

# Parameters of the rows that multiply each of the two vectors.
_Params: TypeAlias = tuple[dict[str, Array], dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class TensorSRHT:
    r"""A sketch of :math:`u \otimes v` that does not form the tensor product.

    .. math:: S(u \otimes v)_i = m^{-1/2}\,(H_1\sigma_1 u)_{r_i}\,(H_2\sigma_2 v)_{q_i}

    with Hadamard matrices of entries ±1, independent signs, and rows r, q independent
    of each other, each taken without replacement (see `SignedHadamardRows`).

    Args:
      input_dims: (d1, d2), the sizes of the two vectors.
      output_dim: m, the size of the sketch, any positive integer.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is below 1, or `input_dims` is not a pair.

    Cost: one Hadamard transform of each vector (of size m at least) and m products.
    Guarantee: unbiased,
    :math:`E\langle S(u\otimes v), S(u'\otimes v')\rangle
    = \langle u, u'\rangle\langle v, v'\rangle`; variance at most about
    :math:`((a + s)(b + t) - s t)/m` with :math:`s = \langle u, u'\rangle^2`,
    :math:`a = \|u\|^2\|u'\|^2 + s`, and b, t the same numbers of v and v'.
    Source: Ahle et al., arXiv 1909.01410.

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch.sketch import TensorSRHT
    >>> sketch = TensorSRHT((3, 5), 16)
    >>> params = sketch.init(jax.random.key(0))
    >>> sketch.apply(params, jnp.ones((2, 3)), jnp.ones((2, 5))).shape
    (2, 16)
    """

    input_dims: tuple[int, int]
    output_dim: int

    def __post_init__(self) -> None:
        dims = tuple(self.input_dims)
        if len(dims) != 2:
            raise ValueError(f"TensorSRHT: input_dims must be two sizes, got {dims}")
        dims = tuple(check_size("TensorSRHT", "input_dims", dim) for dim in dims)
        object.__setattr__(self, "input_dims", dims)
        set_sizes(self, "output_dim")

    @property
    def factors(self) -> tuple[SignedHadamardRows, SignedHadamardRows]:
        """The rows that multiply u and those that multiply v."""
        first, second = self.input_dims
        return (
            SignedHadamardRows(first, self.output_dim),
            SignedHadamardRows(second, self.output_dim),
        )

    @property
    def scale(self) -> float:
        """The factor between products of orthonormal rows and the sketch."""
        first, second = self.factors
        return math.sqrt(first.padded_dim * second.padded_dim / self.output_dim)

    @property
    def flops(self) -> int:
        """Floating-point operations per pair of vectors."""
        return sum(f.flops for f in self.factors) + 2 * self.output_dim

    def init(self, key: Key) -> _Params:
        """Draw signs and rows for each of the two vectors."""
        first_key, second_key = jax.random.split(check_key("TensorSRHT", key))
        first, second = self.factors
        return first.init(first_key), second.init(second_key)

    def apply(self, params: _Params, u: ArrayLike, v: ArrayLike) -> Array:
        """Sketch `u` `(..., d1)` and `v` `(..., d2)` to `(..., m)`."""
        u = check_input("TensorSRHT", "u", u, self.input_dims[0])
        v = check_input("TensorSRHT", "v", v, self.input_dims[1])
        first, second = self.factors
        product = first.apply(params[0], u) * second.apply(params[1], v)
        return product * jnp.asarray(self.scale, product.dtype)
