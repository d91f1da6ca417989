"""How good an approximation is: feature maps against exact kernels."""

from jax_ntk_sketch.validation.comparison import compare
from jax_ntk_sketch.validation.measures import (
    centered_relative_error,
    loglog_slope,
    max_abs_error,
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
    "centered_relative_error",
    "compare",
    "loglog_slope",
    "markdown_table",
    "max_abs_error",
    "plot_comparisons",
    "relative_error",
    "spectral_error",
]
