"""`transform`: the rows of `apply`, batch by batch, on the host."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import draw, x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model, recipes, stax
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap

# The name of the module is that of the function in the package.
module = importlib.import_module("jax_ntk_sketch.features._transform")
transform = module.transform

NET = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1))
FMAP = jns.feature_map(NET, num_features=16, method="ntk_random_features")
PARAMS = draw(FMAP, (5,))
X = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)
PHI = np.asarray(jax.jit(FMAP.apply)(PARAMS, X))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 23])
def test_equals_apply(n):
    """Whole batches, a last one that is filled up, less than one."""
    phi = transform(FMAP, PARAMS, X[:n], batch_size=8)
    assert type(phi) is np.ndarray and phi.shape == (n, 16)
    assert phi.dtype == np.float32
    close(phi, PHI[:n])


def test_no_examples():
    phi = transform(FMAP, PARAMS, X[:0])
    assert phi.shape == (0, 16) and phi.dtype == np.float32


@pytest.mark.long
def test_images_and_the_chosen_batch():
    fmap = jns.feature_map(recipes.cntk(2), num_features=32)
    x = np.random.default_rng(1).normal(size=(6, 4, 4, 2)).astype(np.float32)
    params = fmap.init(jax.random.key(0), x)
    close(transform(fmap, params, x), fmap.apply(params, x))
    plan = fmap.plan((4, 4, 2))
    for size in (1, 2, 4):
        most = plan.with_sizes(size, size).work_bytes()
        assert plan.choose_batch_size(100, most) == size
        assert plan.choose_batch_size(100, most + 1) == size
    assert plan.choose_batch_size(5, 2**40) == 8
    largest = 128 if jax.default_backend() == "cpu" else 1024
    assert plan.choose_batch_size(10**6, 2**60) == largest
    one = plan.work_bytes()
    with pytest.raises(ValueError, match=f"at least {one}, .* got {one - 1}"):
        transform(fmap, params, x, max_bytes=one - 1)
    # One example may take more than the default limit: then it is one at a time.
    assert dataclasses.replace(plan, input_elements=2**30).choose_batch_size(9) == 1


def test_both_kernels():
    fmap = jns.feature_map(NET, num_features=16, get=("nngp", "ntk"))
    params = fmap.init(jax.random.key(0), (5,))
    expected = fmap.apply(params, X)
    phi = transform(fmap, params, X, batch_size=10)
    assert isinstance(phi, jns.KernelFeatures)
    close(phi.nngp, expected.nngp)
    close(phi.ntk, expected.ntk)
    out = (np.zeros((23, 16), np.float32), np.zeros((23, 16), np.float32))
    again = transform(fmap, params, X, batch_size=10, out=out)
    assert again.nngp is out[0] and again.ntk is out[1]
    np.testing.assert_array_equal(out[1], phi.ntk)
    with pytest.raises(TypeError, match="out must be a pair of arrays"):
        transform(fmap, params, X, out=out[0])


class Slices:
    """A length and slices, and the longest slice that was asked for."""

    def __init__(self, x):
        self.x, self.longest = x, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        part = self.x[rows]
        self.longest = max(self.longest, len(part))
        return part


def test_memory_maps_lists_and_anything_with_slices(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    x[:] = X
    out = np.memmap(tmp_path / "phi", np.float32, "w+", shape=PHI.shape)
    assert transform(FMAP, PARAMS, x, batch_size=8, out=out) is out
    out.flush()
    close(np.fromfile(tmp_path / "phi", np.float32).reshape(PHI.shape), PHI)
    close(transform(FMAP, PARAMS, list(X), batch_size=8), PHI)
    slices = Slices(X)
    close(transform(FMAP, PARAMS, slices, batch_size=8), PHI)
    assert slices.longest == 8


def test_integers_and_other_floats():
    pixels = np.random.default_rng(2).integers(0, 256, (23, 5), np.uint8)
    expected = FMAP.apply(PARAMS, pixels.astype(np.float32))
    close(transform(FMAP, PARAMS, pixels, batch_size=8), expected)
    phi = transform(FMAP, PARAMS, X.astype(np.float64))
    assert phi.dtype == np.float32
    close(phi, PHI)
    half = transform(FMAP, PARAMS, X.astype(np.float16))
    assert half.dtype == np.float16
    with x64():
        wide = X.astype(np.float64)
        phi = transform(FMAP, PARAMS, wide, batch_size=8)
        assert phi.dtype == np.float64
        np.testing.assert_allclose(phi, FMAP.apply(PARAMS, wide), rtol=1e-12)


def test_compiles_once():
    calls = []

    class Counting(NetworkFeatureMap):
        def apply(self, params, x, **options):
            calls.append(x.shape)
            return super().apply(params, x, **options)

    fmap = Counting(FMAP.net, FMAP.num_features, FMAP.get, FMAP.method)
    for n in (23, 4, 16):
        close(transform(fmap, PARAMS, X[:n], batch_size=8), PHI[:n])
    # Of an equal map, too.
    fmap = Counting(FMAP.net, FMAP.num_features, FMAP.get, FMAP.method)
    transform(fmap, PARAMS, X, batch_size=8)
    assert calls == [(8, 5)]


def test_predictions_of_few_rows_compile_few_sizes(monkeypatch, caplog):
    fitted = linear_model.fit(FMAP, PARAMS, X, X[:, 0], reg=1e-3)
    with jax.log_compiles():
        found = {n: fitted.predict(X[:n]) for n in range(1, 9)}
    compiled = [line for line in caplog.messages if "Finished XLA" in line]
    # Features and predictions, at 1, 2, 4 and 8 rows.
    assert len(compiled) <= 8
    for n in found:
        close(found[n], found[8][:n])
    # A plan takes longer than one row.
    monkeypatch.setattr(NetworkFeatureMap, "plan", lambda *_, **__: pytest.fail())
    np.testing.assert_array_equal(fitted.predict(X[:8]), found[8])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_is_not_finite_is_named_and_the_rest_kept(value):
    x = X.astype(np.float64)
    x[18, 3] = value
    out = np.full((23, 16), -7.0, np.float32)
    with pytest.raises(ValueError, match=r"infinity in example 18 .* first at \(3,\)"):
        transform(FMAP, PARAMS, x, batch_size=8, out=out)
    close(out[:16], PHI[:16])
    assert (out[16:] == -7).all()


def test_a_source_that_fails_keeps_the_rest():
    class Broken(Slices):
        def __getitem__(self, rows):
            if rows.start:
                raise OSError("disk gone")
            return super().__getitem__(rows)

    out = np.full((23, 16), -7.0, np.float32)
    with pytest.raises(OSError, match="disk gone"):
        transform(FMAP, PARAMS, Broken(X), batch_size=8, out=out)
    close(out[:8], PHI[:8])
    assert (out[8:] == -7).all()


@pytest.mark.parametrize(
    ("x", "options", "error", "match"),
    [
        (X, {"batch_size": 0}, ValueError, "batch_size must be an integer >= 1"),
        (X, {"batch_size": 2.5}, TypeError, "batch_size must be an integer"),
        (X, {"max_bytes": -1}, ValueError, "max_bytes must be an integer >= 1"),
        (X[0], {}, ValueError, r"x must hold n examples.*shape \(1,\)"),
        (X[:, :4], {}, ValueError, r"x must have shape \(n, 5\), for which"),
        (
            X.astype(np.complex64),
            {},
            TypeError,
            "x must hold real numbers, got dtype complex64",
        ),
        (X.astype(str), {}, TypeError, "<U"),
        ([*X[:9], *X[9:, :4]], {}, ValueError, r"inhomogeneous|examples 8 to 15"),
        (
            [*X[:8], *X[8:].astype(int)],
            {},
            ValueError,
            r"examples 8 to 15: x must have .* float32, .* got .* and int32",
        ),
        (X, {"out": np.zeros((22, 16), np.float32)}, ValueError, r"got \(22, 16\) and"),
        (X, {"out": np.zeros((23, 16))}, ValueError, "dtype float32, got .* float64"),
        (X, {"out": jnp.zeros((23, 16))}, TypeError, "out must be a NumPy array"),
        (X, {"out": PHI}, ValueError, "out must be writable, got a read-only"),
    ],
)
def test_mistakes(x, options, error, match):
    PHI.flags.writeable = False
    with pytest.raises(error, match=match):
        if "max_bytes" not in options:
            options = {"batch_size": 8, **options}
        transform(FMAP, PARAMS, x, **options)


def test_maps_that_cannot():
    with pytest.raises(TypeError, match="fmap must be a feature map"):
        transform(NET, PARAMS, X)
    exact = jns.feature_map(NET, num_features=16, method="exact")
    with pytest.raises(ValueError, match=r"in one batch; use fmap\.apply"):
        transform(exact, PARAMS, X)


def test_progress(capsys):
    transform(FMAP, PARAMS, X, batch_size=8, progress=True)
    shown = capsys.readouterr()
    assert "features, batches of 8" in shown.err and "3" in shown.err
    assert not shown.out
    transform(FMAP, PARAMS, X, batch_size=8, progress=False)
    transform(FMAP, PARAMS, X, batch_size=8)  # no terminal here
    assert capsys.readouterr().err == ""


def test_one_batch_is_computed_at_a_time(monkeypatch):
    """The next starts when the one before is done; the host works beside it."""
    events = []

    def apply(fmap, max_bytes, params, x, inputs):
        events.append("start")
        return jnp.zeros((len(x), 16))

    apply.eval_shape = lambda *args: jax.ShapeDtypeStruct((8, 16), jnp.float32)
    wait, write = jax.block_until_ready, module._write

    def waited(tree):
        events.append("done")
        return wait(tree)

    def written(*args):
        events.append("write")
        write(*args)

    monkeypatch.setattr(module, "_apply", apply)
    monkeypatch.setattr(module, "_write", written)
    monkeypatch.setattr(jax, "block_until_ready", waited)
    transform(FMAP, PARAMS, X, batch_size=8)
    step = ["done", "start"]
    assert events == [*step, *step, "write", *step, "write", "write"]
