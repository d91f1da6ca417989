"""What commands share: a user's mistakes, argument types, the data options."""

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from jax_ntk_sketch import data

__all__ = [
    "HelpFormatter",
    "OneLineParser",
    "UsageError",
    "add_data_arguments",
    "at_least",
    "load_data",
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


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `load_data` reads."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        metavar="PATH",
        default="digits",
        help="an .npz archive, a .csv table, MNIST idx files (a folder of the four, "
        "or one images file); 'digits' for scikit-learn's bundled images",
    )
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
    group.add_argument(
        "--num-train",
        type=at_least(10),
        default=4000,
        metavar="N",
        help="most training rows; exact regression takes N² numbers, N³ operations",
    )
    group.add_argument(
        "--num-test", type=at_least(1), default=2000, metavar="N", help="most test rows"
    )
    group.add_argument(
        "--seed", type=at_least(0), default=0, help="of every random choice"
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
        if len(loaded.x_train) < 10:
            raise ValueError(
                f"{loaded.name}: {len(loaded.x_train)} training rows are too few, at "
                "least 10 are needed"
            )
        loaded = loaded.take(args.num_train, args.num_test, seed=args.seed)
        loaded = loaded.flattened()
        standardize = args.standardize
        if standardize is None:
            standardize = not loaded.pixels
        if standardize:
            loaded = loaded.standardized()
        return dataclasses.replace(
            loaded,
            x_train=loaded.x_train.astype(np.float32),
            x_test=loaded.x_test.astype(np.float32),
        )
