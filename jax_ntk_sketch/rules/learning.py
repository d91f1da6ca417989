"""Steps that learn their parameters from a sample; examples in batches."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch.rules.stage import Features, Stage

__all__ = ["fit", "in_batches", "peak_bytes"]

# Examples of a sample that a step works on at a time.
_FIT_BATCH = 32


def fit(
    built: list[Stage],
    keys: jax.Array | list[jax.Array],
    sample: Features,
    inputs: dict[str, Any],
) -> list[Any]:
    """Parameters of all stages, each learned from what those before it return."""
    last = max(i for i, stage in enumerate(built) if stage.fit)
    f, params = sample, []
    for i, (stage, key) in enumerate(zip(built, keys, strict=True)):
        p = stage.learn(key, f, **inputs)
        params.append(p)
        if i < last:

            def run(some, stage=stage, p=p):
                return stage.run(p, some[0], **some[1])

            f = in_batches(run, (f, inputs), _FIT_BATCH)
    return params


def peak_bytes(built: list[Stage], count: int) -> int:
    """Peak bytes of `fit` with a sample of `count`, in float32."""
    last = max((i for i, stage in enumerate(built) if stage.fit), default=0)
    most = 0
    for before, stage in itertools.pairwise(built[: last + 1]):
        batch = min(count, _FIT_BATCH)
        passing = count * stage.spec.floats() + batch * stage.floats
        most = max(most, count * before.spec.floats() + stage.fit_floats + passing)
    return 4 * most


def in_batches(run: Callable[[Any], Any], x: Any, size: int) -> Any:
    """`run` on consecutive rows of an array or of several, `size` at a time, joined."""
    total = len(jax.tree.leaves(x)[0])
    count = total // size
    if count == 0:
        return run(x)

    def blocks(z: jax.Array) -> jax.Array:
        return z[: count * size].reshape(count, size, *z.shape[1:])

    whole = jax.lax.map(run, jax.tree.map(blocks, x))
    out = jax.tree.map(lambda z: z.reshape(count * size, *z.shape[2:]), whole)
    if count * size == total:
        return out
    rest = run(jax.tree.map(lambda z: z[count * size :], x))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)
