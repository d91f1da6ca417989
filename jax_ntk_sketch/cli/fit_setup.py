"""What `fit` fits: network, inputs, feature map, what they cost, penalties to try."""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

from jax_ntk_sketch import methods, stax
from jax_ntk_sketch.cli import fully_connected, images, pixels
from jax_ntk_sketch.cli.arguments import UsageError
from jax_ntk_sketch.cli.features import APPROXIMATIONS, planned
from jax_ntk_sketch.cli.fit_cost import Cost
from jax_ntk_sketch.cli.inputs import Inputs, View
from jax_ntk_sketch.cli.scoring import Scoring
from jax_ntk_sketch.cli.sources import Training
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.features._transform import transform

__all__ = [
    "CANDIDATES",
    "chosen_method",
    "cost",
    "default_regs",
    "feature_map",
    "model_bytes",
    "network_and_inputs",
    "sample",
]

# Examples that the size of the features is measured on, for candidates of the penalty.
_SAMPLE = 256

# Of ten: those candidates, relative to it.
_POWERS = [power / 2 for power in range(-14, 1)]

# Examples that landmarks are chosen among, or twice as many as there are features.
CANDIDATES = 4096


def network_and_inputs(
    training: Training, args: argparse.Namespace
) -> tuple[stax.Layer, Inputs, float | None, bool]:
    """The network, its inputs, the regularisation of ZCA, whether columns are scaled.

    Raises:
      ValueError: images are needed, or whitening without them.
    """
    raw = training.train.x.shape[1:]
    if args.network == "fc":
        if args.zca:
            raise ValueError("--zca is for images; --network fc takes --standardize")
        depth = 2 if args.depth is None else args.depth
        net = fully_connected.network(depth, args.W_std, args.b_std)
        standardize = args.standardize
        if standardize is None:
            standardize = not training.pixels
        inputs = Inputs((int(np.prod(raw)),), training.pixels)
        return net, inputs, None, standardize
    if len(raw) not in (2, 3):
        raise ValueError(
            f"--network {args.network} needs images (n, height, width) or (n, height, "
            f"width, channels); examples of {training.name} have shape {raw}"
        )
    net = images.network(args)
    shape = raw if len(raw) == 3 else (*raw, 1)
    zca, each = pixels.chosen_steps(shape, args)
    inputs = Inputs(shape, training.pixels, each)
    return net, inputs, args.zca_reg if zca else None, False


def feature_map(
    net: stax.Layer, shape: tuple[int, ...], args: argparse.Namespace
) -> NetworkFeatureMap:
    """The map that the options name; raises ValueError if it does not fit the data."""
    if args.method == "exact":
        raise ValueError(
            '--method: features of "exact" depend on their batch; choose among '
            f"{', '.join(APPROXIMATIONS)}, auto"
        )
    method = chosen_method(args.method, args.objective)
    fmap = planned(net, shape, method, args.features)
    return dataclasses.replace(fmap, get=args.get)


def chosen_method(name: str, objective: str | None) -> str | methods.Method:
    """The method that `--method` and `--objective` name, by which `predict` finds it.

    Raises:
      ValueError: the method has no objective.
    """
    if name == "variance_reduced":
        return methods.VarianceReduced(objective=objective or "kernel")
    if objective:
        raise ValueError(
            f"--objective belongs to --method variance_reduced, got {name}"
        )
    return name


def cost(
    fmap: NetworkFeatureMap,
    shape: tuple[int, ...],
    training: Training,
    scoring: Scoring,
    args: argparse.Namespace,
) -> Cost:
    """What the fit takes."""
    size = min(args.batch_size, len(training.train.x))
    # What is alive of a batch: its features twice, as they are made and split.
    plan = fmap.plan(shape, batch_size=1)
    batch = 4 * size * (int(np.prod(shape)) + 3 * fmap.num_features)
    learn = 0
    if _learns(fmap):
        sample = jax.ShapeDtypeStruct(
            (_sample_size(fmap, len(training.train.x)), *shape), np.float32
        )
        learn = fmap.plan(sample).fit_bytes
    return Cost(
        fmap.num_features,
        scoring.num_targets,
        args.folds,
        len(args.reg or _POWERS),
        batch + plan.param_bytes + 4 * plan.live_elements * min(size, 128),
        learn,
    )


def model_bytes(
    fmap: NetworkFeatureMap, inputs: Inputs, zca_reg: float | None, cost: Cost
) -> int:
    """Bytes of the saved model: parameters, weights, preprocessing."""
    d = int(np.prod(inputs.shape))
    weights = 4 * (cost.num_features + 1) * cost.num_targets
    learned = 24 * d + (0 if zca_reg is None else 4 * d * d)
    return fmap.plan(inputs.shape).param_bytes + weights + learned


def _learns(fmap: NetworkFeatureMap) -> bool:
    return str(fmap.method).startswith(("Nystrom", "Auto"))


def _sample_size(fmap: NetworkFeatureMap, n: int) -> int:
    return min(n, max(CANDIDATES, 2 * fmap.num_features))


def sample(fmap: NetworkFeatureMap, view: View) -> Any:
    """What `init` is given: a shape, or evenly spaced examples to learn from."""
    if not _learns(fmap):
        return tuple(view[:1].shape[1:])
    return _spaced(view, _sample_size(fmap, len(view)))


def _spaced(view: View, count: int) -> np.ndarray:
    """Evenly spaced examples that are finite."""
    count = min(count, len(view))
    starts = np.arange(count) * len(view) // count
    rows = np.concatenate([view[int(i) : int(i) + 1] for i in starts])
    return rows[np.isfinite(rows).reshape(count, -1).all(axis=1)]


def default_regs(
    fmap: NetworkFeatureMap, params: Any, view: View, args: argparse.Namespace
) -> list[float]:
    """Two a decade, relative to the mean squared norm of some examples' features."""
    rows = _spaced(view, _SAMPLE)
    if len(rows) == 0:
        raise UsageError("none of the examples looked at is finite")
    phi = transform(fmap, params, rows, progress=False)
    scale = float(np.square(phi, dtype=np.float64).sum(axis=1).mean()) or 1.0
    # Two digits, so that they can be read and given again.
    return [float(f"{scale * 10.0**power:.2g}") for power in _POWERS]
