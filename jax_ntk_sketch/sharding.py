"""Features and fits over several devices, of one process or of several.

A mesh with one axis is all that is needed: examples are split over it, parameters and
models are the same on all devices. `jax_ntk_sketch.transform` and
`jax_ntk_sketch.linear_model.fit` take it as `mesh`, and
`jax_ntk_sketch.linear_model.ridge_psum` is the one reduction of a fit.

With several processes, call `jax.distributed.initialize` first, in each of them. JAX
then sees to it that none waits for ever. If one is killed, the others end with an error
(SIGABRT, exit status 134) within `heartbeat_timeout_seconds`, an argument of that
function, 100 by default; at once, if it was process 0. If one ends by itself before the
others, they do so 300 s later, the default of JAX's shutdown. An exception inside `fit`
is raised in all of them, a second or a chunk later.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ntk_sketch import methods

__all__ = ["data_mesh", "features"]


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, "data", along which examples are split.

    Args:
      devices: at least one; by default all devices of all processes.

    Raises:
      ValueError: no devices.

    >>> mesh = data_mesh()
    >>> mesh.axis_names, mesh.size == len(jax.devices())
    (('data',), True)
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("data_mesh: devices is empty; give one at least")
    return Mesh(np.array(devices), ("data",))


def features(fmap: Any, params: Any, x: Any, *, mesh: Mesh) -> Any:
    """`fmap.apply(params, x)` with the rows of x split over the devices of a mesh.

    Args:
      fmap: a feature map of any method but "exact".
      params: what its `init` returned.
      x: (n, *shape), any n: rows of zeros fill it up to a multiple of the devices.
        With several processes a `jax.Array` over `mesh`, as `jit` takes it; where each
        process has examples of its own, `jax_ntk_sketch.transform` does.
      mesh: with one axis, as `data_mesh` makes it.

    Returns:
      What `fmap.apply` does, (n, num_features), split over the devices.

    Raises:
      TypeError: `mesh` is no mesh.
      ValueError: a mesh of more axes; method "exact"; what `fmap.apply` says.

    Cost: that of `fmap.apply` on ceil(n / devices) examples, on each. It works under
    `jit`, which makes it faster, and under `grad`.

    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=16)
    >>> params = fmap.init(jax.random.key(0), (3,))
    >>> phi = features(fmap, params, jnp.ones((5, 3)), mesh=data_mesh())
    >>> phi.shape, bool(jnp.allclose(phi, fmap.apply(params, jnp.ones((5, 3)))))
    ((5, 16), True)
    """
    axis_name("features", mesh)
    if isinstance(getattr(fmap, "method", None), methods.Exact):
        raise ValueError(
            'features: method "exact" needs all examples on one device; use '
            "fmap.apply(params, x)"
        )
    x = jnp.asarray(x)
    n = len(x)
    x = jnp.pad(x, [(0, -n % mesh.size)] + [(0, 0)] * (x.ndim - 1))
    phi = over(mesh, fmap.apply)(params, x)
    return jax.tree.map(lambda rows: rows[:n], phi)


def over(mesh: Mesh, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run(params, *arrays)` on each device with its rows of the arrays."""
    rows = PartitionSpec(axis_name("over", mesh))

    def sharded(params: Any, *arrays: Any) -> Any:
        specs = PartitionSpec(), *[rows] * len(arrays)
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=rows)(
            params, *arrays
        )

    return sharded


def axis_name(owner: str, mesh: Any) -> str:
    """The name of a mesh's only axis, checked for the function `owner`."""
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


def local_mesh(owner: str, mesh: Any) -> Mesh:
    """The part of a mesh that is this process's own.

    Raises:
      TypeError, ValueError: as `axis_name`, or none of the devices is.
    """
    name = axis_name(owner, mesh)
    mine = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    if not mine:
        raise ValueError(
            f"{owner}: no device of mesh belongs to process {jax.process_index()}; "
            "make the mesh of all that take part"
        )
    return Mesh(np.array(mine), (name,))


def split(mesh: Mesh, arrays: Any) -> Any:
    """Arrays on the devices of a mesh of this process, divided by rows."""
    rows = PartitionSpec(axis_name("split", mesh))
    return jax.device_put(arrays, NamedSharding(mesh, rows))


def replicate(mesh: Mesh, arrays: Any) -> Any:
    """Arrays on all devices of a mesh of this process."""
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
