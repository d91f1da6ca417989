"""OSNAP whose entries are computed from the coordinate's number, not stored."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._checks import check_input, check_key
from jax_ntk_sketch.sketch.count_sketch import OSNAP

__all__ = ["HashedOSNAP"]

# Coordinates are int32.
_LARGEST = 2**31 - 1

# Coordinates hashed at a time: what is alive then stays in a CPU's caches, which
# halves the time or better.
_BLOCK = 2**15

# Whatever the default is: other implementations give bits that depend on the shape,
# or on the device.
_IMPL = "threefry2x32"


@dataclasses.dataclass(frozen=True)
class HashedOSNAP(OSNAP):
    r"""OSNAP for vectors of any length d: parameters of `4 s` bytes, whatever d is.

    Buckets and signs of coordinate i are random bits that a counter-based generator
    (Threefry) makes of the key and i, so that two vectors agree on them however they
    are stored, and nothing of size d exists unless x itself is dense.

    Args:
      input_dim: d, at most 2^31 - 1.
      output_dim: m, the size of the sketch.
      sparsity: s, nonzeros per input coordinate, 1 <= s <= m.

    Raises:
      TypeError, ValueError: a size of the wrong type or range, named.

    Cost: `s` additions and s/2 hashes per nonzero of x (some 50 ns on a CPU for s = 4,
    half of it for the hashes). Memory of a sparse batch: its arrays and the output.
    Guarantee: that of `OSNAP`: unbiased, variance at most
    :math:`(\|x\|^2\|y\|^2 + \langle x, y\rangle^2)/m`, up to 2^-31 m.
    Source: Nelson and Nguyen (2013), as `OSNAP`; Salmon, Moraes, Dror, Shaw,
    "Parallel random numbers: as easy as 1, 2, 3" (2011).

    >>> sketch = HashedOSNAP(10**9, 8, sparsity=2)
    >>> params = sketch.init(jax.random.key(0))
    >>> i, rows, values = jnp.array([7, 10**8]), jnp.array([0, 1]), jnp.ones(2)
    >>> sketch.apply_sparse(params, i, rows, values, num_rows=3).shape
    (3, 8)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_dim > _LARGEST:
            raise ValueError(
                f"HashedOSNAP: input_dim must be at most 2^31 - 1, got {self.input_dim}"
            )

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws `seed` `(ceil(s / 2), 2)` int32: a key for every two blocks."""
        key = check_key("HashedOSNAP", key)
        bits = jax.random.bits(key, (-(-self.sparsity // 2), 2), jnp.uint32)
        return {"seed": jax.lax.bitcast_convert_type(bits, jnp.int32)}

    def entries(
        self, params: dict[str, jax.Array], indices: jax.Array
    ) -> dict[str, jax.Array]:
        """`bucket` (s, k) int32 and `sign` (s, k) int8 of coordinates (k,)."""
        hashed = functools.partial(self._entries, params["seed"])
        indices = indices.astype(jnp.uint32)
        k = len(indices)
        if k <= _BLOCK:
            return hashed(indices)
        blocks = -(-k // _BLOCK)
        padded = jnp.pad(indices, (0, blocks * _BLOCK - k)).reshape(blocks, _BLOCK)
        out = jax.lax.map(hashed, padded)
        return {
            name: jnp.moveaxis(z, 0, 1).reshape(self.sparsity, -1)[:, :k]
            for name, z in out.items()
        }

    def _entries(self, seed: jax.Array, indices: jax.Array) -> dict[str, jax.Array]:
        def words(two: jax.Array) -> jax.Array:
            """Two words for each coordinate: what `fold_in` makes of key and number."""
            key = jax.random.wrap_key_data(two, impl=_IMPL)
            folded = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
            return jax.random.key_data(folded).T

        seed = jax.lax.bitcast_convert_type(seed, jnp.uint32)
        word = jax.vmap(words)(seed).reshape(-1, len(indices))[: self.sparsity]
        edges = np.arange(self.sparsity + 1) * self.output_dim // self.sparsity
        size = np.diff(edges).astype(np.uint32)[:, None]
        start = edges[:-1].astype(np.int32)[:, None]
        # One bit is the sign; 31 are far more than a bucket needs.
        return {
            "bucket": ((word >> 1) % size).astype(jnp.int32) + start,
            "sign": 1 - 2 * (word & 1).astype(jnp.int8),
        }

    def apply(self, params: dict[str, jax.Array], x: Any) -> jax.Array:
        """Sketches dense `x` `(..., d)` to `(..., m)`, dtype of `x`."""
        x = check_input("HashedOSNAP", "x", x, self.input_dim)
        every = self.entries(params, jnp.arange(self.input_dim, dtype=jnp.int32))
        return super().apply(every, x)

    def apply_sparse(
        self,
        params: dict[str, jax.Array],
        indices: jax.Array,
        rows: jax.Array,
        values: jax.Array,
        *,
        num_rows: int,
    ) -> jax.Array:
        """Sketches vectors given by their nonzeros.

        Args:
          params: what `init` returned.
          indices, rows, values: (k,) coordinate, number of the vector and value, in any
            order; values of one coordinate are added. Rows outside 0..n - 1 count
            nothing.
          num_rows: n.

        Returns:
          `(n, m)`, dtype of `values`, or the default float where these are integers.
        """
        values = check_input("HashedOSNAP", "values", values, len(indices))
        scale = jnp.asarray(self.sparsity**-0.5, values.dtype)

        def add(out: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            i, r, v = block
            entries = self._entries(params["seed"], i.astype(jnp.uint32))
            for bucket, sign in zip(entries["bucket"], entries["sign"], strict=True):
                signed = v * (sign.astype(v.dtype) * scale)
                out = out.at[r, bucket].add(signed, mode="drop")
            return out, None

        out = jnp.zeros((num_rows, self.output_dim), values.dtype)
        arrays = indices, rows, values
        if len(indices) <= _BLOCK:
            return add(out, arrays)[0]
        blocks = -(-len(indices) // _BLOCK)
        fill = (0, blocks * _BLOCK - len(indices))
        padded = (jnp.pad(z, fill).reshape(blocks, _BLOCK) for z in arrays)
        return jax.lax.scan(add, out, tuple(padded))[0]
