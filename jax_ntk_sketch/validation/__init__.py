"""The error of a feature map: against the exact kernel, or predicted from a sample."""

from jax_ntk_sketch.validation._compare import compare
from jax_ntk_sketch.validation._expected_error import (
    expected_error,
    suggest_num_features,
)
from jax_ntk_sketch.validation._plot import plot_comparisons
from jax_ntk_sketch.validation.measures import (
    centered_relative_error,
    max_abs_error,
    relative_error,
    spectral_error,
)
from jax_ntk_sketch.validation.report import Comparison

__all__ = [
    "Comparison",
    "centered_relative_error",
    "compare",
    "expected_error",
    "max_abs_error",
    "plot_comparisons",
    "relative_error",
    "spectral_error",
    "suggest_num_features",
]
