"""What a regressor loses on images: ridge on features beside exact CNTK regression.

    python benchmarks/cntk_regression.py exact --data FOLDER
    python benchmarks/cntk_regression.py regression --data FOLDER

600 CIFAR-10 images averaged to 16 x 16 pixels, each colour channel standardised by the
first 300, which are fitted; the network of "CNTK-16", three convolutions and two
average pools. The penalty is the one with the least leave-one-out error of the fitting
images, which ridge has in closed form; or that of the exact kernel, so that a different
choice is not taken for a different kernel. The distance is the root mean square of the
difference between the test scores and those of exact CNTK ridge, over seeds. Landmarks
and directions are learned from the fitting images.

"exact" computes the exact kernel, half an hour on two cores; its blocks are kept in the
output folder, so that a run which was stopped goes on where it was. "regression" starts
with it where it is not there yet, and keeps every single result.
"""

import functools
import time
from collections.abc import Sequence

import candidates
import common
import numpy as np
from cifar10 import codes, exact_kernel

import jax_ntk_sketch as jns

NET = jns.recipes.cntk(3)
# Penalties relative to the mean of the kernel's diagonal and per example.
REGS = 10.0 ** np.arange(-9, 0.25, 0.25)
METHODS = (
    "published random features",
    "ntk_random_features",
    "variance_reduced",
    "nystrom",
    "compress",
)


@functools.cache
def images(
    folder: str | None, fit: int, test: int, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fitting and test images, (fit + test, side, side, 3), and their labels."""
    path = common.archive(folder, "cifar10_lossless_subset.npz")
    count, block = fit + test, 32 // side
    with np.load(path, allow_pickle=False) as file:
        x = file["x_train"][:count].astype(np.float64) / 255
        labels = file["y_train"][:count].astype(int)
    x = x.reshape(count, side, block, side, block, 3).mean(axis=(2, 4))
    known = x[:fit]
    x = (x - known.mean(axis=(0, 1, 2))) / known.std(axis=(0, 1, 2))
    return x.astype(np.float32), labels


def leave_one_out(
    k: np.ndarray, y: np.ndarray, regs: Sequence[float]
) -> tuple[float, np.ndarray]:
    """The penalty with the least leave-one-out error, and the weights (n, t).

    With H = (K + reg I)^-1 the error of example i, left out, is (H y)_i / H_ii.
    """
    values, vectors = np.linalg.eigh(k)
    moments = vectors.T @ y
    scale = len(k) * np.diag(k).mean()
    best = (np.inf, 0.0, y)
    for reg in regs:
        inverse = 1 / (np.maximum(values, 0) + reg * scale)
        w = vectors @ (inverse[:, None] * moments)
        error = np.mean((w / (vectors**2 @ inverse)[:, None]) ** 2)
        if error < best[0]:
            best = (error, float(reg), w)
    return best[1:]


def exact(args) -> np.ndarray:
    """The exact kernel of all images with the fitting ones."""
    x, _ = images(args.data, args.fit, args.test, args.side)
    return exact_kernel(NET, x, args.fit, args.output)


def outcome(
    args, k: np.ndarray, regs: Sequence[float] = REGS
) -> tuple[float, np.ndarray]:
    """Penalty and test scores, from a kernel of all images with the fitting ones."""
    _, labels = images(args.data, args.fit, args.test, args.side)
    reg, w = leave_one_out(k[: args.fit], codes(labels[: args.fit]), regs)
    return reg, k[args.fit :] @ w


def one(
    args, name: str, m: int, seed: int, best: np.ndarray, exact_reg: float
) -> dict[str, float]:
    """One result: features, ridge on them, and what it loses."""
    x, labels = images(args.data, args.fit, args.test, args.side)
    start = time.perf_counter()
    # How many columns "compress" generates is an option here.
    generated = {"compress": args.generated}
    fmap, params = candidates.draw(
        NET, name, m, seed, x[: args.fit], args.base, generated
    )
    phi = jns.transform(fmap, params, x).astype(np.float64)
    spent = time.perf_counter() - start
    k = phi @ phi[: args.fit].T
    reg, scores = outcome(args, k)
    _, same = outcome(args, k, [exact_reg])
    return {
        "distance": float(np.sqrt(np.mean((scores - best) ** 2))),
        "same": float(np.sqrt(np.mean((same - best) ** 2))),
        "accuracy": float(np.mean(scores.argmax(axis=1) == labels[args.fit :])),
        "reg": reg,
        "seconds": spent,
    }


def regression(args) -> None:
    """The table of all results that are kept."""
    k = exact(args)
    reg, best = outcome(args, k)
    _, labels = images(args.data, args.fit, args.test, args.side)
    right = float(np.mean(best.argmax(axis=1) == labels[args.fit :]))
    size = float(np.sqrt(np.mean(best**2)))
    print(f"exact: reg {reg:.3g}, accuracy {right:.4f}, rms of scores {size:.4f}")
    what = dict(fit=args.fit, test=args.test, side=args.side)
    kept = candidates.Kept(args.output, "cntk-regression")
    for m in args.num_features:
        for name in args.methods:
            for seed in range(args.seeds):
                kept.get(
                    functools.partial(one, args, name, m, seed, best, reg),
                    method=name,
                    num_features=m,
                    seed=seed,
                    **what,
                )
    table, results = [("", "exact", "0", "0", f"{right:.4f}", "")], []
    for m in sorted({r["num_features"] for r in kept.select(**what)}):
        for name in METHODS:
            draws = kept.select(method=name, num_features=m, **what)
            if not draws:
                continue
            stats = {
                key: candidates.mean_and_error([r[key] for r in draws])
                for key in ("distance", "same", "accuracy", "seconds")
            }
            results.append(dict(what, method=name, num_features=m, **stats))
            table.append(
                (
                    str(m),
                    name,
                    "{:.4f} ± {:.4f}".format(*stats["distance"]),
                    "{:.4f} ± {:.4f}".format(*stats["same"]),
                    "{:.4f} ± {:.4f}".format(*stats["accuracy"]),
                    f"{stats['seconds'][0]:.1f}",
                )
            )
    head = (
        "features",
        "method",
        "distance",
        "with the exact penalty",
        "test accuracy",
        "features (s)",
    )
    common.write(args.output, "cntk-regression", common.markdown(head, table), results)


JOBS = {"exact": exact, "regression": regression}


def main() -> None:
    """Runs the jobs that are named."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--num-features", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--base", default="variance_reduced")
    parser.add_argument(
        "--generated", type=int, default=8192, help="columns that compress generates"
    )
    parser.add_argument("--fit", type=int, default=300, help="images to fit")
    parser.add_argument("--test", type=int, default=300, help="images to test on")
    parser.add_argument("--side", type=int, default=16, help="pixels")
    common.run_jobs(parser, JOBS)


if __name__ == "__main__":
    main()
