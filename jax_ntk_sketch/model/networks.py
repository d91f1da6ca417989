"""Scalings of inputs and networks, compared by exact leave-one-out errors."""

import itertools
from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch.batches.prepared import Prepared
from jax_ntk_sketch.kernels import exact_kernel
from jax_ntk_sketch.preprocessing.covariance import read_moments
from jax_ntk_sketch.preprocessing.inputs import Inputs

# The rows of the comparison.
MOST_ROWS = 1024

# Penalties over the mean diagonal of the centered kernel.
_PENALTIES = 10.0 ** np.arange(-6, 2.1, 0.5)

_DEPTHS = (1, 2, 3, 5)
_BIASES = (None, 0.5)


def fully_connected(depth: int, b_std: float | None) -> stax.Layer:
    """Return a network of `depth` hidden layers with `Relu`."""
    dense = stax.Dense(1, W_std=2**0.5, b_std=b_std)
    return stax.serial(*[dense, stax.Relu()] * depth, dense)


def candidates() -> list[stax.Layer]:
    """Return the fully connected networks among which is chosen."""
    return [fully_connected(*pair) for pair in itertools.product(_DEPTHS, _BIASES)]


def scalings(x: Prepared, raw: Inputs) -> dict[str, Inputs]:
    """Return ways to scale the columns of training rows (n, d), by name.

    Args:
      x: the rows, prepared by `raw`.
      raw: the steps before.
    """
    moments = read_moments("fit", x, columns=True)
    mean, variance = moments.mean, moments.covariance
    deviation = np.where(variance > 0, np.sqrt(variance), 1.0)
    # Constant columns say nothing, and do not count in a scale that all share.
    changing = max(1, int((variance > 0).sum()))
    center = np.sqrt(variance.sum() / changing) or 1.0
    around_zero = np.sqrt((variance + mean**2).mean()) or 1.0
    zeros, ones = np.zeros_like(mean), np.ones_like(mean)
    columns = {
        "standardized": (mean, deviation),
        "centered": (mean, center * ones),
        "as they are": (zeros, around_zero * ones),
    }
    return {
        name: Inputs(raw.shape, raw.pixels, True, columns=np.stack(pair))
        for name, pair in columns.items()
    }


def machine_loss(kernel: NDArray, y: NDArray) -> float:
    """Return the least leave-one-out error of a kernel machine with an intercept.

    Args:
      kernel: (n, n) float64.
      y: targets (n, t).
    """
    n = len(kernel)
    means = kernel.mean(axis=0)
    centered = kernel - means - means[:, None] + means.mean()
    values, vectors = scipy.linalg.eigh(centered, driver="evd", check_finite=False)
    values = np.maximum(values, 0)
    y = y - y.mean(axis=0)
    rotated, squares = vectors.T @ y, vectors**2
    losses = []
    for penalty in _PENALTIES * values.sum() / n + 1e-300:
        kept = values / (values + penalty)
        left = 1 - (squares @ kept + 1 / n)
        residuals = y - vectors @ (kept[:, None] * rotated)
        losses.append(np.mean((residuals / np.maximum(left, 1e-9)[:, None]) ** 2))
    return float(min(losses))


def losses(
    nets: Sequence[stax.Layer], kinds: tuple[Kind, ...], x: NDArray, y: NDArray
) -> dict[tuple[stax.Layer, Kind], float]:
    """Return the `machine_loss` of networks and kernels on rows x (n, d)."""
    out = {}
    for net in nets:
        kernels = exact_kernel(net, x, get=kinds)
        for kind in kinds:
            kernel = np.asarray(getattr(kernels, kind), np.float64)
            out[net, kind] = machine_loss(kernel, y)
    return out


def standard() -> stax.Layer:
    """Return the network by which scalings are compared if none is given."""
    return fully_connected(2, 0.5)
