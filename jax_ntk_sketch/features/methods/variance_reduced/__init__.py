"""Method "variance_reduced".

`network` reads a network whose kernel is a function of the cosine as one step. `layers`
has the step of one activation, for all other networks.
"""

from jax_ntk_sketch.features.methods.variance_reduced import layers, network  # noqa: F401
