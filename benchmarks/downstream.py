"""Ridge on few features beside exact NTK ridge, on data that nothing was tuned on.

    python benchmarks/downstream.py downstream --data FOLDER
    python benchmarks/downstream.py downstream --sets digits bike --methods nystrom
    python benchmarks/downstream.py prediction

scikit-learn's digits and sets of `uci_regression/*.npz` (`X`, `y`, `test_mask`; the
first split), 5000 of the training rows, a fifth of them held out. Inputs and targets
are standardised by the fitting rows (digits: codes minus 0.1, one scale for all
pixels); a constant column is added to the inputs, as a bias of the first layer.

Penalty and number of features are chosen on the held-out rows alone: the fewest of
--num-features with which the mean square of what is lost there, the difference from
the predictions of exact ridge, is at most --within of its mean squared error; else the
most. Errors on test rows have no part in it.

"prediction" is `expected_error` on 1000 fitting rows, over the error that is then found
on 1000 test rows (all of the digits' 360).
"""

import functools

import candidates
import common
import jax
import numpy as np
from fully_connected import exact, network

import jax_ntk_sketch as jns

# Penalties times the number of fitting rows and the mean of the kernel's diagonal.
REGS = 10.0 ** np.arange(-9, 0, 0.5)
SETS = ("digits", "bike", "elevators", "pol", "protein", "keggdirected", "kin40k")
LEARNED = (*candidates.GENERATED, "nystrom", "nystrom, uniform")


@functools.cache
def load(folder: str | None, name: str, num_train: int) -> tuple[np.ndarray, ...]:
    """Fitting, held-out and test inputs (n, d), float32, and targets (n, t)."""
    if name == "digits":
        digits = jns.data.load_digits()
        x, test = (z.reshape(len(z), -1) for z in (digits.x_train, digits.x_test))
        y, y_test = (np.eye(10)[z] - 0.1 for z in (digits.y_train, digits.y_test))
    else:
        path = common.archive(folder, f"uci_regression/{name}.npz")
        with np.load(path, allow_pickle=False) as file:
            mask = file["test_mask"][:, 0]
            x, test = file["X"][~mask], file["X"][mask]
            y, y_test = (file["y"][rows][:, None] for rows in (~mask, mask))
    rows = np.random.default_rng(0).permutation(len(x))[:num_train]
    held, fit = np.split(rows, [len(rows) // 5])
    mean, spread = x[fit].mean(axis=0), x[fit].std(axis=0)
    if name == "digits":  # pixels at the border would be blown up
        spread = np.full_like(spread, x[fit].std())
    spread = np.where(spread > 0, spread, 1)
    parts = [
        np.c_[(z - mean) / spread, np.ones(len(z))] for z in (x[fit], x[held], test)
    ]
    targets = [y[fit], y[held], y_test]
    if name != "digits":
        centre, width = y[fit].mean(axis=0), y[fit].std(axis=0)
        targets = [(z - centre) / width for z in targets]
    return (*(z.astype(np.float32) for z in parts), *targets)


def scores(best: dict, y_test: np.ndarray) -> dict[str, float]:
    """Squared errors on held-out and test rows."""
    return {
        "held": best["held"],
        "reg": best["reg"],
        "mse": float(np.mean((best["predictions"] - y_test) ** 2)),
    }


@functools.cache
def exact_ridge(folder: str | None, name: str, num_train: int, depth: int) -> dict:
    """Exact NTK ridge, as `candidates.ridge` returns it."""
    fit, held, test, y, y_held, _ = load(folder, name, num_train)
    k = exact(fit, None, depth)
    regs = REGS * len(fit) * np.diag(k).mean()
    k_held, k_test = exact(held, fit, depth), exact(test, fit, depth)
    return candidates.ridge(k, y, k_held, y_held, k_test, regs)


def on_features(args, name: str, method: str, m: int, seed: int) -> dict[str, float]:
    """Ridge on the features of one draw."""
    *x, y, y_held, y_test = load(args.data, name, args.num_train)
    fmap, params = candidates.draw(
        network(args.depth), method, m, seed, x[0], args.base
    )
    phi = [jns.transform(fmap, params, z) for z in x]
    regs = REGS * len(y) * np.mean(np.sum(phi[0].astype(np.float64) ** 2, axis=1))
    best = candidates.ridge_on_features(phi[0], y, phi[1], y_held, phi[2], regs)
    reference = exact_ridge(args.data, name, args.num_train, args.depth)["guess"]
    lost = float(np.mean((best["guess"] - reference) ** 2))
    return {**scores(best, y_test), "lost": lost}


def downstream(args) -> None:
    """The table: test error of exact ridge and of features, and their ratio."""
    kept = candidates.Kept(args.output, "downstream")
    table, results = [], []
    for name in args.sets:
        what = dict(set=name, depth=args.depth, num_train=args.num_train)
        reference = exact_ridge(args.data, name, args.num_train, args.depth)
        best = scores(reference, load(args.data, name, args.num_train)[-1])
        fitting = len(load(args.data, name, args.num_train)[0])
        for method in args.methods:
            chosen: list[dict] = []
            reached = False
            for m in args.num_features:
                if reached or (method in LEARNED and m > fitting):
                    break
                draws = [run(args, kept, what, method, m, s) for s in range(args.seeds)]
                done = [r for r in draws if r is not None]
                if done:
                    chosen = done
                    lost = np.mean([r["lost"] for r in done])
                    reached = bool(lost <= args.within * best["held"])
            if not chosen:
                continue
            m, mse = chosen[0]["num_features"], [r["mse"] for r in chosen]
            mean, error = candidates.mean_and_error(mse)
            results.append(
                dict(what, method=method, num_features=m, reached=reached, mse=mse)
                | {"exact": best["mse"]}
            )
            table.append(
                (
                    name,
                    method,
                    f"{m}" if reached else f"{m} (not reached)",
                    f"{best['mse']:.5f}",
                    f"{mean:.5f} ± {error:.5f}",
                    f"{mean / best['mse']:.4f}",
                    f"{np.mean([r['lost'] for r in chosen]) / best['held']:.4f}",
                )
            )
    head = ("data", "method", "features", "exact mse", "mse", "ratio", "lost")
    common.write(args.output, "downstream", common.markdown(head, table), results)


def run(args, kept, what: dict, method: str, m: int, seed: int) -> dict | None:
    """One draw, or what is kept of it."""
    return kept.get(
        functools.partial(on_features, args, what["set"], method, m, seed),
        method=method,
        num_features=m,
        seed=seed,
        **what,
    )


def prediction(args) -> None:
    """The table: predicted error, measured error, and their ratio."""
    table, results = [], []
    for name in args.sets:
        fit, _, test, *_ = load(args.data, name, args.num_train)
        fit, test = fit[:1000], test[:1000]
        k = exact(test, None, args.depth)
        for method in args.methods:
            if method not in candidates.METHODS:
                continue  # compressed maps have no prediction
            for m in args.num_features[:2]:
                fmap = jns.feature_map(
                    network(args.depth),
                    num_features=m,
                    method=candidates.METHODS[method],
                )
                predicted = jns.expected_error(fmap, fit, num_examples=len(test))
                squares = []
                for seed in range(args.seeds):
                    params = fmap.init(jax.random.key(seed + 100), fit)
                    phi = jns.transform(fmap, params, test).astype(np.float64)
                    error = jns.validation.relative_error(k, phi @ phi.T)
                    squares.append(error**2)
                measured = float(np.mean(squares) ** 0.5)
                ratio = predicted / measured
                results.append(
                    dict(
                        set=name,
                        method=method,
                        depth=args.depth,
                        num_features=m,
                        predicted=predicted,
                        measured=measured,
                    )
                )
                row = f"{predicted:.4f}", f"{measured:.4f}", f"{ratio:.2f}"
                table.append((name, method, f"{m}", *row))
                print(table[-1], flush=True)
    head = ("data", "method", "features", "predicted", "measured", "ratio")
    common.write(args.output, "prediction", common.markdown(head, table), results)


JOBS = {"downstream": downstream, "prediction": prediction}


def main() -> None:
    """Runs the jobs that are named."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--num-train", type=int, default=5000)
    parser.add_argument(
        "--num-features",
        nargs="+",
        type=int,
        default=[512, 1024, 2048, 4096, 8192],
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--within", type=float, default=0.02)
    parser.add_argument(
        "--sets",
        nargs="+",
        default=["digits", "bike", "elevators", "pol"],
        choices=SETS,
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["variance_reduced", "nystrom", "compress"],
        choices=candidates.NAMES,
    )
    parser.add_argument("--base", default=candidates.BASE, choices=candidates.METHODS)
    common.run_jobs(parser, JOBS)


if __name__ == "__main__":
    main()
