"""The job on images: ridge classifiers on features of a convolutional NTK.

For every method and growing `num_features`: accuracy beside a linear classifier on the
pixels, images per second, memory planned and measured, and on a few images the error
against the exact kernel.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np

from jax_ntk_sketch import recipes, stax
from jax_ntk_sketch.cli import arguments
from jax_ntk_sketch.cli.blas import one_thread_if_small
from jax_ntk_sketch.cli.exact import RELATIVE_REGS, Kernel
from jax_ntk_sketch.cli.features import (
    APPROXIMATIONS,
    CompiledFeatures,
    check_methods,
    compare_drawn,
    compile_features,
    planned,
    some_rows,
)
from jax_ntk_sketch.cli.images_outcome import ImageRow, ImagesOutcome
from jax_ntk_sketch.cli.memory import PeakGrowth, peak_resident
from jax_ntk_sketch.cli.pixels import add_preprocessing_arguments, preprocess
from jax_ntk_sketch.cli.report import check_folder, chosen_options, describe_data
from jax_ntk_sketch.cli.ridge import Targets, fit_features
from jax_ntk_sketch.data import Dataset
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.interop import neural_tangents as jnt

__all__ = ["NETWORKS", "SUMMARY", "add_arguments", "run"]

SUMMARY = (
    "Classifies images by ridge regression on features of a convolutional NTK, checks "
    "them against the exact kernel, and tells speed and memory."
)

NETWORKS = ("cntk", "myrtle5", "myrtle7", "myrtle10")

# Bytes that the exact kernel of a block of images may take, of which each pair of
# images takes about 24 for each pair of their pixels.
_EXACT_BYTES = 2**28
_PAIR_BYTES = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the job."""
    arguments.add_data_arguments(parser, images=True)
    add_preprocessing_arguments(parser)
    group = parser.add_argument_group("network")
    group.add_argument(
        "--network", choices=NETWORKS, default="cntk", help="of jax_ntk_sketch.recipes"
    )
    group.add_argument(
        "--depth",
        type=arguments.at_least(1),
        help="convolutions of cntk; 3 if not given",
    )
    arguments.add_network_arguments(group)
    group = parser.add_argument_group("features")
    arguments.add_feature_arguments(
        group,
        methods=["ntk_random_features"],
        among=f"among {', '.join(APPROXIMATIONS)}, auto, those that can do the network",
        num_features=[512, 2048, 8192],
        scale="the features' mean squared norm",
    )
    group.add_argument(
        "--batch-mib",
        type=arguments.at_least(1),
        default=256,
        metavar="MIB",
        help="most memory that a batch and the parameters may take by the plan",
    )
    group = parser.add_argument_group("exact kernel")
    group.add_argument(
        "--num-compare",
        type=arguments.at_least(0),
        metavar="N",
        help="training images on which kernels are compared, 0 for none; if not given "
        "40, or fewer where images are large (16 of 32x32)",
    )
    group.add_argument(
        "--num-seeds",
        type=arguments.at_least(1),
        default=3,
        metavar="S",
        help="independent draws of the features that are compared; the first is used "
        "for the classifier",
    )
    arguments.add_output_arguments(parser, "report-images")


def run(args: argparse.Namespace) -> None:
    """Runs the job and writes its report.

    Raises:
      UsageError: the options or the data they name are wrong.
    """
    folder = check_folder(args.output)
    net = network(args)
    raw = arguments.load_images(args)
    shape = raw.x_train.shape[1:]
    maps = _feature_maps(net, shape, args)
    data, why = preprocess(raw, args)
    compared = _compared(data, args)
    kernel, exact = _exact_kernel(net, shape, compared)
    print(f"{describe_data(data)}\n{why}\nNetwork: {net!r}")
    for method, fmap in maps:
        if fmap.num_features == max(args.num_features):
            plan = fmap.plan(shape)
            size = plan.choose_batch_size(len(data.x_train), _max_bytes(args))
            print(f"\n{method}:\n{fmap.plan(shape, batch_size=size)}")
    print(f"\nExact kernel: {exact}.\n", flush=True)
    targets = Targets.of(data, args.seed)
    with one_thread_if_small(max(len(data.x_train), *args.num_features)):
        pixels = _on_pixels(raw, targets, args.reg)
        evaluated = []
        keys = jax.random.split(jax.random.key(args.seed), (len(maps), args.num_seeds))
        for map_keys, (method, fmap) in zip(keys, maps, strict=True):
            evaluated.append(_evaluate(fmap, method, targets, compared, map_keys, args))
            print(_line(evaluated[-1][0]), flush=True)
        rows = [row for row, _ in evaluated]
        if kernel is not None:
            matrix = kernel.symmetric(
                data.x_train[compared],
                announce=lambda s: print(f"Exact kernel: about {s:.0f} s", flush=True),
                show=_show(args),
            )
            rows = [
                _compare(row, drawn, matrix, data.x_train[compared])
                for row, drawn in evaluated
            ]
    outcome = ImagesOutcome(
        data=data,
        why=why,
        net=net,
        chance=targets.baseline(),
        pixels=pixels,
        exact=exact,
        exact_seconds={} if kernel is None else kernel.seconds,
        rows=tuple(rows),
        options=chosen_options(args),
    )
    outcome.publish(folder)


def network(args: argparse.Namespace) -> stax.Layer:
    """The recipe that the options name.

    Raises:
      UsageError: a depth for a network that has its own.
    """
    if args.network == "cntk":
        depth = 3 if args.depth is None else args.depth
        return recipes.cntk(depth, W_std=args.W_std, b_std=args.b_std)
    if args.depth is not None:
        raise arguments.UsageError(
            f"--depth is for --network cntk; {args.network} has a depth of its own"
        )
    depth = int(args.network.removeprefix("myrtle"))
    return recipes.myrtle(depth, W_std=args.W_std, b_std=args.b_std)


def _show(args: argparse.Namespace) -> bool | None:
    return False if args.no_progress else None


def _max_bytes(args: argparse.Namespace) -> int:
    return args.batch_mib * 2**20


def _feature_maps(
    net: stax.Layer, shape: tuple[int, ...], args: argparse.Namespace
) -> list[tuple[str, NetworkFeatureMap]]:
    """One map per method and size, each known to fit images and memory."""
    with arguments.usage_errors():
        maps = [
            (name, planned(net, shape, name, size))
            for name in check_methods(args.methods)
            for size in sorted(set(args.num_features))
        ]
        for _, fmap in maps:
            fmap.plan(shape).choose_batch_size(1, _max_bytes(args))
    return maps


def _compared(data: Dataset, args: argparse.Namespace) -> np.ndarray:
    """The numbers of the training images that kernels are compared on."""
    count = args.num_compare
    if count is None:
        # The exact kernel's time is that of pairs of pixels of pairs of images.
        height, width = data.x_train.shape[1:3]
        count = int(np.clip(2**14 // (height * width), 8, 40))
    if count == 0:
        return np.arange(0)
    if count == 1:
        raise arguments.UsageError("--num-compare must be 0 or at least 2, got 1")
    return some_rows(data.x_train, count, args.seed)


def _exact_kernel(
    net: stax.Layer, shape: tuple[int, ...], compared: np.ndarray
) -> tuple[Kernel | None, str]:
    """Neural Tangents' NTK; or None, and why not."""
    if len(compared) == 0:
        return None, "not compared (--num-compare 0)"
    try:
        _, _, kernel_fn = jnt.to_stax(net)
    except ImportError:
        return None, "not compared (neural-tangents is not installed)"
    pairs = _EXACT_BYTES // (_PAIR_BYTES * int(np.prod(shape[:-1])) ** 2)
    block = max(int(pairs**0.5), 1)
    kernel = Kernel(lambda x1, x2: kernel_fn(x1, x2, "ntk"), block)
    return kernel, f"neural-tangents, on {len(compared)} training images"


def _evaluate(
    fmap: NetworkFeatureMap,
    method: str,
    targets: Targets,
    compared: np.ndarray,
    keys: jax.Array,
    args: argparse.Namespace,
) -> tuple[ImageRow, list[np.ndarray]]:
    """One feature map: classifier, times and memory; and features to compare.

    The latter are of the training images numbered `compared`, one array per key; the
    first key's map is the classifier's.
    """
    data = targets.data
    features = compile_features(fmap, data.x_train, max_bytes=_max_bytes(args))
    growth = PeakGrowth()
    (phi, phi_test), seconds = features(
        keys[0], data.x_train, data.x_test, progress=_show(args)
    )
    grown, peak = growth.bytes(), peak_resident()
    start = time.perf_counter()
    predictions, reg = fit_features(phi, phi_test, targets, _regs(phi, args.reg))
    row = ImageRow(
        method=method,
        num_features=fmap.num_features,
        batch_size=features.batch_size,
        planned_bytes=_planned_bytes(features, data),
        feature_bytes=phi.nbytes + phi_test.nbytes,
        grown_bytes=grown,
        peak_bytes=peak,
        num_images=len(phi) + len(phi_test),
        accuracy=targets.score(predictions),
        reg=reg,
        seconds={
            "compile": features.seconds,
            "features": seconds,
            "fit": time.perf_counter() - start,
        },
    )
    drawn = [phi[compared]]
    if len(compared):
        drawn += [features(key, data.x_train[compared])[0][0] for key in keys[1:]]
    return row, drawn


def _planned_bytes(features: CompiledFeatures, data: Dataset) -> int:
    shape = data.x_train.shape[1:]
    return features.fmap.plan(shape, batch_size=features.batch_size).peak_bytes


def _compare(
    row: ImageRow, drawn: list[np.ndarray], matrix: np.ndarray, x: np.ndarray
) -> ImageRow:
    comparison = compare_drawn(drawn, matrix, x, reg=row.reg, label=row.method)
    return dataclasses.replace(row, comparison=comparison)


def _on_pixels(
    raw: Dataset, targets: Targets, regs: Sequence[float] | None
) -> dict[str, float]:
    """Ridge regression on the pixels and a constant: what a linear model reaches."""
    start = time.perf_counter()
    x, x_test = (
        np.pad(part.reshape(len(part), -1), ((0, 0), (0, 1)), constant_values=1)
        for part in (raw.x_train, raw.x_test)
    )
    predictions, reg = fit_features(x, x_test, targets, _regs(x, regs))
    seconds = time.perf_counter() - start
    return {"accuracy": targets.score(predictions), "reg": reg, "seconds": seconds}


def _regs(phi: np.ndarray, regs: Sequence[float] | None) -> list[float]:
    """The user's candidates; or some relative to the mean of phi @ phi.T's diagonal."""
    if regs is not None:
        return list(regs)
    scale = float(np.square(phi, dtype=np.float64).sum(axis=1).mean()) or 1.0
    return [scale * value for value in RELATIVE_REGS]


def _line(row: ImageRow) -> str:
    return (
        f"{row.method}, {row.num_features} features: accuracy {row.accuracy:.4f}, "
        f"{row.images_per_second:.0f} images/s"
    )
