"""Feature maps whose inner products approximate neural tangent kernels."""

from jax_ntk_sketch import stax

__version__ = "0.1.0"
__all__ = ["stax"]
