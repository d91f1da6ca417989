"""The loss of a regressor on features of MNIST, for all feature maps.

    python benchmarks/pareto.py --data FOLDER
    python benchmarks/pareto.py --methods nystrom compress --depths 1 3

The first 4000 training images are fitted, the next 1000 choose the penalty, and the
first 2000 test images are predicted. Rows have unit length, targets are one-hot codes
minus 0.1, and the NTK has no factor 2/d. The distance is the root mean square of the
difference between the test predictions and those of exact NTK ridge regression. Maps
that learn from data see the fitting rows.

"exact eigenvectors" are the leading eigenvectors of the exact kernel. No other columns
of the same number are closer to it, so that they are a floor.

Every single result is kept in the output folder. The table uses all of them.
"""

import functools
import itertools

import common
import maps
import numpy as np

import jax_ntk_sketch as jns

FIT, HELD, TEST = 4000, 1000, 2000
REGS = 10.0 ** np.arange(-4, 3, 0.5)
FLOOR, EXACT = "exact eigenvectors", "exact NTK"
NAMES = (*maps.NAMES, FLOOR)
KEYS = ("depth", "num_features", "method")


@functools.cache
def unit_rows(folder: str | None) -> tuple[np.ndarray, ...]:
    """Return fitting, held-out and test rows of unit length, and their labels."""
    train, y_train, test, y_test = common.mnist(folder)
    x = np.concatenate([train[: FIT + HELD], test[:TEST]])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.concatenate([y_train[: FIT + HELD], y_test[:TEST]])
    ends = [FIT, FIT + HELD]
    return (*np.split(x, ends), *np.split(labels, ends))


@functools.cache
def kernels(folder: str | None, depth: int) -> tuple[np.ndarray, ...]:
    """Return the exact kernels of all unit rows with the fitting rows."""
    fit, held, test = unit_rows(folder)[:3]
    parts = ((fit, None), (held, fit), (test, fit))
    return tuple(maps.exact(x, z, depth) * fit.shape[1] / 2 for x, z in parts)


@functools.cache
def exact_predictions(folder: str | None, depth: int) -> np.ndarray:
    """Return the test predictions of exact NTK ridge regression."""
    _, _, _, y, y_held, _ = unit_rows(folder)
    k, k_held, k_test = kernels(folder, depth)
    y, y_held = maps.codes(y), maps.codes(y_held)
    return maps.ridge(k, y, REGS, k_held, y_held, k_test)["predictions"]


def quality(args: common.Options, depth: int, predictions: np.ndarray) -> common.Record:
    """Return the distance from the exact predictions, accuracy and squared error."""
    labels = unit_rows(args.data)[-1]
    reference = exact_predictions(args.data, depth)
    return {
        "distance": maps.square_error(predictions, reference) ** 0.5,
        "accuracy": float(np.mean(predictions.argmax(axis=1) == labels)),
        "mse": maps.square_error(predictions, maps.codes(labels)),
    }


def measure(
    args: common.Options, name: str, depth: int, m: int, seed: int
) -> common.Record:
    """Return what ridge regression on one draw of features loses."""
    fit, held, test, y, y_held, _ = unit_rows(args.data)
    y, y_held = maps.codes(y), maps.codes(y_held)
    if name == FLOOR:
        values, vectors = np.linalg.eigh(kernels(args.data, depth)[0])
        kept = vectors[:, -m:] / np.sqrt(np.maximum(values[-m:], 1e-9))
        phi = [k @ kept for k in kernels(args.data, depth)]
    else:
        net = maps.relu_network(depth)
        fmap, params = maps.draw(net, name, m, seed, fit, args.base, y=y)
        scale = np.float32((fit.shape[1] / 2) ** 0.5)
        phi = [jns.transform(fmap, params, x) * scale for x in (fit, held, test)]
    best = maps.ridge_on_features(phi[0], y, REGS, phi[1], y_held, phi[2])
    return {**quality(args, depth, best["predictions"]), "reg": best["reg"]}


def regression(args: common.Options) -> None:
    """Measure what a regressor loses."""
    kept = common.Kept(args.output, "regression")
    sizes = itertools.product(args.depths, args.num_features, args.methods)
    for depth, m, name in sizes:
        label = name
        if name in maps.GENERATED and args.base != maps.BASE:
            label = f"{name}, of {args.base}"
        for seed in range(1 if name == FLOOR else args.seeds):
            run = functools.partial(measure, args, name, depth, m, seed)
            kept.get(run, depth=depth, num_features=m, method=label, seed=seed)
    records = kept.summary(KEYS, ("distance", "accuracy", "mse"))
    for depth in sorted({r["depth"] for r in records}):
        found = quality(args, depth, exact_predictions(args.data, depth))
        errors = {f"{key}_se": 0.0 for key in found}
        records.append({"depth": depth, "method": EXACT, "seeds": 1, **found, **errors})
    head = "depth | features | method | seeds | distance | accuracy | mse"
    row = (
        "{depth} | {num_features} | {method} | {seeds} | {distance:.4f} ± "
        "{distance_se:.4f} | {accuracy:.3f} | {mse:.5f}"
    )
    common.report(args, "pareto-regression", common.table(records, head, row), records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"regression": regression},
        depths=([1], "hidden layers"),
        num_features=([256, 512, 1024, 2048, 4096, 8192], "features"),
        seeds=(5, "draws of each map"),
        methods=(list(NAMES), "feature maps", NAMES),
        base=(maps.BASE, "what compress compresses", maps.METHODS),
    )
