"""CIFAR-10: accuracy of ridge regression on convolutional NTK features.

    python benchmarks/cifar10.py features --data FOLDER

The job measures test accuracy against training size and width, with and without ZCA.
With `--fully-connected` it adds exact regression on a fully connected NTK of the same
images. A tenth of the training images, at least 100, chooses the ridge penalty, and the
model is then fitted on all of them. The test images have no part in any choice.

The folder holds `cifar10_jpegbytes.npz`, or CIFAR-10 as it is distributed. Accuracies
on images that were compressed again as JPEG compare with each other, and not with
published ones.
"""

import io
import itertools
import pathlib
import time

import common
import jax
import maps
import numpy as np
from PIL import Image

import jax_ntk_sketch as jns
from jax_ntk_sketch import preprocessing

# The Gaussian networks have exp(gamma (cos - 1)) in place of the kernel of `Relu`.
NETWORKS = {
    "cntk": jns.recipes.cntk(3),
    **{f"myrtle{depth}": jns.recipes.myrtle(depth) for depth in (5, 7, 10)},
}
for _name, _gamma in (("myrtle5_gaussian", 1.0), ("myrtle5_gaussian2", 2.0)):
    _activation = jns.stax.ExpNormalized(_gamma)
    NETWORKS[_name] = jns.recipes.myrtle(5, activation=_activation, W_std=1.0)
METHODS = (
    "ntk_random_features", "ntk_sketch, degrees 2, 1, uncompressed",
    "variance_reduced, regression",
)  # fmt: skip

# Penalties per example, relative to the mean of the kernel's diagonal.
REGS = 10.0 ** np.arange(-9, 0)
FC_DEPTH = 3


def load(args: common.Options) -> tuple[np.ndarray, ...]:
    """Return training images, labels, test images (n, 32, 32, 3) and their labels."""
    path = pathlib.Path(args.data or ".") / "cifar10_jpegbytes.npz"
    counts = {"train": max(args.num_train), "test": args.num_test}
    if not path.is_file():
        train, test = counts.values()
        read = jns.data.load(path.parent, num_train=train, num_test=test)
        return read.x_train, read.y_train, read.x_test, read.y_test
    parts, rng = [], np.random.default_rng(0)
    for part, count in counts.items():
        # Image i is the bytes offsets[i] to offsets[i + 1].
        keys = (f"{name}_{part}" for name in ("jpeg", "offsets", "y"))
        jpeg, offsets, y = common.arrays(args.data, path.name, *keys)
        rows = rng.permutation(len(y))[:count]
        files = (io.BytesIO(jpeg[offsets[i] : offsets[i + 1]]) for i in rows)
        images = [np.asarray(Image.open(file, formats=("JPEG",))) for file in files]
        parts += [np.stack(images).astype(np.float32) / 255, y[rows].astype(int)]
    return tuple(parts)


def prepare(parts: list[np.ndarray], zca: float) -> list[np.ndarray]:
    """Standardize each image, then whiten all as the training images ask for."""
    parts = [np.asarray(preprocessing.standardize_examples(x)) for x in parts]
    if not zca:
        return parts
    params = preprocessing.zca_fit(parts[0], reg=zca)

    def whiten(x: np.ndarray) -> np.ndarray:
        blocks = [x[i : i + 1000] for i in range(0, len(x), 1000)]
        return np.concatenate([preprocessing.zca_apply(params, b) for b in blocks])

    return [whiten(x) for x in parts]


def minus_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of correct classes, with a minus sign."""
    return -float((scores.argmax(axis=1) == labels).mean())


def evaluate(
    train: np.ndarray,
    test: np.ndarray,
    labels: np.ndarray,
    test_labels: np.ndarray,
    is_kernel: bool,
) -> common.Record:
    """Return the test accuracy with the penalty that is best on held-out images.

    Args:
      train: (n, m) features, or the (n, n) kernel.
      test: (n_test, m) features, or the (n_test, n) kernel.
      labels, test_labels: integers.
      is_kernel: which of the two.
    """
    start, n = time.perf_counter(), len(train)
    held, fit = np.split(np.random.default_rng(0).permutation(n), [max(n // 10, 100)])
    y = maps.codes(labels)

    def ridge(rows: np.ndarray, regs: np.ndarray) -> common.Record:
        columns = rows if is_kernel else slice(None)
        solve = maps.ridge if is_kernel else maps.ridge_on_features
        parts = (
            z[:, columns].astype(np.float64) for z in (train[rows], train[held], test)
        )
        fitting, checking, testing = parts
        return solve(
            fitting, y[rows], regs, checking, labels[held], testing, minus_accuracy
        )

    scale = np.diag(train).mean() if is_kernel else maps.mean_diagonal(train)
    best = ridge(fit, REGS * len(fit) * scale)
    reg = best["reg"] / len(fit)
    scores = ridge(np.arange(n), np.array([reg * n]))["predictions"]
    return {
        "accuracy": -minus_accuracy(scores, test_labels),
        "held_out": -best["held"],
        "reg": float(reg / scale),
        "fit_seconds": time.perf_counter() - start,
    }


def features(args: common.Options) -> None:
    """Measure accuracy against training size and width, with and without ZCA."""
    images, labels, test_images, test_labels = load(args)
    records = []

    def add(name: str, m: int, zca: float, seconds: float, parts: tuple) -> None:
        train, test = parts
        for n in args.num_train:
            columns = slice(m or n)  # of a kernel those of the n training images
            found = evaluate(
                train[:n, columns], test[:, columns], labels[:n], test_labels, not m
            )
            record = {"method": name, "num_features": m, "zca": zca, "num_train": n}
            records.append({**record, "seconds": seconds, **found})
            print(records[-1], flush=True)

    sizes = list(itertools.product(args.networks, args.methods, args.num_features))
    for zca in args.zca:
        x, x_test = prepare([images, test_images], zca)
        if args.fully_connected:
            flat, flat_test = (z.reshape(len(z), -1) for z in (x, x_test))
            kernels = (maps.exact(z, flat, FC_DEPTH) for z in (flat, flat_test))
            name = f"fully connected NTK, depth {FC_DEPTH}, exact"
            add(name, 0, zca, 0.0, tuple(kernels))
        for network, method, m in sizes:
            fmap = maps.feature_map(NETWORKS[network], method, m)
            params = fmap.init(jax.random.key(0), x, sample=x)
            start = time.perf_counter()
            phi = tuple(jns.transform(fmap, params, z) for z in (x, x_test))
            seconds = time.perf_counter() - start
            add(f"{network}, {method}", m, zca, seconds, phi)
    head = "features | columns | ZCA"
    row = "{method} | {num_features} | {zca:g}"
    text = common.wide_table(
        records, head, row, "accuracy, {num_train} images", "{accuracy:.3f}"
    )
    common.report(args, f"cifar10-features-{args.networks[0]}", text, records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"features": features},
        num_train=([1000, 3000, 10000], "training images"),
        num_test=(2000, "test images"),
        num_features=([1024, 4096], "features"),
        zca=([0.0, 0.1], "regularization of ZCA, relative; 0 for no ZCA"),
        networks=(["cntk"], "networks", NETWORKS),
        methods=(["ntk_random_features"], "feature maps", METHODS),
        fully_connected=(False, "measure the exact fully connected NTK too"),
    )
