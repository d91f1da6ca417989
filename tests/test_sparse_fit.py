"""Sparse examples from file to prediction: transform, fits, checkpoints, saving."""

import jax
import numpy as np
import optax
import pytest
import scipy.sparse
from helpers import draw

import jax_ntk_sketch as jns
from jax_ntk_sketch import SparseRows, stax
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch.batches.reader import Reader
from jax_ntk_sketch.batches.source import ArraySource
from jax_ntk_sketch.linear_model import checkpoint

NET = stax.serial(stax.Dense(8, 1.4), stax.Relu(), stax.Dense(1))
DIM, N = 500, 70
BASE = jns.feature_map(NET, num_features=20, method="one_pass")
FMAP = jns.with_sparse_inputs(BASE, sketch_dim=32)
PARAMS = draw(FMAP, (DIM,))
RNG = np.random.default_rng(0)
X = scipy.sparse.random_array((N, DIM), density=0.04, rng=RNG, dtype=np.float32)
X = X.tocsr()
DENSE = X.toarray()
LABELS = (DENSE[:, :50].sum(1) > DENSE[:, 50:100].sum(1)).astype(int)
Y = DENSE[:, :2] + 1
OPTIONS = dict(reg=1e-2, batch_size=32)
FITTED = lm.fit(FMAP, PARAMS, DENSE, Y, **OPTIONS)


@pytest.fixture(autouse=True)
def never_dense(monkeypatch):
    """No rows are made dense, by no path that SciPy has."""

    def fail(*args, **kwargs):
        raise AssertionError("made dense")

    for kind in ("csr", "coo", "csc"):
        for name in ("toarray", "todense"):
            for suffix in ("array", "matrix"):
                monkeypatch.setattr(
                    getattr(scipy.sparse, f"{kind}_{suffix}"), name, fail
                )


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_transform_equals_apply():
    phi = np.asarray(FMAP.apply(PARAMS, DENSE))
    for x in (X, X.tocoo(), scipy.sparse.csr_matrix(X), SparseRows.from_scipy(X)):
        for size in (16, 100, None):
            got = jns.transform(FMAP, PARAMS, x, batch_size=size)
            assert type(got) is np.ndarray and got.shape == (N, 20)
            close(got, phi)
    out = np.zeros((N, 20), np.float32)
    assert jns.transform(FMAP, PARAMS, X, out=out) is out
    close(out, phi)
    assert jns.transform(FMAP, PARAMS, X[:0]).shape == (0, 20)
    close(jns.transform(FMAP, PARAMS, (X > 0)), FMAP.apply(PARAMS, DENSE > 0))
    close(jns.transform(FMAP, PARAMS, X.astype(np.float64)), phi)
    with pytest.raises(ValueError, match="what one example takes"):
        jns.transform(FMAP, PARAMS, X, max_bytes=10)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(value):
    x = X.copy()
    place = x.indptr[40] + 1
    x.data[place] = value
    with pytest.raises(
        ValueError, match=rf"x must .* in example 40 .* at \({x.indices[place]},"
    ):
        jns.transform(FMAP, PARAMS, x, batch_size=16)
    with pytest.raises(ValueError, match=r"fit: x must be finite, .* in example 40 "):
        lm.fit(FMAP, PARAMS, x, Y, **OPTIONS)
    with pytest.warns(RuntimeWarning, match="left out 1 example "):
        some = lm.fit(FMAP, PARAMS, x, Y, nonfinite="skip", **OPTIONS)
    weight = np.ones(N, np.float32)
    weight[40] = 0
    want = lm.fit(FMAP, PARAMS, X, Y, sample_weight=weight, **OPTIONS)
    close(some.best.weights, want.best.weights)
    assert some.num_skipped == 1


def test_fit_and_predict_as_dense():
    batches = [(X[:30], Y[:30]), (X[30:].tocoo(), Y[30:])]
    for data in (
        (X, Y),
        (X.tocsc(), Y),
        (SparseRows.from_scipy(X), Y),
        (batches,),
    ):
        fitted = lm.fit(FMAP, PARAMS, *data, **OPTIONS)
        close(fitted.best.weights, FITTED.best.weights)
    for x in (X, X.tocoo(), SparseRows.from_scipy(X)):
        close(fitted.predict(x), FITTED.predict(DENSE))
    assert fitted.predict(X[:0]).shape == (0, 2)
    classes = lm.fit(FMAP, PARAMS, X, LABELS, folds=2, **OPTIONS)
    dense = lm.fit(FMAP, PARAMS, DENSE, LABELS, folds=2, **OPTIONS)
    close(classes.cross_validation.errors, dense.cross_validation.errors)
    np.testing.assert_array_equal(classes.predict_class(X), dense.predict_class(DENSE))


def test_other_fits_as_dense():
    options = dict(reg=1e-2, rank=5, batch_size=32, key=jax.random.key(1))
    sparse = lm.fit_cg(FMAP, PARAMS, X, Y, **options)
    assert sparse.info.converged
    close(sparse.predict(X), FITTED.predict(DENSE))
    options = dict(optimizer=optax.sgd(0.1), batch_size=16, num_epochs=2)
    options |= dict(key=jax.random.key(3))
    sparse = lm.fit_gradient(FMAP, PARAMS, X, Y, **options)
    dense = lm.fit_gradient(FMAP, PARAMS, DENSE, Y, **options)
    close(sparse.info.losses, dense.info.losses)
    close(sparse.best.weights, dense.best.weights)


def test_batches_have_one_shape():
    """So that a fit is compiled once; in any order, for the largest so far."""
    reader = Reader(ArraySource("fit", X, Y), batch_size=16)
    shapes = {(batch.x.shape, batch.x.nnz) for batch in reader.batches()}
    assert len(shapes) == 1
    (((rows, dim), nnz),) = shapes
    assert (rows, dim) == (16, DIM) and nnz & (nnz - 1) == 0
    order = np.random.default_rng(1).permutation(N)
    seen = [batch.x.nnz for batch in reader.batches(order=order)]
    assert seen == sorted(seen)
    rows = np.concatenate([b.x.values for b in reader.batches(order=order)])
    np.testing.assert_allclose(np.sort(rows[rows > 0]), np.sort(X.data))


def test_wrong_data():
    with pytest.raises(ValueError, match="70 examples and 69 targets"):
        lm.fit(FMAP, PARAMS, X, Y[1:], **OPTIONS)
    with pytest.raises(ValueError, match="y must be given with x, which is an array"):
        lm.fit(FMAP, PARAMS, X, **OPTIONS)
    with pytest.raises(
        ValueError, match=r"x of batch 0 and y must .* 70 examples and 69 targets"
    ):
        lm.fit(FMAP, PARAMS, [(X, Y[1:])], **OPTIONS)
    with pytest.raises(
        ValueError, match=r"must have shape \(500,\) .* got shape \(400,\)"
    ):
        lm.fit(FMAP, PARAMS, [(X[:30], Y[:30]), (X[:30, :400], Y[:30])], **OPTIONS)
    with pytest.raises(TypeError, match="wrap the map, jax_ntk_sketch"):
        lm.fit(BASE, PARAMS["base"], X, Y, **OPTIONS)
    broken = X.copy()
    broken.indices[X.indptr[5]] = -2
    for run in (
        lambda: lm.fit(FMAP, PARAMS, broken, Y, **OPTIONS),
        lambda: jns.transform(FMAP, PARAMS, broken),
        lambda: FITTED.predict(broken),
    ):
        with pytest.raises(ValueError, match=r"index -2 of example 5 of .* outside"):
            run()


def test_checkpoints(tmp_path, monkeypatch):
    """A pass that stops goes on to the same bits, and not with other data."""
    path = tmp_path / "sums.npz"
    whole = lm.fit(FMAP, PARAMS, X, Y, **OPTIONS)
    options = dict(OPTIONS, checkpoint=path, checkpoint_seconds=0.0)
    saves, save = [], checkpoint.save

    def stop(*args):
        save(*args)
        saves.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        lm.fit(FMAP, PARAMS, X, Y, **options)
    monkeypatch.setattr(checkpoint, "save", save)
    assert len(saves) == 1
    # Read again, in other memory: the digest is of numbers, not of addresses.
    again = lm.fit(FMAP, PARAMS, X.tocoo().tocsr(), Y, **options)
    want = np.asarray(whole.best.weights).tobytes()
    assert np.asarray(again.best.weights).tobytes() == want
    other = X.copy()
    other.data[3] += 1
    with pytest.raises(ValueError, match="another run: first examples"):
        lm.fit(FMAP, PARAMS, other, Y, **options)


@pytest.mark.long
def test_compress_either_way():
    """Directions of sparse data, and sketches of a compressed map."""
    phi = np.asarray(FMAP.apply(PARAMS, DENSE))
    cmap, cparams = jns.compress(FMAP, PARAMS, X, num_features=20)
    psi = cmap.apply(cparams, X, batch_size=8)
    close(psi @ psi.T, phi @ phi.T)
    close(jns.transform(cmap, cparams, X), cmap.apply(cparams, DENSE))
    assert cmap.plan(X).num_features == 20
    few, fparams = jns.compress(FMAP, PARAMS, X, num_features=6, num_samples=12)
    dense, dparams = jns.compress(FMAP, PARAMS, DENSE, num_features=6, num_samples=12)
    a, b = few.apply(fparams, X), dense.apply(dparams, DENSE)
    np.testing.assert_allclose(a @ a.T, b @ b.T, rtol=1e-3, atol=1e-4)
    inner = jns.CompressedFeatureMap(BASE, 6)
    fmap = jns.with_sparse_inputs(inner, sketch_dim=32)
    params = fmap.init(jax.random.key(1), X, sample=X)
    assert jns.transform(fmap, params, X).shape == (N, 6)


def test_a_mesh_takes_dense_examples_only():
    mesh = jns.sharding.data_mesh()
    for run in (
        lambda: jns.transform(FMAP, PARAMS, X, mesh=mesh),
        lambda: lm.fit(FMAP, PARAMS, X, Y, mesh=mesh, **OPTIONS),
        lambda: lm.fit(FMAP, PARAMS, [(X, Y)], mesh=mesh, **OPTIONS),
    ):
        with pytest.raises(ValueError, match="these are sparse; leave mesh out"):
            run()
    dense = lm.fit(FMAP, PARAMS, DENSE, Y, mesh=mesh, **OPTIONS)
    close(dense.predict(X), FITTED.predict(X))
