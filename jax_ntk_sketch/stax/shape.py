"""Layers that move, join or select positions: `Flatten`, `Index`, `ImageResize`."""

import dataclasses
import operator
from typing import Any

import numpy as np

from jax_ntk_sketch.stax.base import (
    Layer,
    positive_int,
    set_axes,
    set_field,
)


@dataclasses.dataclass(frozen=True, repr=False)
class Identity(Layer):
    """The layer that changes nothing."""


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
class ImageResize(Layer):
    """`jax.image.resize` of the spatial axes.

    Args:
      shape: of the output, an integer for each axis, batch and channels included: -1
        for an axis that stays, as those two must.
      method: "nearest", "linear"; "cubic", "lanczos3" and "lanczos5" have features but
        no exact kernel in Neural Tangents.
      antialias: whether to smooth where an image gets smaller.
      precision: "highest", "high", "default", or a `jax.lax.Precision`.
      batch_axis: 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.
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
                "ImageResize: shape must be an integer for each axis, such as "
                f"(-1, 8, 8, -1), got {self.shape!r}"
            )
        shape = tuple(
            size if isinstance(size, int) and size == -1
            # The name of the axis is the argument's.
            else positive_int(self, "shape", size)
            for size in self.shape
        )  # fmt: skip
        set_field(self, "shape", shape)
        kept = {0, self.channel_axis % max(len(shape), 1)}
        if len(shape) < 3 or any(shape[axis] != -1 for axis in kept):
            raise ValueError(
                "ImageResize: shape must have -1 for the batch and for the channels, "
                f"and an entry for every spatial axis, got {shape}"
            )
        method = getattr(self.method, "name", self.method)
        name = method.lower() if isinstance(method, str) else None
        if name not in _RESIZES:
            raise ValueError(
                f"ImageResize: method must be one of {', '.join(_RESIZES)}, got "
                f"{self.method!r}"
            )
        set_field(self, "method", _RESIZES[name])
        if not isinstance(self.antialias, bool):
            raise TypeError(
                f"ImageResize: antialias must be a bool, got {self.antialias!r}"
            )
        set_field(self, "precision", _precision(self))


@dataclasses.dataclass(frozen=True, repr=False)
class DotGeneral(Layer):
    """`jax.lax.dot_general` of the spatial axes with an array that is not trained.

    Exact on features. The array is kept as nested tuples, so that networks can be
    compared and saved; give large ones to `Aggregate` as its pattern instead.

    Args:
      lhs, rhs: an array or a number, the left or the right factor, the input being the
        other; at most one of them. With neither, the layer is the identity.
      dimension_numbers: `((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch))`
        as of `jax.lax.dot_general`, axes of the input counted with the batch axis.
        Examples must stay first, and channels last (or on `channel_axis`).
      precision: None, "default", "high", "highest", or a `jax.lax.Precision`.
      batch_axis: 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.

    The second of two time series subtracted from the first, (n, 2, t, c) to (n, t, c):

    >>> DotGeneral(rhs=(1.0, -1.0), dimension_numbers=(((1,), (0,)), ((), ()))).rhs
    (1.0, -1.0)
    """

    lhs: Any = None
    rhs: Any = None
    dimension_numbers: Any = (((), ()), ((), ()))
    precision: str | None = None
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        for name in ("lhs", "rhs"):
            set_field(self, name, _nested(name, getattr(self, name)))
        if self.lhs is not None and self.rhs is not None:
            raise ValueError(
                "DotGeneral: give lhs or rhs, not both; the other factor is the input"
            )
        try:
            contracting, batch = self.dimension_numbers
            pairs = [
                tuple(tuple(map(operator.index, axes)) for axes in pair)
                for pair in (contracting, batch)
            ]
        except (TypeError, ValueError):
            pairs = []
        axes = [axis for pair in pairs for side in pair for axis in side]
        if [len(pair) for pair in pairs] != [2, 2] or min(axes, default=0) < 0:
            raise ValueError(
                "DotGeneral: dimension_numbers must be ((lhs_contracting, "
                "rhs_contracting), (lhs_batch, rhs_batch)), axes from 0, got "
                f"{self.dimension_numbers!r}"
            )
        set_field(self, "dimension_numbers", tuple(pairs))
        if self.precision is not None:
            set_field(self, "precision", _precision(self))
        set_axes(self)


def _nested(name: str, value: Any) -> Any:
    """An array as nested tuples of numbers."""
    if value is None:
        return None
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError):
        raise TypeError(
            f"DotGeneral: {name} must be an array of numbers or a number, got {value!r}"
        ) from None
    if not np.isfinite(array).all():
        raise ValueError(f"DotGeneral: {name} must be finite, got {value!r}")

    def tuples(item: Any) -> Any:
        return tuple(map(tuples, item)) if isinstance(item, list) else item

    return tuples(array.tolist())


class _Slice:
    """`Slice[:, 1:3]` are the indices `Index` takes."""

    def __getitem__(self, index: Any) -> Any:
        return index

    def __repr__(self) -> str:
        return "stax.Slice"


Slice = _Slice()


@dataclasses.dataclass(frozen=True, repr=False)
class Index(Layer):
    """Indexing of the spatial axes, `x[idx]`, as of NumPy.

    Args:
      idx: what is between the brackets, written `stax.Slice[:, ::2, 1]`: slices, `...`
        and integers, which remove an axis. `:` (or `...`) for batch and channels.
      batch_axis: 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.

    >>> Index(Slice[:, ::2, -1])
    stax.Index(stax.Slice[:, ::2, -1])
    """

    idx: Any
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        set_axes(self)
        # Slices cannot be hashed in Python 3.11, nor written as JSON: their text can.
        items = self.idx if isinstance(self.idx, tuple) else (self.idx,)
        idx = tuple(_item(item) for item in items)
        if idx.count("...") > 1:
            raise ValueError("Index: idx must have one ... at most")
        if idx and idx[0] not in (":", "..."):
            raise ValueError(
                "Index: idx must begin with : or ..., the batch; index the examples "
                f"themselves; got {_text(idx)}"
            )
        set_field(self, "idx", idx)

    def __repr__(self) -> str:
        axis = self.channel_axis
        more = f", channel_axis={axis}" if axis != -1 else ""
        return f"stax.Index(stax.Slice[{_text(self.idx)}]{more})"

    @property
    def slices(self) -> tuple[Any, ...]:
        """What NumPy takes."""
        return tuple(map(_parsed, self.idx))


def _item(item: Any) -> str | int:
    """An index as it is kept: "...", "start:stop:step" or an integer."""
    if item is Ellipsis:
        return "..."
    if isinstance(item, str):
        try:
            item = _parsed(item)
        except ValueError:
            raise ValueError(f"Index: idx has the unknown entry {item!r}") from None
        return _item(item)
    if isinstance(item, slice):
        parts = [item.start, item.stop, item.step]
        if parts[2] is not None and _integer(parts[2]) == 0:
            raise ValueError("Index: a slice of idx has step 0")
        texts = ["" if part is None else str(_integer(part)) for part in parts]
        return ":".join(texts if texts[2] else texts[:2])
    return _integer(item)


def _parsed(item: str | int) -> Any:
    if not isinstance(item, str):
        return item
    if item == "...":
        return Ellipsis
    if item.count(":") not in (1, 2):
        raise ValueError(item)
    return slice(*(int(part) if part else None for part in item.split(":")))


def _precision(record: Any) -> str:
    value: Any = getattr(record.precision, "name", record.precision)
    value = value.lower() if isinstance(value, str) else None
    if value not in _PRECISIONS:
        raise ValueError(
            f"{type(record).__name__}: precision must be one of "
            f"{', '.join(_PRECISIONS)}, got {record.precision!r}"
        )
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(
            "Index: idx must be made of slices, integers and ..., as "
            f"stax.Slice[:, 1:3] makes it, got {value!r}"
        )
    return operator.index(value)


def _text(idx: tuple[str | int, ...]) -> str:
    return ", ".join(map(str, idx)) + "," * (len(idx) == 1)


@dataclasses.dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """All spatial axes and the channels as one axis of channels."""
