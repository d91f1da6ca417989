"""Scalar theory: arc-cosine kernels, power series, fits, closed-form kernels."""

from jax_ntk_sketch.kernels.arc_cosine import kappa0, kappa1, relu_kernels

__all__ = ["kappa0", "kappa1", "relu_kernels"]
