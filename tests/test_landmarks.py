"""Choosing landmarks, inverse roots, and `jns.nystrom` on kernels of all kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import x64
from registry import quick_compilation

import jax_ntk_sketch as jns
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
        root = np.asarray(jax.jit(inverse_sqrt)(k))
        assert root.dtype == dtype
        np.testing.assert_allclose(root.T @ k @ root, np.eye(40), atol=300 * eps)
        # Singular: a projection still, and finite; scales do not matter.
        for k in (low_rank(40, 7), np.ones((40, 40)), np.zeros((40, 40))):
            scale = 10.0 ** np.linspace(-2, 2, 40)
            k = (k * scale * scale[:, None]).astype(dtype)
            root = np.asarray(inverse_sqrt(jnp.asarray(k)))
            assert np.isfinite(root).all()
            again = k @ root @ root.T @ k / scale / scale[:, None]
            k = k / scale / scale[:, None]
            np.testing.assert_allclose(again, k, atol=3e4 * eps * max(1e-9, k.max()))


def test_principal_root():
    k = low_rank(30, 30).astype(np.float32)
    phi = k @ np.asarray(principal_sqrt(k, k, 6))
    values, vectors = np.linalg.eigh(k.astype(np.float64))
    best = vectors[:, -6:] * values[-6:] @ vectors[:, -6:].T
    np.testing.assert_allclose(phi @ phi.T, best, atol=1e-4)
    assert not np.any(principal_sqrt(k, k, 33)[:, 30:])


NET = stax.serial(
    stax.Conv(1, (2, 2), None, "SAME", 1.4, 0.1), stax.Relu(), stax.GlobalAvgPool(),
    stax.Dense(1, 1.2),
)  # fmt: skip


def polynomial(x1, x2, get):
    return (1 + x1 @ (x1 if x2 is None else x2).T) ** (2 if get == "ntk" else 1)


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
            fit = jns.landmark_features(kernel_fn, z, get=get)
            phi = fit.apply(x)
            k = np.asarray(kernel_fn(x, x, get))
            expected = k[:, :8] @ np.linalg.inv(k[:8, :8]) @ k[:8]
            np.testing.assert_allclose(phi @ phi.T, expected, rtol=1e-5)
            np.testing.assert_allclose(
                jax.jit(lambda fit, x: fit.apply(x))(fit, x), phi, atol=1e-7
            )


def test_kernels_choose_landmarks():
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    fit = jns.landmark_features(polynomial, x, num_features=5, key=KEY)
    assert fit.landmarks.shape == (5, 4) and fit.apply(x).shape == (20, 5)
    assert all((x == row).all(1).any() for row in np.asarray(fit.landmarks))
    phi = jax.jit(
        lambda x: jns.landmark_features(polynomial, x, num_features=5, key=KEY).apply(x)
    )
    np.testing.assert_allclose(phi(x), fit.apply(x), rtol=1e-3, atol=1e-3)
    # All are landmarks: the kernel itself, of rank 15.
    phi = jns.landmark_features(polynomial, x).apply(x)
    np.testing.assert_allclose(
        phi @ phi.T, polynomial(x, x, "ntk"), rtol=1e-4, atol=1e-4
    )
    assert [leaf.shape for leaf in jax.tree.leaves(fit)] == [(5, 4), (5, 5)]


def test_kernel_that_is_none():
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

    def gram(x1, x2=None):
        return x1 @ (x1 if x2 is None else x2).T

    for kernel_fn, message in (
        (
            lambda a, b, get: gram(a, b)[None],
            r"must return \(6, 6\) .* shape \(1, 6, 6",
        ),
        (lambda a, b, get: -gram(a, b), "not positive semidefinite"),
        (lambda a, b, get: jnp.triu(gram(a, b)), "not symmetric"),
        (lambda a, b, get: gram(a, b) / 0, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            jns.landmark_features(kernel_fn, x)
    for options, error, message in (
        ({"get": "both"}, ValueError, 'get must be "ntk" or "nngp"'),
        ({"num_features": 3}, TypeError, "needs a key"),
        ({"num_features": 7, "key": KEY}, ValueError, "at most the 6 landmarks"),
        ({"num_features": 2, "key": 1}, TypeError, "must be a JAX PRNG key"),
    ):
        with pytest.raises(error, match=message):
            jns.landmark_features(polynomial, x, **options)
    with pytest.raises(TypeError, match="must be a function"):
        jns.landmark_features("ntk", x)
    with pytest.raises(ValueError, match=r"at least one, got shape \(4,\)"):
        jns.landmark_features(polynomial, x[0])
    with pytest.raises(ValueError, match=r"shape \(n, \*\(4,\)\)"):
        jns.landmark_features(polynomial, x).apply(x[:, :3])
