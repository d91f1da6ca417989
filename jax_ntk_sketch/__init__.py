"""Feature maps whose inner products approximate neural tangent kernels.

Describe a network once (`stax`), read the description as a cheap feature map
(`feature_map`), as an exact kernel (`interop.neural_tangents.to_stax`), or as a plan of
what it costs (`FeatureMap.plan`); learn on the features (`linear_model`) and check them
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
from jax_ntk_sketch.compress import CompressedFeatureMap, compress
from jax_ntk_sketch.feature_map import FeatureMap, KernelFeatures, feature_map
from jax_ntk_sketch.nystrom import KernelLandmarks, nystrom
from jax_ntk_sketch.plan import Plan
from jax_ntk_sketch.prediction import predict_error, suggest_num_features
from jax_ntk_sketch.sparse_inputs import SparseFeatureMap, sparse_inputs
from jax_ntk_sketch.sparse_rows import SparseRows
from jax_ntk_sketch.transform import transform

__version__ = "0.1.0"
__all__ = [
    "CompressedFeatureMap",
    "FeatureMap",
    "KernelFeatures",
    "KernelLandmarks",
    "Plan",
    "SparseFeatureMap",
    "SparseRows",
    "compress",
    "data",
    "feature_map",
    "graphs",
    "interop",
    "kernels",
    "linear_model",
    "methods",
    "nystrom",
    "predict_error",
    "preprocessing",
    "random_features",
    "recipes",
    "sharding",
    "sketch",
    "sparse_inputs",
    "stax",
    "suggest_num_features",
    "transform",
    "validation",
]
