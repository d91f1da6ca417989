"""Predictions of a model that `fit` saved, for data of any size."""

import argparse
import csv
import io
import json
import pathlib
import sys
from typing import Any

import numpy as np

from jax_ntk_sketch import feature_map, linear_model, stax
from jax_ntk_sketch.cli import arguments
from jax_ntk_sketch.cli.fit_setup import chosen_method
from jax_ntk_sketch.cli.inputs import Inputs, View
from jax_ntk_sketch.cli.report import check_file, write_folder
from jax_ntk_sketch.cli.scoring import judge, scores
from jax_ntk_sketch.cli.sources import add_source_arguments, examples_to_predict

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = (
    "Predicts with a model that fit saved; tells the error where targets are known."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the job."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="NPZ", required=True, help="saved by fit")
    group = parser.add_argument_group("data")
    add_source_arguments(group, fit=False)
    group.add_argument(
        "--part",
        choices=("train", "test"),
        help="of --data, drawn as fit draws it with the same --seed where the file "
        "marks none",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="FILE",
        help=".npy or .csv of classes, or of numbers; a file that is there is replaced "
        "when the new one is complete",
    )
    group.add_argument(
        "--scores", action="store_true", help="scores of all classes in their place"
    )
    group.add_argument(
        "--no-progress", action="store_true", help="no progress bar on a terminal"
    )


def run(args: argparse.Namespace) -> None:
    """Predicts, writes and reports.

    Raises:
      UsageError: the options, the model or the data they name are wrong.
    """
    out = _check_output(args)
    with arguments.usage_errors():
        fitted, inputs, notes, classes = _load(args.model)
        if args.scores and classes is None:
            raise ValueError("--scores is for classes; the model predicts numbers")
        size = int(np.prod(inputs.shape))
        part = examples_to_predict(
            args,
            task=notes["task"],
            target=notes["target"],
            size=size,
            pixels=inputs.pixels,
        )
        _check_shape(part.x, inputs.shape)
        if out is None and part.y is None:
            raise ValueError("nothing to do: give --out, or data with targets")
        guess = scores(
            fitted,
            View(part.x, inputs),
            False if args.no_progress else None,
        )
        error = None if part.y is None else judge(guess, part.y, classes)["error"]
    if inputs.pixels and part.x.dtype.kind == "f" and np.max(part.x[:1000]) > 1.5:
        print(
            "python -m jax_ntk_sketch: warning: the model was fitted to pixels in "
            "[0, 1]; these numbers are larger, and were taken as they are",
            file=sys.stderr,
        )
    print(
        f"Model: {args.model}, {fitted.fmap.num_features} features of "
        f"{notes['data']}, {notes['task']}.\nPredictions: {len(guess)}."
    )
    if error is not None:
        what = f"Error: {error:.2%} of them are wrong; accuracy {1 - error:.4f}."
        print(
            what if classes is not None else f"Error: mean squared error {error:.5g}."
        )
    if out is not None:
        with arguments.usage_errors():
            contents = _contents(guess, classes, args.scores, out.suffix)
            write_folder(out.parent, {out.name: contents})
        print(f"Written: {out}")


def _check_output(args: argparse.Namespace) -> pathlib.Path | None:
    if args.out is None:
        return None
    out = check_file(args.out, "--out", [".npy", ".csv"])
    for name in ("model", "data", "x", "y"):
        given = getattr(args, name)
        if given is not None and pathlib.Path(given).resolve() == out.resolve():
            raise arguments.UsageError(
                f"--out and --{name} are the same file; give another path"
            )
    return out


def _load(
    path: str,
) -> tuple[linear_model.FittedModel, Inputs, dict[str, Any], np.ndarray | None]:
    """A model with its inputs, notes and classes."""
    try:
        notes, arrays = linear_model.load_metadata(path)
    except FileNotFoundError:
        raise ValueError(f"--model: no such file: {path}") from None
    if "inputs" not in notes:
        raise ValueError(
            f"--model {path} does not say what its inputs are: it was saved in Python; "
            "fit saves models that do"
        )
    net = stax.from_json(json.dumps(notes["network"]))
    fmap = feature_map(
        net,
        num_features=notes["num_features"],
        get=notes["get"],
        method=chosen_method(notes["method"], notes["objective"]),
    )
    fitted = linear_model.load_model(path, fmap)
    inputs = Inputs.restored(notes["inputs"], arrays)
    return fitted, inputs, notes, arrays.get("classes")


def _check_shape(x: Any, wanted: tuple[int, ...]) -> None:
    shape = x.shape[1:]
    if len(wanted) == 1:  # fully connected networks see examples flat
        fits = int(np.prod(shape)) == wanted[0]
    else:
        fits = wanted in (shape, (*shape, 1))
    if not fits:
        raise ValueError(
            f"examples have shape {shape}, the model was fitted to {wanted}"
            + (" (a target column? name it with --target)" if len(shape) == 1 else "")
        )


def _contents(
    guess: np.ndarray, classes: np.ndarray | None, with_scores: bool, suffix: str
) -> bytes:
    """A `.npy` or `.csv` file of predictions."""
    header = [
        f"prediction_{i}" for i in range(guess.shape[-1] if guess.ndim > 1 else 1)
    ]
    if guess.ndim == 1:
        header = ["prediction"]
    if classes is not None:
        header = [str(name) for name in classes]
        if not with_scores:
            guess, header = classes[guess.argmax(axis=1)], ["class"]
    if suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, guess, allow_pickle=False)
        return buffer.getvalue()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(guess.reshape(len(guess), -1).tolist())
    return text.getvalue().encode()
