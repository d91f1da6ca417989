"""The main job at scale: ridge regression on features of data of any size, saved.

One pass over the data, which goes on where it was killed; the penalty is chosen by
generalised or k-fold cross-validation from that pass; a test part is for the report.
"""

import argparse
import contextlib
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
from jax_ntk_sketch.cli import arguments, fit_setup
from jax_ntk_sketch.cli.blas import one_thread_if_small
from jax_ntk_sketch.cli.fit_cost import require_disk, require_memory
from jax_ntk_sketch.cli.fit_options import add_arguments, check_outputs
from jax_ntk_sketch.cli.fit_outcome import FitOutcome
from jax_ntk_sketch.cli.inputs import View
from jax_ntk_sketch.cli.memory import gigabytes, peak_resident
from jax_ntk_sketch.cli.report import chosen_options, write_folder
from jax_ntk_sketch.cli.scoring import Scoring, scores
from jax_ntk_sketch.cli.sources import training_data
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = (
    "Fits ridge regression on NTK features to data of any size and saves the model; "
    "goes on where it was killed."
)


def run(args: argparse.Namespace) -> None:
    """Fits, saves and reports.

    Raises:
      UsageError: the options or the data they name are wrong, memory or disk is short.
    """
    save, checkpoint = check_outputs(args)
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
        net, inputs, zca_reg, columns = fit_setup.network_and_inputs(training, args)
        fmap = fit_setup.feature_map(net, inputs.shape, args)
        cost = fit_setup.cost(fmap, inputs.shape, training, scoring, args)
    free = require_memory(cost)
    size = fit_setup.model_bytes(fmap, inputs, zca_reg, cost)
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
    if save.exists():
        print(f"{save} is replaced when the new model is complete.")
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
    params = fmap.init(jax.random.key(args.seed), fit_setup.sample(fmap, view))
    regs = args.reg or fit_setup.default_regs(fmap, params, view, args)
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
        "objective": args.objective,
        "inputs": about,
    }
    if scoring.classes is not None:
        arrays = {**arrays, "classes": scoring.classes}
    with arguments.usage_errors():
        linear_model.save_model(save, fitted, metadata=notes, arrays=arrays)
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


def _fit(
    fmap: NetworkFeatureMap,
    params: Any,
    view: View,
    scoring: Scoring,
    regs: list[float],
    args: argparse.Namespace,
    checkpoint: pathlib.Path,
    seconds: dict[str, float],
) -> linear_model.FittedModel:
    start = time.time()
    few = one_thread_if_small(fmap.num_features)
    with arguments.usage_errors(), _warnings_in_one_line(), few:
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
