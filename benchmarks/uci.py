"""Regression data sets on which nothing was tuned: NTK features and other methods.

    python benchmarks/uci.py table --data FOLDER
    python benchmarks/uci.py table --sets bike pol --methods "NTK, nystrom"
    python benchmarks/uci.py downstream --data FOLDER

The sets are files `uci_regression/*.npz` with `X`, `y` and `test_mask`, whose column k
marks the test rows of split k. "digits" are scikit-learn's. Inputs and targets are
standardized by the fitting rows, so that errors are fractions of the targets' variance;
digits keep one scale for all pixels and codes minus 0.1. For NTKs a constant column is
added to the inputs, as a bias of the first layer.

"table" uses all rows. Generalized cross-validation chooses the depth of the network and
the width of the Gaussian kernel, with exact kernels on --num-chosen training rows, and
then the penalty of each method. The MLP has two hidden layers of 256 and uses Adam. It
stops when a held-out tenth of the training rows has not improved for 20 epochs.

"downstream" compares ridge on few features with exact NTK ridge regression on 5000
training rows of the first split, of which a fifth is held out. The held-out rows choose
the penalty and the number of features: the fewest of --num-features whose predictions
differ from the exact ones by at most --within of the exact mean squared error. No
choice depends on a test row.
"""

import functools
import itertools
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import common
import maps
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neural_network import MLPRegressor

import jax_ntk_sketch as jns
from jax_ntk_sketch.linear_model import fit, fit_ridge

DIGITS = "digits"
SETS = ("bike", "elevators", "keggdirected", "kin40k", "pol", "protein")
# Penalties per example, relative to the kernel's mean diagonal.
REGS = 10.0 ** np.arange(-9, -0.9, 0.5)
DEPTHS = (1, 2, 3, 5)
# Values of gamma, times the number of inputs.
GAMMAS = (0.03, 0.1, 0.3, 1.0, 3.0)
LEARNED = (*maps.GENERATED, "nystrom", "nystrom, uniform")
MAPS = ("variance_reduced, regression", "variance_reduced", "nystrom", *maps.GENERATED)


@functools.lru_cache(1)
def rows(folder: str | None, name: str, split: int) -> tuple[np.ndarray, ...]:
    """Return training and test inputs, and targets (n, t), in a random order."""
    if name == DIGITS:
        digits = jns.data.load_digits()
        x, x_test = (z.reshape(len(z), -1) for z in (digits.x_train, digits.x_test))
        y, y_test = maps.codes(digits.y_train), maps.codes(digits.y_test)
    else:
        file = f"uci_regression/{name}.npz"
        x, y, mask = common.arrays(folder, file, "X", "y", "test_mask")
        mask, y = mask[:, split], y[:, None]
        x, x_test, y, y_test = x[~mask], x[mask], y[~mask], y[mask]
    # Rows may be sorted, and the first ones are used for choices.
    order = np.random.default_rng(split).permutation(len(x))
    return x[order], x_test, y[order], y_test


def with_ones(x: np.ndarray) -> np.ndarray:
    """Append a constant column."""
    return np.c_[x, np.ones(len(x), np.float32)]


class Split(NamedTuple):
    """The rows of one split, and what cross-validation has chosen for them.

    Attributes:
      x, y: the training rows and their targets.
      x_test, y_test: the test rows and their targets.
      depth: of the network.
      gamma: of the Gaussian kernel exp(-gamma |x - y|^2).
      seed: the number of the split.
    """

    x: np.ndarray
    x_test: np.ndarray
    y: np.ndarray
    y_test: np.ndarray
    depth: int
    gamma: float
    seed: int


@functools.lru_cache(1)
def choose(folder: str | None, name: str, split: int, count: int) -> Split:
    """Return a split, with the depth and gamma that `count` training rows choose."""
    x, x_test, y, y_test = rows(folder, name, split)
    x, x_test = (z.astype(np.float32) for z in maps.standardize(x, x, x_test))
    y, y_test = (z[:, 0] for z in maps.standardize(y, y, y_test))
    data, x, y = (x, x_test, y, y_test), x[:count], y[:count]
    gammas = [g / x.shape[1] for g in GAMMAS]

    def error(k: np.ndarray) -> float:
        return maps.kernel_ridge(k, y[:, None], REGS, generalized=True)[0]

    by_depth = [error(maps.exact(with_ones(x), None, i)) for i in DEPTHS]
    by_gamma = [error(rbf_kernel(x.astype(float), gamma=g)) for g in gammas]
    depth, gamma = DEPTHS[np.argmin(by_depth)], gammas[np.argmin(by_gamma)]
    return Split(*data, depth, gamma, split)


def ntk_features(args: common.Options, split: Split, name: str) -> np.ndarray:
    """Return predictions of streaming ridge regression on a map of `maps.draw`."""
    x, net = with_ones(split.x), maps.relu_network(split.depth)
    fmap, params = maps.draw(net, name, args.width, split.seed, x, y=split.y)
    print(fmap.plan(x.shape[1:]).method, flush=True)
    regs = REGS * maps.mean_diagonal(fmap.apply(params, x[:256]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # values of reg were dropped
        fitted = fit(fmap, params, x, split.y, reg=regs.tolist())
    return fitted.predict(with_ones(split.x_test))


def gaussian(args: common.Options, split: Split, approximation: Callable) -> np.ndarray:
    """Return predictions with scikit-learn's features of the Gaussian kernel."""
    size, seed = args.width, split.seed
    f = approximation(gamma=split.gamma, n_components=size, random_state=seed)
    phi = f.fit(split.x).transform(split.x)
    regs = REGS[REGS > 1e-8] * maps.mean_diagonal(phi)
    model = fit_ridge(phi, split.y, reg=regs.tolist()).best()
    return np.asarray(model.predict(f.transform(split.x_test)))


def mlp(args: common.Options, split: Split) -> np.ndarray:
    """Return predictions of a finite network."""
    model = MLPRegressor(
        (256, 256), batch_size=256, alpha=1e-5, early_stopping=True,
        n_iter_no_change=20, max_iter=500, tol=0, random_state=split.seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        return model.fit(split.x, split.y).predict(split.x_test)


def subsample(args: common.Options, split: Split) -> np.ndarray:
    """Return predictions of the exact NTK on a part of the rows."""
    x, y = with_ones(split.x)[: args.num_exact], split.y[: args.num_exact]
    k = maps.exact(x, None, split.depth)
    _, _, w = maps.kernel_ridge(k, y[:, None], REGS, generalized=True)
    return maps.exact(with_ones(split.x_test), x, split.depth) @ w[:, 0]


METHODS: dict[str, Callable[[common.Options, Split], np.ndarray]] = {
    "NTK, choose": lambda *a: ntk_features(*a, maps.CHOSEN),
    "NTK, nystrom": lambda *a: ntk_features(*a, "nystrom"),
    "NTK, variance_reduced": lambda *a: ntk_features(*a, "variance_reduced"),
    "NTK, uniform Nyström": lambda *a: ntk_features(*a, "uniform landmarks"),
    "RBF, Nystroem": lambda *a: gaussian(*a, Nystroem),
    "RBF, RBFSampler": lambda *a: gaussian(*a, RBFSampler),
    "exact NTK, 5000 rows": subsample,
    "MLP": mlp,
}


def measure(args: common.Options, method: str, name: str, number: int) -> common.Record:
    """Return the test error and the seconds of one method, choices not counted."""
    split = choose(args.data, name, number, args.num_chosen)
    start = time.perf_counter()
    mse = maps.square_error(METHODS[method](args, split), split.y_test)
    seconds = time.perf_counter() - start
    count = len(split.x) + len(split.x_test)
    return {"mse": mse, "seconds": seconds, "rows": count, "depth": split.depth}


def table(args: common.Options) -> None:
    """Measure mean squared errors over the splits."""
    kept = common.Kept(args.output, f"uci-{args.width}")
    for split, name in itertools.product(range(args.splits), args.sets):
        for method in args.methods:
            run = functools.partial(measure, args, method, name, split)
            kept.get(run, set=name, method=method, split=split)
    records = kept.summary(("set", "rows", "method"), ("mse", "seconds"))
    order = {name: i for i, name in enumerate(METHODS)}
    records.sort(key=lambda r: (r["set"], order[r["method"]]))
    head = "set | rows"
    row = "{set} | {rows:,}"
    template = "{mse:.4f} ± {mse_se:.4f}"
    text = common.wide_table(records, head, row, "{method}", template)
    common.report(args, "uci-table", text, records)


@functools.cache
def few_rows(folder: str | None, name: str, count: int) -> tuple[np.ndarray, ...]:
    """Return fitting, held-out and test inputs (n, d), float32, and targets (n, t)."""
    x, x_test, y, y_test = rows(folder, name, 0)
    held, fitting = np.split(np.arange(min(count, len(x))), [min(count, len(x)) // 5])
    parts, targets = (x[fitting], x[held], x_test), (y[fitting], y[held], y_test)
    if name == DIGITS:  # one scale, because pixels at the border hardly vary
        mean, spread = x[fitting].mean(axis=0), x[fitting].std()
        parts = tuple((z - mean) / spread for z in parts)
    else:
        parts = tuple(maps.standardize(parts[0], *parts))
        targets = tuple(maps.standardize(targets[0], *targets))
    return (*(with_ones(z).astype(np.float32) for z in parts), *targets)


@functools.cache
def exact_ridge(folder: str | None, name: str, count: int, depth: int) -> common.Record:
    """Return exact NTK ridge regression, as `maps.ridge` does."""
    x, held, test, y, y_held, _ = few_rows(folder, name, count)
    k = maps.exact(x, None, depth)
    regs = REGS * len(x) * np.diag(k).mean()
    k_held, k_test = maps.exact(held, x, depth), maps.exact(test, x, depth)
    return maps.ridge(k, y, regs, k_held, y_held, k_test)


def ridge_on_draw(
    args: common.Options, name: str, method: str, m: int, seed: int
) -> common.Record:
    """Return the test error of ridge on one draw, and its loss on held-out rows."""
    *x, y, y_held, y_test = few_rows(args.data, name, args.num_train)
    net = maps.relu_network(args.depth)
    fmap, params = maps.draw(net, method, m, seed, x[0], args.base)
    phi = [jns.transform(fmap, params, z) for z in x]
    regs = REGS * len(y) * maps.mean_diagonal(phi[0])
    best = maps.ridge_on_features(phi[0], y, regs, phi[1], y_held, phi[2])
    exact = exact_ridge(args.data, name, args.num_train, args.depth)
    lost = maps.square_error(best["guess"], exact["guess"])
    return {
        "mse": maps.square_error(best["predictions"], y_test),
        "lost": lost / exact["held"],
    }


def downstream(args: common.Options) -> None:
    """Compare the test errors of exact ridge regression and of few features."""
    kept = common.Kept(args.output, "downstream")
    records = []
    for name, method in itertools.product(args.sets, args.maps):
        x, *_, y_test = few_rows(args.data, name, args.num_train)
        best = None
        for m in args.num_features:
            if method in LEARNED and m > len(x):
                break
            labels = {"set": name, "depth": args.depth, "method": method}
            labels |= {"num_features": m}
            for seed in range(args.seeds):
                run = functools.partial(ridge_on_draw, args, name, method, m, seed)
                kept.get(run, **labels, seed=seed)
            if draws := kept.select(**labels):
                lost = float(np.mean([r["lost"] for r in draws]))
                mse, se = common.mean_and_error([r["mse"] for r in draws])
                best = {**labels, "mse": mse, "se": se, "lost": lost}
                if lost <= args.within:
                    break
        if best is not None:
            exact = exact_ridge(args.data, name, args.num_train, args.depth)
            best["exact"] = maps.square_error(exact["predictions"], y_test)
            records.append({**best, "ratio": best["mse"] / best["exact"]})
    head = (
        "data | method | columns | difference from exact, held out | exact mse | mse "
        "| ratio"
    )
    row = (
        "{set} | {method} | {num_features:,} | {lost:.1%} | {exact:.4f} | {mse:.4f} ±"
        " {se:.4f} | {ratio:.3f}"
    )
    common.report(args, "uci-downstream", common.table(records, head, row), records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"table": table, "downstream": downstream},
        sets=(list(SETS), "data sets", (*SETS, DIGITS)),
        methods=(list(METHODS), "for table: methods", METHODS),
        splits=(3, "for table: splits"),
        width=(2048, "for table: features"),
        num_chosen=(2000, "for table: rows that choose the depth"),
        num_exact=(5000, "for table: rows of the exact NTK"),
        maps=(["variance_reduced"], "for downstream: feature maps", MAPS),
        num_features=([512, 1024, 2048, 4096, 8192], "for downstream: features"),
        num_train=(5000, "for downstream: training rows"),
        depth=(1, "for downstream: hidden layers"),
        seeds=(3, "for downstream: draws of each map"),
        within=(0.02, "for downstream: difference from the exact predictions"),
        base=(maps.BASE, "for downstream: what compress compresses", maps.METHODS),
    )
