"""What flows between the steps of a feature map: features, and what is known of them."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_ntk_sketch._typing import KINDS, Kind
from jax_ntk_sketch.sketch import Window


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
    nngp_diag: jax.Array


class ExactColumns(NamedTuple):
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

    def joined(self, spec: "Spec") -> "ExactColumns":
        """After a linear layer has appended the NNGP features to the NTK's."""

        def behind(columns: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(spec.ntk_dim + i for i in columns)

        return self._replace(
            ntk_constants=self.ntk_constants + behind(self.constants),
            ntk_linears=self.ntk_linears + behind(self.linears),
        )

    def repeated(self, spec: "Spec", times: int) -> "ExactColumns":
        """After as many copies of all columns have been laid side by side."""

        def copies(columns: tuple[int, ...], width: int) -> tuple[int, ...]:
            return tuple(width * k + i for k in range(times) for i in columns)

        return ExactColumns(
            copies(self.constants, spec.nngp_dim),
            copies(self.linears, spec.nngp_dim),
            copies(self.ntk_constants, spec.ntk_dim),
            copies(self.ntk_linears, spec.ntk_dim),
        )


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known of `Features` before any array exists.

    Attributes:
      nngp, ntk: their columns.
      gaussian: whether the outputs are Gaussian, as nonlinear layers need.
      min_cosine: the smallest cosine that two examples can have.
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

    nngp_dim: int
    ntk_dim: int
    gaussian: bool = False
    min_cosine: float = -1.0
    shape: tuple[int, ...] = ()
    window: Window | None = None
    bias: float = 0.0
    ntk_bias: float = 0.0
    after_dropout: bool = False
    norms_from_features: bool = False
    before_activations: bool = True
    exact_columns: ExactColumns = ExactColumns()  # noqa: RUF009
    finite_channels: int = 1

    def dim(self, kind: Kind) -> int:
        """Return the columns of the features of one kernel."""
        return self.nngp_dim if kind == "nngp" else self.ntk_dim

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kernels whose features have columns."""
        return tuple(kind for kind in KINDS if self.dim(kind))

    @property
    def positions(self) -> tuple[int, ...]:
        """The spatial axes of the features."""
        return self.window.output_shape(self.shape) if self.window else self.shape

    @property
    def pixels(self) -> int:
        """Number of positions."""
        return math.prod(self.positions)

    def live_elements(self) -> int:
        """Numbers in the arrays of one example."""
        return math.prod(self.shape) * (self.nngp_dim + self.ntk_dim + 1)


@dataclasses.dataclass(frozen=True)
class Branches:
    """What is known of the features of several branches; they are a list then."""

    specs: tuple[Spec, ...]

    @property
    def nngp_dim(self) -> int:
        return sum(spec.nngp_dim for spec in self.specs)

    @property
    def ntk_dim(self) -> int:
        return sum(spec.ntk_dim for spec in self.specs)

    def live_elements(self) -> int:
        """Numbers in the arrays of one example."""
        return sum(spec.live_elements() for spec in self.specs)


def after_weighted_sum(spec: Spec, signed: bool) -> Spec:
    """Behind weighted sums over positions, with weights that may be negative or not."""
    carried = spec.exact_columns
    if signed:
        # A constant column may have either sign then; a linear one always may.
        carried = ExactColumns(
            linears=carried.constants + carried.linears,
            ntk_linears=carried.ntk_constants + carried.ntk_linears,
        )
    low = -1.0 if signed else min(spec.min_cosine, 0.0)
    return dataclasses.replace(
        spec, min_cosine=low, norms_from_features=True, exact_columns=carried
    )


def dropout_variance(f: Features) -> jax.Array:
    """What variances have beyond the features' own squared norms, behind Dropout.

    Each position has it independently of the others, so that sums over positions with
    weights w have it with weights w^2.
    """
    return f.nngp_diag - jnp.sum(f.nngp**2, axis=-1)


def with_feature_norms(
    nngp: jax.Array, ntk: jax.Array, excess: jax.Array | float = 0.0
) -> Features:
    """Features whose norms have no closed form: they are computed.

    The excess is negative where noise of the features is more than what is dropped.
    """
    return Features(nngp, ntk, jnp.sum(nngp**2, axis=-1) + jnp.maximum(excess, 0))


def constant_column(features: jax.Array, value: float) -> jax.Array:
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
