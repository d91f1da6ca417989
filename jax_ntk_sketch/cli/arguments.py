"""What commands share: a user's mistakes, argument types, the data options."""

import argparse
import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from jax_ntk_sketch import data
from jax_ntk_sketch._progress import progress

__all__ = [
    "HelpFormatter",
    "OneLineParser",
    "UsageError",
    "add_data_arguments",
    "add_feature_arguments",
    "add_network_arguments",
    "add_output_arguments",
    "at_least",
    "load_data",
    "load_images",
    "number",
    "usage_errors",
]


class UsageError(Exception):
    """A mistake of the user; the command line prints it and exits with status 2."""


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports mistakes as `UsageError`, without the usage text."""

    def error(self, message: str):
        raise UsageError(f"{message} (see --help)")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults, where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns the library's complaints about input into `UsageError`.

    For the steps that look at what the user gave and nothing else; elsewhere an
    exception is a bug and keeps its traceback.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, OverflowError) as error:
        raise UsageError(str(error)) from error


def at_least(least: int):
    """An argparse type: integers from `least` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"expected an integer of at least {least}, got {text!r}"
            )
        return value

    return parse


def number(*, positive: bool = False):
    """An argparse type: finite numbers >= 0, or > 0."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            raise argparse.ArgumentTypeError(
                f"expected a finite number {'>' if positive else '>='} 0, got {text!r}"
            )
        return value

    return parse


def add_data_arguments(parser: argparse.ArgumentParser, *, images: bool) -> None:
    """The options that `load_images` reads, or else `load_data`."""
    group = parser.add_argument_group("data")
    kinds = "CIFAR batches or their archive, an .npz archive (also of JPEG files), "
    if not images:
        kinds = "an .npz archive, a .csv table, CIFAR batches, "
    group.add_argument(
        "--data",
        metavar="PATH",
        default="digits",
        help=f"{kinds}MNIST idx files (a folder of the four, or one images file); "
        "'digits' for scikit-learn's bundled images",
    )
    if not images:
        group.add_argument(
            "--target",
            metavar="COL",
            help="name or index of the column of a table to predict",
        )
        group.add_argument(
            "--task",
            choices=("classification", "regression"),
            help="told by the targets if not given",
        )
        group.add_argument(
            "--standardize",
            action=argparse.BooleanOptionalAction,
            help="shift and scale columns to mean 0, deviation 1; if not given, done "
            "unless the examples are pixels",
        )
    cost = "" if images else "; exact regression takes N² numbers, N³ operations"
    group.add_argument(
        "--num-train",
        type=at_least(10),
        default=4000,
        metavar="N",
        help=f"most training rows{cost}",
    )
    group.add_argument(
        "--num-test", type=at_least(1), default=2000, metavar="N", help="most test rows"
    )
    group.add_argument(
        "--seed", type=at_least(0), default=0, help="of every random choice"
    )


def add_network_arguments(group: argparse._ArgumentGroup) -> None:
    """The standard deviations `W_std` and `b_std` of all layers."""
    group.add_argument(
        "--W-std",
        type=number(positive=True),
        default=2**0.5,
        help="standard deviation of the weights",
    )
    group.add_argument(
        "--b-std",
        type=number(),
        help="standard deviation of the biases; no biases if not given",
    )


def add_feature_arguments(
    group: argparse._ArgumentGroup,
    *,
    methods: list[str] | None,
    among: str,
    num_features: list[int],
    scale: str,
) -> None:
    """The feature maps' methods and sizes, and the candidates for the penalty.

    Args:
      methods, num_features: defaults.
      among: what the help says of the methods.
      scale: what default penalties are relative to.
    """
    group.add_argument(
        "--methods", nargs="+", metavar="METHOD", default=methods, help=among
    )
    group.add_argument(
        "--num-features",
        nargs="+",
        type=at_least(1),
        default=num_features,
        metavar="M",
        help="sizes of the feature maps",
    )
    group.add_argument(
        "--reg",
        nargs="+",
        type=number(positive=True),
        metavar="R",
        help="candidates for the ridge penalty per example, chosen by held-out "
        f"training rows; if not given, 1e-6 to 1 times {scale}",
    )


def add_output_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """The report's folder, and whether progress is shown."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output", default=folder, metavar="DIR", help="folder of the report"
    )
    group.add_argument(
        "--no-progress", action="store_true", help="no progress bar on a terminal"
    )


def load_data(args: argparse.Namespace) -> data.Dataset:
    """The data that the options name: subsampled, flat, standardised, float32.

    Raises:
      UsageError: they cannot be read.
    """
    with usage_errors():
        if args.data == "digits":
            if args.target is not None:
                raise ValueError("--target is for tables; --data names no table")
            loaded = data.load_digits(seed=args.seed)
        else:
            loaded = data.load(args.data, args.target, task=args.task, seed=args.seed)
        _require_rows(loaded)
        loaded = loaded.take(args.num_train, args.num_test, seed=args.seed)
        loaded = loaded.flattened()
        standardize = args.standardize
        if standardize is None:
            standardize = not loaded.pixels
        return _float32(loaded.standardized() if standardize else loaded)


def load_images(args: argparse.Namespace) -> data.Dataset:
    """The labelled images that the options name: subsampled, (n, h, w, c), float32.

    Raises:
      UsageError: they cannot be read, or are no labelled images.
    """
    with usage_errors():
        if args.data == "digits":
            loaded = data.load_digits(seed=args.seed)
            loaded = loaded.take(args.num_train, args.num_test, seed=args.seed)
        else:
            loaded = data.load(
                args.data,
                num_train=args.num_train,
                num_test=args.num_test,
                seed=args.seed,
                progress=functools.partial(
                    progress, enabled=False if args.no_progress else None
                ),
            )
        _require_rows(loaded)
        if loaded.task != "classification":
            raise ValueError(
                f"{loaded.name}: its targets are numbers; this job needs labels"
            )
        return _float32(loaded.images())


def _require_rows(loaded: data.Dataset) -> None:
    if len(loaded.x_train) < 10:
        raise ValueError(
            f"{loaded.name}: {len(loaded.x_train)} training rows are too few, at "
            "least 10 are needed"
        )


def _float32(loaded: data.Dataset) -> data.Dataset:
    return dataclasses.replace(
        loaded,
        x_train=loaded.x_train.astype(np.float32, copy=False),
        x_test=loaded.x_test.astype(np.float32, copy=False),
    )
