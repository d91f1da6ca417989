"""Ridge regression in one call: `fit_ridge` and its models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ridge_problems import data, difference, direct

from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch._progress import progress


def test_fit_takes_arrays_batches_and_odd_batch_sizes():
    phi, y = data()
    w, _ = direct(phi, y, 1e-3)
    pieces = [(phi[i : i + 70], y[i : i + 70]) for i in range(0, 300, 70)]
    fits = [
        lm.fit_ridge(phi, y, reg=1e-3),
        lm.fit_ridge(jnp.asarray(phi), jnp.asarray(y), reg=1e-3, batch_size=7),
        lm.fit_ridge(pieces, reg=1e-3),
        lm.fit_ridge(iter(pieces), reg=1e-3),
        lm.fit_ridge(phi.tolist(), y.tolist(), reg=1e-3),
    ]
    for model in fits:
        assert difference(model.weights, w) < 1e-6
        assert model.num_classes is None


def test_targets_without_axis_stay_so():
    phi, y = data(t=1)
    flat = lm.fit_ridge(phi, y[:, 0], reg=[1e-3, 1.0])
    assert flat.weights.shape == (2, 12) and flat.intercept.shape == (2,)
    assert flat.predict(phi).shape == (2, 300)
    assert flat.select(0).predict(phi).shape == (300,)
    column = lm.fit_ridge(phi, y, reg=[1e-3, 1.0])
    assert column.predict(phi).shape == (2, 300, 1)
    assert (column.predict(phi)[..., 0] == flat.predict(phi)).all()


def test_labels_are_fitted_as_centred_one_hot_codes():
    phi, _ = data()
    labels = np.argmax(phi[:, :3], axis=1)
    codes = np.eye(3, dtype=np.float32)[labels] - np.float32(1 / 3)
    for intercept in (True, False):
        model = lm.fit_ridge(phi, labels, reg=1e-3, intercept=intercept)
        w, b = direct(phi, codes, 1e-3, intercept)
        assert difference(model.weights, w) < 1e-6 and model.num_classes == 3
        scores = phi.astype(np.float64) @ w + b
        assert (model.predict_class(phi) == scores.argmax(1)).all()
    four = lm.fit_ridge(phi, labels, reg=1e-3, num_classes=4)
    assert four.predict(phi).shape == (300, 4) and (four.predict(phi)[:, 3] < 0).all()
    halves = [(phi[:100], labels[:100]), (phi[100:], labels[100:])]
    again = lm.fit_ridge(halves, reg=1e-3, num_classes=3)
    assert difference(again.weights, lm.fit_ridge(phi, labels, reg=1e-3).weights) < 1e-6
    with pytest.raises(ValueError, match="num_classes must be given"):
        lm.fit_ridge(halves, reg=1e-3)


@pytest.mark.parametrize("labels", [["lily", "rose"], [-1, 1], [3, 255]])
def test_predicted_labels_are_those_of_the_fit(labels):
    phi, _ = data()
    y = np.array(labels)[(phi[:, 0] > 0).astype(int)]
    y = y.astype(np.uint8) if 255 in labels else y
    model = lm.fit_ridge(phi, y, reg=[1e-3, 1.0])
    assert model.classes == tuple(labels) and model.num_classes == 2
    found = model.predict_class(phi)
    assert found.shape == (2, 300) and set(found.ravel()) == set(labels)
    best = model.best(phi, y)
    assert (best.predict_class(phi) == y).mean() > 0.9
    numbers = lm.fit_ridge(phi, phi[:, 0] > 0, reg=1e-3)
    np.testing.assert_allclose(model.weights[0], numbers.weights, atol=1e-6)


def test_singular_penalties_are_dropped():
    phi = np.repeat(data()[0], 2, axis=1)
    y = phi[:, 0] ** 2
    with pytest.warns(RuntimeWarning, match="1 of 2 values of reg were dropped"):
        model = lm.fit_ridge(phi, y, reg=[0.0, 1e-2])
    assert model.reg.tolist() == [1e-2] and model.weights.shape == (1, 24)
    with pytest.raises(np.linalg.LinAlgError, match="reg must be at least"):
        lm.fit_ridge(phi, y, reg=0.0)


def test_bool_labels_and_float_labels():
    phi, _ = data()
    labels = phi[:, 0] > phi[:, 1]
    model = lm.fit_ridge(phi, labels, reg=1e-3)
    assert model.num_classes == 2 and (model.predict_class(phi) == labels).mean() > 0.9
    numbers = lm.fit_ridge(phi, labels.astype(np.float32), reg=1e-3)
    assert numbers.predict(phi).shape == (300,)
    with pytest.raises(ValueError, match="must be fitted on class labels"):
        numbers.predict_class(phi)


def test_best_chooses_by_held_out_error():
    phi, y = data(n=80)
    new, new_y = data(n=1000, seed=1)
    new_y = new @ np.linalg.lstsq(phi, y, rcond=None)[0]
    path = lm.fit_ridge(phi, y, reg=[1e3, 1e-2, 1e-8], intercept=False)
    assert path.best(new, new_y).reg == 1e-8
    labels = new[:, 0] > 0.6
    path = lm.fit_ridge(new[:900], labels[:900], reg=[1e-3, 1e5], intercept=False)
    assert path.best(new[900:], labels[900:]).reg == 1e-3
    with pytest.raises(ValueError, match=r"y must have shape \(100,\), got \(100, 1\)"):
        path.best(new[900:], labels[900:, None])
    with pytest.raises(ValueError, match="single reg"):
        path.select(0).best(new, labels)


def test_model_goes_through_jit():
    phi, y = data()
    model = lm.fit_ridge(phi, y, reg=[1e-3, 1.0])
    predict = jax.jit(lambda model, phi: model.predict(phi))
    assert np.allclose(predict(model, phi), model.predict(phi), rtol=1e-6)


def test_half_precision_features_are_summed_in_float32():
    phi, y = data()
    half = jnp.asarray(phi, jnp.bfloat16)
    model = lm.fit_ridge(half, y, reg=1e-3)
    assert model.weights.dtype == jnp.float32
    w = direct(np.asarray(half, np.float32), y, 1e-3)[0]
    assert difference(model.weights, w) < 1e-6


def test_progress_shows_a_bar(capsys):
    pytest.importorskip("tqdm")
    phi, y = data()
    lm.fit_ridge(phi, y, reg=1e-3, batch_size=100, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_the_first_batch_does_not_count_in_the_estimate(monkeypatch):
    """It compiles: a run of two minutes was to take two hours."""
    tqdm = pytest.importorskip("tqdm")
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    items = progress(range(3), "items", enabled=True)
    next(items)
    start, seen = bars[0].start_t, []
    for _ in items:
        seen.append((bars[0].initial, bars[0].start_t > start))
    assert seen == [(1, True)] * 2 and bars[0].n == 3
