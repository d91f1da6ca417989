"""`with_sparse_inputs`: a feature map of sparse examples, in time of their nonzeros."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import _checks
from jax_ntk_sketch._arrays import to_jax
from jax_ntk_sketch._numerics import at_least_float32
from jax_ntk_sketch._plan import Plan, PlanRow
from jax_ntk_sketch._protocol import (
    FeatureMap,
    KernelFeatures,
    Origin,
    check_feature_map,
)
from jax_ntk_sketch._traced_memory import traced_bytes
from jax_ntk_sketch._typing import Array, Examples, Key, PyTree, Shape
from jax_ntk_sketch.batches.sparse_rows import (
    SparseRows,
    check_rows,
    is_sparse,
    num_examples,
)
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.features._maps import DerivedFeatureMap, check_params, plan_sizes
from jax_ntk_sketch.sketch import HashedOSNAP


@dataclasses.dataclass(frozen=True, repr=False)
class SparseFeatureMap(DerivedFeatureMap):
    r"""The features that another map has of sketched examples, :math:`\Psi(S x)`.

    The record is static and hashable; `with_sparse_inputs` makes it.

    Attributes:
      base: the map of examples with `sketch_dim` numbers.
      sketch_dim: the size of the sketched examples.
      sparsity: nonzeros of S per coordinate.
      exact_norms: whether each sketched example is scaled to the norm of the example.
    """

    sketch_dim: int
    sparsity: int
    exact_norms: bool

    def __post_init__(self) -> None:
        owner = "with_sparse_inputs"
        check_feature_map(owner, self.base)
        if isinstance(self.base, SparseFeatureMap):
            raise TypeError(
                f"{owner}: fmap must take dense examples, got a SparseFeatureMap, "
                "which takes sparse examples already"
            )
        _checks.set_sizes(self, "sketch_dim", "sparsity")
        _checks.check_flag(owner, "exact_norms", self.exact_norms)
        if self.sparsity > self.sketch_dim:
            raise ValueError(
                f"{owner}: sparsity must not exceed sketch_dim = {self.sketch_dim}, "
                f"got {self.sparsity}"
            )
        try:
            self.base.plan((self.sketch_dim,))
        except ValueError as error:
            raise ValueError(
                f"{owner}: fmap must take flat examples of sketch_dim = "
                f"{self.sketch_dim} numbers, but: {error}"
            ) from error

    def __repr__(self) -> str:
        return (
            f"with_sparse_inputs({self.base!r}, sketch_dim={self.sketch_dim}, "
            f"sparsity={self.sparsity}, exact_norms={self.exact_norms})"
        )

    @property
    def num_features(self) -> int:
        """The number of columns of the features of each kernel, that of `base`."""
        return self.base.num_features

    def init(
        self,
        key: Key,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
        max_bytes: int | None = None,
    ) -> dict[str, PyTree]:
        """Return parameters, whose size does not depend on d.

        Args:
          key: a PRNG key.
          example: `(d,)`, d < 2^31; or examples (n, d), sparse or dense, of which only
            the shape is taken.
          sample: examples (n, d), sparse or dense. A map that learns from data is given
            their sketches.
          max_bytes: as `init` of `base` takes it.

        Returns:
          A dictionary: "hash", the seeds of S; "base", the parameters of `base`; and
          "origin", a record without arrays.

        Raises:
          TypeError: `key` is not a PRNG key; the sample is complex.
          ValueError: `example` is neither a shape nor examples; the sample has another
            shape; `base` raises.
        """
        owner = "SparseFeatureMap.init"
        key = _checks.check_key(owner, key)
        d = _input_dim(owner, example)
        hash_key, base_key = jax.random.split(key)
        params: dict[str, PyTree] = {
            "origin": Origin((d,), self.sketch_dim).node(),
            "hash": self._sketch(d).init(hash_key),
        }
        sketched = None
        if sample is not None and self._learns:
            sketched = self._sketched(
                params, _float_examples(owner, sample, "sample", d)
            )
        # A map that someone else wrote need not take `max_bytes`.
        named = {} if max_bytes is None else {"max_bytes": max_bytes}
        shape = (self.sketch_dim,)
        params["base"] = self.base.init(base_key, shape, sample=sketched, **named)
        return params

    @property
    def _learns(self) -> bool:
        """Whether the parameters of `base` may depend on a sample."""
        if isinstance(self.base, NetworkFeatureMap):
            return self.base.resolve((self.sketch_dim,)).method.needs_sample
        return True

    def apply(
        self, params: PyTree, x: Examples, *, batch_size: int | None = None
    ) -> Array | KernelFeatures:
        """Return the features of examples.

        Args:
          params: the parameters that `init` returned.
          x: `(n, d)`: `SparseRows`; or any format of scipy.sparse, outside of `jit`
            (`SparseRows.from_scipy(x)` works there); or a dense array, whose features
            are the same up to rounding.
          batch_size: sketched examples that `base` works on at a time; by default all.
            All examples are sketched at once.

        Returns:
          `(n, num_features)` in the dtype of the values, or the default float for
          integers; `KernelFeatures` of two such arrays if `get` is a tuple.

        Raises:
          TypeError: x is not real.
          ValueError: x has another shape than the examples that `params` were made for;
            x is malformed; `base` raises.
        """
        owner = "SparseFeatureMap.apply"
        check_params(owner, params)
        x = _float_examples(owner, x)
        origin = Origin.of(params)
        if origin is None:
            raise ValueError(
                f"{owner}: params must come from init of an equal feature map"
            )
        if origin != Origin((x.shape[1],), self.sketch_dim):
            raise ValueError(
                f"{owner}: x must have shape (n, {origin.input_shape[0]}) and "
                f"sketch_dim must be {origin.output_dim}, for which init made params, "
                f"got {x.shape} and sketch_dim={self.sketch_dim}"
            )
        return self.base.apply(
            params["base"], self._sketched(params, x), batch_size=batch_size
        )

    def _sketch(self, d: int) -> HashedOSNAP:
        return HashedOSNAP(d, self.sketch_dim, self.sparsity)

    def _sketched(self, params: PyTree, x: SparseRows | Array) -> Array:
        """Return `(n, sketch_dim)`, with |z|^2 / sketch_dim = |x|^2 / d."""
        n, d = x.shape
        sketch, seeds = self._sketch(d), params["hash"]
        if isinstance(x, SparseRows):
            entries = x.indices, x.rows, x.values
            z = sketch.apply_sparse(seeds, *entries, num_rows=n)
            squares = _square(x.values)
            norm2 = jnp.zeros(n, squares.dtype).at[x.rows].add(squares, mode="drop")
        else:
            z = sketch.apply(seeds, x)
            norm2 = jnp.sum(_square(x), axis=1)
        # The first layer divides by sqrt(sketch_dim), and is to divide by sqrt(d).
        scale = math.sqrt(self.sketch_dim / d)
        if not self.exact_norms:
            return z * jnp.asarray(scale, z.dtype)
        sketched_norm2 = jnp.sum(_square(z), axis=1)
        # Coordinates may cancel in a sketch; without a direction, 0 stays 0.
        is_zero = (sketched_norm2 <= 0) | (norm2 <= 0)
        ratio = jnp.where(is_zero, 1, norm2) / jnp.where(is_zero, 1, sketched_norm2)
        return z * (jnp.sqrt(ratio) * scale).astype(z.dtype)[:, None]

    def plan(
        self,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
        batch_size: int | None = None,
    ) -> Plan:
        """Return the plan of `base` and of the sketch.

        Args:
          example: `(d,)`, for dense examples; or examples (n, d), whose nonzeros are
            counted if they are sparse.
          sample: the examples that `init` will be given.
          batch_size: sketched examples that `base` works on at a time.

        Returns:
          A `Plan`. Its `input_elements` are all that an example takes until it is
          sketched.

        Raises:
          ValueError: `example` is neither a shape (d,) nor examples (n, d).
        """
        owner = "SparseFeatureMap.plan"
        d = _input_dim(owner, example)
        _, count, batch = plan_sizes(owner, example, batch_size)
        nonzeros = -(-getattr(example, "nnz", count * d) // count)
        inputs = _sketch_elements(self, d, nonzeros if is_sparse(example) else None)
        m = self.sketch_dim
        sketched = None
        if sample is not None:
            rows = num_examples(sample)
            sketched = jax.ShapeDtypeStruct((rows, m), jnp.float32)
        plan = self.base.plan((m,), sample=sketched, batch_size=batch)
        row = PlanRow(
            f"HashedOSNAP of {nonzeros} nonzeros",
            nngp_features=m,
            ntk_features=0,
            param_bytes=8 * (-(-self.sparsity // 2)),
            flops=(2 * self.sparsity + 4) * nonzeros + 3 * m,
            live_elements=2 * m,
        )
        return dataclasses.replace(
            plan,
            rows=(row, *plan.rows),
            input_shape=(d,),
            num_examples=max(count, plan.batch_size),
            input_elements=inputs,
            # The sketch adds an error and a bias of its own.
            relative_error=None,
            bias=None,
        )


def with_sparse_inputs(
    fmap: FeatureMap,
    *,
    sketch_dim: int = 4096,
    sparsity: int = 4,
    exact_norms: bool = True,
) -> SparseFeatureMap:
    r"""Return a feature map of sparse examples, which takes time of their nonzeros.

    .. math:: x \mapsto \Psi(z), \qquad z = \sqrt{c / d}\, \frac{|x|}{|S x|}\, S x

    Here c is `sketch_dim`, and S is an OSNAP sketch whose entries are hashed from the
    number of the coordinate. Time, memory and parameters do not depend on d.

    Args:
      fmap: a map of flat examples, with any method.
      sketch_dim: c, the size of the sketches. Their error is below that of the features
        if c is several times `num_features`. The cost is that of dense examples of
        size c.
      sparsity: s, nonzeros of S per coordinate, 1 <= s <= c.
      exact_norms: whether to scale each sketch to the norm of its example, by the
        factor |x| / |S x|. The diagonal of the kernel is then that of `fmap` on dense
        examples, and the error off the diagonal is smaller. Inner products of sketches
        are unbiased without the factor, and have a bias of O(1/c) with it. The kernel
        is not linear in them, so that it has a bias of O(1/c) in both cases.

    Returns:
      A `SparseFeatureMap`: `init(key, (d,))`, `plan`, and `apply(params, x)` of
      `SparseRows`, scipy.sparse or dense arrays. `transform` and the fits of
      `linear_model` take scipy.sparse arrays for it and never make them dense.

    Raises:
      TypeError: `fmap` is not a feature map, or takes sparse examples already; a size
        is not an integer; `exact_norms` is not a bool.
      ValueError: the network of `fmap` needs spatial axes; `num_features` is too small
        for c inputs; a size is out of range.

    Cost: s additions and s/2 hashes for each nonzero, and that of `fmap` on (n, c).
    Memory: about 16 bytes for each nonzero, and 4 n c bytes.

    Guarantee: :math:`\langle Sx, Sy\rangle` is unbiased, with a variance of at most
    :math:`(|x|^2|y|^2 + \langle x, y\rangle^2)/c`.
    Source: Nelson and Nguyen, OSNAP (2013).

    >>> import jax
    >>> import jax_ntk_sketch as jns
    >>> import numpy as np
    >>> import scipy.sparse
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> base = jns.feature_map(net, num_features=128)
    >>> fmap = jns.with_sparse_inputs(base, sketch_dim=256)
    >>> x = scipy.sparse.random_array((5, 10**6), density=1e-5, dtype=np.float32)
    >>> params = fmap.init(jax.random.key(0), (10**6,))
    >>> fmap.apply(params, x).shape
    (5, 128)
    """
    return SparseFeatureMap(fmap, sketch_dim, sparsity, exact_norms)


@functools.lru_cache(maxsize=256)
def _sketch_elements(fmap: SparseFeatureMap, d: int, nonzeros: int | None) -> int:
    """Return the numbers in memory per example while examples are sketched.

    They have this many nonzeros, or are dense if it is None.
    """
    count = 256

    def run(seeds: PyTree, x: Array, index: Array | None = None) -> Array:
        rows: SparseRows | Array = x
        if index is not None:
            rows = SparseRows(indices=index, rows=index, values=x, shape=(count, d))
        return fmap._sketched({"hash": seeds}, rows)

    seeds = jax.eval_shape(lambda: fmap._sketch(d).init(jax.random.key(0)))
    shape = (count, d) if nonzeros is None else (count * max(nonzeros, 1),)
    values = jax.ShapeDtypeStruct(shape, jnp.float32)
    index = None if nonzeros is None else values.update(dtype=jnp.int32)
    return traced_bytes(run, seeds, values, index) // (4 * count)


def _float_examples(
    owner: str, x: Examples, name: str = "x", d: int | None = None
) -> SparseRows | Array:
    """Return examples (n, d) as `SparseRows` or as a dense array, of floats."""
    found = np.shape(x) if not hasattr(x, "shape") else x.shape
    if d is not None and found[1:] != (d,):
        raise ValueError(
            f"{owner}: {name} must have shape (n, {d}), as example has, got {found}"
        )
    if is_sparse(x):
        return check_rows(
            owner, x if isinstance(x, SparseRows) else SparseRows.from_scipy(x)
        )
    x = to_jax(owner, "x", x)
    if x.ndim != 2:
        hint = "; use x[None] for one example" * (x.ndim == 1)
        raise ValueError(f"{owner}: x must have shape (n, d), got {x.shape}{hint}")
    return _checks.check_input(owner, "x", x, x.shape[1])


def _input_dim(owner: str, example: Shape | Examples) -> int:
    """Return d of a shape (d,) or of examples (n, d)."""
    shape, _ = _checks.check_example(owner, example)
    if len(shape) != 1:
        raise ValueError(
            f"{owner}: example must be (d,), the shape of a flat example, or examples "
            f"(n, d); got examples of shape {shape}"
        )
    return shape[0]


def _square(x: Array) -> Array:
    """Return the squares in float32 at least, because half precision would overflow."""
    return jnp.square(at_least_float32(x))
