"""How large the kernel's error will be, and how many features are enough."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import methods, stax
from jax_ntk_sketch._checks import check_key, check_size
from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap, feature_map

__all__ = ["expected_error", "suggest_num_features"]

# Columns beyond which nothing is suggested.
_MOST = 2**17


def expected_error(
    fmap: NetworkFeatureMap,
    sample: Any,
    *,
    key: jax.Array | None = None,
    num_examples: int | None = None,
    num_seeds: int = 3,
    num_pairs: int = 64,
) -> float:
    r"""The expected relative error :math:`|K - \Psi\Psi^\top|_F / |K|_F` on data.

    From the variance formulas of the plan where the method has them; elsewhere from a
    trial: a few draws of the features of `num_pairs` examples against their exact
    kernel. Either is a prediction for other examples like them, of which there are
    `num_examples`: the diagonal and the rest are weighted as they will be.

    Args:
      fmap: a map with `get` "ntk" or "nngp".
      sample: `(n, *shape)`, n >= 4 examples. Methods that learn from data learn from
        those that the trial does not take.
      key: for the trial's draws; by default `jax.random.key(0)`.
      num_examples: of the data; by default n.
      num_seeds: draws of a trial, >= 1.
      num_pairs: examples of a trial; half of the sample at most.

    Returns:
      The error; within a factor of 1.5 on the data that it was tried on.

    Raises:
      TypeError, ValueError: a bad argument, named.

    Cost: of formulas, 256^2 cosines; of a trial, features and the exact kernel of
    `num_pairs` examples: for images their square times that of the pixels.

    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> x = np.random.default_rng(0).normal(size=(100, 20)).astype(np.float32)
    >>> fmap = feature_map(net, num_features=512, method="variance_reduced")
    >>> 0.01 < expected_error(fmap, x) < 0.2
    True
    """
    if not isinstance(fmap, NetworkFeatureMap):
        raise TypeError(
            f"expected_error: fmap must be a NetworkFeatureMap, got {type(fmap).__name__}"
        )
    if not isinstance(fmap.get, str):
        raise ValueError(
            f'expected_error: fmap.get must be "ntk" or "nngp", got {fmap.get!r}'
        )
    sample = np.asarray(sample)
    if sample.ndim < 2 or len(sample) < 4:
        raise ValueError(
            "expected_error: sample must hold at least 4 examples, (n, d) or (n, "
            f"*spatial, c), got shape {sample.shape}"
        )
    n = check_size("expected_error", "num_examples", num_examples or len(sample))
    check_size("expected_error", "num_seeds", num_seeds)
    fmap = fmap.resolve(sample)
    known = fmap.expected_error(sample, num_examples=n)
    if isinstance(known, float):
        return known
    key = check_key("expected_error", jax.random.key(0) if key is None else key)
    order = np.asarray(jax.random.permutation(key, len(sample)))
    count = min(num_pairs, len(sample) // 2)
    tried, rest = sample[order[:count]], sample[order[count:]]
    oracle = NetworkFeatureMap(fmap.net, 1, fmap.get, methods.Exact())
    exact = _gram(oracle.apply(oracle.init(key, tried), tried))
    squares = 0.0
    for draw in jax.random.split(key, num_seeds):
        phi = fmap.apply(fmap.init(draw, rest), tried)
        squares = squares + (_gram(phi) - exact) ** 2 / num_seeds
    weight = np.full((count, count), (n - 1) / max(count - 1, 1))
    np.fill_diagonal(weight, 1.0)
    return float(np.sqrt((weight * squares).sum() / (weight * exact**2).sum()))


def suggest_num_features(
    net: stax.Layer,
    example: Any,
    *,
    relative_error: float,
    get: Kind = "ntk",
    method: str | methods.Method = "auto",
    key: jax.Array | None = None,
) -> int:
    """The fewest columns whose expected relative error is at most `relative_error`.

    Args:
      net: the network.
      example: `(n, *shape)` examples like those to come; or the shape of one where the
        method's plan knows its error.
      relative_error: wanted, in (0, 1).
      get: "ntk" or "nngp".
      method: as for `feature_map`; "variance_reduced" for "auto", with the objective
        "kernel", since that is the error meant.
      key: for trials, see `expected_error`.

    Returns:
      `num_features`, to within 6 %.

    Raises:
      ValueError: the error is not reached with 131,072 columns, whose error is said; a
        shape where a sample is needed.

    Cost: some ten plans or trials (`expected_error`), the largest at twice the columns.

    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> 100 < suggest_num_features(net, (784,), relative_error=0.05) < 4000
    True
    """
    if not 0 < relative_error < 1:
        raise ValueError(
            "suggest_num_features: relative_error must be between 0 and 1, got "
            f"{relative_error!r}"
        )
    record = methods.from_name(method)
    if isinstance(record, methods.Auto):
        record = methods.VarianceReduced(objective="kernel")
    is_shape = isinstance(example, Sequence) and all(
        isinstance(size, int | np.integer) for size in example
    )

    def error(m: int) -> float:
        try:
            fmap = feature_map(net, num_features=m, get=get, method=record)
            known = fmap.plan(example).relative_error
        except ValueError as problem:
            if "num_features must be at least" in str(problem):
                return math.inf
            raise
        if isinstance(known, float):
            return known
        if is_shape:
            raise ValueError(
                f"suggest_num_features: the error of {record} has no formula for this "
                "network: give an array of examples in place of a shape"
            )
        return expected_error(fmap, example, key=key)

    low, high = 8, 16
    while error(high) > relative_error:
        low, high = high, 2 * high
        if high > _MOST:
            raise ValueError(
                f"suggest_num_features: {relative_error} is out of reach: {record} has "
                f"an expected relative error of {error(low):.2g} with {low} features"
            )
    while high > 1.06 * low:
        middle = round(math.sqrt(low * high))
        if middle in (low, high):
            break
        low, high = (low, middle) if error(middle) <= relative_error else (middle, high)
    return high


def _gram(phi: Any) -> np.ndarray:
    phi = jnp.asarray(phi)
    return np.asarray(jnp.matmul(phi, phi.T, precision=jax.lax.Precision.HIGHEST))
