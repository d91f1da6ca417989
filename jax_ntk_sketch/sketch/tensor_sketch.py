"""TensorSketch: tensor powers as products of Fourier transforms of CountSketches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_input, check_key, set_sizes
from jax_ntk_sketch.sketch.count_sketch import CountSketch
from jax_ntk_sketch.sketch.hadamard import pad_to

__all__ = ["TensorSketch"]


@dataclasses.dataclass(frozen=True)
class TensorSketch:
    r"""Sketches :math:`x^{\otimes p}` by convolving p CountSketches of x.

    Fourier transforms of sizes with large prime factors are slow, so the number of
    buckets is the largest integer <= `output_dim` without a prime factor above 5, and
    the remaining columns (none for the usual sizes) are zero.

    Args:
      input_dim: d, the size of the vectors.
      degree: p >= 1, the tensor power.
      output_dim: m, the size of the sketch.

    Cost: `p (d + m log m)` a vector.
    Guarantee: unbiased, :math:`E\langle Sx, Sy\rangle = \langle x, y\rangle^p`;
    variance at most :math:`3^p \|x\|^{2p}\|y\|^{2p}/m`, exponential in p: for more than
    a few degrees use `PolySketch`.
    Source: Pham and Pagh, "Fast and scalable polynomial kernels via explicit feature
    maps" (2013).

    >>> sketch = TensorSketch(4, degree=3, output_dim=8)
    >>> sketch.apply(sketch.init(jax.random.key(0)), jnp.ones((2, 4))).shape
    (2, 8)
    """

    input_dim: int
    degree: int
    output_dim: int

    def __post_init__(self) -> None:
        set_sizes(self, "input_dim", "degree", "output_dim")

    @property
    def num_buckets(self) -> int:
        """The largest 5-smooth number that does not exceed `output_dim`."""
        return next(n for n in range(self.output_dim, 0, -1) if _is_smooth(n))

    @property
    def flops(self) -> int:
        """Floating-point operations per vector (5 n log2 n a transform, half real)."""
        m = self.num_buckets
        transform = int(2.5 * m * max(m.bit_length() - 1, 1))
        return (self.degree + 1) * transform + self.degree * (
            2 * self.input_dim + 3 * m
        )

    @property
    def _leaf(self) -> CountSketch:
        return CountSketch(self.input_dim, self.num_buckets)

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws `degree` independent CountSketches, stacked on a leading axis."""
        keys = jax.random.split(check_key("TensorSketch", key), self.degree)
        return jax.vmap(self._leaf.init)(keys)

    def apply(self, params: dict[str, jax.Array], x: Any) -> jax.Array:
        """Sketches `x` `(..., d)` to `(..., m)`, dtype of `x`."""
        x = check_input("TensorSketch", "x", x, self.input_dim)
        # Fourier transforms exist in single and double precision only.
        working = jnp.promote_types(x.dtype, jnp.float32)
        sketches = jax.vmap(self._leaf.apply, in_axes=(0, None))(
            params, x.astype(working)
        )
        spectrum = jnp.prod(jnp.fft.rfft(sketches), axis=0)
        out = jnp.fft.irfft(spectrum, n=self.num_buckets).astype(x.dtype)
        return pad_to(out, self.output_dim)


def _is_smooth(n: int) -> bool:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1
