"""PatchSRHT: a sketch of the patches of an image, without forming the patches."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_input, check_key, set_sizes
from jax_ntk_sketch._numerics import next_power_of_two
from jax_ntk_sketch.sketch.hadamard import (
    hadamard_flops,
    hadamard_transform,
    pad_to,
)
from jax_ntk_sketch.sketch.signs import random_signs
from jax_ntk_sketch.sketch.srht import SRHT
from jax_ntk_sketch.sketch.window import Window

__all__ = ["PatchSRHT"]

# A window of more pixels is folded axis by axis.
_MOST_SHIFTS = 32

# Channels by which neighbouring shifts are moved against each other.
_ROLL = 16


@dataclasses.dataclass(frozen=True)
class PatchSRHT:
    r"""Sketches the patch :math:`\bigoplus_\delta x(p + \delta)` at each position p.

    .. math:: S x(p) = m^{-1/2} H \sum_\delta \sigma_\delta\, x(p + \delta)

    with independent signs for each offset and channel: the shifted images are folded
    onto D channels, D the next power of two of m, and then rotated by one Hadamard
    transform of entries ±1. The direct sum, q times as large, is never formed. Where
    it has no more than m channels, its concatenation goes through `SRHT` instead.

    Different offsets also move along the channels by different amounts, so that the
    same channel of neighbouring pixels, nearly equal in natural images, does not fall
    on itself: that would triple the variance.

    Args:
      window: the offsets, a `Window`.
      channels: c, of the image.
      output_dim: m.
      bias: a constant coordinate of this value is part of the direct sum; 0 for none.

    Raises:
      TypeError, ValueError: a size out of range, named.

    Cost: q c multiply-adds and one Hadamard transform of size D a position; windows
    of more than 32 pixels are folded axis by axis, with the cost of the sum of the
    sides instead of their product and up to twice the variance.
    Guarantee: unbiased,
    :math:`E\langle Sx(p), Sy(r)\rangle = \sum_\delta \langle x(p+\delta),
    y(r+\delta)\rangle + \mathrm{bias}^2`; variance about that of a CountSketch,
    2/m relative, for channels of like size.

    >>> sketch = PatchSRHT(Window((3, 3), padding="SAME"), channels=8, output_dim=32)
    >>> params = sketch.init(jax.random.key(0))
    >>> sketch.apply(params, jnp.ones((2, 5, 5, 8))).shape
    (2, 5, 5, 32)
    """

    window: Window
    channels: int
    output_dim: int
    bias: float = 0.0

    def __post_init__(self) -> None:
        set_sizes(self, "channels", "output_dim")

    @property
    def patch_dim(self) -> int:
        """Channels of the direct sum, the constant one included."""
        return self.window.patch_dim(self.channels, self.bias)

    @property
    def flops(self) -> int:
        """Floating-point operations per position."""
        if self._whole is not None:
            return self._whole.flops
        folds = sum(2 * r.shifts * r.channels for r in self._rounds)
        return folds + hadamard_flops(self._folded_dim) + self.output_dim

    @property
    def _whole(self) -> SRHT | None:
        """The sketch of the concatenated patch, where that is small."""
        if self.patch_dim <= self.output_dim:
            return SRHT(self.patch_dim, self.output_dim)
        return None

    @property
    def _folded_dim(self) -> int:
        return next_power_of_two(self.output_dim)

    @functools.cached_property
    def _rounds(self) -> list["_Round"]:
        dim = self._folded_dim
        if self.window.size <= _MOST_SHIFTS:
            return [_Round(self.window, self.channels, dim)]
        rounds, channels = [], self.channels
        for i in range(self.window.rank):
            axis = self.window.axis(i)
            if not axis.trivial:
                rounds.append(_Round(axis, channels, dim))
                channels = dim
        return rounds

    def init(self, key: jax.Array) -> Any:
        """Draws the signs, int8, of each round of folding."""
        key = check_key("PatchSRHT", key)
        if self._whole is not None:
            return self._whole.init(key)
        *keys, bias_key = jax.random.split(key, len(self._rounds) + 1)
        signs = [r.init(k) for r, k in zip(self._rounds, keys, strict=True)]
        return {"fold": signs, "bias": random_signs(bias_key, (self.output_dim,))}

    def apply(self, params: Any, x: Any) -> jax.Array:
        """Sketches `x` `(..., *spatial, c)` to `(..., *positions, m)`."""
        x = check_input("PatchSRHT", "x", x, self.channels)
        if self._whole is not None:
            return self._whole.apply(params, self.window.patches(x, self.bias))
        for r, signs in zip(self._rounds, params["fold"], strict=True):
            x = r.apply(signs, x)
        x = hadamard_transform(x)[..., : self.output_dim]
        if self.bias:
            # A sign for each column: one for all of them would be noise that no number
            # of columns averages, where columns are directions or factors of a product.
            each = self.bias * self._folded_dim**-0.5
            x = x + jnp.asarray(each, x.dtype) * params["bias"].astype(x.dtype)
        scale = math.sqrt(self._folded_dim / self.output_dim)
        return x * jnp.asarray(scale, x.dtype)


@dataclasses.dataclass(frozen=True)
class _Round:
    """Signed shifts of `channels` channels, added up on `dim` channels.

    `channels` is padded to A: a multiple of `dim`, cut into pieces; or, where smaller,
    a power of two, of which as many shifts as fit lie side by side in one piece.
    """

    window: Window
    channels: int
    dim: int

    @property
    def shifts(self) -> int:
        return self.window.size

    @property
    def padded_channels(self) -> int:
        if self.channels >= self.dim:
            return -(-self.channels // self.dim) * self.dim
        return next_power_of_two(self.channels)

    def init(self, key: jax.Array) -> jax.Array:
        return random_signs(key, (self.shifts, self.padded_channels))

    def apply(self, signs: jax.Array, x: jax.Array) -> jax.Array:
        window, wide = self.window, self.padded_channels
        out = window.output_shape(x.shape[-1 - window.rank : -1])
        x = window.padded(pad_to(x, wide))
        signs = signs.astype(x.dtype)
        together = max(1, self.dim // wide)
        # Layers of shifts that fall on each other, each moved along the channels: by
        # slices of a copy that wraps around.
        layers = next_power_of_two(-(-self.shifts // together))
        roll = max(1, min(_ROLL, wide // layers))
        steps = wide // roll
        most = min(layers, steps) - 1
        x = jnp.concatenate([x, x[..., : most * roll]], axis=-1) if most else x
        total: Any = 0
        for start in range(0, self.shifts, together):
            parts = []
            for k in range(start, min(start + together, self.shifts)):
                shifted = window.shift(x, window.offsets[k], out)
                begin = k // together % steps * roll
                parts.append(shifted[..., begin : begin + wide] * signs[k])
            piece = parts[0]
            if together > 1:
                piece = pad_to(jnp.concatenate(parts, axis=-1), self.dim)
            for i in range(0, piece.shape[-1], self.dim):
                total = total + piece[..., i : i + self.dim]
        return total
