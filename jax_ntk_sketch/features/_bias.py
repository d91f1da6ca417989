"""The bias of a feature map: the error of its kernel that columns do not remove."""

import functools
import math
import warnings
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._arrays import finite_examples
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import Array, Examples, Key, Kind, Shape
from jax_ntk_sketch.features._steps_of import NetworkMap, steps_of
from jax_ntk_sketch.features.expected_kernels import Kernels, after_network
from jax_ntk_sketch.features.layers.activations import NUM_EXAMPLES

# A warning states a bias above this.
LARGEST_BIAS = 0.05

# A gradient is right if its mean is off by at most this.
_LARGEST_GRADIENT_BIAS = 0.03

# Cosines of synthetic pairs, and numbers where examples are single numbers.
_COSINES = np.linspace(0, 0.9, NUM_EXAMPLES - 1)
_NUMBERS = np.linspace(-(3**0.5), 3**0.5, NUM_EXAMPLES)


def bias(
    fmap: NetworkMap, kind: Kind, shape: Shape, sample: Examples | None = None
) -> float:
    r"""Return :math:`\|K - \mathrm{E} \Psi\Psi^\top\|_F / \|K\|_F` for many columns.

    Args:
      fmap: the map, whose method is not "auto".
      kind: the kernel K.
      shape: the shape of one example.
      sample: examples (n, *shape) whose kernel K is. Their inner products are averaged
        over positions, as if they were the same everywhere. By default, and if values
        are not known, K is of pairs with unit variance and cosines evenly in [0, 0.9],
        or of numbers evenly spaced with unit variance.

    Raises:
      ValueError: the sample is empty, or an example is not finite.
    """
    if sample is None or isinstance(sample, jax.core.Tracer | jax.ShapeDtypeStruct):
        return _synthetic_bias(fmap, kind, shape)
    array = finite_examples("NetworkFeatureMap", "sample", sample)
    return _relative_error(fmap, kind, shape, *_of_sample(array))


@functools.lru_cache(maxsize=256)
def _synthetic_bias(fmap: NetworkMap, kind: Kind, shape: Shape) -> float:
    pairs = _synthetic(single_numbers=math.prod(shape) == 1)
    return _relative_error(fmap, kind, shape, *pairs)


def _relative_error(
    fmap: NetworkMap, kind: Kind, shape: Shape, inner: np.ndarray, weight: np.ndarray
) -> float:
    exact, mean = expected_kernels(fmap, kind, shape, inner)
    error = np.sum(weight * (mean - exact) ** 2)
    return float(np.sqrt(error / np.sum(weight * exact**2))) if error else 0.0


@functools.lru_cache(maxsize=256)
def gradient_bias(fmap: NetworkMap, kind: Kind, shape: Shape) -> float:
    r"""Return the largest relative error of the mean gradient of the kernel by x.

    The gradient is that of :math:`E \langle\Psi(x), \Psi(y)\rangle`, by differences,
    for x and y of unit variance with the cosines 0, 0.8 and 0.99.
    """
    h, error = 1e-3, 0.0
    for cosine in (0.0, 0.8, 0.99):
        x = np.array([cosine, math.sqrt(1 - cosine**2)])
        rows = np.array([[1.0, 0.0], *(x + h * e for e in (*np.eye(2), *-np.eye(2)))])
        kernels = expected_kernels(fmap, kind, shape, rows @ rows.T)
        exact, mean = (k[0, 1:3] - k[0, 3:] for k in kernels)
        length = np.linalg.norm(exact)
        error = max(error, float(np.linalg.norm(mean - exact) / length))
    return error


def expected_kernels(
    fmap: NetworkMap, kind: Kind, shape: Shape, inner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact and the expected kernel of examples with these mean products."""
    steps = steps_of(fmap, kind, shape)
    inputs = Kernels.of_inputs(inner, steps[0].single_spec.finite_channels)
    exact = getattr(after_network(fmap.net, inputs, None), kind)
    for step in steps:
        if step.mean is not None:
            return exact, step.mean(inputs)
    return exact, getattr(after_network(fmap.net, inputs, fmap.method), kind)


def _synthetic(single_numbers: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return mean products of synthetic examples, and weights of their pairs."""
    if single_numbers:
        inner = np.outer(_NUMBERS, _NUMBERS)
        return inner, 1 - np.eye(len(inner))
    # The first example, and others that are orthogonal up to their parts along it.
    along = np.append(1.0, _COSINES)
    inner = np.outer(along, along)
    np.fill_diagonal(inner, 1.0)
    weight = np.zeros_like(inner)
    weight[0, 1:] = 1
    return inner, weight


def _of_sample(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sample, n = sample.astype(np.float64), len(sample)
    rows = sample[:: max(1, n // NUM_EXAMPLES)][:NUM_EXAMPLES]
    rows = rows.reshape(-1, sample[0].size)
    inner = rows @ rows.T / rows.shape[1]
    # A sample has too few pairs, so that its diagonal would weigh too much.
    weight = np.full_like(inner, (n - 1) / max(1, len(rows) - 1))
    np.fill_diagonal(weight, 1.0)
    return inner, weight


def warn_of_bias(
    fmap: NetworkMap, key: Key, shape: Shape, sample: Examples | None
) -> None:
    """Warn of kernels with a large bias, unless `init` is traced."""
    # Within a trace, what is computed from known arrays is traced too.
    if isinstance(key, jax.core.Tracer) or isinstance(jnp.zeros(()), jax.core.Tracer):
        return
    for kind in fmap.kinds:
        value = bias(fmap, kind, shape, sample)
        if value > LARGEST_BIAS:
            warnings.warn(
                f'NetworkFeatureMap.init: the "{kind}" kernel has a bias of '
                f"{value:.2g} with {fmap.method}, which more columns do not remove; "
                'use method="ntk_random_features", which has none, or "nystrom" with '
                "a sample",
                stacklevel=3,
            )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def warn_if_differentiated(fmap: FeatureMap, x: Array) -> Array:
    """Return x. Where it is differentiated, warn of gradients that are not right."""
    return x


@warn_if_differentiated.defjvp
def _warn_if_differentiated_jvp(
    fmap: FeatureMap, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    for kind in fmap.kinds:
        reason = _why_gradients_are_wrong(fmap, kind, primals[0].shape[1:])
        if reason is not None:
            warnings.warn(
                f'{type(fmap).__name__}.apply: gradients by x of the "{kind}" features '
                f"of {fmap.method} are not those of the kernel: {reason}; use method="
                '"ntk_random_features", whose mean is right and whose noise is larger, '
                'or "exact"',
                stacklevel=2,
            )
    return primals[0], tangents[0]


def _why_gradients_are_wrong(fmap: FeatureMap, kind: Kind, shape: Shape) -> str | None:
    if fmap.method.needs_sample:
        return "they follow it near landmarks only, and least where x and y are close"
    value = gradient_bias(cast(NetworkMap, fmap), kind, shape)
    if value <= _LARGEST_GRADIENT_BIAS:
        return None
    return f"their mean is off by up to {value:.2g} at cosines of 0 to 0.99"
