"""Choosing landmarks, inverse roots, and `landmark_features` of kernels of any kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import x64
from registry import quick_compilation

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.kernels import rpcholesky
from jax_ntk_sketch.kernels.nystrom import (
    choose_uniform,
    inverse_sqrt,
    principal_sqrt,
)

KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quick_compilation():
        yield


def low_rank(n=200, rank=150, decay=0.8, seed=0):
    """A kernel whose eigenvalues fall like decay^i, and whose diagonal is uneven."""
    u, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, rank)))
    root = u * decay ** (np.arange(rank) / 2)
    root[: n // 10] *= 3
    return root @ root.T


def choose(k, num, key=KEY, **options):
    k = jnp.asarray(k)
    return rpcholesky(key, lambda i: k[:, i], jnp.diagonal(k), num, **options)


def left(k, index):
    """The trace that landmarks leave."""
    index = np.asarray(index)
    cross = k[:, index]
    return np.trace(k) - np.trace(cross @ np.linalg.pinv(k[index][:, index]) @ cross.T)


@pytest.mark.parametrize("block", [1, 5, None])
def test_pivots_are_nearly_best(block):
    """On average over keys, and with uneven diagonals much better than by chance."""
    k, num, keys = low_rank(), 30, jax.random.split(KEY, 20)
    best = np.linalg.eigvalsh(k)[:-num].sum()
    with x64():
        pivots = jax.vmap(lambda key: choose(k, num, key, block=block))
        chance = jax.vmap(lambda key: choose_uniform(key, len(k), num))
        errors, uniform = [
            np.mean([left(k, index) for index in jax.jit(run)(keys)])
            for run in (pivots, chance)
        ]
    assert best < errors < 8 * best
    assert errors < 0.6 * uniform


def test_first_pivot_is_in_proportion_to_the_diagonal():
    d = jnp.array([1.0, 2.0, 0.0, 5.0])
    keys = jax.random.split(KEY, 4000)
    first = jax.vmap(lambda key: choose(jnp.diag(d), 1, key)[0])(keys)
    counts = np.bincount(first, minlength=4)
    expected = 4000 * np.asarray(d) / 8
    assert counts[2] == 0
    sigma = np.sqrt(expected * (1 - expected / 4000))[[0, 1, 3]]
    assert (np.abs(counts - expected)[[0, 1, 3]] < 4 * sigma).all()


def test_equal_examples_are_taken_once():
    """Then, and of zero vectors, what is left is drawn without repetition."""
    x = np.repeat(np.eye(5, dtype=np.float32), 6, axis=0)
    x[-3:] = 0
    index = np.asarray(choose(x @ x.T, 12, block=1))
    assert sorted(x[index[:5]].argmax(1)) == [0, 1, 2, 3, 4]
    assert len(set(index.tolist())) == 12
    assert sorted(np.asarray(choose(0 * x @ x.T, 30)).tolist()) == list(range(30))


def test_uniform_choice_is_uniform():
    keys = jax.random.split(KEY, 3000)
    index = np.asarray(jax.vmap(lambda key: choose_uniform(key, 7, 3))(keys))
    assert all(len(set(row)) == 3 for row in index.tolist())
    counts = np.bincount(index.ravel(), minlength=7)
    p = 3 / 7
    assert np.abs(counts - 3000 * p).max() < 4 * np.sqrt(3000 * p * (1 - p))


def test_choices_refuse():
    for call in (
        lambda: choose(np.eye(3), 4),
        lambda: choose_uniform(KEY, 3, 4),
    ):
        with pytest.raises(
            ValueError, match="at most the number of examples, 3, got 4"
        ):
            call()
    with pytest.raises(
        ValueError, match="num_landmarks must be an integer >= 1, got 0"
    ):
        choose(np.eye(3), 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_root(dtype):
    with x64(dtype == "float64"):
        eps = np.finfo(dtype).eps
        k = low_rank(40, 40, 0.9).astype(dtype) + np.eye(40, dtype=dtype) / 10
        root = np.asarray(jax.jit(inverse_sqrt)(k).root)
        assert root.dtype == dtype
        np.testing.assert_allclose(root.T @ k @ root, np.eye(40), atol=300 * eps)
        # Singular: a projection still, and finite; scales do not matter.
        for k in (low_rank(40, 7), np.ones((40, 40)), np.zeros((40, 40))):
            scale = 10.0 ** np.linspace(-2, 2, 40)
            k = (k * scale * scale[:, None]).astype(dtype)
            root = np.asarray(inverse_sqrt(jnp.asarray(k)).root)
            assert np.isfinite(root).all()
            again = k @ root @ root.T @ k / scale / scale[:, None]
            k = k / scale / scale[:, None]
            np.testing.assert_allclose(again, k, atol=3e4 * eps * max(1e-9, k.max()))


def test_principal_root():
    k = low_rank(30, 30).astype(np.float32)
    phi = k @ np.asarray(principal_sqrt(k, k, 6).root)
    values, vectors = np.linalg.eigh(k.astype(np.float64))
    best = vectors[:, -6:] * values[-6:] @ vectors[:, -6:].T
    np.testing.assert_allclose(phi @ phi.T, best, atol=1e-4)
    assert not np.any(principal_sqrt(k, k, 33).root[:, 30:])


NET = stax.serial(
    stax.Conv(1, (2, 2), None, "SAME", 1.4, 0.1), stax.Relu(), stax.GlobalAvgPool(),
    stax.Dense(1, 1.2),
)  # fmt: skip


def polynomial(x1, x2, get):
    return (1 + x1 @ (x1 if x2 is None else x2).T) ** (2 if get == "ntk" else 1)


@pytest.mark.long
@pytest.mark.parametrize("get", ["ntk", "nngp"])
def test_any_kernel_of_neural_tangents(get):
    """One that this package has no record for: a network with an error function."""
    nt = jnt.load()
    layers = nt.stax.Dense(1), nt.stax.Erf(), nt.stax.Dense(1)
    with x64():
        for kernel_fn, shape in (
            (jnt.to_stax(NET)[2], (4, 4, 2)),
            (nt.stax.serial(*layers)[2], (5,)),
        ):
            x = np.random.default_rng(0).normal(size=(12, *shape))
            z = x[:8]
            fmap = jns.landmark_features(kernel_fn, num_features=8, get=get)
            params = fmap.init(KEY, shape, sample=z)
            phi = fmap.apply(params, x)
            k = np.asarray(kernel_fn(x, x, get))
            expected = k[:, :8] @ np.linalg.inv(k[:8, :8]) @ k[:8]
            np.testing.assert_allclose(phi @ phi.T, expected, rtol=1e-5)
            for again in (
                jax.jit(fmap.apply)(params, x),
                fmap.apply(params, x, batch_size=5),
            ):
                np.testing.assert_allclose(again, phi, atol=1e-7)


def test_kernels_choose_landmarks():
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    fmap = jns.landmark_features(polynomial, num_features=5)
    params = fmap.init(KEY, (4,), sample=x)
    assert params["landmarks"].shape == (5, 4) and params["root"].shape == (5, 5)
    assert fmap.apply(params, x).shape == (20, 5)
    assert all((x == row).all(1).any() for row in np.asarray(params["landmarks"]))
    phi = jax.jit(lambda x: fmap.apply(fmap.init(KEY, (4,), sample=x), x))
    np.testing.assert_allclose(phi(x), fmap.apply(params, x), rtol=1e-3, atol=1e-3)
    # All are landmarks: the kernel itself, of rank 15.
    fmap = jns.landmark_features(polynomial, num_features=20)
    phi = fmap.apply(fmap.init(KEY, (4,), sample=x), x)
    np.testing.assert_allclose(
        phi @ phi.T, polynomial(x, x, "ntk"), rtol=1e-4, atol=1e-4
    )


def test_too_few_examples_warn():
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    fmap = jns.landmark_features(polynomial, num_features=7)
    with pytest.warns(RuntimeWarning, match="only 5 of 7 columns can be used"):
        params = fmap.init(KEY, (4,), sample=x)
    phi = fmap.apply(params, x)
    assert phi.shape == (5, 7) and not np.asarray(phi[:, 5:]).any()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(phi @ phi.T, polynomial(x, x, "ntk"))


@pytest.mark.long
def test_landmark_features_are_a_feature_map():
    """Into everything that takes a map: each gives what apply gives."""
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    fmap = jns.landmark_features(polynomial, num_features=12)
    assert isinstance(fmap, jns.FeatureMap) and fmap.kinds == ("ntk",)
    assert fmap == jns.landmark_features(polynomial, num_features=12)
    assert hash(fmap) == hash(jns.landmark_features(polynomial, num_features=12))
    assert repr(fmap).startswith("landmark_features(test_landmarks.polynomial, num_")
    params = fmap.init(KEY, (4,), sample=x)
    phi = np.asarray(fmap.apply(params, x))
    plan = fmap.plan(x, sample=x, batch_size=16)
    assert plan.param_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert (plan.num_features, plan.num_examples, plan.batch_size) == (12, 60, 16)
    assert "12 landmarks" in str(plan) and plan.fit_bytes > fmap.plan((4,)).fit_bytes
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(jns.transform(fmap, params, x, batch_size=16), phi)
    cmap, cparams = jns.compress(fmap, params, x, num_features=12)
    psi = cmap.apply(cparams, x)
    close(psi @ psi.T, phi @ phi.T, rtol=1e-3, atol=1e-3)
    y = x[:, 0] ** 2
    fitted = lm.fit(fmap, params, x, y, reg=1e-6)
    assert np.corrcoef(fitted.predict(x), y)[0, 1] > 0.95
    report = jns.validation.compare(fmap, polynomial, x, key=KEY, num_seeds=2, sample=x)
    assert 0 < report.ntk.relative.mean < 0.4
    predicted = jns.validation.expected_error(fmap, x, key=KEY)
    assert 0 < predicted < 0.6
    twelve = jax.vmap(lambda key: fmap.apply(fmap.init(key, (4,), sample=x), x))
    assert twelve(jax.random.split(KEY, 3)).shape == (3, 60, 12)


def test_kernel_that_is_none():
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

    def gram(x1, x2=None):
        return x1 @ (x1 if x2 is None else x2).T

    for kernel_fn, message in (
        (
            lambda a, b, get: gram(a, b)[None],
            r"must return \(6, 6\) .* shape \(1, 6, 6",
        ),
        (lambda a, b, get: -gram(a, b), "must be positive semidefinite"),
        (lambda a, b, get: jnp.triu(gram(a, b)), "must be symmetric"),
        (lambda a, b, get: gram(a, b) / 0, "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            jns.landmark_features(kernel_fn, num_features=6).init(KEY, (4,), sample=x)
    for options, error, message in (
        ({"get": "both"}, ValueError, "get must be one of 'nngp', 'ntk'"),
        ({"num_features": 0}, ValueError, "num_features must be an integer >= 1"),
        ({"kernel_fn": "ntk"}, TypeError, "must be a function"),
    ):
        with pytest.raises(error, match=message):
            jns.landmark_features(
                **{"kernel_fn": polynomial, "num_features": 6, **options}
            )
    fmap = jns.landmark_features(polynomial, num_features=6)
    for key, example, sample, error, message in (
        (1, x, x, TypeError, "must be a JAX PRNG key"),
        (KEY, x, x[:0], ValueError, "sample must have an example, got none"),
        (KEY, (4,), None, ValueError, "sample must be given, because landmarks are ex"),
        (KEY, x, None, ValueError, r"pass sample=x, examples \(n, 4\)"),
        (KEY, (4,), (4,), ValueError, r"sample must be an array \(n, 4\)"),
        (KEY, (3,), x, ValueError, r"sample must be an array \(n, 3\)"),
        (KEY, x[0], x, ValueError, r"example must be the shape of one .* shape \(4,\)"),
        (KEY, x, x.astype(complex), TypeError, "sample must be real"),
    ):
        with pytest.raises(error, match=message):
            fmap.init(key, example, sample=sample)
    params = fmap.init(KEY, (4,), sample=x)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 4\)"):
        fmap.apply(params, x[:, :3])
    with pytest.raises(ValueError, match=r"use x\[None\]"):
        fmap.apply(params, x[0])
    with pytest.raises(ValueError, match="with 5 columns, got 6"):
        jns.landmark_features(polynomial, num_features=5).apply(params, x)
