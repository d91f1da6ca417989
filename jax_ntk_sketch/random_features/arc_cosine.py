"""Random features of the arc-cosine kernels, in Neural Tangents' scale."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_key, set_sizes
from jax_ntk_sketch.random_features.directions import DIRECTIONS, Directions

__all__ = ["ReluFeatures", "StepFeatures"]


@dataclasses.dataclass(frozen=True)
class StepFeatures:
    r"""Features :math:`m^{-1/2}\,1[w_i\cdot x > 0]` of kappa0(cos(x, y)) / 2.

    Args:
      input_dim: d.
      num: m, the number of features.
      directions: kind of directions, a key of `DIRECTIONS`.

    Raises:
      TypeError, ValueError: a size or name out of range, named.

    Cost: that of the projections.
    Guarantee: unbiased ("hadamard": nearly), variance of an inner product
    :math:`(\kappa_0/2)(1 - \kappa_0/2)/m` for independent directions. The zero vector
    has zero features.
    Source: Cho and Saul (2009); arXiv 2106.07880, equation 5.

    >>> f = StepFeatures(3, 8)
    >>> f.apply(f.init(jax.random.key(0)), jnp.ones((2, 3))).shape
    (2, 8)
    """

    input_dim: int
    num: int
    directions: str = "gaussian"

    def __post_init__(self) -> None:
        _check(self)

    @property
    def _directions(self) -> Directions:
        return DIRECTIONS[self.directions](self.input_dim, self.num)

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return self._directions.flops + 2 * self.num

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws the directions."""
        return self._directions.init(check_key("StepFeatures", key))

    def apply(self, params: dict[str, jax.Array], x: Any) -> jax.Array:
        """Features of `x` `(..., d)`: `(..., m)`; their derivative is 0."""
        projections = self._directions.apply(params, x)  # checks x
        return self.activate(projections, jnp.any(jnp.asarray(x) != 0, axis=-1))

    def activate(self, projections: jax.Array, nonzero: jax.Array) -> jax.Array:
        """Features from w · x `(..., m)` and whether x is not zero `(...)`."""
        # Signed sums of few different numbers are often exactly 0 (one-hot inputs,
        # "hadamard" directions); to count all of those as off takes up to half of the
        # diagonal away. So every other one is on, but none for the zero vector.
        tied = (projections == 0) & (jnp.arange(self.num) % 2 == 0)
        on = ((projections > 0) | tied) & nonzero[..., None]
        return on.astype(projections.dtype) * jnp.asarray(
            self.num**-0.5, projections.dtype
        )


@dataclasses.dataclass(frozen=True)
class ReluFeatures:
    r"""Features :math:`m^{-1/2}\,\mathrm{relu}(w_i\cdot x)` of |x||y| kappa1(cos) / 2.

    Args:
      input_dim: d.
      num: m, the number of features.
      directions: kind of directions, a key of `DIRECTIONS`.
      antithetic: every direction is used as w and as -w; relu(t) and relu(-t)
        together carry t, so the linear half of kappa1 has no noise but that of
        :math:`\sum (w\cdot x)(w\cdot y)`, none in full orthogonal blocks.

    Raises:
      TypeError, ValueError: a size or name out of range, named.

    Cost: that of the projections, half of them if antithetic.
    Guarantee: unbiased ("hadamard": nearly). The zero vector has zero features.
    Source: Cho and Saul (2009); arXiv 2106.07880, equation 5.

    >>> f = ReluFeatures(3, 8, directions="orthogonal", antithetic=True)
    >>> f.apply(f.init(jax.random.key(0)), jnp.zeros((2, 3))).tolist()[0][:2]
    [0.0, 0.0]
    """

    input_dim: int
    num: int
    directions: str = "gaussian"
    antithetic: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def _directions(self) -> Directions:
        return DIRECTIONS[self.directions](self.input_dim, self.num_directions)

    @property
    def num_directions(self) -> int:
        """How many different directions there are."""
        return (self.num + 1) // 2 if self.antithetic else self.num

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return self._directions.flops + 2 * self.num

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws the directions."""
        return self._directions.init(check_key("ReluFeatures", key))

    def apply(self, params: dict[str, jax.Array], x: Any) -> jax.Array:
        """Features of `x` `(..., d)`: `(..., m)`."""
        return self.activate(self._directions.apply(params, x))

    def activate(self, projections: jax.Array) -> jax.Array:
        """Features from w · x `(..., num_directions)`."""
        projections = projections * jnp.asarray(self.num**-0.5, projections.dtype)
        if self.antithetic:
            other = -projections[..., : self.num - projections.shape[-1]]
            projections = jnp.concatenate([projections, other], axis=-1)
        return jax.nn.relu(projections)


def _check(record: StepFeatures | ReluFeatures) -> None:
    set_sizes(record, "input_dim", "num")
    if record.directions not in DIRECTIONS:
        raise ValueError(
            f"{type(record).__name__}: directions must be one of "
            f"{', '.join(map(repr, DIRECTIONS))}, got {record.directions!r}"
        )
