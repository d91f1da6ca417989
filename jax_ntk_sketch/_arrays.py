"""Arrays and tables of other libraries, which are read as NumPy reads its own.

An index is a position, whatever labels a table has. No other library is imported: an
array or a table is known by its methods.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._numerics import native_dtype
from jax_ntk_sketch._typing import Array, Examples

# What has a length and indices, but no slices that are examples.
_NO_SLICES = (memoryview, collections.deque, Mapping, str, bytes)


def to_numpy(owner: str, name: str, values: Examples) -> NDArray:
    """Return all values as a NumPy array in the byte order of the machine.

    Extended precision becomes float64. A missing cell of a table becomes NaN. The dtype
    may be that of text or objects, which `check_real` refuses.

    Args:
      owner: the function to name in errors.
      name: what `owner` calls the values.
      values: an array of any library, a table, or nested lists.

    Raises:
      TypeError: the values are a masked array, a dictionary or several arrays, or a
        table has a column without numbers.
      ValueError: the rows have different lengths.
    """
    if _is_masked(values):
        raise TypeError(
            f"{owner}: {name} must not be a masked array; fill it first, for example "
            "with .astype(float).filled(numpy.nan)"
        )
    if isinstance(values, Mapping | set | str | bytes) or hasattr(values, "data_vars"):
        hint = "; params come before it" if isinstance(values, dict) else ""
        raise TypeError(
            f"{owner}: {name} must be one array or table, got {type(values).__name__}"
            f"{hint}"
        )
    if isinstance(values, jax.Array):
        check_real(owner, name, values.dtype, complex_too=True)
    table = table_columns(values)
    try:
        if table is None:
            array = one_array(values)
        else:
            array = _stacked(owner, name, values, *table)
    except (ValueError, RuntimeError, BufferError) as error:
        raise ValueError(
            f"{owner}: {name} must be rows of one shape, which NumPy can read; {error}"
        ) from error
    return array.astype(native_dtype(array.dtype), copy=False)


def sliceable(owner: str, name: str, values: Examples) -> Examples:
    """Return values with a length whose slices are by position.

    A memory map, and anything else of which NumPy can read slices, stays where it is.

    Raises:
      TypeError, ValueError: as `to_numpy`, or the values have no length.
    """
    lazy = (
        not isinstance(values, jax.Array)
        and table_columns(values) is None
        and not hasattr(values, "iloc")
        and isinstance(getattr(values, "dtype", np.dtype(int)), np.dtype)
        and hasattr(values, "__len__")
        and hasattr(values, "__getitem__")
        and not isinstance(values, _NO_SLICES)
        and not hasattr(values, "data_vars")
        and not _is_masked(values)
    )
    array = values if lazy else to_numpy(owner, name, values)
    if getattr(array, "ndim", 1) == 0:
        raise TypeError(f"{owner}: {name} must hold n examples, got {values!r}")
    return array


def to_jax(owner: str, name: str, values: Examples) -> Array:
    """Return values as a JAX array; those of JAX, also traced ones, as they are.

    Raises:
      TypeError, ValueError: as `to_numpy`, or the values are not real numbers.
    """
    if isinstance(values, jax.Array):
        check_real(owner, name, values.dtype, complex_too=True)
        native = native_dtype(values.dtype)
        return values if native == values.dtype else values.astype(native)
    array = to_numpy(owner, name, values)
    check_real(owner, name, array.dtype, complex_too=True)
    return jnp.asarray(array)


def finite_examples(owner: str, name: str, values: Examples) -> NDArray:
    """Return at least one example, of finite numbers, as a NumPy array.

    Raises:
      TypeError, ValueError: as `to_jax`; there is no example, or one is not finite.
    """
    array = np.asarray(to_jax(owner, name, values))
    if not len(array):
        raise ValueError(
            f"{owner}: {name} must hold at least one example, got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise ValueError(
            f"{owner}: {name} must be finite, got NaN or infinity in example {row} "
            "(counted from 0); remove such examples"
        )
    return array


def check_real(
    owner: str, name: str, dtype: Any, hint: str = "", *, complex_too: bool = False
) -> None:
    """Raise unless a dtype is one of real numbers, or of numbers if `complex_too`.

    Raises:
      TypeError: it is another one.
    """
    kinds = [jnp.bool_, jnp.integer, jnp.floating] + [jnp.complexfloating] * complex_too
    letter = getattr(dtype, "kind", "")
    # NumPy counts spans of time as integers.
    if letter == "m" or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        if letter == "O":
            hint = hint or "; make one array of rows of numbers by numpy.stack"
        raise TypeError(
            f"{owner}: {name} must hold real numbers, got dtype {dtype}{hint}"
        )


def column_names(values: Examples) -> tuple[str, ...] | None:
    """Return the names of the columns of a table; None if it has none, or not text.

    A labeled array (n, d) has the names that its second axis has.
    """
    table = table_columns(values)
    if table is not None:
        names = list(table[0])
    elif hasattr(values, "indexes") and getattr(values, "ndim", 0) == 2:  # xarray
        names = list(values.indexes.get(values.dims[1], ()))
    else:
        return None
    text = bool(names) and all(isinstance(name, str) for name in names)
    return tuple(map(str, names)) if text else None


def match_columns(
    owner: str, name: str, values: Examples, wanted: tuple[str, ...] | None
) -> Examples:
    """Return the columns that were asked for, in this order, by their names.

    Values without names are returned as they are. Other columns are left out.

    Raises:
      ValueError: a column is missing, or two have one name.
    """
    names = column_names(values)
    if names is None or wanted is None or names == wanted:
        return values
    missing = [column for column in wanted if column not in names]
    if missing or len(set(names)) < len(names):
        wrong = f"without {listing(missing)}" if missing else "with a name twice"
        raise ValueError(
            f"{owner}: {name} must have the columns that the model was fitted to, "
            f"{listing(wanted)}, got a table {wrong}; give an array to match columns "
            "by position"
        )
    order = [names.index(column) for column in wanted]
    table = table_columns(values)
    if table is None:
        return values[:, order]
    columns = [table[1][i] for i in order]
    return _stacked(owner, name, None, wanted, columns)


def listing(names: Sequence[str]) -> str:
    """Return at most twelve names in quotation marks."""
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")


def _is_masked(values: Examples) -> bool:
    """Return whether values are a masked array, or a list of some."""
    if isinstance(values, list | tuple):
        return any(isinstance(value, np.ma.MaskedArray) for value in values)
    return isinstance(values, np.ma.MaskedArray)


def table_columns(values: Examples) -> tuple[Sequence[Any], Sequence[Any]] | None:
    """Return the names and the columns of a table; None for anything else."""
    if hasattr(values, "iloc") and getattr(values, "ndim", 0) == 2:  # pandas
        columns = [values.iloc[:, i] for i in range(values.shape[1])]
        return list(values.columns), columns
    if hasattr(values, "get_columns"):  # polars
        return values.columns, values.get_columns()
    if hasattr(values, "column_names") and hasattr(values, "combine_chunks"):  # arrow
        return values.column_names, values.columns
    names = getattr(getattr(values, "dtype", None), "names", None)
    return None if not names else (names, [values[name] for name in names])


def _stacked(
    owner: str,
    name: str,
    values: Examples | None,
    names: Sequence[Any],
    columns: Sequence[Any],
) -> NDArray:
    """Return the columns of a table side by side, or the table itself as one array."""
    if hasattr(values, "iloc") and len({str(column.dtype) for column in columns}) == 1:
        array = np.asarray(values)  # without a copy
        if array.dtype.kind in "biuf":
            return array
    arrays = [one_array(column) for column in columns]
    for label, array in zip(names, arrays, strict=True):
        hint = "; leave this column out, or encode it as numbers"
        check_real(owner, f"column {label!r} of {name}", array.dtype, hint)
    return np.stack(arrays, axis=1)


def one_array(values: Examples) -> NDArray:
    """Return a NumPy array of one array of any library."""
    values = values.detach() if hasattr(values, "detach") else values  # torch
    if isinstance(values, list | tuple) and any(hasattr(v, "detach") for v in values):
        return np.stack([one_array(value) for value in values])
    dtype = getattr(getattr(values, "dtype", None), "numpy_dtype", None)
    if dtype is not None and hasattr(values, "isna"):  # pandas, with missing values
        missing = {"na_value": np.nan} if values.isna().any() else {}
        return values.to_numpy(np.float64 if missing else dtype, **missing)
    if isinstance(values, np.ndarray) or not hasattr(values, "__dlpack__"):
        return np.asarray(values)
    try:
        as_array = hasattr(values, "__array__")
        return np.asarray(values) if as_array else np.from_dlpack(values)
    except (TypeError, RuntimeError, BufferError):
        # Another device, or a dtype that NumPy does not have.
        return np.asarray(jax.dlpack.from_dlpack(values))
