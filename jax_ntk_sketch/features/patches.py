"""Patches: kept as a window over an image for as long as nobody needs them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch.features.state import (
    ExactColumns,
    Features,
    Spec,
    constant_column,
    take_columns,
)
from jax_ntk_sketch.features.step import Context, Step
from jax_ntk_sketch.methods import Exact
from jax_ntk_sketch.random_features import (
    HadamardPatchDirections,
    OrthogonalDirections,
)
from jax_ntk_sketch.random_features.zonal import uniform_directions
from jax_ntk_sketch.sketch import SRHT, PatchSRHT, Window

__all__ = [
    "Patches",
    "Projection",
    "concatenate_patches",
    "fits_concatenated",
    "materialize_patches",
    "sketch_patches",
    "sketch_width",
]


def fits_concatenated(spec: Spec, columns: int) -> bool:
    """Whether patches of the NNGP features have at most `columns` channels."""
    assert spec.window is not None
    return spec.window.patch_dim(spec.nngp_dim, spec.bias) <= columns


def sketch_width(context: Context) -> int:
    """Columns of the sketch of each kernel's features."""
    return max(
        1, context.max_columns // 2 if context.wants_ntk else context.max_columns
    )


def materialize_patches(spec: Spec, context: Context) -> Step:
    """Patches as features: concatenated where that fits the width, or sketched.

    It also fits where there was no nonlinear layer yet: the columns are then functions
    of few inputs.
    """
    fits = fits_concatenated(spec, context.max_columns)
    if fits or spec.before_activations or isinstance(context.method, Exact):
        return concatenate_patches(spec)
    return sketch_patches(spec, context)


def sketch_patches(spec: Spec, context: Context) -> Step:
    """Patches as features, a `PatchSRHT` of those of each kernel.

    Of channels that are carried exactly, the means over the window are columns of their
    own, and the sketch is that of the rest.
    """
    assert spec.window is not None
    width = sketch_width(context)
    c = spec.exact_columns
    constants, linears = len(c.constants), len(c.linears)
    exact = {
        "nngp": (*c.constants, *c.linears),
        "ntk": (*c.ntk_constants, *c.ntk_linears),
    }
    ones = int(spec.bias != 0 and any(exact.values()))
    out = _without_window(
        spec,
        width + len(exact["nngp"]) + ones,
        width + len(exact["ntk"]) + ones if spec.ntk_dim else 0,
    )
    if any(exact.values()):
        # A constant coordinate of the patches joins the constants, in front.
        first, second = constants + ones, len(c.ntk_constants) + ones
        carried = ExactColumns(
            tuple(range(first)),
            tuple(range(first, first + linears)),
            tuple(range(second)) if spec.ntk_dim else (),
            tuple(range(second, second + len(c.ntk_linears))),
        )
        out = dataclasses.replace(out, exact_columns=carried)
    kinds = spec.kinds
    biases = {"nngp": spec.bias, "ntk": spec.ntk_bias}
    parts = {
        kind: Patches(spec.window, spec.dim(kind), biases[kind]).sketch(width)
        for kind in kinds
    }

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key)
        pairs = zip(parts.items(), keys, strict=False)
        return {kind: p.part.init(k) for (kind, p), k in pairs}

    def one(params: Any, kind: Kind, x: jax.Array) -> jax.Array:
        part, columns = parts[kind], exact[kind]
        z = part.apply(params[kind], x)
        if not columns and not ones:
            return z
        means = part.source.means(x, columns)
        along, bias = part.along(params[kind], columns, x.dtype)
        z = z - jnp.matmul(means, along) - (bias if ones else 0)
        front = [constant_column(z, biases[kind])] if ones else []
        return jnp.concatenate([*front, means, z], axis=-1)

    def apply(params, f: Features) -> Features:
        done = {kind: one(params, kind, getattr(f, kind)) for kind in kinds}
        return Features(
            done["nngp"], done.get("ntk", done["nngp"][..., :0]), f.nngp_diag
        )

    flops = sum(p.part.flops for p in parts.values()) * spec.pixels
    floats = 2 * spec.live_elements() + 2 * out.live_elements()
    return Step(
        name="patches (SRHT)",
        spec=out,
        apply=apply,
        init=init,
        flops=flops,
        live_elements=floats,
    )


def concatenate_patches(spec: Spec) -> Step:
    """Patches as features, all their channels side by side."""
    window, bias, ntk_bias = spec.window, spec.bias, spec.ntk_bias
    assert window is not None
    ntk = window.patch_dim(spec.ntk_dim, ntk_bias) if spec.ntk_dim else 0
    nngp = window.patch_dim(spec.nngp_dim, bias)
    carried = spec.exact_columns.repeated(spec, window.size)
    if bias:
        carried = carried._replace(constants=(*carried.constants, nngp - 1))
        if spec.ntk_dim:
            carried = carried._replace(ntk_constants=(*carried.ntk_constants, ntk - 1))
    out = dataclasses.replace(_without_window(spec, nngp, ntk), exact_columns=carried)

    def apply(params, f: Features) -> Features:
        nngp = window.patches(f.nngp, bias)
        ntk = window.patches(f.ntk, ntk_bias) if spec.ntk_dim else nngp[..., :0]
        return Features(nngp, ntk, f.nngp_diag)

    floats = spec.live_elements() + out.live_elements()
    return Step(
        name="patches",
        spec=out,
        apply=apply,
        flops=out.live_elements(),
        live_elements=floats,
    )


def _without_window(spec: Spec, nngp: int, ntk: int) -> Spec:
    return dataclasses.replace(
        spec,
        nngp_dim=nngp,
        ntk_dim=ntk,
        shape=spec.positions,
        window=None,
        bias=0.0,
        ntk_bias=0.0,
        exact_columns=ExactColumns(),
    )


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
            folded = HadamardPatchDirections(window, self.channels, num, self.bias)
            return Projection(self, folded, dim, False)
        part = uniform_directions(dim, num)
        return Projection(self, part, part.sphere_dim, window is not None)

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
