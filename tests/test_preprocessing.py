"""Whitening and standardisation: closed forms, streams, dtypes, bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import x64
from sklearn import datasets

from jax_ntk_sketch.preprocessing import (
    standardize_columns_apply,
    standardize_columns_fit,
    standardize_examples,
    zca_apply,
    zca_fit,
)
from jax_ntk_sketch.preprocessing.covariance import read_moments

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(12, 12)) * np.geomspace(1, 1e-2, 12)
X = RNG.normal(size=(300, 12)) @ MIX + RNG.normal(size=12)
IMAGES = X.reshape(300, 2, 2, 3)


def covariance(x):
    return np.cov(np.asarray(x, np.float64).reshape(len(x), -1).T, bias=True)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# Whitening.


@pytest.mark.parametrize("reg", [0.0, 1e-4, 0.1, 10.0])
@pytest.mark.parametrize("in_units", [True, False])
def test_whitened_covariance_is_the_closed_form(reg, in_units):
    """cov(W x) = C (C + reg)^-1, in the eigenvectors of C."""
    c = covariance(X)
    amount = reg * np.trace(c) / len(c) if in_units else reg
    with x64():
        params = zca_fit(X, reg=reg, relative=in_units)
        whitened = covariance(zca_apply(params, X))
        expected = c @ np.linalg.inv(c + amount * np.eye(len(c)))
        np.testing.assert_allclose(whitened, expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(params.reg, amount, rtol=1e-12)
        values = np.linalg.eigvalsh(c)[::-1]
        np.testing.assert_allclose(params.eigenvalues, values, rtol=1e-10)
        ratios = values / (values + amount)
        np.testing.assert_allclose(params.whitened_fraction, ratios, rtol=1e-10)
        np.testing.assert_allclose(params.effective_rank, ratios.sum(), rtol=1e-10)


def test_matrix_is_symmetric_positive_and_the_inverse_root():
    with x64():
        params = zca_fit(X, reg=0.01)
        w = np.asarray(params.whitening)
    np.testing.assert_array_equal(w, w.T)
    assert np.linalg.eigvalsh(w).min() > 0
    inverse = np.linalg.inv(covariance(X) + float(params.reg) * np.eye(12))
    np.testing.assert_allclose(w @ w, inverse, rtol=0, atol=1e-10 * abs(inverse).max())


def test_float32_is_the_float64_matrix_rounded():
    x = X.astype(np.float32)
    params = zca_fit(x, reg=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    with x64():
        exact = zca_fit(x.astype(np.float64), reg=0.1)
        y = zca_apply(exact, x.astype(np.float64))
    np.testing.assert_array_equal(params.whitening, exact.whitening.astype(np.float32))
    np.testing.assert_allclose(zca_apply(params, x), y, rtol=0, atol=1e-5)


def test_digits_against_numpy():
    """8x8 digits have pixels that are 0 in all images."""
    x = datasets.load_digits().images
    flat = x.reshape(len(x), -1)
    assert (flat.std(axis=0) == 0).any()
    c = covariance(x)
    amount = 0.1 * np.trace(c) / 64
    u, s, _ = np.linalg.svd(c)
    expected = (flat - flat.mean(axis=0)) @ (u / np.sqrt(s + amount)) @ u.T
    with x64():
        y = np.asarray(zca_apply(zca_fit(x, reg=0.1), x)).reshape(len(x), -1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10)
    y32 = zca_apply(zca_fit(x.astype(np.float32), reg=0.1), x.astype(np.float32))
    np.testing.assert_allclose(y32.reshape(len(x), -1), expected, rtol=0, atol=1e-5)
    assert abs(y32[:, flat.std(axis=0).reshape(8, 8) == 0]).max() < 1e-12


def test_relative_regularisation_does_not_depend_on_the_scale():
    with x64():
        one = zca_apply(zca_fit(X, reg=0.3), X)
        two = zca_apply(zca_fit(1000 * X, reg=0.3), 1000 * X)
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-10)
        same = zca_fit(X, reg=0.3 * np.trace(covariance(X)) / 12, relative=False)
        np.testing.assert_allclose(one, zca_apply(same, X), rtol=0, atol=1e-10)
        absolute = [zca_fit(s * X, reg=0.3, relative=False) for s in (1, 1000)]
        assert absolute[0].effective_rank < absolute[1].effective_rank - 1


def test_fewer_examples_than_dimensions():
    with x64():
        params = zca_fit(X[:5], reg=0.1)
        assert float(params.effective_rank) < 4  # the mean costs one
        y = zca_apply(params, X)
    assert np.isfinite(y).all()


# Streams.


@pytest.mark.parametrize("batch_size", [150, 299, 7, 1])
def test_batches_of_all_sizes_agree(batch_size):
    whole = read_moments("job", IMAGES)
    assert relative(whole.covariance, covariance(X)) < 1e-14
    parts = read_moments("job", IMAGES, batch_size=batch_size)
    assert parts.num_rows == 300 and parts.mean.shape == (2, 2, 3)
    assert relative(parts.mean, whole.mean) < 1e-13
    assert relative(parts.covariance, whole.covariance) < 1e-13
    assert all(array.dtype == np.float64 for array in parts[1:])
    with x64():
        one = zca_fit(IMAGES, reg=1e-3)
        other = zca_fit(IMAGES, reg=1e-3, batch_size=batch_size)
        assert relative(other.whitening, one.whitening) < 1e-10


@pytest.mark.parametrize("batch_size", [300, 100, 10])
def test_a_large_mean_does_not_cost_digits(batch_size):
    """7e7 in float64: sums of squares would keep no digit of the variances."""
    x = (np.round(X * 2**20) / 2**20) + 2.0**26  # exact in float64
    found = read_moments("job", x, batch_size=batch_size).covariance
    assert relative(found, covariance(np.round(X * 2**20) / 2**20)) < 1e-8
    assert relative((x * x).mean(0) - x.mean(0) ** 2, covariance(x).diagonal()) > 1


def test_a_large_mean_in_float32():
    """What is left is the rounding of the examples, 1e4 * 2^-24 each."""
    x = (X + 1e4).astype(np.float32)
    found = read_moments("job", x).covariance
    assert relative(found, covariance(x)) < 1e-12
    assert relative(found, covariance(X)) < 1e-3
    params = zca_fit(x, reg=0.1)
    closed = np.sort(np.asarray(params.whitened_fraction))
    whitened = np.linalg.eigvalsh(covariance(zca_apply(params, x)))
    np.testing.assert_allclose(whitened, closed, rtol=0, atol=1e-5)


def test_moments_of_columns_are_the_diagonal():
    full = read_moments("job", X, batch_size=20)
    diagonal = read_moments("job", X, columns=True, batch_size=20)
    np.testing.assert_allclose(diagonal.scatter, full.scatter.diagonal(), rtol=1e-13)


# Standardisation.


@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_standardize_each_example(eps):
    with x64():
        y = np.asarray(standardize_examples(IMAGES, eps=eps)).reshape(300, 12)
    variance = X.var(axis=1)
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(y.var(axis=1), variance / (variance + eps), rtol=1e-12)
    centred = X - X.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt(variance + eps)[:, None]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("axis", [(1, 2), (-3, -2), 3, [1]])
def test_standardize_over_chosen_axes(axis):
    axes = tuple(axis) if isinstance(axis, list) else axis
    with x64():
        y = standardize_examples(IMAGES, axis=axis)
    mean, std = (f(IMAGES, axis=axes, keepdims=True) for f in (np.mean, np.std))
    np.testing.assert_allclose(y, (IMAGES - mean) / std, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, 1e-20, 255.0])
def test_constant_images_become_zeros(value):
    x = jnp.full((2, 32, 32, 3), value)
    np.testing.assert_array_equal(standardize_examples(x), 0)
    gradient = jax.grad(
        lambda x: jnp.sum(standardize_examples(x) ** 2 + standardize_examples(x))
    )(x)
    assert np.isfinite(gradient).all()


def test_standardize_gradient():
    from jax.test_util import check_grads

    with x64():
        check_grads(
            standardize_examples, (jnp.asarray(IMAGES[:2]),), order=1, modes=["rev"]
        )


def test_standardize_does_not_lose_digits_to_brightness():
    x = np.asarray(np.round(RNG.normal(size=(3, 3072)) * 64), np.float32)
    y, bright = standardize_examples(x), standardize_examples(x + np.float32(1e5))
    np.testing.assert_allclose(bright, y, rtol=0, atol=2e-6)


def test_columns_against_numpy():
    axes = (0, 1, 2)
    mean, std = IMAGES.mean(axes), IMAGES.std(axes)
    with x64():
        params = standardize_columns_fit(IMAGES, batch_size=13)
        np.testing.assert_allclose(params.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(params.std, std, rtol=1e-12)
        y = standardize_columns_apply(params, IMAGES)
        np.testing.assert_allclose(y, (IMAGES - mean) / std, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e10 / 3])
def test_constant_entries_have_no_variance(value):
    """Exactly: rounding would be divided by itself."""
    x = np.concatenate([X[:, :2], np.full((300, 1), value)], axis=1)
    params = standardize_columns_fit(x, batch_size=7)
    assert params.std[2] == 0
    np.testing.assert_array_equal(standardize_columns_apply(params, x)[:, 2], 0)
    moments = read_moments("job", x, batch_size=11)
    np.testing.assert_array_equal(moments.scatter[2], 0)


# What all have in common.

APPLY = {
    "zca": lambda x: zca_apply(zca_fit(IMAGES.astype(np.float32)), x),
    "standardize": standardize_examples,
    "columns": lambda x: standardize_columns_apply(
        standardize_columns_fit(IMAGES.astype(np.float32)), x
    ),
}


@pytest.mark.parametrize("name", APPLY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "uint8", "bool"])
def test_shapes_and_dtypes_are_kept(name, dtype):
    x = jnp.asarray(100 * jnp.abs(jnp.asarray(IMAGES[:40]))).astype(dtype)
    y = APPLY[name](x)
    assert y.shape == x.shape
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    assert y.dtype == (x.dtype if floating else jnp.float32)
    # Integers are converted as they are.
    precise = APPLY[name](x.astype(jnp.float32))
    np.testing.assert_array_equal(y, precise.astype(y.dtype))
    assert APPLY[name](x[:0]).shape == (0, 2, 2, 3)


@pytest.mark.parametrize("fit", [zca_fit, standardize_columns_fit])
def test_fit_of_integers_and_of_coarse_floats(fit):
    integers = RNG.integers(0, 256, size=(100, 2, 2, 3)).astype(np.uint8)
    for x in (integers, jnp.asarray(integers), jnp.asarray(integers, jnp.bfloat16)):
        params = fit(x)
        same = fit(integers.astype(np.float32))
        for got, expected in zip(*map(jax.tree.leaves, (params, same)), strict=True):
            assert got.dtype == jnp.float32
            np.testing.assert_array_equal(got, expected)
    with x64():
        assert fit(integers).mean.dtype == jnp.float64
        assert fit(integers.astype(np.float32)).mean.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(12,), (4, 3), (1, 2, 2, 3)])
def test_any_trailing_shape(shape):
    x = X.reshape(300, *shape)
    with x64():
        flat = zca_apply(zca_fit(X), X)
        np.testing.assert_array_equal(zca_apply(zca_fit(x), x).reshape(300, 12), flat)


@pytest.mark.parametrize("name", ["zca", "standardize", "columns"])
def test_transformations_of_jax(name):
    x = jnp.asarray(IMAGES, jnp.float32)
    params = {"zca": zca_fit, "columns": standardize_columns_fit}.get(
        name, lambda x: ()
    )(x)
    function = {"zca": zca_apply, "columns": standardize_columns_apply}.get(
        name, lambda _, x: standardize_examples(x)
    )
    eager = function(params, x)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(jax.jit(function)(params, x), eager)
    close(jax.vmap(lambda x: function(params, x[None])[0])(x), eager)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    if name != "standardize":
        close(jax.vmap(function, (0, None))(twice, x)[1], eager)
    gradient = jax.grad(lambda x: jnp.sum(function(params, x) ** 2))(x)
    assert np.isfinite(gradient).all()
    out = jax.eval_shape(
        function, params, jax.ShapeDtypeStruct((7, 2, 2, 3), "float32")
    )
    assert out.shape == (7, 2, 2, 3)


def test_what_is_fitted_is_frozen():
    for params in (zca_fit(X), standardize_columns_fit(X)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            params.mean = 0


# Bad input.


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("batch_size", [None, 50])
def test_bad_examples_are_named(bad, batch_size):
    x = IMAGES.copy()
    x[217, 1, 0, 2] = bad
    for fit in (zca_fit, standardize_columns_fit):
        with pytest.raises(ValueError, match=r"x must be finite, .* in example 217 "):
            fit(x, batch_size=batch_size)
        with pytest.warns(
            RuntimeWarning, match="left out 1 example that is not finite"
        ):
            skipped = fit(x, batch_size=batch_size, nonfinite="skip")
        clean = fit(np.delete(x, 217, axis=0))
        np.testing.assert_allclose(skipped.mean, clean.mean, rtol=1e-6)
    # Apply is pure: what is bad stays with its example.
    y = np.asarray(zca_apply(zca_fit(IMAGES), x)).reshape(300, 12)
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(y).all(1)), [217])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: zca_fit(X[:1]), ValueError, "at least 2 examples, got 1"),
        (
            lambda: standardize_columns_fit(X[:1]),
            ValueError,
            "at least 2 examples, got 1",
        ),
        (lambda: zca_fit(X, reg=-0.1), ValueError, "reg must be .* got -0.1"),
        (lambda: zca_fit(X, reg=np.nan), ValueError, "reg must be .* got nan"),
        (lambda: zca_fit(X, reg=True), TypeError, "reg must be a number, got True"),
        (lambda: zca_fit(X, reg=[1, 2]), TypeError, "reg must be a number"),
        (
            lambda: zca_fit(X, batch_size=0),
            ValueError,
            "batch_size must be an integer >= 1, got 0",
        ),
        (lambda: zca_fit(X, batch_size=2.0), TypeError, "batch_size must be an int"),
        (lambda: zca_fit(X[:, 0]), ValueError, r"shape \(n, \.\.\.\).* got \(300,\)"),
        (lambda: zca_fit(X[:, :0]), ValueError, r"entry per example, got \(300, 0\)"),
        (lambda: zca_fit(X + 0j), TypeError, "real numbers, got dtype complex128"),
        (lambda: zca_fit([["a", "b"]]), TypeError, "real numbers, got dtype <U1"),
        (lambda: jax.jit(zca_fit)(X), TypeError, "zca_fit: x must not be traced"),
        (lambda: zca_fit(X[:5], reg=0), ValueError, "rank 4 of 12 from 5 .* reg > 0"),
        (lambda: zca_fit(0 * X), ValueError, "got 300 equal examples"),
        (
            lambda: zca_fit(np.repeat(X, 2, axis=1), reg=0),
            ValueError,
            "rank 12 of 24 from 300 .*dependent",
        ),
        (
            lambda: zca_apply(zca_fit(IMAGES), X),
            ValueError,
            r"shape \(n, 2, 2, 3\).* got \(300, 12\)",
        ),
        (lambda: zca_apply(zca_fit(X), X[0]), ValueError, r"one example as x\[None\]"),
        (lambda: zca_apply(zca_fit(X), X + 0j), TypeError, "got dtype complex128"),
        (
            lambda: standardize_columns_apply(standardize_columns_fit(X), X[:, :5]),
            ValueError,
            "12 columns were fitted",
        ),
        (lambda: standardize_examples(X[0]), ValueError, r"x\[None\]"),
        (lambda: standardize_examples(X, eps=-1), ValueError, "eps must be .* got -1"),
        (
            lambda: standardize_examples(X, axis=0),
            ValueError,
            "axis must name .* got 0",
        ),
        (
            lambda: standardize_examples(X, axis=2),
            ValueError,
            "axis must name .* got 2",
        ),
        (
            lambda: standardize_examples(X, axis=()),
            ValueError,
            r"axis must name .* got \(\)",
        ),
        (
            lambda: standardize_examples(IMAGES, axis=(1, -3)),
            ValueError,
            "different axes",
        ),
        (
            lambda: standardize_examples(X, axis=1.0),
            TypeError,
            "axis must be None, an integer",
        ),
        (
            lambda: zca_fit(np.where(np.arange(300) < 299, np.nan, 1.0)[:, None]),
            ValueError,
            "zca_fit: x must be finite, .* in examples 0, 1, 2, 3, 4 and 294 more",
        ),
    ],
)
def test_mistakes(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_equal_examples_with_an_absolute_regulariser():
    x = np.full((4, 3), 0.1, np.float32)
    y = zca_apply(zca_fit(x, reg=1e-3, relative=False), x)
    np.testing.assert_array_equal(y, 0)
