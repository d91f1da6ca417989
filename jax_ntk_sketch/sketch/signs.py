"""Random signs."""

import jax
import jax.numpy as jnp

from jax_ntk_sketch._typing import Array, Key, Shape


def random_signs(key: Key, shape: Shape) -> Array:
    """Draw independent signs ±1, int8.

    `jax.random.rademacher` compares floats of the default precision, so that its
    signs change with the x64 flag. These are random bits, and cheaper.
    """
    bits = jax.random.bits(key, shape, jnp.uint8)
    return 1 - 2 * (bits & 1).astype(jnp.int8)
