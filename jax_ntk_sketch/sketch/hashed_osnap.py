"""OSNAP whose entries are computed from the coordinate's number, not stored."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._checks import check_input, check_key
from jax_ntk_sketch._numerics import known_size
from jax_ntk_sketch._typing import Array, ArrayLike, Key
from jax_ntk_sketch.sketch.count_sketch import OSNAP

# Coordinates are int32.
_MAX_INPUT_DIM = 2**31 - 1

# Coordinates that are hashed at a time. Their arrays then stay in a CPU's caches, which
# at least halves the time.
_BLOCK = 2**15

# The default generator of JAX may be another one, whose bits depend on the shape or on
# the device.
_GENERATOR = "threefry2x32"


@dataclasses.dataclass(frozen=True)
class HashedOSNAP(OSNAP):
    r"""OSNAP for vectors of any length d, with parameters of `4 s` bytes.

    A counter-based generator (Threefry) makes the buckets and the sign of coordinate i
    from the key and i. Two vectors thus agree on them however they are stored, and
    nothing of size d exists unless x itself is dense.

    Args:
      input_dim: d, at most 2^31 - 1.
      output_dim: m, the size of the sketch.
      sparsity: s, nonzeros per input coordinate, 1 <= s <= m.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is out of its range.

    Cost: `s` additions and s/2 hashes per nonzero of x. A sparse batch needs memory for
    its arrays and the output.
    Guarantee: as for `OSNAP`: unbiased, with variance at most
    :math:`(\|x\|^2\|y\|^2 + \langle x, y\rangle^2)/m`, up to 2^-31 m.
    Source: Nelson and Nguyen (2013), as for `OSNAP`; Salmon, Moraes, Dror, Shaw,
    "Parallel random numbers: as easy as 1, 2, 3" (2011).

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch.sketch import HashedOSNAP
    >>> sketch = HashedOSNAP(10**9, 8, sparsity=2)
    >>> params = sketch.init(jax.random.key(0))
    >>> i, rows, values = jnp.array([7, 10**8]), jnp.array([0, 1]), jnp.ones(2)
    >>> sketch.apply_sparse(params, i, rows, values, num_rows=3).shape
    (3, 8)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_dim > _MAX_INPUT_DIM:
            raise ValueError(
                f"HashedOSNAP: input_dim must be at most 2^31 - 1, got {self.input_dim}"
            )

    def init(self, key: Key) -> dict[str, Array]:
        """Draw `seed` `(ceil(s / 2), 2)` int32: a key for each two blocks."""
        key = check_key("HashedOSNAP", key)
        bits = jax.random.bits(key, (-(-self.sparsity // 2), 2), jnp.uint32)
        return {"seed": jax.lax.bitcast_convert_type(bits, jnp.int32)}

    def entries(self, params: dict[str, Array], indices: Array) -> dict[str, Array]:
        """Return `bucket` (s, k) int32 and `sign` (s, k) int8 of coordinates (k,)."""
        hash_block = functools.partial(self._hash, params["seed"])
        indices = indices.astype(jnp.uint32)
        k = len(indices)
        if k <= _BLOCK:
            return hash_block(indices)
        blocks = -(-k // _BLOCK)
        padded = jnp.pad(indices, (0, blocks * _BLOCK - k)).reshape(blocks, _BLOCK)
        return {
            name: jnp.moveaxis(z, 0, 1).reshape(self.sparsity, -1)[:, :k]
            for name, z in jax.lax.map(hash_block, padded).items()
        }

    def _hash(self, seed: Array, indices: Array) -> dict[str, Array]:
        """Return the `entries` of one block of coordinates."""

        def two_words(seed_of_two: Array) -> Array:
            """Return two words for each coordinate: `fold_in` of key and number."""
            key = jax.random.wrap_key_data(seed_of_two, impl=_GENERATOR)
            folded = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
            return jax.random.key_data(folded).T

        seed = jax.lax.bitcast_convert_type(seed, jnp.uint32)
        word = jax.vmap(two_words)(seed).reshape(-1, len(indices))[: self.sparsity]
        edges = np.arange(self.sparsity + 1) * self.output_dim // self.sparsity
        size = np.diff(edges).astype(np.uint32)[:, None]
        start = edges[:-1].astype(np.int32)[:, None]
        # One bit is the sign; 31 are far more than a bucket needs.
        return {
            "bucket": ((word >> 1) % size).astype(jnp.int32) + start,
            "sign": 1 - 2 * (word & 1).astype(jnp.int8),
        }

    def apply(self, params: dict[str, Array], x: ArrayLike) -> Array:
        """Sketch dense `x` `(..., d)` to `(..., m)`, in the dtype of `x`."""
        x = check_input("HashedOSNAP", "x", x, self.input_dim)
        entries = self.entries(params, jnp.arange(self.input_dim, dtype=jnp.int32))
        return super().apply(entries, x)

    def apply_sparse(
        self,
        params: dict[str, Array],
        indices: Array,
        rows: Array,
        values: Array,
        *,
        num_rows: int,
    ) -> Array:
        """Sketch vectors that are given by their nonzeros.

        Args:
          params: the parameters that `init` returned.
          indices, rows, values: (k,) coordinate, number of the vector and value, in any
            order. Values of one coordinate are added. Entries of rows outside 0..n - 1
            are ignored.
          num_rows: n.

        Returns:
          `(n, m)`, dtype of `values`, or the default float where these are integers.
        """
        remedy = "export with a fixed number of entries, which padding reaches"
        k = known_size("HashedOSNAP", "entries", indices.shape[0], remedy)
        values = check_input("HashedOSNAP", "values", values, k)
        scale = jnp.asarray(self.sparsity**-0.5, values.dtype)

        def add_block(out: Array, block: tuple[Array, ...]) -> tuple[Array, None]:
            index, row, value = block
            entries = self._hash(params["seed"], index.astype(jnp.uint32))
            for bucket, sign in zip(entries["bucket"], entries["sign"], strict=True):
                signed = value * (sign.astype(value.dtype) * scale)
                out = out.at[row, bucket].add(signed, mode="drop")
            return out, None

        out = jnp.zeros((num_rows, self.output_dim), values.dtype)
        if k <= _BLOCK:
            return add_block(out, (indices, rows, values))[0]
        blocks = -(-k // _BLOCK)
        padding = (0, blocks * _BLOCK - k)
        padded = tuple(
            jnp.pad(z, padding).reshape(blocks, _BLOCK) for z in (indices, rows, values)
        )
        return jax.lax.scan(add_block, out, padded)[0]
