"""The parameters of steps, of which some learn from data."""

import itertools
from collections.abc import Sequence

from jax_ntk_sketch._typing import Key, PyTree
from jax_ntk_sketch.features.state import AnyFeatures
from jax_ntk_sketch.features.step import Step


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
        params.append(step.learn(key, f, **inputs))
        if i < last:
            f = step.run_on_sample(params[-1], f, inputs)
    return params


def fit_peak_bytes(steps: Sequence[Step], count: int) -> int:
    """Return the peak bytes of `draw_params` with a sample of `count`, in float32."""
    last = max((i for i, step in enumerate(steps) if step.fit), default=0)
    peaks = [
        count * (before.spec.live_elements() + step.spec.live_elements())
        + step.fit_elements
        + min(count, step.sample_batch) * step.live_elements
        for before, step in itertools.pairwise(steps[: last + 1])
    ]
    return 4 * max(peaks, default=0)
