"""Choosing `reg`: generalised and k-fold cross-validation."""

import dataclasses

import numpy as np
import pytest
from ridge_problems import data, difference, direct, stream

from jax_ntk_sketch import linear_model as lm


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_gcv_is_its_definition(intercept, flat):
    phi, y = data()
    y = y[:, 0] if flat else y
    model = lm.fit_ridge(phi, y, reg=[1e-3, 1.0], intercept=intercept)
    left = phi - phi.mean(axis=0) if intercept else phi
    for i, reg in enumerate((1e-3, 1.0)):
        one = model.select(i)
        mse = np.mean((np.asarray(one.predict(phi)) - y) ** 2)
        hat = left @ np.linalg.solve(left.T @ left + reg * 300 * np.eye(12), left.T)
        dof = np.trace(hat) + intercept
        assert one.info.mse == pytest.approx(mse, rel=1e-4)
        assert one.info.gcv == pytest.approx(mse / (1 - dof / 300) ** 2, rel=1e-3)


def test_gcv_chooses_a_reg_that_generalises():
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((160, 60)).astype(np.float32)
    y = phi @ rng.standard_normal(60) + 6 * rng.standard_normal(160)
    regs = np.geomspace(1e-4, 100, 13)
    model = lm.fit_ridge(phi[:80], y[:80], reg=regs)
    errors = np.mean((np.asarray(model.predict(phi[80:])) - y[80:]) ** 2, axis=1)
    chosen = np.flatnonzero(np.asarray(model.reg) == model.best().reg)[0]
    assert errors[chosen] < 1.1 * errors.min()
    assert errors[chosen] < 0.7 * errors[0]  # the choice matters
    with pytest.raises(ValueError, match="phi and y must be given together"):
        model.best(phi)
    # More parameters than examples and hardly a penalty: nothing is left to judge by.
    wide = lm.fit_ridge(phi[:20], y[:20], reg=[1e-5, 1.0], intercept=False)
    assert not np.isnan(wide.info.gcv).any() and wide.info.effective_dof[0] > 19.99


@pytest.mark.parametrize("scale", [1 / 300, 1e-12, 1000.0])
def test_the_choice_does_not_depend_on_the_scale_of_the_weights(scale):
    phi, y = data()
    weight = np.random.default_rng(0).integers(0, 3, 300).astype(np.float32)
    regs = np.geomspace(1e-6, 10, 8)
    for shape in (np.ones(300, np.float32), weight):
        plain, scaled = (
            lm.fit_ridge(phi, y, reg=regs, sample_weight=w * shape) for w in (1, scale)
        )
        np.testing.assert_allclose(scaled.weights, plain.weights, rtol=1e-4, atol=1e-6)
        for name in ("gcv", "mse", "effective_dof", "condition"):
            values = getattr(scaled.info, name), getattr(plain.info, name)
            np.testing.assert_allclose(*values, rtol=1e-4)
        assert scaled.best().reg == plain.best().reg
    # Equal weights are those of no weights, and rows of weight 0 do not count.
    np.testing.assert_allclose(
        lm.fit_ridge(phi[weight > 0], y[weight > 0], reg=regs).info.gcv,
        lm.fit_ridge(phi, y, reg=regs, sample_weight=scale * (weight > 0)).info.gcv,
        rtol=1e-4,
    )


def test_a_choice_without_a_finite_error_says_so():
    phi, y = data(n=300)
    model = lm.fit_ridge(phi, y, reg=[1e-6, 1e-5])
    none = model.info._replace(gcv=np.array([np.inf, np.nan]))
    model = dataclasses.replace(model, info=none)
    with pytest.warns(
        RuntimeWarning, match="gcv is not finite for any of the 2 values"
    ):
        assert model.best().reg == 1e-5
    with pytest.warns(RuntimeWarning, match="error is not finite for any"):
        assert model.best(phi, np.full_like(y, np.nan)).reg == 1e-5
    # One that is not finite is not chosen.
    weights = model.weights.at[0].set(np.nan)
    model = dataclasses.replace(model, weights=weights)
    assert model.best(phi, y).reg == 1e-5
    nan, ones = np.full(2, np.nan), np.ones(2)
    cv = lm.cross_validation.CrossValidation(np.array([1.0, 2.0]), ones, nan, ones)
    with pytest.warns(RuntimeWarning, match="mean error of the folds is not finite"):
        assert cv.best == 2.0
    assert cv._replace(mean=np.array([np.nan, 3.0])).best == 2.0


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("t", [None, 2])
def test_cross_validation_is_separate_fits(intercept, t):
    phi, y = data(n=90)
    y = y[:, 0] if t is None else y
    regs, states = [1e-2, 1.0], []
    for i in range(3):
        state = lm.ridge_init(12, t)
        for rows in np.array_split(np.arange(i, 90, 3), 2):
            state = lm.ridge_update(state, phi[rows], y[rows])
        states.append(state)
    cv = lm.ridge_cross_validate(states, regs, intercept=intercept)
    for i in range(3):
        held = np.arange(i, 90, 3)
        rest = np.setdiff1d(np.arange(90), held)
        model = lm.fit_ridge(phi[rest], y[rest], reg=regs, intercept=intercept)
        guess = np.asarray(model.predict(phi[held]))
        wanted = ((guess - y[held]) ** 2).reshape(2, -1).mean(axis=1)
        np.testing.assert_allclose(cv.errors[i], wanted, rtol=1e-4)
    np.testing.assert_allclose(cv.mean, cv.errors.mean(axis=0))
    error = cv.errors.std(axis=0, ddof=1) / 3**0.5
    np.testing.assert_allclose(cv.standard_error, error)
    assert cv.best == regs[int(np.argmin(cv.mean))]


def test_cross_validation_says_what_is_wrong():
    states = [lm.ridge_update(lm.ridge_init(2, None), np.eye(2), np.ones(2))]
    with pytest.raises(ValueError, match="at least two folds"):
        lm.ridge_cross_validate(states, 1.0)
    with pytest.raises(ValueError, match="must have seen examples"):
        lm.ridge_cross_validate([*states, lm.ridge_init(2, None)], 1.0)
    with pytest.raises(ValueError, match="same num_features"):
        lm.ridge_cross_validate([states[0]] * 2 + [lm.ridge_init(3, None)], 1.0)
    same = [states[0]] * 2
    assert lm.ridge_cross_validate(same, [0.5, 0.5]).best == 0.5


def test_values_with_which_the_system_is_singular_are_dropped():
    phi, y = data()
    twice = np.hstack([phi, phi])
    states = [stream(twice[i::2], y[i::2], [150]) for i in range(2)]
    with pytest.warns(RuntimeWarning, match="1 of 3 values of reg were dropped"):
        model = lm.ridge_solve(states[0], [1e-3, 0.0, 1e-1], singular="drop")
    assert model.reg.tolist() == [1e-3, 1e-1]
    w = direct(twice[::2], y[::2], 1e-1)[0]
    assert difference(model.weights[1], w) < 1e-5
    with pytest.warns(RuntimeWarning, match="dropped"):
        cv = lm.ridge_cross_validate(states, [1e-3, 0.0, 1e-1])
    kept = lm.ridge_cross_validate(states, [1e-3, 1e-1])
    assert np.isinf(cv.mean[1]) and np.allclose(cv.mean[::2], kept.mean)
    assert cv.best == kept.best
    with pytest.raises(
        np.linalg.LinAlgError,
        match=r"singular to float32 .* 1e-6 to 1 times .* norm of the features, \d",
    ):
        lm.ridge_solve(states[0], [0.0], singular="drop")
    with pytest.raises(ValueError, match="singular must be one of 'raise', 'drop'"):
        lm.ridge_solve(states[0], 1.0, singular="ignore")
