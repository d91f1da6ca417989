"""Features of several methods and sizes, beside the exact kernel of the network.

For each feature map: the error of its kernel matrix, and the test error of ridge
regression on its features, beside exact regression with the kernel.
"""

import argparse
import contextlib
import functools
import json
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

import jax_ntk_sketch
from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch._progress import progress
from jax_ntk_sketch._typing import Key, Shape
from jax_ntk_sketch.cli import compare_report, options, report
from jax_ntk_sketch.cli.data_source import training_data
from jax_ntk_sketch.cli.inputs import init_from, inputs_from_options
from jax_ntk_sketch.cli.regression import Regression
from jax_ntk_sketch.data import Dataset
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.features._transform import transform
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.preprocessing.inputs import Inputs
from jax_ntk_sketch.validation import measures
from jax_ntk_sketch.validation._exact_kernel import ExactKernel
from jax_ntk_sketch.validation.report import Comparison, Estimate, KernelErrors

SUMMARY = "Compare features of several methods and sizes with the exact kernel."

# "auto" would repeat the row of the method that it stands for.
_METHODS = {
    "fc": tuple(name for name in options.APPROXIMATIONS if name != "auto"),
    "images": ("ntk_random_features", "variance_reduced"),
}

# Default numbers of training and test rows; fewer for exact regression on images.
_ROWS, _IMAGES = (4000, 2000), (200, 200)

# Exact regression on images is left out if it has more pairs of pixels of pairs of
# images. A second suffices for some ten million.
_PIXEL_PAIRS = 2**28


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    rows = "if not given 4000, and 2000 test rows, or 200 each of images like digits"
    options.add_data_options(parser, default="digits", rows=rows)
    options.add_network_options(parser)
    count = options.at_least(1)
    add = parser.add_argument_group("features").add_argument
    default = "if not given, all but auto that suit fc, and for image networks "
    default += " and ".join(_METHODS["images"])
    options.add_method_option(add, None, "+", default)
    m, sizes = [256, 1024, 4096], "sizes of the feature maps"
    add("--num-features", nargs="+", type=count, default=m, metavar="M", help=sizes)
    draws = "independent draws of the features, for the error bars"
    add("--num-seeds", type=count, default=3, metavar="S", help=draws)
    reg = "penalties per example to try; if not given, 1e-6 to 1 times mean K(x, x)"
    add("--reg", nargs="+", type=options.positive, help=reg)
    add = parser.add_argument_group("exact kernel").add_argument
    exact = "exact regression, N³ operations; if not given, for fc and for few images"
    add("--exact", action=argparse.BooleanOptionalAction, help=exact)
    rows = "training rows to compare kernels on; 16 images without exact regression"
    add("--num-compare", type=options.at_least(2), default=500, metavar="N", help=rows)
    memory = "most memory to plan for; if not given, that of the machine"
    add("--max-memory", type=options.positive, metavar="GB", help=memory)
    product = "folder of the report; if not given, report, report-2, report-3, ..."
    options.add_output_options(parser, product, "DIR", required=False)
    options.add_max_bytes_option(parser)


class _Task(NamedTuple):
    """The task and the rows that feature maps are compared on.

    Attributes:
      regression: the regression task.
      x, x_test: the inputs of the training and the test rows.
      rows: the numbers of the training rows that kernels are compared on.
      matrix: the exact kernel of these rows; None where there is none.
      predictions, reg: those of exact regression; None where there is none.
    """

    regression: Regression
    x: np.ndarray
    x_test: np.ndarray
    rows: np.ndarray
    matrix: np.ndarray | None = None
    predictions: np.ndarray | None = None
    reg: float | None = None


def run(args: argparse.Namespace) -> None:
    """Compare, print and write the report.

    Raises:
      UsageError: the options or the data that they name are wrong, or memory is short.
    """
    folder, show = _folder(args), options.show_progress(args)
    with options.usage_errors():
        net = options.network(args)
        data, inputs, exact = _data(args)
        maps, notes = _feature_maps(net, inputs.shape, args)
        kernel = _exact_kernel(net, exact, args)
        regression = Regression(data, args.reg, args.seed)
        inputs = inputs.learned(data.x_train)
        x = inputs(data.x_train)
        count = args.num_compare if exact or args.network == "fc" else 16
        rows = np.random.default_rng(args.seed).permutation(len(x))[:count]
        if np.all(x[rows] == x[rows[0]]):
            raise ValueError(f"{data.name}: the rows to compare kernels on are equal")
        task = _Task(regression, x, inputs(data.x_test), rows)
    notes += inputs.steps()
    if not exact:
        notes.append("Exact regression is left out; --exact computes it.")
    heading = f"{report.describe(data)}\n\nNetwork: `{net!r}`."
    print(heading, *notes, sep="\n\n", flush=True)
    keys = jax.random.split(jax.random.key(args.seed), (len(maps), args.num_seeds))
    pairs = list(zip(maps, keys, strict=True))
    try:
        with _few_threads(len(x)):
            task, found = _with_exact(task, kernel, exact, show)
            compared = [
                _evaluate(*named, map_keys, task, args.max_bytes)
                for named, map_keys in progress(pairs, "feature maps", enabled=show)
            ]
    except np.linalg.LinAlgError as error:
        raise options.UsageError(f"--reg: {error}") from error
    content = {
        **report.summary(data, args),
        "network": json.loads(stax.to_json(net)),
        "notes": notes,
        "metric": regression.targets.metric,
        "num_compare": len(rows),
        "constant_error": regression.targets.baseline(data.y_test),
        **found,
        "rows": [row for row, _ in compared],
    }
    print(f"\n{compare_report.tables(content)}\n\n{compare_report.legend(content)}\n")
    comparisons = [comparison for _, comparison in compared if comparison]
    with options.usage_errors():
        files = compare_report.files(content, heading, comparisons)
        written = report.write_files(folder, files)
    print(f"Report: {', '.join(map(str, written))}")


def _folder(args: argparse.Namespace) -> pathlib.Path:
    """Return the folder of the report.

    Raises:
      UsageError: a folder that the user names has a report already, or cannot be
        written.
    """
    folder, number = pathlib.Path(args.output or "report"), 1
    while args.output is None and folder.exists() and not args.overwrite:
        number += 1
        folder = pathlib.Path(f"report-{number}")
    file = str(folder / "report.json")
    options.output_path("--output", file, [".json"], overwrite=args.overwrite)
    return folder


def _data(args: argparse.Namespace) -> tuple[Dataset, Inputs, bool]:
    """Return the rows, the steps to the network, and whether to regress exactly."""
    data, _ = training_data(args)
    inputs = inputs_from_options(data.x_train.shape[1:], data.pixels, args)

    def affordable(n: int, n_test: int) -> bool:
        pairs = (n // 2 + n_test) * n * math.prod(inputs.shape[:-1]) ** 2
        return args.network == "fc" or pairs <= _PIXEL_PAIRS

    small = args.network != "fc" and affordable(*_IMAGES)
    n, n_test = _IMAGES if small else _ROWS
    data = data.take(args.num_train or n, args.num_test or n_test, seed=args.seed)
    n, n_test = len(data.x_train), len(data.x_test)
    if n < 10 or n_test == 0:
        raise ValueError(
            f"{data.name}: {n} training and {n_test} test rows are too few; at least "
            "10 and 1 are needed"
        )
    exact = affordable(n, n_test) if args.exact is None else args.exact
    needed = 12 * (n + n_test) * max(args.num_features)
    needed = max(needed, 8 * n * (3 * n + n_test) if exact else 0)
    remedy = "give a smaller --num-train or --num-features"
    options.require_memory(needed, args.max_memory, f"comparing on {n} rows", remedy)
    return data, inputs, exact


def _feature_maps(
    net: stax.Layer, shape: Shape, args: argparse.Namespace
) -> tuple[list[tuple[str, NetworkFeatureMap]], list[str]]:
    """Return a map per method and size, and notes on methods that are left out.

    Raises:
      ValueError: a method that the user names does not suit the network, or none does.
    """
    maps, notes = [], []
    default = _METHODS["fc" if args.network == "fc" else "images"]
    for method in dict.fromkeys(args.method or default):
        try:
            for size in sorted(set(args.num_features)):
                fmap = jax_ntk_sketch.feature_map(
                    net, num_features=size, get=args.kernel, method=method
                )
                fmap.plan(shape)
                maps.append((method, fmap))
        except ValueError as error:
            if args.method:
                raise
            notes.append(f"{method} is left out: {error}")
    if not maps:
        raise ValueError(f"no method suits this network: {'; '.join(notes)}")
    return maps, notes


def _exact_kernel(
    net: stax.Layer, exact: bool, args: argparse.Namespace
) -> ExactKernel | None:
    """Return the exact kernel; None where an image network has none to compare with.

    Raises:
      ImportError: Neural Tangents is not installed, and exact regression needs it.
    """
    if args.network == "fc":
        closed_form: Any = functools.partial(kernels.exact_kernel, net, get=args.kernel)
        return ExactKernel(jax.jit(closed_form), args.max_bytes)
    try:
        kernel_fn: Any = jnt.to_stax(net)[2]
    except ImportError:
        if exact:
            raise
        return None
    function = functools.partial(kernel_fn, get=args.kernel)
    return ExactKernel(jax.jit(function), args.max_bytes)


def _with_exact(
    task: _Task, kernel: ExactKernel | None, exact: bool, show: bool | None
) -> tuple[_Task, report.Json]:
    """Return the task with the exact kernel, and the errors of the references."""
    regression, x, x_test, rows = task[:4]
    plain = [np.c_[z.reshape(len(z), -1), np.ones(len(z))] for z in (x, x_test)]
    inputs_error = regression.error(regression.on_features(*plain)[0])
    found: report.Json = {"inputs_error": inputs_error, "exact": None}
    if kernel is None:
        return task, found
    if not exact:
        return task._replace(matrix=kernel(x[rows], show=show)), found
    start = time.perf_counter()
    matrix, cross = kernel(x, show=show), kernel(x_test, x, show=show)
    middle = time.perf_counter()
    predictions, reg = regression.on_kernel(matrix, cross)
    found["exact"] = {
        "error": regression.error(predictions),
        "reg": reg,
        "seconds": {"features": middle - start, "fit": time.perf_counter() - middle},
    }
    matrix = matrix[np.ix_(rows, rows)]
    return task._replace(matrix=matrix, predictions=predictions, reg=reg), found


def _evaluate(
    method: str,
    fmap: NetworkFeatureMap,
    keys: Key,
    task: _Task,
    max_bytes: int | None,
) -> tuple[report.Json, Comparison | None]:
    """Return errors and times of one feature map, over a draw for each key."""
    regression, x, x_test = task[:3]
    train = Inputs(x.shape[1:]).prepare(x)
    featurize: Any = functools.partial(
        transform, fmap, max_bytes=max_bytes, progress=False
    )
    start = time.perf_counter()
    featurize(init_from(fmap, keys[0], train), x[:1])
    seconds = {"compile": time.perf_counter() - start, "features": 0.0, "fit": 0.0}
    errors, distances, kernel_errors, reg = [], [], [], None
    for key in keys:
        start = time.perf_counter()
        params = init_from(fmap, key, train)
        phi, phi_test = featurize(params, x), featurize(params, x_test)
        middle = time.perf_counter()
        # The penalty is chosen once for each map.
        predictions, reg = regression.on_features(phi, phi_test, reg)
        seconds["features"] += (middle - start) / len(keys)
        seconds["fit"] += (time.perf_counter() - middle) / len(keys)
        errors.append(regression.error(predictions))
        penalty = task.reg or reg
        if task.predictions is not None:
            distance = np.linalg.norm(predictions - task.predictions)
            distances.append(float(distance / np.linalg.norm(task.predictions)))
        if task.matrix is not None:
            phi = phi[task.rows].astype(np.float64)
            kernel_errors.append(_errors(task.matrix, phi @ phi.T, penalty))
    kind = fmap.kinds[0]
    comparison = None
    if kernel_errors:
        estimates = map(Estimate, zip(*kernel_errors, strict=True))
        sizes = (fmap.num_features, len(task.rows), len(keys), penalty)
        both = {kind: KernelErrors(*estimates)}
        comparison = Comparison(*sizes, both.get("ntk"), both.get("nngp"), method)
    return {
        "method": method,
        "num_features": fmap.num_features,
        "test_error": errors,
        "distance": distances,
        "kernel_error": comparison and json.loads(comparison.to_json())[kind],
        "reg": reg,
        "rows_per_second": (len(x) + len(x_test)) / seconds["features"],
        "bytes": fmap.plan(x.shape[1:], batch_size=1).peak_bytes,
        "seconds": seconds,
    }, comparison


def _errors(exact: np.ndarray, guess: np.ndarray, reg: float) -> tuple[float, ...]:
    """Return the errors of a kernel matrix in the order of `KernelErrors`."""
    return (
        measures.relative_error(exact, guess),
        measures.centered_relative_error(exact, guess),
        measures.max_abs_error(exact, guess),
        measures.spectral_error(exact, guess, reg),
    )


def _few_threads(n: int) -> contextlib.AbstractContextManager[object]:
    """Let BLAS use one thread where matrices are n x n and n is at most 2000.

    Its threads wait for each other actively, so that on a machine with other work two
    of them were 30 times slower than one.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # it comes with scikit-learn
        return contextlib.nullcontext()
    return threadpool_limits(1 if n <= 2000 else None, user_api="blas")
