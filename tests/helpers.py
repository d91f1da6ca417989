"""What several test files share."""

import contextlib

import jax


@contextlib.contextmanager
def x64(enabled: bool = True):
    """Double precision inside the block, on every JAX that we support."""
    old = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", enabled)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", old)
