"""Random features of a kernel of the cosine: one function of many projections."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._checks import check_input, check_key, set_sizes
from jax_ntk_sketch._typing import Array, ArrayLike, Key
from jax_ntk_sketch.kernels.gegenbauer import gegenbauer_recurrence
from jax_ntk_sketch.random_features.directions import (
    MAX_DENSE_DIM,
    Directions,
    HadamardDirections,
    OrthogonalDirections,
)


def uniform_directions(input_dim: int, output_dim: int) -> Directions:
    """Return directions that are (nearly) uniform on a sphere.

    Haar rotations up to 64 dimensions, where they are cheap. One dimension is embedded
    in two, because two points are not a sphere.
    """
    small = input_dim <= MAX_DENSE_DIM
    kind = OrthogonalDirections if small else HadamardDirections
    return kind(max(2, input_dim), output_dim)


def sphere_dim(input_dim: int) -> int:
    """Return D, the dimension of the sphere that `uniform_directions` are on."""
    return uniform_directions(input_dim, 1).sphere_dim


@dataclasses.dataclass(frozen=True)
class ZonalFeatures:
    r"""Features :math:`m^{-1/2} f(w_i \cdot u)`, :math:`f = \sum_l f_l h_l`, of unit u.

    With :math:`h_l` the orthonormal Gegenbauer polynomials of the sphere that the
    directions are on, and :math:`P_l` the multiples with :math:`P_l(1) = 1`, the inner
    product of features estimates :math:`\sum_l f_l^2 P_l(u \cdot v)`.

    Args:
      input_dim: d.
      num_features: m.
      weights: f_l by degree l.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is below 1, or `weights` is empty.

    Cost: the projections (blocks of Hadamard transforms; up to 64 dimensions a dense
    product) and 3 operations a degree and column.
    Guarantee: unbiased for all weights (up to 64 dimensions exactly; beyond as nearly
    as three rounds of signs and Hadamard transforms are a rotation). The variance is
    `jax_ntk_sketch.kernels.zonal_fit.ZonalFit.variance`.
    Source: Schoenberg (1942) for the expansion; `jax_ntk_sketch.kernels.gegenbauer`.

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch.random_features import ZonalFeatures
    >>> f = ZonalFeatures(3, 8, (0.0, 0.0, 1.0))
    >>> f.apply(f.init(jax.random.key(0)), jnp.eye(3)).shape
    (3, 8)
    """

    input_dim: int
    num_features: int
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        set_sizes(self, "input_dim", "num_features")
        if not self.weights:
            raise ValueError("ZonalFeatures: weights must not be empty, got ()")

    @property
    def _directions(self) -> Directions:
        return uniform_directions(self.input_dim, self.num_features)

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        return self._directions.flops + 5 * len(self.weights) * self.num_features

    def init(self, key: Key) -> dict[str, Array]:
        """Draw the directions."""
        return self._directions.init(check_key("ZonalFeatures", key))

    def apply(self, params: dict[str, Array], u: ArrayLike) -> Array:
        """Return features `(..., m)` of unit vectors `u` `(..., d)`, dtype of `u`."""
        u = check_input("ZonalFeatures", "u", u, self.input_dim)
        if self.input_dim == 1:
            u = jnp.concatenate([u, jnp.zeros_like(u)], axis=-1)
        projections = self._directions.apply(params, u)
        dim = sphere_dim(self.input_dim)
        f = gegenbauer_series_sum(projections * dim**-0.5, self.weights, dim)
        return f * self.num_features**-0.5


def gegenbauer_series_sum(
    t: Array, weights: Sequence[float] | Sequence[Array], dim: int
) -> Array:
    r"""Return the sum of :math:`f_l h_l(t)`, by Clenshaw's backward scheme.

    Let :math:`s p_j = g_{j+1} p_{j+1} + c_j p_j + g_j p_{j-1}`. The sum is :math:`b_0`
    of :math:`b_j = f_j + (s - c_j) b_{j+1} / g_{j+1} - g_{j+1} b_{j+2} / g_{j+2}`, so
    that two arrays are alive whatever the degree. In general :math:`p_j` is :math:`h_j`
    and s is t. For an even function they are :math:`h_{2j}` and :math:`t^2`, which
    takes half as many steps.

    Args:
      t: w · u of unit vectors, any shape.
      weights: f_0, f_1, ...: numbers, or arrays that broadcast with t.
      dim: the dimension of the sphere.
    """
    even = all(isinstance(f, float | int) and f == 0 for f in weights[1::2])
    a = np.append(0.0, gegenbauer_recurrence(len(weights) + 5, dim))
    g, c = a, np.zeros(len(a))
    if even:  # the square of multiplication by t
        weights, t = weights[::2], t * t
        half = len(weights) + 1
        c = a[0 : 2 * half : 2] ** 2 + a[1 : 2 * half : 2] ** 2
        g = np.append(0.0, a[1 : 2 * half : 2] * a[2 : 2 * half + 1 : 2])
    b, b_next = weights[-1] + jnp.zeros_like(t), jnp.zeros((), t.dtype)
    for j in range(len(weights) - 2, -1, -1):
        scale, ratio = 1 / float(g[j + 1]), float(g[j + 1] / g[j + 2])
        step = (t * scale - float(c[j]) * scale) * b + weights[j]
        b, b_next = step - ratio * b_next, b
    return b
