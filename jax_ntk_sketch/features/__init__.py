"""Feature maps: a network and a method, read as features of the network's kernel.

`layers` has a file for each file of `jax_ntk_sketch.stax`, and `methods` one for each
method. A new layer registers with `layer_rule`, and a new method with `activation_rule`
or `network_rule`; CONTRIBUTING.md has both as worked examples.
"""

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from jax_ntk_sketch._protocol import FeatureMap
    from jax_ntk_sketch.features._compress import CompressedFeatureMap
    from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
    from jax_ntk_sketch.features._landmarks import LandmarkFeatureMap
    from jax_ntk_sketch.features._sparse_inputs import SparseFeatureMap

    # mypy checks that these classes satisfy the protocol.
    _MAPS: list[type[FeatureMap]] = [
        CompressedFeatureMap,
        LandmarkFeatureMap,
        NetworkFeatureMap,
        SparseFeatureMap,
    ]

__all__ = [
    "Context",
    "Features",
    "Spec",
    "Step",
    "activation_rule",
    "layer_rule",
    "network_rule",
]
