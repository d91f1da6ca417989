"""Checks of arguments: one for each kind of value, with one wording each.

`owner` is the function or record to name in the message, `name` the argument.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._arrays import check_real, sliceable, to_jax, to_numpy
from jax_ntk_sketch._typing import (
    KINDS,
    Array,
    ArrayLike,
    Dtype,
    Examples,
    Key,
    Kind,
    Shape,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def check_integer(owner: str, name: str, value: object) -> int:
    """Return `value` as an `int`.

    Raises:
      TypeError: `value` is not an integer, or is a bool.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}") from None


def check_size(owner: str, name: str, value: object, least: int = 1) -> int:
    """Return `value` as an `int` of at least `least`.

    Raises:
      TypeError: `value` is not an integer.
      ValueError: `value` is a bool or is below `least`.
    """
    number = least - 1 if isinstance(value, bool) else check_integer(owner, name, value)
    if number < least:
        raise ValueError(
            f"{owner}: {name} must be an integer >= {least}, got {value!r}"
        )
    return number


def check_sizes(
    owner: str, name: str, value: object, *, may_be_empty: bool = False
) -> tuple[int, ...]:
    """Return a sequence of positive integers as a tuple.

    Args:
      owner, name: what to name in messages.
      value: the sequence.
      may_be_empty: whether it may have no entries.

    Raises:
      TypeError: `value` is not a sequence, or holds other things than integers.
      ValueError: `value` is empty, or an integer is below 1.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(
            f"{owner}: {name} must be a sequence of integers such as (3, 3), got "
            f"{value!r}"
        )
    sizes = tuple(check_size(owner, name, size) for size in value)
    if not sizes and not may_be_empty:
        raise ValueError(f"{owner}: {name} must have at least one entry, got {value!r}")
    return sizes


def check_flag(owner: str, name: str, value: object) -> bool:
    """Return `value`, which must be a bool.

    Raises:
      TypeError: `value` is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be a bool, got {value!r}")
    return value


def set_checked(
    record: "DataclassInstance", check: Callable[..., object], *names: str, **rule: Any
) -> None:
    """Check fields of a frozen record, and store what the check returns.

    Args:
      record: a dataclass. Fields whose default is None may be None.
      check: a function of this module.
      *names: the fields.
      **rule: further arguments of `check`.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(record)}
    for name in names:
        value = getattr(record, name)
        if value is not None or defaults[name] is not None:
            value = check(type(record).__name__, name, value, **rule)
            object.__setattr__(record, name, value)


def set_sizes(record: "DataclassInstance", *names: str) -> None:
    """Check integer fields of a frozen record and store them as plain `int`.

    NumPy integers compare equal to Python's but lack some of their methods.
    """
    set_checked(record, check_size, *names)


def check_number(
    owner: str,
    name: str,
    value: object,
    *,
    least: float = -float("inf"),
    most: float = float("inf"),
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return `value` as a finite `float` in [least, most] and in (above, below).

    Raises:
      TypeError: `value` is not a real number.
      ValueError: `value` is not finite, or is outside the interval.
    """
    bounds = [f">= {least:g}"] if np.isfinite(least) else []
    bounds += [f"<= {most:g}"] if np.isfinite(most) else []
    bounds += [f"> {above:g}"] if above is not None else []
    bounds += [f"< {below:g}"] if below is not None else []
    rule = " and ".join(["finite", *bounds])
    try:
        if isinstance(value, str | bool):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{owner}: {name} must be a number, got {value!r}") from None
    inside = np.isfinite(number) and least <= number <= most
    inside = inside and (above is None or number > above)
    if not (inside and (below is None or number < below)):
        raise ValueError(f"{owner}: {name} must be {rule}, got {value!r}")
    return number


def check_choice(owner: str, name: str, value: T, choices: Sequence[T]) -> T:
    """Return `value`, which must be one of `choices`.

    Raises:
      ValueError: `value` is not one of them.
    """
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{owner}: {name} must be one of {known}, got {value!r}")
    return value


def check_get(owner: str, get: object) -> tuple[Kind, ...]:
    """Return the kernels that `get` names, in its order.

    Raises:
      ValueError: `get` is neither "ntk", nor "nngp", nor a tuple of different ones.
    """
    kinds = tuple(get) if isinstance(get, tuple | list) else (get,)
    known = all(kind in KINDS for kind in kinds)
    if not (kinds and known) or len(set(kinds)) < len(kinds):
        raise ValueError(
            f'{owner}: get must be "ntk", "nngp" or a tuple of both, got {get!r}'
        )
    return kinds


def check_key(owner: str, key: Any) -> Key:
    """Return a single typed PRNG key; a legacy `uint32` key is wrapped.

    Raises:
      TypeError: `key` is not a PRNG key, for example because it is an integer seed.
      ValueError: `key` is an array of keys.
    """
    if isinstance(key, int) or not hasattr(key, "dtype"):
        raise TypeError(
            f"{owner}: key must be a JAX PRNG key, got {key!r}; "
            "make one with jax.random.key(seed)"
        )
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.dtype != jnp.uint32:
            raise TypeError(
                f"{owner}: key must be a JAX PRNG key (jax.random.key(seed)), "
                f"got an array of {key.dtype}"
            )
        try:
            key = jax.random.wrap_key_data(key)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{owner}: key is a uint32 array of shape {key.shape}, which is not a "
                "legacy PRNG key; make a key with jax.random.key(seed)"
            ) from error
    if key.shape != ():
        raise ValueError(
            f"{owner}: key must be one key, got an array of keys of shape "
            f"{key.shape}; use jax.vmap for a batch of keys"
        )
    return key


def check_input(owner: str, name: str, x: ArrayLike, dim: int) -> Array:
    """Return `x` as a floating-point array `(..., dim)`.

    Raises:
      TypeError: `x` is complex.
      ValueError: the last axis of `x` does not have size `dim`.
    """
    x = to_jax(owner, name, x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{owner}: {name} must be real, got {x.dtype}")
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(
            f"{owner}: the last axis of {name} must have size {dim}, "
            f"got shape {x.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.result_type(float))
    return x


def check_examples(owner: str, x: Examples, shape: Shape | None = None) -> Examples:
    """Return `x`, a real array (n, *shape), which NumPy or JAX can slice.

    With `shape=None` any trailing shape of at least one axis is accepted.

    Raises:
      TypeError: `x` is not real.
      ValueError: `x` has another shape, or examples without entries.
    """
    if not isinstance(x, jax.Array):
        x = sliceable(owner, "x", x)
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        x = to_numpy(owner, "x", x)
    check_real(owner, "x", x.dtype)
    if shape is not None and x.shape[1:] != shape:
        sizes = ", ".join(map(str, shape))
        hint = "; give one example as x[None]" if x.shape == shape else ""
        raise ValueError(
            f"{owner}: x must have shape (n, {sizes}), the shape of the fitted "
            f"examples, got {x.shape}{hint}"
        )
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(
            f"{owner}: x must have shape (n, ...) with at least one entry per example, "
            f"got {x.shape}; give one example as x[None], n numbers as x[:, None]"
        )
    return x


def check_float_dtype(owner: str, dtype: Dtype) -> np.dtype:
    """Return float32 or float64; None stands for the default float of JAX.

    Raises:
      TypeError: `dtype` is another one.
    """
    dtype = jnp.zeros((), dtype).dtype
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"{owner}: dtype must be float32 or float64, got {dtype}")
    return dtype


def is_shape(example: object) -> TypeGuard[Shape]:
    """Return whether `example` is a shape: a tuple or list that holds integers only."""
    return isinstance(example, tuple | list) and all(
        isinstance(size, int | np.integer) and not isinstance(size, bool)
        for size in example
    )


def check_example(owner: str, example: Shape | Examples) -> tuple[Shape, int | None]:
    """Return the shape of one example, and how many examples there are.

    Args:
      owner: the function to name in the message.
      example: the shape of one example, or an array of examples, dense or sparse, of
        which only the shape is taken.

    Returns:
      The shape, and the number of examples; None if a shape is given.

    Raises:
      ValueError: `example` is neither.
    """
    if is_shape(example):
        sizes, count, received = tuple(example), None, str(example)
    else:
        shape = example.shape if hasattr(example, "shape") else np.shape(example)
        sizes, count = shape[1:], shape[0] if shape else 0
        received = f"an array of shape {tuple(shape)}"
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"{owner}: example must be the shape of one example, (d,) or (*spatial, "
            "channels), or an array of examples, (n, d) or (n, *spatial, channels); "
            f"got {received}"
        )
    return tuple(map(int, sizes)), count
