"""Ridge regression on all of MNIST, and exact NTK regression on a large part of it.

    python benchmarks/scale.py features --data FOLDER
    python benchmarks/scale.py exact --data FOLDER --num-train 20000

"features" fits ridge regression on features of all 60,000 training images, by the map
that `choose` returns or another one. Generalized cross-validation on them chooses the
penalty. The times include compilation.
The peak memory is that of the process, so that the job runs alone. "exact" is
regression with the exact NTK on the first --num-train images. Leave-one-out errors of
the first --num-chosen images choose the penalty. Test images are used once, at the end.
"""

import resource
import time

import common
import maps
import numpy as np
from scipy.linalg import solve_triangular

from jax_ntk_sketch.linear_model import fit

REGS = 10.0 ** np.arange(-9, -1.9, 0.5)
# The columns that are factorized at a time.
BLOCK = 2000
HEAD = (
    "method | training images | features | penalty over the diagonal | minutes | peak"
    " memory, GiB | test error"
)
ROW = (
    "{method} | {num_train:,} | {num_features} | {reg:.1e} | {minutes:.1f} | "
    "{peak:.1f} | {test_error:.2%}"
)


def outcome(
    args: common.Options, name: str, start: float, record: common.Record
) -> None:
    """Add the time and the peak memory, and write the table of all kept results."""
    minutes = (time.perf_counter() - start) / 60
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    labels = {"method": name, "depth": args.depth, "num_train": record.pop("num_train")}
    kept = common.Kept(args.output, "scale")
    kept.get(lambda: {**record, "minutes": minutes, "peak": peak}, **labels)
    records = kept.select(depth=args.depth)
    common.report(args, "scale", common.table(records, HEAD, ROW), records)


def features(args: common.Options) -> None:
    """Fit all training images, streamed."""
    x, y, x_test, y_test = common.mnist(args.data)
    count = args.num_train or len(x)
    x, y, start = x[:count], y[:count], time.perf_counter()
    net = maps.relu_network(args.depth)
    fmap, params = maps.draw(net, args.map, args.num_features, args.seed, x, y=y)
    print(fmap.plan(x.shape[1:]).method, flush=True)
    scale = maps.mean_diagonal(fmap.apply(params, x[:256]))
    fitted = fit(fmap, params, x, y, reg=(REGS * scale).tolist())
    record = {
        "num_train": count,
        "num_features": args.num_features,
        "reg": float(fitted.best.reg) / scale,
        "test_error": float(np.mean(fitted.predict_class(x_test) != y_test)),
    }
    outcome(args, f"`fit`, {args.map}", start, record)


def solve(k: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the solution w of k w = y, by a Cholesky factorization that overwrites k.

    It works in blocks, because LAPACK crashed in one call at 30,000 rows.
    """
    n, w = len(k), y.copy()
    blocks = [slice(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK)]
    for j in blocks:
        k[j, j] = np.linalg.cholesky(k[j, j])
        below = slice(j.stop, n)
        k[below, j] = solve_triangular(k[j, j], k[below, j].T, lower=True).T
        for i in blocks:
            if i.start >= j.stop:
                k[i.start :, i] -= k[i.start :, j] @ k[i, j].T
        w[j] = solve_triangular(k[j, j], w[j], lower=True)
        w[below] -= k[below, j] @ w[j]
    for j in reversed(blocks):
        w[j] -= k[j.stop :, j].T @ w[j.stop :]
        w[j] = solve_triangular(k[j, j], w[j], lower=True, trans="T")
    return w


def exact(args: common.Options) -> None:
    """Fit a part of the training images with the exact kernel."""
    x, y, x_test, y_test = common.mnist(args.data)
    n, start = args.num_train or 20000, time.perf_counter()
    x, targets = x[:n], maps.codes(y[:n])
    first = slice(args.num_chosen)
    _, reg, _ = maps.kernel_ridge(
        maps.exact(x[first], None, args.depth), targets[first], REGS
    )
    k = maps.exact(x, None, args.depth)
    k[np.diag_indices(n)] += reg * np.trace(k)
    weights = solve(k, targets)
    scores = maps.exact(x_test, x, args.depth) @ weights
    error = float(np.mean(scores.argmax(axis=1) != y_test))
    record = {"num_train": n, "reg": reg, "test_error": error}
    outcome(args, "exact NTK regression, Cholesky", start, record)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"features": features, "exact": exact},
        depth=(2, "hidden layers"),
        num_features=(8192, "features"),
        num_train=(0, "training images; 0 for 60,000, or 20,000 for exact"),
        num_chosen=(5000, "images that choose the penalty of exact"),
        map=(maps.CHOSEN, "feature map", (maps.CHOSEN, *maps.METHODS)),
        seed=(0, "number of the draw"),
    )
