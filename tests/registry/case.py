"""A case of the contract suite, and how its record is initialized and applied."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import random_features as random_features
from jax_ntk_sketch import sketch

DIM = 6
KINDS = ("nngp", "ntk")


@dataclasses.dataclass(frozen=True)
class Case:
    """A record of the package and what is known of its features.

    Attributes:
      name: names the test.
      record: the frozen record; it has `init` and `apply`.
      columns: of every output, in order.
      kernel: x (n, d) to the exact expectations of the Gram matrices of the outputs,
        float64; None where there is no closed form.
      large: the same kind of record with a million columns in all; None if the number
        of columns is bounded by data.
      variance: x to the exact variances of the first Gram matrix.
      slack: largest relative bias, where the features are known not to be unbiased.
      zero: whether the zero vector has zero features.
      from_batch: whether the features depend on the whole batch.
      shape: of one example; each holds DIM numbers.
      sample: n examples that `init` learns from, or None.
      traced_init: whether `init` works under `jit` and `vmap`.
      edges: of the graph that every example is, or None.
    """

    name: str
    record: Any
    columns: tuple[int, ...]
    kernel: Callable[[np.ndarray], list[np.ndarray]] | None = None
    large: Any = None
    variance: Callable[[np.ndarray], np.ndarray] | None = None
    slack: float = 0.0
    zero: bool = True
    from_batch: bool = False
    shape: tuple[int, ...] = (DIM,)
    sample: int | None = None
    traced_init: bool = True
    edges: tuple[tuple[int, int], ...] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def seeds(self) -> int:
        """Keys for the tests of moments; few where no moment is known."""
        return 1500 if self.kernel is not None else 8

    def of(self, record: Any) -> "Case":
        """The same case of an equal record, or of a larger one."""
        return dataclasses.replace(self, record=record)


def is_map(record: Any) -> bool:
    return hasattr(record, "plan")


def sample_of(case: Case) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.normal(size=(case.sample, *case.shape)).astype(np.float32)


def init(case: Case, key: jax.Array) -> Any:
    if not is_map(case.record):
        return case.record.init(key)
    if case.sample is None:
        return case.record.init(key, case.shape)
    return case.record.init(key, case.shape, sample=sample_of(case))


def apply(case: Case, params: Any, x: Any) -> Any:
    """Features of x (..., DIM), which is brought to the shape of the examples.

    A sketch of patches returns those of all positions as one vector, and a sketch of
    tensor products takes two parts of x.
    """
    record, lead = case.record, x.shape[:-1]
    if isinstance(record, sketch.TensorSRHT):
        return record.apply(params, x[..., :2], x[..., 2:])
    if len(case.shape) == 1:
        return record.apply(params, x)
    x = x.reshape(*lead, *case.shape)
    if case.edges is None:
        out = record.apply(params, x)
    else:
        pattern = jnp.broadcast_to(
            jnp.array(case.edges), (x.shape[0], len(case.edges), 2)
        )
        out = record.apply(params, x, pattern=pattern)
    return jax.tree.map(lambda z: z.reshape(*lead, -1), out)


def features(case: Case, key: jax.Array, x: Any) -> list[jax.Array]:
    return jax.tree.leaves(apply(case, init(case, key), x))


# Half the time of these tests is compilation, of programs that run once or twice.
jit_once = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Compile with few optimizations outside `jit_once` as well."""
    old = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", old)


def error(net, x, kernel, method, num_features, seeds=8):
    """Root mean square over keys of the NTK's relative errors between examples."""
    fmap = jns.feature_map(net, num_features=num_features, method=method)

    @jit_once
    @jax.vmap
    def grams(key):
        z = fmap.apply(fmap.init(key, x.shape[1:]), x)
        return z @ z.T

    off = ~np.eye(len(x), dtype=bool)
    k = np.asarray(grams(jax.random.split(jax.random.key(0), seeds)))
    return np.sqrt(np.mean((k - kernel)[:, off] ** 2) / np.mean(kernel[off] ** 2))
