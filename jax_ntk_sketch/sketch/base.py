"""What every oblivious sketch shares: checks of sizes, keys and inputs."""

import operator
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["check_input", "check_key", "check_size", "random_signs", "set_sizes"]


def check_size(owner: str, name: str, value: Any, least: int = 1) -> int:
    """`value` as an `int` of at least `least`, or an error that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(
            f"{owner}: {name} must be an integer >= {least}, got {value!r}"
        )
    return number


def set_sizes(record: Any, *names: str) -> None:
    """Checks integer fields of a frozen record and stores them as plain `int`.

    Integers of NumPy are equal to ours, but lack some of their methods.
    """
    for name in names:
        size = check_size(type(record).__name__, name, getattr(record, name))
        object.__setattr__(record, name, size)


def check_key(owner: str, key: Any) -> jax.Array:
    """A single typed PRNG key; a legacy `uint32` key is wrapped, not refused.

    Raises:
      TypeError: `key` is not a PRNG key (an integer seed, say).
      ValueError: `key` is an array of keys.
    """
    if isinstance(key, int) or not hasattr(key, "dtype"):
        raise TypeError(
            f"{owner}: key must be a JAX PRNG key, got {key!r}; "
            "make one with jax.random.key(seed)"
        )
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.dtype != jnp.uint32:
            raise TypeError(
                f"{owner}: key must be a JAX PRNG key (jax.random.key(seed)), "
                f"got an array of {key.dtype}"
            )
        try:
            key = jax.random.wrap_key_data(key)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{owner}: key is a uint32 array of shape {key.shape}, which is no "
                "legacy PRNG key; make a key with jax.random.key(seed)"
            ) from error
    if key.shape != ():
        raise ValueError(
            f"{owner}: key must be one key, got an array of keys of shape "
            f"{key.shape}; use jax.vmap for a batch of keys"
        )
    return key


def check_input(owner: str, name: str, x: Any, dim: int) -> jax.Array:
    """`x` as a floating-point array `(..., dim)`, or an error that names it."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{owner}: {name} must be real, got {x.dtype}")
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(
            f"{owner}: the last axis of {name} must have size {dim}, "
            f"got shape {x.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.result_type(float))
    return x


def random_signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Independent signs ±1, int8.

    `jax.random.rademacher` compares floats of the default precision, so that its
    signs change with the x64 flag; these are random bits, and cheaper.
    """
    bits = jax.random.bits(key, shape, jnp.uint8)
    return 1 - 2 * (bits & 1).astype(jnp.int8)
