"""What `test_sharding` runs on several devices or in several processes.

    python sharding_child.py devices
    python sharding_child.py processes INDEX PORT FOLDER

Prints one line of JSON.
"""

import json
import pathlib
import sys
import time
import warnings

import jax
import jax.experimental.multihost_utils
import jax.numpy as jnp
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch import sharding, stax
from jax_ntk_sketch.linear_model import _multihost

NET = stax.serial(stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1))
FMAP = jns.feature_map(NET, num_features=200)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((501, 6)).astype(np.float32)
Y = np.sin(X[:, :2]) + 0.1 * RNG.standard_normal((501, 2)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
OPTIONS = dict(reg=[1e-6, 1e-3], batch_size=32)


def fit(x, y, params, fmap=FMAP, **options):
    return lm.fit(fmap, params, x, y, **OPTIONS | options)


def scaled(scale):
    """Maps of one `repr` with different features."""

    def kernel(x1, x2, get):
        return scale * x1 @ (x1 if x2 is None else x2).T

    return jns.landmark_features(kernel, num_features=6)


def relative(fitted, other):
    a, b = (np.asarray(f.all_models.weights, np.float64) for f in (fitted, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def devices():
    """Eight devices against one."""
    params = FMAP.init(jax.random.key(0), (6,))
    mesh, out = sharding.data_mesh(), {"devices": jax.device_count()}
    phi = np.asarray(FMAP.apply(params, X))
    run = jax.jit(lambda p, x: sharding.apply(FMAP, p, x, mesh=mesh))
    for n in (501, 3):
        found = jns.transform(FMAP, params, X[:n], mesh=mesh, batch_size=8)
        assert found.shape == (n, 200)
        error = np.abs(found - phi[:n]).max(initial=0)
        error = max(error, np.abs(run(params, X[:n]) - phi[:n]).max(initial=0))
        out[f"features of {n}"] = float(error)
    for n in (501, 3):
        for folds in (0, 3):
            one = fit(X[:n], Y[:n], params, folds=folds)
            many = fit(X[:n], Y[:n], params, folds=folds, mesh=mesh)
            out[f"weights of {n}, {folds} folds"] = relative(many, one)
            if folds:
                a, b = many.cross_validation.errors, one.cross_validation.errors
                np.testing.assert_allclose(a, b, rtol=1e-5)
    batches = [(X[:100], Y[:100]), (X[100:107], Y[100:107]), (X[107:], Y[107:])]
    streamed = fit(iter(batches), None, params, mesh=mesh)
    out["batches"] = relative(streamed, fit(X, Y, params))
    np.testing.assert_allclose(
        many.predict(X, mesh=mesh), many.predict(X), rtol=1e-5, atol=1e-5
    )
    # The loss of a sharded function has the gradients of the plain one.
    slope = jax.grad(lambda p: jnp.sum(run(p, X[:11]) ** 2))(params)
    plain = jax.grad(lambda p: jnp.sum(FMAP.apply(p, X[:11]) ** 2))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        slope,
        plain,
    )
    bad = X.copy()
    bad[[3, 400]] = np.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        skipping = fit(bad, Y, params, nonfinite="skip", mesh=mesh)
    kept = np.isfinite(bad).all(axis=1)
    out["skipped"] = relative(skipping, fit(X[kept], Y[kept], params))
    assert skipping.num_skipped == 2 and "2 examples" in str(caught[-1].message)
    try:
        fit(bad, Y, params, mesh=mesh)
    except ValueError as error:
        out["error"] = str(error)
    return out


def processes(index, folder):
    """Two processes, of which each knows its own part of the examples."""
    params = FMAP.init(jax.random.key(0), (6,))
    mesh, out = sharding.data_mesh(), {"devices": jax.device_count()}
    cut = 130
    mine = slice(0, cut) if index == 0 else slice(cut, None)
    x, y, labels = X[mine], Y[mine], LABELS[mine]
    other = FMAP.init(jax.random.key(1), (6,))

    def attempt(name, *args, **options):
        try:
            fitted = fit(*args, **{"mesh": mesh} | options)
        except Exception as error:
            out[name] = f"{type(error).__name__}: {error}"
            return None
        out[name] = np.asarray(fitted.all_models.weights).tobytes().hex()
        return fitted

    _multihost._PATIENCE = 1.0
    checkpoint = dict(checkpoint=pathlib.Path(folder) / "sums.jns")
    fitted = attempt("parts", x, y, params, **checkpoint)
    out["relative"] = relative(fitted, fit(X, Y, params))
    attempt("resumed", x, y, params, **checkpoint)
    # The other process may hold its lock still, which is a hidden file.
    out["files"] = sorted(path.name for path in pathlib.Path(folder).glob("sums*"))
    out["features"] = float(
        np.abs(jns.transform(FMAP, params, x, mesh=mesh) - FMAP.apply(params, x)).max()
    )
    # All examples in one process, and folds.
    empty = slice(0, None if index == 0 else 0)
    fitted = attempt("empty", X[empty], Y[empty], params)
    out["empty relative"] = relative(fitted, fit(X, Y, params))
    stream = iter([(x[:50], y[:50]), (x[50:], y[50:])])
    fitted = attempt("stream", stream, None, params)
    out["stream relative"] = relative(fitted, fit(X, Y, params))
    fitted = attempt("folds", x, y, params, folds=3)
    out["fold errors"] = fitted.cross_validation.errors.tolist()
    # The class 2 is known to one process only.
    few = labels if index == 0 else np.minimum(labels, 1)
    fitted = attempt("classes", x, few, params, reg=np.array([1e-3]))
    out["num_classes"] = fitted.best.num_classes
    # Errors of one process are errors of both, and the next fit is not disturbed.
    bad = x.copy()
    bad[5 * index] = np.nan if index else 0
    attempt("bad row", bad, y, params)
    taken = []

    def slowly(last):
        for i in range(500):
            taken.append(i)
            time.sleep(0.01)
            yield (bad if i == last else X)[:8], Y[:8]

    bad = X * np.nan
    attempt("late bad row", slowly(50 if index == 0 else None), None, params)
    out["batches taken"] = len(taken)
    attempt("no examples", x[:0], y[:0], params)
    attempt("params", x, y, (params, other)[index])
    landmarks = scaled(1.0).init(jax.random.key(0), (6,), sample=X[:6])
    attempt("functions", x, y, landmarks, fmap=scaled(1.0 + index))
    attempt("kinds", x, (y[:, 0], labels)[index], params)
    attempt("dtypes", (x, x.astype(int))[index], y, params)
    attempt("reg", x, y, params, reg=(1e-3, 1e-4)[index])
    attempt("options", x, y, params, folds=index)
    attempt("singular", x[:20], y[:20], params, reg=0.0)
    attempt("again", x, y, params)
    # A process that comes late, one that does not come, and one with another mesh.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        time.sleep(3 * index)
        attempt("late", x, y, params)
    out["warnings"] = [str(warning.message) for warning in caught]
    _multihost._LIMIT = 3.0
    if index == 0:
        attempt("missing", x, y, params)
    else:
        fit(x, y, params, mesh=sharding.data_mesh(jax.local_devices()))
    jax.experimental.multihost_utils.sync_global_devices("the first has waited")
    if index == 1:
        attempt("missing", x, y, params)
    swapped = mesh if index == 0 else sharding.data_mesh(jax.devices()[::-1])
    attempt("mesh", x, y, params, mesh=swapped)
    attempt("at the end", x, y, params)
    return out


if __name__ == "__main__":
    if sys.argv[1] == "devices":
        result = devices()
    else:
        index, port, folder = int(sys.argv[2]), sys.argv[3], sys.argv[4]
        jax.distributed.initialize(f"localhost:{port}", 2, index)
        result = processes(index, folder)
    print(json.dumps(result), flush=True)
