"""Agreement between processes, and the one reduction of a fit over devices."""

import dataclasses
import functools
import json
import pickle
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ntk_sketch._numerics import two_sum
from jax_ntk_sketch.linear_model.ridge import RidgeState
from jax_ntk_sketch.sharding import axis_name

__all__ = ["Processes"]

# Seconds between two looks at what the others said.
_INTERVAL = 0.2
_INTERVAL_AT_WORK = 1.0


class Processes:
    """The processes of a mesh during one call; a context, whose errors all learn of.

    Every process makes the same calls in the same order, as for JAX's collectives.
    A mesh of one process needs no runtime; its process has nobody to wait for.

    Attributes:
      index: this process among those of the mesh, 0, 1, ...
      count: how many there are.
    """

    def __init__(self, owner: str, mesh: Mesh | None) -> None:
        devices = [] if mesh is None else list(mesh.devices.flat)
        members = sorted({device.process_index for device in devices})
        self.owner, self.count = owner, max(1, len(members))
        self.index = members.index(jax.process_index()) if members else 0
        self._looked = time.monotonic()
        self._known = False
        if self.count == 1:
            return
        if self.count != jax.process_count():
            raise ValueError(
                f"{owner}: mesh has devices of {self.count} processes out of "
                f"{jax.process_count()}; give it devices of all of them, or of one"
            )
        # JAX has no public name for the client of its own runtime.
        from jax._src import distributed

        self._client: Any = distributed.global_state.client
        assert self._client is not None
        # Calls are told apart by their number, which the store counts.
        here = f"jax_ntk_sketch/{members}"
        own = f"{here}/calls/{self.index}/"
        number = len(self._client.key_value_dir_get(own))
        self._client.key_value_set(f"{own}{number}", owner)
        self._root = f"{here}/{number}"

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        # What all know of, or were told, need not be told again.
        if error is not None and self.count > 1 and not self._known:
            self._tell("error", f"{kind.__name__}: {str(error)[:2000]}")

    def agree(self, about: Mapping[str, Any], **others: Any) -> list[dict[str, Any]]:
        """Checks that all say the same, and returns what each said.

        Args:
          about: numbers, strings and lists; None goes with anything.
          others: what may differ.

        Raises:
          ValueError: two differ.
        """
        mine = json.dumps({**about, **others}, default=int)  # NumPy's integers
        said = [json.loads(text) for text in self.meet("about", mine)]
        for key in about:
            values = [(i, s.get(key)) for i, s in enumerate(said)]
            values = [(i, value) for i, value in values if value is not None]
            for i, value in values[1:]:
                if value != values[0][1]:
                    self._fail(
                        ValueError,
                        f"{key} must be the same in all processes; it is "
                        f"{values[0][1]} in process {values[0][0]} and {value} in "
                        f"process {i}",
                    )
        return said

    def meet(self, place: str, text: str = "") -> list[str]:
        """Waits until all are at a place; what each said there.

        Raises:
          RuntimeError: one of them stopped with an error.
        """
        if self.count == 1:
            return [text]
        self._tell(place, text)
        while len(said := self._said(place)) < self.count:
            self._raise_errors()
            time.sleep(_INTERVAL)
        return [said[i] for i in range(self.count)]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make()` returns in the first process, to the bit, in all of them.

        Raises:
          RuntimeError: it raised there.
        """
        if self.count == 1:
            return make()
        made = pickle.dumps(make()) if self.index == 0 else b""
        length = int(self.meet("made", str(len(made)))[0])
        data = np.frombuffer(made or bytes(length), np.uint8)
        data = multihost_utils.broadcast_one_to_all(data, is_source=self.index == 0)
        return pickle.loads(np.asarray(data).tobytes())

    def check(self) -> None:
        """Raises if another process stopped with an error; looks once a second."""
        now = time.monotonic()
        if self.count > 1 and now - self._looked >= _INTERVAL_AT_WORK:
            self._looked = now
            self._raise_errors()

    def _raise_errors(self) -> None:
        for i, text in self._said("error").items():
            self._fail(RuntimeError, f"process {i} stopped with an error: {text}")

    def _fail(self, kind: type[Exception], text: str) -> NoReturn:
        self._known = True
        raise kind(f"{self.owner}: {text}")

    def _tell(self, place: str, text: str) -> None:
        self._client.key_value_set(f"{self._root}/{place}/{self.index}", text)

    def _said(self, place: str) -> dict[int, str]:
        found = self._client.key_value_dir_get(f"{self._root}/{place}/")
        return {int(key.rpartition("/")[2]): text for key, text in found}


def ridge_psum(state: RidgeState, axis: str) -> RidgeState:
    r"""The state of the examples of all devices, inside `jax.shard_map` or `vmap`.

    As `ridge_merge` of all of them, to 1e-13 or so of :math:`\sqrt{G_{ii} G_{jj}}`.

    Args:
      state: that of this device.
      axis: the name of the mesh's axis.

    Returns:
      `RidgeState`, the same on all devices.

    Cost: one `psum` of the state, 8 (m + t + 1)^2 bytes in float32, and one of its
    diagonal.

    >>> from jax_ntk_sketch.linear_model import ridge_init, ridge_update
    >>> def device(phi, y):
    ...     return ridge_psum(ridge_update(ridge_init(3, None), phi, y), "data")
    >>> phi = jax.random.normal(jax.random.key(0), (2, 50, 3))
    >>> states = jax.vmap(device, axis_name="data")(phi, phi[..., 0])
    >>> [float(count) for count in states.count]
    [100.0, 100.0]
    """
    total, carry = state.total, state.carry
    # Zeros on the diagonal go with zeros in their row; any small exponent does.
    diagonal = jax.lax.psum(jnp.diagonal(total), axis)
    _, exponent = jnp.frexp(jnp.where(diagonal > 0, diagonal, 1e-30))
    half = (exponent + 1) // 2
    bits = jnp.finfo(total.dtype).nmant - 1
    # Not below what float32 holds of the rest.
    power = jnp.maximum(half[:, None] + half - bits, -100)
    step = jnp.ldexp(jnp.ones((), total.dtype), power)
    high = jnp.round(total / step) * step
    high, low = jax.lax.psum((high, (total - high) + carry), axis)
    total, carry = two_sum(high, low)
    return dataclasses.replace(state, total=total, carry=carry)


def reduce_over(mesh: Mesh, state: RidgeState) -> RidgeState:
    """The state of all devices of all processes, from one of each device.

    Args:
      mesh: of all.
      state: total and carry (k, size, size), a row on each of this process's k devices.
    """
    rows = NamedSharding(mesh, PartitionSpec(axis_name("reduce_over", mesh)))

    def everywhere(mine: jax.Array) -> jax.Array:
        shape = (mesh.size, *mine.shape[1:])
        shards = [shard.data for shard in mine.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, rows, shards)

    out = _reduce(mesh, jax.tree.map(everywhere, state))
    return jax.tree.map(lambda a: a.addressable_data(0), out)


@functools.partial(jax.jit, static_argnums=0)
def _reduce(mesh: Mesh, states: RidgeState) -> RidgeState:
    axis = axis_name("reduce_over", mesh)
    run = jax.shard_map(
        lambda s: ridge_psum(jax.tree.map(lambda a: a[0], s), axis),
        mesh=mesh,
        in_specs=PartitionSpec(axis),
        out_specs=PartitionSpec(),
    )
    return run(states)
