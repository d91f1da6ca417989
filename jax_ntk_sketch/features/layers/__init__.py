"""The rule of each layer; files have the names of those in `jax_ntk_sketch.stax`."""

from jax_ntk_sketch.features.layers import (  # noqa: F401
    activations,
    attention,
    combinators,
    conv,
    dense,
    graph,
    normalization,
    pool,
    shape,
)
