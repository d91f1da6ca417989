"""The approximation methods; each file has the name of the string that selects it."""

from jax_ntk_sketch.features.methods import (  # noqa: F401
    exact,
    ntk_random_features,
    ntk_sketch,
    nystrom,
    one_pass,
    variance_reduced,
)
