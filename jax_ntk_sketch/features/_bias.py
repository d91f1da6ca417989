"""The bias of a feature map: the error of its kernel that columns do not remove."""

import math
import warnings

import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Array, Kind, Shape
from jax_ntk_sketch.features.expected_kernels import Kernels, after_layer
from jax_ntk_sketch.features.step import Step
from jax_ntk_sketch.methods import Method

# A warning states a bias above this.
LARGEST_BIAS = 0.05

# A gradient is right if its mean is off by at most this.
_LARGEST_GRADIENT_BIAS = 0.03

# The pairs of this many examples are compared. What JAX computes is compiled once,
# since the number is always the same.
_MAX_EXAMPLES = 32

# Cosines of synthetic pairs, and numbers where examples are single numbers.
_COSINES, _NUMBERS = np.linspace(0, 0.9, 31), np.linspace(-(3**0.5), 3**0.5, 32)


def bias(
    net: stax.Layer,
    method: Method,
    kind: Kind,
    steps: list[Step],
    shape: Shape,
    sample: Array | None = None,
) -> float:
    r"""Return :math:`\|K - \mathrm{E} \Psi\Psi^\top\|_F / \|K\|_F` for many columns.

    Args:
      net: the network.
      method: the method.
      kind: the kernel.
      steps: the steps of the map.
      shape: the shape of one example.
      sample: examples (n, *shape) whose kernel K is. Their inner products are averaged
        over positions, as if they were the same everywhere. By default K is of pairs
        with unit variance and cosines evenly in [0, 0.9], or of numbers evenly spaced
        with unit variance.
    """
    if sample is None:
        inner, weight = _synthetic(single_numbers=math.prod(shape) == 1)
    else:
        inner, weight = _of_sample(np.asarray(sample, np.float64))
    exact, mean = _exact_and_mean(net, method, kind, steps, inner)
    error = np.sum(weight * (mean - exact) ** 2)
    return float(np.sqrt(error / np.sum(weight * exact**2))) if error else 0.0


def gradient_bias(
    net: stax.Layer, method: Method, kind: Kind, steps: list[Step]
) -> float:
    r"""Return the largest relative error of the mean gradient of the kernel by x.

    The gradient is that of :math:`E \langle\Psi(x), \Psi(y)\rangle`, by differences,
    for x and y of unit variance with the cosines 0, 0.8 and 0.99.
    """
    h, error = 1e-3, 0.0
    for cosine in (0.0, 0.8, 0.99):
        x = np.array([cosine, math.sqrt(1 - cosine**2)])
        rows = np.array([[1.0, 0.0], *(x + h * e for e in (*np.eye(2), *-np.eye(2)))])
        kernels = _exact_and_mean(net, method, kind, steps, rows @ rows.T)
        exact, mean = (k[0, 1:3] - k[0, 3:] for k in kernels)
        length = np.linalg.norm(exact)
        error = max(error, float(np.linalg.norm(mean - exact) / length))
    return error


def _exact_and_mean(
    net: stax.Layer, method: Method, kind: Kind, steps: list[Step], inner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact and the expected kernel of examples with these products."""
    inputs = Kernels.of_inputs(inner, steps[0].single_spec.finite_channels)
    exact = getattr(after_layer(net, inputs, None), kind)
    for step in steps:
        if step.mean is not None:
            return exact, step.mean(inputs)
    return exact, getattr(after_layer(net, inputs, method), kind)


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
    n = len(sample)
    rows = sample[:: max(1, n // _MAX_EXAMPLES)][:_MAX_EXAMPLES].reshape(
        -1, sample[0].size
    )
    inner = rows @ rows.T / rows.shape[1]
    # A sample has too few pairs, so that its diagonal would weigh too much.
    weight = np.full_like(inner, (n - 1) / max(1, len(rows) - 1))
    np.fill_diagonal(weight, 1.0)
    return inner, weight


def warn(value: float, kind: Kind, method: Method) -> None:
    """Warn of a bias that is not small."""
    if value > LARGEST_BIAS:
        warnings.warn(
            f'NetworkFeatureMap.init: the "{kind}" kernel has a bias of {value:.2g} '
            f"with {method}, which more columns do not remove; use "
            'method="ntk_random_features", which has none, or "nystrom" with a sample',
            stacklevel=4,
        )


def warn_of_gradient(value: float, kind: Kind, method: Method) -> None:
    """Warn of gradients by x whose mean is not that of the kernel."""
    if value > _LARGEST_GRADIENT_BIAS:
        warnings.warn(
            f'NetworkFeatureMap.apply: gradients by x of the "{kind}" features of '
            f"{method} are not those of the kernel: their mean is off by up to "
            f'{value:.2g} at cosines of 0 to 0.99; use method="ntk_random_features", '
            '"nystrom" or "exact"',
            stacklevel=2,
        )
