"""Random features of a kernel of the angle: one function of many projections."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._checks import check_input, check_key, set_sizes
from jax_ntk_sketch.kernels.gegenbauer import gegenbauer_recurrence
from jax_ntk_sketch.random_features.directions import (
    HadamardDirections,
    OrthogonalDirections,
)

__all__ = ["ZonalFeatures", "sphere_dim", "zonal_sum"]

# Up to so many dimensions Haar rotations are cheap, and Hadamard transforms are not yet
# close enough to them.
_HAAR = 64


def sphere_dim(input_dim: int) -> int:
    """D, of the sphere on which the directions of `ZonalFeatures` are uniform."""
    if input_dim <= _HAAR:
        return max(2, input_dim)
    return HadamardDirections(input_dim, 1).padded_dim


@dataclasses.dataclass(frozen=True)
class ZonalFeatures:
    r"""Features :math:`m^{-1/2} f(w_i \cdot u)`, :math:`f = \sum_l f_l h_l`, of unit u.

    With :math:`h_l` the orthonormal Gegenbauer polynomials of the sphere that the
    directions are on, the inner product of features estimates
    :math:`\sum_l f_l^2 P_l(u \cdot v)`.

    Args:
      input_dim: d.
      num: m, the number of features.
      weights: f_l by degree l.

    Cost: that of the projections (blocks of Hadamard transforms; up to 64 dimensions a
    dense product) and 3 operations a degree and column.
    Guarantee: unbiased for every choice of weights (up to 64 dimensions exactly; beyond
    as nearly as three rounds of signs and Hadamard transforms are a rotation). The
    variance is `kernels.ZonalFit.variance`.
    Source: Schoenberg (1942) for the expansion; `kernels.gegenbauer`.

    >>> f = ZonalFeatures(3, 8, (0.0, 0.0, 1.0))
    >>> f.apply(f.init(jax.random.key(0)), jnp.eye(3)).shape
    (3, 8)
    """

    input_dim: int
    num: int
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        set_sizes(self, "input_dim", "num")
        if not self.weights:
            raise ValueError("ZonalFeatures: weights must not be empty")

    @property
    def _directions(self) -> HadamardDirections | OrthogonalDirections:
        kind = OrthogonalDirections if self.input_dim <= _HAAR else HadamardDirections
        return kind(max(2, self.input_dim), self.num)

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return self._directions.flops + 5 * len(self.weights) * self.num

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws the directions."""
        return self._directions.init(check_key("ZonalFeatures", key))

    def apply(self, params: dict[str, jax.Array], u: Any) -> jax.Array:
        """Features of unit vectors `u` `(..., d)`: `(..., m)`, dtype of `u`."""
        u = check_input("ZonalFeatures", "u", u, self.input_dim)
        if self.input_dim == 1:  # two points are no sphere: take them on a circle
            u = jnp.concatenate([u, jnp.zeros_like(u)], axis=-1)
        t = self._directions.apply(params, u)
        dim = sphere_dim(self.input_dim)
        return zonal_sum(t * dim**-0.5, self.weights, dim) * self.num**-0.5


def zonal_sum(t: jax.Array, weights: Any, dim: int) -> jax.Array:
    r"""The sum of :math:`f_l h_l(t)`, backwards, by Clenshaw's scheme.

    With :math:`s p_j = g_{j+1} p_{j+1} + c_j p_j + g_j p_{j-1}` it is :math:`b_0` of
    :math:`b_j = f_j + (s - c_j) b_{j+1} / g_{j+1} - g_{j+1} b_{j+2} / g_{j+2}`, so that
    two arrays are alive whatever the degree. :math:`p_j` is :math:`h_j` and s is t; for
    an even function :math:`h_{2j}` and :math:`t^2`, in half as many steps.

    Args:
      t: w.u of unit vectors.
      weights: f_0, f_1, ...: numbers, or arrays that broadcast with t.
      dim: of the sphere.
    """
    even = all(isinstance(f, float | int) and f == 0 for f in weights[1::2])
    a = np.append(0.0, gegenbauer_recurrence(len(weights) + 5, dim))
    g, c = a, np.zeros(len(a))
    if even:  # the square of multiplication by t
        weights, t = weights[::2], t * t
        half = len(weights) + 1
        c = a[0 : 2 * half : 2] ** 2 + a[1 : 2 * half : 2] ** 2
        g = np.append(0.0, a[1 : 2 * half : 2] * a[2 : 2 * half + 1 : 2])
    after: Any = 0.0
    now = weights[-1] + jnp.zeros_like(t)
    for j in range(len(weights) - 2, -1, -1):
        up, back = 1 / float(g[j + 1]), float(g[j + 1] / g[j + 2])
        step = (t * up - float(c[j]) * up) * now + weights[j]
        now, after = step - back * after, now
    return now
