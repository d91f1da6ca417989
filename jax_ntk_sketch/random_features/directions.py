r"""Random directions w for features f(w · x), each kind a record with init and apply.

All kinds have :math:`E\,w w^\top = I`, so that relu(w · x) keeps the scale of x. They
differ in what else is exact and in cost:

- `GaussianDirections`: independent N(0, I).
- `SphereDirections`: Gaussian columns normalised to length √d. For features that are
  homogeneous of degree 1 the length is pure noise; this is the leverage-score density
  of arXiv 2106.07880, Section 3.2, which depends on w/|w| only.
- `OrthogonalDirections`: blocks of a Haar-distributed rotation, length √d. Each is
  uniform on the sphere; together they cover it evenly.
- `HadamardDirections`: three rounds of random signs and Hadamard transform, length √D.
  No matrix is stored or multiplied. Nearly, not exactly, uniform on the sphere: the
  bias of arc-cosine features is up to 2 % of K(x, x) in two dimensions and below the
  0.4 % that two million directions resolve in four and more (random and axis-aligned
  inputs).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_input, set_sizes
from jax_ntk_sketch._numerics import next_power_of_two
from jax_ntk_sketch.sketch import PatchSRHT, Window
from jax_ntk_sketch.sketch.hadamard import (
    hadamard_flops,
    hadamard_transform,
    pad_to,
)
from jax_ntk_sketch.sketch.signs import random_signs

__all__ = [
    "DIRECTIONS",
    "Directions",
    "GaussianDirections",
    "HadamardDirections",
    "HadamardPatchDirections",
    "NormalLengths",
    "OrthogonalDirections",
    "SphereDirections",
]


# In so few dimensions a dense matrix of the directions is cheaper than transforms
# (which are a product with a dense matrix of size 64 three times): measured on patches
# of 27 channels, four times.
_DENSE = 64


@dataclasses.dataclass(frozen=True)
class Directions:
    """Base of the kinds: `num` directions in `input_dim` dimensions, as a matrix."""

    input_dim: int
    num: int

    def __post_init__(self) -> None:
        set_sizes(self, "input_dim", "num")

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return 2 * self.input_dim * self.num

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws the directions, float32 whatever the dtype of x will be."""
        raise NotImplementedError

    def apply(self, params: dict[str, jax.Array], x: Any) -> jax.Array:
        """The projections w · x: `x` `(..., d)` to `(..., num)`, dtype of `x`."""
        x = check_input(type(self).__name__, "x", x, self.input_dim)
        return x @ params["w"].astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class GaussianDirections(Directions):
    """Independent normal directions."""

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        return {"w": jax.random.normal(key, (self.input_dim, self.num), jnp.float32)}


@dataclasses.dataclass(frozen=True)
class SphereDirections(Directions):
    """Independent uniform directions of length √d."""

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        w = jax.random.normal(key, (self.input_dim, self.num), jnp.float32)
        lengths = jnp.linalg.norm(w, axis=0)
        return {"w": w * (math.sqrt(self.input_dim) / lengths)}


@dataclasses.dataclass(frozen=True)
class OrthogonalDirections(Directions):
    """Blocks of d mutually orthogonal uniform directions of length √d."""

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        d, blocks = self.input_dim, math.ceil(self.num / self.input_dim)
        columns = min(d, self.num)
        normal = jax.random.normal(key, (blocks, d, columns), jnp.float32)
        q, r = jax.vmap(_qr)(normal)
        # QR is unique, and Q Haar distributed, only where R's diagonal is positive.
        signs = jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))
        w = q * (math.sqrt(d) * signs)[:, None, :]
        return {"w": jnp.moveaxis(w, 0, 1).reshape(d, -1)[:, : self.num]}


# XLA's CPU runtime can deadlock where several factorisations of stacked matrices run
# in one program (seen with JAX 0.10.2 on two cores): each waits for the threads that
# the others hold. Matrices one by one are safe, so that is what `vmap` means here.
@jax.custom_batching.sequential_vmap
def _qr(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.linalg.qr(a)


@dataclasses.dataclass(frozen=True)
class HadamardDirections(Directions):
    """Rows of blocks H σ₃ H σ₂ H σ₁ on x padded to D, a power of two; length √D.

    In more than 64 dimensions the first round, which spreads x over all coordinates, is
    common to the blocks: a third of the work saved, without effect on the law of a
    single direction.

    For small D too few directions can occur (D = 4: kappa0 is off by up to 0.26), so D
    is at least 64. Then the means of kappa0 and kappa1 were within 0.007 of exact, 3.5
    standard errors, for dense, constant, one-hot and 0/1 inputs in 4 to 784 dimensions.
    """

    @property
    def padded_dim(self) -> int:
        """D, the next power of two of `input_dim`, and at least 64."""
        return max(64, next_power_of_two(self.input_dim))

    @property
    def num_blocks(self) -> int:
        """How many rotations the directions are taken from."""
        return math.ceil(self.num / self.padded_dim)

    @property
    def flops(self) -> int:
        if self.input_dim <= _DENSE:
            return 2 * self.input_dim * self.num
        one = hadamard_flops(self.padded_dim) + self.padded_dim
        return (self._first + 2 * self.num_blocks) * one

    @property
    def _first(self) -> int:
        """How many first rounds there are."""
        return self.num_blocks if self.input_dim <= _DENSE else 1

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        shape = (self._first + 2 * self.num_blocks, self.padded_dim)
        return {"sign": random_signs(key, shape)}

    def apply(self, params: dict[str, jax.Array], x: Any) -> jax.Array:
        x = check_input(type(self).__name__, "x", x, self.input_dim)
        if self.input_dim > _DENSE:
            return self._rotate(params, x)
        w = self._rotate(params, jnp.eye(self.input_dim, dtype=x.dtype))
        return jnp.matmul(x, w, precision=jax.lax.Precision.HIGHEST)

    def _rotate(self, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        first, second, third = jnp.split(
            params["sign"].astype(x.dtype),
            [self._first, self._first + self.num_blocks],
        )
        y = pad_to(x, self.padded_dim)[..., None, :]
        for sign in (first, second, third):
            y = hadamard_transform(y * sign)
        y = y.reshape(*x.shape[:-1], self.num_blocks * self.padded_dim)
        y = y[..., : self.num]
        return y * jnp.asarray(math.sqrt(self.padded_dim), x.dtype)


@dataclasses.dataclass(frozen=True)
class HadamardPatchDirections:
    """Directions for the patches of an image: rows of a `PatchSRHT`, length √(q c).

    The signs of the fold take the place of two of the three rounds of
    `HadamardDirections`: each entry is already a signed sum of q c / num numbers.

    Args:
      window: which pixels make a patch.
      channels: c, of the image.
      num: directions.
      bias: a constant coordinate of this value is part of the patch; 0 for none.
    """

    window: Window
    channels: int
    num: int
    bias: float = 0.0

    @property
    def _sketch(self) -> PatchSRHT:
        return PatchSRHT(self.window, self.channels, self.num, self.bias)

    @property
    def flops(self) -> int:
        """Floating-point operations per position."""
        return self._sketch.flops + self.num

    def init(self, key: jax.Array) -> Any:
        """Draws the signs, and normal components along a constant coordinate."""
        first, second = jax.random.split(key)
        params = self._sketch.init(first)
        if self.bias and "bias" in params:
            params["bias"] = jax.random.normal(second, (self.num,), jnp.float32)
        return params

    def apply(self, params: Any, x: Any) -> jax.Array:
        """The projections: `x` `(..., *spatial, c)` to `(..., *positions, num)`."""
        z = self._sketch.apply(params, x)
        return z * jnp.asarray(math.sqrt(self.num), z.dtype)


@dataclasses.dataclass(frozen=True)
class NormalLengths:
    r"""Directions of fixed length made normal: each times a length of its own.

    A uniform direction times :math:`\chi_D` is N(0, I), so that f(w · x) has the law
    that a function f which is not homogeneous needs.

    Args:
      directions: a record of directions of length √D.
      dim: D.
    """

    directions: Any
    dim: int

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return self.directions.flops + self.directions.num

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draws the directions and their lengths."""
        first, second = jax.random.split(key)
        square = 2 * jax.random.gamma(second, self.dim / 2, (self.directions.num,))
        length = jnp.sqrt(square / self.dim).astype(jnp.float32)
        return {"directions": self.directions.init(first), "length": length}

    def apply(self, params: dict[str, Any], x: Any) -> jax.Array:
        """The projections w · x, dtype of `x`."""
        z = self.directions.apply(params["directions"], x)
        return z * params["length"].astype(z.dtype)


DIRECTIONS: dict[str, type[Directions]] = {
    "gaussian": GaussianDirections,
    "sphere": SphereDirections,
    "orthogonal": OrthogonalDirections,
    "hadamard": HadamardDirections,
}
