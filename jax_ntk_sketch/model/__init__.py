"""The whole job in one call: `jax_ntk_sketch.fit`, and the `Model` that it returns."""

from jax_ntk_sketch.model import file as file
from jax_ntk_sketch.model._fit import fit
from jax_ntk_sketch.model.error_estimate import ErrorEstimate
from jax_ntk_sketch.model.model import Model

__all__ = ["ErrorEstimate", "Model", "fit"]
