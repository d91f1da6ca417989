"""What flows between layers, and the step that one layer becomes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch.methods import Method

__all__ = [
    "Context",
    "Features",
    "Spec",
    "Stage",
    "allocate",
    "constant",
    "inner_width",
    "normalised",
    "rule",
    "safe_sqrt",
]


class Features(NamedTuple):
    """The running features of a batch of n examples.

    Attributes:
      nngp: (n, a), inner products approximate the running NNGP kernel.
      ntk: (n, b), likewise the NTK; b = 0 while the NTK is zero or not wanted.
      norm2: (n,), the diagonal of the NNGP kernel, exact.
    """

    nngp: jax.Array
    ntk: jax.Array
    norm2: jax.Array


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known of `Features` before any array exists.

    Attributes:
      nngp, ntk: their columns.
      gaussian: whether the outputs are Gaussian, as nonlinear layers need.
      low: the smallest cosine that two examples can have.
    """

    nngp: int
    ntk: int
    gaussian: bool = False
    low: float = -1.0


@dataclasses.dataclass(frozen=True)
class Context:
    """What every rule is told.

    Attributes:
      method: the approximation method.
      ntk: whether the NTK is wanted, or the NNGP kernel alone.
      width: columns that a nonlinear layer may return, NNGP and NTK together.
      batch: examples in the batch, for methods whose features depend on it.
    """

    method: Method
    ntk: bool
    width: int
    batch: int = 1


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a feature map: pure functions and what they cost per example.

    Attributes:
      name: for the plan.
      spec: of the features that it returns.
      init: key to parameters; a step without randomness has none.
      apply: (parameters, features) to features.
      flops: floating-point operations.
      floats: numbers alive at once while it runs, inputs and outputs included.
    """

    name: str
    spec: Spec
    apply: Callable[[Any, Features], Features]
    init: Callable[[jax.Array], Any] = lambda key: ()
    flops: int = 0
    floats: int = 0


@functools.singledispatch
def rule(layer: stax.Layer, spec: Spec, context: Context) -> list[Stage]:
    """The stages of one layer; one implementation per record type, in this package.

    Raises:
      TypeError: there is none for this record.
      ValueError: the layer cannot follow what precedes it, or the method does not
        support it.
    """
    raise TypeError(
        f"no feature rule for the layer {layer!r}; supported layers are "
        + ", ".join(sorted(t.__name__ for t in rule.registry if t is not object))
    )


def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0."""
    zero = x <= 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def normalised(features: jax.Array, norm2: jax.Array) -> jax.Array:
    """`features` (n, a) over the square root of `norm2` (n,); zero where that is 0."""
    zero = norm2 <= 0
    inverse = jnp.where(zero, 0, jax.lax.rsqrt(jnp.where(zero, 1, norm2)))
    return features * inverse[:, None]


def constant(features: jax.Array, value: float) -> jax.Array:
    """One column of `value` for the rows of `features` (n, a)."""
    return jnp.full((*features.shape[:-1], 1), value, features.dtype)


def allocate(weights: np.ndarray, total: int) -> tuple[int, ...]:
    """Shares `total` columns in proportion to `weights`, at least one where positive.

    Returns:
      As many integers as weights, of sum `total`, or more where the least needs it.
    """
    weights = np.asarray(weights, float)
    positive = weights > 0
    sizes = positive.astype(int)
    spare = total - sizes.sum()
    if spare > 0 and positive.any():
        ideal = weights / weights.sum() * total
        wanted = np.maximum(ideal - sizes, 0)
        extra = wanted / wanted.sum() * spare if wanted.sum() else wanted
        sizes = sizes + np.floor(extra).astype(int)
        order = np.argsort(-(extra - np.floor(extra)), kind="stable")
        for i in order[: total - sizes.sum()]:
            sizes[i] += 1
    return tuple(int(size) for size in sizes)


def inner_width(columns: int) -> int:
    """Columns inside a PolySketch whose powers have about `columns` together.

    A quarter, as a power of two: measured on MNIST at degree 8, wider inner nodes take
    two to four times as long and lower the error by 2 % at most.
    """
    return 1 << max(5, (columns // 4).bit_length() - 1)
