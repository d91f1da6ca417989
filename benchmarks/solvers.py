"""Solvers on features, compared with double precision and with each other.

    python benchmarks/solvers.py precision
    python benchmarks/solvers.py cg --data FOLDER

"precision" compares weights from float32 sums over batches of 256 with the float64
solution by QR. Gram matrices (over n) have norm 1 and given condition numbers. "cg"
compares conjugate gradients with the direct solution on 15,000 MNIST images.
"""

import time

import common
import jax
import maps
import numpy as np

from jax_ntk_sketch import linear_model as lm


def with_condition(n: int, m: int, condition: float) -> np.ndarray:
    """Return features whose Gram matrix over n has norm 1 and this condition number."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.standard_normal((n, m)))
    v, _ = np.linalg.qr(rng.standard_normal((m, m)))
    values = np.sqrt(n) * np.geomspace(1, condition**-0.5, m)
    return (u * values @ v.T).astype(np.float32)


def difference(a: jax.typing.ArrayLike, b: jax.typing.ArrayLike) -> float:
    """Return the relative difference in the Frobenius norm."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def precision(args: common.Options) -> None:
    """Measure the errors of the weights, and the estimate `RidgeInfo.rounding`."""
    records, n = [], 20_000
    for m in (100, 500):
        for condition in (1e2, 1e4, 1e6, 1e8, 1e10, 1e12):
            phi, rng = with_condition(n, m, condition), np.random.default_rng(1)
            y = phi @ rng.standard_normal((m, 1)) + rng.standard_normal((n, 1))
            y = y.astype(np.float32)
            for reg in (1e-6, 0.0):
                penalty = reg * n * np.eye(m)
                system = np.vstack([phi.astype(np.float64), np.sqrt(penalty)])
                right = np.vstack([y, np.zeros((m, 1))])
                direct = np.linalg.lstsq(system, right, rcond=None)[0]
                sums = (phi.T @ phi).astype(np.float64) + penalty
                plain = np.linalg.solve(sums, (phi.T @ y).astype(np.float64))
                record = {"m": m, "condition": condition, "reg": reg}
                record["plain"] = difference(plain, direct)
                state = lm.ridge_init(m, 1)
                for i in range(0, n, 256):
                    state = lm.ridge_update(state, phi[i : i + 256], y[i : i + 256])
                try:
                    model = lm.ridge_solve(state, reg, intercept=False)
                    record["ours"] = f"{difference(model.weights, direct):.1e}"
                    record["estimate"] = float(model.info.rounding)
                except np.linalg.LinAlgError:
                    record["ours"] = "refused"
                records.append(record)
    head = "m | condition | reg | plain float32 sums | these sums | their estimate"
    row = "{m} | {condition:.0e} | {reg:g} | {plain:.1e} | {ours} | {estimate:.1e}"
    common.report(args, "solvers-precision", common.table(records, head, row), records)


def cg(args: common.Options) -> None:
    """Measure passes, times and distances for several penalties."""
    x, y, x_test, _ = common.mnist(args.data)
    x, y, x_test = x[: args.num_train], y[: args.num_train], x_test[:2000]
    net = maps.relu_network(args.depth)
    fmap = maps.feature_map(net, "variance_reduced", args.num_features)
    params = fmap.init(jax.random.key(0), x.shape[1:])
    scale = maps.mean_diagonal(fmap.apply(params, x[:256]))
    records, key = [], jax.random.key(1)
    for reg in (1e-2, 1e-4, 1e-6):
        start = time.perf_counter()
        direct = lm.fit(fmap, params, x, y, reg=reg * scale)
        record = {"reg": reg, "direct": time.perf_counter() - start}
        for steps in (3, 30, 400):
            start = time.perf_counter()
            fitted = lm.fit_cg(
                fmap, params, x, y, key=key, reg=reg * scale, max_steps=steps
            )
            seconds = time.perf_counter() - start
            apart = fitted.predict(x_test) - direct.predict(x_test)
            found = {"steps": steps, "seconds": seconds, **fitted.info._asdict()}
            found["residuals"] = found["residuals"].tolist()
            found["rms"] = float(np.sqrt(np.mean(apart**2)))
            records.append({**record, **found})
    head = (
        "reg / diagonal | steps allowed | passes | residual | converged | rms "
        "difference of scores | seconds | direct, s"
    )
    row = (
        "{reg:g} | {steps} | {num_passes} | {residual:.1e} | "
        "{converged} | {rms:.1e} | {seconds:.0f} | {direct:.0f}"
    )
    common.report(args, "solvers-cg", common.table(records, head, row), records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"precision": precision, "cg": cg},
        depth=(2, "hidden layers"),
        num_train=(15000, "training images of cg"),
        num_features=(2048, "features of cg"),
    )
