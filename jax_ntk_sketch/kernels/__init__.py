"""Exact theory: arc-cosine kernels, dual activations and the kernels of networks.

`kappa0` and `kappa1` are the scalar arc-cosine kernels, and `*_coefficients` their
power series. `dual` gives the kernels of any activation, and `exact_kernel` those of a
fully connected network. `rpcholesky` chooses landmarks for a kernel.
"""

from jax_ntk_sketch.kernels.arc_cosine import kappa0, kappa1
from jax_ntk_sketch.kernels.duals.activations import dual
from jax_ntk_sketch.kernels.duals.base import DualActivation
from jax_ntk_sketch.kernels.exact import exact_kernel, supports_exact_kernel
from jax_ntk_sketch.kernels.nystrom import rpcholesky
from jax_ntk_sketch.kernels.power_series import (
    kappa0_coefficients,
    kappa1_coefficients,
    ntk_coefficients,
)

__all__ = [
    "DualActivation",
    "dual",
    "exact_kernel",
    "kappa0",
    "kappa0_coefficients",
    "kappa1",
    "kappa1_coefficients",
    "ntk_coefficients",
    "rpcholesky",
    "supports_exact_kernel",
]
