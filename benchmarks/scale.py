"""Ridge on features of all of a data set, where the exact kernel does not reach.

    python benchmarks/scale.py mnist --data FOLDER
    python benchmarks/scale.py exact --data FOLDER --num-train 20000

"mnist": features, penalty by generalised cross-validation on the training images and
weights, for all 60,000 images; times (compilation included) and the peak resident
memory of the process, so run it alone. The test images are looked at once, at the end.

"exact" is regression with the exact NTK on the first --num-train images, the penalty
by leave-one-out on the first --num-chosen of them.
"""

import resource
import time

import common
import jax
import numpy as np
import scipy.linalg
from fully_connected import exact as exact_kernel
from fully_connected import network

import jax_ntk_sketch as jns
from jax_ntk_sketch.linear_model import fit

REGS = 10.0 ** np.arange(-9, -1.9, 0.5)
# Columns of the kernel that are in memory at a time.
_BLOCK = 2000


def peak_gib() -> float:
    """The most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def mnist(args) -> None:
    """All training images, streamed."""
    x, y, x_test, y_test = common.mnist(args.data)
    x, y = x[: args.num_train or None], y[: args.num_train or None]
    method = jns.methods.VarianceReduced(objective=args.objective)
    fmap = jns.feature_map(
        network(args.depth), num_features=args.num_features, method=method
    )
    print(fmap.plan(x.shape[1:], batch_size=128), flush=True)
    start = time.perf_counter()
    params = jax.block_until_ready(fmap.init(jax.random.key(args.seed), x.shape[1:]))
    drawn = time.perf_counter()
    # In units of the kernel's mean diagonal.
    some = np.asarray(fmap.apply(params, x[:256]), np.float64)
    regs = REGS * np.mean(np.sum(some**2, axis=1))
    fitted = fit(fmap, params, x, y, reg=regs.tolist(), folds=args.folds)
    end = time.perf_counter()
    peak = peak_gib()
    error = float(np.mean(fitted.predict_class(x_test) != y_test))
    info = fitted.model.info
    result = {
        "num_train": len(x),
        "num_features": args.num_features,
        "depth": args.depth,
        "objective": args.objective,
        "seed": args.seed,
        "draw_seconds": drawn - start,
        "fit_seconds": end - drawn,
        "predict_seconds": time.perf_counter() - end,
        "peak_gib": peak,
        "reg_over_diagonal": float(fitted.model.reg / regs[0] * REGS[0]),
        "gcv": float(info.gcv),
        "mse": float(info.mse),
        "condition": float(info.condition),
        "rounding": float(info.rounding),
        "test_error": error,
    }
    rows = [
        [name, f"{v:.4g}" if isinstance(v, float) else v] for name, v in result.items()
    ]
    common.write(args.output, "scale-mnist", common.markdown(["", ""], rows), result)


def leave_one_out(k: np.ndarray, y: np.ndarray) -> float:
    """The penalty, per example and over the mean diagonal, of least LOO error."""
    n, mean = len(k), np.trace(k) / len(k)
    values, vectors = scipy.linalg.eigh(k, driver="evd")
    rotated, squares = vectors.T @ y, vectors**2
    errors = []
    for reg in REGS * n * mean:
        residual = vectors @ (rotated / (values + reg)[:, None])
        errors.append(
            np.mean((residual / (squares @ (1 / (values + reg)))[:, None]) ** 2)
        )
    return float(REGS[int(np.argmin(errors))])


def solve(k: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The solution of k w = y, by a Cholesky factorisation that overwrites k.

    In blocks: LAPACK's own, in one call, crashed at 30,000 rows.
    """
    n, w = len(k), y.copy()
    blocks = [slice(i, min(i + _BLOCK, n)) for i in range(0, n, _BLOCK)]
    for j in blocks:
        k[j, j] = np.linalg.cholesky(k[j, j])
        below = slice(j.stop, n)
        k[below, j] = scipy.linalg.solve_triangular(
            k[j, j], k[below, j].T, lower=True
        ).T
        for i in blocks:
            if i.start >= j.stop:
                k[i.start :, i] -= k[i.start :, j] @ k[i, j].T
        w[j] = scipy.linalg.solve_triangular(k[j, j], w[j], lower=True)
        w[below] -= k[below, j] @ w[j]
    for j in reversed(blocks):
        w[j] -= k[j.stop :, j].T @ w[j.stop :]
        w[j] = scipy.linalg.solve_triangular(k[j, j], w[j], lower=True, trans="T")
    return w


def exact(args) -> None:
    """Regression with the exact kernel on a part of the images."""
    x, y, x_test, y_test = common.mnist(args.data)
    n, some = args.num_train or 20000, args.num_chosen
    x, targets = x[:n], np.eye(10)[y[:n]] - 0.1
    start = time.perf_counter()
    reg = leave_one_out(exact_kernel(x[:some], None, args.depth), targets[:some])
    chosen = time.perf_counter()
    k = np.empty((n, n))
    for i in range(0, n, _BLOCK):
        for j in range(0, i + _BLOCK, _BLOCK):
            rows, columns = slice(i, i + _BLOCK), slice(j, j + _BLOCK)
            k[rows, columns] = exact_kernel(x[rows], x[columns], args.depth)
            k[columns, rows] = k[rows, columns].T
    k[np.diag_indices(n)] += reg * n * np.trace(k) / n
    built = time.perf_counter()
    weights = solve(k, targets)
    end = time.perf_counter()
    guess = [
        exact_kernel(x_test[i : i + 500], x, args.depth) @ weights
        for i in range(0, len(x_test), 500)
    ]
    error = float(np.mean(np.concatenate(guess).argmax(axis=1) != y_test))
    result = {
        "num_train": n,
        "depth": args.depth,
        "reg_over_diagonal": reg,
        "choose_seconds": chosen - start,
        "kernel_seconds": built - chosen,
        "solve_seconds": end - built,
        "predict_seconds": time.perf_counter() - end,
        "peak_gib": peak_gib(),
        "test_error": error,
    }
    rows = [
        [name, f"{v:.4g}" if isinstance(v, float) else v] for name, v in result.items()
    ]
    name = f"scale-exact-{n}"
    common.write(args.output, name, common.markdown(["", ""], rows), result)


if __name__ == "__main__":
    options = common.parser(__doc__)
    options.add_argument("--depth", type=int, default=2)
    options.add_argument("--num-features", type=int, default=8192)
    options.add_argument("--num-train", type=int, help="default: 60000; exact: 20000")
    options.add_argument("--num-chosen", type=int, default=5000)
    options.add_argument(
        "--objective", default="kernel", choices=("kernel", "regression")
    )
    options.add_argument("--folds", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    common.run_jobs(options, {"mnist": mnist, "exact": exact})
