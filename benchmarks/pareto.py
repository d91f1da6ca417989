"""Kernel error, loss of a regressor and time of all feature maps, on MNIST.

    python benchmarks/pareto.py errors regression --data FOLDER
    python benchmarks/pareto.py regression --methods nystrom compress --depths 1 3

"errors" measures the relative and the centered error of Gram matrices on the first 1000
training images over 255, against the exact NTK. It also measures the seconds of `apply`
on these images, compiled and warm, in batches of 128. Maps that learn from data see
4000 other images.

"regression" measures what a regressor loses. The first 4000 training images are fitted,
the next 1000 choose the penalty, and the first 2000 test images are predicted. Rows
have unit length, targets are one-hot codes minus 0.1, and the NTK has no factor 2/d.
The distance is the root mean square of the difference between the test predictions and
those of exact NTK ridge regression. Maps that learn from data see the fitting rows.

"exact eigenvectors" are the leading eigenvectors of the exact kernel. No other columns
of the same number are closer to it, so that they are a floor for both measures.

Every single result is kept in the output folder. The tables use all of them.
"""

import functools
import pathlib

import common
import jax
import maps
import numpy as np

import jax_ntk_sketch as jns

COUNT, SAMPLE = 1000, 4000
FIT, HELD, TEST = 4000, 1000, 2000
REGS = 10.0 ** np.arange(-4, 3, 0.5)
FLOOR, EXACT = "exact eigenvectors", "exact NTK"
NAMES = (*maps.NAMES, FLOOR)
KEYS = ("depth", "num_features", "method")


@functools.cache
def images(folder: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that errors are measured on, and others to learn from."""
    x = common.mnist(folder)[0]
    return x[:COUNT], x[COUNT : COUNT + SAMPLE]


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
def eigenvectors(folder: str | None, depth: int, is_errors: bool) -> tuple:
    """Return eigenvalues and eigenvectors of the exact kernel."""
    if is_errors:
        return np.linalg.eigh(maps.exact(images(folder)[0], None, depth))
    return np.linalg.eigh(kernels(folder, depth)[0])


def measure_errors(
    args: common.Options, name: str, depth: int, m: int, seed: int
) -> common.Record:
    """Return the errors of one draw and the seconds for 1000 images."""
    x, sample = images(args.data)
    kernel, seconds = maps.exact(x, None, depth), 0.0
    if name == FLOOR:
        values, vectors = eigenvectors(args.data, depth, True)
        phi = vectors[:, -m:] * np.sqrt(np.maximum(values[-m:], 0))
    else:
        net = maps.relu_network(depth)
        fmap, params = maps.draw(net, name, m, seed, sample, args.base)
        run = jax.jit(functools.partial(fmap.apply, batch_size=128))
        phi = run(params, x)
        seconds = common.seconds(lambda: run(params, x), repeats=args.repeats)[1]
    relative, centered = maps.gram_error(kernel, phi)
    return {"relative": relative, "centered": centered, "seconds": seconds}


def exact_predictions(args: common.Options, depth: int) -> np.ndarray:
    """Return the test predictions of exact NTK ridge regression.

    They are kept in the output folder.
    """
    path = pathlib.Path(args.output) / f"fit4000-exact-{depth}.npy"
    if not path.is_file():
        _, _, _, y, y_held, _ = unit_rows(args.data)
        k, k_held, k_test = kernels(args.data, depth)
        y, y_held = maps.codes(y), maps.codes(y_held)
        best = maps.ridge(k, y, REGS, k_held, y_held, k_test)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, best["predictions"])
    return np.load(path)


def quality(args: common.Options, depth: int, predictions: np.ndarray) -> common.Record:
    """Return the distance from the exact predictions, accuracy and squared error."""
    labels = unit_rows(args.data)[-1]
    reference = exact_predictions(args, depth)
    return {
        "distance": maps.square_error(predictions, reference) ** 0.5,
        "accuracy": float(np.mean(predictions.argmax(axis=1) == labels)),
        "mse": maps.square_error(predictions, maps.codes(labels)),
    }


def measure_regression(
    args: common.Options, name: str, depth: int, m: int, seed: int
) -> common.Record:
    """Return what ridge regression on one draw of features loses."""
    fit, held, test, y, y_held, _ = unit_rows(args.data)
    if name == FLOOR:
        values, vectors = eigenvectors(args.data, depth, False)
        kept = vectors[:, -m:] / np.sqrt(np.maximum(values[-m:], 1e-9))
        phi = [k @ kept for k in kernels(args.data, depth)]
    else:
        net = maps.relu_network(depth)
        fmap, params = maps.draw(net, name, m, seed, fit, args.base)
        scale = np.float32((fit.shape[1] / 2) ** 0.5)
        phi = [jns.transform(fmap, params, x) * scale for x in (fit, held, test)]
    y, y_held = maps.codes(y), maps.codes(y_held)
    best = maps.ridge_on_features(phi[0], y, REGS, phi[1], y_held, phi[2])
    return {**quality(args, depth, best["predictions"]), "reg": best["reg"]}


def measure_all(args: common.Options, file: str, measure: object) -> common.Kept:
    """Measure the maps that the options name and that are not kept yet."""
    kept = common.Kept(args.output, file)
    for depth in args.depths:
        for m in args.num_features:
            for name in args.methods:
                if name == FLOOR and file == "errors" and m >= COUNT:
                    continue  # the error is zero
                label = name
                if name in maps.GENERATED and args.base != maps.BASE:
                    label = f"{name}, of {args.base}"
                for seed in range(1 if name == FLOOR else args.seeds):
                    run = functools.partial(measure, args, name, depth, m, seed)
                    kept.get(run, depth=depth, num_features=m, method=label, seed=seed)
    return kept


def errors(args: common.Options) -> None:
    """Measure kernel errors and seconds."""
    kept = measure_all(args, "errors", measure_errors)
    records = kept.summary(KEYS, ("relative", "centered", "seconds"))
    for r in records:
        r["ms"] = 1e3 * r["seconds"] or None
    head = (
        "depth | features | method | relative error | centered error | ms for 1000 "
        "images"
    )
    row = (
        "{depth} | {num_features} | {method} | {relative:.4f} ± {relative_se:.4f} | "
        "{centered:.3f} ± {centered_se:.3f} | {ms:.0f}"
    )
    common.report(args, "pareto-errors", common.table(records, head, row), records)


def regression(args: common.Options) -> None:
    """Measure what a regressor loses."""
    kept = measure_all(args, "regression", measure_regression)
    records = kept.summary(KEYS, ("distance", "accuracy", "mse"))
    for depth in sorted({r["depth"] for r in records}):
        found = quality(args, depth, exact_predictions(args, depth))
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
        {"errors": errors, "regression": regression},
        depths=([1], "hidden layers"),
        num_features=([256, 512, 1024, 2048, 4096, 8192], "features"),
        seeds=(5, "draws of each map"),
        repeats=(5, "calls to time"),
        methods=(list(NAMES), "feature maps", NAMES),
        base=(maps.BASE, "what compress compresses", maps.METHODS),
    )
