"""`predict` on the command line: end to end, and with mistakes."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest
from cli_files import SMALL, check_mistake, fitted, run, write_files

import jax_ntk_sketch as jns
from jax_ntk_sketch import _tensor_file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of every kind, models, and files that are not models."""
    folder = write_files(tmp_path_factory.mktemp("files"))
    run("fit", *SMALL, "--data", folder / "parts.npz", "--output", folder / "ok.jns")
    argv = ["--data", folder / "table.csv", "--target-column", "kind"]
    run("fit", *SMALL, *argv, "--output", folder / "named.jns")
    fitted_model = jns.io.load(folder / "ok.jns")
    bare = dataclasses.replace(fitted_model, preprocessing=None)
    jns.io.save(folder / "python.jns", bare)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tensor_file, "_VERSION", "99")
        jns.io.save(folder / "later.jns", fitted_model)
    whole = pathlib.Path(folder / "ok.jns").read_bytes()
    os.mkfifo(folder / "fifo")
    (folder / "damaged.jns").write_bytes(whole[: len(whole) // 2])
    return folder


def predicted(files, folder, model, *argv, suffix=".npy"):
    output = folder / f"out{suffix}"
    argv = ["predict", "--model", files / model, *argv, "--output", output]
    run(*argv, "--overwrite", "--no-progress")
    return np.load(output) if suffix == ".npy" else output.read_text().splitlines()


def test_predictions_are_those_of_the_library(files, tmp_path, capsys):
    """The saved preprocessing is that of training, in a few lines of NumPy."""
    x, x_test = np.load(files / "x_train.npy"), np.load(files / "x_test.npy")
    y_test = np.load(files / "y_test.npy")
    ready = ((x_test - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    model = jns.io.load(files / "ok.jns")
    wanted = dataclasses.replace(model, preprocessing=None).predict(ready)
    np.testing.assert_allclose(model.predict(x_test), wanted, atol=2e-5)
    argv = ["--data", files / "parts.npz", "--output-scores"]
    scores = predicted(files, tmp_path, "ok.jns", *argv)
    np.testing.assert_allclose(scores, wanted, atol=2e-5)
    argv = ["--data", files / "x_test.npy", "--targets", files / "y_test.npy"]
    capsys.readouterr()
    classes = predicted(files, tmp_path, "ok.jns", *argv)
    np.testing.assert_array_equal(classes, wanted.argmax(axis=1))
    wrong = np.mean(classes != y_test)
    assert f"Of them {wrong:.2%} are wrong" in capsys.readouterr().out
    run("predict", "--model", files / "ok.jns", *argv)  # without an output
    assert f"{wrong:.2%}" in capsys.readouterr().out


def test_columns_are_matched_by_name(files, tmp_path, capsys):
    """In another order, with an unknown column, and without the target."""
    argv = ["--data", files / "table.csv"]
    lines = predicted(files, tmp_path, "named.jns", *argv, suffix=".csv")
    assert "are wrong; the accuracy is " in capsys.readouterr().out
    assert lines[0] == "class" and set(lines[1:]) == {"low", "mid", "high"}
    assert len(lines) == 121  # all rows, in their order
    argv = ["--data", files / "turned.csv"]
    turned = predicted(files, tmp_path, "named.jns", *argv, suffix=".csv")
    assert turned == lines
    printed = capsys.readouterr().out
    assert "columns left out, unknown to the model: 'extra'" in printed
    assert "rror" not in printed and "wrong" not in printed
    scores = predicted(
        files, tmp_path, "named.jns", *argv, "--output-scores", suffix=".csv"
    )
    assert scores[0] == "high,low,mid"
    best = np.argmax(np.genfromtxt(scores[1:], delimiter=","), axis=1)
    assert [["high", "low", "mid"][i] for i in best] == lines[1:]


def test_regression_with_several_targets(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(90, 6))
    y = np.stack([x[:, 0], x[:, 1] / 10 + 5], axis=1)
    np.savez(tmp_path / "two.npz", x=x, y=y)
    model, _ = fitted(tmp_path, "--data", tmp_path / "two.npz")
    argv = ["--data", tmp_path / "two.npz"]
    lines = predicted(tmp_path, tmp_path, model, *argv, suffix=".csv")
    values = np.genfromtxt(lines, delimiter=",", names=True)
    assert values.dtype.names == ("prediction_0", "prediction_1")
    error = np.mean((values["prediction_1"] - y[:, 1]) ** 2)
    assert error < 0.1 and "Their mean squared error is" in capsys.readouterr().out
    np.testing.assert_allclose(
        predicted(tmp_path, tmp_path, model, *argv)[:, 1], values["prediction_1"], 1e-5
    )


@pytest.mark.parametrize(
    "network", ["fc", pytest.param("cntk", marks=pytest.mark.long), "color"]
)
def test_pixels_and_images(tmp_path, network):
    """8-bit images are scaled in both commands, and color ones are whitened."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.integers(0, 200, (60, 6, 6) + (3,) * (network == "color"), np.uint8)
    x[y == 1, :3] += 50
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    argv = ["--data", tmp_path / "d.npz"]
    if network != "fc":
        argv += ["--network", "cntk", "--method", "ntk_random_features"]
    model, content = fitted(tmp_path, *argv)
    steps = jns.io.load(model).preprocessing
    assert steps.pixels and (steps.zca is not None) == (network == "color")
    shapes = {"fc": (36,), "cntk": (6, 6, 1), "color": (6, 6, 3)}
    assert steps.shape == shapes[network]
    one = predicted(tmp_path, tmp_path, model, "--data", tmp_path / "d.npz")
    assert content["test"]["error"] == pytest.approx(np.mean(one != y[:9]))
    # Bytes on disk are scaled as the loader scales them.
    np.save(tmp_path / "x.npy", x[:9])
    two = predicted(tmp_path, tmp_path, model, "--data", tmp_path / "x.npy")
    np.testing.assert_array_equal(one, two)


def test_pixels_that_are_not_scaled(files, tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (90, 6), np.uint8)
    np.savez(tmp_path / "bytes.npz", x=x, y=np.arange(90) % 3)
    model, _ = fitted(tmp_path, "--data", tmp_path / "bytes.npz")
    np.save(tmp_path / "floats.npy", x.astype(float))
    capsys.readouterr()
    predicted(files, tmp_path, model, "--data", tmp_path / "floats.npy")
    assert "warning: the model was fitted to pixels in [0, 1]" in (
        capsys.readouterr().err
    )
    argv = ["predict", "--model", files / "ok.jns", "--data", tmp_path / "bytes.npz"]
    check_mistake(capsys, argv, "fitted to numbers that were not")


# Mistakes


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        ("no.jns --data x_test.npy", "--model: no such file: no.jns"),
        ("text.txt --data x_test.npy", "text.txt"),
        ("parts.npz --data x_test.npy", "parts.npz"),
        ("x_test.npy --data x_test.npy", "x_test.npy"),
        ("damaged.jns --data x_test.npy", "damaged"),
        ("fifo --data x_test.npy", "it is no file with an end"),
        ("later.jns --data x_test.npy", "version 99"),
        ("python.jns --data x_test.npy", "does not state what its inputs are"),
        ("ok.jns --data narrow.npy", "shape (5,), but the model was fitted to (6,)"),
        ("ok.jns --data nan_x.npy", "7"),
        ("ok.jns --data x_test.npy --targets short_y.npy", "30 examples but 89"),
        ("ok.jns --data parts.npz --targets y_test.npy", "goes with --data X.npy"),
        ("ok.jns --data no.csv", "no such file or folder: no.csv"),
        ("named.jns --data turned.csv --target-column no", "no column 'no'"),
        ("named.jns --data short.csv", "columns that are missing here: 'b', 'c'"),
        ("ok.jns", "the following arguments are required: --data"),
        ("ok.jns --data x_test.npy --output p.txt", "must end in .npy or .csv"),
        ("ok.jns --data x_test.npy --output x_test.npy", "exists; give another path"),
        (
            "ok.jns --data x_test.npy --output text.txt/p.npy",
            "cannot write in text.txt",
        ),
        ("ok.jns --data digits --target-column y", "--target-column is for tables"),
    ],
)
def test_mistakes(files, monkeypatch, capsys, argv, match):
    monkeypatch.chdir(files)
    (files / "short.csv").write_text("a,d,e,f\n1,2,3,4\n")
    words = ["predict", "--no-progress", "--model", *argv.split()]
    if "--output" not in words:
        words += ["--output", "p.npy"]
    check_mistake(capsys, words, match)
    assert not (files / "p.npy").exists()


def test_targets_of_another_kind(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    argv = ["predict", "--model", "ok.jns", "--data", "x_train.npy", "--targets"]
    check_mistake(capsys, [*argv, "text_y.npy"], "are not labels like")
    argv = ["predict", "--model", "ok.jns", "--data", "x_test.npy"]
    check_mistake(capsys, argv, "nothing to do: give --output, or data with targets")
