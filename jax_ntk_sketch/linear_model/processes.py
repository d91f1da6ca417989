"""What the processes of a mesh tell each other outside of collectives.

A collective waits for every process: one that stopped with an error would leave the
others waiting, and one that has more data would make them time out. So they first
meet over the key-value store of JAX's distributed runtime, which is there on every
platform, and enter collectives only when all are ready.
"""

import json
import pickle
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

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
