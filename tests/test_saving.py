"""Models as files: the same predictions, and no other feature map."""

import jax
import numpy as np
import optax
import pytest

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch import stax
from jax_ntk_sketch.linear_model import io

NET = stax.serial(stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((80, 6)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int)


def maps():
    """One of each kind of parameters."""
    key = jax.random.key(0)
    fmap = jns.feature_map(NET, num_features=20)
    yield fmap, fmap.init(key, (6,))
    yield fmap, fmap.init(key, X)  # landmarks
    yield jns.compress(fmap, fmap.init(key, (6,)), X, num_features=5)
    image = stax.serial(stax.Flatten(), NET)
    fmap = jns.feature_map(image, num_features=20, method="ntk_sketch")
    yield fmap, fmap.init(key, (6,))


@pytest.mark.long_cases("0", "1")
@pytest.mark.parametrize("index", range(4))
def test_predictions_are_the_same_bits(index, tmp_path):
    fmap, params = list(maps())[index]
    path = tmp_path / "deep" / "model.npz"
    for fitted in (
        lm.fit(fmap, params, X, LABELS, reg=[1e-3, 1e-2]),
        lm.fit(fmap, params, X, X[:, 1], reg=1e-3),
        lm.fit_gradient(fmap, params, X, X[:, :2], optimizer=optax.sgd(0.1)),
    ):
        lm.save_model(path, fitted)
        again = lm.load_model(path, fmap)
        assert again.predict(X).tobytes() == fitted.predict(X).tobytes()
        assert again.best.num_classes == fitted.best.num_classes
        np.testing.assert_equal(again.best.info, fitted.best.info)
    assert [p.name for p in path.parent.iterdir()] == ["model.npz"]


def test_metadata_are_kept_beside_the_model(tmp_path):
    path = tmp_path / "model.npz"
    fmap = jns.feature_map(NET, num_features=20)
    fitted = lm.fit(fmap, fmap.init(jax.random.key(0), (6,)), X, X[:, 0], reg=1e-3)
    arrays = {"weights": np.arange(3.0), "names": np.array(["a", "bc"])}
    lm.save_model(path, fitted, metadata={"scale": [1, 2.5]}, arrays=arrays)
    again = lm.load_model(path, lambda metadata: {2.5: fmap}[metadata["scale"][1]])
    assert again.metadata == {"scale": [1, 2.5]}
    np.testing.assert_equal(again.arrays, arrays)
    assert again.predict(X).tobytes() == fitted.predict(X).tobytes()
    lm.save_model(path, again)
    np.testing.assert_equal(lm.load_model(path, fmap).arrays, arrays)
    lm.save_model(path, fitted)
    assert lm.load_model(path, fmap).metadata == {} and io.is_model(path)


def test_names_of_columns_are_kept_and_matched(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=list("abcdef"), index=RNG.permutation(80))
    fmap = jns.feature_map(NET, num_features=20)
    params = fmap.init(jax.random.key(0), (6,))
    wanted = lm.fit(fmap, params, X, X[:, 0], reg=1e-3).predict(X)
    lm.save_model(tmp_path / "m.npz", lm.fit(fmap, params, table, X[:, 0], reg=1e-3))
    fitted = lm.load_model(tmp_path / "m.npz", fmap)
    assert fitted.feature_names == tuple("abcdef")
    other = table[list("fbcdea")].assign(city="Rome")
    for x in (X, table, other, other.drop(columns="city").to_records(index=False)):
        np.testing.assert_array_equal(fitted.predict(x), wanted)
    with pytest.raises(ValueError, match=r"x must have the columns .* without 'b'"):
        fitted.predict(table.rename(columns={"b": "B"}))
    with pytest.raises(ValueError, match="with a name twice"):
        fitted.predict(pandas.concat([table, table], axis=1))
    # Batches are matched with the first one.
    batches = [(table[:50], X[:50, 0]), (table[list("fbcdea")][50:], X[50:, 0])]
    streamed = lm.fit(fmap, params, batches, reg=1e-3)
    assert streamed.feature_names == tuple("abcdef")
    np.testing.assert_allclose(streamed.predict(X), wanted, atol=1e-3)


def test_other_files_are_not_models(tmp_path):
    fmap = jns.feature_map(NET, num_features=20)
    sums, plain, text = (tmp_path / name for name in ("s.npz", "p.npy", "t.txt"))
    params = fmap.init(jax.random.key(0), (6,))
    lm.fit(fmap, params, X, LABELS, reg=1e-3, checkpoint=sums)
    np.save(plain, X)
    text.write_text("text")
    for path in (sums, plain, text, tmp_path):
        assert not io.is_model(path)
        with pytest.raises(ValueError, match="is not a model of this library"):
            lm.load_model(path, fmap)


def test_other_files_and_maps_are_refused(tmp_path):
    path = tmp_path / "model.npz"
    fmap = jns.feature_map(NET, num_features=20)
    params = fmap.init(jax.random.key(0), (6,))
    with pytest.raises(FileNotFoundError):
        lm.load_model(path, fmap)
    fitted = lm.fit(fmap, params, X, LABELS, reg=1e-3, checkpoint=path)
    with pytest.raises(ValueError, match="not a model of this library"):
        lm.load_model(path, fmap)
    lm.save_model(path, fitted)
    other = jns.feature_map(NET, num_features=21)
    with pytest.raises(ValueError, match=r"feature map was .*num_features=20"):
        lm.load_model(path, other)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        lm.load_model(path, fmap)
    strange = lm.FittedModel(fmap, jns.KernelFeatures(*X[:2]), fitted.best, fitted.best)
    with pytest.raises(TypeError, match="dictionaries, lists and tuples"):
        lm.save_model(path, strange)
