"""`jns.fit`: predictions of the exact machine, honest errors, all kinds of input."""

import warnings

import jax
import numpy as np
import pytest
import scipy.sparse
from helpers import kernels_in_float64

import jax_ntk_sketch as jns
from jax_ntk_sketch import data, recipes, stax
from jax_ntk_sketch.linear_model import ridge_init, ridge_solve, ridge_update
from jax_ntk_sketch.linear_model.ridge import sums_on_host
from jax_ntk_sketch.model import ErrorEstimate, _fit, networks, size
from jax_ntk_sketch.model.error_estimate import temperature
from jax_ntk_sketch.model.leave_one_out import LeftOut, Spread, least
from jax_ntk_sketch.model.machine import settle
from jax_ntk_sketch.model.training import Training
from jax_ntk_sketch.selection.weighed import Weighed, WeighedMap

KEY = jax.random.key(0)
DENSE = stax.Dense(1, 1.4, 0.3)
NET = stax.serial(DENSE, stax.Relu(), DENSE)


def rows(n=90, d=3, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)).astype(np.float32)
    y = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + noise * rng.standard_normal(n)
    return x, y


@pytest.fixture(scope="module")
def fitted():
    x, y = rows()
    return x, y, jns.fit(KEY, NET, x, 100 + 7 * y)


@pytest.mark.parametrize("weighted", [False, True])
def test_left_out_residuals_are_those_of_fits_without_each_row(weighted):
    rng = np.random.default_rng(0)
    n, m, reg = 30, 5, 0.01
    phi, y = rng.standard_normal((n, m)), rng.standard_normal((n, 2))
    weight = rng.uniform(0.2, 2, n) if weighted else np.ones(n)

    def state(kept):
        empty = ridge_init(m, 2)
        given = weight[kept].astype(np.float32)
        phi32, y32 = phi[kept].astype(np.float32), y[kept].astype(np.float32)
        return ridge_update(empty, phi32, y32, sample_weight=given)

    every = np.arange(n)
    sums = sums_on_host("test", state(every))
    penalty = reg * weight.sum()
    spread = Spread.of(sums, m, penalty)
    model = ridge_solve(state(every), reg)
    guess = phi @ np.asarray(model.weights) + np.asarray(model.intercept)
    found = LeftOut.of(guess, y, spread(phi), weight)
    for i in range(n):
        rest = np.delete(every, i)
        other = ridge_solve(state(rest), penalty / weight[rest].sum())
        wanted = phi[i] @ np.asarray(other.weights) + np.asarray(other.intercept)
        np.testing.assert_allclose(found.predictions[i], wanted, atol=1e-4)


def test_the_least_value_is_found_from_any_start():
    calls = []

    def evaluate(i):
        calls.append(i)
        return [9, 8, 5, 6, 4, 7, 8, 9, np.inf][i]

    for start in range(7):
        assert least(evaluate, 9, start, False) == 4
    calls.clear()
    assert least(evaluate, 9, 0, True) == 4
    assert sorted(calls) == list(range(9))


def test_predictions_are_those_of_the_exact_machine(fitted):
    x, y, model = fitted
    new = rows(20, seed=1)[0]
    inputs = model.fitted.preprocessing
    kernel = kernels_in_float64(NET, inputs(x), inputs(x))["ntk"]
    cross = kernels_in_float64(NET, inputs(new), inputs(x))["ntk"]
    n, penalty = len(x), float(model.fitted.best.reg) * len(x)
    # The intercept is not penalized.
    system = np.block(
        [[kernel + penalty * np.eye(n), np.ones((n, 1))], [np.ones(n), 0]]
    )
    solution = np.linalg.solve(system, np.append(100 + 7 * y, 0))
    wanted = cross @ solution[:-1] + solution[-1]
    np.testing.assert_allclose(model.predict(new), wanted, atol=0.02)


def test_variances_and_intervals_are_those_of_the_process(fitted):
    x, _, model = fitted
    new = rows(20, seed=1)[0]
    inputs, own = model.fitted.preprocessing, model.uncertainty
    both = inputs(np.concatenate([x, new]))
    kernel = kernels_in_float64(NET, both, both)["ntk"]
    n = len(x)
    # An intercept of infinite variance, relative to the noise.
    kernel = kernel / own.penalty + 1e5
    known = kernel[:n, :n] + np.eye(n)
    half = np.linalg.solve(known, kernel[:n, n:])
    relative = np.diagonal(kernel[n:, n:] - kernel[n:, :n] @ half) + 1
    wanted = relative * own.noise * model.scale[1] ** 2
    np.testing.assert_allclose(model.predict_variance(new), wanted, rtol=0.02)
    low, high = model.predict_interval(new, level=0.5)
    wide = model.predict_interval(new, level=0.99)
    assert (wide[0] < low).all() and (high < wide[1]).all()
    np.testing.assert_allclose((low + high) / 2, model.predict(new), rtol=1e-6)
    assert model.predict_interval(new[:0]).shape == (2, 0)


@pytest.mark.long
def test_what_features_leave_out_is_added_to_the_variance():
    x, y = rows(200)
    model = jns.fit(KEY, NET, x, y, num_features=16)
    inputs, own = model.fitted.preprocessing, model.uncertainty
    new = rows(30, seed=1)[0]
    prior = np.diagonal(kernels_in_float64(NET, inputs(new), inputs(new))["ntk"])
    phi = np.asarray(model.fitted.fmap.apply(model.fitted.params, inputs(new)))
    left = np.maximum(prior - np.sum(phi**2, axis=1), 0)
    relative = model.predict_variance(new) / own.noise / model.scale[1] ** 2
    known = 1 + own.spread(phi.astype(np.float64))
    assert left.max() > 0.1
    np.testing.assert_allclose(relative, known + left / own.penalty, rtol=0.01)


@pytest.mark.long
def test_intervals_cover_new_targets():
    """Noise with heavy tails: 10 draws, and 4 standard errors of the coverage."""
    covered = {0.5: [], 0.9: [], 0.99: []}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, y = rows(400, seed=seed, noise=0)
        y = y + 0.3 * rng.standard_t(3, len(y))
        model = jns.fit(KEY, NET, x[:200], y[:200])
        for level, found in covered.items():
            low, high = model.predict_interval(x[200:], level=level)
            found.append(np.mean((low <= y[200:]) & (y[200:] <= high)))
    for level, found in covered.items():
        error = np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found) - level) < 4 * error + 0.02, (level, np.mean(found))


def test_interval_of_the_error_covers_means_of_test_sets():
    rng = np.random.default_rng(0)
    errors = rng.exponential(1, (2000, 500))
    inside = 0
    for row in errors:
        known, test = row[:400], row[400:]
        estimate = ErrorEstimate(
            "mean squared error", known.mean(), known.std(), 400, 9
        )
        low, high = estimate.interval(0.9, num_test=100)
        inside += low <= test.mean() <= high
    assert abs(inside / 2000 - 0.9) < 0.03
    wide = estimate.interval(0.9, num_test=1)
    assert wide[1] > high


def test_no_wrong_label_is_no_certainty():
    codes = np.eye(2)[np.arange(20) % 2] - 0.5
    left_out = LeftOut(codes, codes, np.zeros(20), np.ones(20))
    estimate = ErrorEstimate.of(left_out, 20, None)
    assert estimate.value == 0
    assert estimate.interval(num_test=10**9)[1] > 0.02
    assert np.isfinite(temperature(left_out))


def test_probabilities_have_the_largest_likelihood():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3000, 3))
    weights = np.exp(4 * scores)
    labels = (rng.uniform(size=(3000, 1)) * weights.sum(1, keepdims=True)) > np.cumsum(
        weights, axis=1
    )
    codes = np.eye(3)[labels.sum(axis=1)]
    found = temperature(LeftOut(codes, scores, np.zeros(3000), np.ones(3000)))
    assert abs(found - 4) < 0.4


def test_labels_come_back_as_they_were(fitted):
    x, y, _ = fitted
    label = np.where(y > 0, "hot", "cold")
    model = jns.fit(KEY, NET, x, label)
    assert model.classes == ("cold", "hot")
    assert set(model.predict_class(x)) == {"cold", "hot"}
    assert np.mean(model.predict_class(x) == label) > 0.9
    probability = model.predict_proba(x)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert (probability.argmax(1) == model.predict(x).argmax(1)).all()
    with pytest.raises(ValueError, match="fitted to numbers"):
        model.predict_interval(x)


def test_floats_that_may_be_labels_are_doubted():
    x, y = rows(30)
    read = {"weight": None, "missing": "raise", "extras": {}}
    with pytest.warns(RuntimeWarning, match="2 different whole numbers as floats"):
        data = Training.read(x, np.sign(y), task=None, **read)
    assert data.task == "regression"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Training.read(x, np.sign(y), task="regression", **read).scale is not None
        labels = Training.read(x, np.sign(y), task="classification", **read)
        assert labels.scale is None and labels.codes.shape == (30, 2)
        Training.read(x, y, task=None, **read)


def test_a_saved_model_is_the_same(fitted, tmp_path):
    x, _, model = fitted
    model.save(tmp_path / "model.jns")
    same = jns.io.load(tmp_path / "model.jns")
    np.testing.assert_array_equal(same.predict(x), model.predict(x))
    np.testing.assert_array_equal(same.predict_variance(x), model.predict_variance(x))
    assert same.error == model.error and str(same) == str(model)
    assert "landmarks" in str(model) and "<br>" in model._repr_html_()


def test_constant_weights_change_nothing_and_twice_is_twice(fitted):
    x, y, model = fitted
    for weight in (np.full(len(x), 1 / len(x)), np.full(len(x), 1000)):
        same = jns.fit(KEY, NET, x, 100 + 7 * y, sample_weight=weight)
        np.testing.assert_allclose(same.predict(x), model.predict(x), rtol=1e-5)
        assert abs(same.error.value / model.error.value - 1) < 1e-3


def test_batches_are_the_rows(fitted):
    x, y, model = fitted
    batches = [(x[i : i + 40], 100 + 7 * y[i : i + 40]) for i in (0, 40, 80)]
    for given in (batches, lambda: iter(batches)):
        same = jns.fit(KEY, NET, given)
        np.testing.assert_array_equal(same.predict(x), model.predict(x))
    with pytest.raises(ValueError, match="sample_weight must be left out"):
        jns.fit(KEY, NET, batches, sample_weight=np.ones(90))


def test_scaling_is_the_one_of_the_least_error():
    """Where one column is long and says nothing, standardized columns win."""
    x, y = rows(200)
    long = np.concatenate([x, 1000 * rows(200, seed=3)[0][:, :1]], axis=1)
    read = {"task": None, "weight": None, "missing": "raise", "extras": {}}
    machine = settle(
        NET, None, Training.read(long, y, **read), np.random.default_rng(0)
    )
    assert machine.sentences[0] == "Inputs are standardized."
    spread = machine.inputs(long).std(axis=0)
    np.testing.assert_allclose(spread, 1, rtol=1e-4)


def test_columns_are_those_that_the_budgets_allow():
    x, y = rows(400)
    read = {"task": None, "weight": None, "missing": "raise", "extras": {}}
    data = Training.read(x, y, **read)
    machine = settle(NET, None, data, np.random.default_rng(0))
    columns = [
        _fit._work(machine, data, number, seconds, memory).columns
        for number, seconds, memory in (
            (None, 600, None),
            (None, 1e-9, None),
            (None, 600, size.work(400, 3, 1, 64, 400, 0).num_bytes),
            (100, 1e-9, None),
            (1000, 600, None),
        )
    ]
    assert columns == [400, 16, 64, 100, 400]


def test_machine_loss_is_the_left_out_error():
    x, y = rows(40)
    kernel = kernels_in_float64(NET, x, x)["ntk"]
    y = y[:, None]
    n, means = len(kernel), kernel.mean(axis=0)
    scale = np.trace(kernel - means - means[:, None] + means.mean()) / n
    wanted = []
    for penalty in networks._PENALTIES * scale:
        residuals = []
        for i in range(n):
            r = np.delete(np.arange(n), i)
            ones = np.ones((n - 1, 1))
            k = kernel[np.ix_(r, r)] + penalty * np.eye(n - 1)
            system = np.block([[k, ones], [ones.T, 0]])
            solution = np.linalg.solve(system, np.append(y[r], 0))
            residuals.append(kernel[i, r] @ solution[:-1] + solution[-1] - y[i, 0])
        wanted.append(np.mean(np.square(residuals)))
    assert abs(networks.machine_loss(kernel, y) / min(wanted) - 1) < 1e-4


@pytest.mark.long
def test_without_a_network_one_is_chosen():
    x, y = rows(300)
    model = jns.fit(KEY, None, x[:200], y[:200])
    assert "the best of 16" in str(model)
    baseline = np.var(y[200:])
    assert np.mean((model.predict(x[200:]) - y[200:]) ** 2) < 0.5 * baseline


@pytest.mark.long
def test_sparse_rows():
    x = scipy.sparse.random(120, 300, 0.05, "csr", np.float32, random_state=0)
    y = np.asarray(x[:, :20].sum(axis=1)).ravel()
    model = jns.fit(KEY, NET, x, y)
    assert model.predict(x).shape == (120,) and model.error.value < np.var(y)
    assert model.predict_variance(x[:3]).shape == (3,)


@pytest.mark.long
def test_images():
    digits = data.load_digits()
    images, labels = digits.x_train[:80].reshape(80, 8, 8), digits.y_train[:80] % 2
    model = jns.fit(KEY, recipes.cntk(1), images, labels, num_features=64)
    assert np.mean(model.predict_class(images) != labels) < 0.2
    assert model.predict_variance(images[:3]).shape == (3, 2)


@pytest.mark.long
def test_graphs():
    rng = np.random.default_rng(0)
    nodes = [rng.standard_normal((5, 2)).astype(np.float32) for _ in range(40)]
    edges = [np.array([[0, 1], [1, 2], [2, 3], [3, 4]])] * 40
    graphs = jns.graphs.pad(nodes, edges)
    y = np.array([a[:, 0].sum() for a in nodes])
    model = jns.fit(KEY, recipes.gntk(1), graphs, y, num_features=20)
    assert model.predict(graphs).shape == (40,)
    assert model.predict_variance(graphs).shape == (40,)


def test_maps_that_take_too_long_are_left_out(monkeypatch):
    monkeypatch.setattr(size, "seconds_per_flop", lambda: 1e-9)
    maps = [
        WeighedMap("slow", NET, 1.0, 1e9, 0.0),
        WeighedMap("fast", NET, 2.0, 1e6, 0),
    ]
    found = Weighed(tuple(maps), maps[0], "loss", 9, 9, 9)
    assert _fit._affordable(found, 100, seconds=1000) is maps[0]
    assert _fit._affordable(found, 100, seconds=10) is maps[1]
    assert _fit._affordable(found, 100, seconds=1e-3) is maps[1]


X, Y = rows(20)


def with_one(value):
    x = X.copy()
    x[4, 1] = value
    return x


BAD = {
    "y": (dict(x=X, y=Y[:9]), ValueError, "x and y must have one length"),
    "row": (dict(x=X[:1], y=Y[:1]), ValueError, "at least 2 examples"),
    "flat": (dict(x=X[:, 0], y=Y), ValueError, "n examples"),
    "class": (dict(x=X, y=["a"] * 20), ValueError, "at least two classes"),
    "nan y": (dict(x=X, y=np.where(Y == Y[3], np.nan, Y)), ValueError, "row 3"),
    "infinite y": (dict(x=X, y=np.where(Y == Y[3], np.inf, Y)), ValueError, "row 3"),
    "nan x": (dict(x=np.where(X == X[4, 1], np.nan, X), y=Y), ValueError, "example 4"),
    "infinite": (
        dict(x=np.where(X == X[4, 1], np.inf, X), y=Y),
        ValueError,
        "example 4",
    ),
    "labels": (dict(x=X, y=Y, task="classification"), ValueError, "whole numbers"),
    "task": (dict(x=X, y=Y, task="ranking"), ValueError, "task must be one of"),
    "get": (dict(x=X, y=Y, get="rbf"), ValueError, "get must be one of"),
    "missing": (dict(x=X, y=Y, missing="drop"), ValueError, "missing must be one of"),
    "weight": (dict(x=X, y=Y, sample_weight=-Y), ValueError, "sample_weight must be"),
    "weights": (dict(x=X, y=Y, sample_weight=Y[:3]), ValueError, r"shape \(20,\)"),
    "seconds": (dict(x=X, y=Y, seconds=0), ValueError, "seconds must be"),
    "memory": (dict(x=X, y=Y, max_memory=10), ValueError, "max_memory must be"),
    "no y": (dict(x=X), TypeError, "y must be given"),
    "classes": (
        dict(x=np.zeros((10**5, 1)), y=np.arange(10**5), task="classification"),
        ValueError,
        "at most 10000 classes",
    ),
    "y cube": (dict(x=X, y=np.zeros((20, 2, 2))), ValueError, "y must have shape"),
    "dates": (
        dict(x=np.array([["2020-01-01"]] * 20, "datetime64[D]"), y=Y),
        TypeError,
        "dates",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    arguments, error, message = BAD[case]
    with pytest.raises(error, match=message):
        jns.fit(KEY, NET, **arguments)


@pytest.mark.long
@pytest.mark.parametrize("case", ["constant", "zero", "twice", "two rows", "same rows"])
def test_odd_data_give_finite_predictions(case):
    x, y = X.copy(), Y.copy()
    if case == "constant":
        y = np.full(20, 3.0)
    elif case == "zero":
        x = np.zeros_like(x)
    elif case == "twice":
        x = np.concatenate([x, x], axis=1)
    elif case == "two rows":
        x, y = x[:2], y[:2]
    else:
        x, y = np.repeat(x, 5, axis=0), np.repeat(y, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = jns.fit(KEY, NET, x, y)
    assert np.isfinite(model.predict(x)).all()
    assert np.isfinite(model.predict_variance(x)).all()
    if case == "constant":
        np.testing.assert_allclose(model.predict(x), 3)
