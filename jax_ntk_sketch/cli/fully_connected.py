"""The main job: a fully connected ReLU network's NTK, sketched and checked.

For every method and growing `num_features`: the error against the exact kernel, and
what ridge regression on the features reaches beside exact NTK regression.
"""

import argparse
import functools
import time
from typing import Any

import jax
import numpy as np

from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch._progress import progress
from jax_ntk_sketch.cli import arguments
from jax_ntk_sketch.cli.blas import one_thread_if_small
from jax_ntk_sketch.cli.exact import (
    ExactFit,
    Kernel,
    fit_exact,
    kernel_bytes,
    require_memory,
)
from jax_ntk_sketch.cli.features import (
    APPROXIMATIONS,
    check_methods,
    compare_drawn,
    compile_features,
    planned,
    some_rows,
)
from jax_ntk_sketch.cli.outcome import Outcome, Row
from jax_ntk_sketch.cli.report import check_folder, chosen_options, describe_data
from jax_ntk_sketch.cli.ridge import Targets, fit_features
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.validation.report import Estimate

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = (
    "Sketches the NTK of a fully connected ReLU network, checks it against the exact "
    "kernel and learns with it."
)

# A num_features that is enough for every method.
_AMPLE = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the job."""
    arguments.add_data_arguments(parser, images=False)
    group = parser.add_argument_group("network")
    group.add_argument(
        "--depth", type=arguments.at_least(0), default=2, help="hidden layers"
    )
    arguments.add_network_arguments(group)
    group = parser.add_argument_group("features")
    arguments.add_feature_arguments(
        group,
        methods=None,
        among=f"among {', '.join(APPROXIMATIONS)}, auto; if not given, all that can do "
        "the network",
        num_features=[256, 1024, 4096],
        scale="the mean of K(x, x)",
    )
    group.add_argument(
        "--num-seeds",
        type=arguments.at_least(1),
        default=3,
        metavar="S",
        help="independent draws of the features, for the error bars",
    )
    group.add_argument(
        "--num-compare",
        type=arguments.at_least(2),
        default=500,
        metavar="N",
        help="training rows on which kernels are compared",
    )
    arguments.add_output_arguments(parser, "report")


def run(args: argparse.Namespace) -> None:
    """Runs the job and writes its report.

    Raises:
      UsageError: the options or the data they name are wrong.
    """
    folder = check_folder(args.output)
    data = arguments.load_data(args)
    net = network(args.depth, args.W_std, args.b_std)
    shape = data.x_train.shape[1:]
    maps, notes = _feature_maps(net, shape, args)
    n = len(data.x_train)
    require_memory(n)
    kernel, source = _exact_kernel(net, args)
    targets = Targets.of(data, args.seed)
    compared = some_rows(data.x_train, args.num_compare, args.seed)
    print(f"{describe_data(data)}\nNetwork: {net!r}")
    for method, fmap in maps:
        if fmap.num_features == max(args.num_features):
            print(f"\n{method}:\n{fmap.plan(shape)}")
    for note in notes:
        print(f"\n{note}")
    print(
        f"\nExact kernel: {source}; {kernel_bytes(n) / 1e6:.1f} MB for {n} rows in "
        "float64, three times that while it is solved.",
        flush=True,
    )
    keys = jax.random.split(jax.random.key(args.seed), (len(maps), args.num_seeds))
    with one_thread_if_small(n):
        exact = fit_exact(kernel, targets, args.reg)
        matrix = Kernel(kernel.function).symmetric(data.x_train[compared])
        rows = [
            _evaluate(fmap, method, targets, exact, compared, matrix, map_keys)
            for map_keys, (method, fmap) in progress(
                list(zip(keys, maps, strict=True)),
                "feature maps",
                enabled=False if args.no_progress else None,
            )
        ]
    outcome = Outcome(
        data=data,
        net=net,
        kernel_source=source,
        metric=targets.metric,
        baseline=targets.baseline(),
        exact_score=targets.score(exact.predictions),
        exact_reg=exact.reg,
        exact_seconds=exact.seconds,
        num_compare=len(compared),
        rows=tuple(rows),
        options=chosen_options(args),
    )
    outcome.publish(folder)


def network(depth: int, W_std: float, b_std: float | None) -> stax.Layer:
    """The network with `depth` hidden ReLU layers and one output.

    >>> network(1, 1.0, None)
    stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
    """
    hidden = (stax.Dense(512, W_std, b_std), stax.Relu())
    return stax.serial(*hidden * depth, stax.Dense(1, W_std, b_std))


def _feature_maps(
    net: stax.Layer, shape: tuple[int, ...], args: argparse.Namespace
) -> tuple[list[tuple[str, Any]], list[str]]:
    """One map per method and size, each known to fit; and notes on what does not.

    Without --methods, a method that cannot do the network is left out with a note.
    """
    maps, notes = [], []
    with arguments.usage_errors():
        for name in check_methods(args.methods or APPROXIMATIONS):
            if not args.methods:
                try:
                    planned(net, shape, name, _AMPLE)
                except ValueError as error:
                    notes.append(f"{name} is left out: {error}")
                    continue
            sizes = sorted(set(args.num_features))
            maps += [(name, planned(net, shape, name, size)) for size in sizes]
        if not maps:
            raise ValueError(f"no method can do this network: {'; '.join(notes)}")
    return maps, notes


def _exact_kernel(net: stax.Layer, args: argparse.Namespace) -> tuple[Kernel, str]:
    """The exact NTK: Neural Tangents' where installed, else the closed form."""
    try:
        _, _, kernel_fn = jnt.to_stax(net)
    except ImportError:
        closed_form = functools.partial(kernels.exact_kernel, net, get="ntk")
        return Kernel(closed_form), "closed form (neural-tangents is not installed)"
    return Kernel(lambda x1, x2: kernel_fn(x1, x2, "ntk")), "neural-tangents"


def _evaluate(
    fmap: Any,
    method: str,
    targets: Targets,
    exact: ExactFit,
    compared: np.ndarray,
    matrix: np.ndarray,
    keys: jax.Array,
) -> Row:
    """One feature map: kernel error, regression and times of a draw per key.

    `matrix` is the exact kernel of the training rows numbered `compared`.
    """
    data = targets.data
    features = compile_features(fmap, data.x_train)
    regs, seconds = exact.regs, np.zeros(2)
    scores, drawn = [], []
    for key in keys:
        (phi, phi_test), feature_seconds = features(key, data.x_train, data.x_test)
        start = time.perf_counter()
        predictions, reg = fit_features(phi, phi_test, targets, regs)
        seconds += feature_seconds, time.perf_counter() - start
        scores.append(targets.score(predictions))
        drawn.append(phi[compared])
        regs = [reg]  # chosen once per map
    comparison = compare_drawn(
        drawn, matrix, data.x_train[compared], reg=exact.reg, label=method
    )
    seconds /= len(keys)
    return Row(
        method=method,
        num_features=fmap.num_features,
        comparison=comparison,
        score=Estimate(tuple(scores)),
        reg=regs[0],
        seconds={
            "compile": features.seconds,
            "features": float(seconds[0]),
            "fit": float(seconds[1]),
        },
    )
