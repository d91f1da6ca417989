"""Feature maps in the jobs: planned, compiled, timed, drawn, compared."""

import dataclasses
import time
import types
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_ntk_sketch import feature_map, methods, stax, validation
from jax_ntk_sketch.cli.arguments import UsageError
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.features._transform import transform
from jax_ntk_sketch.methods import METHODS

__all__ = [
    "APPROXIMATIONS",
    "CompiledFeatures",
    "check_methods",
    "compare_drawn",
    "compile_features",
    "planned",
    "some_rows",
]

# The exact kernel is shown beside them.
APPROXIMATIONS = tuple(name for name in METHODS if name != "exact")

# Examples that methods which learn from data see.
_SAMPLE = 1000


def check_methods(names: Sequence[str]) -> list[str]:
    """The names without repetition; raises ValueError if "exact" is among them."""
    if "exact" in names:
        raise ValueError(
            "--methods: 'exact' is the reference that is always shown; choose among "
            f"{', '.join(APPROXIMATIONS)}, auto"
        )
    return list(dict.fromkeys(names))


def planned(
    net: stax.Layer, shape: tuple[int, ...], method: str | methods.Method, size: int
) -> NetworkFeatureMap:
    """A feature map; raises ValueError if it does not fit the data."""
    fmap = feature_map(net, num_features=size, method=method)
    fmap.plan(shape)
    return fmap


@dataclasses.dataclass(frozen=True)
class CompiledFeatures:
    """A feature map that was compiled for one batch size.

    Attributes:
      sample: examples for `init`.
      batch_size: examples per call.
      seconds: what compiling took, with a first draw and a first batch; a fit of the
        method's coefficients is in it.
    """

    fmap: NetworkFeatureMap
    sample: np.ndarray
    batch_size: int
    seconds: float

    def __call__(
        self, key: jax.Array, *parts: np.ndarray, progress: bool | None = False
    ) -> tuple[list[Any], float]:
        """Features (n, num_features) of each array of examples, and the seconds."""
        start = time.perf_counter()
        params = self.fmap.init(key, self.sample)
        phi = [
            transform(
                self.fmap, params, x, batch_size=self.batch_size, progress=progress
            )
            for x in parts
        ]
        return phi, time.perf_counter() - start


def compile_features(
    fmap: NetworkFeatureMap, x: np.ndarray, *, max_bytes: int = 2**28
) -> CompiledFeatures:
    """Compiles a feature map for examples like those of x (n, ...).

    Methods that learn from data see the first rows of x. `max_bytes` as in
    `transform`.
    """
    size = fmap.plan(x.shape[1:]).choose_batch_size(len(x), max_bytes)
    compiled = CompiledFeatures(fmap, x[:_SAMPLE], size, 0.0)
    _, seconds = compiled(jax.random.key(0), x[:1])
    return dataclasses.replace(compiled, seconds=seconds)


def compare_drawn(
    drawn: Sequence[np.ndarray],
    matrix: np.ndarray,
    x: np.ndarray,
    *,
    reg: float,
    label: str,
) -> validation.Comparison:
    """Errors of NTK features of x, (n, num_features) per draw, that are there already.

    Args:
      matrix: the exact kernel of x, (n, n).
      reg, label: as in `validation.compare`.
    """
    # Features in the place of parameters.
    draws = iter(drawn)
    again = types.SimpleNamespace(
        get="ntk", init=lambda key, x: next(draws), apply=lambda phi, x: phi
    )
    return validation.compare(
        again,
        lambda x1, x2, get: matrix,
        x,
        key=jax.random.key(0),  # not used
        num_seeds=len(drawn),
        reg=reg,
        label=label,
    )


def some_rows(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The numbers of at most `count` rows, drawn without replacement."""
    rows = np.random.default_rng(seed).permutation(len(x))[:count]
    if np.all(x[rows] == x[rows[0]]):
        raise UsageError(
            "--data: the rows that kernels are compared on are all the same"
        )
    return rows
