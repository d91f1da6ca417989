"""PatchSRHT: a sketch of the patches of an image that does not form the patches."""

import dataclasses
import functools
import math
import operator

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_input, check_key, set_sizes
from jax_ntk_sketch._numerics import is_zero, lift, next_power_of_two
from jax_ntk_sketch._typing import Array, ArrayLike, Key, PyTree
from jax_ntk_sketch.sketch.hadamard import hadamard_flops, hadamard_transform, pad_to
from jax_ntk_sketch.sketch.signs import random_signs
from jax_ntk_sketch.sketch.srht import SRHT
from jax_ntk_sketch.sketch.window import Window

# A window of more pixels is folded axis by axis.
_MAX_SHIFTS = 32

# Channels by which neighboring shifts are moved against each other.
_ROLL = 16


@dataclasses.dataclass(frozen=True)
class PatchSRHT:
    r"""A sketch of the patch :math:`\bigoplus_\delta x(p + \delta)` at each position p.

    .. math:: S x(p) = m^{-1/2} H \sum_\delta \sigma_\delta\, x(p + \delta)

    with independent signs for each offset and channel. The shifted images are folded
    onto D channels, D the next power of two of m, and then rotated by one Hadamard
    transform of entries ±1. The direct sum, q times as large for q offsets, is never
    formed. Where it has at most m channels, its concatenation goes through `SRHT`
    instead.

    Different offsets also move along the channels by different amounts. Otherwise the
    same channel of neighboring pixels, nearly equal in natural images, would fall on
    itself and triple the variance.

    Args:
      window: the offsets, a `Window`.
      channels: c, of the image.
      output_dim: m.
      bias: a constant coordinate of this value is part of the direct sum; 0 for none.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is below 1.

    Cost: q c multiply-adds and one Hadamard transform of size D a position. Windows of
    more than 32 pixels are folded axis by axis, with the cost of the sum of the sides
    instead of their product and up to twice the variance.
    Guarantee: unbiased,
    :math:`E\langle Sx(p), Sy(r)\rangle = \sum_\delta \langle x(p+\delta),
    y(r+\delta)\rangle + \mathrm{bias}^2`; variance about that of a CountSketch,
    2/m relative, for channels of similar size.

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch.sketch import PatchSRHT, Window
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
        if self._of_concatenation is not None:
            return self._of_concatenation.flops
        folds = sum(2 * fold.shifts * fold.channels for fold in self._folds)
        return folds + hadamard_flops(self._folded_dim) + self.output_dim

    @property
    def _of_concatenation(self) -> SRHT | None:
        """The sketch of the concatenated patch, where that is small."""
        if self.patch_dim <= self.output_dim:
            return SRHT(self.patch_dim, self.output_dim)
        return None

    @property
    def _folded_dim(self) -> int:
        return next_power_of_two(self.output_dim)

    @functools.cached_property
    def _folds(self) -> list["_Fold"]:
        dim = self._folded_dim
        if self.window.size <= _MAX_SHIFTS:
            return [_Fold(self.window, self.channels, dim)]
        folds, channels = [], self.channels
        for i in range(self.window.rank):
            axis = self.window.axis(i)
            if not axis.trivial:
                folds.append(_Fold(axis, channels, dim))
                channels = dim
        return folds

    def init(self, key: Key) -> PyTree:
        """Draw the signs, int8, of each fold."""
        key = check_key("PatchSRHT", key)
        if self._of_concatenation is not None:
            return self._of_concatenation.init(key)
        *keys, bias_key = jax.random.split(key, len(self._folds) + 1)
        signs = [fold.init(k) for fold, k in zip(self._folds, keys, strict=True)]
        return {"fold": signs, "bias": random_signs(bias_key, (self.output_dim,))}

    def apply(self, params: PyTree, x: ArrayLike) -> Array:
        """Sketch `x` `(..., *spatial, c)` to `(..., *positions, m)`."""
        image = check_input("PatchSRHT", "x", x, self.channels)
        if self._of_concatenation is not None:
            patches = self.window.patches(image, self.bias)
            return self._of_concatenation.apply(params, patches)
        for fold, signs in zip(self._folds, params["fold"], strict=True):
            image = fold.apply(signs, image)
        z = hadamard_transform(image)[..., : self.output_dim]
        if not is_zero(self.bias):
            # A sign for each column. One for all of them would be noise that no number
            # of columns averages, where columns are directions or factors of a product.
            value = self.bias * self._folded_dim**-0.5
            constant = jnp.asarray(value, z.dtype) * params["bias"].astype(z.dtype)
            z = z + lift(constant, z)
        scale = math.sqrt(self._folded_dim / self.output_dim)
        return z * jnp.asarray(scale, z.dtype)


@dataclasses.dataclass(frozen=True)
class _Fold:
    """Signed shifts of an image of `channels` channels, added up on `dim` channels.

    The channels are padded: to a multiple of `dim`, which is cut into pieces of `dim`;
    or, where there are fewer, to a power of two, so that `dim` channels hold several
    shifts side by side.
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

    def init(self, key: Key) -> Array:
        return random_signs(key, (self.shifts, self.padded_channels))

    def apply(self, signs: Array, x: Array) -> Array:
        window, width = self.window, self.padded_channels
        out = window.output_shape(x.shape[-1 - window.rank : -1])
        x = window.padded(pad_to(x, width))
        signs = signs.astype(x.dtype)
        side_by_side = max(1, self.dim // width)
        # Layers of shifts fall on each other. Each is moved along the channels by
        # another multiple of `roll`, as a slice of a copy that wraps around.
        layers = next_power_of_two(-(-self.shifts // side_by_side))
        roll = max(1, min(_ROLL, width // layers))
        num_moves = width // roll
        wrapped = (min(layers, num_moves) - 1) * roll
        x = jnp.concatenate([x, x[..., :wrapped]], axis=-1) if wrapped else x

        def signed_shift(k: int) -> Array:
            shifted = window.shift(x, window.offsets[k], out)
            begin = k // side_by_side % num_moves * roll
            return shifted[..., begin : begin + width] * lift(signs[k], x)

        pieces = []
        for start in range(0, self.shifts, side_by_side):
            stop = min(start + side_by_side, self.shifts)
            parts = [signed_shift(k) for k in range(start, stop)]
            layer = parts[0]
            if side_by_side > 1:
                layer = pad_to(jnp.concatenate(parts, axis=-1), self.dim)
            for i in range(0, layer.shape[-1], self.dim):
                pieces.append(layer[..., i : i + self.dim])
        return functools.reduce(operator.add, pieces)
