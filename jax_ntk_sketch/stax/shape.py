"""Layers that move, join or select positions, and the identity."""

import dataclasses
from typing import Any, TypeAlias

import numpy as np

from jax_ntk_sketch._checks import check_flag, check_integer, check_size, set_checked
from jax_ntk_sketch.stax.base import Layer, check_batch_axes, set_axes, set_field

# An entry of an index as NumPy has it, and as a record keeps it: "...",
# "start:stop:step" or an integer. Slices cannot be hashed in Python 3.11.
_Entry: TypeAlias = Any
_Kept: TypeAlias = str | int

# Names of `jax.image.resize`, and one name for each method.
_RESIZES = {
    "nearest": "nearest",
    "linear": "linear",
    "bilinear": "linear",
    "trilinear": "linear",
    "triangle": "linear",
    "cubic": "cubic",
    "bicubic": "cubic",
    "tricubic": "cubic",
    "lanczos3": "lanczos3",
    "lanczos5": "lanczos5",
}
_PRECISIONS = ("default", "high", "highest")


@dataclasses.dataclass(frozen=True, repr=False)
class Identity(Layer):
    """The layer that changes nothing, for inputs of any shape.

    >>> from jax_ntk_sketch import stax
    >>> stax.parallel(stax.Dense(8), stax.Identity())
    stax.parallel(stax.Dense(8), stax.Identity())
    """


@dataclasses.dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """All spatial axes and the channels as one axis of channels.

    Inputs (n, *spatial, c) have outputs (n, d), with d the product of all sizes. The
    kernel is the mean over positions.

    Args:
      batch_axis, batch_axis_out: must be 0.

    Raises:
      ValueError: an axis is not 0.

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.Conv(64, (3, 3)), stax.Relu(), stax.Flatten(), stax.Dense(10))
    stax.serial(stax.Conv(64, (3, 3)), stax.Relu(), stax.Flatten(), stax.Dense(10))
    """

    batch_axis: int = 0
    batch_axis_out: int = 0

    def __post_init__(self) -> None:
        check_batch_axes(self, "batch_axis", "batch_axis_out")


@dataclasses.dataclass(frozen=True, repr=False)
class ImageResize(Layer):
    """The function `jax.image.resize` on the spatial axes.

    Inputs (n, *spatial, c) have outputs (n, *sizes, c), with the sizes that `shape`
    states.

    Args:
      shape: the shape of the output, an integer for each axis, batch and channels
        included. Axes of size -1 are not resized, as batch and channels must not be.
      method: "nearest", "linear", "cubic", "lanczos3" or "lanczos5". Neural Tangents
        has no exact kernel for the last three.
      antialias: whether to smooth where an image gets smaller.
      precision: "highest", "high", "default", or a `jax.lax.Precision`.
      batch_axis: must be 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError: `shape` is not a sequence of integers, or `antialias` not a bool.
      ValueError: `shape` resizes the batch or the channels, or has no spatial axis;
        `method` or `precision` is unknown; `batch_axis` is not 0.

    >>> from jax_ntk_sketch import stax
    >>> stax.ImageResize((-1, 8, 8, -1), "bilinear")
    stax.ImageResize((-1, 8, 8, -1), 'linear')
    """

    shape: tuple[int, ...]
    method: str
    antialias: bool = True
    precision: str = "highest"
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        set_axes(self)
        if isinstance(self.shape, str) or not hasattr(self.shape, "__iter__"):
            raise TypeError(
                "ImageResize: shape must be a sequence with an integer for each axis, "
                f"such as (-1, 8, 8, -1), got {self.shape!r}"
            )
        shape = tuple(
            -1 if size == -1 else check_size("ImageResize", "shape", size)
            for size in self.shape
        )
        set_field(self, "shape", shape)
        kept = {0, self.channel_axis % max(len(shape), 1)}
        if len(shape) < 3 or any(shape[axis] != -1 for axis in kept):
            raise ValueError(
                "ImageResize: shape must have -1 for the batch and for the channels, "
                f"and an entry for each spatial axis, got {shape}"
            )
        method = getattr(self.method, "name", self.method)
        name = method.lower() if isinstance(method, str) else None
        if name not in _RESIZES:
            raise ValueError(
                f"ImageResize: method must be one of {', '.join(map(repr, _RESIZES))}, "
                f"got {self.method!r}"
            )
        set_field(self, "method", _RESIZES[name])
        set_checked(self, check_flag, "antialias")
        set_checked(self, _check_precision, "precision")


@dataclasses.dataclass(frozen=True, repr=False)
class DotGeneral(Layer):
    """The function `jax.lax.dot_general` of the spatial axes with a fixed array.

    Inputs (n, *spatial, c) have outputs (n, *positions, c), with the positions that
    `dimension_numbers` state. The array is kept as nested tuples, so that networks can
    be compared and saved. Give a large array to `Aggregate` as its pattern instead.

    Args:
      lhs, rhs: an array or a number, as the left or the right factor; the input is the
        other factor. At most one of them; without one the layer is the identity.
      dimension_numbers: `((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch))`
        as in `jax.lax.dot_general`. Axes of the input are counted with the batch axis.
        The batch must stay on the first axis and the channels on `channel_axis`.
      precision: None, "default", "high", "highest", or a `jax.lax.Precision`.
      batch_axis: must be 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError: `lhs` or `rhs` is not an array of numbers.
      ValueError: both are given; an entry is not finite; `dimension_numbers` have
        another form; `precision` is unknown; `batch_axis` is not 0.

    The second of two time series is subtracted from the first one here, which takes
    (n, 2, t, c) to (n, t, c):

    >>> from jax_ntk_sketch import stax
    >>> numbers = (((1,), (0,)), ((), ()))
    >>> stax.DotGeneral(rhs=(1.0, -1.0), dimension_numbers=numbers).rhs
    (1.0, -1.0)
    """

    lhs: Any = None
    rhs: Any = None
    dimension_numbers: Any = (((), ()), ((), ()))
    precision: str | None = None
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        set_checked(self, _check_array, "lhs", "rhs")
        if self.lhs is not None and self.rhs is not None:
            raise ValueError(
                "DotGeneral: lhs and rhs must not both be given; the other factor is "
                "the input"
            )
        set_checked(self, _check_dimension_numbers, "dimension_numbers")
        set_checked(self, _check_precision, "precision")
        set_axes(self)


def _check_array(owner: str, name: str, value: Any) -> Any:
    """Return an array as nested tuples of numbers."""
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError):
        raise TypeError(
            f"{owner}: {name} must be an array of numbers or a number, got {value!r}"
        ) from None
    if not np.isfinite(array).all():
        raise ValueError(f"{owner}: {name} must be finite, got {value!r}")

    def tuples(item: Any) -> Any:
        return tuple(map(tuples, item)) if isinstance(item, list) else item

    return tuples(array.tolist())


def _check_dimension_numbers(owner: str, name: str, value: Any) -> Any:
    """Return the numbers of the axes as tuples of `int`."""
    try:
        contracting, batch = value
        pairs = tuple(
            tuple(
                tuple(check_size(owner, name, axis, 0) for axis in axes) for axes in p
            )
            for p in (contracting, batch)
        )
    except (TypeError, ValueError):
        pairs = ()
    if [len(pair) for pair in pairs] != [2, 2]:
        raise ValueError(
            f"{owner}: {name} must be ((lhs_contracting, rhs_contracting), (lhs_batch, "
            f"rhs_batch)), with axes from 0, got {value!r}"
        )
    return pairs


def _check_precision(owner: str, name: str, value: Any) -> str:
    """Return the name of a precision."""
    precision = getattr(value, "name", value)
    precision = precision.lower() if isinstance(precision, str) else None
    if precision not in _PRECISIONS:
        raise ValueError(
            f"{owner}: {name} must be one of {', '.join(map(repr, _PRECISIONS))}, got "
            f"{value!r}"
        )
    return precision


class _Slice:
    """The object whose `Slice[:, 1:3]` is the index that `Index` takes."""

    def __getitem__(self, index: _Entry) -> _Entry:
        return index

    def __repr__(self) -> str:
        return "stax.Slice"


Slice = _Slice()


@dataclasses.dataclass(frozen=True, repr=False)
class Index(Layer):
    """The index `x[idx]` of NumPy on the spatial axes.

    Inputs (n, *spatial, c) have outputs (n, *positions, c). An integer removes its
    axis.

    Args:
      idx: slices, integers and `...`, written `stax.Slice[:, ::2, 1]`. The entries of
        batch and channels must be `:`, or be left to `...`.
      batch_axis: must be 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError: an entry of `idx` is neither a slice, nor an integer, nor `...`.
      ValueError: `idx` selects examples, has two `...` or a slice with step 0;
        `batch_axis` is not 0.

    >>> from jax_ntk_sketch import stax
    >>> stax.Index(stax.Slice[:, ::2, -1])
    stax.Index(stax.Slice[:, ::2, -1])
    """

    idx: Any
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        set_axes(self)
        entries = self.idx if isinstance(self.idx, tuple) else (self.idx,)
        idx = tuple(map(_kept_entry, entries))
        if idx.count("...") > 1:
            raise ValueError(f"Index: idx must have one ... at most, got {_text(idx)}")
        if idx and idx[0] not in (":", "..."):
            raise ValueError(
                "Index: idx must begin with : or ..., for the batch, got "
                f"{_text(idx)}; select examples before the network"
            )
        set_field(self, "idx", idx)

    def __repr__(self) -> str:
        axis = self.channel_axis
        arguments = f", channel_axis={axis}" if axis != -1 else ""
        return f"stax.Index(stax.Slice[{_text(self.idx)}]{arguments})"

    @property
    def slices(self) -> tuple[_Entry, ...]:
        """The index that NumPy takes."""
        return tuple(map(_entry, self.idx))


def _kept_entry(entry: _Entry) -> _Kept:
    """Return an entry as the record keeps it."""
    if entry is Ellipsis:
        return "..."
    if isinstance(entry, str):
        try:
            entry = _entry(entry)
        except ValueError:
            raise ValueError(
                f"Index: idx must be made by stax.Slice[...], got the entry {entry!r}"
            ) from None
        return _kept_entry(entry)
    if isinstance(entry, slice):
        if entry.step is not None and _check_entry(entry.step) == 0:
            raise ValueError(f"Index: idx must not have the step 0, got {entry!r}")
        parts = (entry.start, entry.stop, entry.step)
        texts = ["" if part is None else str(_check_entry(part)) for part in parts]
        return ":".join(texts if texts[2] else texts[:2])
    return _check_entry(entry)


def _check_entry(value: object) -> int:
    try:
        return check_integer("Index", "idx", value)
    except TypeError:
        raise TypeError(
            "Index: idx must be made of slices, integers and ..., as in "
            f"stax.Slice[:, 1:3], got {value!r}"
        ) from None


def _entry(kept: _Kept) -> _Entry:
    """Return an entry as NumPy takes it."""
    if not isinstance(kept, str):
        return kept
    if kept == "...":
        return Ellipsis
    if kept.count(":") not in (1, 2):
        raise ValueError(kept)
    return slice(*(int(part) if part else None for part in kept.split(":")))


def _text(idx: tuple[_Kept, ...]) -> str:
    return ", ".join(map(str, idx)) + "," * (len(idx) == 1)
