"""Method "nystrom".

`network` projects on landmarks with the exact kernel of a fully connected network.
`layers` has the step of one activation, for all other networks.
"""

from jax_ntk_sketch.features.methods.nystrom import layers, network  # noqa: F401
