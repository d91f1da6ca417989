"""`choose`: its losses against their definitions, and that no map does better."""

import contextlib
import dataclasses
import io
import warnings

import jax
import numpy as np
import pytest
import scipy.sparse

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, methods, recipes, stax
from jax_ntk_sketch.selection import _choose, losses
from jax_ntk_sketch.selection._landmarks_of_kernel import features_of_kernel
from jax_ntk_sketch.selection.candidates import candidates
from jax_ntk_sketch.selection.rows import Rows, dense_coordinates, warn_if_sorted

NET = stax.serial(stax.Dense(1, 1.4), stax.Relu(), stax.Dense(1, 1.4))
KEY = jax.random.key(0)


def matrices(seed=0, n=30, held_out=8, m=6):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n + held_out, 50))
    k = a @ a.T
    phi = rng.standard_normal((n + held_out, m))
    return k[:n, :n], k[n:, :n], phi[:n], phi[n:]


def predictor(cross, k, penalty):
    return cross @ np.linalg.inv(k + penalty * np.eye(len(k)))


def test_left_out_error_is_that_of_fits_without_each_row():
    k, _, _, _ = matrices()
    y = np.random.default_rng(1).standard_normal((len(k), 2))
    errors = []
    for i in range(len(k)):
        rest = np.delete(np.arange(len(k)), i)
        found = predictor(k[i, rest], k[np.ix_(rest, rest)], 0.7) @ y[rest]
        errors.append(np.mean((found - y[i]) ** 2))
    found = losses._Spectrum.of(k).left_out_error(0.7, y)
    np.testing.assert_allclose(found, np.mean(errors), rtol=1e-10)


def test_distance_is_that_of_the_predictions():
    k, cross, phi, new = matrices()
    y = np.random.default_rng(1).standard_normal((len(k), 2))
    loss = losses.DistanceToMachine(k, cross, y)
    assert loss.penalty == losses._Spectrum.of(k).best_penalty(y)
    exact = predictor(cross, k, loss.penalty) @ y
    found = predictor(new @ phi.T, phi @ phi.T, loss.penalty) @ y
    wanted = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    np.testing.assert_allclose(loss(phi, new), wanted, rtol=1e-9)
    root = np.linalg.cholesky(k)
    assert loss(root, cross @ np.linalg.inv(root).T) < 1e-7


def test_expected_distance_is_the_mean_over_targets_of_the_prior():
    k, cross, phi, new = matrices()
    loss = losses.ExpectedDistance(k, cross, penalties=(0.01,))
    (penalty,) = loss.penalties
    np.testing.assert_allclose(penalty, 0.01 * np.trace(k) / len(k), rtol=1e-9)
    exact = predictor(cross, k, penalty)
    off = predictor(new @ phi.T, phi @ phi.T, penalty) - exact
    prior = k + penalty * np.eye(len(k))
    ratio = np.trace(off @ prior @ off.T) / np.trace(exact @ prior @ exact.T)
    np.testing.assert_allclose(loss(phi, new), ratio**0.5, rtol=1e-9)
    both = losses.ExpectedDistance(k, cross, penalties=(0.01, 0.1))
    other = losses.ExpectedDistance(k, cross, penalties=(0.1,))
    mean = (loss(phi, new) * other(phi, new)) ** 0.5
    np.testing.assert_allclose(both(phi, new), mean, rtol=1e-9)


def test_held_out_error_is_that_of_ridge():
    _, _, phi, new = matrices()
    rng = np.random.default_rng(1)
    y, held_out_y = rng.standard_normal((30, 2)), rng.standard_normal((8, 2))
    loss = losses.HeldOutError(y, held_out_y)
    k = phi @ phi.T
    penalty = losses._Spectrum.of(k).best_penalty(y)
    found = predictor(new @ phi.T, k, penalty) @ y
    size = np.mean((held_out_y - y.mean(axis=0)) ** 2)
    wanted = np.mean((found - held_out_y) ** 2) / size
    np.testing.assert_allclose(loss(phi, new), wanted, rtol=1e-9)


def flat(n=150, d=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)).astype(np.float32)
    return x, np.sin(2 * x[:, 0]) + x[:, 1]


@pytest.fixture
def few_maps(monkeypatch):
    """Maps that compile quickly, of each kind, for tests of other things."""
    names = "landmarks", "directions of all", "variance reduced", "one pass"

    def few(*args, **options):
        made = candidates(*args, **options)
        return {name: made[name] for name in names}

    monkeypatch.setattr(_choose, "candidates", few)


@pytest.fixture(scope="module")
def weighed():
    """What was weighed without targets, and with them; silently without a terminal."""
    x, y = flat()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        both = [jns.weigh(KEY, NET, 24, sample=x, y=targets) for targets in (None, y)]
    assert said.getvalue() == ""
    return both


def test_every_map_of_the_list_is_weighed(weighed):
    for one in weighed:
        names = {entry.name for entry in one.maps}
        assert names == set(candidates(NET, "ntk"))
        assert all(np.isfinite(entry.loss) for entry in one.maps)
        assert (one.num_fitted, one.num_held_out, one.num_columns) == (113, 37, 19)


def test_the_cheapest_of_the_best_is_chosen(weighed):
    for one in weighed:
        values = [entry.loss for entry in one.maps]
        assert values == sorted(values)
        good = [entry for entry in one.maps if entry.loss <= 1.01 * values[0]]
        assert one.chosen in good
        assert one.chosen.flops == min(entry.flops for entry in good)
        assert one.fmap == one.chosen.fmap and one.fmap.num_features == 24


def test_landmarks_beat_maps_that_know_no_data(weighed):
    for one in weighed:
        assert one.fmap.method.needs_sample
        value = {entry.name: entry.loss for entry in one.maps}
        assert value["random features"] > 1.5 * one.chosen.loss


def test_the_table(weighed):
    without, with_targets = map(str, weighed)
    assert without.startswith("loss: expected distance to the exact predictions; 19")
    assert "113 examples to fit, 37 held out, penalty" in with_targets
    assert without.count("(chosen)") == 1 and "1.00" in without
    page = weighed[0]._repr_html_()
    assert page.count("<tr>") == 1 + len(weighed[0].maps)


@pytest.mark.long
def test_the_map_is_pure_and_the_choice_repeats(few_maps):
    x, y = flat()
    fmap, again = (jns.choose(KEY, NET, 24, sample=x, y=y) for _ in range(2))
    assert fmap == again and hash(fmap) == hash(again)
    init = jax.jit(lambda key, x: fmap.init(key, (4,), sample=x))
    for a, b in zip(
        *map(jax.tree.leaves, (init(KEY, x), fmap.init(KEY, (4,), sample=x))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.long
@pytest.mark.usefixtures("few_maps")
def test_columns_are_at_most_half_of_the_fitting_rows():
    x, _ = flat(40)
    one = jns.weigh(KEY, NET, 512, sample=x)
    assert (one.num_fitted, one.num_columns) == (30, 15)
    assert one.fmap.num_features == 512


@pytest.mark.long
@pytest.mark.usefixtures("few_maps")
def test_progress_says_the_time_before_and_the_table_after(capsys):
    x, _ = flat(20)
    jns.choose(KEY, NET, 4, sample=x, progress=True)
    said = capsys.readouterr().err
    assert "choose: weighs 4 maps on 20 examples, which takes about" in said
    assert "(chosen)" in said


@pytest.mark.long
def test_images_by_targets_and_without():
    digits = jns.data.load_digits()
    x, y = digits.x_train[:96, ..., None], digits.y_train[:96]
    for targets, measure in ((y, "held-out error"), (None, "expected distance")):
        one = jns.weigh(KEY, recipes.cntk(2), 32, sample=x, y=targets)
        assert one.measure.startswith(measure)
        known = [entry.loss for entry in one.maps if entry.why_not == ""]
        assert len(known) >= 8 and one.chosen.loss <= 1.01 * min(known)
        refused = [entry.name for entry in one.maps if entry.why_not]
        assert refused == ["one pass"]
        params = one.fmap.init(KEY, x.shape[1:], sample=x)
        assert np.isfinite(one.fmap.apply(params, x[:3])).all()


@pytest.mark.long
@pytest.mark.usefixtures("few_maps")
def test_both_kernels_count_alike():
    x, y = flat(60)
    one = jns.weigh(KEY, NET, 16, sample=x, y=y, get=("nngp", "ntk"))
    each = [jns.weigh(KEY, NET, 16, sample=x, y=y, get=k) for k in ("nngp", "ntk")]
    for entry in one.maps:
        parts = [e.loss for w in each for e in w.maps if e.name == entry.name]
        np.testing.assert_allclose(entry.loss, np.prod(parts) ** 0.5, rtol=1e-3)


def test_sorted_rows_are_noticed():
    x, _ = flat(60)
    order = np.argsort(np.linalg.norm(x, axis=1))
    rows = Rows.read("choose", x[order], None, None, {})
    with pytest.warns(UserWarning, match="sorted by length"):
        warn_if_sorted("choose", rows.x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_sorted("choose", x)
        warn_if_sorted("choose", np.ones((60, 3)))
        # Few lengths differ, and the others are in no order.
        warn_if_sorted("choose", np.r_[np.ones((59, 3)), np.zeros((1, 3))])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sample": np.zeros((7, 3))}, "sample must hold at least 8 examples"),
        ({"sample": np.full((9, 3), np.nan)}, "sample must be finite, but its row 0"),
        ({"y": np.zeros(3)}, "y must have a target for each of the 40 examples, got 3"),
        ({"y": np.full(40, np.inf)}, "y must be finite, but its row 0"),
        ({"num_features": 0}, "num_features must be an integer >= 1, got 0"),
        ({"get": "other"}, "get must"),
    ],
)
def test_refuses(change, message):
    options = {"num_features": 8, "sample": flat(40)[0], **change}
    with pytest.raises(ValueError, match=message):
        jns.choose(KEY, NET, options.pop("num_features"), **options)


@pytest.mark.long
@pytest.mark.usefixtures("few_maps")
def test_a_few_rows_for_many_columns():
    """Some maps cannot have as few columns as these rows allow."""
    x, y = flat(8, d=12)
    net = stax.serial(stax.Dense(1, 1.4, 0.3), stax.Relu(), stax.Dense(1), stax.Relu())
    one = jns.weigh(KEY, net, 512, sample=x, y=y)
    assert one.num_columns == 3
    assert np.isfinite(one.chosen.loss)
    assert one.fmap.num_features == 512


def test_classes_and_numbers():
    labels = np.array(["a", "b"] * 8)
    x = flat(16)[0]
    y = Rows.read("choose", x, labels, None, {}).y
    np.testing.assert_allclose(y, np.tile([[0.5, -0.5], [-0.5, 0.5]], (8, 1)))
    whole = Rows.read("choose", x, np.arange(16.0), None, {}).y
    assert whole.shape == (16, 1)


@pytest.mark.parametrize("normalize", [True, False])
def test_landmarks_of_a_kernel_are_those_of_the_map(normalize):
    """With all rows as landmarks, nothing is drawn."""
    x, _ = flat(60)
    k = kernels.exact_kernel(NET, x[:40], get="ntk")
    cross = kernels.exact_kernel(NET, x[40:], x[:40], get="ntk")
    method = methods.Nystrom(oversample=4.0, normalize=normalize)
    found = features_of_kernel(KEY, method, 10, np.asarray(k), np.asarray(cross))
    fmap = jns.feature_map(NET, num_features=10, method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = fmap.init(KEY, (4,), sample=x[:40])
    wanted = np.asarray(fmap.apply(params, x))
    found = np.concatenate(found)
    np.testing.assert_allclose(
        found @ found.T, wanted @ wanted.T, atol=1e-3 * np.abs(wanted @ wanted.T).max()
    )


@pytest.mark.parametrize(
    "num_features, num_rows, columns, landmarks",
    [
        (100, 60_000, 100, 1536),  # a sixth of the rows would be more
        (1024, 60_000, 256, 1024),
        (2048, 60_000, 256, 768),
        (1024, 4000, 394, 1536),  # all rows are landmarks in the end
        (8192, 10_000, 768, 768),
    ],
)
def test_the_comparison_is_like_the_end(num_features, num_rows, columns, landmarks):
    rows = Rows(np.zeros((1536, 1)), None, {})
    found = _choose._Comparison(num_features, num_rows, rows, rows, {}, None)
    assert (found.columns, found.landmarks) == (columns, landmarks)


def test_landmarks_keep_their_number_per_column():
    made = candidates(NET, "ntk")
    few = made["directions of all"](100, 1000).method
    assert few == methods.Nystrom(oversample=10.0, normalize=True)
    many = made["directions of all"](8192, 60_000).method
    assert many == methods.Nystrom(oversample=1.0, normalize=True)
    assert made["directions"](2048, 60_000).method.oversample == 3.0
    assert dataclasses.replace(few, oversample=1.0) == made["landmarks"](100, 9).method


def sparse(n=60, d=30, seed=0):
    rng = np.random.default_rng(seed)
    x = scipy.sparse.random_array((n, d), density=0.2, format="csr", rng=rng)
    return x.astype(np.float32), rng.standard_normal(n)


@pytest.mark.parametrize("d", [6, 300])
def test_dense_coordinates_have_the_kernels_of_sparse_rows(d):
    x, y = sparse(40, d)
    split = Rows.read("choose", x, y, None, {}).split(np.random.default_rng(0), 32)
    coordinates = dense_coordinates(*split)
    net = stax.serial(
        stax.Dense(1, 1.4, 0.3), stax.Relu(), stax.Dense(1, 1, 0.2), stax.Erf()
    )
    found = [kernels.exact_kernel(net, z.x, get="ntk") for z in coordinates]
    wanted = [kernels.exact_kernel(net, z.x.toarray(), get="ntk") for z in split]
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    found = kernels.exact_kernel(net, *(z.x for z in coordinates), get="ntk")
    wanted = kernels.exact_kernel(net, *(z.x.toarray() for z in split), get="ntk")
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert coordinates[0].y is split[0].y
    assert coordinates[0].x.shape == (24, min(d, 32))


def test_rows_of_zeros_have_dense_coordinates():
    rows = Rows.read("choose", scipy.sparse.csr_array((9, 5)), None, None, {})
    fitting, held_out = dense_coordinates(rows, rows)
    assert not fitting.x.any() and fitting.x.shape == held_out.x.shape == (9, 1)


@pytest.mark.parametrize("form", ["csr", "coo", "SparseRows"])
@pytest.mark.quick_cases("coo")
def test_sparse_rows_have_the_losses_of_dense_rows(form, monkeypatch):
    """Maps of sparse rows take dense rows too; those learned from data may differ."""
    names = "random features", "sketch", "one pass", "landmarks, uniform"
    net = stax.serial(stax.Dense(1, 1.4), stax.Relu(), stax.Dense(1, 1.4, 0.2))
    x, y = sparse()

    def few(net, get, *, sparse):
        made = candidates(net, get, sparse=True)
        return {name: made[name] for name in names}

    monkeypatch.setattr(_choose, "candidates", few)
    dense = jns.weigh(KEY, net, 16, sample=x.toarray(), y=y)
    if form == "SparseRows":
        given = jns.SparseRows.from_scipy(x)
    else:
        given = x.asformat(form)
    found = jns.weigh(KEY, net, 16, sample=given, y=y)
    wanted = {entry.name: entry.loss for entry in dense.maps}
    assert len(found.maps) == len(names) and found.penalty > 0
    for entry in found.maps:
        assert entry.loss == pytest.approx(wanted[entry.name], rel=1e-3), entry
    params = found.fmap.init(KEY, (30,), sample=given)
    assert found.fmap.apply(params, given).shape == (60, 16)


@pytest.mark.long
def test_every_map_of_sparse_rows_is_near_that_of_dense_rows():
    """Few coordinates collide in a sketch of 4096.

    It has too many numbers for the exact linear parts of `VarianceReduced`.
    """
    x, y = sparse(150, 8)
    tables = [jns.weigh(KEY, NET, 24, sample=s, y=y) for s in (x, x.toarray())]
    one, dense = ({entry.name: entry.loss for entry in t.maps} for t in tables)
    assert one.keys() == dense.keys() == candidates(NET, "ntk").keys()
    for name, loss in one.items():
        most = 4 if name.startswith("variance reduced") else 2
        assert 0.5 < loss / dense[name] < most, (name, loss, dense[name])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"sample": "nan"}, ValueError, "sample must be finite, but its row 3 has"),
        ({"pattern": np.zeros((40, 2, 2))}, ValueError, "pattern must be None for a"),
        ({"sample": "few"}, ValueError, "sample must hold at least 8 examples"),
        ({"sample": "complex"}, TypeError, "sample must be real, got dtype complex"),
        (
            {"net": stax.Conv(1, (3,))},
            ValueError,
            "Conv.* needs spatial axes, got none",
        ),
    ],
)
def test_refuses_sparse(change, error, message):
    x, _ = sparse(40)
    bad = x.copy()
    bad.data[x.indptr[3]] = np.nan
    others = {"nan": bad, "few": x[:7], "complex": x.astype(complex)}
    options = {"net": NET, "sample": x, **change}
    options["sample"] = others.get(change.get("sample"), x)
    with pytest.raises(error, match=message):
        jns.choose(KEY, options.pop("net"), 8, **options)


def test_sorted_sparse_rows_are_noticed():
    x, _ = sparse()
    order = np.argsort(scipy.sparse.linalg.norm(x, axis=1))
    with pytest.warns(UserWarning, match="sorted by length"):
        warn_if_sorted("choose", Rows.read("choose", x[order], None, None, {}).x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_sorted("choose", x)
