"""Gradient flow and ensembles in feature space, entry by entry against kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import theirs, x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import NNGPFirst, kernels, stax
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.linear_model import (
    fit_ridge,
    gradient_descent_mse,
    gradient_descent_mse_ensemble,
    ridge_init,
    ridge_merge,
    ridge_update,
)

NET = stax.serial(
    stax.Dense(1, W_std=1.4, b_std=0.2), stax.Relu(), stax.Dense(1, W_std=1.3)
)
TRAIN, TEST = 12, 5
TIMES = (0.01, 1.0, 100.0, np.inf)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((TRAIN + TEST, 6))
Y = RNG.standard_normal((TRAIN, 3))
F0, F0_TEST = RNG.standard_normal((TRAIN, 3)), RNG.standard_normal((TEST, 3))


def features(dtype):
    """Of all examples at once, with the exact kernels as inner products."""
    fmap = jns.feature_map(NET, num_features=1, get=("nngp", "ntk"), method="exact")
    x = jnp.asarray(X, dtype)
    phi = fmap.apply(fmap.init(jax.random.key(0), x), x)
    return (
        jax.tree.map(lambda z: z[:TRAIN], phi),
        jax.tree.map(lambda z: z[TRAIN:], phi),
    )


def kernel(x1, x2, get):
    """By Neural Tangents, but for the diagonal of its NTK.

    There kappa0 is off by the square root of the rounding unit, 1e-8 in float64, of
    which predictions show 1.2e-8, and 3e-4 in float32.
    """
    k = theirs(NET, x1, x2, ("nngp", "ntk"))
    again = x2 is None or (x1.shape == x2.shape and bool((x1 == x2).all()))
    once = x1 if again else jnp.concatenate([x1, x2])
    fmap = jns.feature_map(NET, num_features=1, get="ntk", method="exact")
    phi = fmap.apply(fmap.init(jax.random.key(0), once), once)
    ours = phi[: len(x1)] @ phi[0 if again else len(x1) :].T
    np.testing.assert_allclose(
        k.ntk, ours, atol=3e-8 if x1.dtype == "float64" else 1e-3
    )
    same = (x1[:, None] == (x1 if x2 is None else x2)).all(axis=-1)
    both = NNGPFirst(k.nngp, jnp.where(same, ours, k.ntk))
    return getattr(both, get) if isinstance(get, str) else both


def close(ours, theirs, dtype):
    tolerance = 1e-8 if dtype == np.float64 else 1e-4
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)
    assert ours.dtype == dtype


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    with x64(request.param == np.float64):
        yield request.param


@pytest.mark.long_cases("float64", "True", "0.0-", "nngp")
@pytest.mark.parametrize(
    "diag_reg, absolute", [(0.0, False), (0.03, False), (0.5, True)]
)
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_gradient_flow_is_that_of_the_kernel(kind, diag_reg, absolute, dtype):
    train, test = (getattr(z, kind) for z in features(dtype))
    x = jnp.asarray(X, dtype)
    options = dict(
        learning_rate=0.7, diag_reg=diag_reg, diag_reg_absolute_scale=absolute
    )
    y, f0, f0_test = (jnp.asarray(z, dtype) for z in (Y, F0, F0_TEST))
    theirs = jnt.load().predict.gradient_descent_mse(
        kernel(x[:TRAIN], None, kind), y, **options
    )
    ours = gradient_descent_mse(train, y, **options)
    k_test_train = kernel(x[TRAIN:], x[:TRAIN], kind)
    for t in TIMES:
        wanted = theirs(None if t == np.inf else t, f0, f0_test, k_test_train)
        got = ours(t, f0, f0_test, test)
        for a, b in zip(got, wanted, strict=True):
            close(a, b, dtype)
    wanted = theirs(None, None, f0_test, k_test_train)
    close(ours(None, None, f0_test, test), wanted, dtype)
    grid = jnp.asarray([[0.5, 2.0, 7.0]], dtype)
    got, wanted = ours(grid, f0), theirs(grid, f0)
    assert got.shape == (1, 3, TRAIN, 3)
    close(got, wanted, dtype)


@pytest.mark.long
@pytest.mark.parametrize("diag_reg", [0.0, 0.05])
@pytest.mark.parametrize("on", ["test", "train", "train again"])
def test_ensemble_is_that_of_the_kernels(on, diag_reg, dtype):
    train, test = features(dtype)
    x, y = jnp.asarray(X, dtype), jnp.asarray(Y, dtype)
    theirs = jnt.load().predict.gradient_descent_mse_ensemble(
        kernel, x[:TRAIN], y, diag_reg=diag_reg
    )
    ours = gradient_descent_mse_ensemble(train, y, diag_reg=diag_reg)
    where, there = {
        "test": (test, x[TRAIN:]),
        "train": (None, None),
        "train again": (train, x[:TRAIN]),
    }[on]
    for t in TIMES:
        # At infinity theirs gives the targets themselves for "train".
        late = None if t == np.inf else t
        wanted = theirs(late, there, None, compute_cov=True)
        got = ours(t, where, None, compute_cov=True)
        for kind in ("nngp", "ntk"):
            for a, b in zip(getattr(got, kind), getattr(wanted, kind), strict=True):
                close(a, b, dtype)
    times = jnp.asarray([0.3, 30.0], dtype)
    got = ours(times, where, ("ntk",), compute_cov=True).ntk
    wanted = theirs(times, there, "ntk", compute_cov=True)
    close(got.mean, wanted.mean, dtype)
    close(got.covariance, wanted.covariance, dtype)
    close(ours(times, where, "nngp"), theirs(times, there, "nngp"), dtype)


def predictions(train, test, **options):
    """Of the ensemble at a time and at the end, with covariances."""
    predict_fn = gradient_descent_mse_ensemble(train, Y, diag_reg=0.05)
    return [predict_fn(t, test, None, True, **options) for t in (3.0, None)]


def test_fewer_examples_than_features_and_more():
    """Columns of zeros change nothing but the matrix that is decomposed."""
    rng = np.random.default_rng(1)
    with x64():
        few = [NNGPFirst(*rng.standard_normal((2, n, 7))) for n in (TRAIN, TEST)]
        wide = [jax.tree.map(lambda z: np.pad(z, [(0, 0), (0, 9)]), phi) for phi in few]
        for narrow, padded in zip(predictions(*few), predictions(*wide), strict=True):
            jax.tree.map(functools.partial(close, dtype=np.float64), padded, narrow)
        flows = [
            gradient_descent_mse(phi.ntk, Y, diag_reg=0.1) for phi in (few[0], wide[0])
        ]
        for t in TIMES:
            a, b = (
                flow(t, F0, F0_TEST, phi.ntk)
                for flow, phi in zip(flows, (few[1], wide[1]), strict=True)
            )
            jax.tree.map(functools.partial(close, dtype=np.float64), a, b)
    with pytest.raises(ValueError, match="features and targets must be finite"):
        gradient_descent_mse(wide[0].ntk * np.nan, Y)


@pytest.mark.parametrize("on", ["test", "train"])
def test_variances_are_the_diagonal_of_covariances(on):
    train, test = features(np.float32)
    predict_fn = gradient_descent_mse_ensemble(train, jnp.asarray(Y), diag_reg=0.05)
    test = test if on == "test" else None
    for t in (jnp.asarray([0.5, 3.0]), None):
        whole = predict_fn(t, test, compute_cov=True)
        short = predict_fn(t, test, compute_cov="diagonal")
        for kind in ("nngp", "ntk"):
            wanted = jnp.diagonal(getattr(whole, kind).covariance, axis1=-2, axis2=-1)
            close(getattr(short, kind).covariance, wanted, np.float32)


@pytest.mark.long
def test_variances_have_the_part_that_features_leave_out():
    """With the training examples as landmarks, only K(x, x) of others is missing."""
    with x64():
        x = jnp.asarray(X)
        fmap = jns.feature_map(
            NET, num_features=TRAIN, get=("nngp", "ntk"), method="nystrom"
        )
        params = fmap.init(jax.random.key(0), (6,), sample=x[:TRAIN])
        train, test = (fmap.apply(params, z) for z in (x[:TRAIN], x[TRAIN:]))
        diag = jnp.diagonal(kernels.exact_kernel(NET, x[TRAIN:], get="nngp"))
        found = predictions(train, test, nngp_diag=diag)
        without = predictions(train, test)
        theirs = jnt.load().predict.gradient_descent_mse_ensemble(
            kernel, x[:TRAIN], jnp.asarray(Y), diag_reg=0.05
        )
        for t, ours, small in zip((3.0, None), found, without, strict=True):
            wanted = theirs(t, x[TRAIN:], None, compute_cov=True)
            for kind in ("nngp", "ntk"):
                a, b, c = (
                    jnp.diagonal(getattr(z, kind).covariance)
                    for z in (ours, wanted, small)
                )
                np.testing.assert_allclose(a, b, rtol=1e-4)
                assert (c < 0.95 * b).all()
        with pytest.raises(ValueError, match=r"nngp_diag must have shape \(5,\), one"):
            predictions(train, test, nngp_diag=diag[1:])
        with pytest.raises(ValueError, match="must be None without features_test"):
            predictions(train, None, nngp_diag=diag)


@pytest.mark.long
def test_approaches_the_kernels_predictions_as_features_grow():
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    theirs = jnt.load().predict.gradient_descent_mse_ensemble(
        jnt.to_stax(NET)[2], x[:TRAIN], y, diag_reg=0.05
    )
    wanted = theirs(5.0, x[TRAIN:], None, compute_cov=True)
    errors = []
    for m in (64, 1024):
        squares = []
        for seed in range(6):
            fmap = jns.feature_map(
                NET,
                num_features=m,
                get=("nngp", "ntk"),
                method=jns.methods.VarianceReduced(objective="kernel"),
            )
            params = fmap.init(jax.random.key(seed), (6,))
            train, test = (fmap.apply(params, z) for z in (x[:TRAIN], x[TRAIN:]))
            got = gradient_descent_mse_ensemble(train, y, diag_reg=0.05)(
                5.0, test, None, compute_cov=True
            )
            squares.append(
                [
                    np.mean((a - b) ** 2)
                    for kind in ("nngp", "ntk")
                    for a, b in zip(
                        getattr(got, kind), getattr(wanted, kind), strict=True
                    )
                ]
            )
        errors.append(np.sqrt(np.mean(squares, axis=0)))
    assert (errors[1] < 0.5 * errors[0]).all(), errors


def test_infinity_is_ridge_regression():
    """K + reg n I of `fit_ridge` without intercept is diag_reg absolute."""
    phi = jnp.asarray(RNG.standard_normal((40, 7)), jnp.float32)
    y = jnp.asarray(RNG.standard_normal(40), jnp.float32)
    model = fit_ridge(phi[:30], y[:30], reg=0.01, intercept=False)
    predict_fn = gradient_descent_mse(
        phi[:30], y[:30], diag_reg=0.3, diag_reg_absolute_scale=True
    )
    got = predict_fn(None, None, 0.0, phi[30:])
    np.testing.assert_allclose(got, model.predict(phi[30:]), atol=2e-5)


def test_streamed_sums_give_the_same_predictions():
    phi = jnp.asarray(RNG.standard_normal((50, 8)), jnp.float32)
    y = jnp.asarray(RNG.standard_normal((50, 2)), jnp.float32)
    parts = []
    for start in (0, 20):
        state = ridge_init(8, 2)
        for i in range(start, start + 20, 7):
            end = min(i + 7, start + 20)
            state = ridge_update(state, phi[i:end], y[i:end])
        parts.append(state)
    streamed = gradient_descent_mse(ridge_merge(*parts), diag_reg=0.1)
    whole = gradient_descent_mse(phi[:40], y[:40], diag_reg=0.1)
    for t in (3.0, None):
        np.testing.assert_allclose(
            streamed(t, None, 0.0, phi[40:]), whole(t, None, 0.0, phi[40:]), atol=1e-6
        )
    with pytest.raises(ValueError, match="training set need its features"):
        streamed(1.0)
    with pytest.raises(ValueError, match="add batches with targets y - fx_train_0"):
        streamed(1.0, jnp.ones((40, 2)), 0.0, phi)
    with pytest.raises(ValueError, match="has its own targets"):
        gradient_descent_mse(parts[0], y)


def test_more_examples_than_features():
    """The part of the targets that no features reach stays untrained."""
    phi = jnp.asarray(RNG.standard_normal((30, 4)), jnp.float32)
    y = jnp.asarray(RNG.standard_normal((30, 1)), jnp.float32)
    got = gradient_descent_mse(phi, y)(None)
    best = phi @ np.linalg.lstsq(phi, y, rcond=None)[0]
    np.testing.assert_allclose(got, best, atol=1e-5)
    # The same with columns that say nothing new.
    twice = jnp.concatenate([phi, phi[:, :2], jnp.zeros((30, 1))], axis=1)
    np.testing.assert_allclose(gradient_descent_mse(twice, y)(None), best, atol=1e-5)
    with_reg = gradient_descent_mse(phi, y, diag_reg=0.2)
    theirs = jnt.load().predict.gradient_descent_mse(phi @ phi.T, y, diag_reg=0.2)
    np.testing.assert_allclose(with_reg(40.0), theirs(40.0), atol=1e-5)


def test_traces_and_differentiates():
    train, test = features(np.float32)
    y = jnp.asarray(Y[:, 0], jnp.float32)
    flow = gradient_descent_mse(train.ntk, y)
    one = functools.partial(flow, fx_train_0=None, fx_test_0=0.0, phi_test=test.ntk)
    assert one(2.0).shape == (TEST,)
    np.testing.assert_allclose(jax.jit(one)(2.0), one(2.0), atol=1e-6)
    rate = jax.jacfwd(one)(2.0)
    np.testing.assert_allclose(rate, (one(2.01) - one(1.99)) / 0.02, atol=1e-3)
    ensemble = gradient_descent_mse_ensemble(train, y)
    got = jax.jit(lambda t: ensemble(t, test, compute_cov=True))(jnp.array([1.0, 2.0]))
    assert got.ntk.mean.shape == (2, TEST) and got.nngp.covariance.shape == (2, 5, 5)
    values = np.linalg.eigvalsh(np.asarray(got.nngp.covariance, np.float64))
    assert values.min() > -1e-5  # positive semidefinite but for rounding


def test_bad_arguments_are_named():
    phi, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    for bad in (jnp.ones((3, 1)), jnp.ones((4, 1, 1)), jnp.ones((0, 1))):
        with pytest.raises(ValueError, match=r"features must have shape \(n, m\)"):
            gradient_descent_mse(phi, bad)
    with pytest.raises(TypeError, match="real numbers"):
        gradient_descent_mse(phi, 1j * y)
    for reg in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="diag_reg must be finite and >= 0"):
            gradient_descent_mse(phi, y, diag_reg=reg)
    with pytest.raises(TypeError, match="diag_reg must be a number"):
        gradient_descent_mse(phi, y, diag_reg="a")
    with pytest.raises(ValueError, match="y_train must be given"):
        gradient_descent_mse(phi)
    with pytest.raises(ValueError, match="gradient_descent_mse: the sums must be fin"):
        gradient_descent_mse(phi.at[1, 1].set(jnp.nan), y)
    predict_fn = gradient_descent_mse(phi, y)
    for t in (-1.0, jnp.nan):
        with pytest.raises(ValueError, match="t must be >= 0"):
            predict_fn(t)
    with pytest.raises(ValueError, match="given together"):
        predict_fn(1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="fx_train_0 or fx_test_0"):
        predict_fn(1.0, None)
    with pytest.raises(ValueError, match=r"phi_test must have shape \(p, 2\)"):
        predict_fn(1.0, 0.0, 0.0, jnp.ones((3, 3)))
    with pytest.raises(TypeError, match="attributes nngp and ntk"):
        gradient_descent_mse_ensemble(phi, y)
    ensemble = gradient_descent_mse_ensemble(NNGPFirst(phi, phi), y)
    with pytest.raises(ValueError, match='get must be "ntk", "nngp" or a tuple of'):
        ensemble(1.0, None, "ntkgp")
    with pytest.raises(ValueError, match=r"features_test.ntk must have shape \(p, 2\)"):
        ensemble(1.0, NNGPFirst(phi, jnp.ones((4, 3))))
