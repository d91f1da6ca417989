"""Random features of dual kernels, built on random directions of several kinds."""

from jax_ntk_sketch.random_features.arc_cosine import ReluFeatures, StepFeatures
from jax_ntk_sketch.random_features.directions import (
    DIRECTIONS,
    Directions,
    GaussianDirections,
    HadamardDirections,
    HadamardPatchDirections,
    NormalLengths,
    OrthogonalDirections,
    SphereDirections,
)
from jax_ntk_sketch.random_features.zonal import ZonalFeatures, sphere_dim, zonal_sum

__all__ = [
    "DIRECTIONS",
    "Directions",
    "GaussianDirections",
    "HadamardDirections",
    "HadamardPatchDirections",
    "NormalLengths",
    "OrthogonalDirections",
    "ReluFeatures",
    "SphereDirections",
    "StepFeatures",
    "ZonalFeatures",
    "sphere_dim",
    "zonal_sum",
]
