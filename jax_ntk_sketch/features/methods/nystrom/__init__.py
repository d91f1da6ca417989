"""Method "nystrom": landmarks of the whole network, or of each layer."""

from jax_ntk_sketch.features.methods.nystrom import layers, network

__all__ = ["layers", "network"]
