"""Feature maps in the job: compiled once, timed, applied batch by batch."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

__all__ = ["CompiledFeatures", "compile_features"]

# Rows per call: bounds what the sketches of a batch take on the way.
_BATCH = 1000


@dataclasses.dataclass(frozen=True)
class CompiledFeatures:
    """A feature map whose `apply` is compiled for one batch size.

    `init` is left eager: it runs once per draw, and compiling it as a whole takes
    longer than compiling its operations one by one.

    Attributes:
      sample: rows for `init`.
      batch: rows per call.
      seconds: what compiling took; a fit of the method's coefficients is in it.
    """

    init: Any
    apply: Any
    sample: np.ndarray
    batch: int
    seconds: float

    def __call__(
        self, key: jax.Array, *parts: np.ndarray
    ) -> tuple[list[np.ndarray], float]:
        """Features (n, num_features) of each array of rows, and the seconds taken."""
        start = time.perf_counter()
        params = self.init(key, self.sample)
        return [self._apply(params, x) for x in parts], time.perf_counter() - start

    def _apply(self, params: Any, x: np.ndarray) -> np.ndarray:
        rows = []
        for i in range(0, len(x), self.batch):
            part = x[i : i + self.batch]
            # Repeated rows fill the last batch up: one shape, one compilation.
            full = part[np.minimum(np.arange(self.batch), len(part) - 1)]
            rows.append(np.asarray(self.apply(params, full))[: len(part)])
        return np.concatenate(rows)


def compile_features(fmap: Any, x: np.ndarray) -> CompiledFeatures:
    """Compiles a feature map for rows like those of x (n, d).

    Methods that learn from data see the first rows of x, at most a batch.
    """
    sample = x[:_BATCH]
    start = time.perf_counter()
    params = jax.block_until_ready(fmap.init(jax.random.key(0), sample))
    apply = jax.jit(fmap.apply).lower(params, sample).compile()
    seconds = time.perf_counter() - start
    return CompiledFeatures(fmap.init, apply, sample, len(sample), seconds)
