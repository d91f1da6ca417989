"""Convolutional networks: error and speed against width and against pixels.

    python benchmarks/convolutional.py accuracy --data FOLDER
    python benchmarks/convolutional.py throughput pixels

The network has three 3 x 3 convolutions, two average pools and global average pooling.
"accuracy" measures the centered error of the features' Gram matrices against the exact
CNTK on 80 CIFAR-10 images of 16 x 16 pixels. There are M columns of NNGP features and
2 M of NTK features. The error is the root mean square over seeds, and landmarks come
from other images. "throughput" measures images per second at 32 x 32 x 3 pixels and
1024 features. "pixels" measures the time per image against the number of pixels, and
the exact kernel's time per pair.
"""

import functools
import itertools

import common
import jax
import jax.numpy as jnp
import maps
import numpy as np
from cntk_regression import exact_kernel

import jax_ntk_sketch as jns
from jax_ntk_sketch.interop import neural_tangents as jnt

# Root mean square of the centered errors (NNGP, NTK) of the published random features.
PUBLISHED = {128: (0.395, 0.292), 256: (0.239, 0.238), 512: (0.207, 0.127)}

# Images per second of other implementations on two such cores, at 32 x 32 x 3 pixels.
PUBLISHED_SPEED = {
    "PyTorch CNTKSketch, three convolutions, 1024 outputs": 4.7,
    "JAX proposal, random features of width 512, two pools": 12.0,
    "JAX proposal, PolySketch of width 512, two pools": 9.0,
}

METHODS = (
    "auto", "variance_reduced, regression", "variance_reduced",
    "nystrom", "ntk_random_features",
    "published random features", "ntk_sketch, uncompressed",
    "ntk_sketch, degrees 2, 1, uncompressed",
)  # fmt: skip
NET = jns.recipes.cntk(3)
IMAGE = (32, 32, 3)


def standardized(args: common.Options) -> tuple[np.ndarray, np.ndarray]:
    """Return images to measure errors on, and others to learn from, as float32.

    The former standardize each color channel.
    """
    x, _ = common.small_images(args.data, None, args.side)
    chosen = slice(args.first, args.first + args.num)
    known, others = x[chosen], np.delete(x, chosen, axis=0)[-args.others :]
    mean, spread = known.mean(axis=(0, 1, 2)), known.std(axis=(0, 1, 2))
    known, others = (((z - mean) / spread).astype("f4") for z in (known, others))
    return known, others


def accuracy(args: common.Options) -> None:
    """Measure centered errors, and put the published ones beside them."""
    x, others = standardized(args)
    kinds = ("nngp", "ntk")
    exact = {kind: exact_kernel(NET, x, len(x), args.output, kind) for kind in kinds}
    records = []
    for width in args.widths:
        sizes = (("nngp", width), ("ntk", 2 * width))
        for name, (kind, columns) in itertools.product(args.methods, sizes):
            fmap = maps.feature_map(NET, name, columns, kind)
            sample = others if name == "nystrom" else x
            errors = maps.gram_errors(fmap, exact[kind], x, args.seeds, sample, 4)[:, 1]
            error, se = maps.root_mean_square(errors)
            record = {"width": width, "column": f"{name}, {kind.upper()}"}
            records.append({**record, "error": error, "se": se})
            print(records[-1], flush=True)
        for kind, error in zip(("NNGP", "NTK"), PUBLISHED.get(width, ()), strict=False):
            column = f"published code of random features, {kind}"
            records.append({"width": width, "column": column, "error": error})
    text, errors = (
        common.wide_table(records, "M", "{width}", "{column}", value)
        for value in ("{error:.3f}", "{se:.3f}")
    )
    text = f"{text}\n\nStandard errors:\n\n{errors}"
    common.report(args, "convolutional-accuracy", text, records)


def throughput(args: common.Options) -> None:
    """Measure images per second."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, *IMAGE)), jnp.float32)
    peak = common.matmul_flops()
    records = []
    for name in args.methods:
        fmap = maps.feature_map(NET, name, 1024)
        params = fmap.init(jax.random.key(0), x, sample=x)
        flops = fmap.plan(x).flops
        for batch_size in args.batch_sizes:
            run = jax.jit(functools.partial(fmap.apply, batch_size=batch_size))
            first, again = common.seconds(functools.partial(run, params, x))
            record = {"method": f"`{name}`", "batch_size": batch_size}
            record |= {"speed": len(x) / again, "compile": first - again}
            records.append({**record, "mflops": flops / 1e6, "bound": peak / flops})
        print(records[-1], flush=True)
    for name, speed in PUBLISHED_SPEED.items():
        records.append({"method": name, "speed": speed})
    head = "method | batch_size | images/s | compile, s | Mflop/image | bound, images/s"
    row = (
        "{method} | {batch_size} | {speed:.0f} | {compile:.1f} | {mflops:.0f} | "
        "{bound:.0f}"
    )
    text = common.table(records, head, row)
    common.report(args, "convolutional-throughput", text, records)


def pixels(args: common.Options) -> None:
    """Measure the time per image, and per pair of the exact kernel; fit slopes."""
    rng = np.random.default_rng(0)
    times: dict[str, dict[int, float]] = {}
    for name in args.methods:
        fmap = maps.feature_map(NET, name, 1024)
        run = jax.jit(functools.partial(fmap.apply, batch_size=1))
        for side in (8, 16, 32, 64):
            count = max(8, 64 * 256 // side**2)
            x = jnp.asarray(rng.normal(size=(count, side, side, 3)), jnp.float32)
            params = fmap.init(jax.random.key(0), x, sample=x)
            again = common.seconds(functools.partial(run, params, x))[1]
            times.setdefault(name, {})[side] = again / count
    kernel_fn = jnt.to_stax(NET)[2]
    exact = jax.jit(lambda a, b: kernel_fn(a, b, "ntk"))
    for side in (8, 12, 16, 24):
        a, b = rng.normal(size=(2, 4, side, side, 3)).astype("f4")
        again = common.seconds(functools.partial(exact, a, b), repeats=3)[1]
        times.setdefault("exact kernel, per pair", {})[side] = again / 16
    records = [
        {
            "method": name,
            "times": "; ".join(f"{s}: {1e3 * t:.2f}" for s, t in by_side.items()),
            "slope": common.slope(np.square([*by_side]), by_side.values()),
        }
        for name, by_side in times.items()
    ]
    head = "method | ms by pixels of a side | log-log slope in pixels"
    row = "{method} | {times} | {slope:.2f}"
    text = common.table(records, head, row)
    common.report(args, "convolutional-pixels", text, records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"accuracy": accuracy, "throughput": throughput, "pixels": pixels},
        widths=([128, 256, 512], "columns M of NNGP features"),
        seeds=(10, "draws of each map"),
        first=(0, "number of the first image that errors are measured on"),
        num=(80, "images that errors are measured on"),
        side=(16, "their pixels"),
        others=(300, "images that landmarks are taken from"),
        batch_sizes=([1, 16], "batch_size of apply"),
        methods=(list(METHODS), "feature maps", METHODS),
    )
