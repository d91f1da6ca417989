"""Scalar theory: arc-cosine kernels, power series, fits, closed-form kernels."""

from jax_ntk_sketch.kernels.arc_cosine import kappa0, kappa1
from jax_ntk_sketch.kernels.duals.activations import dual
from jax_ntk_sketch.kernels.duals.base import DualActivation
from jax_ntk_sketch.kernels.duals.homogeneous import Homogeneous, relu_kernels
from jax_ntk_sketch.kernels.exact import cross_kernel
from jax_ntk_sketch.kernels.fully_connected import (
    fully_connected_diag,
    fully_connected_kernel,
)
from jax_ntk_sketch.kernels.nystrom import (
    choose_uniform,
    inverse_sqrt,
    principal_sqrt,
    rpcholesky,
)
from jax_ntk_sketch.kernels.polynomial_fit import (
    PolynomialFit,
    fit_kappa0,
    fit_kappa1,
    fit_nonnegative,
    fit_ntk,
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
from jax_ntk_sketch.kernels.zonal_fit import (
    ZonalFit,
    zonal_fit_low_degree,
    zonal_fit_min_error,
)

__all__ = [
    "DualActivation",
    "Homogeneous",
    "PolynomialFit",
    "ReluBlockSeries",
    "ReluBlockValues",
    "ZonalFit",
    "choose_uniform",
    "cross_kernel",
    "dual",
    "fit_kappa0",
    "fit_kappa1",
    "fit_nonnegative",
    "fit_ntk",
    "fully_connected_diag",
    "fully_connected_kernel",
    "inverse_sqrt",
    "kappa0",
    "kappa0_coefficients",
    "kappa1",
    "kappa1_coefficients",
    "nngp_coefficients",
    "ntk_coefficients",
    "principal_sqrt",
    "relu_block_series",
    "relu_block_values",
    "relu_kernels",
    "rpcholesky",
    "zonal_fit_low_degree",
    "zonal_fit_min_error",
]
