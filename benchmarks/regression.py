"""What a regressor loses: ridge on features beside exact NTK regression on MNIST.

    python benchmarks/regression.py regression --data FOLDER
    python benchmarks/regression.py regression --methods nystrom compress --depths 1

Protocol FIT-4000: the first 4000 training images to fit, the next 1000 to choose the
penalty, the first 2000 test images; rows of unit length; one-hot codes minus 0.1; the
NTK without its factor 2/d. The distance is the root mean square of the difference
between the test predictions and those of the exact kernel, over seeds. Landmarks and
directions are learned from the fitting rows. "exact components" are the leading
eigenvectors of the exact kernel, the best that m columns can hold of it.

Every single result is kept in the output folder, and the table is of all of them.
"""

import functools
import math
import pathlib
import time

import candidates
import common
import numpy as np
from fully_connected import exact, network

import jax_ntk_sketch as jns

REGS = 10.0 ** np.arange(-4, 3, 0.5)
FIT, HELD, TEST = 4000, 1000, 2000

# scikit-learn's features, in the same place of the same protocol.
SKLEARN = (
    "scikit-learn Nystroem",
    "scikit-learn PolynomialCountSketch 2",
    "scikit-learn PolynomialCountSketch 4",
)
COMPONENTS = "exact components"
NAMES = (*candidates.NAMES, COMPONENTS, *SKLEARN)


@functools.cache
def rows(folder: str | None) -> tuple[np.ndarray, ...]:
    """Unit rows: those to fit, held-out and test ones; targets of each, and labels."""
    train, y_train, test, y_test = common.mnist(folder)
    x = np.concatenate([train[: FIT + HELD], test[:TEST]])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.concatenate([y_train[: FIT + HELD], y_test[:TEST]])
    codes = np.eye(10) - 0.1
    ends = [FIT, FIT + HELD]
    return (*np.split(x, ends), *np.split(codes[labels], ends), labels[-TEST:])


def scale(x: np.ndarray) -> float:
    """Takes the factor 2/d from the kernel."""
    return x.shape[1] / 2


@functools.cache
def kernels(folder: str | None, depth: int) -> tuple[np.ndarray, ...]:
    """The exact kernel of fitting, held-out and test rows with the fitting rows."""
    fit, held, test = rows(folder)[:3]
    parts = (exact(fit, None, depth), exact(held, fit, depth), exact(test, fit, depth))
    return tuple(k * scale(fit) for k in parts)


def exact_predictions(args, depth: int) -> np.ndarray:
    """Predictions of exact NTK ridge, kept in the output folder."""
    path = pathlib.Path(args.output) / f"fit4000-exact-{depth}.npy"
    if not path.is_file():
        _, _, _, y, y_held, y_test, labels = rows(args.data)
        k, k_held, k_test = kernels(args.data, depth)
        best = candidates.ridge(k, y, k_held, y_held, k_test, REGS)
        summary = quality(best["predictions"], best["predictions"], y_test, labels)
        print(f"exact NTK, depth {depth}: reg {best['reg']:.3g}, {summary}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, best["predictions"])
    return np.load(path)


def quality(predictions, reference, y_test, labels) -> dict[str, float]:
    """Distance from the exact predictions, accuracy and squared error."""
    return {
        "distance": float(np.sqrt(np.mean((predictions - reference) ** 2))),
        "accuracy": float(np.mean(predictions.argmax(axis=1) == labels)),
        "mse": float(np.mean((predictions - y_test) ** 2)),
    }


def unit_kernel(x: np.ndarray, y: np.ndarray, depth: int) -> float:
    """The NTK of two unit vectors without the factor 2/d, in plain Python floats."""
    nngp = min(1.0, max(-1.0, float(x @ y)))
    ntk = nngp
    for _ in range(depth):
        angle = math.acos(-nngp)
        kappa0 = angle / math.pi
        nngp = min(1.0, math.sqrt(1 - nngp * nngp) / math.pi + nngp * kappa0)
        ntk = ntk * kappa0 + nngp
    return ntk


def sklearn_features(name: str, depth: int, m: int, seed: int, fit, *parts) -> list:
    """Features by scikit-learn."""
    from sklearn.kernel_approximation import Nystroem, PolynomialCountSketch

    if name == SKLEARN[0]:
        # It calls a callable kernel once a pair, in Python: most of the seconds.
        made = Nystroem(
            kernel=functools.partial(unit_kernel, depth=depth),
            n_components=m,
            random_state=seed,
        )
    else:
        made = PolynomialCountSketch(
            degree=int(name[-1]), coef0=1, n_components=m, random_state=seed
        )
    made.fit(fit)
    return [made.transform(x) for x in parts]


def features(args, name: str, depth: int, m: int, seed: int) -> list[np.ndarray]:
    """Features of fitting, held-out and test rows."""
    x = rows(args.data)[:3]
    if name in SKLEARN:
        return sklearn_features(name, depth, m, seed, x[0], *x)
    if name == COMPONENTS:
        k, *others = kernels(args.data, depth)
        values, vectors = components(args.data, depth)
        kept = vectors[:, -m:] / np.sqrt(np.maximum(values[-m:], 1e-9))
        return [z @ kept for z in (k, *others)]
    fmap, params = candidates.draw(network(depth), name, m, seed, x[0], args.base)
    factor = np.float32(scale(x[0]) ** 0.5)
    return [jns.transform(fmap, params, z) * factor for z in x]


@functools.cache
def components(folder: str | None, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of the exact kernel of the fitting rows."""
    return np.linalg.eigh(kernels(folder, depth)[0])


def one(args, name: str, depth: int, m: int, seed: int) -> dict[str, float]:
    """One result: features, ridge on them, and what it loses."""
    start = time.perf_counter()
    phi, phi_held, phi_test = features(args, name, depth, m, seed)
    spent = time.perf_counter() - start
    _, _, _, y, y_held, y_test, labels = rows(args.data)
    best = candidates.ridge_on_features(phi, y, phi_held, y_held, phi_test, REGS)
    reference = exact_predictions(args, depth)
    out = quality(best["predictions"], reference, y_test, labels)
    return {**out, "reg": best["reg"], "seconds": spent}


def label(name: str, base: str) -> str:
    """The name that results are kept under."""
    plain = name not in candidates.GENERATED or base == candidates.BASE
    return name if plain else f"{name}, of {base}"


def measure(args, kept: candidates.Kept) -> None:
    """All results that are asked for and not kept yet."""
    for depth in args.depths:
        for m in args.num_features:
            for name in args.methods:
                # There is nothing random in the exact components.
                for seed in range(1 if name == COMPONENTS else args.seeds):
                    kept.get(
                        functools.partial(one, args, name, depth, m, seed),
                        method=label(name, args.base),
                        depth=depth,
                        num_features=m,
                        seed=seed,
                    )


def regression(args) -> None:
    """The table of all results that are kept."""
    kept = candidates.Kept(args.output, "regression")
    measure(args, kept)
    groups: dict[tuple, list[dict]] = {}
    for r in kept.results.values():
        groups.setdefault((r["depth"], r["num_features"], r["method"]), []).append(r)
    order = {name: i for i, name in enumerate(NAMES)}
    table, results = [], []
    for depth in sorted({r["depth"] for r in kept.results.values()}):
        _, _, _, _, _, y_test, labels = rows(args.data)
        best = exact_predictions(args, depth)
        q = quality(best, best, y_test, labels)
        table.append(
            (depth, "", "exact NTK", "0", f"{q['accuracy']:.4f}", f"{q['mse']:.5f}", "")
        )
        for key in sorted(groups, key=lambda k: (k[:2], order.get(k[2], 99))):
            if key[0] != depth:
                continue
            stats = {
                name: candidates.mean_and_error([r[name] for r in groups[key]])
                for name in ("distance", "accuracy", "mse", "seconds")
            }
            what = dict(zip(("depth", "num_features", "method"), key, strict=True))
            results.append({**what, "seeds": len(groups[key]), **stats})
            table.append(
                (
                    *key,
                    "{:.4f} ± {:.4f}".format(*stats["distance"]),
                    "{:.4f} ± {:.4f}".format(*stats["accuracy"]),
                    "{:.5f} ± {:.5f}".format(*stats["mse"]),
                    f"{stats['seconds'][0]:.1f}",
                )
            )
    head = (
        "depth",
        "features",
        "method",
        "distance",
        "test accuracy",
        "test mse",
        "features (s)",
    )
    common.write(args.output, "regression", common.markdown(head, table), results)


JOBS = {"regression": regression}


def main() -> None:
    """Runs the jobs that are named."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--num-features", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--methods", nargs="+", default=list(candidates.NAMES), choices=NAMES
    )
    parser.add_argument(
        "--base",
        default=candidates.BASE,
        choices=candidates.METHODS,
        help="what compress compresses",
    )
    common.run_jobs(parser, JOBS)


if __name__ == "__main__":
    main()
