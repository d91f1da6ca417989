"""Files of models and maps: the same predictions, or one clear error."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import registry
import scipy.sparse
from helpers import x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import _tensor_file, io, stax
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch.preprocessing.inputs import Inputs

NET = stax.serial(stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1))
FMAP = jns.feature_map(NET, num_features=20, method="ntk_random_features")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((80, 6)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int)
KEY = jax.random.key(0)
PARAMS = FMAP.init(KEY, (6,))
PATHS = str(pathlib.Path(jns.__file__).parent.parent), os.environ.get("PYTHONPATH", "")
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, PATHS))}
needs_programs = pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None, reason="needs flatbuffers"
)


def polynomial(x1, x2, get):
    return (1 + x1 @ (x1 if x2 is None else x2).T) ** 2


def fitted(y=LABELS, fmap=FMAP, params=PARAMS, x=X):
    return lm.fit(fmap, params, x, y, reg=1e-3)


def maps():
    """Yield maps and parameters of every kind, by name, with examples."""
    learned = dict(landmarks=jns.landmark_features(polynomial, num_features=12))
    learned["nystrom"] = jns.feature_map(NET, num_features=12, method="nystrom")
    for name, fmap in learned.items():
        yield name, fmap, fmap.init(KEY, (6,), sample=X), X
    own = stax.serial(stax.Dense(1), stax.Elementwise(jnp.sin), stax.Dense(1))
    fmap = jns.feature_map(own, num_features=12, method="ntk_random_features")
    yield "elementwise", fmap, fmap.init(KEY, (6,)), X
    both = dataclasses.replace(fmap, get=("nngp", "ntk"))
    yield "elementwise, both kernels", both, both.init(KEY, (6,)), X
    yield "compressed", *jns.compress(FMAP, PARAMS, X, num_features=5), X
    sparse = jns.with_sparse_inputs(FMAP, sketch_dim=16)
    x = scipy.sparse.random_array((80, 10**6), density=1e-4, dtype=np.float32, rng=RNG)
    yield "sparse", sparse, sparse.init(KEY, (10**6,)), x.tocsr()
    for case in (*registry.FEATURE_MAPS, *registry.CONVOLUTIONS, *registry.LEARNED):
        x = X.reshape(80, *case.shape)
        params = registry.init(case, KEY)
        if case.edges is None and registry.case.is_map(case.record):
            yield case.name, case.record, params, x


def test_a_model_is_read_as_it_was(tmp_path):
    path = tmp_path / "deep" / "model.jns"
    gradient = lm.fit_gradient(FMAP, PARAMS, X, X[:, :2], optimizer=optax.sgd(0.1))
    conjugate = lm.fit_cg(FMAP, PARAMS, X, X[:, 1], reg=1e-3, key=KEY)
    text = fitted(np.array(["low", "high"])[LABELS])
    for model in (fitted(), fitted(X[:, 1]), text, gradient, conjugate):
        io.save(path, model)
        again = io.load(path)
        assert again.fmap == FMAP and again.best.classes == model.best.classes
        assert again.predict(X).tobytes() == model.predict(X).tobytes()
        np.testing.assert_equal(again.best.info, model.best.info)
    assert [p.name for p in path.parent.iterdir()] == ["model.jns"]


def test_a_linear_model_is_read_as_it_was(tmp_path):
    for reg in (1e-3, [1e-3, 1e-2]):
        model = lm.fit_ridge(X, LABELS, reg=reg)
        io.save(tmp_path / f"{'a' * 251}.jns", model)  # the longest name of a file
        again = io.load(tmp_path / f"{'a' * 251}.jns")
        jax.tree.map(np.testing.assert_array_equal, again, model)
        np.testing.assert_array_equal(again.predict_class(X), model.predict_class(X))


@needs_programs
def test_a_map_with_a_function_is_a_program(tmp_path):
    path = tmp_path / "model.jns"
    fmap = jns.landmark_features(polynomial, num_features=12)
    params = fmap.init(KEY, (6,), sample=X)
    model = fitted(fmap=fmap, params=params)
    io.save(path, model)
    again = io.load(path)
    for x in (X, X[:1], X[:0]):
        np.testing.assert_allclose(again.predict(x), model.predict(x), atol=1e-5)
    assert repr(again.fmap) == f"<program of {fmap!r}>"
    assert again.fmap.plan((6,)).num_features == 12
    assert again.fmap.plan((6,)).flops == fmap.plan((6,)).flops
    with pytest.raises(ValueError, match="has the parameters of its file only"):
        again.fmap.init(KEY, (6,), sample=X)
    with pytest.raises(ValueError, match=r"must have shape \(n, 6\), for which the"):
        again.fmap.apply(again.params, X[:, :5])
    like = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), 6), np.float32)
    with pytest.raises(ValueError, match=r"stored program: .* export apply of landm"):
        jax.eval_shape(again.fmap.apply, again.params, like)
    io.save(path, again)
    assert io.load(path).fmap == again.fmap


def test_metadata_are_kept_beside_the_model(tmp_path):
    path = tmp_path / "model.jns"
    arrays = {"scales": np.arange(3.0), "names": np.arange(4, dtype=np.int8)}
    model = fitted()
    io.save(path, dataclasses.replace(model, metadata={"a": [1, 2.5]}, arrays=arrays))
    again = io.load(path)
    assert again.metadata == {"a": [1, 2.5]}
    np.testing.assert_equal(again.arrays, arrays)
    assert again.arrays["names"].dtype == np.int8
    io.save(path, model)
    assert io.load(path).metadata == {} and io.load(path).arrays == {}


def test_names_of_columns_are_kept_and_matched(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=list("abcdef"), index=RNG.permutation(80))
    wanted = fitted(X[:, 0]).predict(X)
    io.save(tmp_path / "model.jns", fitted(X[:, 0], x=table))
    model = io.load(tmp_path / "model.jns")
    assert model.feature_names == tuple("abcdef")
    other = table[list("fbcdea")].assign(city="Rome")
    for x in (X, table, other, other.drop(columns="city").to_records(index=False)):
        np.testing.assert_array_equal(model.predict(x), wanted)
    with pytest.raises(ValueError, match=r"x must have the columns .* without 'b'"):
        model.predict(table.rename(columns={"b": "B"}))
    with pytest.raises(ValueError, match="with a name twice"):
        model.predict(pandas.concat([table, table], axis=1))
    # Batches are matched with the first one.
    batches = [(table[:50], X[:50, 0]), (table[list("fbcdea")][50:], X[50:, 0])]
    streamed = fitted(None, x=batches)
    assert streamed.feature_names == tuple("abcdef")
    np.testing.assert_allclose(streamed.predict(X), wanted, atol=1e-3)


def test_preprocessing_is_a_part_of_the_model(tmp_path):
    path, raw = tmp_path / "model.jns", 1000 + 5 * X
    steps = Inputs((6,), standardize_columns=True).learned(raw)
    plain = fitted(x=steps(raw))
    model = dataclasses.replace(plain, preprocessing=steps)
    io.save(path, model)
    for found in (model, io.load(path)):
        assert found.predict(raw).tobytes() == plain.predict(steps(raw)).tobytes()
    kind, description, arrays = _tensor_file.read(path, "model", "")
    name = "preprocessing/columns"
    columns = arrays.pop(name)
    for other, match in (
        (None, "must have the statistics of its preprocessing"),
        (columns[:, :5], "must have the statistics of its preprocessing"),
        (columns * np.nan, r"must give finite examples of shape \(6,\)"),
    ):
        more = {} if other is None else {name: other}
        _tensor_file.write(path, kind, description, arrays | more)
        with pytest.raises(ValueError, match=match):
            io.load(path)
    with pytest.raises(TypeError, match="preprocessing must be that of the command"):
        io.save(path, dataclasses.replace(plain, preprocessing=np.sqrt))


def test_other_readers_of_the_format_read_the_arrays(tmp_path):
    """The length of a JSON header, the header, and little-endian numbers."""
    io.save(tmp_path / "model.jns", fitted())
    text = (tmp_path / "model.jns").read_bytes()
    start = 8 + int.from_bytes(text[:8], "little")
    header = json.loads(text[8:start])
    assert all(isinstance(v, str) for v in header.pop("__metadata__").values())
    stops = [0]
    for entry in header.values():
        assert entry["data_offsets"][0] == stops[-1]
        stops.append(entry["data_offsets"][1])
    assert start % 8 == 0 and start + stops[-1] == len(text)
    a, b = header["model/weights"]["data_offsets"]
    weights = np.frombuffer(text[start + a : start + b], "<f4").reshape(20, 2)
    np.testing.assert_array_equal(weights, fitted().best.weights)


def test_other_files_are_not_models(tmp_path):
    paths = [tmp_path / name for name in ("s.jns", "p.npz", "q.npy", "t.txt", "f")]
    sums, old, array, text, fifo = paths
    lm.fit(FMAP, PARAMS, X, LABELS, reg=1e-3, checkpoint=sums)
    np.savez(old, header=np.array("{}"), weights=X)
    np.save(array, X)
    text.write_text("text")
    os.mkfifo(fifo)
    for path, match in (
        (sums, "is a checkpoint and not a model; give a file"),
        (old, "is a zip archive, as files of earlier versions are"),
        (array, "is not a model file, or it is damaged"),
        (text, "is not a model file, or it is damaged"),
        (fifo, "is no file with an end, but a folder, pipe or device"),
        (tmp_path, "is no file with an end, but a folder, pipe or device"),
    ):
        with pytest.raises(ValueError, match=match):
            io.load(path)
        assert _tensor_file.kind_of(path) == ("checkpoint" if path == sums else None)
    with pytest.raises(FileNotFoundError):
        io.load(tmp_path / "none")


def test_what_cannot_be_written_is_named(tmp_path):
    path, model = tmp_path / "model.jns", fitted()
    best = model.best
    for thing, error, match in (
        (FMAP, TypeError, r"must be a Model, a FittedModel, .* got NetworkFeatureMap"),
        ((FMAP, {**PARAMS, "ntk": "x"}), TypeError, "got str at params/ntk"),
        (
            (jns.feature_map(NET, num_features=21), PARAMS),
            ValueError,
            "params must come from init of an equal feature map",
        ),
        (
            dataclasses.replace(best, weights=best.weights * np.nan),
            ValueError,
            "weights of the model must be finite",
        ),
        (
            dataclasses.replace(model, best=dataclasses.replace(best, reg=np.ones(2))),
            ValueError,
            "model must have weights",
        ),
        (
            dataclasses.replace(model, arrays={"a": np.array(["text"])}),
            TypeError,
            "metadata/a must hold numbers",
        ),
    ):
        with pytest.raises(error, match=match):
            io.save(path, thing)

    def on_the_host(x1, x2, get):
        return polynomial(np.asarray(x1), None if x2 is None else np.asarray(x2), get)

    fmap = jns.landmark_features(on_the_host, num_features=len(X))
    params = {"landmarks": jnp.asarray(X), "root": jnp.eye(len(X))}
    with pytest.raises(TypeError, match=r"on_the_host.* cannot be exported as a prog"):
        io.save(path, (fmap, params))
    assert not path.exists()


def test_other_features_are_refused(tmp_path):
    """A file whose features this library computes otherwise, and one of float64."""
    path, model = tmp_path / "model.jns", fitted()
    io.save(path, model)
    kind, description, arrays = _tensor_file.read(path, "model", "")
    for change in (0.5, 1.03):
        other = {"fingerprint": arrays["fingerprint"] * np.float32(change)}
        _tensor_file.write(path, kind, description, arrays | other)
        with pytest.raises(ValueError, match="with other features than version"):
            io.load(path)
    # Other signs draw other features: the file is whole, and still not what was saved.
    name = next(name for name in arrays if name.endswith("/sign"))
    _tensor_file.write(path, kind, description, arrays | {name: -arrays[name][::-1]})
    with pytest.raises(ValueError, match="with other features than version"):
        io.load(path)
    rounding = {"fingerprint": arrays["fingerprint"] * np.float32(1.001)}
    _tensor_file.write(path, kind, description, arrays | rounding)
    assert io.load(path).predict(X).tobytes() == model.predict(X).tobytes()
    double = {"model/weights": arrays["model/weights"].astype(np.float64)}
    _tensor_file.write(path, kind, description, arrays | double)
    with pytest.raises(ValueError, match='"jax_enable_x64", True'):
        io.load(path)
    with x64():
        assert io.load(path).best.weights.dtype == np.float64


@pytest.mark.long
def test_a_library_with_other_features_refuses_the_file(tmp_path):
    io.save(tmp_path / "model.jns", fitted())
    code = """
import sys
import jax_ntk_sketch as jns
from jax_ntk_sketch.features import _feature_map
old = _feature_map.first_features
_feature_map.first_features = lambda x: old(x * float(sys.argv[2]))
jns.io.load(sys.argv[1])
"""
    for factor in ("1", "1.05"):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "model.jns", factor],
            env=ENV, capture_output=True, text=True, check=False,
        )  # fmt: skip
        refused = "ValueError" in done.stderr and "with other features" in done.stderr
        assert refused == (factor != "1"), done.stderr[-2000:]


def test_contents_are_checked(tmp_path):
    path = tmp_path / "model.jns"
    io.save(path, fitted())
    kind, description, arrays = _tensor_file.read(path, "model", "")
    weights = arrays["model/weights"]
    for name, array, match in (
        ("model/weights", weights * np.inf, "weights of the model must be finite"),
        ("model/weights", weights[:-1], "one weight for each of 20 features"),
        ("model/weights", weights.T, r"must have weights \(m, t\)"),
        ("model/intercept", weights, r"must have weights \(m, t\)"),
        ("model/reg", np.ones(3), r"must have weights \(m, t\)"),
    ):
        _tensor_file.write(path, kind, description, arrays | {name: array})
        with pytest.raises(ValueError, match=match) as caught:
            io.load(path)
        assert str(path) in str(caught.value)


@pytest.mark.long_cases("DENSE")
@pytest.mark.parametrize("implementation", ["DENSE", "SPARSE"])
def test_maps_of_graphs(implementation, tmp_path):
    """The fingerprint has edges of its own, in the form that the network takes."""
    aggregate = stax.Aggregate(implementation=implementation)
    net = stax.serial(aggregate, stax.Dense(1), stax.Relu(), stax.GlobalSumPool())
    fmap = jns.feature_map(net, num_features=8, method="ntk_random_features")
    params = fmap.init(KEY, (3, 2))
    io.save(tmp_path / "graphs.jns", (fmap, params))
    again, found = io.load(tmp_path / "graphs.jns")
    assert again == fmap
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.long
@needs_programs
def test_another_process_predicts_the_same_bits(tmp_path):
    """It has only this library, and not the functions of this file."""
    names = {}
    for i, (name, fmap, params, x) in enumerate(maps()):
        thing, folder = (fmap, params), tmp_path / str(i)
        exact = fmap.method.batch_dependent
        if exact:
            phi = fmap.apply(params, x)
        elif isinstance(fmap.get, str):
            thing = fitted(X[:, 0], fmap, params, x)
            phi = thing.predict(x)
        else:
            phi = jns.transform(fmap, params, x)
        try:
            io.save(folder / "file.jns", thing)
        except TypeError as error:
            assert exact and "depend on the whole batch" in str(error), (name, error)
            continue
        x = x if scipy.sparse.issparse(x) else scipy.sparse.csr_array(x.reshape(80, -1))
        scipy.sparse.save_npz(folder / "x.npz", x)
        leaves = jax.tree.leaves(phi)
        np.savez(folder / "out.npz", *leaves, shape=np.array(thing_shape(fmap, params)))
        names[str(i)] = name
    assert len(names) > 40
    code = """
import json, pathlib, sys
import numpy as np, scipy.sparse
import jax
import jax_ntk_sketch as jns
wrong = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    thing = jns.io.load(folder / "file.jns")
    with np.load(folder / "out.npz") as file:
        wanted = [file[name] for name in file.files if name != "shape"]
        shape = tuple(file["shape"])
    x = scipy.sparse.load_npz(folder / "x.npz")
    if np.prod(shape) < 100:
        x = x.toarray().reshape(80, *shape)
    if not isinstance(thing, tuple):
        out = thing.predict(x)
    elif thing[0].method.batch_dependent:
        out = thing[0].apply(thing[1], x)
    else:
        out = jns.transform(*thing, x)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(out)]
    if [a.tobytes() for a in leaves] != [a.tobytes() for a in wanted]:
        wrong[folder.name] = [float(abs(a - b).max()) for a, b in zip(leaves, wanted)]
print(json.dumps(wrong))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env=ENV, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    wrong = json.loads(done.stdout)
    assert not wrong, {names[name]: value for name, value in wrong.items()}


def thing_shape(fmap, params):
    from jax_ntk_sketch.io._fingerprint import input_shape

    return input_shape(fmap, params)


def mutated_bytes(text, rng):
    """Return a file with a few bytes changed, inserted or cut out."""
    place, size = int(rng.integers(len(text))), int(rng.integers(1, 40))
    kind = rng.integers(5)
    noise = rng.bytes(size)
    if kind == 0:
        return text[:place]
    if kind == 1:
        return text[:place] + noise + text[place:]
    if kind == 2:
        return text[:place] + text[place + size :]
    if kind == 3:
        return text[:place] + noise + text[place + size :]
    flipped = bytes([text[place] ^ 1 << rng.integers(8)])
    return text[:place] + flipped + text[place + 1 :]


def mutated_json(data):
    """Yield copies of JSON in which one entry is missing or is another value."""
    strange = None, -1, 10**12, 0.5, "x", [], {}, [[[]]], True
    if isinstance(data, dict):
        for key, value in data.items():
            yield {k: v for k, v in data.items() if k != key}
            for other in strange:
                yield data | {key: other}
            for other in mutated_json(value):
                yield data | {key: other}
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield data[:i] + data[i + 1 :]
            for other in mutated_json(value):
                yield [*data[:i], other, *data[i + 1 :]]


def refused(path, wanted):
    """Return whether a file is refused in one line; else it predicts as before."""
    try:
        thing = io.load(path)
    except ValueError as error:
        assert "\n" not in str(error) and str(path) in str(error), error
        return True
    if isinstance(thing, lm.FittedModel):
        assert thing.predict(X).tobytes() == wanted
    return False


@pytest.mark.long
def test_damaged_files_are_refused_in_one_line(tmp_path):
    path, model, rng = tmp_path / "model.jns", fitted(), np.random.default_rng(5)
    io.save(path, model)
    text, wanted = path.read_bytes(), model.predict(X).tobytes()
    for _ in range(3000):
        other = mutated_bytes(text, rng)
        path.write_bytes(other)
        assert refused(path, wanted) or other == text


@pytest.mark.long
def test_strange_descriptions_are_refused_in_one_line(tmp_path):
    """Whole files, whose digest is right, with what `save` never writes."""
    path, model, rng = tmp_path / "model.jns", fitted(), np.random.default_rng(6)
    io.save(path, model)
    wanted = model.predict(X).tobytes()
    kind, description, arrays = _tensor_file.read(path, "model", "")
    changed = [*mutated_json(description)]
    assert len(changed) > 500
    for i in rng.permutation(len(changed))[:300]:
        _tensor_file.write(path, kind, changed[i], arrays)
        refused(path, wanted)
    for name in arrays:
        others = {k: v for k, v in arrays.items() if k != name}
        strange = np.zeros(0, np.float32), np.ones((3, 1), np.int8), arrays[name][None]
        for array in (None, *strange):
            more = {} if array is None else {name: array}
            _tensor_file.write(path, kind, description, others | more)
            assert refused(path, wanted) or name.startswith("model/info"), name
