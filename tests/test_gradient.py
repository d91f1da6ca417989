"""Stochastic gradients: where they must end, and that every option does something."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch import stax

NET = stax.serial(stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1))
FMAP = jns.feature_map(NET, num_features=30)
PARAMS = FMAP.init(jax.random.key(0), (4,))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 4)).astype(np.float32)
Y = (np.sin(X[:, :2]) + 0.1 * RNG.standard_normal((200, 2))).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
KEY = jax.random.key(3)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_full_batches_end_at_ridge(flat, intercept):
    y = Y[:, 0] if flat else Y
    fitted, losses = lm.fit_gradient(
        FMAP, PARAMS, X, y, optimizer=optax.sgd(0.1, momentum=0.9), reg=0.05,
        num_epochs=300, batch_size=256, intercept=intercept,
    )  # fmt: skip
    direct = lm.fit(FMAP, PARAMS, X, y, reg=0.05, intercept=intercept)
    np.testing.assert_allclose(fitted.predict(X), direct.predict(X), atol=2e-3)
    residual = np.asarray(direct.predict(X)) - y
    least = np.mean(np.sum(residual.reshape(200, -1) ** 2, axis=1))
    least += 0.05 * np.sum(np.asarray(direct.model.weights) ** 2)
    assert losses[-1] == pytest.approx(least, rel=1e-3)


def test_softmax_is_logistic_regression():
    fitted, losses = lm.fit_gradient(
        FMAP, PARAMS, X, LABELS, loss="softmax_cross_entropy", reg=1e-2,
        optimizer=optax.sgd(0.5, momentum=0.9), num_epochs=400, batch_size=200,
    )  # fmt: skip
    phi = jnp.asarray(jns.transform(FMAP, PARAMS, X))

    def objective(w):
        scores = phi @ w[0] + w[1]
        each = -jax.nn.log_softmax(scores)[jnp.arange(200), LABELS]
        return each.mean() + 1e-2 * jnp.sum(w[0] ** 2)

    w = fitted.model.weights, fitted.model.intercept
    slope = jax.grad(objective)(w)
    assert max(float(jnp.abs(s).max()) for s in slope) < 2e-3
    assert losses[-1] == pytest.approx(float(objective(w)), rel=1e-2)
    assert np.mean(fitted.predict_class(X) == LABELS) > 0.75


def test_a_loss_of_ones_own_sees_one_hot_codes():
    def hinge(scores, codes):
        assert codes.shape == scores.shape == (50, 3)
        return jnp.sum(jnp.maximum(0, 1 - scores * (2 * codes - 1)), axis=-1)

    fitted, losses = lm.fit_gradient(
        FMAP, PARAMS, X, LABELS, loss=hinge, optimizer=optax.sgd(0.1), num_epochs=40,
        batch_size=50, key=KEY,
    )  # fmt: skip
    assert losses[0] > losses[-1] and losses[-1] < 1.5
    assert np.mean(fitted.predict_class(X) == LABELS) > 0.65


def test_order_weights_and_batches():
    options = dict(optimizer=optax.sgd(0.05), num_epochs=2, batch_size=32)
    call = (FMAP, PARAMS)
    plain, _ = lm.fit_gradient(*call, X, Y, **options)
    batches = [(X[:64], Y[:64]), (X[64:], Y[64:])]
    streamed, _ = lm.fit_gradient(*call, batches, **options)
    np.testing.assert_allclose(plain.model.weights, streamed.model.weights, atol=1e-6)
    one, _ = lm.fit_gradient(*call, X, Y, key=KEY, **options)
    two, _ = lm.fit_gradient(*call, list(X), Y, key=KEY, **options)
    other, _ = lm.fit_gradient(*call, X, Y, key=jax.random.key(4), **options)
    np.testing.assert_array_equal(one.model.weights, two.model.weights)
    assert np.abs(one.model.weights - plain.model.weights).max() > 1e-4
    assert np.abs(one.model.weights - other.model.weights).max() > 1e-4
    weight = np.repeat([1.0, 0.0], 100).astype(np.float32)
    half, _ = lm.fit_gradient(
        *call, X, Y, sample_weight=weight, optimizer=optax.sgd(0.05), batch_size=200
    )
    first, _ = lm.fit_gradient(
        *call, X[:100], Y[:100], optimizer=optax.sgd(0.05), batch_size=200
    )
    np.testing.assert_allclose(half.model.weights, first.model.weights, atol=1e-6)


def test_what_is_not_finite():
    x = X.copy()
    x[9, 1] = np.inf
    options = dict(optimizer=optax.sgd(0.05), batch_size=64)
    with pytest.raises(ValueError, match=r"fit_gradient: examples 0 to 63: 1 .*\(9, "):
        lm.fit_gradient(FMAP, PARAMS, x, Y, **options)
    with pytest.warns(RuntimeWarning, match="fit_gradient: 1 examples"):
        fitted, losses = lm.fit_gradient(
            FMAP, PARAMS, x, Y, nonfinite="skip", num_epochs=3, **options
        )
    assert fitted.skipped == 1 and np.isfinite(losses).all()
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        lm.fit_gradient(
            FMAP, PARAMS, X, Y, optimizer=optax.sgd(1e4), num_epochs=30, batch_size=64
        )


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (dict(optimizer="adam"), TypeError, "optax.GradientTransformation"),
        (dict(loss="hinge"), ValueError, "loss must be"),
        (dict(loss="softmax_cross_entropy"), ValueError, "needs class labels"),
        (dict(reg=[1.0]), ValueError, "reg must be one number"),
        (dict(reg=-1.0), ValueError, "reg must be finite and >= 0"),
        (dict(num_epochs=0), ValueError, "num_epochs must be at least 1"),
        (dict(data=iter([(X, Y)]), y=None, num_epochs=2), ValueError, "used up"),
        (dict(data=[(X, Y)], y=None, key=KEY), ValueError, "key is for arrays"),
        (dict(data=X[:0], y=Y[:0]), ValueError, "no examples"),
    ],
)
def test_mistakes_are_told(change, error, match):
    call = dict(fmap=FMAP, params=PARAMS, data=X, y=Y, optimizer=optax.sgd(0.1))
    with pytest.raises(error, match=match):
        lm.fit_gradient(**{**call, **change})
