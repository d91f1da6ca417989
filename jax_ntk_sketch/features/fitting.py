"""Steps that learn from data, and functions of many examples in batches."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch._typing import Array, Key, PyTree
from jax_ntk_sketch.features.state import AnyFeatures
from jax_ntk_sketch.features.step import Step

# Examples of a sample that a step works on at a time.
_FIT_BATCH = 32


def run_steps(
    steps: Sequence[Step],
    params: Sequence[PyTree],
    f: AnyFeatures,
    inputs: dict[str, PyTree],
) -> PyTree:
    """Return the features after several steps, given their parameters and inputs."""
    for step, step_params in zip(steps, params, strict=True):
        f = step.run(step_params, f, **inputs)
    return f


def draw_params(
    steps: Sequence[Step],
    keys: Sequence[Key] | Key,
    sample: AnyFeatures | None,
    inputs: dict[str, PyTree],
) -> list[PyTree]:
    """Return the parameters of steps; some learn from what the steps before return.

    Args:
      steps: the steps.
      keys: a key for each step.
      sample: the features of the sample before the first step. With None, steps that
        learn have parameters of the right shapes only.
      inputs: the extra inputs of the sample, by name.
    """
    if sample is None:
        return [step.init(key) for step, key in zip(steps, keys, strict=True)]
    last = max((i for i, step in enumerate(steps) if step.fit), default=-1)
    f, params = sample, []
    for i, (step, key) in enumerate(zip(steps, keys, strict=True)):
        learned = step.learn(key, f, **inputs)
        params.append(learned)
        if i < last:

            def run(rows: Any, step: Step = step, learned: PyTree = learned) -> Any:
                return step.run(learned, rows[0], **rows[1])

            f = in_batches(run, (f, inputs), _FIT_BATCH)
    return params


def fit_peak_bytes(steps: Sequence[Step], count: int) -> int:
    """Return the peak bytes of `draw_params` with a sample of `count`, in float32."""
    last = max((i for i, step in enumerate(steps) if step.fit), default=0)
    batch = min(count, _FIT_BATCH)
    peaks = [
        count * (before.spec.live_elements() + step.spec.live_elements())
        + step.fit_elements
        + batch * step.live_elements
        for before, step in itertools.pairwise(steps[: last + 1])
    ]
    return 4 * max(peaks, default=0)


def in_batches(run: Callable[[PyTree], PyTree], x: PyTree, size: int) -> PyTree:
    """Return `run(x)`, computed for consecutive rows of x, `size` at a time.

    Args:
      run: a function of rows, which are independent of each other.
      x: arrays with equally many rows.
      size: at least 1.
    """
    total = len(jax.tree.leaves(x)[0])
    count = total // size
    if count == 0:
        return run(x)

    def blocks(z: Array) -> Array:
        return z[: count * size].reshape(count, size, *z.shape[1:])

    whole = jax.lax.map(run, jax.tree.map(blocks, x))
    out = jax.tree.map(lambda z: z.reshape(count * size, *z.shape[2:]), whole)
    if count * size == total:
        return out
    rest = run(jax.tree.map(lambda z: z[count * size :], x))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)
