"""The expected error of a kernel matrix, for steps whose noise has a formula."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._typing import Array, Examples
from jax_ntk_sketch.features.state import Features
from jax_ntk_sketch.features.step import Step

# The formula is averaged over the pairs of this many examples at most.
_MAX_EXAMPLES = 256


def formula_error(
    steps: list[Step], sample: Examples | None, num_examples: int | None = None
) -> float | None:
    r"""Return the expected :math:`\|K - \Psi\Psi^\top\|_F / \|K\|_F`, if it is known.

    Args:
      steps: the steps of the map of one kernel.
      sample: examples `(n, *shape)`, for their cosines; None for cosines spread evenly
        over [0, 0.9].
      num_examples: the size of the data that the error is for; by default n. It weighs
        the diagonal of the matrix against the rest.

    Returns:
      A float. None unless exactly one step has noise and a formula for it, and under
      `jit`.
    """
    known = [i for i, step in enumerate(steps) if step.error is not None]
    if len(known) != 1 or isinstance(sample, jax.core.Tracer):
        return None
    error = steps[known[0]].error
    assert error is not None
    # The sample that a plan is made for may be known by its shape alone.
    if sample is None or isinstance(sample, jax.ShapeDtypeStruct):
        exact, square = error(np.linspace(0, 0.9, 46))
        return float(np.sqrt(square.mean() / (exact**2).mean()))
    n = len(sample)
    some = np.asarray(sample[:: max(1, n // _MAX_EXAMPLES)][:_MAX_EXAMPLES])
    f = first_features(jnp.asarray(some, jnp.result_type(some, float)))
    for step in steps[: known[0]]:
        f = step.apply(step.init(jax.random.key(0)), f)
    x = np.asarray(f.nngp, np.float64)
    norms = np.linalg.norm(x, axis=1)
    unit = x / np.where(norms > 0, norms, 1)[:, None]
    exact, square = error(np.clip(unit @ unit.T, -1, 1))
    weight = np.outer(norms, norms) ** 2
    if len(x) > 1:
        # A sample has too few pairs, so that its diagonal would weigh too much.
        off_diagonal = ~np.eye(len(x), dtype=bool)
        weight[off_diagonal] *= ((num_examples or n) - 1) / (len(x) - 1)
    return float(np.sqrt((weight * square).sum() / (weight * exact**2).sum()))


def first_features(x: Array) -> Features:
    """Return examples `(n, *shape)` as the features that enter the first step."""
    return Features(x, x[..., :0], jnp.zeros(x.shape[0], x.dtype))
