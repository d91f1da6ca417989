"""Agreement between the processes of a fit, and the sum of their statistics."""

import dataclasses
import functools
import io
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ntk_sketch._numerics import two_sum
from jax_ntk_sketch._typing import Array
from jax_ntk_sketch.linear_model.ridge import RidgeState
from jax_ntk_sketch.sharding import axis_name

T = TypeVar("T")

# Seconds of work between two messages, in which a process hears of the others' errors.
_INTERVAL = 1.0
# Seconds until a process names those that it waits for: before they have called, and
# while they work. After `_LIMIT` seconds without a call it raises.
_PATIENCE, _PATIENCE_AT_WORK, _LIMIT = 10.0, 60.0, 600.0
# The number of calls so far, which is the same in all processes, and of checks for a
# signal to end.
_calls, _checks = itertools.count(), itertools.count()


class Processes:
    """The processes of a mesh during one call: a context that shares their errors.

    Every process makes the same calls in the same order. If the body of the context
    raises in one process, that process sends the error in place of its next message,
    and `gather` raises it in all others.

    Attributes:
      index: the number of this process among those of the mesh.
      count: the number of processes. A single process sends nothing.
      terminated: whether one of the processes got SIGTERM, so that all are to end.
    """

    def __init__(self, owner: str, mesh: Mesh | None) -> None:
        devices = [] if mesh is None else list(mesh.devices.flat)
        self.owner = owner
        self.count = max(1, len({device.process_index for device in devices}))
        self.index = 0 if self.count == 1 else jax.process_index()
        self.terminated = False
        if self.count == 1:
            return
        if self.count != jax.process_count():
            raise ValueError(
                f"{owner}: mesh must have devices of one process or of all "
                f"{jax.process_count()}, got devices of {self.count} processes"
            )
        self._call, self._step = next(_calls), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or self.count == 1:
            return
        # It is stored where the others look for their next message.
        message = {"error": f"{kind.__name__}: {str(error)[:2000]}"}
        if self.index == 0:
            self._store(self._step, "all", f"[{json.dumps(message)}]")
        else:
            self._store(self._step, str(self.index), json.dumps(message))

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of the processes.

        Args:
          value: anything that JSON can hold.

        Raises:
          RuntimeError: another process stopped with an error.
          TimeoutError: another process does not make the call.
        """
        if self.count == 1:
            return [value]
        replies = self._exchange({"value": value})
        for i, reply in enumerate(replies):
            if "error" in reply:
                self.fail(
                    RuntimeError, f"process {i} stopped with an error: {reply['error']}"
                )
        return [reply["value"] for reply in replies]

    def assert_equal(
        self, replies: Sequence[Mapping[str, Any]], names: Iterable[str]
    ) -> None:
        """Raise in all processes if their gathered values differ.

        Args:
          replies: one mapping per process, as `gather` returned them. None is equal to
            any value.
          names: the entries to compare.

        Raises:
          ValueError: two processes differ.
        """
        for name in names:
            values = [(i, reply[name]) for i, reply in enumerate(replies)]
            values = [(i, value) for i, value in values if value is not None]
            for i, value in values[1:]:
                if value != values[0][1]:
                    self.fail(
                        ValueError,
                        f"{name} must be the same in all processes; it is "
                        f"{values[0][1]} in process {values[0][0]} and {value} in "
                        f"process {i}",
                    )

    def in_step(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items of this process, and exchange messages once a second.

        The processes may have different numbers of items. A process without items
        continues to exchange messages until no process has any. No process thus waits
        for longer than a second or an item, and an error of one soon reaches all. After
        a SIGTERM to one of them there are no more items, and `terminated` is True.

        Raises:
          RuntimeError: another process stopped with an error.
        """
        if self.count == 1:
            yield from items
            return
        iterator, num_items = iter(items), 1
        while True:
            start, done = time.monotonic(), True
            for i, item in enumerate(iterator, 1):
                yield item
                if i == num_items:
                    done = False
                    break
            replies = self.gather([done, time.monotonic() - start, _is_terminated()])
            self.terminated = any(terminated for *_, terminated in replies)
            if self.terminated or all(done for done, *_ in replies):
                return
            # All processes compute the same number, from the time of the slowest.
            slowest = max(seconds for _, seconds, _ in replies)
            wanted = round(num_items * _INTERVAL / max(slowest, 1e-6))
            num_items = min(max(wanted, 1), 10 * num_items)

    def broadcast_from_first(
        self, make: Callable[[], Mapping[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """Return the arrays that `make()` returns in the first process, bit by bit.

        Raises:
          RuntimeError: it raised there.
        """
        if self.count == 1:
            return make()
        buffer = io.BytesIO()
        if self.index == 0:
            # As bytes, because JAX would round float64.
            np.savez(buffer, **make())  # type: ignore[arg-type]
        size = self.gather(len(buffer.getvalue()))[0]
        data = np.frombuffer(buffer.getvalue() or bytes(size), np.uint8)
        data = multihost_utils.broadcast_one_to_all(data)
        return dict(np.load(io.BytesIO(np.asarray(data).tobytes())))

    def fail(self, kind: type[Exception], message: str) -> NoReturn:
        """Raise an error that the other processes raise too."""
        raise kind(f"{self.owner}: {message}")

    def _exchange(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the messages of all processes, which the first one collects.

        They go through the key-value store of `jax.distributed` and not through a
        computation, which would not end if a process did not take part.
        """
        start, step = time.monotonic(), self._step
        text = json.dumps(message, default=int)  # NumPy's integers
        self._store(step, str(self.index), text)
        if self.index == 0:
            others = range(1, self.count)
            texts = [text, *(self._receive(step, str(i), start) for i in others)]
            replies = f"[{','.join(texts)}]"
            self._store(step, "all", replies)
            # All processes have read the replies before those.
            _client().key_value_delete(self._key(step - 1))
            self._step += 1
        else:
            self._step += 1
            replies = self._receive(step, "all", start)
        return json.loads(replies)

    def _store(self, step: int, name: str, text: str) -> None:
        _client().key_value_set(self._key(step, name), text)

    def _receive(self, step: int, name: str, start: float) -> str:
        """Return a message when it has been stored."""
        patience = _PATIENCE_AT_WORK if step else _PATIENCE
        warned = False
        while True:
            try:
                # Signals are heeded once a second.
                return _client().blocking_key_value_get(self._key(step, name), 1000)
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            seconds = time.monotonic() - start
            if seconds < patience:
                continue
            rest = f"process{'es' * (len(self._missing(step)) > 1)} "
            rest += ", ".join(map(str, self._missing(step)))
            if not step and seconds >= _LIMIT:
                self.fail(
                    TimeoutError,
                    f"all processes of the mesh must call {self.owner}, but {rest} did "
                    f"not within {seconds:.0f} s; make the same calls with the same "
                    "mesh in all processes, and before a longer wait call jax."
                    'experimental.multihost_utils.sync_global_devices("data") in all',
                )
            if not warned:
                what = "work" if step else f"call {self.owner} with this mesh"
                warnings.warn(
                    f"{self.owner}: process {self.index} has waited for {rest} to "
                    f"{what} for {seconds:.0f} s",
                    RuntimeWarning,
                    stacklevel=2,
                )
                warned = True

    def _missing(self, step: int) -> list[int]:
        """Return the processes that have not sent a message."""
        found = _client().key_value_dir_get(self._key(step))
        names = {key.rsplit("/", 1)[1] for key, _ in found}
        return [i for i in range(self.count) if str(i) not in names]

    def _key(self, step: int, *name: str) -> str:
        return "/".join(["jax_ntk_sketch", str(self._call), str(step), *name])


def _client() -> Any:
    """Return the client of the key-value store that all processes share."""
    # It has no public name; JAX's checkpoints (orbax) read it here too.
    from jax._src import distributed

    return distributed.global_state.client


def _is_terminated() -> bool:
    """Return whether a process got SIGTERM, which JAX catches and passes on to all."""
    try:
        return multihost_utils.reached_preemption_sync_point(next(_checks))
    except RuntimeError:  # the service is disabled, so that SIGTERM ends the process
        return False


def ridge_psum(state: RidgeState, axis: str) -> RidgeState:
    r"""Return the state of the examples of all devices, in `jax.shard_map` or `vmap`.

    The result is that of `ridge_merge` over all devices, with an error of about 1e-13
    relative to :math:`\sqrt{G_{ii} G_{jj}}`.

    Args:
      state: the state of this device.
      axis: the name of the axis of the mesh.

    Returns:
      `RidgeState`, the same on all devices.

    Cost: one `psum` of the state, 8 (m + t + 1)^2 bytes in float32, and one of its
    diagonal.

    >>> import jax
    >>> from jax_ntk_sketch import linear_model
    >>> def sum_over_devices(phi, y):
    ...     state = linear_model.ridge_init(3, None)
    ...     state = linear_model.ridge_update(state, phi, y)
    ...     return linear_model.ridge_psum(state, "data")
    >>> phi = jax.random.normal(jax.random.key(0), (2, 50, 3))
    >>> states = jax.vmap(sum_over_devices, axis_name="data")(phi, phi[..., 0])
    >>> [float(count) for count in states.count]
    [100.0, 100.0]
    """
    total, carry = state.total, state.carry
    # Each entry is split at a power of two that follows from the diagonal of the sum,
    # so that the high parts of all devices add up without rounding. A zero on the
    # diagonal has a row of zeros, for which any small exponent works.
    diagonal = jax.lax.psum(jnp.diagonal(total), axis)
    _, exponent = jnp.frexp(jnp.where(diagonal > 0, diagonal, 1e-30))
    half = (exponent + 1) // 2
    bits = jnp.finfo(total.dtype).nmant - 1
    # Smaller steps would leave no normal float32 for the low part.
    power = jnp.maximum(half[:, None] + half - bits, -100)
    step = jnp.ldexp(jnp.ones((), total.dtype), power)
    high = jnp.round(total / step) * step
    high, low = jax.lax.psum((high, (total - high) + carry), axis)
    total, carry = two_sum(high, low)
    rows = jnp.stack(two_sum(*jax.lax.psum(state.rows, axis)))
    return dataclasses.replace(state, total=total, carry=carry, rows=rows)


def reduce_over(mesh: Mesh, state: RidgeState) -> RidgeState:
    """Return the state of the examples of all devices of all processes.

    Args:
      mesh: the mesh of all processes.
      state: arrays with a leading axis k, one row on each of the k devices of this
        process.
    """
    rows = NamedSharding(mesh, PartitionSpec(axis_name("reduce_over", mesh)))

    def to_global(local: Array) -> Array:
        shape = (mesh.size, *local.shape[1:])
        shards = [shard.data for shard in local.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, rows, shards)

    reduced = _reduce(mesh, jax.tree.map(to_global, state))
    return jax.tree.map(lambda a: a.addressable_data(0), reduced)


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
