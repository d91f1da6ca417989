"""Conjugate gradients: the direct solution, and an honest flag."""

import jax
import numpy as np
import pytest

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch import stax

NET = stax.serial(stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1))
FMAP = jns.feature_map(NET, num_features=120)
PARAMS = FMAP.init(jax.random.key(0), (6,))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((230, 6)).astype(np.float32)
Y = (np.sin(X[:, :2]) + 0.1 * RNG.standard_normal((230, 2))).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
OPTIONS = dict(batch_size=64, rank=20)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("targets", ["two", "flat", "classes"])
def test_predictions_are_those_of_the_direct_solution(targets, intercept):
    y = {"two": Y, "flat": Y[:, 0], "classes": LABELS}[targets]
    call = (FMAP, PARAMS, X, y)
    fitted, history = lm.fit_cg(*call, reg=1e-4, intercept=intercept, **OPTIONS)
    direct = lm.fit(*call, reg=1e-4, intercept=intercept)
    assert history.converged and history.bound <= 2e-4
    assert history.passes == len(history.residuals) + 1
    np.testing.assert_allclose(fitted.predict(X), direct.predict(X), atol=1e-4)
    assert fitted.model.info.mse == pytest.approx(direct.model.info.mse, rel=1e-3)
    if targets == "classes":
        assert (fitted.predict_class(X) == direct.predict_class(X)).all()


def test_weights_of_examples_and_what_is_not_finite():
    weight = RNG.integers(0, 3, 230).astype(np.float32)
    x = X.copy()
    x[7, 2] = np.nan
    options = dict(reg=1e-3, sample_weight=weight, nonfinite="skip")
    with pytest.warns(RuntimeWarning, match="fit_cg: 1 examples"):
        fitted, history = lm.fit_cg(FMAP, PARAMS, x, Y, **options, **OPTIONS)
    with pytest.warns(RuntimeWarning, match="fit: 1 examples"):
        direct = lm.fit(FMAP, PARAMS, x, Y, **options)
    assert history.converged and fitted.skipped == 1
    np.testing.assert_allclose(fitted.predict(X), direct.predict(X), atol=1e-4)
    with pytest.raises(
        ValueError, match=r"fit_cg: examples 0 to 63: 1 .*\(7, from 0\)"
    ):
        lm.fit_cg(FMAP, PARAMS, x, Y, reg=1e-3, **OPTIONS)


def test_the_flag_is_false_where_the_steps_are_too_few():
    call = (FMAP, PARAMS, X, Y)
    fitted, history = lm.fit_cg(*call, reg=1e-6, max_steps=2, **OPTIONS)
    assert not history.converged and history.bound > 2e-4
    assert len(history.residuals) == 3 and np.isfinite(fitted.predict(X)).all()


def test_the_preconditioner_saves_passes():
    call = (FMAP, PARAMS, X, Y)
    steps = []
    for rank in (0, 20, 120):
        _, history = lm.fit_cg(*call, reg=1e-4, rank=rank, batch_size=64)
        assert history.converged
        steps.append(len(history.residuals) - 1)
    assert steps[2] < steps[1] < 0.7 * steps[0], steps


def test_more_features_than_a_gram_matrix_would_like():
    fmap = jns.feature_map(NET, num_features=3000)
    params = fmap.init(jax.random.key(1), (6,))
    fitted, history = lm.fit_cg(fmap, params, X, Y, reg=1e-3, batch_size=64, rank=50)
    phi = np.asarray(jns.transform(fmap, params, X), np.float64)
    phi, y = phi - phi.mean(axis=0), Y - Y.mean(axis=0)
    dual = np.linalg.solve(phi @ phi.T + 0.23 * np.eye(230), y)
    assert history.converged
    np.testing.assert_allclose(
        fitted.predict(X), phi @ phi.T @ dual + Y.mean(axis=0), atol=1e-4
    )


def test_batches_that_can_be_read_again():
    batches = [(X[:100], Y[:100]), (X[100:], Y[100:])]
    one, _ = lm.fit_cg(FMAP, PARAMS, batches, reg=1e-3, **OPTIONS)
    two, _ = lm.fit_cg(FMAP, PARAMS, X, Y, reg=1e-3, **OPTIONS)
    np.testing.assert_allclose(one.predict(X), two.predict(X), atol=1e-4)
    with pytest.raises(ValueError, match="used up after one pass"):
        lm.fit_cg(FMAP, PARAMS, iter(batches), reg=1e-3, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(reg=0.0), "reg must be one number > 0"),
        (dict(reg=[1.0, 2.0]), "reg must be one number > 0"),
        (dict(reg=-1.0), "reg must be finite and >= 0"),
        (dict(tolerance=0.0), r"tolerance must be in \(0, 1\)"),
        (dict(max_steps=0), "max_steps must be at least 1"),
        (dict(rank=-1), "rank must be an integer >= 0"),
        (dict(data=X[:0], y=Y[:0]), "no examples"),
        (dict(sample_weight=np.zeros(230)), "all examples have weight 0"),
        (dict(y=Y[:9]), "230 examples and y 9"),
    ],
)
def test_mistakes_are_told(change, match):
    call = dict(fmap=FMAP, params=PARAMS, data=X, y=Y, reg=1e-3, **OPTIONS)
    with pytest.raises(ValueError, match=match):
        lm.fit_cg(**{**call, **change})
