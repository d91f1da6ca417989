"""Solvers on features beside their double-precision and exact counterparts.

    python benchmarks/solvers.py precision
    python benchmarks/solvers.py flow cg --data FOLDER

"precision": weights from float32 sums over batches of 256, beside the float64 solution
by QR, at reg = 1e-6 and Gram matrices (over n) of norm 1 and given condition numbers.

"flow": predictions of gradient flow and the ensembles' mean and variance on MNIST,
from features, beside Neural Tangents' from exact kernels.

"cg": conjugate gradients beside the direct solution on 15,000 MNIST images.
"""

import time

import common
import jax
import jax.numpy as jnp
import numpy as np
from fully_connected import network

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch.interop import neural_tangents as jnt

TIMES = (0.01, 1.0, 100.0, np.inf)


def with_condition(n: int, m: int, condition: float, rng) -> np.ndarray:
    """Features whose Gram matrix over n has norm 1 and this condition number."""
    u, _ = np.linalg.qr(rng.standard_normal((n, m)))
    v, _ = np.linalg.qr(rng.standard_normal((m, m)))
    values = np.sqrt(n) * np.geomspace(1, condition**-0.5, m)
    return (u * values @ v.T).astype(np.float32)


def difference(a, b) -> float:
    """Relative, in Frobenius norm."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def precision(args) -> None:
    """Errors of the weights, and the estimate that `RidgeInfo.rounding` gives."""
    rows, results = [], []
    n, reg = 20_000, 1e-6
    for m in (100, 500):
        for condition in (1e2, 1e4, 1e6, 1e8, 1e10, 1e12):
            rng = np.random.default_rng(0)
            phi = with_condition(n, m, condition, rng)
            y = (phi @ rng.standard_normal(m) + rng.standard_normal(n))[:, None]
            y = y.astype(np.float32)
            for lam in (reg, 0.0):
                wide = phi.astype(np.float64)
                system = np.vstack([wide, np.sqrt(lam * n) * np.eye(m)])
                right = np.vstack([y, np.zeros((m, 1))])
                direct = np.linalg.lstsq(system, right, rcond=None)[0]
                plain = (phi.T @ phi).astype(np.float64) + lam * n * np.eye(m)
                plain = np.linalg.solve(plain, (phi.T @ y).astype(np.float64))
                state = lm.ridge_init(m, 1)
                for i in range(0, n, 256):
                    state = lm.ridge_update(state, phi[i : i + 256], y[i : i + 256])
                row = [m, f"{condition:.0e}", lam, f"{difference(plain, direct):.1e}"]
                try:
                    model = lm.ridge_solve(state, lam, intercept=False)
                    error = difference(model.weights, direct)
                    rounding = float(model.info.rounding)
                    row += [f"{error:.1e}", f"{rounding:.1e}"]
                except np.linalg.LinAlgError:
                    row += ["refused", "-"]
                rows.append(row)
                results.append(row)
    head = ["m", "condition", "reg", "plain float32 sums", "ours", "its estimate"]
    common.write(args.output, "solvers-precision", common.markdown(head, rows), results)


def flow(args) -> None:
    """Root mean square differences, over that of the exact predictions."""
    x, y, x_test, _ = common.mnist(args.data)
    x, y, x_test = x[: args.num_train], np.eye(10)[y[: args.num_train]] - 0.1, x_test
    x_test, y = x_test[:200], jnp.asarray(y, jnp.float32)
    net, options = network(args.depth), dict(diag_reg=1e-3)
    kernel_fn = jnt.to_stax(net)[2]
    exact = jnt.load().predict.gradient_descent_mse_ensemble(kernel_fn, x, y, **options)
    wanted = {
        t: exact(None if t == np.inf else t, x_test, None, compute_cov=True)
        for t in TIMES
    }
    rows, results = [], []
    for m in (256, 1024, 4096):
        fmap = jns.feature_map(
            net,
            num_features=m,
            get=("nngp", "ntk"),
            method=jns.methods.VarianceReduced(objective="kernel"),
        )
        params = fmap.init(jax.random.key(0), x.shape[1:])
        train, test = (jns.transform(fmap, params, z) for z in (x, x_test))
        predict = lm.gradient_descent_mse_ensemble(train, y, **options)
        for kind in ("nngp", "ntk"):
            row = [m, kind]
            for t in TIMES:
                got = predict(t, test, (kind,), compute_cov=True)
                got, there = getattr(got, kind), getattr(wanted[t], kind)
                mean = difference(got.mean, there.mean)
                variance = difference(
                    np.diagonal(got.covariance), np.diagonal(there.covariance)
                )
                row.append(f"{mean:.3f}, {variance:.3f}")
                results.append([m, kind, t, mean, variance])
            rows.append(row)
    head = ["m", "kernel", *(f"t = {t:g}: mean, variance" for t in TIMES)]
    common.write(args.output, "solvers-flow", common.markdown(head, rows), results)


def cg(args) -> None:
    """Passes, times and distances for several penalties."""
    x, y, x_test, _ = common.mnist(args.data)
    x, y, x_test = x[:15_000], y[:15_000], x_test[:2000]
    method = jns.methods.VarianceReduced(objective="kernel")
    fmap = jns.feature_map(network(args.depth), num_features=2048, method=method)
    params = fmap.init(jax.random.key(0), x.shape[1:])
    some = np.asarray(fmap.apply(params, x[:256]), np.float64)
    mean = np.mean(np.sum(some**2, axis=1))
    rows, results = [], []
    for reg in (1e-2, 1e-4, 1e-6):
        start = time.perf_counter()
        direct = lm.fit(fmap, params, x, y, reg=reg * mean)
        took = time.perf_counter() - start
        for steps in (3, 30, 400):
            start = time.perf_counter()
            fitted, history = lm.fit_cg(
                fmap, params, x, y, reg=reg * mean, max_steps=steps
            )
            seconds = time.perf_counter() - start
            scores = [f.predict(x_test) for f in (fitted, direct)]
            apart = np.abs(scores[0] - scores[1]).max()
            rms = np.sqrt(np.mean((scores[0] - scores[1]) ** 2)) / 0.3
            rows.append(
                [
                    f"{reg:g}",
                    steps,
                    history.passes,
                    f"{history.residual:.1e}",
                    f"{history.bound:.1e}",
                    history.converged,
                    f"{rms:.1e}",
                    f"{apart:.1e}",
                    f"{seconds:.0f} s ({took:.0f} s)",
                ]
            )
            results.append([*map(str, rows[-1])])
    head = "reg / diagonal,steps allowed,passes,residual,bound,converged".split(",")
    head += ["rms difference / 0.3", "largest difference of scores", "time (direct)"]
    common.write(args.output, "solvers-cg", common.markdown(head, rows), results)


if __name__ == "__main__":
    options = common.parser(__doc__)
    options.add_argument("--depth", type=int, default=2)
    options.add_argument("--num-train", type=int, default=1000)
    common.run_jobs(options, {"precision": precision, "flow": flow, "cg": cg})
