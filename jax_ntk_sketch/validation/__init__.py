"""How good an approximation is: feature maps against exact kernels."""

from jax_ntk_sketch.validation.comparison import compare
from jax_ntk_sketch.validation.measures import (
    centred_relative_error,
    fitted_slope,
    max_entry_error,
    relative_error,
    spectral_error,
)
from jax_ntk_sketch.validation.report import (
    Comparison,
    Estimate,
    KernelErrors,
    markdown_table,
    plot_comparisons,
)

__all__ = [
    "Comparison",
    "Estimate",
    "KernelErrors",
    "centred_relative_error",
    "compare",
    "fitted_slope",
    "markdown_table",
    "max_entry_error",
    "plot_comparisons",
    "relative_error",
    "spectral_error",
]
