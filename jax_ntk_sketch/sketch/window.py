"""Windows over spatial axes: the pixels that a filter covers at each position."""

import dataclasses
import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._numerics import is_zero
from jax_ntk_sketch._typing import Array, Shape


@dataclasses.dataclass(frozen=True)
class Window:
    """A window that slides over the spatial axes of `(..., *spatial, c)`.

    Attributes:
      shape: pixels for each spatial axis.
      strides: steps between windows; None for 1.
      padding: "VALID", "SAME" (zeros, as in `jax.lax`) or "CIRCULAR" (wrapped).
      dilation: distance of neighboring pixels in the window; None for 1.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch.sketch import Window
    >>> Window((2, 2)).patches(jnp.ones((5, 8, 8, 3))).shape
    (5, 7, 7, 12)
    """

    shape: Shape
    strides: Shape | None = None
    padding: str = "VALID"
    dilation: Shape | None = None

    @property
    def size(self) -> int:
        """Pixels in the window."""
        return math.prod(self.shape)

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.shape)

    @property
    def trivial(self) -> bool:
        """Whether each position sees just itself."""
        return self.size == 1 and all(s == 1 for s in self.strides or ())

    @property
    def offsets(self) -> list[Shape]:
        """The pixels of the window, row by row."""
        return list(itertools.product(*map(range, self.shape)))

    def axis(self, i: int) -> "Window":
        """Return the window along spatial axis i; windows are products of these."""
        ones = (1,) * self.rank

        def along_axis(values: Shape | None) -> Shape | None:
            return values and (*ones[:i], values[i], *ones[i + 1 :])

        shape = (*ones[:i], self.shape[i], *ones[i + 1 :])
        return Window(
            shape, along_axis(self.strides), self.padding, along_axis(self.dilation)
        )

    def output_shape(self, spatial: Shape, *, owner: str = "Window") -> Shape:
        """Return the positions of the window on an image of size `spatial`.

        `owner` is named in error messages.

        Raises:
          ValueError: the image has another number of axes, or is smaller than the
            window.
        """
        if len(spatial) != self.rank:
            raise ValueError(
                f"{owner}: the image must have {self.rank} spatial axes for a window "
                f"of shape {self.shape}, got {len(spatial)}, of sizes {spatial}"
            )
        out = []
        for size, reach, stride in zip(
            spatial, self._reach, self._strides, strict=True
        ):
            if self.padding != "VALID":
                out.append(-(-size // stride))
            elif size < reach:
                raise ValueError(
                    f"{owner}: the image must be at least as large as the window, "
                    f"{tuple(self._reach)}, got {spatial}; use padding 'SAME' or a "
                    "smaller window"
                )
            else:
                out.append((size - reach) // stride + 1)
        return tuple(out)

    @property
    def _strides(self) -> Shape:
        return self.strides or (1,) * self.rank

    @property
    def _dilation(self) -> Shape:
        return self.dilation or (1,) * self.rank

    @property
    def _reach(self) -> list[int]:
        """Pixels from the first to the last one of the window."""
        return [
            (n - 1) * step + 1
            for n, step in zip(self.shape, self._dilation, strict=True)
        ]

    def padded(self, x: Array) -> Array:
        """Return `x` `(..., *spatial, c)` with the border that the window covers."""
        if self.padding == "VALID":
            return x
        spatial = x.shape[-1 - self.rank : -1]
        pads = [(0, 0)] * (x.ndim - 1 - self.rank)
        for size, out, reach, stride in zip(
            spatial, self.output_shape(spatial), self._reach, self._strides, strict=True
        ):
            total = max((out - 1) * stride + reach - size, 0)
            pads.append((total // 2, total - total // 2))
        pads.append((0, 0))
        return jnp.pad(x, pads, "wrap" if self.padding == "CIRCULAR" else "constant")

    def shift(self, padded: Array, offset: Shape, out: Shape) -> Array:
        """Return the pixel at `offset` of each window, `(..., *out, c)`."""
        index: list[slice] = []
        for i, step, stride, count in zip(
            offset, self._dilation, self._strides, out, strict=True
        ):
            start = i * step
            index.append(slice(start, start + (count - 1) * stride + 1, stride))
        return padded[(..., *index, slice(None))]

    def shift_to(self, padded: Array, offset: Array, out: Shape) -> Array:
        """Return `shift` for an offset that may be traced, int32 (rank,)."""
        lead = padded.ndim - 1 - self.rank
        reach = [
            (n - 1) * stride + 1 for n, stride in zip(out, self._strides, strict=True)
        ]
        starts = jnp.pad(offset * np.array(self._dilation, np.int32), (lead, 1))
        sizes = (*padded.shape[:lead], *reach, padded.shape[-1])
        pixels = jax.lax.dynamic_slice(padded, starts, sizes)
        return pixels[
            (..., *(slice(None, None, s) for s in self._strides), slice(None))
        ]

    def shifts(self, x: Array) -> list[Array]:
        """Return all pixels of each window: for each offset `(..., *out, c)`."""
        out = self.output_shape(x.shape[-1 - self.rank : -1])
        padded = self.padded(x)
        return [self.shift(padded, offset, out) for offset in self.offsets]

    def patch_dim(self, channels: int, bias: float = 0.0) -> int:
        """Return the channels of `patches` of an image with `channels`."""
        return self.size * channels + int(not is_zero(bias))

    def patches(self, x: Array, bias: float = 0.0) -> Array:
        """Return the direct sum over the window, `(..., *out, patch_dim)`.

        With a `bias` it has one more channel, of this value.
        """
        parts = self.shifts(x)
        if not is_zero(bias):
            parts.append(jnp.full((*parts[0].shape[:-1], 1), bias, x.dtype))
        return jnp.concatenate(parts, axis=-1)

    def sum(self, x: Array) -> Array:
        """Return the sum over the window, axis by axis: `(..., *out, c)`."""
        for i in range(self.rank):
            x = functools.reduce(operator.add, self.axis(i).shifts(x))
        return x
