"""Method "variance_reduced": the whole network as one zonal function, or each layer."""

from jax_ntk_sketch.features.methods.variance_reduced import layers, network

__all__ = ["layers", "network"]
