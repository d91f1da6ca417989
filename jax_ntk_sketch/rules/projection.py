"""Random projections of patches, and of the means of their channels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch.random_features import (
    HadamardDirections,
    HadamardPatchDirections,
    OrthogonalDirections,
    sphere_dim,
)
from jax_ntk_sketch.rules.stage import take_columns
from jax_ntk_sketch.sketch import SRHT, PatchSRHT, Window

__all__ = ["Patches", "Projection"]

# Up to so many channels patches are concatenated: their directions are then rotations.
_SMALL_PATCH = 64


@dataclasses.dataclass(frozen=True)
class Patches:
    """Features of one kernel as patches of an image, or as they are.

    Attributes:
      window: None for features that are no patches.
      channels: of the image.
      bias: a constant coordinate of the patch; 0 for none.
    """

    window: Window | None
    channels: int
    bias: float

    @property
    def dim(self) -> int:
        """Coordinates."""
        if self.window is None:
            return self.channels
        return self.window.patch_dim(self.channels, self.bias)

    @property
    def size(self) -> int:
        return self.window.size if self.window else 1

    def means(self, x: jax.Array, columns: tuple[int, ...]) -> jax.Array:
        """Coordinates along the window's mean, of unit length, of some channels."""
        some = take_columns(x, columns)
        if self.window is None:
            return some
        return self.window.sum(some) * self.size**-0.5

    def norm2(self, x: jax.Array) -> jax.Array:
        squares = jnp.sum(x**2, axis=-1, keepdims=True)
        if self.window is not None:
            squares = self.window.sum(squares)
        return squares[..., 0] + self.bias**2

    def one(self) -> "Patches":
        """The same patch as an image of its own."""
        if self.window is None:
            return self
        return dataclasses.replace(self, window=Window(self.window.shape))

    def directions(self, num: int) -> "Projection":
        """Projections on random directions."""
        window, dim = self.window, self.dim
        small = dim <= max(_SMALL_PATCH, num)
        if window is not None and not small:
            part = HadamardPatchDirections(window, self.channels, num, self.bias)
            return Projection(self, part, dim, False)
        kind = OrthogonalDirections if dim <= _SMALL_PATCH else HadamardDirections
        return Projection(
            self, kind(max(2, dim), num), sphere_dim(dim), window is not None
        )

    def sketch(self, num: int) -> "Projection":
        """A linear sketch of unbiased inner products."""
        if self.window is None:
            return Projection(self, SRHT(self.channels, num), 0, False)
        part = PatchSRHT(self.window, self.channels, num, self.bias)
        return Projection(self, part, 0, False)


@dataclasses.dataclass(frozen=True)
class Projection:
    """A random linear map of patches, and its values on given patches.

    Attributes:
      source: the patches.
      part: a record with `init` and `apply`.
      dim: D, of the sphere of directions.
      concatenate: `part` takes patches, not images.
    """

    source: Patches
    part: Any
    dim: int
    concatenate: bool

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        if self.concatenate:
            assert self.source.window is not None
            x = self.source.window.patches(x, self.source.bias)
        if x.shape[-1] == 1 and isinstance(self.part, OrthogonalDirections):
            x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)
        return self.part.apply(params, x)

    def along(self, params: Any, columns: tuple[int, ...], dtype: Any) -> Any:
        """Projections of unit means of some channels `(k, num)`, and of the bias."""
        one = self.source.one()
        alone = dataclasses.replace(self, source=one)
        if one.window is not None and not self.concatenate:
            part = dataclasses.replace(self.part, window=one.window)
            alone = dataclasses.replace(alone, part=part)
        shape = one.window.shape if one.window else ()
        # One comparison: a chain of updates is as deep as there are columns, and XLA
        # runs out of stack at some hundreds. No channel is -1: an image of zeros.
        which = jnp.asarray((*columns, -1)).reshape(-1, *(1,) * len(shape), 1)
        unit = (which == jnp.arange(one.channels)) * jnp.asarray(one.size**-0.5, dtype)
        unit = jnp.broadcast_to(unit, (len(columns) + 1, *shape, one.channels))
        out = alone.apply(params, unit).reshape(len(columns) + 1, -1)
        bias = out[-1]  # of an image of zeros
        return out[:-1] - bias, bias
