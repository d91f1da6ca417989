"""`Features`, which flow between the steps of a feature map, and their `Spec`.

The spec holds the facts that are known before any array exists: sizes and properties.
Between `FanOut` and a fan-in layer there are lists of features, and `Branches`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp

from jax_ntk_sketch._numerics import is_zero
from jax_ntk_sketch._typing import KINDS, Array, Kind, Shape
from jax_ntk_sketch.sketch import Window


class Features(NamedTuple):
    """The features of n examples at each of their positions.

    Attributes:
      nngp: (n, *shape, a), whose inner products approximate the NNGP kernel.
      ntk: (n, *shape, b), whose inner products approximate the NTK; b is 0 while the
        NTK is zero or is not wanted.
      nngp_diag: (n, *positions), the diagonal of the NNGP kernel. It is exact if a
        formula is known, and otherwise the squared norm of the features
        (`Spec.norms_from_features`). After Dropout it exceeds the norm by the variance
        of what is dropped (`dropout_variance`).

    While `Spec.patches` is set, `nngp` and `ntk` are images whose *patches* are the
    features, and `nngp_diag` belongs to the patches: a direct sum that is not formed.
    """

    nngp: Array
    ntk: Array
    nngp_diag: Array

    @classmethod
    def of_kind(cls, kind: Kind, phi: Array, nngp_diag: Array) -> "Features":
        """Return features `phi` (n, columns) of one kernel, and none of the other."""
        empty = phi[..., :0]
        return cls(*((phi, empty) if kind == "nngp" else (empty, phi)), nngp_diag)


class ExactColumns(NamedTuple):
    """The numbers of the columns that are exact.

    "variance_reduced" passes them from layer to layer, and "ntk_sketch" leaves them out
    of its final compression.

    Attributes:
      constants, linears: columns of the NNGP features. The former are equal for all
        examples, up to their norms, and the latter are linear in the input.
      ntk_constants, ntk_linears: columns of the NTK features.
    """

    constants: tuple[int, ...] = ()
    linears: tuple[int, ...] = ()
    ntk_constants: tuple[int, ...] = ()
    ntk_linears: tuple[int, ...] = ()

    def of_kind(self, kind: Kind) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the constant and the linear columns of one kernel."""
        if kind == "nngp":
            return self.constants, self.linears
        return self.ntk_constants, self.ntk_linears

    def with_nngp_appended(
        self, ntk_dim: int, appended: "ExactColumns | None" = None
    ) -> "ExactColumns":
        """Return the columns after the NNGP features are appended to the NTK features.

        Args:
          ntk_dim: the columns of the NTK features before.
          appended: has the columns of the NNGP features that are appended; by default
            these are all.
        """
        nngp = appended or self
        return self._replace(
            ntk_constants=self.ntk_constants + _shift(nngp.constants, ntk_dim),
            ntk_linears=self.ntk_linears + _shift(nngp.linears, ntk_dim),
        )

    def joined(
        self, other: "ExactColumns", nngp_dim: int, ntk_dim: int
    ) -> "ExactColumns":
        """Return the columns of features with others on their right.

        Args:
          other: the columns on the right.
          nngp_dim, ntk_dim: the columns of the features on the left.
        """
        return ExactColumns(
            self.constants + _shift(other.constants, nngp_dim),
            self.linears + _shift(other.linears, nngp_dim),
            self.ntk_constants + _shift(other.ntk_constants, ntk_dim),
            self.ntk_linears + _shift(other.ntk_linears, ntk_dim),
        )

    def repeated(self, spec: "Spec", times: int) -> "ExactColumns":
        """Return the columns of copies of the features side by side."""

        def copies(columns: tuple[int, ...], dim: int) -> tuple[int, ...]:
            return tuple(dim * k + i for k in range(times) for i in columns)

        return ExactColumns(
            copies(self.constants, spec.nngp_dim),
            copies(self.linears, spec.nngp_dim),
            copies(self.ntk_constants, spec.ntk_dim),
            copies(self.ntk_linears, spec.ntk_dim),
        )

    def without_constants(self) -> "ExactColumns":
        """Return the columns once a constant may differ between examples."""
        return ExactColumns(
            linears=self.constants + self.linears,
            ntk_linears=self.ntk_constants + self.ntk_linears,
        )


def _shift(columns: tuple[int, ...], offset: int) -> tuple[int, ...]:
    return tuple(offset + column for column in columns)


@dataclasses.dataclass(frozen=True)
class PatchWindow:
    """The window over an image whose patches are the features.

    Attributes:
      window: the window.
      nngp_bias, ntk_bias: the value of one more coordinate of each patch of the NNGP
        and the NTK features; 0 if there is none.
    """

    window: Window
    nngp_bias: float = 0.0
    ntk_bias: float = 0.0


@dataclasses.dataclass(frozen=True)
class Spec:
    """The facts about `Features` that are known before any array exists.

    Attributes:
      nngp_dim, ntk_dim: the columns of the arrays of each kernel.
      gaussian: whether the outputs are Gaussian, as activations require.
      min_cosine: the smallest cosine that two examples can have.
      shape: the spatial axes of the arrays; () for flat examples.
      patches: the window, if patches of the arrays are the features.
      after_dropout: whether `nngp_diag` exceeds the squared norm of the features,
        because a Dropout is among the layers before.
      norms_from_features: whether `nngp_diag` is computed from the features, because no
        formula is known.
      before_activations: whether there was no activation yet, so that the number of
        columns follows from the input.
      exact_columns: the columns that are exact, as far as the method uses them.
      finite_channels: the channels of the finite network.
    """

    nngp_dim: int
    ntk_dim: int
    gaussian: bool = False
    min_cosine: float = -1.0
    shape: Shape = ()
    patches: PatchWindow | None = None
    after_dropout: bool = False
    norms_from_features: bool = False
    before_activations: bool = True
    exact_columns: ExactColumns = ExactColumns()  # noqa: RUF009
    finite_channels: int = 1

    @classmethod
    def of_kind(cls, kind: Kind, columns: int) -> "Spec":
        """Return the spec of `columns` features of one kernel."""
        return cls(columns, 0) if kind == "nngp" else cls(0, columns)

    def dim(self, kind: Kind) -> int:
        """Return the columns of the arrays of one kernel."""
        return self.nngp_dim if kind == "nngp" else self.ntk_dim

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kernels whose features have columns."""
        return tuple(kind for kind in KINDS if self.dim(kind))

    @property
    def positions(self) -> Shape:
        """The spatial axes of the features."""
        if self.patches is None:
            return self.shape
        return self.patches.window.output_shape(self.shape)

    @property
    def pixels(self) -> int:
        """The number of positions."""
        return math.prod(self.positions)

    def live_elements(self) -> int:
        """Return how many numbers the arrays of one example have."""
        return math.prod(self.shape) * (self.nngp_dim + self.ntk_dim + 1)


# Features, or a list of them in branches.
AnyFeatures: TypeAlias = Features | list[Features]


@dataclasses.dataclass(frozen=True)
class Branches:
    """The specs of several branches, whose features are a list."""

    specs: tuple[Spec, ...]

    @property
    def nngp_dim(self) -> int:
        return sum(spec.nngp_dim for spec in self.specs)

    @property
    def ntk_dim(self) -> int:
        return sum(spec.ntk_dim for spec in self.specs)

    def live_elements(self) -> int:
        """Return how many numbers the arrays of one example have."""
        return sum(spec.live_elements() for spec in self.specs)


# Sums over positions


def after_weighted_sum(spec: Spec, signed: bool) -> Spec:
    """Return the spec after weighted sums over positions.

    Args:
      spec: the features before.
      signed: whether weights may be negative. A constant column may then have either
        sign, as a linear column always may.
    """
    exact_columns = spec.exact_columns
    if signed:
        exact_columns = exact_columns.without_constants()
    return dataclasses.replace(
        spec,
        min_cosine=-1.0 if signed else min(spec.min_cosine, 0.0),
        norms_from_features=True,
        exact_columns=exact_columns,
    )


def mix_positions(
    spec: Spec,
    f: Features,
    mix: Callable[[Array], Array],
    mix_squared: Callable[[Array], Array],
) -> Features:
    """Return weighted sums of features over positions.

    Args:
      spec: the features before.
      f: the features before.
      mix: takes arrays (n, *shape, c) to their weighted sums.
      mix_squared: does the same with the squares of the weights.
    """
    extra: Array | float = 0.0
    if spec.after_dropout:
        # What is dropped at different positions is independent: variances add.
        extra = mix_squared(dropout_variance(f)[..., None])[..., 0]
    return with_feature_norms(mix(f.nngp), mix(f.ntk), extra)


def dropout_variance(f: Features) -> Array:
    """Return by how much variances exceed the squared norms of features."""
    return f.nngp_diag - jnp.sum(f.nngp**2, axis=-1)


def with_feature_norms(
    nngp: Array, ntk: Array, extra_variance: Array | float = 0.0
) -> Features:
    """Return features whose variances have no formula, and are computed from them.

    Args:
      nngp, ntk: the features of each kernel.
      extra_variance: the dropout variance. It counts as 0 where it is negative, because
        the noise of the features exceeds it.
    """
    variance = jnp.sum(nngp**2, axis=-1) + jnp.maximum(extra_variance, 0)
    return Features(nngp, ntk, variance)


# Columns


def with_constant(x: Array, value: float | Array | None, first: bool = False) -> Array:
    """Return x (..., a) with one more column of `value`; without it if there is none.

    Args:
      x: features.
      value: the constant; there is no column for 0 and None.
      first: whether the column is the first one rather than the last.
    """
    if value is None or is_zero(value):
        return x
    column = jnp.full((*x.shape[:-1], 1), value, x.dtype)
    return jnp.concatenate([column, x] if first else [x, column], axis=-1)


def by_position(x: Array) -> Array:
    """Return x (n, *shape, c) as (n, positions, c)."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


def take_columns(x: Array, columns: tuple[int, ...]) -> Array:
    """Return columns of x (..., c), by slices of consecutive ones.

    XLA of JAX 0.7 and 0.8 compiles a single gather wrongly, if `Dense` has just
    appended its bias to its operand (tests/test_feature_map.py).
    """
    breaks = [i for i in range(1, len(columns)) if columns[i] != columns[i - 1] + 1]
    edges = [0, *breaks, len(columns)] if columns else []
    runs = [columns[i:j] for i, j in itertools.pairwise(edges)]
    parts = [x[..., run[0] : run[-1] + 1] for run in runs]
    return jnp.concatenate(parts, axis=-1) if parts else x[..., :0]
