"""Feature maps whose inner products approximate neural tangent kernels.

Describe a network once (`stax`), read the description as a cheap feature map
(`feature_map`), as an exact kernel (`interop.neural_tangents.to_stax`), or as a plan of
what it costs (`NetworkFeatureMap.plan`); learn on the features (`linear_model`) and check them
against the exact kernel (`validation`).
"""

from jax_ntk_sketch import (
    data,
    graphs,
    interop,
    kernels,
    linear_model,
    methods,
    preprocessing,
    random_features,
    recipes,
    sharding,
    sketch,
    stax,
    validation,
)
from jax_ntk_sketch._plan import Plan
from jax_ntk_sketch._protocol import FeatureMap, KernelFeatures
from jax_ntk_sketch.batches.sparse_rows import SparseRows
from jax_ntk_sketch.features._compress import CompressedFeatureMap, compress
from jax_ntk_sketch.features._feature_map import (
    NetworkFeatureMap,
    feature_map,
)
from jax_ntk_sketch.features._landmarks import LandmarkFeatureMap, landmark_features
from jax_ntk_sketch.features._sparse_inputs import SparseFeatureMap, with_sparse_inputs
from jax_ntk_sketch.features._transform import transform

__all__ = [
    "CompressedFeatureMap",
    "FeatureMap",
    "KernelFeatures",
    "LandmarkFeatureMap",
    "NetworkFeatureMap",
    "Plan",
    "SparseFeatureMap",
    "SparseRows",
    "compress",
    "data",
    "feature_map",
    "graphs",
    "interop",
    "kernels",
    "landmark_features",
    "linear_model",
    "methods",
    "preprocessing",
    "random_features",
    "recipes",
    "sharding",
    "sketch",
    "stax",
    "transform",
    "validation",
    "with_sparse_inputs",
]

__version__ = "0.1.0"
