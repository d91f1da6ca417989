"""Predictions of a model that `fit` saved, for data of any size."""

import argparse
import csv
import io
import math
import pathlib

import numpy as np

import jax_ntk_sketch
from jax_ntk_sketch import linear_model
from jax_ntk_sketch._typing import Examples, Shape
from jax_ntk_sketch.cli import options, report
from jax_ntk_sketch.cli.data_source import examples_to_predict
from jax_ntk_sketch.cli.targets import error_of
from jax_ntk_sketch.preprocessing.inputs import Inputs

SUMMARY = "Predict with a model that fit saved, and report the error if it is known."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--model", metavar="JNS", required=True, help="file that fit saved")
    options.add_data_options(parser, default=None, rows=None)
    scores = "write the scores of all classes in place of the classes"
    add("--output-scores", action="store_true", help=scores)
    product = ".npy or .csv file of predictions; without it only the error is printed"
    options.add_output_options(parser, product, "FILE", required=False)
    options.add_max_bytes_option(parser)


def run(args: argparse.Namespace) -> None:
    """Predict, write and report.

    Raises:
      UsageError: the options, the model or the data that they name are wrong.
    """
    path, suffixes, output = args.output, [".npy", ".csv"], None
    if path is not None:
        overwrite = args.overwrite
        output = options.output_path("--output", path, suffixes, overwrite=overwrite)
    with options.usage_errors():
        fitted, inputs = _load(args.model)
        saved, labels = fitted.metadata, fitted.best.classes
        classes = None if labels is None else np.array(labels)
        if args.output_scores and classes is None:
            raise ValueError("--output-scores is for classes, and the model has none")
        x, y, notes = examples_to_predict(args, fitted, inputs.pixels)
        _check_shape(x, inputs.shape)
        if output is None and y is None:
            raise ValueError("nothing to do: give --output, or data with targets")
        show = options.show_progress(args)
        prediction = fitted.predict(x, max_bytes=args.max_bytes, progress=show)
        error = None if y is None else error_of(prediction, y, classes)
    if inputs.pixels and x.dtype.kind == "f" and np.max(x[:1000]) > 1.5:
        options.warn(
            "the model was fitted to pixels in [0, 1]; these numbers are larger, and "
            "were taken as they are"
        )
    for note in notes:
        print(f"Note: {note}.")
    print(
        f"Model: {args.model}, {fitted.fmap.num_features} features, fitted to "
        f"{saved['data']}, {saved['task']}.\nPredictions: {len(prediction)}."
    )
    if error is not None and classes is not None:
        print(f"Of them {error:.2%} are wrong; the accuracy is {1 - error:.4f}.")
    elif error is not None:
        print(f"Their mean squared error is {error:.5g}.")
    if output is not None:
        with options.usage_errors():
            if classes is not None and not args.output_scores:
                prediction = classes[prediction.argmax(axis=1)]
            contents = _contents(prediction, classes, output.suffix)
            report.write_files(output.parent, {output.name: contents})
        print(f"Written: {output}")


def _load(path: str) -> tuple[linear_model.FittedModel, Inputs]:
    """Return a model and its preprocessing."""
    if not pathlib.Path(path).exists():
        raise ValueError(f"--model: no such file: {path}")
    fitted = jax_ntk_sketch.io.load(path)
    inputs = getattr(fitted, "preprocessing", None)
    if not isinstance(inputs, Inputs):
        raise ValueError(
            f"--model {path} does not state what its inputs are, because it was "
            "saved in Python; give a model that fit saved"
        )
    return fitted, inputs


def _check_shape(x: Examples, wanted: Shape) -> None:
    """Raise a ValueError if examples do not have the shape of the training examples."""
    shape = x.shape[1:]
    # Fully connected networks see examples flat, and gray images get a channel.
    if wanted not in (shape, (*shape, 1), (math.prod(shape),)):
        raise ValueError(
            f"examples have shape {shape}, but the model was fitted to {wanted}"
        )


def _contents(values: np.ndarray, classes: np.ndarray | None, suffix: str) -> bytes:
    """Return a .npy or .csv file of predictions."""
    if suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        return buffer.getvalue()
    if values.ndim == 1:
        header = ["prediction" if classes is None else "class"]
    elif classes is None:
        header = [f"prediction_{i}" for i in range(values.shape[1])]
    else:
        header = [str(label) for label in classes]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(values.reshape(len(values), -1).tolist())
    return text.getvalue().encode()
