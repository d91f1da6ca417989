"""`RandomMap`: what sketches, directions and random features have in common."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import jax

from jax_ntk_sketch._typing import Array, ArrayLike, Key, PyTree

Name = TypeVar("Name", bound=str)


class Drawn(Protocol):
    """A record that draws parameters."""

    def init(self, key: Key) -> Any:
        """Draw the parameters, a pytree."""
        ...


class RandomMap(Protocol):
    """A frozen record of sizes that draws parameters and applies them to vectors."""

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        ...

    def init(self, key: Key) -> Any:
        """Draw the parameters, a pytree."""
        ...

    def apply(self, params: Any, x: ArrayLike) -> Array:
        """Map `x`, whose vectors lie along the last axis."""
        ...


def init_each(parts: Mapping[Name, Drawn], key: Key) -> dict[Name, PyTree]:
    """Draw the parameters of each of several maps, with a key for each."""
    keys = jax.random.split(key, len(parts))
    pairs = zip(parts.items(), keys, strict=True)
    return {name: part.init(part_key) for (name, part), part_key in pairs}
