"""Ridge regression on features of data of any size, saved with its preprocessing.

The data are read once, and the same command resumes after it was killed. The penalty
is chosen by generalized cross-validation from that pass, and a test part is for the
report only.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import jax
import numpy as np

from jax_ntk_sketch import io, linear_model, stax
from jax_ntk_sketch._tensor_file import kind_of
from jax_ntk_sketch._typing import PyTree
from jax_ntk_sketch._units import format_bytes
from jax_ntk_sketch.batches.prepared import Prepared
from jax_ntk_sketch.cli import options, report
from jax_ntk_sketch.cli.data_source import training_data
from jax_ntk_sketch.cli.inputs import init_from, inputs_from_options, num_candidates
from jax_ntk_sketch.cli.targets import Targets, error_of
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.features._transform import transform
from jax_ntk_sketch.preprocessing.inputs import Inputs

SUMMARY = "Fit ridge regression on features to data of any size, and save the model."

# Examples whose features set the scale of the penalties, and the powers of ten of it
# that are tried.
_SCALE_SAMPLE = 256
_POWERS = [power / 2 for power in range(-14, 1)]

# A larger estimate of the relative error of the weights gives a warning.
_COARSE = 1e-2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    options.add_data_options(parser, default=None, rows="if not given, all")
    add, ways = parser.add_argument, ("raise", "skip")
    nonfinite = "name examples that are NaN or infinite, or leave them out"
    add("--nonfinite", choices=ways, default="raise", help=nonfinite)
    add("--report-json", metavar="FILE", help="report as JSON")
    options.add_network_options(parser)
    count = options.at_least(1)
    add = parser.add_argument_group("features").add_argument
    size = "number of features; the sums take 8 M² bytes, the solve 24 M²"
    add("--num-features", type=count, default=4096, metavar="M", help=size)
    purpose = "approximation of the kernel"
    options.add_method_option(add, "variance_reduced", None, purpose)
    objective = "objective of variance_reduced; if not given, kernel"
    add("--objective", choices=("kernel", "regression"), help=objective)
    add = parser.add_argument_group("regression").add_argument
    reg = "penalties per example to try; if not given, 1e-7 to 1 times mean |features|²"
    add("--reg", nargs="+", type=options.positive, help=reg)
    batch = "examples whose features are summed at a time"
    add("--batch-size", type=count, default=1024, metavar="N", help=batch)
    memory = "most memory to plan for; if not given, that of the machine"
    add("--max-memory", type=options.positive, metavar="GB", help=memory)
    sums = (
        "sums so far, from which the same command resumes, also with another --reg; "
        "if not given, OUTPUT.checkpoint, which is removed once the model is saved"
    )
    add("--checkpoint", metavar="FILE", help=sums)
    every = "seconds between two checkpoints"
    add("--checkpoint-seconds", type=options.number, default=60.0, help=every)
    options.add_output_options(parser, ".jns file of the model", "JNS", required=True)
    options.add_max_bytes_option(parser)


def run(args: argparse.Namespace) -> None:
    """Fit, save and report.

    Raises:
      UsageError: the options or the data that they name are wrong, or memory is short.
    """
    start, show = time.perf_counter(), options.show_progress(args)
    output, checkpoint, report_json = _outputs(args)
    if args.method == "variance_reduced":
        args.objective = args.objective or "kernel"
    with options.usage_errors():
        net = options.network(args)
        data, target = training_data(args, finite=args.nonfinite == "raise")
        data = data.take(args.num_train, args.num_test, seed=args.seed)
        targets = Targets.of(data.y_train, data.task)
        inputs = inputs_from_options(data.x_train.shape[1:], data.pixels, args)
        chosen = {name: getattr(args, name) for name in options.FEATURE_OPTIONS}
        fmap = options.feature_map(net, **chosen)
        needed = _bytes_needed(fmap, inputs, targets, args)
    subject = f"--num-features {fmap.num_features}"
    remedy = "give a smaller --num-features"
    options.require_memory(needed, args.max_memory, subject, remedy)
    print(
        f"{report.describe(data)}\nNetwork: {net!r}\nFeatures: {fmap.num_features}, "
        f"{args.method}.\nMemory: the fit takes about {format_bytes(needed)}.",
        flush=True,
    )
    if checkpoint.exists():
        print(f"Resuming from {checkpoint}, if it belongs to the same fit.", flush=True)
    with options.usage_errors():
        inputs = inputs.learned(data.x_train, nonfinite=args.nonfinite)
        for step in inputs.steps():
            print(step, flush=True)
        train = inputs.prepare(data.x_train)
        params = init_from(fmap, jax.random.key(args.seed), train)
        fitted = _fit(fmap, params, train, targets, args, checkpoint)
        fitted = dataclasses.replace(
            fitted,
            preprocessing=inputs,
            feature_names=data.columns or None,
            metadata={"data": data.name, "target": target, "task": data.task},
        )
        io.save(output, fitted)
        if args.checkpoint is None:
            checkpoint.unlink(missing_ok=True)
        test = None
        if len(data.x_test):
            prediction = fitted.predict(
                data.x_test, max_bytes=args.max_bytes, progress=show
            )
            error = error_of(prediction, data.y_test, targets.classes)
            test = {"error": error, "baseline": targets.baseline(data.y_test)}
    content = {
        **report.summary(data, args),
        "inputs": inputs.steps(),
        "network": json.loads(stax.to_json(net)),
        "num_skipped": fitted.num_skipped,
        "reg": float(fitted.best.reg),
        "path": _path(fitted),
        "metric": targets.metric,
        "test": test,
        "seconds": time.perf_counter() - start,
    }
    print(f"\n{_to_text(content)}")
    _warn(fitted)
    if report_json is not None:
        with options.usage_errors():
            text = report.strict_json(content)
            report.write_files(report_json.parent, {report_json.name: text})
    print(f"Model: {output} ({format_bytes(output.stat().st_size)})")


def _outputs(
    args: argparse.Namespace,
) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path | None]:
    """Return the files of the model, the checkpoint and the report, before any work."""
    path, overwrite = options.output_path, args.overwrite
    output = path("--output", args.output, [".jns"], overwrite=overwrite)
    if output.exists() and kind_of(output) != "fitted model":
        raise options.UsageError(
            f"--output {output} exists and is not a model of this library; it is not "
            "overwritten, give another path"
        )
    report_json = None
    if (name := args.report_json) is not None:
        report_json = path("--report-json", name, [".json"], overwrite=overwrite)
    if args.checkpoint is None:
        return output, output.with_name(f"{output.name}.checkpoint"), report_json
    suffixes = [pathlib.Path(args.checkpoint).suffix]
    checkpoint = path("--checkpoint", args.checkpoint, suffixes, overwrite=True)
    if checkpoint.absolute() == output.absolute():
        raise options.UsageError("--checkpoint and --output must be different files")
    return output, checkpoint, report_json


def _bytes_needed(
    fmap: NetworkFeatureMap, inputs: Inputs, targets: Targets, args: argparse.Namespace
) -> int:
    """Return the bytes that the fit takes at its peak.

    With m features and t targets the sums take 8 (m + t + 1)² bytes. A batch and its
    products are added, and later the system that is solved. A map that learns from data
    takes its memory before.
    """
    m, t, size = fmap.num_features, targets.num_targets, args.batch_size
    square = (m + t + 1) ** 2
    plan = fmap.plan(inputs.shape, batch_size=1).with_sizes(size, size)
    plan = plan.with_sizes(size, plan.rows_in_work(args.max_bytes))
    learn = 0
    if fmap.method.needs_sample:
        shape = (min(len(targets.y), num_candidates(fmap)), *inputs.shape)
        sample = jax.ShapeDtypeStruct(shape, np.float32)
        learn = fmap.plan(inputs.shape, sample=sample).fit_bytes
    batch = plan.param_bytes + plan.work_bytes()
    solve = 24 * m**2 + 32 * m * t * len(args.reg or _POWERS)
    return max(learn, 8 * square + max(batch + 16 * square, solve))


def _fit(
    fmap: NetworkFeatureMap,
    params: PyTree,
    train: Prepared,
    targets: Targets,
    args: argparse.Namespace,
    checkpoint: pathlib.Path,
) -> linear_model.FittedModel:
    """Fit the model, from the checkpoint on where there is one."""
    regs = args.reg
    if regs is None:
        named = {"max_bytes": args.max_bytes, "progress": False}
        phi = transform(fmap, params, train.spaced(_SCALE_SAMPLE), **named)
        scale = float(np.square(phi, dtype=np.float64).sum(axis=1).mean()) or 1.0
        # Two digits, so that they can be read and given again.
        regs = [float(f"{scale * 10.0**power:.2g}") for power in _POWERS]
    try:
        return linear_model.fit(
            fmap,
            params,
            train,
            targets.labels,
            reg=sorted(set(regs)),
            task="regression" if targets.classes is None else "classification",
            batch_size=args.batch_size,
            max_bytes=args.max_bytes,
            nonfinite=args.nonfinite,
            checkpoint=checkpoint,
            checkpoint_seconds=args.checkpoint_seconds,
            progress=options.show_progress(args),
        )
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"--reg: {error}; the sums are kept in {checkpoint}, so that the same "
            "command with another --reg needs no pass"
        ) from error


def _path(fitted: linear_model.FittedModel) -> list[dict[str, float | None]]:
    """Return a row for each value of reg; None where a number is not finite."""
    rows = []
    for i, reg in enumerate(np.atleast_1d(fitted.all_models.reg)):
        row = {"reg": reg, **fitted.all_models.select(i).info._asdict()}
        rows.append({k: float(v) if np.isfinite(v) else None for k, v in row.items()})
    return rows


def _to_text(content: report.Json) -> str:
    """Return the report for reading."""
    test, data = content["test"], content["data"]
    columns = ["gcv", "mse", "effective_dof", "condition"]
    rows = []
    for row in content["path"]:
        mark = "*" if row["reg"] == content["reg"] else ""
        cells = ["-" if row[c] is None else f"{row[c]:.4g}" for c in columns]
        rows.append([f"{row['reg']:.3g}{mark}", *cells])
    found = "there is no test part"
    if test is not None:
        form = ".2%" if data["task"] == "classification" else ".5g"
        found = (
            f"{content['metric']} {test['error']:{form}} of {data['num_test']} rows; "
            f"the best constant prediction has {test['baseline']:{form}}"
        )
    return (
        f"{report.markdown_table(['reg', *columns], rows)}\n\n"
        "gcv: squared error on new examples, estimated from the training "
        "rows; it chose reg (*). mse: squared error on these.\n\n"
        f"Test: {found}.\nTime: {content['seconds']:.1f} s."
    )


def _warn(fitted: linear_model.FittedModel) -> None:
    """Warn of a penalty at the end of its range, and of rounding in the weights."""
    regs, reg = np.atleast_1d(fitted.all_models.reg), float(fitted.best.reg)
    if len(regs) > 1 and reg in (regs.min(), regs.max()):
        side = "smallest" if reg == regs.min() else "largest"
        options.warn(
            f"the {side} candidate for the penalty was chosen, reg = {reg:.3g}; give "
            "others with --reg"
        )
    rounding = float(fitted.best.info.rounding)
    if rounding > _COARSE:
        options.warn(
            f"rounding may have changed the weights by {rounding:.1%}; a larger --reg "
            "or a smaller --num-features helps"
        )
