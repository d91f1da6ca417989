r"""Random directions w for features f(w · x), each kind a record with init and apply.

All kinds have :math:`E\,w w^\top = I`, so that relu(w · x) keeps the scale of x. They
differ in cost and in what else is exact:

- `GaussianDirections` are independent N(0, I).
- `SphereDirections` are Gaussian columns normalized to length √d. For features that are
  homogeneous of degree 1 the length is pure noise. This is the leverage-score density
  of arXiv 2106.07880, Section 3.2, which depends on w/|w| only.
- `OrthogonalDirections` are blocks of a Haar-distributed rotation, of length √d. Each
  is uniform on the sphere; together they cover it evenly.
- `HadamardDirections` are three rounds of random signs and Hadamard transform, of
  length √D with D a power of two. No matrix is stored or multiplied. They are nearly,
  not exactly, uniform on the sphere.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_input, check_key, set_sizes
from jax_ntk_sketch._numerics import is_zero, lift, matmul, next_power_of_two
from jax_ntk_sketch._typing import Array, ArrayLike, Key, PyTree
from jax_ntk_sketch.sketch import PatchSRHT, Window
from jax_ntk_sketch.sketch.hadamard import hadamard_flops, hadamard_transform, pad_to
from jax_ntk_sketch.sketch.signs import random_signs

# Up to this dimension a dense matrix of the directions is cheaper than transforms, and
# the rotations of Hadamard transforms are not yet close enough to Haar rotations.
MAX_DENSE_DIM = 64


@dataclasses.dataclass(frozen=True)
class Directions:
    """Base of the kinds: `output_dim` directions in `input_dim` dimensions.

    Args:
      input_dim: d, the size of the vectors.
      output_dim: the number of directions.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is below 1.

    Cost: 2 d output_dim operations a vector.

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch.random_features import OrthogonalDirections
    >>> directions = OrthogonalDirections(3, 3)
    >>> z = directions.apply(directions.init(jax.random.key(0)), jnp.ones((2, 3)))
    >>> round(float(z[0] @ z[0]), 3)
    9.0
    """

    input_dim: int
    output_dim: int

    def __post_init__(self) -> None:
        set_sizes(self, "input_dim", "output_dim")

    @property
    def sphere_dim(self) -> int:
        """The square of the length of directions of fixed length."""
        return self.input_dim

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return 2 * self.input_dim * self.output_dim

    def init(self, key: Key) -> dict[str, Array]:
        """Draw the directions, float32 whatever the dtype of x will be."""
        raise NotImplementedError

    def apply(self, params: dict[str, Array], x: ArrayLike) -> Array:
        """Return the projections w · x of `x` `(..., d)`, `(..., output_dim)`."""
        x = check_input(type(self).__name__, "x", x, self.input_dim)
        return x @ params["w"].astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class GaussianDirections(Directions):
    """Independent normal directions."""

    def init(self, key: Key) -> dict[str, Array]:
        key = check_key("GaussianDirections", key)
        shape = (self.input_dim, self.output_dim)
        return {"w": jax.random.normal(key, shape, jnp.float32)}


@dataclasses.dataclass(frozen=True)
class SphereDirections(Directions):
    """Independent uniform directions of length √d."""

    def init(self, key: Key) -> dict[str, Array]:
        key = check_key("SphereDirections", key)
        w = jax.random.normal(key, (self.input_dim, self.output_dim), jnp.float32)
        lengths = jnp.linalg.norm(w, axis=0)
        return {"w": w * (math.sqrt(self.input_dim) / lengths)[None, :]}


@dataclasses.dataclass(frozen=True)
class OrthogonalDirections(Directions):
    """Blocks of d mutually orthogonal uniform directions of length √d."""

    def init(self, key: Key) -> dict[str, Array]:
        key = check_key("OrthogonalDirections", key)
        d, blocks = self.input_dim, math.ceil(self.output_dim / self.input_dim)
        columns = min(d, self.output_dim)
        normal = jax.random.normal(key, (blocks, d, columns), jnp.float32)
        q, r = _qr_of_blocks(normal)
        # QR is unique, and Q Haar distributed, only where R's diagonal is positive.
        signs = jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))
        w = q * (math.sqrt(d) * signs)[:, None, :]
        return {"w": jnp.moveaxis(w, 0, 1).reshape(d, -1)[:, : self.output_dim]}


# XLA's CPU runtime can deadlock where several factorizations of stacked matrices run
# in one program (seen with JAX 0.10.2 on two cores): each waits for the threads that
# the others hold. So `vmap` factors the matrices one by one.
@jax.custom_batching.sequential_vmap
def _qr(a: Array) -> tuple[Array, Array]:
    return jnp.linalg.qr(a)


# Compiled once for each shape: `sequential_vmap` makes a new loop at each call.
_qr_of_blocks = jax.jit(jax.vmap(_qr))


@dataclasses.dataclass(frozen=True)
class HadamardDirections(Directions):
    """Rows of blocks H σ₃ H σ₂ H σ₁ on x padded to D, a power of two; length √D.

    In more than 64 dimensions the first round, which spreads x over all coordinates, is
    common to the blocks. That saves a third of the work and does not change the law of
    a single direction.

    For small D too few directions can occur: at D = 4 features of kappa0 are off by up
    to 0.26. So D is at least 64.
    """

    @property
    def padded_dim(self) -> int:
        """D, the next power of two of `input_dim`, and at least 64."""
        return max(64, next_power_of_two(self.input_dim))

    @property
    def sphere_dim(self) -> int:
        return self.padded_dim

    @property
    def num_blocks(self) -> int:
        """The number of rotations that the directions are taken from."""
        return math.ceil(self.output_dim / self.padded_dim)

    @property
    def flops(self) -> int:
        if self.input_dim <= MAX_DENSE_DIM:
            return 2 * self.input_dim * self.output_dim
        transform = hadamard_flops(self.padded_dim) + self.padded_dim
        return (self._num_first_rounds + 2 * self.num_blocks) * transform

    @property
    def _num_first_rounds(self) -> int:
        return self.num_blocks if self.input_dim <= MAX_DENSE_DIM else 1

    def init(self, key: Key) -> dict[str, Array]:
        key = check_key("HadamardDirections", key)
        rounds = self._num_first_rounds + 2 * self.num_blocks
        return {"sign": random_signs(key, (rounds, self.padded_dim))}

    def apply(self, params: dict[str, Array], x: ArrayLike) -> Array:
        x = check_input("HadamardDirections", "x", x, self.input_dim)
        if self.input_dim > MAX_DENSE_DIM:
            return self._rotate(params, x)
        return matmul(x, self._rotate(params, jnp.eye(self.input_dim, dtype=x.dtype)))

    def _rotate(self, params: dict[str, Array], x: Array) -> Array:
        first, second, third = jnp.split(
            params["sign"].astype(x.dtype),
            [self._num_first_rounds, self._num_first_rounds + self.num_blocks],
        )
        y = pad_to(x, self.padded_dim)[..., None, :]
        for sign in (first, second, third):
            y = hadamard_transform(y * lift(sign, y))
        y = y.reshape(*x.shape[:-1], self.num_blocks * self.padded_dim)
        y = y[..., : self.output_dim]
        return y * jnp.asarray(math.sqrt(self.padded_dim), x.dtype)


@dataclasses.dataclass(frozen=True)
class HadamardPatchDirections:
    """Directions for the patches of an image: rows of a `PatchSRHT`.

    With q pixels in the window and c channels their length is √(q c). The signs of the
    fold replace two of the three rounds of `HadamardDirections`, because each entry is
    already a signed sum of q c / output_dim numbers.

    Args:
      window: the pixels of a patch.
      channels: c, of the image.
      output_dim: the number of directions.
      bias: a constant coordinate of this value is part of the patch; 0 for none.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is below 1.
    """

    window: Window
    channels: int
    output_dim: int
    bias: float = 0.0

    def __post_init__(self) -> None:
        set_sizes(self, "channels", "output_dim")

    @property
    def _sketch(self) -> PatchSRHT:
        return PatchSRHT(self.window, self.channels, self.output_dim, self.bias)

    @property
    def sphere_dim(self) -> int:
        """The square of the length of the directions."""
        return self.window.patch_dim(self.channels, self.bias)

    @property
    def flops(self) -> int:
        """Floating-point operations per position."""
        return self._sketch.flops + self.output_dim

    def init(self, key: Key) -> PyTree:
        """Draw the signs, and normal components along a constant coordinate."""
        sketch_key, bias_key = jax.random.split(key)
        params = self._sketch.init(sketch_key)
        if not is_zero(self.bias) and "bias" in params:
            bias = jax.random.normal(bias_key, (self.output_dim,), jnp.float32)
            params["bias"] = bias
        return params

    def apply(self, params: PyTree, x: ArrayLike) -> Array:
        """Project `x` `(..., *spatial, c)` to `(..., *positions, output_dim)`."""
        z = self._sketch.apply(params, x)
        return z * jnp.asarray(math.sqrt(self.output_dim), z.dtype)


@dataclasses.dataclass(frozen=True)
class NormalLengths:
    r"""Directions of fixed length made normal: each times a random length.

    A uniform direction times :math:`\chi_D` is N(0, I), so that f(w · x) has the law
    that a function f which is not homogeneous needs.

    Args:
      directions: a record of directions of length √D.
    """

    directions: Directions | HadamardPatchDirections

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return self.directions.flops + self.directions.output_dim

    def init(self, key: Key) -> dict[str, PyTree]:
        """Draw the directions and their lengths."""
        directions_key, length_key = jax.random.split(key)
        dim, num = self.directions.sphere_dim, self.directions.output_dim
        square = 2 * jax.random.gamma(length_key, dim / 2, (num,), jnp.float32)
        length = jnp.sqrt(square / dim)
        return {"directions": self.directions.init(directions_key), "length": length}

    def apply(self, params: dict[str, PyTree], x: ArrayLike) -> Array:
        """Return the projections w · x, in the dtype of `x`."""
        z = self.directions.apply(params["directions"], x)
        return z * lift(params["length"].astype(z.dtype), z)


# The kinds by the names that methods give them.
DIRECTIONS: dict[str, type[Directions]] = {
    "gaussian": GaussianDirections,
    "sphere": SphereDirections,
    "orthogonal": OrthogonalDirections,
    "hadamard": HadamardDirections,
}
