"""Conjugate gradients: the direct solution, and an honest flag."""

import jax
import numpy as np
import pytest
from helpers import draw

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch import stax

NET = stax.serial(stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1))
FMAP = jns.feature_map(
    NET, num_features=120, method=jns.methods.VarianceReduced("regression")
)
PARAMS = draw(FMAP, (6,))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((230, 6)).astype(np.float32)
Y = (np.sin(X[:, :2]) + 0.1 * RNG.standard_normal((230, 2))).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
KEY = jax.random.key(1)
OPTIONS = dict(batch_size=64, rank=20, key=KEY)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("targets", ["two", "flat", "classes"])
def test_predictions_are_those_of_the_direct_solution(targets, intercept):
    y = {"two": Y, "flat": Y[:, 0], "classes": LABELS}[targets]
    call = (FMAP, PARAMS, X, y)
    fitted = lm.fit_cg(*call, reg=1e-4, intercept=intercept, **OPTIONS)
    direct = lm.fit(*call, reg=1e-4, intercept=intercept)
    assert fitted.info.converged and fitted.info.bound <= 2e-4
    assert fitted.info.num_passes == len(fitted.info.residuals) + 1
    np.testing.assert_allclose(fitted.predict(X), direct.predict(X), atol=1e-4)
    assert fitted.best.info.mse == pytest.approx(direct.best.info.mse, rel=1e-3)
    if targets == "classes":
        assert (fitted.predict_class(X) == direct.predict_class(X)).all()


def test_weights_of_examples_and_what_is_not_finite():
    weight = RNG.integers(0, 3, 230).astype(np.float32)
    x = X.copy()
    x[7, 2] = np.nan
    options = dict(reg=1e-3, sample_weight=weight, nonfinite="skip")
    with pytest.warns(RuntimeWarning, match="fit_cg: left out 1 example "):
        fitted = lm.fit_cg(FMAP, PARAMS, x, Y, **options, **OPTIONS)
    with pytest.warns(RuntimeWarning, match="fit: left out 1 example "):
        direct = lm.fit(FMAP, PARAMS, x, Y, **options)
    assert fitted.info.converged and fitted.num_skipped == 1
    np.testing.assert_allclose(fitted.predict(X), direct.predict(X), atol=1e-4)
    with pytest.raises(
        ValueError, match=r"fit_cg: x must be finite, got .* in example 7 "
    ):
        lm.fit_cg(FMAP, PARAMS, x, Y, reg=1e-3, **OPTIONS)


def test_the_flag_is_false_where_the_steps_are_too_few():
    call = (FMAP, PARAMS, X, Y)
    fitted = lm.fit_cg(*call, reg=1e-6, max_steps=2, **OPTIONS)
    assert not fitted.info.converged and fitted.info.bound > 2e-4
    assert len(fitted.info.residuals) == 3 and np.isfinite(fitted.predict(X)).all()


def test_the_preconditioner_saves_passes():
    call = (FMAP, PARAMS, X, Y)
    steps = []
    for rank in (0, 20, 120):
        fitted = lm.fit_cg(*call, reg=1e-4, rank=rank, batch_size=64, key=KEY)
        assert fitted.info.converged
        steps.append(len(fitted.info.residuals) - 1)
    assert steps[2] < steps[1] < 0.7 * steps[0], steps


@pytest.mark.long
def test_more_features_than_a_gram_matrix_would_like():
    fmap = jns.feature_map(NET, num_features=3000)
    params = fmap.init(jax.random.key(1), (6,))
    fitted = lm.fit_cg(fmap, params, X, Y, key=KEY, reg=1e-3, batch_size=64, rank=50)
    phi = np.asarray(jns.transform(fmap, params, X), np.float64)
    phi, y = phi - phi.mean(axis=0), Y - Y.mean(axis=0)
    dual = np.linalg.solve(phi @ phi.T + 0.23 * np.eye(230), y)
    assert fitted.info.converged
    np.testing.assert_allclose(
        fitted.predict(X), phi @ phi.T @ dual + Y.mean(axis=0), atol=1e-4
    )


def test_batches_that_can_be_read_again():
    batches = [(X[:100], Y[:100]), (X[100:], Y[100:])]
    one = lm.fit_cg(FMAP, PARAMS, batches, reg=1e-3, **OPTIONS)
    two = lm.fit_cg(FMAP, PARAMS, X, Y, reg=1e-3, **OPTIONS)
    np.testing.assert_allclose(one.predict(X), two.predict(X), atol=1e-4)
    with pytest.raises(ValueError, match="must not be an iterator"):
        lm.fit_cg(FMAP, PARAMS, iter(batches), reg=1e-3, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(reg=0.0), "reg must be finite and > 0"),
        (dict(reg=[1.0, 2.0]), "reg must be a number"),
        (dict(reg=-1.0), "reg must be finite and > 0"),
        (dict(tolerance=0.0), "tolerance must be finite and > 0 and < 1"),
        (dict(max_steps=0), "max_steps must be an integer >= 1"),
        (dict(rank=-1), "rank must be an integer >= 0"),
        (dict(x=X[:0], y=Y[:0]), "must hold examples"),
        (dict(sample_weight=np.zeros(230)), "weight 0 for all examples"),
        (dict(key=0), "fit_cg: key must be a JAX PRNG key"),
        (dict(y=Y[:9]), "230 examples and 9 targets"),
    ],
)
def test_mistakes_are_told(change, match):
    call = dict(fmap=FMAP, params=PARAMS, x=X, y=Y, reg=1e-3, **OPTIONS)
    with pytest.raises((TypeError, ValueError), match=match):
        lm.fit_cg(**{**call, **change})
