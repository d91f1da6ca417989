"""`compress`: many cheap features, and the few directions of them that data use."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._arrays import to_jax
from jax_ntk_sketch._checks import check_key, check_size
from jax_ntk_sketch._numerics import in_batches, matmul
from jax_ntk_sketch._plan import Plan, PlanRow
from jax_ntk_sketch._protocol import (
    FeatureMap,
    KernelFeatures,
    check_feature_map,
    in_order,
)
from jax_ntk_sketch._typing import Array, Examples, Key, PyTree, Shape
from jax_ntk_sketch._units import format_bytes
from jax_ntk_sketch.batches.reader import Batch, Nonfinite, Reader, warn_skipped
from jax_ntk_sketch.batches.sparse_rows import is_sparse, num_examples
from jax_ntk_sketch.features import _principal_directions
from jax_ntk_sketch.features._maps import (
    DerivedFeatureMap,
    check_params,
    example_shape,
    require_sample,
    warn_few,
)
from jax_ntk_sketch.features._transform import for_each_batch, map_reader


@dataclasses.dataclass(frozen=True)
class CompressedFeatureMap(DerivedFeatureMap):
    r"""The features of another map in the directions that data use.

    .. math:: x \mapsto U^\top \Psi(x)

    `compress` makes it; its own `init` learns the directions from examples. The record
    is static and hashable.

    Attributes:
      base: the map that is compressed.
      num_features: m, the columns of the features of each kernel, at most those of
        `base`. They are ordered by their weight on the data, and zero beyond the rank
        of the data.

    >>> import jax
    >>> import jax_ntk_sketch as jns
    >>> import numpy as np
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> base = jns.feature_map(net, num_features=512)
    >>> fmap = jns.CompressedFeatureMap(base, num_features=32)
    >>> x = np.random.default_rng(0).normal(size=(99, 8)).astype(np.float32)
    >>> params = fmap.init(jax.random.key(0), (8,), sample=x)
    >>> fmap.apply(params, x[:3]).shape
    (3, 32)
    """

    num_features: int

    def __post_init__(self) -> None:
        check_feature_map("CompressedFeatureMap", self.base, "base")
        if self.base.method.batch_dependent:
            raise ValueError(
                'CompressedFeatureMap: base must not have the method "exact", whose '
                "features have no directions in common from batch to batch; use "
                "another method"
            )
        size = check_size("CompressedFeatureMap", "num_features", self.num_features)
        if size > self.base.num_features:
            raise ValueError(
                f"CompressedFeatureMap: num_features must be at most the "
                f"{self.base.num_features} columns of base, got {size}"
            )
        object.__setattr__(self, "num_features", size)

    def init(
        self,
        key: Key,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
        max_bytes: int | None = None,
        pattern: PyTree = None,
        mask: PyTree = None,
    ) -> PyTree:
        """Draw the parameters of `base`, and learn the directions of a sample.

        It cannot be traced by `jit`: the directions are computed on the host.

        Args:
          key: a PRNG key.
          example: the shape of one example, or examples of which only the shape counts.
          sample: n examples `(n, *shape)`, what `compress` takes as x. At most n
            columns of the features are not zero.
          max_bytes: as `compress` takes it.
          pattern, mask: the edges and nodes of the sample, if they are graphs.

        Returns:
          The parameters that `compress` returns.

        Raises:
          TypeError: `key` is not a PRNG key.
          ValueError: there is no sample; or `compress` refuses it.

        Warns:
          RuntimeWarning: there are fewer examples than columns.
        """
        owner = "CompressedFeatureMap.init"
        key = check_key(owner, key)
        shape = example_shape(owner, example)
        if sample is None:
            require_sample(owner, "directions are learned from data", shape)
        base_key, sample_key = jax.random.split(key)
        extras = _given(pattern=pattern, mask=mask)
        options = extras | _given(max_bytes=max_bytes)
        params = self.base.init(base_key, shape, sample=sample, **options)
        reader = map_reader(
            "compress", self.base, sample, extras=extras, max_bytes=max_bytes
        )
        options = {"max_bytes": max_bytes, "progress": None}
        return _learn(self, params, reader, sample_key, None, **options)

    def apply(
        self,
        params: PyTree,
        x: Examples,
        *,
        batch_size: int | None = None,
        pattern: PyTree = None,
        mask: PyTree = None,
    ) -> Array | KernelFeatures:
        """Return the features of examples.

        Args:
          params: the parameters that `compress` or `init` returned.
          x: n examples, as `base` takes them.
          batch_size: examples that are worked on at a time; by default all.
          pattern, mask: the edges and nodes of the examples, if they are graphs.

        Returns:
          `(n, num_features)` with the dtype of the features of `base`;
          `KernelFeatures` of two such arrays if `get` is a tuple.

        Raises:
          ValueError: `params["project"]` is that of another map; or `base` refuses x or
            its parameters.
        """
        check_params("CompressedFeatureMap.apply", params)
        self._check_params(params)
        extras = _given(pattern=pattern, mask=mask)

        def run(x: Examples, extras: PyTree, size: int | None = None) -> PyTree:
            phi = self.base.apply(params["base"], x, batch_size=size, **extras)
            if not isinstance(phi, KernelFeatures):
                return _projected(phi, params["project"])
            parts = {
                k: _projected(getattr(phi, k), u) for k, u in params["project"].items()
            }
            return in_order(self.kinds, parts)

        if batch_size is None or is_sparse(x):
            return run(x, extras, batch_size)
        size = check_size("CompressedFeatureMap.apply", "batch_size", batch_size)
        x = to_jax("CompressedFeatureMap.apply", "x", x)
        if x.ndim < 2:
            return run(x, extras)
        return in_batches(lambda rows: run(*rows), (x, extras), size)

    def plan(
        self,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
        batch_size: int | None = None,
    ) -> Plan:
        """Return the plan of `base` with the projection.

        Its `fit_bytes` is the peak memory while the directions are learned.

        Args:
          example: the shape of one example, or examples of which only the shape counts.
          sample: the examples that `init` will be given, which are read once if there
            are more of them than columns.
          batch_size: examples that `apply` works on at a time.
        """
        plan = self.base.plan(example, sample=sample, batch_size=batch_size)
        wide, m = self.base.num_features, self.num_features
        rows = tuple(
            PlanRow(
                f"{kind} principal directions",
                m if kind == "nngp" else 0,
                m if kind == "ntk" else 0,
                4 * wide * m,
                2 * wide * m,
                wide + m,
            )
            for kind in self.kinds
        )
        # Sparse examples are not split, so that all have features of `base` at once.
        inputs = plan.input_elements
        if inputs is not None and is_sparse(example):
            inputs += wide * len(self.kinds)
        n = None if sample is None else num_examples(sample)
        size = min(_principal_directions.sample_size(m), wide)
        state_bytes = _principal_directions.state_bytes(wide, m, size, n)
        return dataclasses.replace(
            plan,
            rows=plan.rows + rows,
            method=f"compressed {plan.method}",
            num_features=m * len(self.kinds),
            input_elements=inputs,
            relative_error=None,  # it depends on the data
            bias=None,
            fit_bytes=len(self.kinds) * state_bytes + plan.peak_bytes,
        )

    def _check_params(self, params: PyTree) -> None:
        shape = (self.base.num_features, self.num_features)
        wanted = (
            shape if isinstance(self.get, str) else dict.fromkeys(self.kinds, shape)
        )
        found = jax.tree.map(jnp.shape, params["project"])
        if found != wanted:
            raise ValueError(
                f"CompressedFeatureMap.apply: params['project'] must be {shape} for "
                f"each kernel of {self.get!r}, got {found}; use the params that "
                "compress or init of an equal map returned"
            )


def compress(
    fmap: FeatureMap,
    params: PyTree,
    x: Examples,
    *,
    num_features: int,
    key: Key | None = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    nonfinite: Nonfinite = "raise",
    progress: bool | None = None,
    pattern: PyTree = None,
    mask: PyTree = None,
) -> tuple[CompressedFeatureMap, PyTree]:
    r"""Return a map with fewer features: the directions of `fmap`'s that data use.

    .. math:: x \mapsto U^\top \Psi(x), \qquad
       U = \arg\min_{U^\top U = I} \|\Phi - \Phi U U^\top\|_F

    The columns of U are the principal directions of the features :math:`\Phi`, (n, M),
    of n examples. They are directions about 0 and not about the mean, because the
    kernel is :math:`\Phi\Phi^\top`. Oblivious features are cheap to compute and
    expensive to solve with. A few directions of many features predict as well as
    several times as many features.

    Args:
      fmap: a map with M features, of any method but "exact".
      params: the parameters that its `init` returned.
      x: n examples `(n, *shape)`, as `transform` takes them. They are read once, and s
        of them before.
      num_features: m, from 1 to M. The compression pays off if M is at least 4 m.
      key: a PRNG key, with which the s examples are drawn at random. None (default)
        takes evenly spaced examples, which needs no randomness.
      num_samples: s, from m to n, the examples that the test matrix is made of. By
        default 4 m, at most m + 3072. With s >= n or s >= M the directions are exact.
      batch_size: examples per step; by default as `transform` chooses it.
      max_bytes: the bytes that examples in work may take besides the parameters, >= 1.
        By default they are 256 MiB on a CPU, and elsewhere a quarter of the device's
        memory; or what one example takes, if that is more.
      nonfinite: "raise" to raise an error that names examples with NaN or infinity;
        "skip" to leave them out, with a warning.
      progress: True to show progress on stderr, False not to, None (default) to show it
        if stderr is a terminal.
      pattern, mask: the edges and nodes of x, if they are graphs.

    Returns:
      The `CompressedFeatureMap` with m columns and its parameters `{"base": params,
      "project": U}`. U is `(M, m)`, or a dictionary of two such matrices, "nngp" and
      "ntk", if `fmap.get` is a tuple. Columns beyond the rank of the features are zero.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of range; an example is not finite; the method is
        "exact"; or the features overflow.

    Cost: the features of n + s examples and 4 M s flops for each, then about 6 M s^2 +
    10 s^2 m on the host. The memory is 24 M s bytes, or 4 M s + 32 s^2 + 4 M m if that
    is more or s = n; `CompressedFeatureMap(fmap, m).plan(shape).fit_bytes` states it
    before. `apply` costs 2 M m flops per example more than that of `fmap`.

    Guarantee: :math:`\hat K_{compressed} \preceq \hat K` on any inputs, because
    :math:`U U^\top \preceq I`: the bias is one-sided. On the data, no projection of
    rank m is closer to :math:`\hat K` in trace, up to the error of the sketch. With
    s = 4 m the trace that is lost is typically less than 1 % above the optimum.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jax_ntk_sketch as jns
    >>> import numpy as np
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=512, method="ntk_random_features")
    >>> params = fmap.init(jax.random.key(0), (8,))
    >>> x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    >>> small, small_params = jns.compress(fmap, params, x, num_features=40)
    >>> phi, psi = fmap.apply(params, x), small.apply(small_params, x)
    >>> psi.shape, bool(jnp.allclose(psi @ psi.T, phi @ phi.T, rtol=1e-3, atol=1e-4))
    ((40, 40), True)

    Source: Tropp, Yurtsever, Udell, Cevher, arXiv 1706.05736, Algorithm 3.
    """
    check_feature_map("compress", fmap)
    compressed = CompressedFeatureMap(fmap, num_features)
    if key is not None:
        key = check_key("compress", key)
    reader = map_reader(
        "compress",
        fmap,
        x,
        extras=_given(pattern=pattern, mask=mask),
        batch_size=batch_size,
        max_bytes=max_bytes,
        nonfinite=nonfinite,
    )
    options = {"max_bytes": max_bytes, "progress": progress}
    return compressed, _learn(compressed, params, reader, key, num_samples, **options)


def _projected(phi: Array, directions: Array) -> Array:
    """Return features in their dtype; half precision is summed in float32."""
    return matmul(phi, directions).astype(phi.dtype)


def _learn(
    compressed: CompressedFeatureMap,
    params: PyTree,
    reader: Reader,
    key: Key | None,
    num_samples: int | None,
    **options: Any,
) -> PyTree:
    """Return the parameters of the compressed map; options are of `for_each_batch`."""
    base, m = compressed.base, compressed.num_features
    each = functools.partial(for_each_batch, base, params, reader, **options)
    wide, n = base.num_features, reader.num_examples
    template = reader.template()
    assert n is not None and template is not None
    if n < 1:
        raise ValueError("compress: x must hold at least one example, got none")
    warn_few("compress", n, n, m)
    size = _principal_directions.sample_size(m)
    if num_samples is not None:
        size = check_size("compress", "num_samples", num_samples, min(m, n))
    size = min(size, n)
    shapes = jax.eval_shape(
        functools.partial(base.apply, params), template.x, **template.extras
    )
    leaves, tree = jax.tree.flatten(shapes)
    # Sums are at least in float32.
    dtypes = [jnp.promote_types(leaf.dtype, jnp.float32) for leaf in leaves]
    if size >= wide and n > wide:
        # Every direction is a test of its own: the sums are the second moment itself.
        tests = [np.eye(wide, dtype=dtype) for dtype in dtypes]
        factors, skipped = _factors(each, tests)
    else:
        order = _sample_positions(n, size, key)
        factors, skipped = _features(each, order, dtypes)
        if size < n:
            tests = [_principal_directions.whiten(z) for z in factors]
            del factors
            factors, skipped = _factors(each, tests)
    warn_skipped("compress", skipped, stacklevel=4)
    project = [
        jnp.asarray(_principal_directions.directions(factor, m), leaf.dtype)
        for factor, leaf in zip(factors, leaves, strict=True)
    ]
    directions = jax.tree.unflatten(tree, project)
    if isinstance(directions, KernelFeatures):
        directions = directions._asdict()
    return {"base": params, "project": directions}


def _sample_positions(n: int, size: int, key: Key | None) -> NDArray:
    """Return positions of examples, drawn at random or evenly spaced; ascending."""
    if size == n or key is None:
        return np.arange(size) * n // size
    return np.sort(np.asarray(jax.random.choice(key, n, (size,), replace=False)))


def _features(
    each: Callable[..., int], order: NDArray, dtypes: list[np.dtype]
) -> tuple[list[NDArray], int]:
    """Return the features of the examples at `order`, and how many are skipped."""
    parts: list[list[NDArray]] = [[] for _ in dtypes]

    def consume(batch: Batch, phi: PyTree) -> None:
        for part, z in zip(parts, jax.tree.leaves(phi), strict=True):
            part.append(np.asarray(z)[: len(batch.finite)][batch.finite])

    skipped = each(consume, order=order)
    joined = []
    for dtype in dtypes:
        joined.append(_check_finite(np.concatenate(parts.pop(0)).astype(dtype)))
    if not len(joined[0]):
        raise ValueError(
            "compress: x must hold finite examples, got none in the sample"
        )
    return joined, skipped


def _factors(
    each: Callable[..., int], tests: list[NDArray]
) -> tuple[list[NDArray], int]:
    """Return factors of the second moment of all examples, and how many are skipped.

    The examples are read once. The list `tests` is emptied, to free memory.
    """
    on_device = [jnp.asarray(tests.pop(0)) for _ in range(len(tests))]
    sums = [(jnp.zeros_like(t), jnp.zeros_like(t)) for t in on_device]

    def consume(batch: Batch, phi: PyTree) -> None:
        added = _add(sums, on_device, jax.tree.leaves(phi), batch.weight)
        # Without waiting, the features of several batches would be in memory.
        sums[:] = jax.block_until_ready(added)

    label = f"directions, {format_bytes(sum(3 * t.nbytes for t in on_device))} of sums"
    skipped = each(consume, label=label)
    factors = []
    while sums:
        total, carry = sums.pop(0)
        y = np.array(total)
        y += np.asarray(carry)
        del total, carry
        test = np.asarray(on_device.pop(0))
        factors.append(_principal_directions.factor(_check_finite(y), test))
    return factors, skipped


# At the level of the module, so that all calls share its compiled functions.
@functools.partial(jax.jit, donate_argnums=0)
def _add(
    sums: list[tuple[Array, Array]], tests: list[Array], phi: list[Array], weight: Array
) -> list[tuple[Array, Array]]:
    # Padding and skipped examples have weight 0.
    counted = (weight > 0)[:, None]
    return [
        _principal_directions.add_products(
            s, t, jnp.where(counted, z, 0).astype(t.dtype)
        )
        for s, t, z in zip(sums, tests, phi, strict=True)
    ]


def _given(**extras: PyTree) -> dict[str, PyTree]:
    """Return the arguments that are not None."""
    return {name: value for name, value in extras.items() if value is not None}


def _check_finite(array: NDArray) -> NDArray:
    if not np.isfinite(array).all():
        raise ValueError(
            "compress: the features of x must be finite, but they overflow; scale x "
            "down, or look for examples that are far larger than the others"
        )
    return array
