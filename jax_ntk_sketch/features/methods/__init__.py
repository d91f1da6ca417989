"""The approximation methods; each file has the name of the string that selects it."""

from jax_ntk_sketch.features.methods import (
    exact,
    ntk_random_features,
    ntk_sketch,
    nystrom,
    one_pass,
    variance_reduced,
)

__all__ = [
    "exact",
    "ntk_random_features",
    "ntk_sketch",
    "nystrom",
    "one_pass",
    "variance_reduced",
]
