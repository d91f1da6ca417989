"""`RandomMap`: what sketches, directions and random features have in common."""

from typing import Protocol

from jax_ntk_sketch._typing import Array, ArrayLike, Key, PyTree

__all__ = ["RandomMap"]


class RandomMap(Protocol):
    """A frozen record of sizes that draws parameters and applies them to vectors."""

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        ...

    def init(self, key: Key) -> PyTree:
        """Draw the parameters."""
        ...

    def apply(self, params: PyTree, x: ArrayLike) -> Array:
        """Map `x`, whose vectors lie along the last axis."""
        ...
