"""`ExactKernel`: a kernel function, evaluated in blocks that fit in memory."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch._plan import check_max_bytes, memory_budget
from jax_ntk_sketch._progress import progress
from jax_ntk_sketch._traced_memory import traced_bytes
from jax_ntk_sketch._typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class ExactKernel:
    """An exact kernel, evaluated in blocks of one size.

    Attributes:
      function: `function(x, z)` returns matrices (n, k), as a pytree; None as z means x
        itself, for which single precision knows that the cosines on the diagonal are 1.
        It is called once, as it is, if all examples fit in `max_bytes`, or if it cannot
        be traced. Otherwise it is compiled for a block.
      max_bytes: the bytes that a call of the function may take, as `transform` takes
        them.
      owner: the function to name in error messages.
    """

    function: Callable[[Any, Any], PyTree]
    max_bytes: int | None = None
    owner: str = "compare"

    def __call__(
        self,
        x: Array | NDArray,
        z: Array | NDArray | None = None,
        *,
        show: bool | None = False,
    ) -> Any:
        """Return the matrices of the rows of x with those of z, float64 on the host.

        Args:
          x: (n, ...).
          z: (k, ...), or None for x; then blocks above the diagonal are mirrored.
          show: whether to show a progress bar; None for where stderr is a terminal.

        Raises:
          ValueError: the kernel of two examples takes more than `max_bytes`, or than
            all memory; or the function returns matrices of another shape.
        """
        size = self._block_size(x, z)
        if size >= max(len(x), 0 if z is None else len(z)):
            return jax.tree.map(_float64, self.function(x, z))
        function = jax.jit(self.function)
        rows = _blocks(x, size)
        columns = rows if z is None else _blocks(z, size)
        shape = len(rows[0]), len(columns[0])
        places = list(np.ndindex(len(rows), len(columns)))
        if z is None:
            places = [(i, j) for i, j in places if j <= i]
        out = None
        for i, j in progress(places, "exact kernel, blocks", enabled=show):
            same = z is None and i == j
            blocks = function(rows[i], None if same else columns[j])
            if out is None:
                whole = len(rows) * shape[0], len(columns) * shape[1]
                out = jax.tree.map(lambda _, whole=whole: np.empty(whole), blocks)

            def place(target: np.ndarray, block: Array, i: int = i, j: int = j) -> None:
                if block.shape != shape:
                    raise ValueError(
                        f"{self.owner}: kernel_fn must return a {shape} matrix for "
                        f"{shape[0]} and {shape[1]} examples, got shape {block.shape}"
                    )
                down = slice(i * shape[0], (i + 1) * shape[0])
                across = slice(j * shape[1], (j + 1) * shape[1])
                target[down, across] = block
                if z is None:
                    target[across, down] = target[down, across].T

            jax.tree.map(place, out, blocks)
        count = len(x), len(x if z is None else z)
        return jax.tree.map(lambda a: a[: count[0], : count[1]], out)

    def _block_size(self, x: Array | NDArray, z: Array | NDArray | None) -> int:
        """Return how many rows, and columns, a call of the function takes."""
        limit = memory_budget(self.max_bytes)
        check_size(self.owner, "max_bytes", limit)
        size = max(len(x), 0 if z is None else len(z))
        needed = self._bytes(x, z, size)
        while needed > limit and size > 1:
            size = max(1, min(size - 1, int(size * math.sqrt(limit / needed))))
            needed = self._bytes(x, x if z is None else z, size)
        what, remedy = "the exact kernel of two examples", "give smaller examples"
        check_max_bytes(self.owner, self.max_bytes, needed, what, remedy)
        return size

    def _bytes(self, x: Array | NDArray, z: Array | NDArray | None, size: int) -> int:
        """Return what a call takes for at most `size` rows of each argument."""

        def rows(a: Array | NDArray) -> jax.ShapeDtypeStruct:
            dtype = jax.dtypes.canonicalize_dtype(a.dtype)
            return jax.ShapeDtypeStruct((min(size, len(a)), *a.shape[1:]), dtype)

        if z is None:
            return traced_bytes(lambda a: self.function(a, None), rows(x))
        return traced_bytes(self.function, rows(x), rows(z))


def _blocks(x: Array | NDArray, size: int) -> Array | NDArray:
    """Return blocks of one size; the last is padded with repeated rows."""
    count = -(-len(x) // size)
    size = -(-len(x) // count)
    rows = np.minimum(np.arange(count * size), len(x) - 1)
    return x[rows].reshape(count, size, *x.shape[1:])


def _float64(matrix: Array | NDArray) -> np.ndarray:
    return np.asarray(matrix, np.float64)
