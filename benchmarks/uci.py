"""Six regression data sets, all rows: NTK features beside other kernels and an MLP.

    python benchmarks/uci.py table --data FOLDER
    python benchmarks/uci.py table --sets bike pol --methods "NTK features"

Sets of `uci_regression/*.npz` (`X`, `y`, `test_mask`: column k marks the test rows of
split k). Inputs and targets are standardised by the training rows, so that the errors
are fractions of the targets' variance. For NTKs a constant column is added to the
inputs, as a bias of the first layer.

Chosen by generalised cross-validation: with the exact kernels on --num-chosen training
rows the depth of the network and the width of the Gaussian kernel, then the penalty of
each method on all rows it sees. The MLP (two hidden layers of 256, Adam) stops when a
tenth of the training rows, held out, has not improved for 20 epochs. No test row has a
part in any choice.
"""

import functools
import itertools
import time
import warnings

import candidates
import common
import jax
import numpy as np
import scipy.linalg
from fully_connected import exact, network
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neural_network import MLPRegressor

import jax_ntk_sketch as jns
from jax_ntk_sketch.linear_model import fit, fit_ridge
from jax_ntk_sketch.linear_model._shifted_solver import Tridiagonal

SETS = ("bike", "elevators", "keggdirected", "kin40k", "pol", "protein")
# Penalties per example, over the kernel's mean diagonal.
REGS = 10.0 ** np.arange(-9, -0.9, 0.5)
DEPTHS = (1, 2, 3, 5)
# Of exp(-gamma |x - y|^2), times the number of inputs.
GAMMAS = (0.03, 0.1, 0.3, 1.0, 3.0)


@functools.lru_cache(1)
def load(folder: str | None, name: str, split: int) -> tuple[np.ndarray, ...]:
    """Standardised training and test inputs (n, d), float32, and targets (n,)."""
    path = common.archive(folder, f"uci_regression/{name}.npz")
    with np.load(path, allow_pickle=False) as file:
        mask = file["test_mask"][:, split]
        x, y = file["X"].astype(np.float64), file["y"]
    mean, spread = x[~mask].mean(axis=0), x[~mask].std(axis=0)
    x = ((x - mean) / np.where(spread > 0, spread, 1)).astype(np.float32)
    y = (y - y[~mask].mean()) / y[~mask].std()
    # Rows may be sorted; the first ones are used for choices.
    order = np.random.default_rng(split).permutation(np.flatnonzero(~mask))
    return x[order], x[mask], y[order], y[mask]


def with_ones(x: np.ndarray) -> np.ndarray:
    """A constant column more."""
    return np.c_[x, np.ones(len(x), np.float32)]


def kernel_ridge(k: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Least generalised cross-validation error of the penalties, and its weights."""
    n = len(k)
    lambdas = REGS * np.trace(k)
    system = Tridiagonal(k)
    values = np.maximum(system.eigenvalues, 0)
    weights = system.solve(y[:, None], lambdas)[..., 0]
    residuals = np.mean((lambdas[:, None] * weights) ** 2, axis=1)
    dof = (values / (values + lambdas[:, None])).sum(axis=1)
    errors = residuals / (1 - dof / n) ** 2
    return float(errors.min()), weights[errors.argmin()]


@functools.lru_cache(1)
def chosen(folder: str | None, name: str, split: int, rows: int) -> tuple[int, float]:
    """Depth of the network, and gamma of the Gaussian kernel."""
    x, _, y, _ = load(folder, name, split)
    x, y = x[:rows], y[:rows]
    d = x.shape[1]
    deep = [kernel_ridge(exact(with_ones(x), None, i), y)[0] for i in DEPTHS]
    wide = [
        kernel_ridge(rbf_kernel(x.astype(float), gamma=g / d), y)[0] for g in GAMMAS
    ]
    return DEPTHS[int(np.argmin(deep))], GAMMAS[int(np.argmin(wide))] / d


def features(args, name: str, split: int, method: str) -> np.ndarray:
    """Predictions of ridge on our features, streamed."""
    x, x_test, y, _ = load(args.data, name, split)
    depth, _ = chosen(args.data, name, split, args.num_chosen)
    fmap = jns.feature_map(
        network(depth),
        num_features=args.num_features,
        method=candidates.METHODS[method],
    )
    x = with_ones(x)
    params = fmap.init(jax.random.key(split), x)
    some = np.asarray(fmap.apply(params, x[:256]), np.float64)
    regs = REGS * np.mean(np.sum(some**2, axis=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # values of reg were dropped
        return fit(fmap, params, x, y, reg=regs.tolist()).predict(with_ones(x_test))


def nystrom_uniform(args, name: str, split: int) -> np.ndarray:
    """Nyström with the exact NTK and uniform landmarks, and scikit-learn's Ridge."""
    x, x_test, y, _ = load(args.data, name, split)
    depth, _ = chosen(args.data, name, split, args.num_chosen)
    x, x_test = with_ones(x), with_ones(x_test)
    marks = np.random.default_rng(split).choice(len(x), args.num_features, False)
    values, vectors = scipy.linalg.eigh(exact(x[marks], None, depth))
    root = vectors / np.sqrt(np.maximum(values, 1e-10 * values[-1]))

    def columns(z: np.ndarray) -> np.ndarray:
        blocks = [
            exact(z[i : i + 2000], x[marks], depth) @ root
            for i in range(0, len(z), 2000)
        ]
        return np.concatenate(blocks).astype(np.float32)

    return ridge(columns(x), y, columns(x_test))


def ridge(phi: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """scikit-learn's Ridge, the penalty by generalised cross-validation."""
    mean = float(np.mean(np.sum(phi**2, axis=1, dtype=np.float64)))
    regs = np.array([reg for reg in REGS * mean if reg > 1e-8 * mean])
    reg = float(fit_ridge(phi, y, reg=regs.tolist()).best().reg)
    model = Ridge(alpha=reg * len(phi)).fit(phi.astype(np.float64), y)
    return model.predict(test.astype(np.float64))


def gaussian(args, name: str, split: int, approximation) -> np.ndarray:
    """scikit-learn's features of the Gaussian kernel."""
    x, x_test, y, _ = load(args.data, name, split)
    _, gamma = chosen(args.data, name, split, args.num_chosen)
    f = approximation(
        gamma=gamma, n_components=args.num_features, random_state=split
    ).fit(x)
    return ridge(f.transform(x), y, f.transform(x_test))


def mlp(args, name: str, split: int) -> np.ndarray:
    """A finite network, trained until held-out rows no longer gain."""
    x, x_test, y, _ = load(args.data, name, split)
    model = MLPRegressor(
        hidden_layer_sizes=(256, 256),
        batch_size=256,
        alpha=1e-5,
        early_stopping=True,
        n_iter_no_change=20,
        max_iter=500,
        tol=0,
        random_state=split,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        return model.fit(x, y).predict(x_test)


def subsample(args, name: str, split: int) -> np.ndarray:
    """The exact NTK on some of the rows."""
    x, x_test, y, _ = load(args.data, name, split)
    depth, _ = chosen(args.data, name, split, args.num_chosen)
    x, y = with_ones(x)[: args.num_exact], y[: args.num_exact]
    _, weights = kernel_ridge(exact(x, None, depth), y)
    x_test = with_ones(x_test)
    blocks = range(0, len(x_test), 2000)
    return np.concatenate(
        [exact(x_test[i : i + 2000], x, depth) @ weights for i in blocks]
    )


METHODS = {
    "NTK, nystrom": lambda *a: features(*a, "nystrom"),
    "NTK, variance_reduced": lambda *a: features(*a, "variance_reduced, kernel"),
    "NTK, uniform Nyström": nystrom_uniform,
    "RBF, Nystroem": lambda *a: gaussian(*a, Nystroem),
    "RBF, RBFSampler": lambda *a: gaussian(*a, RBFSampler),
    "exact NTK, 5000 rows": subsample,
    "MLP": mlp,
}


def measure(args, method: str, name: str, split: int) -> dict[str, float]:
    """Test error and seconds of one method, the choices before not counted."""
    y_test = load(args.data, name, split)[-1]
    depth, gamma = chosen(args.data, name, split, args.num_chosen)
    start = time.perf_counter()
    error = np.mean((METHODS[method](args, name, split) - y_test) ** 2)
    seconds = time.perf_counter() - start
    return dict(mse=float(error), seconds=seconds, depth=depth, gamma=gamma)


def table(args) -> None:
    """Mean squared errors, mean and standard error over the splits; seconds."""
    kept = candidates.Kept(args.output, "uci")
    rows, results = [], []
    for split, name in itertools.product(range(args.splits), args.sets):
        for method in args.methods:
            kept.get(
                functools.partial(measure, args, method, name, split),
                set=name,
                split=split,
                method=method,
                num_features=args.num_features,
            )
    for name in args.sets:
        row = [name]
        for method in args.methods:
            found = kept.select(set=name, method=method, num_features=args.num_features)
            found = [r for r in found if r["split"] < args.splits]
            if not found:
                row.append("-")
                continue
            mean, error = candidates.mean_and_error([r["mse"] for r in found])
            took = np.mean([r["seconds"] for r in found])
            row.append(f"{mean:.4f} ± {error:.4f} ({took:.0f} s)")
            results += found
        rows.append(row)
    text = common.markdown(["set", *args.methods], rows)
    common.write(args.output, f"uci-{args.num_features}", text, results)


if __name__ == "__main__":
    options = common.parser(__doc__)
    options.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    options.add_argument("--methods", nargs="+", default=tuple(METHODS))
    options.add_argument("--splits", type=int, default=3)
    options.add_argument("--num-features", type=int, default=2048)
    options.add_argument("--num-chosen", type=int, default=2000)
    options.add_argument("--num-exact", type=int, default=5000)
    common.run_jobs(options, {"table": table})
