"""What flows between layers, and the step that one layer becomes."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch.methods import Method
from jax_ntk_sketch.sketch import Window

__all__ = [
    "Branches",
    "Carried",
    "Context",
    "Features",
    "Spec",
    "Stage",
    "allocate",
    "constant",
    "excess",
    "inner_width",
    "inverse",
    "normalised",
    "own_norms",
    "rule",
    "summed",
    "take_columns",
    "taken",
]


class Features(NamedTuple):
    """The running features of a batch of n examples, at each of their positions.

    Attributes:
      nngp: (n, *shape, a), inner products approximate the running NNGP kernel.
      ntk: (n, *shape, b), likewise the NTK; b = 0 while it is zero or not wanted.
      norm2: (n, *positions), the diagonal of the NNGP kernel: exact where it can be
        known, else the squared norms of the features themselves (`Spec.own_norms`).
        Behind Dropout it is larger, by the variance of what is dropped (`excess`).

    While `Spec.window` is set, `nngp` and `ntk` are images whose *patches* are the
    features (and `norm2` is that of the patches): a direct sum that is not formed.
    """

    nngp: jax.Array
    ntk: jax.Array
    norm2: jax.Array


class Carried(NamedTuple):
    """Columns that are exact, by their numbers.

    "variance_reduced" carries them from layer to layer, and "ntk_sketch" leaves them
    out of its final compression.

    Attributes:
      constants, linears: of the NNGP features: what is the same for all examples but
        for their norms, and what is linear in the input.
      ntk_constants, ntk_linears: of the NTK features.
    """

    constants: tuple[int, ...] = ()
    linears: tuple[int, ...] = ()
    ntk_constants: tuple[int, ...] = ()
    ntk_linears: tuple[int, ...] = ()

    def joined(self, spec: "Spec") -> "Carried":
        """After a linear layer has appended the NNGP features to the NTK's."""

        def behind(columns: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(spec.ntk + i for i in columns)

        return self._replace(
            ntk_constants=self.ntk_constants + behind(self.constants),
            ntk_linears=self.ntk_linears + behind(self.linears),
        )

    def repeated(self, spec: "Spec", times: int) -> "Carried":
        """After as many copies of all columns have been laid side by side."""

        def copies(columns: tuple[int, ...], width: int) -> tuple[int, ...]:
            return tuple(width * k + i for k in range(times) for i in columns)

        return Carried(
            copies(self.constants, spec.nngp),
            copies(self.linears, spec.nngp),
            copies(self.ntk_constants, spec.ntk),
            copies(self.ntk_linears, spec.ntk),
        )


NOT_CARRIED = Carried()


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known of `Features` before any array exists.

    Attributes:
      nngp, ntk: their columns.
      gaussian: whether the outputs are Gaussian, as nonlinear layers need.
      low: the smallest cosine that two examples can have.
      shape: the spatial axes of the arrays; () for flat examples.
      window: the features are patches of the arrays; None: the arrays themselves.
      bias: the patches have one more channel, of this value; 0: they have not.
      ntk_bias: likewise those of the NTK features.
      dropped: norms are those behind a Dropout, larger than the features' own.
      own_norms: `norm2` are the norms of these features (and their `excess`), not
        exact ones.
      raw: no nonlinear layer has been, so that the columns are the input's.
      carried: the columns that are exact, as far as the method uses them.
      width: channels of the finite network.
    """

    nngp: int
    ntk: int
    gaussian: bool = False
    low: float = -1.0
    shape: tuple[int, ...] = ()
    window: Window | None = None
    bias: float = 0.0
    ntk_bias: float = 0.0
    dropped: bool = False
    own_norms: bool = False
    raw: bool = True
    carried: Carried = NOT_CARRIED
    width: int = 1

    @property
    def positions(self) -> tuple[int, ...]:
        """The spatial axes of the features."""
        return self.window.output_shape(self.shape) if self.window else self.shape

    @property
    def pixels(self) -> int:
        """Number of positions."""
        return math.prod(self.positions)

    def floats(self) -> int:
        """Numbers in the arrays of one example."""
        return math.prod(self.shape) * (self.nngp + self.ntk + 1)


@dataclasses.dataclass(frozen=True)
class Branches:
    """What is known of the features of several branches; they are a list then."""

    specs: tuple[Spec, ...]

    @property
    def nngp(self) -> int:
        return sum(spec.nngp for spec in self.specs)

    @property
    def ntk(self) -> int:
        return sum(spec.ntk for spec in self.specs)

    def floats(self) -> int:
        """Numbers in the arrays of one example."""
        return sum(spec.floats() for spec in self.specs)


@dataclasses.dataclass(frozen=True)
class Context:
    """What every rule is told.

    Attributes:
      method: the approximation method.
      ntk: whether the NTK is wanted, or the NNGP kernel alone.
      width: columns that a nonlinear layer may return, NNGP and NTK together.
      batch: examples in the batch, for methods whose features depend on it.
      channel_axis: of the input, counted with the batch axis; features have their
        channels last whatever it is.
    """

    method: Method
    ntk: bool
    width: int
    batch: int = 1
    channel_axis: int = -1


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a feature map: pure functions and what they cost per example.

    Attributes:
      name: for the plan.
      spec: of the features that it returns.
      init: key to parameters; a step without randomness has none. Where there is a
        `fit`, only their shapes and dtypes are right.
      fit: (key, features of a sample) to parameters, for steps that learn from data.
      error: cosines of the NNGP features that enter, (...), to the kernel of unit
        vectors there and the mean square of its error, of steps whose noise is known in
        closed form.
      apply: (parameters, features) to features, and by keyword what it `takes`; called
        by `run`.
      flops: floating-point operations.
      floats: numbers alive at once while it runs, inputs and outputs included.
      fit_floats: numbers alive at once while `fit` runs, besides its input.
      bias: gives the largest bias of the kernels of unit vectors, for the plan.
      takes: names of the arrays beside x that `apply` and `fit` read, such as
        "pattern"; a step made of others takes what they take (`taken`).
    """

    name: str
    spec: Any  # a Spec, or Branches
    apply: Callable[..., Any]
    init: Callable[[jax.Array], Any] = lambda key: ()
    flops: int = 0
    floats: int = 0
    fit: Callable[..., Any] | None = None
    error: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    fit_floats: int = 0
    bias: Callable[[], str] | None = None
    takes: tuple[str, ...] = ()

    def run(self, params: Any, f: Any, **inputs: Any) -> Any:
        """Features of the next step; of the `inputs` it is given what it takes."""
        return self.apply(params, f, **self._own(inputs))

    def learn(self, key: jax.Array, f: Any, **inputs: Any) -> Any:
        """Parameters: by `fit` where there is one, else by `init`."""
        if self.fit is None:
            return self.init(key)
        return self.fit(key, f, **self._own(inputs))

    def _own(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: inputs[name] for name in self.takes if name in inputs}


def taken(stages: Iterable[Stage]) -> tuple[str, ...]:
    """What these steps take together, each name once."""
    return tuple(dict.fromkeys(name for stage in stages for name in stage.takes))


@functools.singledispatch
def rule(layer: stax.Layer, spec: Any, context: Context) -> list[Stage]:
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


def summed(spec: Spec, signed: bool) -> Spec:
    """Behind weighted sums over positions, with weights that may be negative or not."""
    carried = spec.carried
    if signed:
        # A constant column may have either sign then; a linear one always may.
        carried = Carried(
            linears=carried.constants + carried.linears,
            ntk_linears=carried.ntk_constants + carried.ntk_linears,
        )
    low = -1.0 if signed else min(spec.low, 0.0)
    return dataclasses.replace(spec, low=low, own_norms=True, carried=carried)


def excess(f: Features) -> jax.Array:
    """What variances have beyond the features' own squared norms, behind Dropout.

    Each position has it independently of the others, so that sums over positions with
    weights w have it with weights w^2.
    """
    return f.norm2 - jnp.sum(f.nngp**2, axis=-1)


def own_norms(
    nngp: jax.Array, ntk: jax.Array, excess: jax.Array | float = 0.0
) -> Features:
    """Features whose norms have no closed form: they are computed.

    The excess is negative where noise of the features is more than what is dropped.
    """
    return Features(nngp, ntk, jnp.sum(nngp**2, axis=-1) + jnp.maximum(excess, 0))


def inverse(x: jax.Array) -> jax.Array:
    """1 / x, and 0 at 0."""
    zero = x <= 0
    return jnp.where(zero, 0, 1 / jnp.where(zero, 1, x))


def normalised(features: jax.Array, norm2: jax.Array) -> jax.Array:
    """`features` (..., a) over the square root of `norm2` (...); zero where it is 0."""
    zero = norm2 <= 0
    inverse = jnp.where(zero, 0, jax.lax.rsqrt(jnp.where(zero, 1, norm2)))
    return features * inverse[..., None]


def constant(features: jax.Array, value: float) -> jax.Array:
    """One column of `value` for the rows of `features` (..., a)."""
    return jnp.full((*features.shape[:-1], 1), value, features.dtype)


def take_columns(x: jax.Array, columns: tuple[int, ...]) -> jax.Array:
    """Some of the columns of x (..., c), by slices of those that follow each other.

    One gather, of what a `Dense` has appended its bias to, is compiled wrongly by the
    XLA of JAX 0.7 and 0.8 (tests/test_feature_map.py).
    """
    breaks = [i for i in range(1, len(columns)) if columns[i] != columns[i - 1] + 1]
    edges = [0, *breaks, len(columns)] if columns else []
    runs = [columns[i:j] for i, j in itertools.pairwise(edges)]
    parts = [x[..., run[0] : run[-1] + 1] for run in runs]
    return jnp.concatenate(parts, axis=-1) if parts else x[..., :0]


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
