"""Ridge regression: against direct float64 solutions, scikit-learn, and itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import x64
from ridge_problems import data, difference, direct, stream, sums, with_condition

from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch.linear_model._double_float import add_gram

# --- the sums -------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 256, 257, 1000])
def test_float32_gram_has_more_digits_than_float32(n):
    rows = data(n=n, m=40)[0] * np.geomspace(1e-6, 1e6, 40, dtype=np.float32)
    zeros = jnp.zeros((40, 40))
    total, carry = jax.jit(add_gram)(zeros, zeros, rows)
    got = np.asarray(total, np.float64) + np.asarray(carry, np.float64)
    exact = rows.astype(np.float64).T @ rows.astype(np.float64)
    norms = np.sqrt(np.diag(exact))
    scale = np.maximum(np.outer(norms, norms), 1e-30)
    assert np.abs((got - exact) / scale).max() < 2e-9  # float32 alone: 1e-7


def test_gram_of_integers_is_exact():
    rng = np.random.default_rng(0)
    rows = rng.integers(-1000, 1000, (3000, 20)).astype(np.float32)
    zeros = jnp.zeros((20, 20))
    total, carry = add_gram(zeros, zeros, jnp.asarray(rows))
    exact = rows.astype(np.int64).T @ rows.astype(np.int64)
    assert (np.asarray(total, np.int64) + np.asarray(carry, np.int64) == exact).all()


def test_count_stays_exact_where_float32_stops_counting():
    state = lm.ridge_init(1, None)
    big = dataclasses.replace(
        state, total=state.total + 2.0**24, rows=state.rows + 2.0**23
    )
    for _ in range(3):
        big = lm.ridge_update(big, np.ones((1, 1)), np.ones(1))
    assert (sums(big) == 2**24 + 3).all()
    assert np.asarray(big.rows, float).sum() == 2**24 + 3


@pytest.mark.parametrize("dtype, tol", [(np.float32, 1e-9), (np.float64, 1e-14)])
def test_streaming_is_one_shot(dtype, tol):
    with x64(dtype == np.float64):
        phi, y = data(n=700, dtype=dtype)
        once = sums(stream(phi, y, [700]))
        for sizes in ([350, 350], [1, 350, 349]):
            assert difference(sums(stream(phi, y, sizes)), once) < tol
        table = np.hstack([phi, y, np.ones((700, 1))]).astype(np.float64)
        assert difference(once, table.T @ table) < tol


def test_merge_is_commutative_and_associative():
    phi, y = data(n=900)
    a, b, c = (stream(phi[i::3], y[i::3], [300]) for i in range(3))
    left = lm.ridge_merge(lm.ridge_merge(a, b), c)
    right = lm.ridge_merge(a, lm.ridge_merge(b, c))
    assert difference(sums(left), sums(right)) < 1e-13
    assert difference(sums(left), sums(stream(phi, y, [900]))) < 1e-9
    assert (sums(lm.ridge_merge(a, b)) == sums(lm.ridge_merge(b, a))).all()
    empty = lm.ridge_init(12, 2)
    assert (sums(lm.ridge_merge(a, empty)) == sums(a)).all()


def test_update_is_pure_and_runs_under_jit_and_vmap():
    phi, y = data(n=600)
    state = lm.ridge_init(12, 2)
    plain = lm.ridge_update(state, phi, y)
    assert not state.total.any()
    jitted = jax.jit(lm.ridge_update)(state, phi, y)
    assert (sums(jitted) == sums(plain)).all()
    empty = jax.vmap(lambda _: lm.ridge_init(12, 2))(jnp.arange(3))
    many = jax.vmap(lm.ridge_update)(
        empty, phi.reshape(3, 200, 12), y.reshape(3, 200, 2)
    )
    assert many.count.tolist() == [200, 200, 200] and many.num_features == 12
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], many)
        rows = slice(200 * i, 200 * (i + 1))
        assert difference(sums(one), sums(stream(phi[rows], y[rows], [200]))) < 1e-9
    with pytest.raises(ValueError, match="must be one state"):
        lm.ridge_solve(many, 1e-3)


def test_update_does_not_retrace():
    calls = []

    @jax.jit
    def update(state, phi, y):
        calls.append(1)
        return lm.ridge_update(state, phi, y)

    phi, y = data()
    state = lm.ridge_init(12, 2)
    for _ in range(3):
        state = update(state, phi, y)
    assert len(calls) == 1


def test_eval_shape_of_a_large_state():
    state = jax.eval_shape(lambda: lm.ridge_init(10**6, 10))
    phi = jax.ShapeDtypeStruct((1000, 10**6), jnp.float32)
    out = jax.eval_shape(
        lm.ridge_update, state, phi, jax.ShapeDtypeStruct((1000, 10), jnp.float32)
    )
    assert out.total.shape == (10**6 + 11, 10**6 + 11)


# --- the solution ---------------------------------------------------------------


@pytest.mark.parametrize("dtype, tol", [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("intercept", [True, False])
def test_solution_is_the_direct_one(dtype, tol, intercept):
    with x64(dtype == np.float64):
        phi, y = data(dtype=dtype)
        model = lm.ridge_solve(stream(phi, y, [300]), 1e-3, intercept=intercept)
        w, b = direct(phi, y, 1e-3, intercept)
        assert model.weights.dtype == model.intercept.dtype == dtype
        assert difference(model.weights, w) < tol
        assert np.abs(np.asarray(model.intercept) - b).max() < 10 * tol
        assert difference(model.predict(phi), phi.astype(np.float64) @ w + b) < tol
        assert model.info.residual < tol


@pytest.mark.parametrize("intercept", [True, False])
def test_against_scikit_learn(intercept):
    linear = pytest.importorskip("sklearn.linear_model")
    phi, y = data()
    weight = np.random.default_rng(1).random(300).astype(np.float32)
    theirs = linear.Ridge(alpha=0.01 * 300, fit_intercept=intercept).fit(phi, y)
    ours = lm.fit_ridge(phi, y, reg=0.01, intercept=intercept)
    assert difference(ours.weights, theirs.coef_.T) < 1e-5
    assert np.abs(ours.intercept - theirs.intercept_).max() < 1e-5
    theirs = linear.Ridge(alpha=0.01 * weight.sum(), fit_intercept=intercept)
    theirs.fit(phi, y, sample_weight=weight)
    state = stream(phi, y, [200, 100], sample_weight=weight)
    ours = lm.ridge_solve(state, 0.01, intercept=intercept)
    assert difference(ours.weights, theirs.coef_.T) < 1e-5
    assert np.abs(ours.intercept - theirs.intercept_).max() < 1e-5


def test_without_intercept_it_is_kernel_ridge():
    phi, y = data()
    new = data(seed=1)[0].astype(np.float64)
    K = phi.astype(np.float64) @ phi.T.astype(np.float64)
    dual = np.linalg.solve(K + 0.01 * 300 * np.eye(300), y)
    model = lm.fit_ridge(phi, y, reg=0.01, intercept=False)
    assert difference(model.predict(new), new @ phi.T.astype(np.float64) @ dual) < 1e-6


def test_weights_two_and_zero_are_copies_and_omissions():
    phi, y = data(n=30)
    weight = np.array([2.0, 0.0, 1.0] * 10, np.float32)
    weighted = lm.ridge_solve(stream(phi, y, [30], sample_weight=weight), 1e-2)
    index = np.repeat(np.arange(30), weight.astype(int))
    copied = lm.ridge_solve(stream(phi[index], y[index], [30]), 1e-2)
    assert difference(weighted.weights, copied.weights) < 1e-6
    assert weighted.info.count == pytest.approx(30, rel=1e-6)


def test_many_regs_are_separate_solves():
    phi, y = data()
    state = stream(phi, y, [300])
    regs = [1e-6, 1e-3, 0.1, 10.0]
    path = lm.ridge_solve(state, regs)
    assert path.weights.shape == (4, 12, 2) and path.intercept.shape == (4, 2)
    assert path.predict(phi).shape == (4, 300, 2)
    for i, reg in enumerate(regs):
        one, picked = lm.ridge_solve(state, reg), path.select(i)
        assert difference(picked.weights, direct(phi, y, reg)[0]) < 1e-6
        assert (picked.weights == one.weights).all() and picked.reg == one.reg == reg
        for ours, theirs in zip(picked.info, one.info, strict=True):
            assert np.array_equal(ours, theirs)
        assert (picked.predict(phi) == one.predict(phi)).all()
    with pytest.raises(ValueError, match=r"index must be in \[-4, 4\), got 4"):
        path.select(4)
    with pytest.raises(ValueError, match="single reg"):
        one.select(0)


def test_diagnostics_are_what_they_say():
    phi, y = data()
    info = lm.ridge_solve(stream(phi, y, [300]), [1e-3, 1.0]).info
    centred = phi.astype(np.float64) - phi.mean(0, dtype=np.float64)
    gram = centred.T @ centred
    for i, reg in enumerate([1e-3, 1.0]):
        system = gram + 300 * reg * np.eye(12)
        dof = np.trace(gram @ np.linalg.inv(system))
        assert info.condition[i] == pytest.approx(np.linalg.cond(system), rel=1e-6)
        assert info.effective_dof[i] == pytest.approx(dof, rel=1e-6)
        assert info.residual[i] < 1e-6
    assert info.count == 300


@pytest.mark.long
@pytest.mark.parametrize("condition", [1e4, 1e6, 1e8])
def test_float32_stream_against_float64_direct_when_ill_conditioned(condition):
    phi = with_condition(2000, 100, condition)
    y = (phi @ np.ones((100, 1)) + np.random.default_rng(1).random((2000, 1))).astype(
        np.float32
    )
    top = np.linalg.norm(phi, 2) ** 2 / 2000
    model = lm.ridge_solve(stream(phi, y, [300] * 6 + [200]), 1e-6, intercept=False)
    assert top == pytest.approx(1, rel=1e-3)
    error = difference(model.weights, direct(phi, y, 1e-6, intercept=False)[0])
    assert error < 1e-4
    # The estimate is there to warn, so it must not promise too much.
    assert error < 2 * model.info.rounding + 1e-6


def test_float32_products_alone_would_miss_that_target():
    phi = with_condition(2000, 100, 1e6)
    y = (phi @ np.ones((100, 1)) + np.random.default_rng(1).random((2000, 1))).astype(
        np.float32
    )
    system = (phi.T @ phi).astype(np.float64) + 2e-3 * np.eye(100)
    w = np.linalg.solve(system, (phi.T @ y).astype(np.float64))
    assert difference(w, direct(phi, y, 1e-6, intercept=False)[0]) > 1e-3


def test_intercept_survives_an_offset():
    phi, y = data(n=2000)
    phi += 100
    y += 1000
    model = lm.ridge_solve(stream(phi, y, [500] * 4), 1e-4)
    assert difference(model.weights, direct(phi, y, 1e-4)[0]) < 1e-5


def test_one_feature_and_one_example():
    model = lm.fit_ridge(np.array([[2.0], [4.0]]), np.array([1.0, 5.0]), reg=1.0)
    # Centred: phi = -1, 1 and y = -2, 2, so w = 4 / (2 + 2).
    assert model.weights.tolist() == [1.0] and float(model.intercept) == 0.0
    model = lm.fit_ridge(np.ones((1, 3)), np.ones(1), reg=1.0, intercept=False)
    assert np.allclose(model.weights, 0.25)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_singular_systems_raise(dtype):
    with x64(dtype == np.float64):
        phi, y = data(dtype=dtype)
        twice = np.hstack([phi, phi])
        few = data(n=5, dtype=dtype)
        zero = np.hstack([phi, np.zeros((300, 1), dtype)])
        constant = np.hstack([phi, np.ones((300, 1), dtype)])
        for a, b in ((twice, y), few, (zero, y), (constant, y), (0 * phi, y)):
            state = stream(a, b, [len(a)])
            match = rf"singular to {np.dtype(dtype)} precision.*Use a larger reg"
            with pytest.raises(np.linalg.LinAlgError, match=match):
                lm.ridge_solve(state, 0.0)
            w = direct(a, b, 1e-3)[0]
            got = lm.ridge_solve(state, 1e-3).weights
            assert np.linalg.norm(got - w) < 1e-5 * max(1, np.linalg.norm(w))
        # The constant column is no trouble without an intercept.
        state = stream(constant, y, [300])
        w = direct(constant, y, 0.0, intercept=False)[0]
        got = lm.ridge_solve(state, 0.0, intercept=False).weights
        assert difference(got, w) < 1e-5


def test_nearly_singular_is_told_from_ill_conditioned():
    def solve(condition):
        phi = with_condition(2000, 50, condition)
        y = np.ones((2000, 1), np.float32)
        return lm.ridge_solve(stream(phi, y, [2000]), 0.0, intercept=False)

    assert solve(1e8).info.rounding < 0.1
    with pytest.raises(np.linalg.LinAlgError, match="eigenvalues from"):
        solve(1e10)


def test_the_reg_that_the_error_advises_is_enough():
    phi, y = data()
    state = stream(np.hstack([phi, phi]), y, [300])
    with pytest.raises(np.linalg.LinAlgError) as error:
        lm.ridge_solve(state, [0.0, 1e-2])
    advice = float(str(error.value).split("at least ")[1].split()[0])
    assert lm.ridge_solve(state, advice).info.rounding < 2e-3


# --- mistakes -------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named_before_fitting(bad, monkeypatch):
    def never(*_):
        raise AssertionError("fitted")

    monkeypatch.setattr("jax_ntk_sketch.linear_model._fit_ridge._update", never)
    phi, y = data()
    worse = phi.copy()
    worse[[17, 205], 3] = bad
    with pytest.raises(ValueError, match=r"phi must be finite, .* in example 17 "):
        lm.fit_ridge(worse, y, reg=1e-3, batch_size=100)
    worse[50:60] = bad
    with pytest.raises(
        ValueError, match=r"in examples 17, 50, 51, 52, 53 and 7 more .*from 0"
    ):
        lm.fit_ridge(worse, y, reg=1e-3)
    worse_y = y.copy()
    worse_y[299] = bad
    with pytest.raises(ValueError, match=r"y must be finite, .* in example 299 "):
        lm.fit_ridge(phi, worse_y, reg=1e-3)


def test_rows_of_batches_are_counted_over_all_of_them():
    phi, y = data()
    phi[205, 3] = np.nan
    batches = [(phi[i : i + 100], y[i : i + 100]) for i in (0, 100, 200)]
    with pytest.raises(ValueError, match=r"phi must be finite, .* in example 205 "):
        lm.fit_ridge(batches, reg=1e-3)


def test_solve_refuses_sums_that_are_not_finite():
    phi, y = data()
    phi[0, 0] = np.nan
    with pytest.raises(ValueError, match="sums must be finite"):
        lm.ridge_solve(stream(phi, y, [300]), 1e-3)


PHI, Y = data(n=20)


@pytest.mark.parametrize(
    "call, error, match",
    [
        (
            lambda: lm.ridge_init(0, 1),
            ValueError,
            "num_features must be an integer >= 1",
        ),
        (lambda: lm.ridge_init(2.5, 1), TypeError, "num_features must be an integer"),
        (lambda: lm.ridge_init(2, True), ValueError, "num_targets must be an integer"),
        (lambda: lm.ridge_init(2, 1, dtype=int), TypeError, "float32 or float64"),
        (
            lambda: lm.ridge_update(lm.ridge_init(11, 2), PHI, Y),
            ValueError,
            r"phi must have shape \(n, 11\), got \(20, 12\)",
        ),
        (
            lambda: lm.ridge_update(lm.ridge_init(12, 2), PHI, Y[1:]),
            ValueError,
            r"y must have shape \(20, 2\), got \(19, 2\)",
        ),
        (
            lambda: lm.ridge_update(lm.ridge_init(12, None), PHI, Y),
            ValueError,
            r"y must have shape \(20,\)",
        ),
        (
            lambda: lm.ridge_update(
                lm.ridge_init(12, 2), PHI, Y, sample_weight=np.ones(3)
            ),
            ValueError,
            r"sample_weight must have shape \(20,\)",
        ),
        (
            lambda: lm.ridge_update(lm.ridge_init(12, 2), PHI * 1j, Y),
            TypeError,
            "phi must have dtype float32 or a coarser one.*got complex64",
        ),
        (
            lambda: lm.ridge_update(lm.ridge_init(12, 2), PHI, Y * 1j),
            TypeError,
            "y must be real",
        ),
        (
            lambda: lm.ridge_merge(lm.ridge_init(2, 1), lm.ridge_init(3, 1)),
            ValueError,
            "the same num_features, got 2 and 3",
        ),
        (
            lambda: lm.ridge_solve(lm.ridge_init(2, 1), 1),
            ValueError,
            "must have seen examples",
        ),
        (lambda: lm.fit_ridge(PHI, Y, reg=-1), ValueError, "reg must be finite and"),
        (lambda: lm.fit_ridge(PHI, Y, reg=[1, np.nan]), ValueError, "reg must be fin"),
        (lambda: lm.fit_ridge(PHI, Y, reg=[]), ValueError, "reg must be a number or"),
        (lambda: lm.fit_ridge(PHI, reg=1), ValueError, "y must be given with phi"),
        (lambda: lm.fit_ridge(PHI, Y[1:], reg=1), ValueError, "20 examples and 19 t"),
        (lambda: lm.fit_ridge(PHI[0], Y, reg=1), ValueError, "phi and y must have"),
        (lambda: lm.fit_ridge(PHI[:0], Y[:0], reg=1), ValueError, "got no rows"),
        (lambda: lm.fit_ridge([], reg=1), ValueError, "got no rows"),
        (lambda: lm.fit_ridge([PHI], reg=1), TypeError, r"batch 0 must be \(phi, y\)"),
        (
            lambda: lm.fit_ridge([(PHI, Y), (PHI[:, 1:], Y)], reg=1),
            ValueError,
            r"examples 20 to 39: phi must have shape \(12,\) .* got shape \(11,\)",
        ),
        (
            lambda: lm.fit_ridge([(PHI, Y), (PHI, Y[:3])], reg=1),
            ValueError,
            "phi of batch 1 and y must have one length, got 20 examples and 3",
        ),
        (
            lambda: lm.fit_ridge(PHI, np.arange(20), reg=1, num_classes=18),
            ValueError,
            "y must hold labels from 0 to 17, got 18",
        ),
        (
            lambda: lm.fit_ridge(PHI, Y, reg=1, num_classes=2),
            TypeError,
            "y must be labels of shape",
        ),
        (
            lambda: lm.fit_ridge(PHI, np.array(["a", None] * 10), reg=1),
            TypeError,
            "class labels are integers or text, without missing ones",
        ),
        (
            lambda: lm.fit_ridge(PHI, Y, reg=1, batch_size=0),
            ValueError,
            "batch_size must be an integer >= 1",
        ),
        (
            lambda: lm.fit_ridge(PHI, Y, reg=1, num_classes=1.5),
            TypeError,
            "num_classes must be an integer",
        ),
        (
            lambda: lm.fit_ridge(PHI, Y, reg=1).predict(PHI[:, 1:]),
            ValueError,
            r"phi must have shape \(n, 12\)",
        ),
    ],
)
def test_mistakes_are_told(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_double_precision_features_need_a_double_precision_state():
    with x64():
        phi, y = data(dtype=np.float64)
        with pytest.raises(TypeError, match=r"ridge_init\(\.\.\., dtype=float64\)"):
            lm.ridge_update(lm.ridge_init(12, 2, dtype=np.float32), phi, y)
        assert lm.fit_ridge(phi, y, reg=1e-3).weights.dtype == np.float64
        single = lm.fit_ridge(phi.astype(np.float32), y, reg=1e-3)
        assert single.weights.dtype == np.float32


def test_traced_solutions_are_the_concrete_ones():
    """Under jit, and with gradients by features and penalty."""
    rng = np.random.default_rng(0)
    phi, y = rng.normal(size=(20, 5)), rng.normal(size=(20, 2))

    def solve(phi, reg, intercept=True):
        state = lm.ridge_init(num_features=5, num_targets=2, dtype=phi.dtype)
        state = lm.ridge_update(state, phi, y.astype(phi.dtype))
        return lm.ridge_solve(state, reg, intercept=intercept)

    with x64():
        for intercept in (True, False):
            for reg in (1e-2, jnp.array([1e-2, 1e-1])):
                wanted = solve(jnp.asarray(phi), reg, intercept)
                model = jax.jit(solve, static_argnums=2)(phi, reg, intercept)
                for name in ("weights", "intercept", "reg"):
                    ours, other = getattr(model, name), getattr(wanted, name)
                    np.testing.assert_allclose(ours, other, rtol=1e-9, atol=1e-12)

        def loss(phi, reg):
            return jnp.sum(solve(phi, reg).weights ** 2)

        slopes = jax.grad(loss, argnums=(0, 1))(jnp.asarray(phi), 1e-2)
        moved = phi.copy()
        moved[3, 2] += 1e-6
        difference = loss(jnp.asarray(moved), 1e-2) - loss(jnp.asarray(phi), 1e-2)
        np.testing.assert_allclose(slopes[0][3, 2], difference / 1e-6, rtol=1e-4)
        difference = loss(jnp.asarray(phi), 1e-2 + 1e-7) - loss(jnp.asarray(phi), 1e-2)
        np.testing.assert_allclose(slopes[1], difference / 1e-7, rtol=1e-4)
