"""The main job at scale: ridge regression on features of data of any size, saved.

One pass over the data, which goes on where it was killed; the penalty is chosen by
generalised or k-fold cross-validation from that pass; a test part is for the report.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import jax_ntk_sketch
from jax_ntk_sketch import linear_model, stax
from jax_ntk_sketch.cli import arguments, fully_connected, images, pixels
from jax_ntk_sketch.cli.features import APPROXIMATIONS, planned
from jax_ntk_sketch.cli.fit_cost import Cost, require_disk, require_memory
from jax_ntk_sketch.cli.fit_outcome import FitOutcome
from jax_ntk_sketch.cli.inputs import Inputs, View
from jax_ntk_sketch.cli.memory import gigabytes, peak_resident
from jax_ntk_sketch.cli.report import check_file, chosen_options, write_folder
from jax_ntk_sketch.cli.scoring import Scoring, scores
from jax_ntk_sketch.cli.sources import Training, add_source_arguments, training_data
from jax_ntk_sketch.data.dataset import TASKS
from jax_ntk_sketch.feature_map import FeatureMap
from jax_ntk_sketch.linear_model.saving import is_model

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = (
    "Fits ridge regression on NTK features to data of any size and saves the model; "
    "goes on where it was killed."
)

# Examples that the size of the features is measured on, for candidates of the penalty.
_SAMPLE = 256

# Of ten: those candidates, relative to it.
_POWERS = [power / 2 for power in range(-14, 1)]

# Examples that landmarks are chosen among, or twice as many as there are features.
_CANDIDATES = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the job."""
    group = parser.add_argument_group("data")
    add_source_arguments(group, fit=True)
    group.add_argument(
        "--task",
        choices=TASKS,
        help="if not given, text and up to 100 distinct integers are classes, all else "
        "is regression",
    )
    group.add_argument(
        "--num-train", type=arguments.at_least(10), metavar="N", help="most rows; all"
    )
    group.add_argument(
        "--num-test", type=arguments.at_least(1), metavar="N", help="likewise"
    )
    group.add_argument(
        "--nonfinite",
        choices=("raise", "skip"),
        default="raise",
        help="examples of --x that are NaN or infinite: name them, or leave them out",
    )
    group = parser.add_argument_group("preprocessing, saved with the model")
    group.add_argument(
        "--standardize",
        action=argparse.BooleanOptionalAction,
        help="with fc, shift and scale columns to mean 0, deviation 1, if not given "
        "unless examples are pixels; else each image, if not given where it has colour",
    )
    group.add_argument(
        "--zca",
        action=argparse.BooleanOptionalAction,
        help="ZCA whitening of images; if not given, done where they have colour",
    )
    group.add_argument(
        "--zca-reg",
        type=arguments.number(),
        default=0.1,
        metavar="R",
        help="added to the eigenvalues, in units of their mean",
    )
    group = parser.add_argument_group("network")
    group.add_argument(
        "--network",
        choices=("fc", *images.NETWORKS),
        default="fc",
        help="fully connected, or a convolutional one of jax_ntk_sketch.recipes",
    )
    group.add_argument(
        "--depth",
        type=arguments.at_least(0),
        help="hidden layers of fc, 2 if not given; convolutions of cntk, 3",
    )
    arguments.add_network_arguments(group)
    group = parser.add_argument_group("features")
    group.add_argument(
        "--features",
        type=arguments.at_least(1),
        default=4096,
        metavar="M",
        help="their number; sums take 8 M² bytes, the solve 24 M²",
    )
    group.add_argument(
        "--method",
        default="variance_reduced",
        help=f"among {', '.join(APPROXIMATIONS)}, auto; landmarks of nystrom are "
        f"chosen among {_CANDIDATES} training rows, or 2 M if more",
    )
    group.add_argument("--get", choices=("ntk", "nngp"), default="ntk", help="kernel")
    group = parser.add_argument_group("regression")
    group.add_argument(
        "--reg",
        nargs="+",
        type=arguments.number(positive=True),
        metavar="R",
        help="candidates for the ridge penalty per example, at the price of one; if "
        "not given, two a decade, 1e-7 to 1 times the features' mean squared norm",
    )
    group.add_argument(
        "--folds",
        type=arguments.at_least(0),
        default=0,
        metavar="K",
        help="choose by K-fold cross-validation, with K + 1 times the sums; 0 for "
        "generalised cross-validation",
    )
    group.add_argument(
        "--batch-size",
        type=arguments.at_least(1),
        default=1024,
        metavar="N",
        help="examples whose features are summed at a time",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--save",
        metavar="NPZ",
        required=True,
        help="the model; one that is there is replaced when the new one is complete",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="the sums so far, from which the same command goes on after a kill; if "
        "given, kept, so that other values of --reg need no pass; if not given, "
        "NPZ.checkpoint, removed once the model is saved",
    )
    group.add_argument(
        "--checkpoint-seconds",
        type=arguments.number(),
        default=60.0,
        metavar="S",
        help="how often it is written",
    )
    group.add_argument("--json", metavar="FILE", help="the report for programs")
    group.add_argument(
        "--no-progress", action="store_true", help="no progress bar on a terminal"
    )


def run(args: argparse.Namespace) -> None:
    """Fits, saves and reports.

    Raises:
      UsageError: the options or the data they name are wrong, memory or disk is short.
    """
    save, checkpoint = _check_outputs(args)
    seconds = {}
    start = time.perf_counter()
    with arguments.usage_errors():
        if args.folds == 1:
            raise ValueError("--folds must be 0 or at least 2, got 1")
        if args.batch_size < args.folds:
            raise ValueError(
                f"--batch-size {args.batch_size} leaves folds empty; give at least "
                f"the {args.folds} of --folds"
            )
        training = training_data(args)
        scoring = Scoring.of(training.train.y, training.task)
        net, inputs, zca_reg, columns = _network_and_inputs(training, args)
        fmap = _feature_map(net, inputs.shape, args)
        cost = _cost(fmap, inputs.shape, training, scoring, args)
    free = require_memory(cost)
    size = fmap.plan(inputs.shape).param_bytes + _extra_bytes(inputs, zca_reg, cost)
    short = require_disk(save.parent, size, cost.sums)
    print(
        f"Data: {training.name}, {training.task}, {len(training.train.x)} training and "
        f"{0 if training.test is None else len(training.test.x)} test rows"
        f"{''.join(f'; {note}' for note in training.notes)}.\n"
        f"Network: {net!r}\n"
        f"Features: {fmap.num_features}, {args.method}.\n"
        f"Memory: {cost}; {gigabytes(free)} are free.",
        flush=True,
    )
    if short:
        _warn(short)
    if checkpoint.exists():
        print(f"Going on from {checkpoint}, if it is of the same fit.", flush=True)
    show = False if args.no_progress else None
    with arguments.usage_errors():
        inputs = inputs.learned(
            training.train.x,
            columns=columns,
            zca_reg=zca_reg,
            skip=args.nonfinite == "skip",
            show=show,
        )
    for step in inputs.steps():
        print(f"Inputs: {step}.", flush=True)
    view = View(training.train.x, inputs)
    params = fmap.init(jax.random.key(args.seed), _sample(fmap, view))
    regs = args.reg or _default_regs(fmap, params, view, args)
    seconds["before the pass"] = time.perf_counter() - start
    fitted = _fit(fmap, params, view, scoring, regs, args, checkpoint, seconds)
    about, arrays = inputs.notes()
    notes = {
        "version": jax_ntk_sketch.__version__,
        "data": training.name,
        "target": args.target,
        "task": training.task,
        "network": json.loads(stax.to_json(net)),
        "num_features": fmap.num_features,
        "get": args.get,
        "method": args.method,
        "inputs": about,
    }
    if scoring.classes is not None:
        arrays = {**arrays, "classes": scoring.classes}
    with arguments.usage_errors():
        linear_model.save_model(save, fitted, notes=notes, arrays=arrays)
    if args.checkpoint is None:
        checkpoint.unlink(missing_ok=True)
    test = None
    if training.test is not None and training.test.y is not None:
        start = time.perf_counter()
        with arguments.usage_errors():
            guess = scores(fitted, View(training.test.x, inputs), show)
        test = scoring.score(guess, training.test.y)
        seconds["test"] = time.perf_counter() - start
    outcome = FitOutcome(
        training=training,
        net=net,
        method=args.method,
        inputs=tuple(inputs.steps()),
        fitted=fitted,
        scoring=scoring,
        test=test,
        seconds=seconds,
        planned_bytes=cost.peak,
        peak_bytes=peak_resident(),
        options=chosen_options(args),
    )
    print(f"\n{outcome.to_text()}")
    for warning in outcome.warnings():
        _warn(warning)
    if args.json is not None:
        file = pathlib.Path(args.json)
        with arguments.usage_errors():
            write_folder(file.parent, {file.name: outcome.to_json()})
    print(f"\nModel: {save} ({gigabytes(save.stat().st_size)})")


def _check_outputs(args: argparse.Namespace) -> tuple[pathlib.Path, pathlib.Path]:
    """The files of model and checkpoint, before any work."""
    save = check_file(args.save, "--save", [".npz"])
    if save.exists() and not is_model(save):
        raise arguments.UsageError(
            f"--save {save} is there and no model of this library; it is not "
            "overwritten, give another path"
        )
    if args.json is not None:
        check_file(args.json, "--json", [".json"])
    if args.checkpoint is None:
        return save, save.with_name(f"{save.name}.checkpoint")
    checkpoint = check_file(
        args.checkpoint, "--checkpoint", [pathlib.Path(args.checkpoint).suffix]
    )
    if checkpoint.absolute() == save.absolute():
        raise arguments.UsageError("--checkpoint and --save must be different files")
    return save, checkpoint


def _network_and_inputs(
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


def _feature_map(
    net: stax.Layer, shape: tuple[int, ...], args: argparse.Namespace
) -> FeatureMap:
    if args.method == "exact":
        raise ValueError(
            '--method: features of "exact" depend on their batch; choose among '
            f"{', '.join(APPROXIMATIONS)}, auto"
        )
    fmap = planned(net, shape, args.method, args.features)
    return dataclasses.replace(fmap, get=args.get)


def _cost(
    fmap: FeatureMap,
    shape: tuple[int, ...],
    training: Training,
    scoring: Scoring,
    args: argparse.Namespace,
) -> Cost:
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
        batch + plan.param_bytes + 4 * plan.batch_floats * min(size, 128),
        learn,
    )


def _extra_bytes(inputs: Inputs, zca_reg: float | None, cost: Cost) -> int:
    """Bytes of a model besides its feature map's parameters."""
    d = int(np.prod(inputs.shape))
    weights = 4 * (cost.num_features + 1) * cost.num_targets
    return weights + 24 * d + (0 if zca_reg is None else 4 * d * d)


def _learns(fmap: FeatureMap) -> bool:
    return str(fmap.method).startswith(("Nystrom", "Auto"))


def _sample_size(fmap: FeatureMap, n: int) -> int:
    return min(n, max(_CANDIDATES, 2 * fmap.num_features))


def _sample(fmap: FeatureMap, view: View) -> Any:
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


def _default_regs(
    fmap: FeatureMap, params: Any, view: View, args: argparse.Namespace
) -> list[float]:
    """Two a decade, relative to the mean squared norm of some examples' features."""
    rows = _spaced(view, _SAMPLE)
    if len(rows) == 0:
        raise arguments.UsageError("none of the examples looked at is finite")
    phi = jax_ntk_sketch.transform(fmap, params, rows, progress=False)
    scale = float(np.square(phi, dtype=np.float64).sum(axis=1).mean()) or 1.0
    # Two digits, so that they can be read and given again.
    return [float(f"{scale * 10.0**power:.2g}") for power in _POWERS]


def _fit(
    fmap: FeatureMap,
    params: Any,
    view: View,
    scoring: Scoring,
    regs: list[float],
    args: argparse.Namespace,
    checkpoint: pathlib.Path,
    seconds: dict[str, float],
) -> linear_model.FittedModel:
    start = time.time()
    with arguments.usage_errors(), _warnings_in_one_line():
        try:
            fitted = linear_model.fit(
                fmap,
                params,
                view,
                scoring.targets,
                reg=sorted(set(regs)),
                num_classes=scoring.num_classes,
                folds=args.folds,
                batch_size=args.batch_size,
                nonfinite=args.nonfinite,
                checkpoint=checkpoint,
                checkpoint_seconds=args.checkpoint_seconds,
                progress=False if args.no_progress else None,
            )
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"--reg: {error}; the sums are kept in {checkpoint}, so that the same "
                "command with another --reg needs no pass"
            ) from error
    end = time.time()
    # The pass ends when it has written its last checkpoint.
    with contextlib.suppress(OSError):
        written = checkpoint.stat().st_mtime
        if start <= written <= end:
            seconds["features and sums"] = written - start
            start = written
    seconds["solve"] = end - start
    return fitted


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Shows the library's warnings as they come, without the line of code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = lambda message, *rest, **named: _warn(str(message))
        yield


def _warn(text: str) -> None:
    print(f"python -m jax_ntk_sketch: warning: {text}", file=sys.stderr, flush=True)
