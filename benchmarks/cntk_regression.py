"""Ridge regression on features of images, compared with exact CNTK regression.

    python benchmarks/cntk_regression.py --data FOLDER

The data are 600 CIFAR-10 images averaged to 16 x 16 pixels. The first 300 standardize
each color channel and are fitted. The network has three convolutions and two average
pools. The penalty is the one with the least leave-one-out error of the fitting images,
which ridge regression has in closed form. A second column uses the penalty of the
exact kernel for all, so that a different penalty is not taken for a different kernel.
The distance is the root mean square of the difference between the test scores and
those of exact CNTK ridge regression. Landmarks and directions are learned from the
fitting images.

The exact kernel takes half an hour on two cores. It and every single result are kept in
the output folder.
"""

import functools
import hashlib
import itertools
import pathlib
import time

import common
import jax
import maps
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.validation._exact_kernel import ExactKernel

NET = jns.recipes.cntk(3)
FC_DEPTH = 3
# Penalties per example, relative to the mean of the kernel's diagonal.
REGS = 10.0 ** np.arange(-9, 0.25, 0.25)
EXACT, FC = "exact CNTK", "fully connected NTK, exact"
METHODS = (
    "published random features", "ntk_random_features",
    "ntk_sketch, degrees 2, 1, uncompressed",
    "variance_reduced, regression", "nystrom", "compress",
    FC,
)  # fmt: skip


def load(args: common.Options) -> tuple[np.ndarray, np.ndarray]:
    """Return the fitting and the test images, and their labels."""
    x, labels = common.small_images(args.data, args.fit + args.test, args.side)
    known = x[: args.fit]
    x = (x - known.mean(axis=(0, 1, 2))) / known.std(axis=(0, 1, 2))
    return x.astype(np.float32), labels


def exact_kernel(
    net: jns.stax.Layer, x: np.ndarray, n: int, folder: str, kind: str
) -> np.ndarray:
    """Return the exact kernel `(len(x), n)` of all images with the first n.

    It is kept on disk, named after the network and the images.
    """
    name = hashlib.sha256(repr(net).encode() + x.tobytes()).hexdigest()[:16]
    path = pathlib.Path(folder) / f"{kind}-{name}-{n}.npy"
    if not path.is_file():
        run = ExactKernel(jax.jit(functools.partial(jnt.to_stax(net)[2], get=kind)))
        parts = [run(x[:n], show=None)]
        if n < len(x):
            parts.append(run(x[n:], x[:n], show=None))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.concatenate(parts))
    return np.load(path)


def outcome(
    args: common.Options, k: np.ndarray, regs: np.ndarray = REGS
) -> tuple[float, np.ndarray, float]:
    """Return penalty, test scores and accuracy, from a kernel with fitting images."""
    _, labels = load(args)
    _, reg, w = maps.kernel_ridge(k[: args.fit], maps.codes(labels[: args.fit]), regs)
    scores = k[args.fit :] @ w
    return reg, scores, float(np.mean(scores.argmax(axis=1) == labels[args.fit :]))


def measure(
    args: common.Options, name: str, m: int, seed: int, best: np.ndarray, reg: float
) -> common.Record:
    """Return what ridge regression on one draw of features loses."""
    (x, _), start = load(args), time.perf_counter()
    if name == FC:
        flat = x.reshape(len(x), -1)
        k = maps.exact(flat, flat[: args.fit], FC_DEPTH)
    else:
        sample = x[: args.fit]
        fmap, params = maps.draw(NET, name, m, seed, sample, args.base, args.generated)
        phi = jns.transform(fmap, params, x).astype(np.float64)
        k = phi @ phi[: args.fit].T
    seconds = time.perf_counter() - start
    chosen, scores, accuracy = outcome(args, k)
    _, same, _ = outcome(args, k, np.array([reg]))
    return {
        "distance": maps.square_error(scores, best) ** 0.5,
        "same": maps.square_error(same, best) ** 0.5,
        "accuracy": accuracy,
        "reg": chosen,
        "seconds": seconds,
    }


def regression(args: common.Options) -> None:
    """Measure what is new, and write the table of all results that are kept."""
    exact = exact_kernel(NET, load(args)[0], args.fit, args.output, "ntk")
    reg, best, accuracy = outcome(args, exact)
    print(f"exact: reg {reg:.3g}, rms of scores {np.mean(best**2) ** 0.5:.4f}")
    setup = {"fit": args.fit, "test": args.test, "side": args.side}
    kept = common.Kept(args.output, "cntk-regression")
    for m, name in itertools.product(args.num_features, args.methods):
        for seed in range(1 if name == FC else args.seeds):
            run = functools.partial(measure, args, name, m, seed, best, reg)
            kept.get(run, method=name, num_features=m, seed=seed, **setup)
    values = ("distance", "same", "accuracy", "seconds")
    records = kept.summary((*setup, "num_features", "method"), values)
    records = [r for r in records if setup.items() <= r.items()]
    records.insert(0, {"method": EXACT, "accuracy": accuracy, "accuracy_se": 0.0})
    head = (
        "columns | method | distance | with the exact penalty | test accuracy | "
        "features, s"
    )
    row = (
        "{num_features} | {method} | {distance:.3f} ± {distance_se:.3f} | {same:.3f} "
        "± {same_se:.3f} | {accuracy:.3f} ± {accuracy_se:.3f} | {seconds:.1f}"
    )
    text = common.table(records, head, row)
    common.report(args, "cntk_regression-regression", text, records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"regression": regression},
        num_features=([256, 1024], "features"),
        seeds=(5, "draws of each map"),
        methods=(list(METHODS), "feature maps", METHODS),
        base=("variance_reduced, regression", "what compress compresses", maps.METHODS),
        generated=(8192, "features that compress generates"),
        fit=(300, "images to fit"),
        test=(300, "images to test on"),
        side=(16, "pixels"),
    )
