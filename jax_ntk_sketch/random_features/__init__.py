"""Random directions of several kinds, and features of kernels of the cosine.

As in `jax_ntk_sketch.sketch`, each is a frozen record of sizes with
`init(key) -> params` and `apply(params, x)`. `directions` has the directions, and
`zonal` the features `f(w.x)` of one function f.
"""

from jax_ntk_sketch.random_features.directions import (
    GaussianDirections,
    HadamardDirections,
    HadamardPatchDirections,
    OrthogonalDirections,
    SphereDirections,
)
from jax_ntk_sketch.random_features.zonal import ZonalFeatures

__all__ = [
    "GaussianDirections",
    "HadamardDirections",
    "HadamardPatchDirections",
    "OrthogonalDirections",
    "SphereDirections",
    "ZonalFeatures",
]
