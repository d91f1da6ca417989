"""What the regression and Pareto benchmarks share: maps by name, kept results."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.linalg

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax

METHODS: dict[str, methods.Method] = {
    "published random features": methods.NTKRandomFeatures(
        directions="gaussian", antithetic=False, product="tensor_srht"
    ),
    "published sketch": methods.OnePass(degree=4),
    "ntk_random_features": methods.NTKRandomFeatures(),
    "ntk_sketch": methods.NTKSketch(),
    "one_pass": methods.OnePass(),
    "variance_reduced": methods.VarianceReduced(),
    "variance_reduced, kernel": methods.VarianceReduced(objective="kernel"),
    "nystrom": methods.Nystrom(),
    "nystrom, uniform": methods.Nystrom(landmarks="uniform"),
}

# "compress": how many columns are generated.
GENERATED = {"compress, 16384 generated": 16384, "compress": 32768}
BASE = "variance_reduced, kernel"
NAMES = (*METHODS, *GENERATED)


def draw(
    net: stax.Layer,
    name: str,
    num_features: int,
    seed: int,
    sample: np.ndarray,
    base: str = BASE,
    generated: dict[str, int] = GENERATED,
) -> tuple[Any, Any]:
    """A feature map and its parameters.

    Args:
      net: the network.
      name: of NAMES.
      num_features: columns.
      seed: of the draw.
      sample: examples, for the maps that learn from data.
      base: of METHODS, what "compress" compresses.
      generated: how many columns of it are generated.

    Raises:
      ValueError: the method cannot do this network or number of columns.
    """
    key = jax.random.key(seed)
    method, columns = METHODS.get(name), num_features
    if method is None:
        method, columns = METHODS[base], max(generated[name], num_features)
    fmap = jns.feature_map(net, num_features=columns, method=method)
    params = fmap.init(key, sample)
    if name in METHODS:
        return fmap, params
    return jns.compress(fmap, params, sample, num_features=num_features)


class Kept:
    """Results in a JSON file, so that a run can be done in pieces.

    Delete the file after a change of the code: what it holds is not measured again.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.path = pathlib.Path(folder) / f"{name}-kept.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self.results = json.loads(self.path.read_text())

    def get(self, run: Callable[[], dict[str, Any]], **what: Any) -> dict | None:
        """The result of `run` for `what`; None where the method cannot do it."""
        name = " | ".join(f"{key} {value}" for key, value in what.items())
        if name not in self.results:
            try:
                result = run()
            except ValueError as error:
                print(f"{name}: {str(error).splitlines()[0]}", flush=True)
                return None
            self.results[name] = {**what, **result}
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.results, indent=1))
            part.replace(self.path)
            print(self.results[name], flush=True)
        return self.results[name]

    def select(self, **what: Any) -> list[dict[str, Any]]:
        """All results that agree with `what`."""
        return [
            r
            for r in self.results.values()
            if all(r.get(key) == value for key, value in what.items())
        ]


def solve(gram: np.ndarray, right: np.ndarray, reg: float) -> np.ndarray:
    """The solution of (gram + reg I) w = right, in float64."""
    a = gram.copy()
    a[np.diag_indices_from(a)] += reg
    factor = scipy.linalg.cho_factor(a, lower=True, overwrite_a=True)
    return scipy.linalg.cho_solve(factor, right)


def ridge(
    gram: np.ndarray,
    right: np.ndarray,
    held: np.ndarray,
    y_held: np.ndarray,
    test: np.ndarray,
    regs: np.ndarray,
) -> dict[str, Any]:
    """Ridge with the penalty that has the least squared error on held-out rows.

    Args:
      gram, right: K and y of the fitting rows, or the features' second moment and
        their products with y.
      held, test: rows of the kernel with the fitting rows, or features.
      y_held: targets (n_held, t).
      regs: penalties to choose from.

    Returns:
      "held", the squared error; "reg"; "guess" and "predictions", those of the held-out
      and the test rows.
    """
    best: dict[str, Any] = {"held": np.inf}
    for reg in regs:
        try:
            w = solve(gram, right, reg)
        except np.linalg.LinAlgError:
            continue
        error = float(np.mean((held @ w - y_held) ** 2))
        if error < best["held"]:
            best = {"held": error, "reg": float(reg), "weights": w}
    w = best.pop("weights")
    return {**best, "guess": held @ w, "predictions": test @ w}


def ridge_on_features(
    phi: np.ndarray,
    y: np.ndarray,
    held: np.ndarray,
    y_held: np.ndarray,
    test: np.ndarray,
    regs: np.ndarray,
) -> dict[str, Any]:
    """`ridge` on features, in the smaller of its two forms."""
    phi, held, test = (z.astype(np.float64) for z in (phi, held, test))
    if phi.shape[1] < len(phi):
        return ridge(phi.T @ phi, phi.T @ y, held, y_held, test, regs)
    return ridge(phi @ phi.T, y, held @ phi.T, y_held, test @ phi.T, regs)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error (0 for one value)."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(np.mean(values)), float(error)
