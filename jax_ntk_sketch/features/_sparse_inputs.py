"""`with_sparse_inputs`: feature maps of sparse examples, at a cost of their nonzeros."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import methods
from jax_ntk_sketch._checks import check_input, check_key, set_sizes
from jax_ntk_sketch._plan import Plan, PlanRow
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import Get, Kind
from jax_ntk_sketch.batches.sparse_rows import (
    SparseRows,
    check_rows,
    is_sparse,
    num_examples,
)
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.sketch import HashedOSNAP

__all__ = ["SparseFeatureMap", "with_sparse_inputs"]


@dataclasses.dataclass(frozen=True)
class SparseFeatureMap:
    r"""Features of another map of sketched examples, :math:`\Psi(S x)`.

    Made by `with_sparse_inputs`. Static and hashable.

    Attributes:
      base: the map of examples with `sketch_dim` numbers.
      sketch_dim: size of the sketched examples.
      sparsity: nonzeros of S per coordinate.
      exact_norms: whether each sketched example is given the norm of its original.
    """

    base: FeatureMap
    sketch_dim: int
    sparsity: int
    exact_norms: bool

    def __post_init__(self) -> None:
        if not isinstance(self.base, FeatureMap):
            raise TypeError(
                "with_sparse_inputs: fmap must be a NetworkFeatureMap (made by feature_map), got "
                f"{type(self.base).__name__}"
            )
        if isinstance(self.base, SparseFeatureMap):
            raise TypeError("with_sparse_inputs: fmap takes sparse examples already")
        set_sizes(self, "sketch_dim", "sparsity")
        if not isinstance(self.exact_norms, bool):
            raise TypeError(
                f"with_sparse_inputs: exact_norms must be a bool, got {self.exact_norms!r}"
            )
        if self.sparsity > self.sketch_dim:
            raise ValueError(
                f"with_sparse_inputs: sparsity {self.sparsity} must not exceed sketch_dim "
                f"{self.sketch_dim}"
            )
        try:
            self.base.plan((self.sketch_dim,))
        except ValueError as error:
            raise ValueError(
                "with_sparse_inputs: fmap must take flat examples, of sketch_dim = "
                f"{self.sketch_dim} numbers, but: {error}"
            ) from error

    @property
    def num_features(self) -> int:
        """Those of `base`."""
        return self.base.num_features

    @property
    def get(self) -> Get:
        """The kernel or kernels of `base`."""
        return self.base.get

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kernels of `base`, as a tuple."""
        return self.base.kinds

    @property
    def method(self) -> methods.Method:
        """The method of `base`."""
        return self.base.method

    def init(self, key: jax.Array, example: Any) -> dict[str, Any]:
        """Draws the parameters; they do not grow with d.

        Args:
          key: a PRNG key.
          example: `(d,)`, d < 2^31, or examples (n, d), sparse or dense, of which a map
            that learns from data is given the sketches, (n, sketch_dim); others use their
            shape only.

        Returns:
          `{"sizes": no numbers, of shape (0, d, sketch_dim), "hash": seeds, "base":
          parameters of base}`.

        Raises:
          TypeError, ValueError: a bad key or shape; what `base` says.
        """
        key = check_key("SparseFeatureMap.init", key)
        d = _dim("SparseFeatureMap.init", example)
        first, second = jax.random.split(key)
        params: dict[str, Any] = {
            "sizes": jnp.zeros((0, d, self.sketch_dim), jnp.float32),
            "hash": self._sketch(d).init(first),
        }
        shape: Any = (self.sketch_dim,)
        if self._learns(example):
            shape = self._sketched(params, self._examples("init", example))
        params["base"] = self.base.init(second, shape)
        return params

    def _learns(self, example: Any) -> bool:
        """Whether the parameters of `base` depend on these examples."""
        if isinstance(example, tuple | list):
            return False
        if not isinstance(self.base, NetworkFeatureMap):
            return True
        if isinstance(self.method, methods.Auto):
            return num_examples(example) >= self.num_features
        return isinstance(self.method, methods.Nystrom)

    def apply(
        self, params: dict[str, Any], x: Any, *, batch_size: int | None = None
    ) -> Any:
        """Features `(n, num_features)` of examples, as `NetworkFeatureMap.apply`.

        Args:
          params: what `init` returned.
          x: `(n, d)`: `SparseRows`; any format of scipy.sparse, not under `jit` (pass
            `SparseRows.from_scipy(x)` there); or a dense array, with the same features
            to rounding.
          batch_size: examples of which `base` works on at a time; all are sketched at
            once.

        Returns:
          `(n, num_features)`, dtype of the values (the default float for integers);
          `KernelFeatures` of two such arrays if `get` is a tuple.

        Raises:
          TypeError, ValueError: x of another size than `init` was told, malformed, or
            not real; what `base` says.
        """
        x = self._examples("apply", x)
        sizes = jnp.shape(params["sizes"])
        if sizes != (0, x.shape[1], self.sketch_dim):
            raise ValueError(
                f"SparseFeatureMap.apply: x must have shape (n, {sizes[1]}), as init "
                f"was told of a map with sketch_dim={sizes[2]}; got {x.shape} and "
                f"sketch_dim={self.sketch_dim}"
            )
        return self.base.apply(
            params["base"], self._sketched(params, x), batch_size=batch_size
        )

    def _examples(self, method: str, x: Any) -> Any:
        """`SparseRows` or a dense array, of floats."""
        owner = f"SparseFeatureMap.{method}"
        if is_sparse(x):
            if not isinstance(x, SparseRows):
                x = SparseRows.from_scipy(x)
            return check_rows(owner, x)
        x = jnp.asarray(x)
        if x.ndim != 2:
            raise ValueError(
                f"{owner}: x must have shape (n, d), got {x.shape}"
                + ("; use x[None] for one example" if x.ndim == 1 else "")
            )
        return check_input(owner, "x", x, x.shape[1])

    def _sketch(self, d: int) -> HashedOSNAP:
        return HashedOSNAP(d, self.sketch_dim, self.sparsity)

    def _sketched(self, params: dict[str, Any], x: Any) -> jax.Array:
        """`(n, sketch_dim)`, squared norms over `sketch_dim` those of x over d."""
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
        # The first layer divides by sqrt(columns) what it should divide by sqrt(d).
        scale = math.sqrt(self.sketch_dim / d)
        if not self.exact_norms:
            return z * jnp.asarray(scale, z.dtype)
        own = jnp.sum(_square(z), axis=1)
        # Coordinates may cancel: then there is no direction, and 0 stays 0.
        none = (own <= 0) | (norm2 <= 0)
        ratio = jnp.where(none, 1, norm2) / jnp.where(none, 1, own)
        return z * (jnp.sqrt(ratio) * scale).astype(z.dtype)[:, None]

    def plan(
        self,
        example: Any,
        *,
        batch_size: int | None = None,
    ) -> Plan:
        """The plan of `base` with the sketch.

        Args:
          example: `(d,)`, for dense examples; or examples (n, d), whose nonzeros count
            where they are sparse.
          batch_size: examples of which `base` works on at a time.

        Returns:
          A `Plan`; its `input_elements` are indices, rows and values of the nonzeros,
          their squares and the sketched example.
        """
        d = _dim("SparseFeatureMap.plan", example)
        # Dense, also the transposed and its copy with signs.
        count, nonzeros, inputs = 1, d, 3 * d
        if not isinstance(example, tuple | list):
            count = max(1, num_examples(example))
        if is_sparse(example):
            nonzeros = -(-example.nnz // count)
            inputs = 4 * nonzeros
        m = self.sketch_dim
        plan = self.base.plan((m,), batch_size=batch_size or count)
        row = PlanRow(
            f"HashedOSNAP of {nonzeros} nonzeros",
            m,
            0,
            8 * (-(-self.sparsity // 2)),
            (2 * self.sparsity + 4) * nonzeros + 3 * m,
            2 * m,
        )
        return dataclasses.replace(
            plan,
            rows=(row, *plan.rows),
            input_shape=(d,),
            num_examples=max(count, plan.batch_size),
            input_elements=inputs + m,
            relative_error=None,  # the sketch has an error too
            bias=None,
        )


def with_sparse_inputs(
    fmap: FeatureMap,
    *,
    sketch_dim: int = 4096,
    sparsity: int = 4,
    exact_norms: bool = True,
) -> SparseFeatureMap:
    r"""A feature map of sparse examples, in time of their nonzeros.

    .. math:: x \mapsto \Psi(z), \qquad z = \sqrt{c / d}\, \frac{|x|}{|S x|}\, S x,

    with c = `sketch_dim` and S an OSNAP sketch whose entries are hashed from the number of
    the coordinate: neither time nor memory nor parameters depend on d.

    Args:
      fmap: a map with any method, of a network on flat examples.
      sketch_dim: c, the size of the sketches. Their error is below that of the features
        where c is several times `num_features`; c = 4096 costs as much as dense
        examples of that size.
      sparsity: s, nonzeros of S per coordinate, 1 <= s <= c.
      exact_norms: give each sketch the norm of its example, the factor |x| / |S x|. The
        kernel's diagonal then is that of `fmap` on dense examples, and the error of the
        others is less by a quarter (measured on counts of words). Inner products of
        sketches are unbiased without it, with it only up to O(1/c), as the kernel,
        which is not linear in them, is either way.

    Returns:
      `SparseFeatureMap`: `init(key, (d,))`, `apply(params, x)` of `SparseRows`,
      scipy.sparse or dense arrays, `plan`. `transform`, `linear_model.fit` and its
      relatives take scipy.sparse for it, which is never made dense.

    Raises:
      TypeError, ValueError: a bad argument, named; a network with spatial layers in
        front; `num_features` too few for c inputs.

    Cost: s additions and s/2 hashes for each nonzero, and `fmap` on (n, c). Memory:
    some 16 bytes for each nonzero, and 4 n c.

    Guarantee: :math:`\langle Sx, Sy\rangle` is unbiased, of variance at most
    :math:`(|x|^2|y|^2 + \langle x, y\rangle^2)/c`.
    Source: Nelson and Nguyen, OSNAP (2013).

    >>> import scipy.sparse
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> fmap = with_sparse_inputs(jns.feature_map(net, num_features=128), sketch_dim=256)
    >>> x = scipy.sparse.random_array((5, 10**6), density=1e-5, dtype=np.float32)
    >>> params = fmap.init(jax.random.key(0), (10**6,))
    >>> fmap.apply(params, x).shape
    (5, 128)
    """
    return SparseFeatureMap(fmap, sketch_dim, sparsity, exact_norms)


def _dim(owner: str, example: Any) -> int:
    """d, of a shape or of examples."""
    if isinstance(example, tuple | list) and all(
        isinstance(size, int | np.integer) for size in example
    ):
        shape = tuple(example)
    else:
        shape = (example.shape if is_sparse(example) else np.shape(example))[1:]
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(
            f"{owner}: example must be (d,), the size of flat examples, or examples "
            f"(n, d); got {shape}"
        )
    return int(shape[0])


def _square(x: jax.Array) -> jax.Array:
    """In float32 at least: half precision would overflow."""
    return jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
