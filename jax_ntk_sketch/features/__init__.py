"""Feature maps: a network and a method, read as features of the network's kernel.

`layers` has a file for each file of `jax_ntk_sketch.stax`, and `methods` one for each
method. A new layer registers with `layer_rule`, and a new method with `activation_rule`
or `network_rule`; CONTRIBUTING.md has both as worked examples.
"""

# These register their rules.
from jax_ntk_sketch.features import layers, methods  # noqa: F401
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import (
    Context,
    Step,
    activation_rule,
    layer_rule,
    network_rule,
)

__all__ = [
    "Context",
    "Features",
    "Spec",
    "Step",
    "activation_rule",
    "layer_rule",
    "network_rule",
]
