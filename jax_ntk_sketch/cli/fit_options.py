"""The options of `fit`, and the files that they name."""

import argparse
import pathlib

from jax_ntk_sketch.cli import arguments, images
from jax_ntk_sketch.cli.features import APPROXIMATIONS
from jax_ntk_sketch.cli.fit_setup import CANDIDATES
from jax_ntk_sketch.cli.report import check_file
from jax_ntk_sketch.cli.sources import add_source_arguments
from jax_ntk_sketch.data.dataset import TASKS
from jax_ntk_sketch.linear_model.io import is_model

__all__ = ["add_arguments", "check_outputs"]


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
        f"chosen among {CANDIDATES} training rows, or 2 M if more",
    )
    group.add_argument(
        "--objective",
        choices=("kernel", "regression"),
        help="of variance_reduced; if not given, kernel: with thousands of columns it "
        "predicted better",
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


def check_outputs(args: argparse.Namespace) -> tuple[pathlib.Path, pathlib.Path]:
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
