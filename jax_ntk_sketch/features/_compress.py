"""`compress`: many cheap features, and the few directions of them that data use."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch import methods
from jax_ntk_sketch._checks import check_key, check_size
from jax_ntk_sketch._plan import Plan, PlanRow
from jax_ntk_sketch._progress import progress as with_progress
from jax_ntk_sketch._protocol import FeatureMap, KernelFeatures
from jax_ntk_sketch._typing import Get, Kind
from jax_ntk_sketch.batches.sparse_rows import is_sparse, num_examples, readable
from jax_ntk_sketch.features import _principal_directions
from jax_ntk_sketch.features._transform import (
    in_caches,
    read_rows,
    source_batch,
    transform,
)
from jax_ntk_sketch.features.build import in_batches

__all__ = ["CompressedFeatureMap", "compress"]


@dataclasses.dataclass(frozen=True)
class CompressedFeatureMap:
    """Features of another map in the directions that data use: :math:`U^\\top\\Psi(x)`.

    Made by `compress`, or from a sample by its own `init`. Static and hashable.

    Attributes:
      base: the map that is compressed.
      num_features: columns m of the features of each kernel, at most those of `base`;
        in the order of their weight on the data, zero beyond the data's rank.

    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> cmap = CompressedFeatureMap(jns.feature_map(net, num_features=512), 32)
    >>> x = np.random.default_rng(0).normal(size=(99, 8)).astype(np.float32)
    >>> params = cmap.init(jax.random.key(0), x)
    >>> cmap.apply(params, x[:3]).shape
    (3, 32)
    """

    base: FeatureMap
    num_features: int

    def __post_init__(self) -> None:
        if not isinstance(self.base, FeatureMap):
            raise TypeError(
                "CompressedFeatureMap: base must be a NetworkFeatureMap (made by "
                f"feature_map), got {type(self.base).__name__}"
            )
        if self.base.method.batch_dependent:
            raise ValueError(
                'CompressedFeatureMap: features of method "exact" are of their own '
                "batch and have no directions in common; use another method"
            )
        size = check_size("CompressedFeatureMap", "num_features", self.num_features)
        if size > self.base.num_features:
            raise ValueError(
                f"CompressedFeatureMap: num_features must be at most the "
                f"{self.base.num_features} columns of base, got {size}"
            )
        object.__setattr__(self, "num_features", size)

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
        """Draws the parameters of `base` and learns the directions of a sample.

        Args:
          key: a PRNG key.
          example: `(n, *shape)` examples, what `compress` takes as `data`; the n of
            them bound the number of columns that are not zero.

        Returns:
          What `compress` returns. Not for use under `jit`: the directions are
          computed on the host, in float64.

        Raises:
          ValueError: a shape in place of examples; what `compress` says.
        """
        if isinstance(example, tuple):
            raise ValueError(
                "CompressedFeatureMap.init: directions are learned from data: give an "
                f"array of examples, (n, d) or (n, *spatial, c), got {example}"
            )
        key = check_key("CompressedFeatureMap.init", key)
        first, second = jax.random.split(key)
        params = self.base.init(first, example)
        return _learn(self, params, example, second, None, None, None)

    def apply(
        self, params: dict[str, Any], x: Any, *, batch_size: int | None = None
    ) -> Any:
        """Features `(n, num_features)` of examples, as `NetworkFeatureMap.apply`.

        Args:
          params: what `compress` or `init` returned.
          x: as for `base`.
          batch_size: examples that are worked on at a time.

        Returns:
          `(n, num_features)`, dtype of the features of `base`; `KernelFeatures` of two
          such arrays if `get` is a tuple.

        Raises:
          ValueError: what `base` says of x and its parameters; `params["project"]` of
            another map.
        """
        self._check_params(params)
        project = params["project"]

        def run(rows: Any, size: int | None = None) -> Any:
            phi = self.base.apply(params["base"], rows, batch_size=size)
            if isinstance(phi, KernelFeatures):
                return KernelFeatures(
                    _project(phi.nngp, project["nngp"]),
                    _project(phi.ntk, project["ntk"]),
                )
            return _project(phi, project)

        if batch_size is None or is_sparse(x):
            return run(x, batch_size)
        size = check_size("CompressedFeatureMap.apply", "batch_size", batch_size)
        x = jnp.asarray(x)
        return run(x) if x.ndim < 2 else in_batches(run, x, size)

    def plan(self, example: Any, *, batch_size: int | None = None) -> Plan:
        """The plan of `base` with the projection; `fit_bytes` is what learning takes.

        Args:
          example: the shape of one example, or an array of them.
          batch_size: examples that `apply` works on at a time.
        """
        plan = self.base.plan(example, batch_size=batch_size)
        wide, m = self.base.num_features, self.num_features
        kinds = self.kinds
        rows = tuple(
            PlanRow(
                f"{kind} principal directions",
                m if kind == "nngp" else 0,
                m if kind == "ntk" else 0,
                4 * wide * m,
                2 * wide * m,
                wide + m,
            )
            for kind in kinds
        )
        plan = dataclasses.replace(
            plan,
            rows=plan.rows + rows,
            method=f"compressed {plan.method}",
            num_features=m * len(kinds),
            relative_error=None,  # it depends on the data
            bias=None,
        )
        n = None if isinstance(example, tuple | list) else num_examples(example)
        size = min(_principal_directions.sample_size(m), wide)
        held = _principal_directions.state_bytes(wide, m, size, n)
        return dataclasses.replace(plan, fit_bytes=len(kinds) * held + plan.peak_bytes)

    def _check_params(self, params: Any) -> None:
        wanted = (self.base.num_features, self.num_features)
        given = jax.tree.map(jnp.shape, params["project"])
        kinds = dict.fromkeys(("nngp", "ntk"), wanted)
        if given != (wanted if isinstance(self.get, str) else kinds):
            raise ValueError(
                f"CompressedFeatureMap.apply: params['project'] must be {wanted} for "
                f"each kernel of {self.get!r}, got {given}; params must come from "
                " compress, or init, of an equal map"
            )


def compress(
    fmap: FeatureMap,
    params: Any,
    data: Any,
    *,
    num_features: int,
    key: jax.Array | None = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> tuple[CompressedFeatureMap, dict[str, Any]]:
    r"""Features in the m directions that data use: :math:`U^\top \Psi(x)`.

    U minimises :math:`\|\Phi - \Phi U U^\top\|_F` over the M features
    :math:`\Phi` of the data: their principal directions, about 0 and not about the
    mean, because the kernel is :math:`\Phi\Phi^\top`. Generating many oblivious
    features is cheap and solving with them is not: 1024 directions of 16,384 features
    predict like several times as many oblivious ones.

    Args:
      fmap: a map with M features, of any method but "exact" and any network.
      params: what its `init` returned.
      data: n examples, `(n, *shape)`: a NumPy array, a memory map, or anything with a
        length whose slices NumPy can read, or sparse if `fmap` takes such. Read once,
        and s examples of it before.
      num_features: m, 1 to M. 4 m <= M is worth the work.
      key: a PRNG key, for the s examples to be drawn at random; by default they are
        evenly spaced.
      num_samples: s, m to n: examples that the test matrix is made of; by default 4 m,
        at most m + 3072, n and M. With s >= n or s >= M the directions are exact.
      batch_size: examples per step; by default as `transform` chooses it.
      progress: True to show a bar on stderr, False not to, None (default) to show it
        where stderr is a terminal.

    Returns:
      The map, of exactly m columns (those beyond the rank of the features are zero),
      and its parameters `{"base": params, "project": U}`, U `(M, m)`, or a dict of two
      such matrices, "nngp" and "ntk", if `fmap.get` is a tuple.

    Raises:
      TypeError, ValueError: a bad argument, named; a NaN or an infinity in the data,
        with the number of its example; method "exact"; m > M.

    Cost: features of n + s examples, and 4 M s flops for each; then about 6 M s^2 +
    10 s^2 m on the host. Memory 24 M s bytes, or 4 M s + 32 s^2 + 4 M m if that is
    more or s = n: `CompressedFeatureMap(fmap, m).plan(shape).fit_bytes` says it before.
    `apply` costs 2 M m flops more than that of `fmap`.

    Guarantee: :math:`\hat K_{compressed} \preceq \hat K` on any inputs, because
    :math:`U U^\top \preceq I`, so that a bias is one-sided; on the data, of all
    rank-m projections the nearest to :math:`\hat K` in trace, up to the sketch's error:
    the trace that is lost is 0.3 % above the least where s >= min(n, M), 0.4 % at
    s = 4 m, 2 % at 2 m, 6 % at 1.25 m (measured with 20,000 images and m = 256).

    At the penalty reg, ridge uses a direction of weight w by the part w / (w + reg):
    the order of these leverages is that of the weights, so that leverage chooses the
    same directions. Choosing columns by it is worse: 512 of 2048 features of MNIST are
    .117 to .122 from exact ridge's predictions, 512 directions .089, all 2048 .086.

    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=512, method="ntk_random_features")
    >>> params = fmap.init(jax.random.key(0), (8,))
    >>> x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    >>> cmap, cparams = compress(fmap, params, x, num_features=40)
    >>> phi, psi = fmap.apply(params, x), cmap.apply(cparams, x)
    >>> psi.shape, bool(jnp.allclose(psi @ psi.T, phi @ phi.T, rtol=1e-3, atol=1e-4))
    ((40, 40), True)

    Source: arXiv 1706.05736.
    """
    if not isinstance(fmap, FeatureMap):
        raise TypeError(
            "compress: fmap must be a NetworkFeatureMap (made by feature_map), got "
            f"{type(fmap).__name__}"
        )
    cmap = CompressedFeatureMap(fmap, num_features)
    if key is not None:
        key = check_key("compress", key)
    return cmap, _learn(cmap, params, data, key, num_samples, batch_size, progress)


def _learn(
    cmap: CompressedFeatureMap,
    params: Any,
    data: Any,
    key: jax.Array | None,
    num_samples: int | None,
    batch_size: int | None,
    progress: bool | None,
) -> dict[str, Any]:
    """Parameters of the compressed map."""
    base, m = cmap.base, cmap.num_features
    wide = base.num_features
    data = readable("compress", "data", data)
    batch = source_batch("compress", "data", base, data, batch_size, None)
    n = num_examples(data)
    if n < 1:
        raise ValueError("compress: data holds no examples")
    size = _principal_directions.sample_size(m)
    if num_samples is not None:
        size = check_size("compress", "num_samples", num_samples, min(m, n))
    size = min(size, n)
    shapes = jax.eval_shape(functools.partial(base.apply, params), batch)
    leaves, tree = jax.tree.flatten(shapes)
    if size >= wide and n > wide:
        # Every direction is its own test, which is the second moment itself.
        factors = [np.eye(wide, dtype=_wide(leaf)) for leaf in leaves]
    else:
        sample = _sample(data, size, key, batch)
        phi = transform(
            base, params, sample, batch_size=batch.shape[0], progress=progress
        )
        factors = [
            _finite(z).astype(_wide(leaf), copy=False)
            for z, leaf in zip(jax.tree.leaves(phi), leaves, strict=True)
        ]
        del phi
        if size < n:
            factors = [_principal_directions.whiten(z) for z in factors]
    if len(factors[0]) < n:
        factors = _stream(base, params, data, factors, batch, progress)
    project = [
        jnp.asarray(_principal_directions.directions(f, m), leaf.dtype)
        for f, leaf in zip(factors, leaves, strict=True)
    ]
    out = jax.tree.unflatten(tree, project)
    out = out._asdict() if isinstance(out, KernelFeatures) else out
    return {"base": params, "project": out}


def _stream(
    base: FeatureMap,
    params: Any,
    data: Any,
    tests: list[NDArray],
    batch: Any,
    progress: bool | None,
) -> list[NDArray]:
    """Factors of the second moment of all examples, from one pass; empties `tests`."""
    n, size = num_examples(data), batch.shape[0]
    given = [jnp.asarray(tests.pop(0)) for _ in range(len(tests))]
    sums = [(jnp.zeros_like(t), jnp.zeros_like(t)) for t in given]
    held = sum(3 * t.nbytes for t in given) / 2**20
    label = f"directions, {held:,.0f} MiB of sums, batches of {size}"
    for start in with_progress(range(0, n, size), label, enabled=progress):
        rows = jax.device_put(read_rows("compress", "data", data, start, batch))
        # Not two batches at a time, which would take twice the memory.
        jax.block_until_ready(sums)
        sums = _add(base, params, sums, given, rows, min(size, n - start))
    out = []
    while sums:
        total, carry = sums.pop(0)
        y = np.array(total)
        y += np.asarray(carry)
        del total, carry
        out.append(_principal_directions.factor(_finite(y), np.asarray(given.pop(0))))
    return out


# At the level of the module, so that all calls share its compiled functions.
@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _add(
    base: FeatureMap,
    params: Any,
    sums: list[tuple[jax.Array, jax.Array]],
    tests: list[jax.Array],
    rows: jax.Array,
    count: jax.Array,
) -> list[tuple[jax.Array, jax.Array]]:
    phi = base.apply(params, rows, batch_size=in_caches(base, rows.shape))
    # What fills up the last batch counts nothing.
    counted = (jnp.arange(rows.shape[0]) < count)[:, None]
    return [
        _principal_directions.add_products(
            s, t, jnp.where(counted, z, 0).astype(t.dtype)
        )
        for s, t, z in zip(sums, tests, jax.tree.leaves(phi), strict=True)
    ]


def _sample(data: Any, size: int, key: jax.Array | None, batch: Any) -> Any:
    """Examples of the data: drawn at random, or evenly spaced; sorted."""
    n = num_examples(data)
    if size == n or key is None:
        chosen = np.arange(size) * n // size
    else:
        drawn = jax.random.choice(key, n, (size,), replace=False)
        chosen = np.sort(np.asarray(drawn))
    if is_sparse(data):
        return data[chosen]
    one = jax.ShapeDtypeStruct((1, *batch.shape[1:]), batch.dtype)
    parts = [read_rows("compress", "data", data, int(i), one) for i in chosen]
    return np.concatenate(parts)


def _wide(features: jax.ShapeDtypeStruct) -> Any:
    """The dtype of sums: float32 at least."""
    return jnp.promote_types(features.dtype, jnp.float32)


def _finite(z: NDArray) -> NDArray:
    if not np.isfinite(z).all():
        raise ValueError(
            "compress: the features of data overflow; scale data down, or look for "
            "examples that are far larger than the others"
        )
    return z


def _project(phi: jax.Array, directions: jax.Array) -> jax.Array:
    return jnp.matmul(phi, directions, precision=jax.lax.Precision.HIGHEST)
