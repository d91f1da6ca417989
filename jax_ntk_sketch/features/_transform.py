"""Features of many examples on the host, in bounded memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import sharding
from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch._progress import progress as with_progress
from jax_ntk_sketch._protocol import FeatureMap, KernelFeatures
from jax_ntk_sketch.batches.sparse_rows import (
    SparseRows,
    capacity,
    is_sparse,
    num_examples,
    pack,
    readable,
)
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap

__all__ = [
    "in_caches",
    "read_rows",
    "refuse_mesh",
    "source_batch",
    "transform",
]


def transform(
    fmap: FeatureMap,
    params: Any,
    x: Any,
    *,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    out: Any = None,
    progress: bool | None = None,
    mesh: jax.sharding.Mesh | None = None,
    pattern: Any = None,
    mask: Any = None,
) -> Any:
    r"""Features of many examples, batch by batch, on the host.

    The rows of `fmap.apply(params, x)`, where neither x nor the features need to fit
    on the device, and x not even in memory.

    Args:
      fmap: a `NetworkFeatureMap`, `CompressedFeatureMap` or `SparseFeatureMap`, of any method
        but "exact".
      params: what its `init` returned.
      x: n examples: a NumPy array `(n, *shape)`, a memory map, or anything with a
        length whose slices NumPy can read (an HDF5 data set, a list of arrays); for a
        `SparseFeatureMap` also `SparseRows` or scipy.sparse (CSR is read where it is).
        Real; integers and booleans (uint8 images) are converted to the default float
        batch by batch, as they are.
      batch_size: examples per call, >= 1; on a CPU, fewer of them are worked on at a
        time where caches want it. By default the largest power of two, at
        most 128 on a CPU and 1024 elsewhere, whose plan stays within `max_bytes`.
      max_bytes: the most that a batch and the parameters may take by
        `fmap.plan(shape, batch_size=...).peak_bytes`; by default 256 MiB more than
        the parameters. Unused where `batch_size` is given.
      out: where to write: an array or memory map `(n, num_features)` of the features'
        dtype; a pair of them where `fmap.get` is a tuple. By default a new array.
      progress: True to show a bar on stderr, False not to, None (default) to show it
        where stderr is a terminal.
      mesh: of `jax_ntk_sketch.sharding.data_mesh`; each of its devices that belong to
        this process works on a batch at a time. With several processes, each gives
        examples of its own and gets their features; nothing is sent between them.
      pattern, mask: the edges and nodes of the graphs x, NumPy arrays as
        `NetworkFeatureMap.apply` has them; a pattern that it would refuse for its values
        gives features NaN.

    Returns:
      `out`, or a NumPy array `(n, num_features)`, dtype of `fmap.apply`'s features;
      `KernelFeatures` of two such arrays if `fmap.get` is a tuple.

    Raises:
      TypeError: `fmap` is no `NetworkFeatureMap`, `out` no NumPy array.
      ValueError: a NaN or an infinity in x, with the number of its example; method
        "exact"; an `out` that does not fit; one example that takes more than
        `max_bytes`; what `fmap.apply` says of x and params. When a batch fails, `out`
        holds the features of all batches before it.

    Cost: that of `apply` on n examples, the last batch filled up to `batch_size`.
    Compiled once for a feature map, batch size, shape and dtype, also over several
    calls. Besides `out`, memory is that of the plan and a few batches of x: one batch
    at a time is computed, while the host writes the one before and reads the next.

    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=32)
    >>> params = fmap.init(jax.random.key(0), (64,))
    >>> pixels = np.random.default_rng(0).integers(0, 256, (1000, 64), np.uint8)
    >>> phi = transform(fmap, params, pixels, batch_size=128)
    >>> phi.shape, bool(np.allclose(phi, fmap.apply(params, pixels), atol=1e-3))
    ((1000, 32), True)
    """
    x = readable("transform", "x", x)
    batch = source_batch("transform", "x", fmap, x, batch_size, max_bytes)
    beside = _beside(fmap, x, {"pattern": pattern, "mask": mask})
    # Also finds, before any work, what apply would say of the shapes.
    first = _rows_of(beside, 0, batch.shape[0])
    features = _apply.eval_shape(fmap, params, batch, first)
    run: Any = _apply
    if mesh is not None:
        refuse_mesh("transform", x)
        mesh = sharding.local_mesh("transform", mesh)
        params = sharding.replicate(mesh, params)
        run = functools.partial(_apply_over, mesh)
        batch = batch.update(shape=(mesh.size * batch.shape[0], *batch.shape[1:]))
    batch_size = batch.shape[0]
    out = _outputs(out, features, num_examples(x))
    starts = range(0, num_examples(x), batch_size)
    running: tuple[int, Any] | None = None
    try:
        label = f"features, batches of {batch_size}"
        for start in with_progress(starts, label, enabled=progress):
            rows = read_rows("transform", "x", x, start, batch)
            rows = rows, _rows_of(beside, start, batch_size)
            rows = jax.device_put(rows) if mesh is None else sharding.split(mesh, rows)
            # Not two batches at a time, which would take twice the memory.
            done = jax.block_until_ready(running)
            running = start, run(fmap, params, *rows)
            if done is not None:
                _write(out, *done)
                done = None
    finally:
        if running is not None:
            _write(out, *running)
    return out


# At the level of the module, so that all calls share its compiled functions.
@functools.partial(jax.jit, static_argnums=0)
def _apply(fmap: FeatureMap, params: Any, x: jax.Array, beside: dict[str, Any]) -> Any:
    return fmap.apply(params, x, batch_size=in_caches(fmap, x.shape), **beside)


def refuse_mesh(owner: str, x: Any) -> None:
    """Says that sparse examples are not split over devices, if x are such."""
    if is_sparse(x):
        raise ValueError(
            f"{owner}: mesh splits dense examples only, and these are sparse; leave "
            "mesh out, or give each process its rows and join them with ridge_merge"
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_over(
    mesh: jax.sharding.Mesh,
    fmap: FeatureMap,
    params: Any,
    x: jax.Array,
    beside: dict[str, Any],
) -> Any:
    return sharding.over(mesh, functools.partial(_apply, fmap))(params, x, beside)


def _beside(fmap: FeatureMap, x: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Host arrays beside the examples, those that are given."""
    given = {name: value for name, value in given.items() if value is not None}
    if given and not isinstance(fmap, NetworkFeatureMap):
        raise ValueError(
            f"transform: {next(iter(given))} is for a NetworkFeatureMap of a graph network, "
            f"got {type(fmap).__name__}"
        )
    beside = jax.tree.map(np.asarray, given)
    for name, value in beside.items():
        for leaf in jax.tree.leaves(value):
            if leaf.shape[:1] != (num_examples(x),):
                raise ValueError(
                    f"transform: {name} must have the {num_examples(x)} examples of x "
                    f"along its first axis, got shape {leaf.shape}"
                )
    return beside


def _rows_of(beside: dict[str, Any], start: int, size: int) -> dict[str, Any]:
    """Those of a batch; the last is repeated where `read_rows` repeats it."""

    def take(value: np.ndarray) -> np.ndarray:
        rows = value[start : start + size]
        if 0 < len(rows) < size:
            rows = rows[np.minimum(np.arange(size), len(rows) - 1)]
        return rows

    return jax.tree.map(take, beside)


def in_caches(fmap: FeatureMap, shape: tuple[int, ...]) -> int:
    """Return how many examples of a batch to work on at a time."""
    return fmap.plan(shape[1:], batch_size=shape[0]).rows_in_cache()


def source_batch(
    owner: str,
    name: str,
    fmap: FeatureMap,
    x: Any,
    batch_size: int | None,
    max_bytes: int | None,
) -> Any:
    """Shape and dtype of the batches in which examples `x` are to be read.

    Raises:
      TypeError, ValueError: what `transform` says of its arguments, as `owner` that
        calls them `name`.
    """
    if not isinstance(fmap, FeatureMap):
        raise TypeError(
            f"{owner}: fmap must be a NetworkFeatureMap (made by feature_map), got "
            f"{type(fmap).__name__}"
        )
    if fmap.method.batch_dependent:
        raise ValueError(
            f'{owner}: method "exact" needs all examples in one batch; use '
            "fmap.apply(params, x)"
        )
    if is_sparse(x):
        return _sparse_batch(owner, fmap, x, batch_size, max_bytes)
    first = np.asarray(x[:1])
    if first.ndim < 2:
        raise ValueError(
            f"{owner}: {name} must hold n examples, (n, d) or (n, *spatial, c); its "
            f"first slice {name}[:1] has shape {first.shape}"
        )
    if first.dtype != bool and not jnp.issubdtype(first.dtype, jnp.number):
        raise TypeError(f"{owner}: {name} must hold numbers, got dtype {first.dtype}")
    if batch_size is None:
        plan = fmap.plan(first.shape[1:], batch_size=1)
        batch_size = plan.choose_batch_size(len(x), max_bytes)
    else:
        batch_size = check_size(owner, "batch_size", batch_size)
    return jax.ShapeDtypeStruct((batch_size, *first.shape[1:]), _dtype(first))


def _sparse_batch(
    owner: str, fmap: FeatureMap, x: Any, size: int | None, max_bytes: int | None
) -> SparseRows:
    """Of compressed rows: all batches have room for the entries of the largest."""
    n = num_examples(x)
    if size is None:
        plan = fmap.plan(x, batch_size=1)
        size = plan.choose_batch_size(n, max_bytes)
    size = check_size(owner, "batch_size", size)
    room = (capacity(x, size),)
    whole = jax.ShapeDtypeStruct(room, np.int32)
    values = jax.ShapeDtypeStruct(room, _dtype(x.data))
    return SparseRows(whole, whole, values, (size, x.shape[1]))


def _dtype(examples: np.ndarray) -> np.dtype:
    """What the device gets: other floats than its own are converted on the host."""
    return jax.dtypes.canonicalize_dtype(examples.dtype)


def read_rows(owner: str, name: str, x: Any, start: int, batch: Any) -> Any:
    """A batch of x, checked; the last example is repeated to fill up the last one.

    Sparse batches are filled up with empty examples.
    """
    size = batch.shape[0]
    if is_sparse(x):
        packed = pack(x[start : start + size], size, batch.nnz)
        bad = np.flatnonzero(~np.isfinite(packed.values))
        if len(bad):
            row, i = packed.rows[bad[0]], packed.indices[bad[0]]
            raise ValueError(
                f"{owner}: example {start + row} of {name} is "
                f"{packed.values[bad[0]]} at ({i},); remove it or fill it first"
            )
        return packed
    rows = np.asarray(x[start : start + size])
    count = min(size, len(x) - start)
    if rows.shape != (count, *batch.shape[1:]) or _dtype(rows) != batch.dtype:
        raise ValueError(
            f"{owner}: examples {start} to {start + count - 1} of {name} have shape "
            f"{rows.shape} and dtype {rows.dtype}, expected "
            f"{(count, *batch.shape[1:])} and {batch.dtype} as the first has"
        )
    with np.errstate(over="ignore"):  # infinities are found below
        rows = rows.astype(batch.dtype, copy=False)
    if jnp.issubdtype(rows.dtype, jnp.floating):
        finite = np.isfinite(rows)
        if not finite.all():
            where = tuple(map(int, np.argwhere(~finite)[0]))
            raise ValueError(
                f"{owner}: example {start + where[0]} of {name} is {rows[where]} at "
                f"{where[1:]}; remove it or fill it first"
            )
    if count < size:
        rows = rows[np.minimum(np.arange(size), count - 1)]
    return rows


def _outputs(out: Any, features: Any, n: int) -> Any:
    """New arrays for features like those of a batch, or the user's after a check."""
    both = isinstance(features, KernelFeatures)
    if out is None:
        return jax.tree.map(lambda f: np.empty((n, f.shape[1]), f.dtype), features)
    if both and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            "transform: fmap gives both kernels, so out must be a pair of arrays "
            f"(nngp, ntk), got {type(out).__name__}"
        )
    out = KernelFeatures(*out) if both else out
    jax.tree.map(functools.partial(_check_output, n), out, features)
    return out


def _check_output(n: int, out: Any, features: jax.ShapeDtypeStruct) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(
            "transform: out must be a NumPy array or memory map, got "
            f"{type(out).__name__}"
        )
    shape = (n, features.shape[1])
    if out.shape != shape or out.dtype != features.dtype:
        raise ValueError(
            f"transform: out must have shape {shape} and dtype {features.dtype}, got "
            f"{out.shape} and {out.dtype}"
        )
    if not out.flags.writeable:
        raise ValueError("transform: out is read-only (a memory map of mode 'r'?)")


def _write(out: Any, start: int, features: Any) -> None:
    """Copies a batch to its rows, without what filled it up."""

    def write(target: np.ndarray, batch: jax.Array) -> None:
        target[start : start + len(batch)] = np.asarray(batch)[: len(target) - start]

    jax.tree.map(write, out, features)
