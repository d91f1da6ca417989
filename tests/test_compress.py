"""`compress`: the directions that data use, exactly and from one pass."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import draw, x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import recipes, stax
from jax_ntk_sketch.features import _principal_directions

# The name of the module is that of the function in the package.
module = importlib.import_module("jax_ntk_sketch.features._compress")

NET = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1))
FMAP = jns.feature_map(NET, num_features=96, method="ntk_random_features")
PARAMS = draw(FMAP, (5,))
# Lengths that differ, so that the second moment has a decaying spectrum.
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(300, 5)) * RNG.exponential(size=(300, 1))).astype(np.float32)
PHI = np.asarray(jax.jit(FMAP.apply)(PARAMS, X), np.float64)


def gram(phi):
    phi = np.asarray(phi, np.float64)
    return phi @ phi.T


def close(a, b, tolerance=1e-5):
    """Equal up to a part of the largest entry."""
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def lost(u, phi=PHI):
    """What projections on U leave out of the features' squared norm."""
    return 1 - np.sum((phi @ np.asarray(u, np.float64)) ** 2) / np.sum(phi**2)


def optimum(m, phi=PHI):
    values = np.linalg.svd(phi, compute_uv=False) ** 2
    return values[m:].sum() / values.sum()


@pytest.mark.parametrize("n", [40, 300])
def test_all_directions_reproduce_the_gram_matrix(n):
    """m = M, or m at least the number of examples: nothing is lost on the data."""
    m = min(n, 96)
    cmap, cparams = jns.compress(FMAP, PARAMS, X[:n], num_features=m)
    phi = cmap.apply(cparams, X)
    assert phi.shape == (300, m) and phi.dtype == jnp.float32
    close(gram(phi[:n]), gram(PHI[:n]))
    if m == 96:
        close(gram(phi), gram(PHI))


def test_columns_beyond_the_rank_are_zero():
    _, cparams = jns.compress(FMAP, PARAMS, X[:20], num_features=50)
    u = np.asarray(cparams["project"])
    assert u.shape == (96, 50) and (u[:, 20:] == 0).all()
    close(u[:, :20].T @ u[:, :20], np.eye(20))
    again = np.tile(X[:3], (10, 1))
    _, cparams = jns.compress(FMAP, PARAMS, again, num_features=10)
    assert (np.asarray(cparams["project"])[:, 3:] == 0).all()
    _, cparams = jns.compress(FMAP, PARAMS, 0 * X, num_features=10)
    assert (np.asarray(cparams["project"]) == 0).all()


@pytest.mark.parametrize("samples", [None, 96, 300])
def test_exact_directions_are_those_of_an_svd(samples):
    """With s >= M, or all examples, in order, and as well in float64."""
    m = 24
    _, _, right = np.linalg.svd(PHI)
    _, cparams = jns.compress(FMAP, PARAMS, X, num_features=m, num_samples=samples)
    u = np.asarray(cparams["project"], np.float64)
    close(u.T @ u, np.eye(m))
    np.testing.assert_allclose(lost(u), optimum(m), rtol=1e-4)
    close(np.abs(right[:3] @ u[:, :3]), np.eye(3), 1e-3)
    weights = np.sum((PHI @ u) ** 2, axis=0)
    assert (np.diff(weights) < 1e-5 * weights[0]).all()


@pytest.mark.long
def test_float64():
    with x64():
        x = X.astype(np.float64)
        phi = FMAP.apply(PARAMS, x)
        cmap, cparams = jns.compress(FMAP, PARAMS, x, num_features=24)
        assert cparams["project"].dtype == np.float64
        out = cmap.apply(cparams, x)
        u = cparams["project"]
        np.testing.assert_allclose(u.T @ u, np.eye(24), atol=1e-10)
        np.testing.assert_allclose(lost(u, phi), optimum(24, phi), rtol=1e-9)
        # Below the map that is compressed, for any inputs.
        y = RNG.normal(size=(50, 5))
        out, phi = cmap.apply(cparams, y), FMAP.apply(PARAMS, y)
        assert np.linalg.eigvalsh(phi @ phi.T - out @ out.T)[0] > -1e-12


@pytest.mark.long
def test_one_pass_is_close_to_the_optimum():
    """s examples of 3000; the more, the closer; never beyond it."""
    x = RNG.normal(size=(3000, 5)).astype(np.float32)
    phi = np.asarray(FMAP.apply(PARAMS, x), np.float64)
    best, ratios = optimum(12, phi), []
    for samples in (12, 24, 48):
        options = dict(num_features=12, num_samples=samples, batch_size=100)
        _, cparams = jns.compress(FMAP, PARAMS, x, **options)
        u = np.asarray(cparams["project"], np.float64)
        close(u.T @ u, np.eye(12))
        ratios.append(lost(u, phi) / best)
    assert 1 - 1e-6 < ratios[2] < ratios[1] < ratios[0]
    assert ratios[1] < 1.1 and ratios[2] < 1.01
    # Far closer than projecting on the sample's own directions.
    sample = phi[np.arange(24) * 3000 // 24]
    assert lost(np.linalg.svd(sample)[2][:12].T, phi) / best > 1.1


def test_any_batches_and_sources_give_the_same(tmp_path):
    options = dict(num_features=10, num_samples=40)
    expected = gram(_apply(jns.compress(FMAP, PARAMS, X, batch_size=300, **options)))
    stored = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    stored[:] = X
    for source, size in ((X, 7), (X, 64), (stored, 299), (list(X), 512)):
        made = jns.compress(FMAP, PARAMS, source, batch_size=size, **options)
        close(gram(_apply(made)), expected, 1e-4)
    key = jax.random.key(1)
    a, b = (
        np.asarray(jns.compress(FMAP, PARAMS, X, key=key, **options)[1]["project"])
        for _ in range(2)
    )
    np.testing.assert_array_equal(a, b)
    assert lost(a) < 1.3 * optimum(10)


def _apply(made):
    cmap, cparams = made
    return cmap.apply(cparams, X)


@pytest.mark.long
def test_both_kernels_and_images():
    fmap = jns.feature_map(recipes.cntk(1), num_features=64, get=("nngp", "ntk"))
    x = RNG.normal(size=(12, 4, 4, 2)).astype(np.float32)
    params = fmap.init(jax.random.key(0), x)
    cmap, cparams = jns.compress(fmap, params, x, num_features=12)
    wide, phi = fmap.apply(params, x), cmap.apply(cparams, x)
    assert isinstance(phi, jns.KernelFeatures)
    close(gram(phi.nngp), gram(wide.nngp))
    close(gram(phi.ntk), gram(wide.ntk))
    both = jns.transform(cmap, cparams, x, batch_size=5)
    close(both.ntk, phi.ntk)
    _, cparams = jns.compress(fmap, params, x, num_features=3, num_samples=6)
    u = {kind: np.asarray(z, np.float64) for kind, z in cparams["project"].items()}
    for kind, z in zip(("nngp", "ntk"), wide, strict=True):
        z = np.asarray(z, np.float64)
        assert lost(u[kind], z) < 1.5 * optimum(3, z)


@pytest.mark.long
def test_it_is_a_feature_map():
    """Hashable, pure under jit, vmap and grad; in batches; its own init; transform."""
    cmap, cparams = jns.compress(FMAP, PARAMS, X, num_features=10, num_samples=300)
    assert hash(cmap) == hash(jns.CompressedFeatureMap(FMAP, 10))
    assert cmap == eval(repr(cmap), {**vars(jns), **vars(stax), **vars(jns.methods)})
    assert cmap.get == "ntk" and cmap.method == FMAP.method
    phi = cmap.apply(cparams, X)
    close(jax.jit(cmap.apply)(cparams, X), phi)
    close(jax.vmap(lambda x: cmap.apply(cparams, x[None])[0])(X), phi)
    close(cmap.apply(cparams, X, batch_size=64), phi)
    close(jns.transform(cmap, cparams, X, batch_size=64), phi)
    slope = jax.grad(lambda x: jnp.sum(cmap.apply(cparams, x) ** 2))(X)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0
    own = cmap.init(jax.random.key(3), X, sample=X)
    assert cmap.apply(own, X).shape == (300, 10)
    assert jax.tree.structure(own) == jax.tree.structure(cparams)
    # Once more, of what is compressed already.
    twice, params = jns.compress(cmap, cparams, X, num_features=4)
    close(gram(twice.apply(params, X)), gram(phi[:, :4]), 1e-4)


def test_plan():
    cmap = jns.CompressedFeatureMap(FMAP, 10)
    plan, base = cmap.plan((5,), batch_size=32), FMAP.plan((5,), batch_size=32)
    assert plan.num_features == 10 and plan.batch_size == 32
    assert plan.param_bytes == base.param_bytes + 4 * 96 * 10
    assert plan.relative_error is None
    assert plan.flops == base.flops + 2 * 96 * 10
    # s = 40 examples: tests, sums, carries and a product.
    assert plan.fit_bytes - plan.peak_bytes >= 24 * 96 * 40
    assert "principal directions" in str(plan) and "to learn them, peak" in str(plan)
    assert base.fit_bytes == 0 and "learn" not in str(base)
    assert cmap.plan(X[:20]).num_examples == 20
    both = jns.feature_map(NET, num_features=64, get=("nngp", "ntk"))
    assert jns.CompressedFeatureMap(both, 8).plan((5,)).num_features == 16


def test_sums_keep_more_digits_than_float32():
    """10,000 batches of one direction and a small other one."""
    phi = jnp.array([[1.1, 0.001], [1.1, -0.001]])
    tests = jnp.eye(2)
    add = jax.jit(
        functools.partial(_principal_directions.add_products, tests=tests, phi=phi)
    )

    def body(_, sums):
        return add(sums)

    zero = jnp.zeros((2, 2))
    product = np.asarray(add((zero, zero))[0], np.float64)
    total, carry = jax.lax.fori_loop(0, 10_000, body, (zero, zero))
    out = np.asarray(total, np.float64) + np.asarray(carry, np.float64)
    np.testing.assert_allclose(np.diag(out), 1e4 * np.diag(product), rtol=1e-7)


def test_light_directions_are_found_in_float32():
    """Weights from 1 to 1e-6; tests that are not whitened lose the last ones."""
    q, _ = np.linalg.qr(RNG.normal(size=(400, 20)))
    v, _ = np.linalg.qr(RNG.normal(size=(64, 20)))
    phi = ((q * 10 ** (-3 * np.arange(20) / 19)) @ v.T).astype(np.float32)
    tests = _principal_directions.whiten(phi[::10].copy())
    y = np.asarray(jnp.matmul(tests @ phi.T, phi))
    u = _principal_directions.directions(
        _principal_directions.factor(y.copy(), tests), 20
    )
    assert np.abs(v - u @ (u.T @ v)).max() < 0.02


def test_samples_are_evenly_spaced():
    assert module._sample_positions(10, 4, None).tolist() == [0, 2, 5, 7]
    drawn = module._sample_positions(300, 100, jax.random.key(0))
    assert len(np.unique(drawn)) == 100 and (np.diff(drawn) > 0).all()


def test_subspace_iteration_finds_the_largest():
    factor = RNG.normal(size=(400, 500)) * np.arange(1.0, 501) ** -1.0
    expected = np.linalg.svd(factor, compute_uv=False)
    u = _principal_directions.directions(factor, 30)
    np.testing.assert_allclose(u.T @ u, np.eye(30), atol=1e-10)
    kept = np.sum((factor @ u) ** 2)
    np.testing.assert_allclose(kept, np.sum(expected[:30] ** 2), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_features": 97}, ValueError, "at most the 96 columns of base, got 97"),
        ({"num_features": 0}, ValueError, "num_features must be an integer >= 1"),
        ({"num_features": 2.5}, TypeError, "num_features must be an integer"),
        ({"num_samples": 7}, ValueError, "num_samples must be an integer >= 8, got 7"),
        ({"batch_size": 0}, ValueError, "compress: batch_size must be an integer"),
        ({"key": 0}, TypeError, "compress: key must be a JAX PRNG key"),
        ({"fmap": NET}, TypeError, "compress: fmap must be a feature map"),
        ({"x": X[0]}, ValueError, "compress: x must hold n examples"),
        ({"x": X[:0]}, ValueError, "x must hold at least one example"),
        ({"x": X[:, :4]}, ValueError, r"x must have shape \(n, 5\), for which"),
        ({"x": X * 1e30}, ValueError, "must be finite, but they overflow"),
    ],
)
def test_mistakes(options, error, match):
    options = {"num_features": 8, **options}
    fmap, x = options.pop("fmap", FMAP), options.pop("x", X)
    with pytest.raises(error, match=match):
        jns.compress(fmap, PARAMS, x, **options)


@pytest.mark.parametrize("samples", [None, 40])
def test_what_is_not_finite_is_named(samples):
    x = X.copy()
    x[231, 2] = np.nan
    with pytest.raises(ValueError, match=r"in example 231 .* first at \(2,\)"):
        jns.compress(FMAP, PARAMS, x, num_features=8, num_samples=samples)


def test_maps_that_cannot():
    exact = jns.feature_map(NET, num_features=16, method="exact")
    with pytest.raises(ValueError, match='base must not have the method "exact"'):
        jns.compress(exact, {}, X, num_features=8)
    cmap, cparams = jns.compress(FMAP, PARAMS, X, num_features=8)
    with pytest.raises(ValueError, match="sample must be given, because directions"):
        cmap.init(jax.random.key(0), (5,))
    for wrong in (jnp.zeros((96, 7)), {"nngp": cparams["project"]}):
        with pytest.raises(ValueError, match=r"must be \(96, 8\) for each kernel"):
            cmap.apply({**cparams, "project": wrong}, X)
    with pytest.raises(TypeError, match="base must be a feature map"):
        jns.CompressedFeatureMap(NET, 8)


def test_progress(capsys):
    options = dict(num_features=8, num_samples=20, batch_size=50)
    jns.compress(FMAP, PARAMS, X, progress=True, **options)
    shown = capsys.readouterr()
    assert "KiB of sums, batches of 50" in shown.err and not shown.out
    jns.compress(FMAP, PARAMS, X, progress=False, **options)
    assert capsys.readouterr().err == ""
