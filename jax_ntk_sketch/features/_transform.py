"""`transform`: the features of many examples on the host, in bounded memory."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jax_ntk_sketch import sharding
from jax_ntk_sketch._arrays import to_numpy
from jax_ntk_sketch._plan import Plan
from jax_ntk_sketch._protocol import FeatureMap, KernelFeatures, check_feature_map
from jax_ntk_sketch._typing import Array, Dtype, Examples, PyTree, Shape
from jax_ntk_sketch.batches.reader import Batch, Nonfinite, Reader, warn_skipped
from jax_ntk_sketch.batches.source import ArraySource
from jax_ntk_sketch.batches.sparse_rows import is_sparse, num_examples
from jax_ntk_sketch.features._steps_of import traced_elements


def transform(
    fmap: FeatureMap,
    params: PyTree,
    x: Examples,
    *,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    out: NDArray | tuple[NDArray, NDArray] | None = None,
    nonfinite: Nonfinite = "raise",
    progress: bool | None = None,
    mesh: Mesh | None = None,
    pattern: PyTree = None,
    mask: PyTree = None,
) -> NDArray | KernelFeatures:
    r"""Return the features of many examples on the host, computed batch by batch.

    They are the rows of `fmap.apply(params, x)`. Neither x nor the features need to fit
    on the device, and x need not fit in memory.

    Args:
      fmap: a feature map of any method but "exact".
      params: the parameters that its `init` returned.
      x: n examples `(n, *shape)`: an array or a table of any library, a memory map, a
        list of arrays, or anything that has a length and whose slices NumPy can read,
        such as an HDF5 data set. Rows and columns are taken by position. A
        `SparseFeatureMap` also takes `SparseRows` and scipy.sparse. Values are real.
        Integers and booleans, such as uint8 images, become floats without rescaling.
      batch_size: examples per call, >= 1. By default it is the largest power of two, at
        most 128 on a CPU and 1024 elsewhere, that fits in `max_bytes`. Fewer examples
        of a batch are worked on at a time if not all fit there, or on a CPU in the
        caches.
      max_bytes: the bytes that examples in work may take besides the parameters, >= 1.
        By default they are 256 MiB on a CPU, and elsewhere a quarter of the device's
        memory; or what one example takes, if that is more.
      out: where to write: an array or memory map `(n, num_features)` of the features'
        dtype, or a pair of them if `fmap.get` is a tuple. By default a new array.
      nonfinite: "raise" to raise an error that names examples with NaN or infinity;
        "skip" to return features NaN for them, with a warning.
      progress: True to show progress on stderr, False not to, None (default) to show it
        if stderr is a terminal.
      mesh: a mesh of `jax_ntk_sketch.sharding.data_mesh`. Each of its devices that
        belong to this process works on one batch at a time. If there are several
        processes, each passes its own examples and receives their features; nothing is
        sent between them.
      pattern, mask: the edges and nodes of the graphs x, as `NetworkFeatureMap.apply`
        takes them. Edges that `apply` would refuse for their values give features NaN.

    Returns:
      `out`, or a new array `(n, num_features)` with the dtype of the features;
      `KernelFeatures` of two such arrays if `fmap.get` is a tuple.

    Raises:
      TypeError: `fmap` is not a feature map, or an argument has the wrong type.
      ValueError: an example is not finite; the method is "exact"; `out` does not fit;
        one example takes more than `max_bytes`, or than all memory; or `fmap.apply`
        refuses x or params. If a batch fails, `out` holds the features of all batches
        before it.

    Cost: that of `apply` on n examples, the last batch padded. `apply` is compiled once
    for a feature map, batch size, shape and dtype, also over several calls. Few sizes
    are compiled, because the default batch size is a power of two; the rounding of a
    row's features may depend on it. Besides `out`, memory holds what the plan states
    and a few batches of x: while one batch is computed, the host writes the batch
    before and reads the next one.

    >>> import jax
    >>> import jax_ntk_sketch as jns
    >>> import numpy as np
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=32)
    >>> params = fmap.init(jax.random.key(0), (64,))
    >>> pixels = np.random.default_rng(0).integers(0, 256, (1000, 64), np.uint8)
    >>> phi = jns.transform(fmap, params, pixels, batch_size=128)
    >>> phi.shape, bool(np.allclose(phi, fmap.apply(params, pixels), atol=1e-3))
    ((1000, 32), True)
    """
    reader = map_reader(
        "transform",
        fmap,
        x,
        extras={"pattern": pattern, "mask": mask},
        batch_size=batch_size,
        max_bytes=max_bytes,
        nonfinite=nonfinite,
        mesh=mesh,
    )
    # This also raises, before any work, what `apply` raises for the shapes.
    template = reader.template()
    assert template is not None and reader.num_examples is not None
    rows = template.x, template.extras
    features = _apply.eval_shape(fmap, max_bytes, params, *rows)
    for array in jax.tree.leaves(features):
        if array.ndim != 2 or len(array) != reader.size:
            raise ValueError(
                f"transform: fmap.apply must return features ({reader.size}, m) of "
                f"{reader.size} examples, got shape {array.shape}"
            )
    written = _outputs(out, features, reader.num_examples)
    skipped = for_each_batch(
        fmap,
        params,
        reader,
        functools.partial(_write, written),
        max_bytes=max_bytes,
        mesh=mesh,
        progress=progress,
    )
    warn_skipped("transform", skipped, "features are NaN for")
    return written


def map_reader(
    owner: str,
    fmap: FeatureMap,
    x: Examples,
    *,
    extras: dict[str, PyTree],
    batch_size: int | None = None,
    max_bytes: int | None = None,
    nonfinite: Nonfinite | None = None,
    mesh: Mesh | None = None,
) -> Reader:
    """Return a reader of examples whose batch size is chosen by the map's plan.

    Raises:
      TypeError, ValueError: as `transform`, in the name of `owner`.
    """
    check_feature_map(owner, fmap)
    if fmap.method.batch_dependent:
        raise ValueError(
            f'{owner}: fmap must not have the method "exact", which needs all examples '
            "in one batch; use fmap.apply(params, x)"
        )
    source = ArraySource(owner, x, extras=extras)
    x = source.all.x
    x = x if is_sparse(x) else to_numpy(owner, "x", x[:1])
    # Without a shape the reader raises.
    work = work_plan(fmap, x, source.all.extras) if x.ndim > 1 else None
    if batch_size is None and work is not None:
        plan, itemsize = work
        plan.check_work(owner, max_bytes, itemsize)
        count = source.num_examples or 0
        batch_size = plan.choose_batch_size(count, max_bytes, itemsize)
    devices = None if mesh is None else sharding.local_mesh(owner, mesh).size
    reader = Reader(
        source, batch_size=batch_size, num_devices=devices, nonfinite=nonfinite
    )
    if work is not None:
        plan, itemsize = work
        plan = plan.with_sizes(reader.size // (devices or 1), 1)
        plan.check_work(owner, max_bytes, itemsize)
    return reader


def work_plan(
    fmap: FeatureMap, x: Examples, extras: dict[str, PyTree] | None = None
) -> tuple[Plan, int]:
    """Return the plan for one example of x, and the bytes of one of its numbers.

    The extra inputs that belong to the examples are counted, too.
    """
    if is_sparse(x):
        plan = fmap.plan(x, batch_size=1).with_sizes(1, 1)
    else:
        hashable: Any = fmap
        plan = _plan_of_one(hashable, x.shape[1:], jnp.result_type(float))
    if leaves := jax.tree.leaves(extras):
        inputs = plan.num_inputs + sum(math.prod(leaf.shape[1:]) for leaf in leaves)
        traced = max(plan.traced_elements, _traced_elements(fmap, x.shape[1:], extras))
        plan = dataclasses.replace(plan, input_elements=inputs, traced_elements=traced)
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    # Half precision is computed in float32, and integers become floats.
    return plan, max(4, jnp.result_type(dtype, float).itemsize)


def _traced_elements(fmap: Any, shape: Shape, extras: PyTree) -> int:
    """Return the numbers in memory per example of the network with extra inputs."""
    while hasattr(fmap, "base"):
        fmap = fmap.base
    if not hasattr(fmap, "net"):
        return 0
    return traced_elements(fmap.resolve(shape), shape, extras)


def most_examples(fmap: FeatureMap, max_bytes: int | None, x: Examples) -> int:
    """Return how many examples like x a batch of a fit may have."""
    plan, itemsize = work_plan(fmap, x)
    return plan.limit_batch_size(max_bytes, itemsize)


def check_work(
    owner: str,
    fmap: FeatureMap,
    x: Examples,
    max_bytes: int | None,
    num: int,
    extras: dict[str, PyTree] | None = None,
) -> None:
    """Check that `max_bytes` holds one of `num` examples in work, and the batch.

    Raises:
      TypeError: `max_bytes` is not an integer.
      ValueError: one example takes more than `max_bytes`, or than all memory.
    """
    plan, itemsize = work_plan(fmap, x, extras)
    plan.with_sizes(num, 1).check_work(owner, max_bytes, itemsize)


@functools.lru_cache(maxsize=64)
def _plan_of_one(fmap: Any, shape: Shape, dtype: Dtype) -> Plan:
    """Return the plan of one example, which takes longer than the features of one.

    Args:
      fmap: the map, which is hashable as those that `jax.jit` takes.
      shape: the shape of the example.
      dtype: the default dtype, which the bytes depend on.
    """
    return fmap.plan(shape, batch_size=1)


def for_each_batch(
    fmap: FeatureMap,
    params: PyTree,
    reader: Reader,
    consume: Callable[[Batch, Array | KernelFeatures], None],
    *,
    max_bytes: int | None,
    order: NDArray | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = False,
    label: str = "features",
) -> int:
    """Call `consume(batch, features)` for each batch, or for those of `order`.

    The device computes one batch while the host consumes the batch before and reads the
    next one. If reading fails, the features that were begun are consumed first.

    Returns:
      The number of examples that are not finite.
    """
    run: Callable[..., Array | KernelFeatures] = _apply
    if mesh is not None:
        mesh = sharding.local_mesh(reader.owner, mesh)
        params = sharding.replicate(mesh, params)
        run = functools.partial(_apply_over, mesh)
    skipped = 0
    running: tuple[Batch, Array | KernelFeatures] | None = None
    try:
        label = f"{label}, batches of {reader.size}"
        for batch in reader.batches(order=order, label=label, progress=progress):
            rows = batch.x, batch.extras
            rows = jax.device_put(rows) if mesh is None else sharding.split(mesh, rows)
            # Two batches at a time would take twice the memory.
            done = jax.block_until_ready(running)
            running = batch, run(fmap, max_bytes, params, *rows)
            skipped += batch.num_skipped
            if done is not None:
                consume(*done)
                done = None
    finally:
        if running is not None:
            consume(*running)
    return skipped


def apply_in_parts(
    fmap: FeatureMap,
    max_bytes: int | None,
    params: PyTree,
    x: Examples,
    extras: dict[str, PyTree],
) -> Array | KernelFeatures:
    """Return the features of a batch, working on as many rows as `max_bytes` hold."""
    plan, itemsize = work_plan(fmap, x, extras)
    n = num_examples(x)
    rows = plan.with_sizes(n, 1).rows_in_work(max_bytes, itemsize)
    return fmap.apply(params, x, batch_size=rows, **extras)


# At the level of the module, so that all calls share its compiled functions.
_apply = functools.partial(jax.jit, static_argnums=(0, 1))(apply_in_parts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply_over(
    mesh: Mesh,
    fmap: FeatureMap,
    max_bytes: int | None,
    params: PyTree,
    x: Array,
    extras: dict[str, PyTree],
) -> Array | KernelFeatures:
    run = sharding.over(mesh, functools.partial(apply_in_parts, fmap, max_bytes))
    return run(params, x, extras)


def _outputs(
    out: NDArray | tuple[NDArray, NDArray] | None, features: PyTree, n: int
) -> PyTree:
    """Return new arrays for features like those of a batch, or the checked `out`."""
    if out is None:
        return jax.tree.map(lambda f: np.empty((n, f.shape[1]), f.dtype), features)
    if isinstance(features, KernelFeatures):
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"transform: out must be a pair of arrays {features._fields}, because "
                f"fmap.get is a tuple; got {type(out).__name__}"
            )
        out = jax.tree.unflatten(jax.tree.structure(features), out)
    jax.tree.map(functools.partial(_check_output, n), out, features)
    return out


def _check_output(n: int, out: NDArray, features: jax.ShapeDtypeStruct) -> None:
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
        raise ValueError(
            "transform: out must be writable, got a read-only array; open a memory "
            'map with mode "r+" or "w+"'
        )


def _write(out: PyTree, batch: Batch, features: PyTree) -> None:
    """Copy the features of a batch to its rows, without those of the padding."""
    count = len(batch.finite)

    def write(target: NDArray, rows: Array) -> None:
        part = target[batch.numbers[0] : batch.numbers[0] + count]
        part[:] = np.asarray(rows)[:count]
        part[~batch.finite] = np.nan

    jax.tree.map(write, out, features)
