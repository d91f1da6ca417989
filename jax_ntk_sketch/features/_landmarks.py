"""`landmark_features`: the feature map of any kernel that is given as a function."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from jax_ntk_sketch import methods
from jax_ntk_sketch._checks import check_choice, check_input, check_key, check_size
from jax_ntk_sketch._numerics import at_least_float32, in_batches, matmul
from jax_ntk_sketch._plan import Plan, PlanRow, memory_budget
from jax_ntk_sketch._traced_memory import traced_bytes
from jax_ntk_sketch._typing import (
    KINDS,
    Array,
    ArrayLike,
    Examples,
    KernelFn,
    Key,
    Kind,
    Shape,
)
from jax_ntk_sketch.batches.sparse_rows import refuse_sparse
from jax_ntk_sketch.features import _maps
from jax_ntk_sketch.features._bias import warn_if_differentiated
from jax_ntk_sketch.features._transform import check_work
from jax_ntk_sketch.kernels.nystrom import inverse_sqrt, rpcholesky, warn_left_out


@dataclasses.dataclass(frozen=True, repr=False)
class LandmarkFeatureMap:
    """The landmark features of a kernel: static, hashable, made by `landmark_features`.

    Attributes:
      kernel_fn: `kernel_fn(x1, x2, get)` returns the kernel matrix.
      num_features: the number of landmarks, which is the number of columns.
      get: "ntk" or "nngp".
    """

    kernel_fn: KernelFn
    num_features: int
    get: Kind = "ntk"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kernel that `get` asks for, in a tuple."""
        return (self.get,)

    @property
    def method(self) -> methods.Method:
        """The method of the map: as many landmarks as columns."""
        return methods.Nystrom(oversample=1.0)

    def __repr__(self) -> str:
        # The name of a function, because its address differs from run to run.
        name = getattr(self.kernel_fn, "__qualname__", type(self.kernel_fn).__name__)
        return (
            f"landmark_features({self.kernel_fn.__module__}.{name}, "
            f"num_features={self.num_features}, get={self.get!r})"
        )

    def init(
        self,
        key: Key,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
        max_bytes: int | None = None,
    ) -> dict[str, Array]:
        """Choose the landmarks among the examples of a sample.

        Args:
          key: a PRNG key. It is not used if there are at most `num_features` examples.
          example: the shape of one example, or examples of which only the shape counts.
          sample: real examples `(n, *shape)`. All are landmarks if there are at most
            `num_features`; otherwise landmarks are chosen by randomly pivoted Cholesky.
          max_bytes: the bytes that examples in work may take in calls of `kernel_fn`,
            >= 1. By default they are 256 MiB on a CPU, and elsewhere a quarter of the
            device's memory; or what one example takes, if that is more.

        Returns:
          A dictionary: "landmarks" Z, `(m, *shape)`, and "root" R, `(m, num_features)`
          with :math:`R R^\\top = K(Z, Z)^{-1}`, where m is the smaller one of n and
          `num_features`. Columns beyond m are zero.

        Raises:
          TypeError: `key` is not a PRNG key; the sample is complex or sparse.
          ValueError: there is no sample, or none of its examples; `kernel_fn` returns
            a matrix of another shape, or one that is not finite, not symmetric or not
            positive semidefinite. Values are not checked under `jit`. Or one example
            takes more than `max_bytes`, or than all memory.

        Warns:
          RuntimeWarning: there are fewer examples than columns.
        """
        owner = "LandmarkFeatureMap.init"
        key = check_key(owner, key)
        shape = _maps.example_shape(owner, example)
        z = _maps.check_sample(owner, sample, shape, "landmarks are examples")
        assert z is not None
        if not len(z):
            raise ValueError(f"{owner}: sample must have an example, got none")
        _maps.warn_few(owner, len(z), len(z), self.num_features)
        check_work(owner, self, z, max_bytes, 1)
        if len(z) > self.num_features:
            z = z[self._choose(key, z, max_bytes)]
        k = self._symmetric_kernel(z, max_bytes)
        _check_kernel_matrix(k)
        root, left_out = inverse_sqrt(k)
        warn_left_out(owner, left_out, len(z))
        root = jnp.pad(root, [(0, 0), (0, self.num_features - len(z))])
        return {"landmarks": z, "root": root}

    def apply(
        self, params: dict[str, Array], x: ArrayLike, *, batch_size: int | None = None
    ) -> Array:
        """Return the features of examples.

        Args:
          params: the parameters that `init` returned.
          x: real, `(n, *shape)`; integers are converted to the default float.
          batch_size: examples that are worked on at a time; by default all.

        Returns:
          `(n, num_features)`, in the dtype of the kernel.

        Raises:
          TypeError: `x` is complex or sparse.
          ValueError: the examples have another shape than the landmarks; `params` are
            those of another map.

        Warns:
          UserWarning: x is differentiated. Inner products with a landmark have the
            kernel's gradient, and others that of the projected kernel.
        """
        owner = "LandmarkFeatureMap.apply"
        _maps.check_params(owner, params)
        refuse_sparse(owner, x)
        landmarks, root = params["landmarks"], params["root"]
        shape = landmarks.shape[1:]
        x = _maps.check_shape(owner, x, shape, "as the landmarks have")
        if root.shape != (len(landmarks), self.num_features):
            raise ValueError(
                f"{owner}: params must come from init of an equal feature map, with "
                f"{self.num_features} columns, got {root.shape[1]}"
            )
        x = warn_if_differentiated(self, check_input(owner, "x", x, shape[-1]))

        def run(rows: Array) -> Array:
            return matmul(self._kernel(rows, landmarks), root)

        if batch_size is None:
            return run(x)
        return in_batches(run, x, check_size(owner, "batch_size", batch_size))

    def plan(
        self,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
        batch_size: int | None = None,
    ) -> Plan:
        """Return sizes and bytes, and the operations besides those of `kernel_fn`.

        The memory of `kernel_fn` is that of its operations one by one, as JAX traces
        them. If it cannot be traced, only the inner products of examples and landmarks
        are counted, as for the operations.

        Args:
          example: the shape of one example, or examples `(n, *shape)`.
          sample: the examples that `init` will be given. Their number decides
            `fit_bytes`.
          batch_size: examples that `apply` works on at a time. By default it is n for
            examples and 1 for a shape.

        Returns:
          A `Plan`.

        Raises:
          ValueError: `example` is neither a shape nor examples.
        """
        owner = "LandmarkFeatureMap.plan"
        shape, count, batch = _maps.plan_sizes(owner, example, batch_size)
        size, m = math.prod(shape), self.num_features
        columns = (0, m) if self.get == "ntk" else (m, 0)
        rows = (
            PlanRow(
                f"{self.get}[0] kernel_fn with {m} landmarks",
                *columns,
                param_bytes=4 * m * size,
                flops=2 * m * size,
                live_elements=max(size + m, _kernel_elements(self, shape, m)),
            ),
            PlanRow(
                f"{self.get}[1] inverse square root of the landmarks' kernel",
                *columns,
                param_bytes=4 * m**2,
                flops=2 * m**2,
                live_elements=2 * m,
            ),
        )
        n = max(m, count if sample is None else len(sample))
        return Plan(
            rows,
            method=repr(self.method),
            input_shape=shape,
            num_features=m,
            batch_size=batch,
            num_examples=max(batch, count),
            fit_bytes=4 * (n * (size + m + 2) + 4 * m**2),
        )

    def _choose(self, key: Key, examples: Array, max_bytes: int | None) -> Array:
        """Return the indices of the landmarks."""

        def column(index: Array) -> Array:
            return self._rows(examples, examples[index], max_bytes)

        return rpcholesky(key, column, self._diagonal(examples), self.num_features)

    def _symmetric_kernel(self, z: Array, max_bytes: int | None) -> Array:
        """Return the kernel of examples with themselves."""
        if self._rows_in_work(z, z, max_bytes) == len(z):
            return self._kernel(z, None)
        k = self._rows(z, z, max_bytes)
        # `kernel_fn` knows the cosine on the diagonal only without a second argument.
        return jnp.fill_diagonal(k, self._diagonal(z), inplace=False)

    def _diagonal(self, examples: Array) -> Array:
        """Return the kernel of each example with itself."""
        return jax.lax.map(lambda one: self._kernel(one[None], None)[0, 0], examples)

    def _rows(self, x1: Array, x2: Array, max_bytes: int | None) -> Array:
        """Return the kernel of two batches, for as many of x1 at a time as fit."""
        rows = self._rows_in_work(x1, x2, max_bytes)
        return in_batches(lambda part: self._kernel(part, x2), x1, rows)

    def _rows_in_work(self, x1: Array, x2: Array, max_bytes: int | None) -> int:
        """Return how many examples of x1 a call of `kernel_fn` with x2 takes."""
        limit = memory_budget(max_bytes)
        each = x1.dtype.itemsize * _kernel_elements(self, x1.shape[1:], len(x2))
        return max(1, min(len(x1), limit // max(each, 1)))

    def _kernel(self, x1: Array, x2: Array | None) -> Array:
        k = jnp.asarray(self.kernel_fn(x1, x2, self.get))
        expected = x1.shape[0], (x1 if x2 is None else x2).shape[0]
        if k.shape != expected:
            raise ValueError(
                f"LandmarkFeatureMap: kernel_fn(x1, x2, {self.get!r}) must return "
                f"{expected} kernel values for {expected[0]} and {expected[1]} "
                f"examples, got shape {k.shape}; end the network with Flatten or "
                "global pooling, and Dense"
            )
        return at_least_float32(k)


def landmark_features(
    kernel_fn: KernelFn, *, num_features: int, get: Kind = "ntk"
) -> LandmarkFeatureMap:
    r"""Return the feature map of any kernel, by landmarks Z.

    .. math:: \Psi(x) = K(x, Z)\, K(Z, Z)^{-1/2}

    Use it for networks that `jax_ntk_sketch.stax` does not have: every `kernel_fn` of
    Neural Tangents has such features.

    Args:
      kernel_fn: `kernel_fn(x1, x2, get)` returns the kernel matrix `(n1, n2)` of two
        batches of examples; x2 is None for x1 itself. The third value of a layer of
        Neural Tangents is such a function. `jax.jit(kernel_fn, static_argnums=2)`
        compiles it.
      num_features: the number of landmarks, which is the number of columns.
      get: "ntk" or "nngp".

    Returns:
      A `LandmarkFeatureMap`: `init(key, shape, sample=examples)` chooses the landmarks,
      and `apply(params, x)` returns `(n, num_features)`.

    Raises:
      TypeError: `kernel_fn` is not a function; `num_features` is not an integer.
      ValueError: `num_features` is less than 1; `get` is unknown.

    Cost: with m landmarks, `apply` takes n m kernel values and O(n m^2) operations;
    `init` takes m^2 / 2 kernel values and O(m^3) operations. To choose m landmarks
    among s examples takes s m kernel values more, and s calls of `kernel_fn` for the
    diagonal.

    Guarantee: the inner products of the features are exact at the landmarks. They are
    never larger than the kernel, in the order of positive semidefinite matrices.
    Source: Williams and Seeger (2000); arXiv 2207.06503.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jax_ntk_sketch as jns
    >>> def kernel_fn(x1, x2, get):
    ...     return (1 + x1 @ (x1 if x2 is None else x2).T) ** 2
    >>> fmap = jns.landmark_features(kernel_fn, num_features=3)
    >>> params = fmap.init(jax.random.key(0), (3,), sample=jnp.eye(3))
    >>> phi = fmap.apply(params, jnp.eye(3)[:2])
    >>> (phi @ phi.T).round(3)
    Array([[4., 1.],
           [1., 4.]], dtype=float32)
    """
    if not callable(kernel_fn):
        raise TypeError(
            "landmark_features: kernel_fn must be a function kernel_fn(x1, x2, get), "
            f"got {type(kernel_fn).__name__}; to_stax(net)[2] of "
            "jax_ntk_sketch.interop.neural_tangents is such a function"
        )
    return LandmarkFeatureMap(
        kernel_fn,
        check_size("landmark_features", "num_features", num_features),
        check_choice("landmark_features", "get", get, KINDS),
    )


@functools.lru_cache(maxsize=256)
def _kernel_elements(fmap: LandmarkFeatureMap, shape: Shape, count: int) -> int:
    """Return the numbers in memory for the kernel of one example with `count` others.

    The others themselves are not counted. It is 0 if `kernel_fn` cannot be traced.
    """
    one, others = (jax.ShapeDtypeStruct((n, *shape), jnp.float32) for n in (1, count))
    taken = traced_bytes(fmap._kernel, one, others)
    return max(0, taken // 4 - count * math.prod(shape))


def _check_kernel_matrix(k: Array) -> None:
    """Check the kernel of the landmarks, if its values are known.

    Raises:
      ValueError: k is not finite, not symmetric, or has a negative eigenvalue that is
        more than rounding error.
    """
    if isinstance(k, jax.core.Tracer):
        return
    owner = "LandmarkFeatureMap.init: kernel_fn"
    if not jnp.isfinite(k).all():
        raise ValueError(
            f"{owner} must be finite on the landmarks, got a NaN or an infinity; look "
            "for one in the examples"
        )
    # The diagonal of the NTK may be off by the square root of the rounding error.
    slack = 10 * float(jnp.finfo(k.dtype).eps) ** 0.5
    asymmetry = float(jnp.abs(k - k.T).max())
    if asymmetry > slack * float(jnp.abs(k).max()):
        raise ValueError(
            f"{owner} must be symmetric, but k(x1, x2) and k(x2, x1) differ by "
            f"{asymmetry:.1g}"
        )
    smallest = float(jnp.linalg.eigvalsh((k + k.T) / 2)[0])
    if smallest < -slack * float(jnp.trace(k)):
        raise ValueError(
            f"{owner} must be positive semidefinite, but on the landmarks its smallest "
            f"eigenvalue is {smallest:.2g}"
        )
