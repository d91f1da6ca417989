"""Scalar theory: arc-cosine kernels, power series, fits, closed-form kernels."""

from jax_ntk_sketch.kernels.arc_cosine import kappa0, kappa1, relu_kernels
from jax_ntk_sketch.kernels.checks import check_coefficients, check_count
from jax_ntk_sketch.kernels.power_series import (
    ReluBlockSeries,
    ReluBlockValues,
    kappa0_coefficients,
    kappa1_coefficients,
    nngp_coefficients,
    ntk_coefficients,
    relu_block_series,
    relu_block_values,
)

__all__ = [
    "ReluBlockSeries",
    "ReluBlockValues",
    "check_coefficients",
    "check_count",
    "kappa0",
    "kappa0_coefficients",
    "kappa1",
    "kappa1_coefficients",
    "nngp_coefficients",
    "ntk_coefficients",
    "relu_block_series",
    "relu_block_values",
    "relu_kernels",
]
