"""Features and fits over several devices, of one process or of several.

A mesh with one axis is sufficient: the examples are split over it, and the parameters
and models are the same on all devices. `jax_ntk_sketch.transform` and
`jax_ntk_sketch.linear_model.fit` take it as `mesh`. The reduction of a fit is
`jax_ntk_sketch.linear_model.ridge_psum`.

If there are several processes, each of them calls `jax.distributed.initialize` first.
JAX then ends processes that wait for one that is gone:

- A process is killed: the others end with an error (SIGABRT, exit status 134) within
  `heartbeat_timeout_seconds`, an argument of that function, 100 by default. If the
  killed process is number 0, they end at once.
- A process ends before the others: they end after 300 s, which is the default of JAX's
  shutdown.
- `fit` raises in one process: it raises in all of them, a second or a batch later.
- A process lives and does not call `fit`, or calls it with another mesh: the others
  warn and name it after 10 s, and raise `TimeoutError` after 10 minutes.
- A process gets SIGTERM during `fit`: all write their checkpoints and end, with exit
  status 143.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ntk_sketch._arrays import to_jax
from jax_ntk_sketch._protocol import FeatureMap, KernelFeatures, check_feature_map
from jax_ntk_sketch._typing import Array, ArrayLike, PyTree

__all__ = ["apply", "data_mesh"]


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of one axis, "data", over which examples are split.

    Args:
      devices: at least one device; by default all devices of all processes.

    Returns:
      The mesh.

    Raises:
      ValueError: `devices` is empty.

    >>> import jax
    >>> from jax_ntk_sketch import sharding
    >>> mesh = sharding.data_mesh()
    >>> mesh.axis_names, mesh.size == len(jax.devices())
    (('data',), True)
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("data_mesh: devices must hold at least one device, got none")
    return Mesh(np.array(devices), ("data",))


def apply(
    fmap: FeatureMap,
    params: PyTree,
    x: ArrayLike,
    *,
    mesh: Mesh,
    max_bytes: int | None = None,
) -> Array | KernelFeatures:
    """Return `fmap.apply(params, x)`, computed on the devices of a mesh.

    It works under `jit`, which makes it faster, and under `grad`. To compute the
    features of many examples on the host, use `jax_ntk_sketch.transform`.

    Args:
      fmap: a feature map of any method but "exact".
      params: the parameters that its `init` returned.
      x: (n, *shape), for any n; it is padded to a multiple of the number of devices. If
        there are several processes, x is a `jax.Array` over `mesh`.
      mesh: a mesh with one axis, as `data_mesh` makes it.
      max_bytes: the bytes that examples in work may take on each device besides the
        parameters, as `transform` takes them.

    Returns:
      The features (n, num_features), split over the devices; `KernelFeatures` of two
      such arrays if `fmap.get` is a tuple.

    Raises:
      TypeError: `fmap` is not a feature map; `mesh` is not a mesh.
      ValueError: the mesh has more than one axis; the method is "exact"; `fmap.apply`
        raises.

    Cost: that of `fmap.apply` for ceil(n / devices) examples, on each device.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import sharding, stax
    >>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=16)
    >>> params = fmap.init(jax.random.key(0), (3,))
    >>> x = jnp.ones((5, 3))
    >>> phi = sharding.apply(fmap, params, x, mesh=sharding.data_mesh())
    >>> phi.shape, bool(jnp.allclose(phi, fmap.apply(params, x)))
    ((5, 16), True)
    """
    owner = "sharding.apply"
    axis_name(owner, mesh)
    check_feature_map(owner, fmap)
    if fmap.method.batch_dependent:
        raise ValueError(
            f'{owner}: fmap must not have the method "exact", which needs all examples '
            "on one device; use fmap.apply(params, x)"
        )
    x = to_jax("sharding.apply", "x", x)
    n = len(x)
    x = jnp.pad(x, [(0, -n % mesh.size)] + [(0, 0)] * (x.ndim - 1))
    plan, itemsize = fmap.plan(x.shape[1:], batch_size=1), max(4, x.dtype.itemsize)
    plan.with_sizes(1, 1).check_work(owner, max_bytes, itemsize)
    size = plan.with_sizes(len(x) // mesh.size, 1).rows_in_work(max_bytes, itemsize)
    run = functools.partial(fmap.apply, batch_size=size) if size else fmap.apply
    phi = over(mesh, run)(params, x)
    return jax.tree.map(lambda rows: rows[:n], phi)


def over(mesh: Mesh, run: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return `run(params, *arrays)` on each device, with its rows of the arrays."""
    rows = PartitionSpec(axis_name("over", mesh))

    def sharded(params: PyTree, *arrays: PyTree) -> PyTree:
        specs = PartitionSpec(), *[rows] * len(arrays)
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=rows)(
            params, *arrays
        )

    return sharded


def axis_name(owner: str, mesh: Mesh) -> str:
    """Return the name of the only axis of a mesh.

    Raises:
      TypeError: `mesh` is not a mesh; `owner` is named.
      ValueError: it has more than one axis.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"{owner}: mesh must be a jax.sharding.Mesh, as "
            f"jax_ntk_sketch.sharding.data_mesh makes it; got {type(mesh).__name__}"
        )
    if len(mesh.axis_names) != 1:
        raise ValueError(
            f"{owner}: mesh must have one axis, along which examples are split; got "
            f"{mesh.axis_names}"
        )
    return mesh.axis_names[0]


def local_mesh(owner: str, mesh: Mesh) -> Mesh:
    """Return the part of a mesh that belongs to this process.

    Raises:
      TypeError, ValueError: as `axis_name`.
      ValueError: no device of the mesh belongs to this process.
    """
    name = axis_name(owner, mesh)
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    if not local:
        raise ValueError(
            f"{owner}: mesh must have a device of process {jax.process_index()}, got "
            "none; make the mesh of the devices of all processes that take part"
        )
    return Mesh(np.array(local), (name,))


def split(mesh: Mesh, arrays: PyTree) -> PyTree:
    """Return arrays on the devices of a mesh of this process, split by rows."""
    rows = PartitionSpec(axis_name("split", mesh))
    return jax.device_put(arrays, NamedSharding(mesh, rows))


def replicate(mesh: Mesh, arrays: PyTree) -> PyTree:
    """Return arrays on all devices of a mesh of this process."""
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
