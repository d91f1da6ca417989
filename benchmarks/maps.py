"""Feature maps by name, exact kernels and ridge regression, for the benchmarks."""

import functools
from collections.abc import Callable
from typing import Any

import common
import jax
import numpy as np
import scipy.linalg

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax
from jax_ntk_sketch.cli.regression import ridge_weights
from jax_ntk_sketch.methods import NTKSketch, OnePass
from jax_ntk_sketch.validation._exact_kernel import ExactKernel

METHODS: dict[str, methods.Method | str] = {
    "auto": "auto",
    # The published random features, and the published sketch at its best degree.
    "published random features": methods.NTKRandomFeatures(
        directions="gaussian", antithetic=False, product="tensor_srht"
    ),
    "published sketch": OnePass(degree=4),
    "ntk_random_features": methods.NTKRandomFeatures(),
    "ntk_sketch": NTKSketch(),
    "ntk_sketch, degrees 2, 1": NTKSketch(degree=2, derivative_degree=1),
    "ntk_sketch, degrees 8, 7": NTKSketch(degree=8, derivative_degree=7),
    "ntk_sketch, uncompressed": NTKSketch(oversample=1.0),
    "ntk_sketch, degrees 2, 1, uncompressed": NTKSketch(2, 1, oversample=1.0),
    "one_pass": OnePass(),
    "one_pass, degree 2": OnePass(degree=2),
    "one_pass, degree 4": OnePass(degree=4),
    "variance_reduced": methods.VarianceReduced(),
    "variance_reduced, regression": methods.VarianceReduced(objective="regression"),
    "nystrom": methods.Nystrom(),
    "nystrom, uniform": methods.Nystrom(landmarks="uniform"),
    "uniform landmarks": methods.Nystrom(landmarks="uniform", oversample=1.0),
}

# How many features "compress" generates, of the map BASE, before it compresses them.
GENERATED = {"compress, 16384 generated": 16384, "compress": 32768}
BASE = "variance_reduced"
# What `jns.choose` returns for examples and targets.
CHOSEN = "choose"
NAMES = (
    CHOSEN,
    "published random features", "published sketch", "ntk_random_features",
    "ntk_sketch", "one_pass", "variance_reduced", "variance_reduced, regression",
    "nystrom",
    "nystrom, uniform", *GENERATED,
)  # fmt: skip


def relu_network(depth: int) -> stax.Layer:
    """Return a network of `depth` hidden ReLU layers with W_std = sqrt(2)."""
    dense = stax.Dense(1, W_std=2**0.5)
    return stax.serial(*[dense, stax.Relu()] * depth, dense)


def exact(x: np.ndarray, z: np.ndarray | None, depth: int) -> np.ndarray:
    """Return the exact NTK `(len(x), len(z))` of `relu_network(depth)`, in float64."""
    kernel = functools.partial(jns.kernels.exact_kernel, relu_network(depth), get="ntk")
    return ExactKernel(jax.jit(kernel))(x, z)


def feature_map(
    net: stax.Layer, name: str, num_features: int, get: Any = "ntk"
) -> jns.FeatureMap:
    """Return the feature map of a method in METHODS."""
    method = METHODS[name]
    return jns.feature_map(net, num_features=num_features, get=get, method=method)


def draw(
    net: stax.Layer,
    name: str,
    num_features: int,
    seed: int,
    sample: np.ndarray,
    base: str = BASE,
    generated: int | None = None,
    y: np.ndarray | None = None,
) -> tuple[Any, Any]:
    """Return a feature map and its parameters.

    Args:
      net: the network.
      name: one of METHODS or GENERATED, or CHOSEN.
      num_features: the number of features.
      seed: the number of the draw.
      sample: examples, for the maps that learn from data.
      base: the name in METHODS that "compress" compresses.
      generated: how many features "compress" generates; None for GENERATED.
      y: targets of the examples, for CHOSEN.

    Raises:
      ValueError: the method does not support this network or number of features.
    """
    key = jax.random.key(seed)
    if name == CHOSEN:
        fmap = jns.choose(key, net, num_features, sample=sample, y=y, progress=False)
        return fmap, fmap.init(key, sample, sample=sample)
    if name in METHODS:
        fmap = feature_map(net, name, num_features)
        return fmap, fmap.init(key, sample, sample=sample)
    wide = max(generated or GENERATED[name], num_features)
    fmap = feature_map(net, base, wide)
    params = fmap.init(key, sample, sample=sample)
    return jns.compress(fmap, params, sample, num_features=num_features)


def gram_errors(
    fmap: Any,
    kernel: np.ndarray,
    x: np.ndarray,
    seeds: int,
    sample: Any = None,
    batch_size: int = 125,
) -> np.ndarray:
    """Return the relative and the centered errors of Gram matrices, `(seeds, 2)`."""
    run = jax.jit(functools.partial(fmap.apply, batch_size=batch_size))
    errors = []
    for seed in range(seeds):
        shown = x if sample is None else sample
        params = fmap.init(jax.random.key(seed), x, sample=shown)
        errors.append(gram_error(kernel, run(params, x)))
    return np.array(errors)


def gram_error(kernel: np.ndarray, phi: Any) -> tuple[float, float]:
    """Return the relative and the centered error of the Gram matrix of features."""
    phi = np.asarray(phi, np.float64)
    gram = phi @ phi.T
    validation = jns.validation
    return (
        validation.relative_error(kernel, gram),
        validation.centered_relative_error(kernel, gram),
    )


def root_mean_square(errors: np.ndarray) -> tuple[float, float]:
    """Return the root mean square of errors and its standard error."""
    squares = np.square(errors)
    rms = float(np.sqrt(squares.mean()))
    return rms, float(squares.std() / len(squares) ** 0.5 / 2 / rms)


def standardize(fitting: np.ndarray, *parts: np.ndarray) -> list[np.ndarray]:
    """Return the parts, standardized by the columns of the fitting rows."""
    fitting = fitting.astype(np.float64)
    mean, spread = fitting.mean(axis=0), fitting.std(axis=0)
    return [(z - mean) / np.where(spread > 0, spread, 1) for z in parts]


def codes(labels: np.ndarray, classes: int = 10) -> np.ndarray:
    """Return one-hot codes of the classes, minus one over their number."""
    return np.eye(classes)[labels] - 1 / classes


def mean_diagonal(phi: Any) -> float:
    """Return the mean squared norm of features, to scale penalties by."""
    return float(np.mean(np.sum(np.square(np.asarray(phi, np.float64)), axis=1)))


def square_error(predictions: np.ndarray, y: np.ndarray) -> float:
    """Return the mean squared error."""
    return float(np.mean((predictions - y) ** 2))


def ridge(
    gram: np.ndarray,
    right: np.ndarray,
    regs: np.ndarray,
    held: np.ndarray,
    y_held: np.ndarray,
    test: np.ndarray,
    loss: Callable[[np.ndarray, np.ndarray], float] = square_error,
) -> common.Record:
    """Return ridge predictions with the penalty of least loss on held-out rows.

    Args:
      gram, right: K and y of the fitting rows; or for features phi.T @ phi and
        phi.T @ y.
      regs: the penalties to choose from.
      held, test: rows of the kernel with the fitting rows; or features.
      y_held: the targets of the held-out rows.
      loss: of predictions and targets.

    Returns:
      "held", the least loss; "reg"; and the predictions "guess" of the held-out and
      "predictions" of the test rows.
    """
    best: common.Record = {"held": np.inf}
    for reg in regs:
        w = ridge_weights(gram, float(reg) / len(gram), right)
        if np.isnan(w).any():  # the system is singular
            continue
        error = loss(held @ w, y_held)
        if error < best["held"]:
            best = {"held": error, "reg": float(reg), "weights": w}
    w = best.pop("weights")
    return {**best, "guess": held @ w, "predictions": test @ w}


def ridge_on_features(
    phi: np.ndarray,
    y: np.ndarray,
    regs: np.ndarray,
    held: np.ndarray,
    y_held: np.ndarray,
    test: np.ndarray,
    loss: Callable[[np.ndarray, np.ndarray], float] = square_error,
) -> common.Record:
    """Return `ridge` on features, in the smaller of its two forms."""
    phi, held, test = (z.astype(np.float64) for z in (phi, held, test))
    if phi.shape[1] < len(phi):
        return ridge(phi.T @ phi, phi.T @ y, regs, held, y_held, test, loss)
    return ridge(phi @ phi.T, y, regs, held @ phi.T, y_held, test @ phi.T, loss)


def kernel_ridge(
    k: np.ndarray, y: np.ndarray, regs: np.ndarray, generalized: bool = False
) -> tuple[float, float, np.ndarray]:
    """Return the least cross-validation error, its penalty, and the weights (n, t).

    With H = (K + reg I)^-1, the error of example i, left out, is (H y)_i / H_ii.

    Args:
      k: the kernel, (n, n).
      y: the targets, (n, t).
      regs: penalties per example, relative to the mean diagonal.
      generalized: whether the mean of H_ii takes its place.
    """
    values, vectors = scipy.linalg.eigh(k, driver="evd")
    rotated, squares = vectors.T @ y, vectors**2
    best = (np.inf, 0.0, y)
    for reg in regs:
        inverse = 1 / (np.maximum(values, 0) + reg * np.trace(k))
        w = vectors @ (inverse[:, None] * rotated)
        diagonal = np.full(len(k), inverse.mean()) if generalized else squares @ inverse
        error = float(np.mean((w / diagonal[:, None]) ** 2))
        if error < best[0]:
            best = (error, float(reg), w)
    return best
