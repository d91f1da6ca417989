"""`fit` and `predict` on the command line: end to end, killed, and with mistakes."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import jax_ntk_sketch as jns
from jax_ntk_sketch import data
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch.cli import fit, fit_cost, inputs, main, memory, scoring
from jax_ntk_sketch.cli.arguments import UsageError

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ["--features", "64", "--no-progress"]


def run(*argv, code=0):
    assert main([str(word) for word in argv]) == code


def fitted(folder, *argv, code=0):
    """Fits and returns the path of the model and the report as a dictionary."""
    model, report = folder / "model.npz", folder / "report.json"
    run("fit", *SMALL, "--save", model, "--json", report, *argv, code=code)
    return model, json.loads(report.read_text())


def weights(path):
    with np.load(path) as file:
        return file["weights"].tobytes() + file["intercept"].tobytes()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """scikit-learn's digits as files of every kind, with a test part of 300 rows."""
    folder = tmp_path_factory.mktemp("digits")
    whole = data.load_digits()
    x = np.concatenate([whole.x_train, whole.x_test]).reshape(-1, 64) * 16
    y = np.concatenate([whole.y_train, whole.y_test])
    x, y = x[:1200].astype(np.float32), y[:1200]
    parts = dict(x_train=x[:900], y_train=y[:900], x_test=x[900:], y_test=y[900:])
    np.savez(folder / "parts.npz", **parts)
    np.savez(folder / "whole.npz", x=x, y=y)
    for name, array in parts.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "bytes.npy", (x[:900] * 15).astype(np.uint8).reshape(-1, 8, 8))
    rows = "\n".join(",".join(map(str, r)) for r in np.column_stack([x, y]).astype(int))
    names = ",".join([*(f"p{i}" for i in range(64)), "digit"])
    (folder / "table.csv").write_text(f"{names}\n{rows}\n")
    rows = "\n".join(",".join(map(str, r)) for r in x.astype(int))
    (folder / "no_target.csv").write_text(f"{names[:-6]}\n{rows}\n")
    return folder


# End to end


def test_fit_and_predict_as_a_user_does(digits, tmp_path):
    """In processes of their own, from a table."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jax_ntk_sketch"]
    argv = ["fit", "--data", "table.csv", "--target", "digit", "--depth", "1"]
    argv += ["--features", "256", "--save", str(tmp_path / "m.npz")]
    done = subprocess.run(
        command + argv, cwd=digits, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "chosen by generalised cross-validation" in done.stdout
    assert "Test: " in done.stdout and "peak" in done.stdout
    # The table has no test part and fit has drawn one; predict has all rows.
    argv = ["predict", "--model", str(tmp_path / "m.npz"), "--data", "no_target.csv"]
    argv += ["--out", str(tmp_path / "new" / "p.csv")]
    done = subprocess.run(
        command + argv, cwd=digits, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "new" / "p.csv").read_text().split()
    y = np.load(digits / "whole.npz")["y"]
    assert lines[0] == "class" and len(lines) == 1201
    assert np.mean(np.array(lines[1:], int) == y) > 0.97
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["m.npz"]


def test_predictions_are_those_of_the_library(digits, tmp_path):
    """The saved preprocessing is the one that training had, in a few lines of NumPy."""
    model, report = fitted(tmp_path, "--data", digits / "parts.npz", "--seed", "3")
    with np.load(digits / "parts.npz") as file:
        x, x_test, y_test = file["x_train"], file["x_test"], file["y_test"]
    mean, deviation = x.mean(axis=0, dtype=float), x.std(axis=0, dtype=float)
    deviation[deviation == 0] = 1
    notes, arrays = lm.load_metadata(model)
    fmap = jns.feature_map(
        jns.stax.from_json(json.dumps(notes["network"])),
        num_features=64,
        method=jns.methods.VarianceReduced(objective="kernel"),
    )
    ready = ((x_test - mean) / deviation).astype(np.float32)
    wanted = lm.load_model(model, fmap).predict(ready)
    out = tmp_path / "scores.npy"
    argv = ["predict", "--model", model, "--out", out, "--no-progress"]
    run(*argv, "--data", digits / "parts.npz", "--scores")
    np.testing.assert_allclose(np.load(out), wanted, atol=2e-5)
    wrong = np.mean(wanted.argmax(axis=1) != y_test)
    assert report["test"]["error"] == pytest.approx(wrong)
    assert report["test"]["baseline"] > 0.8 and wrong < 0.2
    np.testing.assert_array_equal(arrays["classes"], np.arange(10))
    run(*argv[:3], "--out", out, "--x", digits / "x_test.npy")
    np.testing.assert_array_equal(np.load(out), wanted.argmax(axis=1))


def test_arrays_on_disk_equal_the_archive(digits, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    archive, one = fitted(tmp_path / "a", "--data", digits / "parts.npz")
    argv = ["--x", digits / "x_train.npy", "--y", digits / "y_train.npy"]
    argv += ["--x-test", digits / "x_test.npy", "--y-test", digits / "y_test.npy"]
    arrays, two = fitted(tmp_path / "b", *argv)
    assert weights(archive) == weights(arrays)
    assert one["test"] == two["test"] and one["path"] == two["path"]


def test_only_batches_of_arrays_on_disk_are_read(digits, monkeypatch):
    argv = ["fit", "--x", digits / "x_train.npy", "--y", digits / "y_train.npy"]
    seen = []

    class Watched(inputs.View):
        def __getitem__(self, rows):
            assert isinstance(self._x, np.memmap)
            seen.append(len(self._x[rows]))
            return super().__getitem__(rows)

    monkeypatch.setattr(fit, "View", Watched)
    run(*argv, *SMALL, "--save", digits / "seen.npz", "--batch-size", "100")
    assert max(seen) == 100 and sum(size == 100 for size in seen) >= 9


@pytest.mark.parametrize("network", ["fc", "cntk", "colour"])
def test_pixels_and_images(digits, tmp_path, network):
    """8-bit images are scaled in both commands, colour ones whitened."""
    y = np.load(digits / "y_train.npy")[:300]
    x = np.load(digits / "bytes.npy")[:300]
    extra = ["--network", "cntk", "--depth", "1", "--method", "ntk_random_features"]
    if network == "fc":
        extra = []
    if network == "colour":
        noise = np.random.default_rng(0).integers(0, 9, (300, 8, 8, 3), np.uint8)
        x = x[..., None] // 2 + noise
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:99], y_test=y[:99])
    model, report = fitted(tmp_path, "--data", tmp_path / "d.npz", *extra)
    notes, arrays = lm.load_metadata(model)
    assert notes["inputs"]["pixels"] and ("zca.mean" in arrays) == (network == "colour")
    assert notes["inputs"]["shape"] == ([64] if network == "fc" else report_shape(x))
    out = tmp_path / "p.npy"
    run("predict", "--model", model, "--data", tmp_path / "d.npz", "--out", out)
    error = np.mean(np.load(out) != y[:99])
    assert report["test"]["error"] == pytest.approx(error)
    assert error < 0.5
    # Bytes on disk are scaled as the loader scales them.
    np.save(tmp_path / "x.npy", x[:99])
    run("predict", "--model", model, "--x", tmp_path / "x.npy", "--out", out)
    assert np.mean(np.load(out) != y[:99]) == pytest.approx(error)


def report_shape(x):
    return [*x.shape[1:], 1] if x.ndim == 3 else list(x.shape[1:])


def test_whitening_is_that_of_the_library():
    x = np.random.default_rng(0).normal(size=(70, 4, 4, 3)).astype(np.float32)
    steps = inputs.Inputs((4, 4, 3), False, each=True)
    steps = steps.learned(x, columns=False, zca_reg=0.2, skip=False, show=False)
    ready = jns.preprocessing.standardize_examples(x)
    params = jns.preprocessing.zca_fit(ready, reg=0.2)
    wanted = jns.preprocessing.zca_apply(params, ready)
    np.testing.assert_allclose(steps(x), wanted, atol=1e-4)
    again = inputs.Inputs.restored(*steps.notes())
    assert again(x[:5]).tobytes() == steps(x[:5]).tobytes()


def test_regression_folds_and_text_labels(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) * [1, 10, 100] + 50
    y = np.stack([np.sin(x[:, 0]), x[:, 1] / 10 + 5], axis=1)
    np.savez(tmp_path / "two.npz", x=x, y=y)
    argv = ["--data", tmp_path / "two.npz", "--folds", "3"]
    model, report = fitted(tmp_path, *argv, "--objective", "regression")
    assert report["chosen_by"] == "3-fold cross-validation"
    best = min(report["path"], key=lambda row: row["cv"])
    assert best["reg"] == report["reg"]
    assert report["test"]["error"] < 0.2 * report["test"]["baseline"]
    out = tmp_path / "p.csv"
    run("predict", "--model", model, "--data", tmp_path / "two.npz", "--out", out)
    table = np.genfromtxt(out, delimiter=",", names=True)
    assert table.dtype.names == ("prediction_0", "prediction_1")
    error = np.mean((table["prediction_1"] - y[:, 1]) ** 2)
    assert error < 0.1 and "mean squared error" in capsys.readouterr().out
    # Integers are classes unless told otherwise, and text always is.
    names = np.array(["no", "yes"])[(x[:, 0] > 50).astype(int)]
    np.savez(tmp_path / "text.npz", x=x, y=names)
    model, report = fitted(tmp_path, "--data", tmp_path / "text.npz")
    assert report["metric"] == "error" and report["test"]["error"] < 0.2
    run("predict", "--model", model, "--data", tmp_path / "text.npz", "--out", out)
    assert set(out.read_text().split()[1:]) == {"no", "yes"}
    np.savez(tmp_path / "count.npz", x=x, y=np.round(x[:, 0]).astype(int))
    _, report = fitted(tmp_path, "--data", tmp_path / "count.npz")
    assert report["metric"] == "error"
    argv = ["--data", tmp_path / "count.npz", "--task", "regression"]
    assert fitted(tmp_path, *argv)[1]["metric"] == "mean squared error"


def test_the_test_part_chooses_nothing(digits, tmp_path):
    """Other test labels give the same bits."""
    with np.load(digits / "parts.npz") as file:
        arrays = dict(file)
    arrays["y_test"] = np.roll(arrays["y_test"], 1)
    np.savez(tmp_path / "other.npz", **arrays)
    (tmp_path / "a").mkdir()
    one, right = fitted(tmp_path, "--data", digits / "parts.npz", "--folds", "2")
    argv = ["--data", tmp_path / "other.npz", "--folds", "2"]
    two, wrong = fitted(tmp_path / "a", *argv)
    assert weights(one) == weights(two)
    assert wrong["test"]["error"] > 0.7 > right["test"]["error"]


# Being killed


KILLED = """
import os, signal, sys
import numpy as np
from jax_ntk_sketch.cli import main
from jax_ntk_sketch.linear_model import checkpoint

save, count = np.savez, 0

def killed(file, **arrays):
    global count
    count += 1
    if count == 12:
        file.write(b"torn")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, **arrays)

np.savez = killed
main(sys.argv[1:])
"""


def test_killed_and_started_again(digits, tmp_path):
    """`kill -9` while the 12th checkpoint is written; the same command goes on."""
    argv = ["fit", "--data", str(digits / "parts.npz"), *SMALL, "--batch-size", "30"]
    run(*argv, "--save", tmp_path / "whole.npz")
    model = tmp_path / "model.npz"
    argv += ["--save", str(model), "--checkpoint-seconds", "0"]
    checkpoint = tmp_path / "model.npz.checkpoint"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    about = lm.checkpoint.read_metadata(checkpoint)
    assert about["chunks"] == 11 and not model.exists()
    kept = tmp_path / "kept.npz"
    shutil.copy(checkpoint, kept)
    run(*argv)
    assert weights(model) == weights(tmp_path / "whole.npz")
    assert not checkpoint.exists()
    # Another fit does not go on from it; and one that is named stays.
    argv[argv.index("--save") + 1] = str(tmp_path / "other.npz")
    run(*argv, "--checkpoint", kept, "--seed", "1", code=2)
    run(*argv, "--checkpoint", kept)
    assert kept.exists() and weights(tmp_path / "other.npz") == weights(model)


def test_the_old_model_stays_if_the_fit_fails(digits, tmp_path, monkeypatch, capsys):
    model, _ = fitted(tmp_path, "--data", digits / "parts.npz")
    before = model.read_bytes()
    argv = ["fit", "--data", digits / "parts.npz", *SMALL, "--save", model]
    run(*argv, "--reg", "1e-30", "--features", "300", "--num-train", "100", code=2)
    printed = capsys.readouterr().err
    assert "singular" in printed and "with another --reg needs no pass" in printed
    assert model.read_bytes() == before
    assert (tmp_path / "model.npz.checkpoint").exists()
    (tmp_path / "model.npz.checkpoint").unlink()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lm.checkpoint.np, "savez", lambda *a, **k: full())
    run(*argv, code=2)
    printed = capsys.readouterr().err
    assert "warning: fit: the checkpoint" in printed and "No space left" in printed
    assert model.read_bytes() == before


# Memory and disk


def test_memory_is_counted_before_it_is_taken(monkeypatch):
    cost = fit_cost.Cost(1000, 10, 0, 15, 10**6)
    assert cost.sums == 8 * 1011**2 and cost.peak > cost.sums + 24 * 10**6
    folds = fit_cost.Cost(1000, 10, 5, 15, 10**6)
    assert folds.sums == 5 * cost.sums
    monkeypatch.setattr(fit_cost, "available", lambda: cost.peak)
    assert fit_cost.require_memory(cost) == cost.peak
    with pytest.raises(UsageError, match=r"lower --features to \d+ .* fewer --folds"):
        fit_cost.require_memory(folds)
    monkeypatch.setattr(fit_cost, "available", lambda: None)
    assert fit_cost.require_memory(folds) is None
    assert cost.affordable(4 * cost.peak) == 2000


def test_disk_is_looked_at_before_the_fit(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        fit_cost.shutil, "disk_usage", lambda folder: usage._replace(free=1000)
    )
    assert fit_cost.require_disk(tmp_path / "new" / "folder", 400, 300) is None
    warning = fit_cost.require_disk(tmp_path, 500, 300)
    assert "begins again" in warning
    with pytest.raises(UsageError, match="the model takes"):
        fit_cost.require_disk(tmp_path, 1001, 1)


def test_available_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_PROC", tmp_path / "self")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  500 kB\n")
    assert memory.available() == 512_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() == 512_000
    (tmp_path / "memory.max").write_text("300000\n")
    (tmp_path / "memory.current").write_text("100000\n")
    assert memory.available() == 200_000


def test_scores_of_targets():
    kind = scoring.Scoring.of(np.array(["b", "a", "b"]), "classification")
    assert kind.num_classes == kind.num_targets == 2 and kind.targets.tolist()[1] == 0
    guess = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = kind.score(guess, np.array(["a", "z"]))  # a class that training had not
    assert found == {"error": 0.5, "baseline": 1.0}
    with pytest.raises(ValueError, match="are not labels like"):
        kind.score(guess, np.array([0, 1]))
    numbers = scoring.Scoring.of(np.array([1.0, 3.0]), "regression")
    found = numbers.score(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    assert found == {"error": 2.0, "baseline": 2.5}


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_help(capsys, command):
    run(command, "--help")
    text = capsys.readouterr().out
    for option in ("--data", "--seed", "--save" if command == "fit" else "--model"):
        assert option in text
