"""CountSketch and OSNAP: sparse sign matrices, applied in time linear in nonzeros."""

import dataclasses

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_input, check_key, set_sizes
from jax_ntk_sketch._typing import Array, ArrayLike, Key
from jax_ntk_sketch.sketch.signs import random_signs


@dataclasses.dataclass(frozen=True)
class OSNAP:
    r"""A sparse embedding with `sparsity` entries :math:`\pm s^{-1/2}` per coordinate.

    The outputs are cut into `sparsity` blocks of (nearly) equal size. Each input
    coordinate goes to one uniformly chosen output of each block.

    Args:
      input_dim: d, the size of the vectors.
      output_dim: m, the size of the sketch.
      sparsity: s, nonzeros per input coordinate, 1 <= s <= m.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is below 1, or `sparsity` exceeds `output_dim`.

    Cost: `s d` additions a vector; parameters of 5 bytes per nonzero.
    Guarantee: unbiased, :math:`E\langle Sx, Sy\rangle = \langle x, y\rangle`, with
    variance at most :math:`(\|x\|^2\|y\|^2 + \langle x, y\rangle^2)/m` for m a
    multiple of s.
    Source: Nelson and Nguyen, "OSNAP: faster numerical linear algebra algorithms via
    sparser subspace embeddings" (2013), block construction.

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch.sketch import OSNAP
    >>> sketch = OSNAP(10, 8, sparsity=2)
    >>> params = sketch.init(jax.random.key(0))
    >>> sketch.apply(params, jnp.ones((3, 10))).shape
    (3, 8)
    """

    input_dim: int
    output_dim: int
    sparsity: int = 4

    def __post_init__(self) -> None:
        set_sizes(self, "input_dim", "output_dim", "sparsity")
        if self.sparsity > self.output_dim:
            raise ValueError(
                f"{type(self).__name__}: sparsity must be at most output_dim = "
                f"{self.output_dim}, got {self.sparsity}"
            )

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return 2 * self.sparsity * self.input_dim

    def init(self, key: Key) -> dict[str, Array]:
        """Draw `bucket` `(s, d)` int32 and `sign` `(s, d)` int8."""
        bucket_key, sign_key = jax.random.split(check_key(type(self).__name__, key))
        edges = [i * self.output_dim // self.sparsity for i in range(self.sparsity + 1)]
        start = jnp.asarray(edges[:-1], jnp.int32)[:, None]
        stop = jnp.asarray(edges[1:], jnp.int32)[:, None]
        shape = (self.sparsity, self.input_dim)
        return {
            "bucket": jax.random.randint(bucket_key, shape, start, stop, jnp.int32),
            "sign": random_signs(sign_key, shape),
        }

    def apply(self, params: dict[str, Array], x: ArrayLike) -> Array:
        """Sketch `x` `(..., d)` to `(..., m)`, in the dtype of `x`."""
        x = check_input(type(self).__name__, "x", x, self.input_dim)
        rows = x.reshape(-1, self.input_dim).T  # segment sums run over the first axis
        # Inexact only in low precision, and exact where sparsity is a power of 4.
        scale = jnp.asarray(self.sparsity**-0.5, x.dtype)
        out = jnp.zeros((self.output_dim, rows.shape[1]), x.dtype)
        for bucket, sign in zip(params["bucket"], params["sign"], strict=True):
            signed = rows * (sign.astype(x.dtype) * scale)[:, None]
            out = out + jax.ops.segment_sum(signed, bucket, self.output_dim)
        return out.T.reshape(*x.shape[:-1], self.output_dim)


@dataclasses.dataclass(frozen=True)
class CountSketch(OSNAP):
    r"""One :math:`\pm 1` per input coordinate, at a random place: OSNAP of sparsity 1.

    Args:
      input_dim: d, the size of the vectors.
      output_dim: m, the size of the sketch.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is below 1.

    Cost: `d` additions a vector.
    Guarantee: unbiased; the variance of :math:`\langle Sx, Sy\rangle` is
    :math:`(\|x\|^2\|y\|^2 + \langle x, y\rangle^2 - 2\sum_i x_i^2 y_i^2)/m`.
    Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams".

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch.sketch import CountSketch
    >>> sketch = CountSketch(4, 2)
    >>> sketch.apply(sketch.init(jax.random.key(0)), jnp.zeros(4)).tolist()
    [0.0, 0.0]
    """

    sparsity: int = dataclasses.field(default=1, init=False)
