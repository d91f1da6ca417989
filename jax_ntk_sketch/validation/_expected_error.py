"""`expected_error` and `suggest_num_features`: the error of a kernel, predicted."""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import methods, stax
from jax_ntk_sketch._arrays import finite_examples
from jax_ntk_sketch._checks import check_key, check_number, check_size
from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch._protocol import FeatureMap, check_feature_map
from jax_ntk_sketch._typing import Array, Examples, Key, Kind, PyTree, Shape
from jax_ntk_sketch.features._compress import CompressedFeatureMap
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap, feature_map
from jax_ntk_sketch.features._landmarks import LandmarkFeatureMap
from jax_ntk_sketch.features._transform import check_work
from jax_ntk_sketch.features.build import TooFewFeaturesError
from jax_ntk_sketch.validation._compare import features
from jax_ntk_sketch.validation._exact_kernel import ExactKernel

# `suggest_num_features` suggests no more columns.
_MAX_FEATURES = 2**17


def expected_error(
    fmap: FeatureMap,
    sample: Examples,
    *,
    key: Key | None = None,
    params: PyTree = None,
    num_examples: int | None = None,
    num_seeds: int | None = None,
    trial_size: int = 64,
    max_bytes: int | None = None,
) -> float:
    r"""Return the expected error of the kernel matrix on data like a sample.

    .. math:: \|K - \Psi\Psi^\top\|_F \,/\, \|K\|_F

    The error comes from the variance formula of the method if there is one. Otherwise
    it is measured in a trial: the features of `trial_size` examples are drawn a few
    times and compared with their exact kernel. With `params`, the map that they belong
    to is measured. In all cases the diagonal of the matrix and the rest are weighted as
    they will be for `num_examples` examples.

    Args:
      fmap: a map of `feature_map`, `landmark_features` or `compress`, with `get` "ntk"
        or "nngp".
      sample: `(n, *shape)`, n >= 4. In a trial, maps that learn from data learn from
        the examples that are not compared.
      key: a PRNG key for the draws of a trial, split once for each, and for the choice
        of examples. It must be given if the method has no formula for the network.
      params: the parameters that `fmap.init` returned, to measure this one draw. The
        examples that they were learned from have a smaller error than others.
      num_examples: the number of examples that the error is for; by default n.
      num_seeds: the number of draws in a trial, >= 1, by default 3.
      trial_size: the number of examples in a trial, >= 1; at most n / 2 are taken.
      max_bytes: the bytes that examples in work may take besides the parameters, >= 1.
        By default they are 256 MiB on a CPU, and elsewhere a quarter of the device's
        memory; or what one example takes, if that is more.

    Returns:
      The error. Where it was tried, it was within a factor of 1.5 of the error on other
      examples.

    Raises:
      TypeError: `fmap` is another map; `key` is missing or is not a PRNG key.
      ValueError: `fmap.get` is a tuple; `sample` has fewer than 4 examples; a number is
        out of range; `num_seeds` is given with `params`; one example takes more than
        `max_bytes`, or than all memory.

    Cost: for formulas, 256^2 evaluations of it. For a trial, the features and the exact
    kernel of `trial_size` examples, which for images takes the third power of the
    number of pixels for each pair of examples.

    >>> import numpy as np
    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> x = np.random.default_rng(0).normal(size=(100, 20)).astype(np.float32)
    >>> fmap = jns.feature_map(net, num_features=512, method="variance_reduced")
    >>> 0.01 < jns.validation.expected_error(fmap, x) < 0.2
    True
    """
    check_feature_map("expected_error", fmap)
    if not isinstance(fmap.get, str):
        raise ValueError(
            f'expected_error: fmap.get must be "ntk" or "nngp", got {fmap.get!r}'
        )
    sample = finite_examples("expected_error", "sample", sample)
    if sample.ndim < 2 or len(sample) < 4:
        raise ValueError(
            "expected_error: sample must hold at least 4 examples, (n, d) or (n, "
            f"*spatial, c), got shape {sample.shape}"
        )
    if num_examples is None:
        num_examples = len(sample)
    n = check_size("expected_error", "num_examples", num_examples)
    trial_size = check_size("expected_error", "trial_size", trial_size)
    if params is not None and num_seeds is not None:
        raise ValueError(
            "expected_error: num_seeds must be None if params are given, which are one "
            f"draw; got {num_seeds!r}"
        )
    seeds = 3 if num_seeds is None else num_seeds
    seeds = check_size("expected_error", "num_seeds", seeds)
    shape = sample.shape[1:]
    if isinstance(fmap, NetworkFeatureMap):
        fmap = fmap.resolve(shape)
        known = fmap.expected_error(shape, sample=sample, num_examples=n)
        if isinstance(known, float) and params is None:
            return known
    if key is None:
        raise TypeError(
            f"expected_error: key must be given, because {fmap.method} is tried on "
            "examples drawn at random; make one with jax.random.key(seed)"
        )
    shuffle, draws = jax.random.split(check_key("expected_error", key))
    order = np.asarray(jax.random.permutation(shuffle, len(sample)))
    count = min(trial_size, len(sample) // 2)
    compared, rest = sample[order[:count]], sample[order[count:]]
    if not fmap.method.batch_dependent:
        check_work("expected_error", fmap, compared, max_bytes, 1)
    kernel = ExactKernel(kernel_of(fmap), max_bytes, "expected_error")
    exact = kernel(jnp.asarray(compared))
    squares = np.zeros_like(exact)
    if params is None:
        keys = jax.random.split(draws, seeds)
        named = {} if max_bytes is None else {"max_bytes": max_bytes}
        trials = [fmap.init(draw, shape, sample=rest, **named) for draw in keys]
    else:
        trials = [params]
    for drawn in trials:
        phi = np.asarray(features(fmap, drawn, compared, max_bytes), np.float64)
        squares += (phi @ phi.T - exact) ** 2 / len(trials)
    weight = np.full((count, count), (n - 1) / max(count - 1, 1))
    np.fill_diagonal(weight, 1.0)
    return float(np.sqrt((weight * squares).sum() / (weight * exact**2).sum()))


# A kernel of two batches; None for the first one itself.
_Kernel: TypeAlias = Callable[[Array, Array | None], Array]


@functools.singledispatch
def kernel_of(fmap: FeatureMap) -> _Kernel:
    """Return the kernel that the inner products of a map approximate."""
    raise TypeError(
        "expected_error: fmap must be a map of feature_map, landmark_features or "
        f"compress, got {type(fmap).__name__}"
    )


@kernel_of.register
def network_kernel(fmap: NetworkFeatureMap) -> _Kernel:
    """Return the kernel of a network, by method "exact"."""
    exact = NetworkFeatureMap(fmap.net, 1, fmap.get, methods.Exact())

    def kernel(x: Array, z: Array | None) -> Array:
        both = x if z is None else jnp.concatenate([x, z])
        # The method draws nothing, whatever the key is.
        phi = exact.apply(exact.init(jax.random.key(0), x.shape[1:]), both)
        assert isinstance(phi, jax.Array)
        return matmul(phi[: len(x)], phi[0 if z is None else len(x) :].T)

    return kernel


@kernel_of.register
def landmark_kernel(fmap: LandmarkFeatureMap) -> _Kernel:
    """Return the kernel of the map's own function."""
    return lambda x, z: fmap.kernel_fn(x, z, fmap.get)


@kernel_of.register
def compressed_kernel(fmap: CompressedFeatureMap) -> _Kernel:
    """Return the kernel of the map that is compressed."""
    return kernel_of(fmap.base)


def suggest_num_features(
    net: stax.Layer,
    example: Shape | Examples,
    *,
    sample: Examples | None = None,
    relative_error: float,
    get: Kind = "ntk",
    method: str | methods.Method = "auto",
    key: Key | None = None,
    max_bytes: int | None = None,
) -> int:
    """Return the smallest number of columns that reaches an expected relative error.

    Args:
      net: the network.
      example: the shape of one example, or examples of which only the shape counts.
      sample: examples `(n, *shape)` like those to come. They must be given if the
        method has no formula for its error.
      relative_error: the error of the kernel matrix to reach, in (0, 1).
      get: "ntk" or "nngp".
      method: as for `feature_map`.
      key: a PRNG key, if errors are measured in trials; see `expected_error`.
      max_bytes: as `expected_error` takes it, for trials.

    Returns:
      `num_features`, within 6 %.

    Raises:
      TypeError: an argument has the wrong type; a key is needed and missing.
      ValueError: 131,072 columns do not reach the error, or no number does because of
        the bias; a sample is needed and there is none; `relative_error` is out of
        range.

    Cost: about ten plans or trials; the largest has up to twice the columns.

    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> m = jns.validation.suggest_num_features(net, (784,), relative_error=0.05)
    >>> 100 < m < 4000
    True
    """
    owner = "suggest_num_features"
    check_number(owner, "relative_error", relative_error, above=0, below=1)
    if sample is not None:
        sample = finite_examples(owner, "sample", sample)
    record = methods.from_name(method)

    def error(num_features: int) -> float:
        fmap = feature_map(net, num_features=num_features, get=get, method=record)
        try:
            known = fmap.expected_error(example, sample=sample)
        except TooFewFeaturesError:
            return math.inf
        if isinstance(known, float):
            return known
        if sample is None:
            raise ValueError(
                f"{owner}: sample must be given, because the error of {record} has no "
                "formula for this network; pass sample=x, examples like those to come"
            )
        return expected_error(fmap, sample, key=key, max_bytes=max_bytes)

    floor = _floor(net, example, sample, record, get)
    if floor >= relative_error:
        raise ValueError(
            f"{owner}: relative_error must be more than the bias of {record}, got "
            f"{relative_error}, but the bias is {floor:.2g} with any number of "
            'columns; use method="ntk_random_features", which has none'
        )
    low, high = 8, 16
    while not error(high) <= relative_error:  # NaN is out of reach, too
        low, high = high, 2 * high
        if high > _MAX_FEATURES:
            raise ValueError(
                f"{owner}: relative_error = {relative_error} is out of reach: {record} "
                f"has an expected error of {error(low):.2g} with {low} features"
            )
    while high > 1.06 * low:
        middle = round(math.sqrt(low * high))
        if middle in (low, high):
            break
        low, high = (low, middle) if error(middle) <= relative_error else (middle, high)
    return high


def _floor(
    net: stax.Layer,
    example: Shape | Examples,
    sample: Examples | None,
    record: methods.Method,
    get: Kind,
) -> float:
    """Return the bias, with the most columns of those that are tried."""
    fmap = feature_map(net, num_features=_MAX_FEATURES, get=get, method=record)
    bias = fmap.plan(example, sample=sample).bias
    assert isinstance(bias, float)
    return bias
