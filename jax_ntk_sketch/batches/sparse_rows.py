"""Sparse examples: a record of arrays for the device, compressed rows on the host."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from jax_ntk_sketch._checks import check_size

__all__ = [
    "SparseRows",
    "capacity",
    "check_rows",
    "is_sparse",
    "num_examples",
    "pack",
    "readable",
    "refuse_sparse",
    "to_csr",
]

_LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class SparseRows:
    """n sparse examples of d numbers, a pytree: what a compiled function takes.

    Made by `from_scipy` or `from_lists`; entries beyond the nonzeros, which fill the
    arrays up to a power of two, have row n and value 0. So batches of about as many
    nonzeros share a compiled function.

    Attributes:
      indices: (k,) int32, coordinates in [0, d); no two entries of a row alike.
      rows: (k,) int32, numbers of the examples, ascending.
      values: (k,) real.
      shape: (n, d), static.

    >>> x = SparseRows.from_lists([[3, 10**6], [], [0]], [[1.0, 2.0], [], [5.0]], 10**7)
    >>> x.shape, x.nnz, x[1:].to_scipy().nnz
    ((3, 10000000), 4, 1)
    """

    indices: Any
    rows: Any
    values: Any
    shape: tuple[int, int]

    @classmethod
    def from_scipy(cls, x: Any) -> "SparseRows":
        """From any format of scipy.sparse; entries given twice are added, as there.

        Args:
          x: (n, d), real; integers and booleans are kept.

        Returns:
          `SparseRows` of NumPy arrays, float64 as float32 unless JAX has it enabled.
          `jax.device_put` it where it is used often.

        Raises:
          TypeError, ValueError: not sparse, complex, or indices outside 0..d - 1.
        """
        if not scipy.sparse.issparse(x):
            raise TypeError(
                "SparseRows.from_scipy: x must be a scipy.sparse array or matrix, got "
                f"{type(x).__name__}"
            )
        return pack(to_csr("SparseRows.from_scipy", "x", x))

    @classmethod
    def from_lists(
        cls, indices: Sequence[Any], values: Sequence[Any], dim: int
    ) -> "SparseRows":
        """From the coordinates and values of each example.

        Args:
          indices: n sequences of integers in [0, d), in any order.
          values: n sequences of as many real numbers; those of one coordinate are
            added.
          dim: d, at most 2^31 - 1.

        Returns:
          As `from_scipy`.

        Raises:
          TypeError, ValueError: lengths that differ, or a bad index, with the number
            of the example.
        """
        owner = "SparseRows.from_lists"
        dim = check_size(owner, "dim", dim)
        if len(indices) != len(values):
            raise ValueError(
                f"{owner}: indices are of {len(indices)} examples and values of "
                f"{len(values)}; they must be as many"
            )
        columns = [np.asarray(i if len(i) else np.zeros(0, int)) for i in indices]
        numbers = [np.asarray(v) for v in values]
        for row, (i, v) in enumerate(zip(columns, numbers, strict=True)):
            if i.ndim != 1 or i.shape != v.shape:
                raise ValueError(
                    f"{owner}: example {row} has indices of shape {i.shape} and values "
                    f"of shape {v.shape}; both must be flat and of one length"
                )
            if i.dtype.kind not in "iu":
                raise TypeError(
                    f"{owner}: indices must be integers, example {row} has {i.dtype}"
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
        """Entries, those that fill up included."""
        return self.indices.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return self.values.dtype

    def to_scipy(self) -> scipy.sparse.csr_array:
        """The examples as compressed rows, (n, d), on the host."""
        n = self.shape[0]
        rows, indices, values = map(np.asarray, (self.rows, self.indices, self.values))
        edges = np.searchsorted(rows, np.arange(n + 1))
        parts = values[: edges[-1]], indices[: edges[-1]], edges
        return scipy.sparse.csr_array(parts, shape=self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> "SparseRows":
        """Some examples, by a slice or an array of numbers; on the host."""
        if not isinstance(rows, slice | np.ndarray | list):
            raise TypeError(
                "SparseRows: index with a slice or an array of row numbers, got "
                f"{rows!r}; x[i : i + 1] is one example"
            )
        return pack(self.to_scipy()[rows])


# Leaves may be anything while JAX rebuilds the record, so that nothing is checked here.
jax.tree_util.register_pytree_node(
    SparseRows,
    lambda x: ((x.indices, x.rows, x.values), x.shape),
    lambda shape, leaves: SparseRows(*leaves, shape),
)


def is_sparse(x: Any) -> bool:
    """Whether x is a sparse array of SciPy's or ours."""
    return isinstance(x, SparseRows) or scipy.sparse.issparse(x)


def num_examples(x: Any) -> int:
    """`len(x)`, which SciPy's sparse arrays do not have."""
    return x.shape[0] if is_sparse(x) else len(x)


def refuse_sparse(owner: str, x: Any) -> None:
    """
    Raises:
      TypeError: x is sparse, and what `owner` belongs to takes dense arrays.
    """
    if is_sparse(x):
        raise TypeError(
            f"{owner}: {type(x).__name__} given: a NetworkFeatureMap takes dense arrays; "
            "for sparse examples wrap it, jax_ntk_sketch.with_sparse_inputs(fmap)"
        )


def readable(owner: str, name: str, x: Any) -> Any:
    """Examples whose slices are fast: sparse ones as checked compressed rows."""
    return to_csr(owner, name, x) if is_sparse(x) else x


def to_csr(owner: str, name: str, x: Any) -> scipy.sparse.csr_array:
    """Compressed rows of SciPy's or our sparse array, checked; x itself is kept.

    Raises:
      TypeError: values that are no real numbers.
      ValueError: not (n, d); d of more than 31 bits; indices outside 0..d - 1.
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


def capacity(csr: scipy.sparse.csr_array, size: int) -> int:
    """Room for the entries of any `size` rows that begin at a multiple of it."""
    n = csr.shape[0]
    edges = csr.indptr[np.append(np.arange(0, n, size), n)]
    return _power(int(np.diff(edges).max(initial=1)))


def _power(k: int) -> int:
    return 1 << max(k - 1, 0).bit_length()


def pack(
    csr: scipy.sparse.csr_array, num_rows: int | None = None, room: int = 1
) -> SparseRows:
    """`SparseRows` of a CSR array without duplicates.

    Args:
      csr: (k, d).
      num_rows: n >= k, empty examples behind the others; by default k.
      room: entries at the least; with more, the next power of two.
    """
    k, d = csr.shape
    n = k if num_rows is None else num_rows
    size = max(room, _power(csr.nnz))
    fill = (0, size - csr.nnz)
    rows = np.repeat(np.arange(k, dtype=np.int32), np.diff(csr.indptr))
    with np.errstate(over="ignore"):  # infinities are looked for by those who mind
        values = csr.data.astype(jax.dtypes.canonicalize_dtype(csr.dtype), copy=False)
    return SparseRows(
        np.pad(csr.indices.astype(np.int32), fill),
        np.pad(rows, fill, constant_values=n),
        np.pad(values, fill),
        (n, d),
    )


def check_rows(owner: str, x: SparseRows) -> SparseRows:
    """The record with arrays of JAX, floats for integers, or an error.

    Raises:
      TypeError, ValueError: arrays that are not (k,) each, or no real numbers.
    """
    indices, rows, values = map(jnp.asarray, (x.indices, x.rows, x.values))
    if not indices.shape == rows.shape == values.shape or indices.ndim != 1:
        raise ValueError(
            f"{owner}: SparseRows must have indices, rows and values of one shape "
            f"(k,), got {indices.shape}, {rows.shape} and {values.shape}; use "
            "SparseRows.from_scipy or from_lists"
        )
    if indices.dtype.kind not in "iu" or rows.dtype.kind not in "iu":
        raise TypeError(
            f"{owner}: indices and rows of SparseRows must be integers, got "
            f"{indices.dtype} and {rows.dtype}"
        )
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise TypeError(f"{owner}: values must be real, got {values.dtype}")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.result_type(float))
    return SparseRows(indices, rows, values, x.shape)
