"""Random signs."""

import jax
import jax.numpy as jnp


def random_signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Independent signs ±1, int8.

    `jax.random.rademacher` compares floats of the default precision, so that its
    signs change with the x64 flag; these are random bits, and cheaper.
    """
    bits = jax.random.bits(key, shape, jnp.uint8)
    return 1 - 2 * (bits & 1).astype(jnp.int8)
