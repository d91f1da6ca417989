"""`linear_model.fit`: streams, folds, rows that are not finite, and being killed."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

import jax_ntk_sketch as jns
from jax_ntk_sketch import _tensor_file, stax
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch._plan import Plan
from jax_ntk_sketch.linear_model import checkpoint

NET = stax.serial(stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1))
FMAP = jns.feature_map(NET, num_features=40)
PARAMS = FMAP.init(jax.random.key(0), (6,))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((230, 6)).astype(np.float32)
Y = (np.sin(X[:, :2]) + 0.1 * RNG.standard_normal((230, 2))).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
OPTIONS = dict(reg=1e-3, batch_size=64)
NETWORK = "stax.serial(stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1))"


def weights(fitted):
    return np.asarray(fitted.best.weights)


def batches(sizes=(100, 7, 123), y=Y, weight=None):
    start, out = 0, []
    for size in sizes:
        rows = slice(start, start + size)
        out.append(
            (X[rows], y[rows]) if weight is None else (X[rows], y[rows], weight[rows])
        )
        start += size
    return out


@pytest.mark.parametrize("folds", [0, 3])
def test_equals_ridge_on_all_features(folds):
    phi = jns.transform(FMAP, PARAMS, X)
    regs = [1e-4, 1e-2, 1.0]
    fitted = lm.fit(FMAP, PARAMS, X, Y, reg=regs, batch_size=64, folds=folds)
    whole = lm.fit_ridge(phi, Y, reg=regs)
    np.testing.assert_allclose(fitted.all_models.weights, whole.weights, atol=2e-5)
    assert (fitted.cross_validation is None) == (folds == 0)
    assert float(fitted.best.reg) in regs
    best = fitted.cross_validation.best if folds else float(whole.best().reg)
    assert float(fitted.best.reg) == best
    np.testing.assert_allclose(
        fitted.predict(X[:9]), whole.predict(phi[:9])[regs.index(best)], atol=1e-4
    )


def test_folds_are_rows_of_each_batch():
    phi = jns.transform(FMAP, PARAMS, X)
    fitted = lm.fit(FMAP, PARAMS, X, Y, reg=[0.1], batch_size=64, folds=4)
    fold = np.arange(230) % 64 % 4
    for i in range(4):
        model = lm.fit_ridge(phi[fold != i], Y[fold != i], reg=0.1)
        error = np.mean((np.asarray(model.predict(phi[fold == i])) - Y[fold == i]) ** 2)
        assert fitted.cross_validation.errors[i, 0] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("kind", ["arrays", "memory map", "batches", "weights"])
def test_sources_agree(kind, tmp_path):
    weight = RNG.integers(0, 3, 230).astype(np.float32)
    if kind == "weights":
        one = lm.fit(FMAP, PARAMS, X, Y, sample_weight=weight, **OPTIONS)
        copies = np.repeat(np.arange(230), weight.astype(int))
        two = lm.fit(FMAP, PARAMS, X[copies], Y[copies], **OPTIONS)
        streamed = lm.fit(FMAP, PARAMS, batches(weight=weight), **OPTIONS)
        np.testing.assert_allclose(weights(one), weights(streamed), atol=2e-5)
    else:
        one = lm.fit(FMAP, PARAMS, X, Y, **OPTIONS)
    if kind == "arrays":
        two = lm.fit(FMAP, PARAMS, list(X), Y.tolist(), **OPTIONS)
    if kind == "memory map":
        np.save(tmp_path / "x.npy", X)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        two = lm.fit(FMAP, PARAMS, mapped, Y, **OPTIONS)
    if kind == "batches":
        two = lm.fit(FMAP, PARAMS, iter(batches()), **OPTIONS)
    np.testing.assert_allclose(weights(one), weights(two), atol=2e-5)


@pytest.mark.parametrize("scale", [1 / 230, 1e6])
def test_the_scale_of_weights_does_not_matter(scale):
    weight = RNG.integers(0, 3, 230).astype(np.float32)
    key, sgd = jax.random.key(0), optax.sgd(0.1)
    for run, options in (
        (lm.fit, dict(OPTIONS, reg=[1e-4, 1e-2, 1.0])),
        (lm.fit, dict(OPTIONS, reg=[1e-4, 1e-2, 1.0], folds=3)),
        (lm.fit_cg, dict(OPTIONS, key=key, tolerance=1e-6)),
        (lm.fit_gradient, dict(optimizer=sgd, batch_size=64, num_epochs=2)),
    ):
        one, two = (
            run(FMAP, PARAMS, X, Y, sample_weight=w * weight, **options)
            for w in (1, scale)
        )
        assert one.best.reg == two.best.reg
        np.testing.assert_allclose(weights(two), weights(one), atol=1e-4)


def hugging_face():
    dataset = pytest.importorskip("datasets").Dataset
    return dataset.from_dict({"x": X, "y": Y}).with_format("numpy")


def grain():
    module = pytest.importorskip("grain")
    examples = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]
    return module.MapDataset.source(examples).batch(64)


def torch():
    module = pytest.importorskip("torch")
    pairs = module.utils.data.TensorDataset(module.tensor(X), module.tensor(Y))
    return module.utils.data.DataLoader(pairs, batch_size=64)


def dictionaries():
    return lambda: ({"x": x, "y": y} for x, y in batches((64, 64, 64, 38)))


@pytest.mark.parametrize("make", [dictionaries, hugging_face, grain, torch])
def test_loaders_give_the_same_bits(make, tmp_path):
    """Also after a pass that was broken off."""
    wanted = weights(lm.fit(FMAP, PARAMS, X, Y, **OPTIONS))
    source = make()
    np.testing.assert_array_equal(
        weights(lm.fit(FMAP, PARAMS, source, **OPTIONS)), wanted
    )
    options = dict(OPTIONS, checkpoint=tmp_path / "sums", checkpoint_seconds=0)

    def broken():
        opened = source() if callable(source) else source
        opened = opened.iter(64) if hasattr(opened, "iter") else opened
        yield from itertools.islice(opened, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lm.fit(FMAP, PARAMS, broken, **options)
    resumed = lm.fit(FMAP, PARAMS, source, **options)
    np.testing.assert_array_equal(weights(resumed), wanted)


def test_labels_and_flat_targets():
    fitted = lm.fit(FMAP, PARAMS, X, LABELS, **OPTIONS)
    whole = lm.fit_ridge(jns.transform(FMAP, PARAMS, X), LABELS, reg=1e-3)
    np.testing.assert_allclose(weights(fitted), whole.weights, atol=2e-5)
    assert np.mean(fitted.predict_class(X) == LABELS) > 0.8
    streamed = lm.fit(FMAP, PARAMS, batches(y=LABELS), num_classes=3, **OPTIONS)
    np.testing.assert_allclose(weights(fitted), weights(streamed), atol=2e-5)
    flat = lm.fit(FMAP, PARAMS, X, Y[:, 0], **OPTIONS)
    assert flat.predict(X).shape == (230,)


@pytest.mark.parametrize("place", ["x", "y"])
def test_rows_that_are_not_finite_are_named_or_left_out(place):
    x, y = X.copy(), Y.copy()
    (x if place == "x" else y)[[3, 70, 200], 1] = (np.nan, np.inf, np.nan)
    with pytest.raises(
        ValueError,
        match=rf"fit: {place} must be finite, got NaN or infinity in example 3 ",
    ):
        lm.fit(FMAP, PARAMS, x, y, **OPTIONS)
    with pytest.warns(RuntimeWarning, match="left out 3 examples that are not"):
        fitted = lm.fit(FMAP, PARAMS, x, y, nonfinite="skip", **OPTIONS)
    kept = np.setdiff1d(np.arange(230), [3, 70, 200])
    clean = lm.fit(FMAP, PARAMS, X[kept], Y[kept], **OPTIONS)
    assert fitted.num_skipped == 3 and float(fitted.best.info.count) == 227
    np.testing.assert_allclose(weights(fitted), weights(clean), atol=2e-5)


def test_predictions_choose_their_batch_once(monkeypatch):
    calls, choose = [], Plan.choose_batch_size
    monkeypatch.setattr(
        Plan, "choose_batch_size", lambda *a: calls.append(a) or choose(*a)
    )
    fitted = lm.fit(FMAP, PARAMS, X, Y, **OPTIONS)
    x = np.concatenate([X] * 12)
    found = fitted.predict(x)
    assert len(calls) == 1
    np.testing.assert_array_equal(found[-230:], fitted.predict(x[-230:]))


def test_a_feature_that_overflows_is_found_too():
    x = X.copy()
    x[5] = 1e38
    with pytest.raises(
        ValueError, match=r"the features of x must be finite, .* in example 5 "
    ):
        lm.fit(FMAP, PARAMS, x, Y, **OPTIONS)


class Dying:
    """Batches that stop as a killed process does, once."""

    def __init__(self, after):
        self.after = after

    def __iter__(self):
        for i, batch in enumerate(batches((64, 64, 64, 38))):
            if i == self.after:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("folds", [0, 2])
def test_resumes_to_the_same_bits(folds, tmp_path):
    path = tmp_path / "deep" / "sums.jns"
    options = dict(OPTIONS, folds=folds, checkpoint=path, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        lm.fit(FMAP, PARAMS, Dying(2), **options)
    assert checkpoint.load(path)[1]["batches"] == 2
    resumed = lm.fit(FMAP, PARAMS, Dying(None), **options)
    whole = lm.fit(FMAP, PARAMS, Dying(None), **dict(options, checkpoint=None))
    assert weights(resumed).tobytes() == weights(whole).tobytes()
    # Once more: nothing is left to do, and the result is the same.
    again = lm.fit(FMAP, PARAMS, Dying(None), **options)
    assert weights(again).tobytes() == weights(whole).tobytes()


# Each batch takes 5 ms at least, so that no machine is through before it is killed.
CHILD = f"""
import sys, time, jax, numpy as np
import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm, stax
from jax_ntk_sketch.linear_model import _pass

def slowly(self, batch, add=_pass.Pass.add):
    time.sleep(0.005)
    add(self, batch)

_pass.Pass.add = slowly
fmap = jns.feature_map({NETWORK}, num_features=64)
params = fmap.init(jax.random.key(0), (6,))
rng = np.random.default_rng(0)
x = rng.standard_normal((60_000, 6)).astype(np.float32)
y = np.sin(x[:, 0])
fitted = lm.fit(fmap, params, x, y, reg=1e-3, batch_size=64, checkpoint=sys.argv[1],
                checkpoint_seconds=0.05)
np.save(sys.argv[2], np.asarray(fitted.best.weights))
"""


@pytest.mark.long
def test_killed_ten_times_over_gives_the_same_bits(tmp_path):
    """`kill -9` at random moments, writing of the checkpoint included."""
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(jns.__file__).parent.parent)}
    command = [sys.executable, "-c", CHILD]
    kept = tmp_path / "killed.jns"

    def written():
        return kept.stat().st_mtime_ns if kept.exists() else 0

    def run(name, stop):
        """Runs to the end, or until `stop` seconds after its first checkpoint."""
        before = written()
        child = subprocess.Popen(
            [*command, str(tmp_path / f"{name}.jns"), str(tmp_path / f"{name}.npy")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
        if stop is not None:
            while child.poll() is None and written() == before:
                time.sleep(0.001)
            time.sleep(stop)
            child.send_signal(signal.SIGKILL)
        _, errors = child.communicate()
        return child.returncode, errors.decode()

    code, errors = run("whole", None)
    assert code == 0, errors
    kills, done = 0, [0]
    for moment in np.random.default_rng(1).uniform(0, 0.15, 10):
        code, errors = run("killed", moment)
        assert code in (0, -signal.SIGKILL), errors
        kills += code != 0
        done.append(checkpoint.load(kept)[1]["batches"])
    assert kills > 5 and done == sorted(done), (kills, done)
    code, errors = run("killed", None)
    assert code == 0, errors
    whole, killed = (np.load(tmp_path / f"{n}.npy") for n in ("whole", "killed"))
    assert whole.tobytes() == killed.tobytes()


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    path = tmp_path / "sums.jns"
    lm.fit(FMAP, PARAMS, X, Y, checkpoint=path, **OPTIONS)
    other = FMAP.init(jax.random.key(1), (6,))
    late, swapped = Y.copy(), X.copy()
    late[200] *= -7
    swapped[[130, 229]] = X[[229, 130]]
    for change, what in (
        (dict(params=other), "params was"),
        (dict(batch_size=32), "batch_size was 64 there and is 32"),
        (dict(folds=2), "folds was"),
        (dict(x=X + 1), "first examples was"),
        (dict(y=Y + 1), "first examples was"),
        (dict(y=late), "examples was"),
        (dict(x=swapped), "examples was"),
        (dict(sample_weight=np.arange(230)), "first examples was"),
        (dict(x=X[:200], y=Y[:200]), "number of examples was 230"),
    ):
        call = dict(fmap=FMAP, params=PARAMS, x=X, y=Y, checkpoint=path, **OPTIONS)
        with pytest.raises(ValueError, match=f"another run: {what}"):
            lm.fit(**{**call, **change})
    # Another penalty is no other run: the sums are the same.
    again = lm.fit(FMAP, PARAMS, X, Y, checkpoint=path, reg=1.0, batch_size=64)
    direct = lm.fit(FMAP, PARAMS, X, Y, reg=1.0, batch_size=64)
    assert weights(again).tobytes() == weights(direct).tobytes()
    # Other examples after those that were summed are no other run either.
    with pytest.raises(KeyboardInterrupt):
        lm.fit(
            FMAP, PARAMS, Dying(2), checkpoint=tmp_path / "part.jns",
            checkpoint_seconds=0, **OPTIONS,
        )  # fmt: skip
    mended = lm.fit(
        FMAP, PARAMS, batches((64, 64, 64, 38), late),
        checkpoint=tmp_path / "part.jns", **OPTIONS,
    )  # fmt: skip
    whole = lm.fit(FMAP, PARAMS, X, late, **OPTIONS)
    assert weights(mended).tobytes() == weights(whole).tobytes()


def test_checkpoints_of_another_function_are_refused(tmp_path):
    """Two functions of one name have maps of one `repr`, and other features."""

    def fmap_of(scale):
        def kernel(x1, x2, get):
            return scale * x1 @ (x1 if x2 is None else x2).T

        return jns.landmark_features(kernel, num_features=6)

    one, two, path = fmap_of(1.0), fmap_of(1.1), tmp_path / "sums.jns"
    assert repr(one) == repr(two)
    params = one.init(jax.random.key(0), (6,), sample=X[:6])
    lm.fit(one, params, X, Y, checkpoint=path, **OPTIONS)
    with pytest.raises(ValueError, match="the features of its first examples were"):
        lm.fit(two, params, X, Y, checkpoint=path, **OPTIONS)


def test_one_fit_at_a_time_uses_a_checkpoint(tmp_path):
    path = tmp_path / "sums.jns"

    def stream():
        for i, batch in enumerate(batches()):
            if i == 1:
                with pytest.raises(ValueError, match="must have one user at a time"):
                    lm.fit(FMAP, PARAMS, X, Y, checkpoint=path, **OPTIONS)
            yield batch

    class Stream:
        def __iter__(self):
            return stream()

    lm.fit(FMAP, PARAMS, Stream(), checkpoint=path, **OPTIONS)
    assert [*tmp_path.iterdir()] == [path]
    lm.fit(FMAP, PARAMS, Stream(), checkpoint=path, **OPTIONS)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "sums.jns"
    lm.fit(FMAP, PARAMS, X, Y, checkpoint=path, **OPTIONS)
    whole, (arrays, description) = path.read_bytes(), checkpoint.load(path)

    def refused(match):
        with pytest.raises(ValueError, match=match):
            lm.fit(FMAP, PARAMS, X, Y, checkpoint=path, **OPTIONS)

    for torn in (whole[: len(whole) // 2], b"", b"something else"):
        path.write_bytes(torn)
        refused("is not a checkpoint, or it is damaged")
    np.savez(path.open("wb"), a=np.ones(3))
    refused("a zip archive, as files of earlier versions are")
    jns.io.save(path, (FMAP, PARAMS))
    refused("is a feature map and not a checkpoint")
    # Contents that no fit writes, in files that are whole.
    for change, match in (
        (dict(batches=10**9), "batches was 1000000000 there and is 4 here"),
        (dict(batches=3), "examples was"),
        (dict(batches="many"), "batches was 'many'"),
        (dict(skipped=None), "is damaged"),
        (dict(params=None), "another run: params was None"),
    ):
        checkpoint.save(path, arrays, description | change)
        refused(match)
    total = arrays["total0"]
    for name, array, match in (
        ("total0", total * np.nan, "must have 1 finite sums of shape"),
        ("total0", total[:-1], "must have 1 finite sums of shape"),
        ("carry0", total.astype(np.float64), "must have 1 finite sums of shape"),
        ("first sums", np.zeros(3), "the features of its first examples were"),
    ):
        checkpoint.save(path, arrays | {name: array}, description)
        refused(match)
    checkpoint.save(path, {"total0": total}, description)
    refused("the features of its first examples were")
    monkeypatch.setattr(_tensor_file, "_VERSION", "3")
    checkpoint.save(path, {}, {})
    monkeypatch.undo()
    refused("version 3 of the format")
    path.unlink()
    os.mkfifo(path)
    refused("it is no file with an end, but a folder, pipe or device")


def test_a_full_disk_leaves_the_old_file_and_the_fit_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "sums.jns"
    lm.fit(FMAP, PARAMS, X, Y, checkpoint=path, **OPTIONS)
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        fitted = lm.fit(FMAP, PARAMS, X, Y, checkpoint=path, **OPTIONS)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert np.isfinite(weights(fitted)).all()


def test_progress_and_one_compilation(capsys, caplog):
    # Folds of its own, so that no other test's compilation serves.
    options = dict(reg=0.5, batch_size=48, folds=7)
    with jax.log_compiles():
        lm.fit(FMAP, PARAMS, X, Y[:, 0], progress=True, **options)
    assert "sums, batches of 48" in capsys.readouterr().err
    compiled = [
        x for x in caplog.messages if "Finished XLA compilation of jit(_add)" in x
    ]
    assert len(compiled) == 1


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (dict(y=Y[:-1]), ValueError, "230 examples and 229 targets"),
        (dict(y=None), ValueError, "y must be given"),
        (dict(reg=-1.0), ValueError, "fit: reg must be finite and >= 0"),
        (dict(reg=[]), ValueError, "fit: reg must be"),
        (dict(folds=1), ValueError, "folds must be 0 or at least 2"),
        (dict(folds=2.5), TypeError, "folds must be an integer"),
        (dict(batch_size=0), ValueError, "batch_size must be an integer >= 1"),
        (
            dict(nonfinite="drop"),
            ValueError,
            "nonfinite must be one of 'raise', 'skip'",
        ),
        (dict(sample_weight=np.ones(3)), ValueError, "sample_weight must have shape"),
        (dict(sample_weight=-np.ones(230)), ValueError, "weights must be finite"),
        (dict(y=LABELS, num_classes=2), ValueError, "labels from 0 to 1, got 2"),
        (dict(y=Y, num_classes=2), TypeError, "y must be labels of shape"),
        (dict(x=X[:0], y=Y[:0]), ValueError, "must hold examples"),
        (dict(x=iter(batches()), y=None, checkpoint="c.jns"), ValueError, "iterator"),
        (dict(x=batches(y=LABELS), y=None), ValueError, "num_classes must be given"),
        (dict(x=[X, Y], y=None), TypeError, r"batch 0 must be \(x, y\)"),
        (dict(x=[(X, Y[:5])], y=None), ValueError, "230 examples and 5 targets"),
        (
            dict(x=[(X[:9], Y[:9]), (X[:9, :5], Y[:9])], y=None),
            ValueError,
            r"examples 9 to 17: x must have shape \(6,\) .* got shape \(5,\)",
        ),
        (
            dict(x=[(X[:9], Y[:9]), (X[:9], Y[:9, :1])], y=None),
            ValueError,
            r"y must have shape \(2,\) and numbers, .* got shape \(1,\)",
        ),
        (
            dict(x=batches(), y=None, sample_weight=np.ones(230)),
            ValueError,
            "batches carry their own",
        ),
        (
            dict(fmap=jns.feature_map(NET, num_features=40, get=("nngp", "ntk"))),
            ValueError,
            "one kernel",
        ),
    ],
)
def test_mistakes_are_told(change, error, match):
    call = dict(fmap=FMAP, params=PARAMS, x=X, y=Y, **OPTIONS)
    with pytest.raises(error, match=match):
        lm.fit(**{**call, **change})
