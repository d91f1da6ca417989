"""Sparse examples: arrays for a device, and compressed rows on the host."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch._numerics import next_power_of_two
from jax_ntk_sketch._typing import Examples, Targets

# A sparse array of SciPy's, in any format; they share no public base class.
ScipySparse: TypeAlias = Any

_LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class SparseRows:
    """n sparse examples of d numbers, as a pytree that compiled functions take.

    `from_scipy` and `from_lists` make it. They pad the arrays to a power of two, so
    that batches with similar numbers of nonzeros share a compiled function. Entries of
    the padding have row n and value 0.

    Attributes:
      indices: int32 (k,), coordinates from 0 to d - 1, all different within a row.
      rows: int32 (k,), the numbers of the examples, ascending.
      values: real (k,).
      shape: (n, d), static.

    >>> from jax_ntk_sketch import SparseRows
    >>> x = SparseRows.from_lists([[3, 10**6], [], [0]], [[1.0, 2.0], [], [5.0]], 10**7)
    >>> x.shape, x.nnz, x[1:].to_scipy().nnz
    ((3, 10000000), 4, 1)
    """

    # NumPy arrays on the host, JAX arrays on a device.
    indices: Any
    rows: Any
    values: Any
    shape: tuple[int, int]

    @classmethod
    def from_scipy(cls, x: ScipySparse) -> "SparseRows":
        """Return the rows of a SciPy array of any format; duplicates are added.

        Args:
          x: (n, d), real. Integers and booleans keep their dtype.

        Returns:
          `SparseRows` of NumPy arrays. float64 becomes float32 unless JAX has 64-bit
          types enabled. Use `jax.device_put` for rows that are used often.

        Raises:
          TypeError: x is not sparse, or complex.
          ValueError: x is not (n, d), or an index is outside 0 to d - 1.

        >>> import scipy.sparse
        >>> from jax_ntk_sketch import SparseRows
        >>> SparseRows.from_scipy(scipy.sparse.eye_array(3)).shape
        (3, 3)
        """
        if not scipy.sparse.issparse(x):
            raise TypeError(
                "SparseRows.from_scipy: x must be a scipy.sparse array or matrix, got "
                f"{type(x).__name__}"
            )
        return pack(to_csr("SparseRows.from_scipy", "x", x))

    @classmethod
    def from_lists(
        cls, indices: Sequence[Targets], values: Sequence[Targets], dim: int
    ) -> "SparseRows":
        """Return rows made of the coordinates and values of each example.

        Args:
          indices: n sequences of integers from 0 to d - 1, in any order.
          values: n sequences of real numbers, as long as those of `indices`. Values of
            one coordinate are added.
          dim: d, from 1 to 2^31 - 1.

        Returns:
          `SparseRows` of NumPy arrays, as `from_scipy` returns.

        Raises:
          TypeError: indices that are not integers; the example is named.
          ValueError: lengths that differ, or an index outside 0 to d - 1; the example
            is named.

        >>> from jax_ntk_sketch import SparseRows
        >>> SparseRows.from_lists([[2], [0, 1]], [[1.0], [3.0, 4.0]], 5).shape
        (2, 5)
        """
        owner = "SparseRows.from_lists"
        dim = check_size(owner, "dim", dim)
        if len(indices) != len(values):
            raise ValueError(
                f"{owner}: indices and values must have one length, got "
                f"{len(indices)} and {len(values)} examples"
            )
        columns = [np.asarray(i if len(i) else np.zeros(0, int)) for i in indices]
        numbers = [np.asarray(v) for v in values]
        for row, (i, v) in enumerate(zip(columns, numbers, strict=True)):
            if i.ndim != 1 or i.shape != v.shape:
                raise ValueError(
                    f"{owner}: indices and values of example {row} must be flat and of "
                    f"one length, got shapes {i.shape} and {v.shape}"
                )
            if i.dtype.kind not in "iu":
                raise TypeError(
                    f"{owner}: indices must be integers, got {i.dtype} in example {row}"
                )
        # An empty list has no dtype of its own.
        kinds = [v.dtype for v in numbers if len(v)] or [np.dtype(np.float32)]
        data = np.concatenate([np.zeros(0, np.int8), *numbers])
        flat = np.concatenate([np.zeros(0, np.int64), *columns])
        parts = (
            data.astype(np.result_type(*kinds)),
            flat,
            np.cumsum([0, *map(len, columns)]),
        )
        joined = scipy.sparse.csr_array(parts, shape=(len(columns), dim))
        return pack(to_csr(owner, "indices", joined))

    @property
    def nnz(self) -> int:
        """The number of entries, padding included."""
        return self.indices.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.values.dtype

    def to_scipy(self) -> "scipy.sparse.csr_array":
        """Return the examples as compressed rows (n, d) on the host."""
        n = self.shape[0]
        rows, indices, values = map(np.asarray, (self.rows, self.indices, self.values))
        edges = np.searchsorted(rows, np.arange(n + 1))
        parts = values[: edges[-1]], indices[: edges[-1]], edges
        return scipy.sparse.csr_array(parts, shape=self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> "SparseRows":
        """Return the examples of a slice or of an array of positions, on the host."""
        if not isinstance(rows, slice | np.ndarray | list):
            raise TypeError(
                "SparseRows: the index must be a slice or an array of row numbers, got "
                f"{rows!r}; use x[i : i + 1] for one example"
            )
        return pack(self.to_scipy()[rows])


# Leaves may be anything while JAX rebuilds the record, so that nothing is checked here.
jax.tree_util.register_pytree_node(
    SparseRows,
    lambda x: ((x.indices, x.rows, x.values), x.shape),
    lambda shape, leaves: SparseRows(*leaves, shape),
)


def is_sparse(x: Examples) -> bool:
    """Return whether x is `SparseRows` or a sparse array of SciPy."""
    if isinstance(x, SparseRows):
        return True
    # What is not imported has made no arrays.
    return "scipy.sparse" in sys.modules and scipy.sparse.issparse(x)


def num_examples(x: Examples) -> int:
    """Return the number of examples; SciPy's sparse arrays have no length."""
    return x.shape[0] if is_sparse(x) else len(x)


def refuse_sparse(owner: str, x: Examples, name: str = "x") -> None:
    """Raise if x is sparse where the function `owner` takes dense arrays.

    Raises:
      TypeError: x is sparse.
    """
    if is_sparse(x):
        raise TypeError(
            f"{owner}: {name} must be dense, got {type(x).__name__}; for sparse "
            "examples wrap the map, jax_ntk_sketch.with_sparse_inputs(fmap)"
        )


def to_csr(owner: str, name: str, x: Examples) -> "scipy.sparse.csr_array":
    """Return checked compressed rows of a sparse array; x itself is kept.

    Raises:
      TypeError: the values are not real numbers.
      ValueError: x is not (n, d) with d below 2^31, or an index is outside 0 to d - 1.
    """
    if isinstance(x, SparseRows):
        x = x.to_scipy()
    if x.ndim != 2 or x.shape[1] < 1 or x.shape[1] > _LARGEST:
        raise ValueError(
            f"{owner}: {name} must have shape (n, d) with d from 1 to 2^31 - 1, got "
            f"{x.shape}"
        )
    if x.dtype.kind not in "biuf":
        raise TypeError(f"{owner}: {name} must be real, got dtype {x.dtype}")
    csr = scipy.sparse.csr_array(x)
    d = csr.shape[1]
    if csr.nnz and not 0 <= csr.indices.min() <= csr.indices.max() < d:
        bad = np.flatnonzero((csr.indices < 0) | (csr.indices >= d))
        row = int(np.searchsorted(csr.indptr, bad[0], side="right")) - 1
        raise ValueError(
            f"{owner}: index {csr.indices[bad[0]]} of example {row} of {name} is "
            f"outside 0..{d - 1}"
        )
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr


def capacity(csr: "scipy.sparse.csr_array", size: int) -> int:
    """Return how many entries `size` rows have at most, as a power of two.

    Rows are counted from a multiple of `size`.
    """
    n = csr.shape[0]
    edges = csr.indptr[np.append(np.arange(0, n, size), n)]
    return next_power_of_two(max(1, int(np.diff(edges).max(initial=1))))


def pack(
    csr: "scipy.sparse.csr_array", num_rows: int | None = None, room: int = 1
) -> SparseRows:
    """Return `SparseRows` of compressed rows without duplicates.

    Args:
      csr: (k, d).
      num_rows: n >= k, to append n - k empty examples; by default k.
      room: the least number of entries; if there are more, the next power of two.
    """
    k, d = csr.shape
    n = k if num_rows is None else num_rows
    size = max(room, next_power_of_two(max(1, csr.nnz)))
    fill = (0, size - csr.nnz)
    rows = np.repeat(np.arange(k, dtype=np.int32), np.diff(csr.indptr))
    with np.errstate(over="ignore"):  # the reader looks for infinities
        values = csr.data.astype(jax.dtypes.canonicalize_dtype(csr.dtype), copy=False)
    return SparseRows(
        np.pad(csr.indices.astype(np.int32), fill),
        np.pad(rows, fill, constant_values=n),
        np.pad(values, fill),
        (n, d),
    )


def check_rows(owner: str, x: SparseRows) -> SparseRows:
    """Return the record with JAX arrays; integer values become floats.

    Raises:
      TypeError: the indices are not integers, or the values are not real numbers.
      ValueError: the arrays are not (k,) each.
    """
    indices, rows, values = map(jnp.asarray, (x.indices, x.rows, x.values))
    if not indices.shape == rows.shape == values.shape or indices.ndim != 1:
        raise ValueError(
            f"{owner}: x must have indices, rows and values of one shape (k,), got "
            f"{indices.shape}, {rows.shape} and {values.shape}; make it with "
            "SparseRows.from_scipy or SparseRows.from_lists"
        )
    if indices.dtype.kind not in "iu" or rows.dtype.kind not in "iu":
        raise TypeError(
            f"{owner}: indices and rows of x must be integers, got "
            f"{indices.dtype} and {rows.dtype}"
        )
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise TypeError(f"{owner}: values of x must be real, got {values.dtype}")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.result_type(float))
    return SparseRows(indices, rows, values, x.shape)
