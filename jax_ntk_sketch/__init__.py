"""Feature maps whose inner products approximate neural tangent kernels.

A network is described once, with `stax`. The description is read as a feature map by
`feature_map`, as an exact kernel by `interop.neural_tangents.to_stax`, and as a plan of
sizes and costs by `FeatureMap.plan`. `linear_model` learns on the features, and
`validation` compares them with the exact kernel.
"""

from jax_ntk_sketch import (
    data,
    graphs,
    interop,
    io,
    kernels,
    linear_model,
    methods,
    preprocessing,
    recipes,
    sharding,
    sketch,
    stax,
    validation,
)
from jax_ntk_sketch._plan import Plan
from jax_ntk_sketch._protocol import (
    FeatureMap,
    KernelFeatures,
    NNGPFirst,
    NTKFirst,
)
from jax_ntk_sketch.batches.sparse_rows import SparseRows
from jax_ntk_sketch.features._compress import CompressedFeatureMap, compress
from jax_ntk_sketch.features._feature_map import feature_map
from jax_ntk_sketch.features._landmarks import landmark_features
from jax_ntk_sketch.features._sparse_inputs import with_sparse_inputs
from jax_ntk_sketch.features._transform import transform
from jax_ntk_sketch.model import Model, fit
from jax_ntk_sketch.selection import Weighed, choose, weigh

__all__ = [
    "CompressedFeatureMap",
    "FeatureMap",
    "KernelFeatures",
    "Model",
    "NNGPFirst",
    "NTKFirst",
    "Plan",
    "SparseRows",
    "Weighed",
    "choose",
    "compress",
    "data",
    "feature_map",
    "fit",
    "graphs",
    "interop",
    "io",
    "kernels",
    "landmark_features",
    "linear_model",
    "methods",
    "preprocessing",
    "recipes",
    "sharding",
    "sketch",
    "stax",
    "transform",
    "validation",
    "weigh",
    "with_sparse_inputs",
]

__version__ = "0.1.0"
