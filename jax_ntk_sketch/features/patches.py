"""Patches of an image as features: kept as a window until a step needs their columns.

After a convolution, features are patches of the image before (`Spec.patches`). Methods
and layers read the patches with `Patches`, or let `materialize_patches` form them.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from jax_ntk_sketch._numerics import is_zero, lift, matmul
from jax_ntk_sketch._typing import (
    KINDS,
    Array,
    ArrayLike,
    Dtype,
    Key,
    Kind,
    PyTree,
    Shape,
)
from jax_ntk_sketch.features.state import (
    ExactColumns,
    Features,
    Spec,
    take_columns,
    with_constant,
)
from jax_ntk_sketch.features.step import Context, Step, linear_step
from jax_ntk_sketch.random_features.directions import (
    MAX_DENSE_DIM,
    Directions,
    HadamardPatchDirections,
    OrthogonalDirections,
)
from jax_ntk_sketch.random_features.zonal import uniform_directions
from jax_ntk_sketch.sketch import SRHT, PatchSRHT, Window
from jax_ntk_sketch.sketch.random_map import init_each


@dataclasses.dataclass(frozen=True)
class Patches:
    """Vectors that are patches of an image with one more constant coordinate, or plain.

    Attributes:
      window: the window of the patches; None for the vectors of an array as they are.
      channels: the channels of the image.
      bias: the constant coordinate of each patch; 0 if there is none.
    """

    window: Window | None
    channels: int
    bias: float = 0.0

    @classmethod
    def of(cls, spec: Spec, kind: Kind) -> "Patches":
        """Return the features of one kernel as patches."""
        if spec.patches is None:
            return cls(None, spec.dim(kind))
        biases = {"nngp": spec.patches.nngp_bias, "ntk": spec.patches.ntk_bias}
        return cls(spec.patches.window, spec.dim(kind), biases[kind])

    @property
    def dim(self) -> int:
        """The coordinates of each vector."""
        if self.window is None:
            return self.channels
        return self.window.patch_dim(self.channels, self.bias)

    @property
    def size(self) -> int:
        """The pixels of each patch."""
        return self.window.size if self.window else 1

    def channel_means(self, x: Array, columns: tuple[int, ...]) -> Array:
        """Return the coordinates of vectors along unit means of channels.

        Args:
          x: (..., *spatial, channels), the image.
          columns: k of the channels. The unit mean of a channel has entries
            1 / sqrt(size) at all pixels of the patch.

        Returns:
          (..., *positions, k).
        """
        taken = take_columns(x, columns)
        if self.window is None:
            return taken
        return self.window.sum(taken) * self.size**-0.5

    def squared_norms(self, x: Array) -> Array:
        """Return the squared norms of the vectors, (..., *positions)."""
        squares = jnp.sum(x**2, axis=-1, keepdims=True)
        if self.window is not None:
            squares = self.window.sum(squares)
        return squares[..., 0] + self.bias**2

    def inner_products(self, x: Array, z: Array) -> Array:
        """Return the inner products of all vectors of x with z (m, dim).

        They are a sum over the offsets in the window, so that patches are not formed.

        Returns:
          (..., *positions, m).
        """
        if self.window is None:
            return matmul(x, z.T)
        window, c = self.window, self.channels
        out = window.output_shape(x.shape[-1 - window.rank : -1])
        padded = window.padded(x)

        # A loop, because compilers would keep the products of all offsets.
        def add(total: Array, rows: tuple[Array, Array]) -> tuple[Array, None]:
            offset, column = rows
            block = jax.lax.dynamic_slice_in_dim(z, column, c, axis=1)
            pixels = window.shift_to(padded, offset, out)
            return total + matmul(pixels, block.T), None

        first, *offsets = window.offsets
        start = matmul(window.shift(padded, first, out), z[:, :c].T)
        if not is_zero(self.bias):
            start = start + lift(self.bias * z[:, -1], x)
        if not offsets:
            return start
        columns = c * jnp.arange(1, window.size, dtype=jnp.int32)
        rest = jnp.array(offsets, jnp.int32), columns
        return jax.lax.scan(add, start, rest)[0]

    def take(self, x: Array, index: Array) -> Array:
        """Return vectors of x by their numbers, (len(index), dim)."""
        *axes, c = x.shape
        if self.window is None:
            return x.reshape(-1, c)[index]
        # The numbers of the pixels in each patch; 0 is the border.
        pixels = jnp.arange(1, 1 + math.prod(axes)).reshape(*axes, 1)
        numbers = self.window.patches(pixels).reshape(-1, self.size)[index]
        rows = jnp.concatenate([jnp.zeros((1, c), x.dtype), x.reshape(-1, c)])
        return with_constant(rows[numbers].reshape(len(index), -1), self.bias)

    def directions(self, output_dim: int) -> "Projection":
        """Return projections on random directions, nearly uniform on a sphere."""
        window, dim = self.window, self.dim
        if window is not None and dim > max(MAX_DENSE_DIM, output_dim):
            hadamard = HadamardPatchDirections(
                window, self.channels, output_dim, self.bias
            )
            return Projection(self, hadamard)
        uniform = uniform_directions(dim, output_dim)
        return Projection(self, uniform, takes_vectors=window is not None)

    def sketch(self, output_dim: int) -> "Projection":
        """Return a linear sketch with unbiased inner products."""
        if self.window is None:
            return Projection(self, SRHT(self.channels, output_dim))
        sketch = PatchSRHT(self.window, self.channels, output_dim, self.bias)
        return Projection(self, sketch)


@dataclasses.dataclass(frozen=True)
class Projection:
    """A random linear map of patches: projections on directions, or a sketch.

    Attributes:
      patches: the vectors.
      linear_map: the record that draws and applies the map.
      takes_vectors: whether `linear_map` takes patches, or the image.
    """

    patches: Patches
    linear_map: Directions | HadamardPatchDirections | SRHT | PatchSRHT
    takes_vectors: bool = False

    @property
    def sphere_dim(self) -> int:
        """The dimension of the sphere that the directions are on."""
        assert isinstance(self.linear_map, Directions | HadamardPatchDirections)
        return self.linear_map.sphere_dim

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return self.linear_map.flops

    def init(self, key: Key) -> PyTree:
        """Draw the map."""
        return self.linear_map.init(key)

    def apply(self, params: PyTree, x: ArrayLike) -> Array:
        """Return the images of all vectors of x, (..., *positions, output_dim)."""
        x = jnp.asarray(x)
        if self.takes_vectors:
            assert self.patches.window is not None
            x = self.patches.window.patches(x, self.patches.bias)
        if x.shape[-1] == 1 and isinstance(self.linear_map, OrthogonalDirections):
            # One dimension is embedded in two, see `uniform_directions`.
            x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)
        return self.linear_map.apply(params, x)

    def exact_parts(
        self, params: PyTree, x: Array, constants: Shape, linears: Shape
    ) -> tuple[Array, Array]:
        """Return the images of the exact parts of all vectors of x.

        Args:
          params: the parameters.
          x: (..., *spatial, channels), the image.
          constants, linears: channels, whose means along patches are the exact parts.
            The constant coordinate is a part of the constants.

        Returns:
          The image of the constants and that of the linear parts, (..., *positions,
          output_dim) each.
        """
        along, bias = self._images_of_means(params, (*constants, *linears), x.dtype)
        k = len(constants)
        constant, linear = (
            jnp.matmul(self.patches.channel_means(x, columns), images)
            for columns, images in ((constants, along[:k]), (linears, along[k:]))
        )
        if not is_zero(self.patches.bias):
            constant = constant + lift(bias, constant)
        return constant, linear

    def _images_of_means(
        self, params: PyTree, columns: Shape, dtype: Dtype
    ) -> tuple[Array, Array]:
        """Return the images of unit means of k channels, and of the constant.

        Returns:
          Arrays (k, output_dim) and (output_dim,).
        """
        patches, linear_map = self.patches, self.linear_map
        shape: Shape = ()
        if patches.window is not None:
            # An image that is one patch.
            shape, window = patches.window.shape, Window(patches.window.shape)
            patches = dataclasses.replace(patches, window=window)
            if not isinstance(linear_map, Directions | SRHT):
                linear_map = dataclasses.replace(linear_map, window=window)
        single = dataclasses.replace(self, patches=patches, linear_map=linear_map)
        # One comparison: a chain of updates is as deep as there are columns, and XLA
        # runs out of stack at some hundreds. No channel is -1: an image of zeros.
        chosen = jnp.asarray((*columns, -1)).reshape(-1, *(1,) * len(shape), 1)
        entry = jnp.asarray(patches.size**-0.5, dtype)
        own = chosen == lift(jnp.arange(patches.channels), chosen)
        means = jnp.where(own, entry, 0)
        means = jnp.broadcast_to(means, (len(columns) + 1, *shape, patches.channels))
        images = single.apply(params, means).reshape(len(columns) + 1, -1)
        bias = images[-1]  # the image of zeros, with the constant coordinate
        return images[:-1] - bias[None, :], bias


def fits_concatenated(spec: Spec, columns: int) -> bool:
    """Return whether patches of NNGP features have at most `columns` coordinates."""
    return Patches.of(spec, "nngp").dim <= columns


def materialize_patches(spec: Spec, context: Context) -> Step:
    """Return the step that makes patches features: concatenated, or else sketched.

    They are concatenated if they fit, or if there was no activation yet: the columns
    then depend on few inputs.
    """
    fits = fits_concatenated(spec, context.max_columns)
    if fits or spec.before_activations or context.keeps_all_columns:
        return concatenate_patches(spec)
    return sketch_patches(spec, context)


def concatenate_patches(spec: Spec) -> Step:
    """Return the step that puts the channels of all pixels of a patch side by side."""
    assert spec.patches is not None
    window, patches = spec.patches.window, spec.patches
    dims = {kind: Patches.of(spec, kind).dim for kind in spec.kinds}
    nngp_dim, ntk_dim = dims.get("nngp", 0), dims.get("ntk", 0)
    exact = spec.exact_columns.repeated(spec, window.size)
    if not is_zero(patches.nngp_bias):
        exact = exact._replace(constants=(*exact.constants, nngp_dim - 1))
        if ntk_dim:
            exact = exact._replace(ntk_constants=(*exact.ntk_constants, ntk_dim - 1))
    out = dataclasses.replace(
        spec,
        nngp_dim=nngp_dim,
        ntk_dim=ntk_dim,
        shape=spec.positions,
        patches=None,
        exact_columns=exact,
    )

    def apply(params: PyTree, f: Features) -> Features:
        nngp = window.patches(f.nngp, patches.nngp_bias)
        ntk = window.patches(f.ntk, patches.ntk_bias) if ntk_dim else nngp[..., :0]
        return Features(nngp, ntk, f.nngp_diag)

    return linear_step("patches", spec, out, apply, flops=out.live_elements())


def sketch_patches(spec: Spec, context: Context) -> Step:
    """Return the step that sketches patches, with a `PatchSRHT` for each kernel.

    The window means of exact channels become columns of their own, and what is left of
    the patches is sketched.
    """
    sketch_dim = context.sketch_columns
    sketches = {kind: Patches.of(spec, kind).sketch(sketch_dim) for kind in spec.kinds}
    channels = {kind: sum(spec.exact_columns.of_kind(kind), ()) for kind in KINDS}
    has_exact = any(channels.values())
    # A constant coordinate of the patches becomes the first constant.
    with_bias = int(has_exact and not is_zero(Patches.of(spec, "nngp").bias))
    dims = {kind: sketch_dim + len(channels[kind]) + with_bias for kind in spec.kinds}
    out = dataclasses.replace(
        spec,
        nngp_dim=dims["nngp"],
        ntk_dim=dims.get("ntk", 0),
        shape=spec.positions,
        patches=None,
        exact_columns=_leading(spec, with_bias) if has_exact else ExactColumns(),
    )

    def sketched(kind: Kind, params: PyTree, x: Array) -> Array:
        sketch = sketches[kind]
        z = sketch.apply(params, x)
        if not channels[kind] and not with_bias:
            return z
        means = sketch.patches.channel_means(x, channels[kind])
        z = z - sum(sketch.exact_parts(params, x, *spec.exact_columns.of_kind(kind)))
        if with_bias:
            means = with_constant(means, sketch.patches.bias, first=True)
        return jnp.concatenate([means, z], axis=-1)

    def apply(params: PyTree, f: Features) -> Features:
        nngp = sketched("nngp", params["nngp"], f.nngp)
        ntk = sketched("ntk", params["ntk"], f.ntk) if spec.ntk_dim else nngp[..., :0]
        return Features(nngp, ntk, f.nngp_diag)

    return linear_step(
        "patches (SRHT)",
        spec,
        out,
        apply,
        init=functools.partial(init_each, sketches),
        flops=sum(sketch.flops for sketch in sketches.values()) * spec.pixels,
        work_elements=spec.live_elements() + out.live_elements(),
    )


def _leading(spec: Spec, with_bias: int) -> ExactColumns:
    """Return exact columns that are the first ones: constants, then linear columns."""

    def leading(kind: Kind) -> list[tuple[int, ...]]:
        constants, linears = map(len, spec.exact_columns.of_kind(kind))
        start = constants + with_bias
        return [tuple(range(start)), tuple(range(start, start + linears))]

    return ExactColumns(*leading("nngp"), *(leading("ntk") if spec.ntk_dim else ()))
