"""Usage errors, types of arguments, and the options that several commands share."""

import argparse
import contextlib
import math
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import jax_ntk_sketch
from jax_ntk_sketch import methods, recipes, stax
from jax_ntk_sketch._files import machine_bytes
from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch._units import format_bytes
from jax_ntk_sketch.data._dataset import TASKS
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap

# "exact" is the oracle, whose features depend on the batch.
APPROXIMATIONS = tuple(name for name in methods.METHODS if name != "exact")

# The options that describe a feature map, and that a model is saved with.
FEATURE_OPTIONS = ("num_features", "kernel", "method", "objective")

_NETWORKS = ("fc", "cntk", "myrtle5", "myrtle7", "myrtle10")
# Hidden layers of "fc" and convolutions of "cntk" where the user gives no --depth.
_DEPTHS = {"fc": 2, "cntk": 3}


class UsageError(Exception):
    """A mistake of the user; the command line prints it and exits with status 2."""


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports mistakes as `UsageError`, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError`."""
        raise UsageError(f"{message} (see --help)")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """A formatter that adds defaults to help texts where there are some."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn complaints of the library about its input into `UsageError`.

    It is for steps that check the options and the data. Elsewhere an exception is a bug
    and keeps its traceback. Warnings of the library are printed in one line each.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = lambda message, *rest, **named: warn(str(message))
        try:
            yield
        except (ValueError, TypeError, OSError, ImportError, OverflowError) as error:
            raise UsageError(str(error)) from error


def warn(text: str) -> None:
    """Print a warning in one line."""
    print(f"python -m jax_ntk_sketch: warning: {text}", file=sys.stderr, flush=True)


def at_least(least: int) -> Callable[[str], int]:
    """Return an argparse type: integers from `least` on."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise argparse.ArgumentTypeError(
            f"expected an integer of at least {least}, got {text!r}"
        )

    return parse


def number(text: str) -> float:
    """Return a finite number >= 0, as an argparse type."""
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)) and float(text) >= 0:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a finite number >= 0, got {text!r}")


def positive(text: str) -> float:
    """Return a finite number > 0, as an argparse type."""
    if number(text) == 0:
        raise argparse.ArgumentTypeError("expected a number > 0, got 0")
    return float(text)


def add_data_options(
    parser: argparse.ArgumentParser, *, default: str | None, rows: str | None
) -> None:
    """Add the options that name data.

    Args:
      parser: the parser of a command.
      default: the default of --data; without one the option is required.
      rows: how many training and test rows are used by default; None if the data have
        no such parts.
    """
    add = parser.add_argument_group("data").add_argument
    kinds = (
        "a table (.csv, .parquet, ...), an .npz archive, MNIST's idx files, CIFAR's "
        "batches or archive, or 'digits' for the images in scikit-learn; or examples "
        "(n, ...) as an .npy file, which is read batch by batch"
    )
    required = default is None
    add("--data", metavar="PATH", default=default, required=required, help=kinds)
    add("--targets", metavar="NPY", help="with an .npy file: targets (n,) or (n, t)")
    add("--target-column", metavar="COLUMN", help="name or index of a table's column")
    if rows is None:
        return
    add("--seed", type=at_least(0), default=0, help="seed of every random choice")
    add("--test-data", metavar="NPY", help="with an .npy file: examples to test on")
    add("--test-targets", metavar="NPY", help="targets of --test-data")
    task = "if not given, text and up to 100 distinct integers are classes"
    add("--task", choices=TASKS, help=task)
    most = f"largest number of training rows; {rows}"
    add("--num-train", metavar="N", type=at_least(10), help=most)
    most = "largest number of test rows"
    add("--num-test", metavar="N", type=at_least(1), help=most)


def add_method_option(
    add: Callable[..., object], default: str | None, nargs: str | None, help: str
) -> None:
    """Add --method to a group of options; `help` follows the names of the methods."""
    names, text = APPROXIMATIONS, f"{', '.join(APPROXIMATIONS)}; {help}"
    form = {"nargs": nargs, "choices": names, "default": default, "metavar": "METHOD"}
    add("--method", **form, help=text)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of preprocessing, of the network and of its kernel."""
    title, flag = "preprocessing, learned from training", argparse.BooleanOptionalAction
    add = parser.add_argument_group(title).add_argument
    each = "give each {} mean 0 and deviation 1; if not given, done for {}"
    columns = each.format("column", "fc unless examples are pixels")
    add("--standardize-columns", action=flag, help=columns)
    images = each.format("image", "images that have color or are whitened")
    add("--standardize-images", action=flag, help=images)
    zca = "whiten images; if not given, done for color images of at most 4096 numbers"
    add("--zca", action=flag, help=zca)
    zca_reg = "added to the eigenvalues, in units of their mean"
    add("--zca-reg", type=number, default=0.1, metavar="R", help=zca_reg)
    add = parser.add_argument_group("network").add_argument
    recipe = "fully connected, or a convolutional network of jax_ntk_sketch.recipes"
    add("--network", choices=_NETWORKS, default="fc", help=recipe)
    depth = "hidden layers of fc (2 if not given), convolutions of cntk (3)"
    add("--depth", type=at_least(0), help=depth)
    weight = "standard deviation of the weights"
    add("--weight-std", type=positive, default=2**0.5, metavar="STD", help=weight)
    bias = "standard deviation of the biases; if not given, there are none"
    add("--bias-std", type=number, metavar="STD", help=bias)
    kernels = ("ntk", "nngp")
    add("--kernel", choices=kernels, default="ntk", help="kernel of the network")


def add_max_bytes_option(parser: argparse.ArgumentParser) -> None:
    """Add --max-bytes, which commands that compute features have."""
    text = (
        "bytes that examples may take while their features are computed, besides the "
        "parameters; if not given, 256 MiB on a CPU and a quarter of a device's memory"
    )
    parser.add_argument("--max-bytes", metavar="B", type=at_least(1), help=text)


def add_output_options(
    parser: argparse.ArgumentParser, product: str, metavar: str, *, required: bool
) -> None:
    """Add the options of the output of a command, which `product` describes."""
    add = parser.add_argument_group("output").add_argument
    add("--output", metavar=metavar, required=required, help=product)
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--no-progress", action="store_true", help="show no progress bar")


def show_progress(args: argparse.Namespace) -> bool | None:
    """Return the argument `progress` of the library's functions."""
    return False if args.no_progress else None


def network(args: argparse.Namespace) -> stax.Layer:
    """Return the network that the options name.

    Raises:
      ValueError: --depth is given for a network whose depth is fixed.
    """
    name, stds = args.network, {"W_std": args.weight_std, "b_std": args.bias_std}
    if name not in _DEPTHS:
        if args.depth is not None:
            raise ValueError(f"--depth is for fc and cntk; {name} has its own depth")
        return recipes.myrtle(int(name.removeprefix("myrtle")), **stds)
    depth = _DEPTHS[name] if args.depth is None else args.depth
    if name == "cntk":
        return recipes.cntk(depth, **stds)
    hidden = (stax.Dense(512, **stds), stax.Relu())
    return stax.serial(*hidden * depth, stax.Dense(1, **stds))


def feature_map(
    net: stax.Layer, num_features: int, kernel: Kind, method: str, objective: str | None
) -> NetworkFeatureMap:
    """Return the feature map that the `FEATURE_OPTIONS` describe.

    Raises:
      ValueError: the method has no objective, or does not suit the network.
    """
    record = methods.from_name(method)
    if objective is not None:
        if method != "variance_reduced":
            raise ValueError(f"--objective is for variance_reduced, got {method}")
        record = methods.VarianceReduced(objective=objective)
    return jax_ntk_sketch.feature_map(
        net, num_features=num_features, get=kernel, method=record
    )


def output_path(
    option: str, path: str, suffixes: Sequence[str], *, overwrite: bool
) -> pathlib.Path:
    """Return the path of a file, or of a folder (suffix ""), that can be written.

    Raises:
      UsageError: the suffix is wrong, the file exists and `overwrite` is False, or its
        folder cannot be written.
    """
    file = pathlib.Path(path)
    if file.suffix not in suffixes:
        raise UsageError(f"{option} {path}: must end in {' or '.join(suffixes)}")
    if file.is_dir():
        raise UsageError(f"{option} {path} is a folder, expected a file")
    if file.exists() and not overwrite:
        raise UsageError(
            f"{option} {path} exists; give another path, or --overwrite to replace it"
        )
    folder = file.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: cannot write in {folder}")
    return file


def require_memory(
    needed: int, limit_gb: float | None, subject: str, remedy: str
) -> None:
    """Raise a `UsageError` if a job needs more memory than there is.

    Args:
      needed: bytes.
      limit_gb: the value of --max-memory; None for the memory of the machine.
      subject: the subject of the message, which takes `needed` bytes.
      remedy: the advice in the message.
    """
    limit = machine_bytes() if limit_gb is None else int(limit_gb * 1e9)
    if limit and needed > limit:
        raise UsageError(
            f"{subject} takes about {format_bytes(needed)} and there are "
            f"{format_bytes(limit)}; {remedy}"
        )
