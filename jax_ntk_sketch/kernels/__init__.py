"""Scalar theory: arc-cosine kernels, power series, fits, closed-form kernels."""

from jax_ntk_sketch.kernels.activations import dual
from jax_ntk_sketch.kernels.arc_cosine import kappa0, kappa1
from jax_ntk_sketch.kernels.checks import check_coefficients, check_count
from jax_ntk_sketch.kernels.coefficient_fit import (
    PolynomialFit,
    fit_kappa0,
    fit_kappa1,
    fit_nonnegative,
    fit_ntk,
)
from jax_ntk_sketch.kernels.cross import cross_kernel
from jax_ntk_sketch.kernels.dual import Dual
from jax_ntk_sketch.kernels.fully_connected import (
    fully_connected_diag,
    fully_connected_kernel,
)
from jax_ntk_sketch.kernels.homogeneous import Homogeneous, relu_kernels
from jax_ntk_sketch.kernels.landmarks import (
    inverse_root,
    principal_root,
    rpcholesky,
    uniform_choice,
)
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
from jax_ntk_sketch.kernels.zonal_fit import ZonalFit, fit_zonal, truncate_zonal

__all__ = [
    "Dual",
    "Homogeneous",
    "PolynomialFit",
    "ReluBlockSeries",
    "ReluBlockValues",
    "ZonalFit",
    "check_coefficients",
    "check_count",
    "cross_kernel",
    "dual",
    "fit_kappa0",
    "fit_kappa1",
    "fit_nonnegative",
    "fit_ntk",
    "fit_zonal",
    "fully_connected_diag",
    "fully_connected_kernel",
    "inverse_root",
    "kappa0",
    "kappa0_coefficients",
    "kappa1",
    "kappa1_coefficients",
    "nngp_coefficients",
    "ntk_coefficients",
    "principal_root",
    "relu_block_series",
    "relu_block_values",
    "relu_kernels",
    "rpcholesky",
    "truncate_zonal",
    "uniform_choice",
]
