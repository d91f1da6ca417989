"""Stochastic gradients: where they must end, and that every option does something."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import draw

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch import stax

NET = stax.serial(stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1))
FMAP = jns.feature_map(NET, num_features=30)
PARAMS = draw(FMAP, (4,))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 4)).astype(np.float32)
Y = (np.sin(X[:, :2]) + 0.1 * RNG.standard_normal((200, 2))).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
KEY = jax.random.key(3)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_full_batches_end_at_ridge(flat, intercept):
    y = Y[:, 0] if flat else Y
    fitted = lm.fit_gradient(
        FMAP, PARAMS, X, y, optimizer=optax.sgd(0.1, momentum=0.9), reg=0.05,
        num_epochs=300, batch_size=256, intercept=intercept,
    )  # fmt: skip
    direct = lm.fit(FMAP, PARAMS, X, y, reg=0.05, intercept=intercept)
    np.testing.assert_allclose(fitted.predict(X), direct.predict(X), atol=2e-3)
    residual = np.asarray(direct.predict(X)) - y
    least = np.mean(np.sum(residual.reshape(200, -1) ** 2, axis=1))
    least += 0.05 * np.sum(np.asarray(direct.best.weights) ** 2)
    assert fitted.info.losses[-1] == pytest.approx(least, rel=1e-3)


def test_softmax_is_logistic_regression():
    fitted = lm.fit_gradient(
        FMAP, PARAMS, X, LABELS, loss="softmax_cross_entropy", reg=1e-2,
        optimizer=optax.sgd(0.5, momentum=0.9), num_epochs=400, batch_size=200,
    )  # fmt: skip
    phi = jnp.asarray(jns.transform(FMAP, PARAMS, X))

    def objective(w):
        scores = phi @ w[0] + w[1]
        each = -jax.nn.log_softmax(scores)[jnp.arange(200), LABELS]
        return each.mean() + 1e-2 * jnp.sum(w[0] ** 2)

    w = fitted.best.weights, fitted.best.intercept
    slope = jax.grad(objective)(w)
    assert max(float(jnp.abs(s).max()) for s in slope) < 2e-3
    assert fitted.info.losses[-1] == pytest.approx(float(objective(w)), rel=1e-2)
    assert np.mean(fitted.predict_class(X) == LABELS) > 0.75


def test_a_loss_of_ones_own_sees_one_hot_codes():
    def hinge(scores, codes):
        assert codes.shape == scores.shape == (50, 3)
        return jnp.sum(jnp.maximum(0, 1 - scores * (2 * codes - 1)), axis=-1)

    fitted = lm.fit_gradient(
        FMAP, PARAMS, X, LABELS, loss=hinge, optimizer=optax.sgd(0.1), num_epochs=40,
        batch_size=50, key=KEY,
    )  # fmt: skip
    assert (
        fitted.info.losses[0] > fitted.info.losses[-1] and fitted.info.losses[-1] < 1.5
    )
    assert np.mean(fitted.predict_class(X) == LABELS) > 0.65


def test_order_weights_and_batches():
    options = dict(optimizer=optax.sgd(0.05), num_epochs=2, batch_size=32)
    call = (FMAP, PARAMS)
    plain = lm.fit_gradient(*call, X, Y, **options)
    batches = [(X[:64], Y[:64]), (X[64:], Y[64:])]
    streamed = lm.fit_gradient(*call, batches, **options)
    np.testing.assert_allclose(plain.best.weights, streamed.best.weights, atol=1e-6)
    one = lm.fit_gradient(*call, X, Y, key=KEY, **options)
    two = lm.fit_gradient(*call, list(X), Y, key=KEY, **options)
    other = lm.fit_gradient(*call, X, Y, key=jax.random.key(4), **options)
    np.testing.assert_array_equal(one.best.weights, two.best.weights)
    assert np.abs(one.best.weights - plain.best.weights).max() > 1e-4
    assert np.abs(one.best.weights - other.best.weights).max() > 1e-4
    weight = np.repeat([1.0, 0.0], 100).astype(np.float32)
    half = lm.fit_gradient(
        *call, X, Y, sample_weight=weight, optimizer=optax.sgd(0.05), batch_size=200
    )
    first = lm.fit_gradient(
        *call, X[:100], Y[:100], optimizer=optax.sgd(0.05), batch_size=200
    )
    np.testing.assert_allclose(half.best.weights, first.best.weights, atol=1e-6)


def test_what_is_not_finite():
    x = X.copy()
    x[9, 1] = np.inf
    options = dict(optimizer=optax.sgd(0.05), batch_size=64)
    with pytest.raises(
        ValueError, match=r"fit_gradient: x must be finite, got .* in example 9 "
    ):
        lm.fit_gradient(FMAP, PARAMS, x, Y, **options)
    with pytest.warns(RuntimeWarning, match="fit_gradient: left out 1 example "):
        fitted = lm.fit_gradient(
            FMAP, PARAMS, x, Y, nonfinite="skip", num_epochs=3, **options
        )
    assert fitted.num_skipped == 1 and np.isfinite(fitted.info.losses).all()
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        lm.fit_gradient(
            FMAP, PARAMS, X, Y, optimizer=optax.sgd(1e4), num_epochs=30, batch_size=64
        )


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (dict(optimizer="adam"), TypeError, "optax.GradientTransformation"),
        (dict(loss="hinge"), ValueError, "loss must be"),
        (dict(loss="softmax_cross_entropy"), ValueError, "must hold class labels"),
        (dict(reg=[1.0]), TypeError, "reg must be a number"),
        (dict(reg=-1.0), ValueError, "reg must be finite and >= 0"),
        (dict(num_epochs=0), ValueError, "num_epochs must be an integer >= 1"),
        (
            dict(x=iter([(X, Y)]), y=None, num_epochs=2),
            ValueError,
            "must not be an iterator",
        ),
        (dict(x=[(X, Y)], y=None, key=KEY), ValueError, "key must be None for batches"),
        (dict(x=X[:0], y=Y[:0]), ValueError, "must hold examples"),
    ],
)
def test_mistakes_are_told(change, error, match):
    call = dict(fmap=FMAP, params=PARAMS, x=X, y=Y, optimizer=optax.sgd(0.1))
    with pytest.raises(error, match=match):
        lm.fit_gradient(**{**call, **change})
