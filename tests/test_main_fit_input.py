"""`fit` and `predict` on the command line: what they say of mistakes."""

import os
import pathlib

import jax
import numpy as np
import pytest

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch.cli import fully_connected, main
from jax_ntk_sketch.linear_model import checkpoint

SMALL = ["--features", "20", "--depth", "1", "--no-progress"]


def run(*argv, code=0):
    assert main([str(word) for word in argv]) == code


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files as they should be, and others that something is wrong with."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(90, 6)), rng.normal(size=(30, 6))
    y, y_test = (x[:, 0] > 0).astype(int), (x_test[:, 0] > 0).astype(int)
    bad = x.copy()
    bad[[7, 9], 3] = np.nan
    arrays = dict(
        x_train=x,
        y_train=y,
        x_test=x_test,
        y_test=y_test,
        nan_x=bad,
        nan_y=np.where(np.arange(90) == 5, np.nan, y),
        short_y=y[:-1],
        narrow=x[:, :5],
        same_y=np.zeros(90, int),
        objects=np.array([{}, {}]),
    )
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    parts = {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(folder / "parts.npz", **parts)
    table = np.column_stack([x, y])
    np.savetxt(
        folder / "table.csv", table, delimiter=",", header="a,b,c,d,e,f,y", comments=""
    )
    (folder / "text.txt").write_text("no model\n")
    run("fit", "--data", folder / "parts.npz", *SMALL, "--save", folder / "ok.npz")
    fmap = jns.feature_map(fully_connected.network(1, 1.0, None), num_features=20)
    params = fmap.init(jax.random.key(0), (6,))
    plain = lm.fit(fmap, params, x, y, reg=1e-3, checkpoint=folder / "sums.npz")
    lm.save_model(folder / "python.npz", plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_VERSION", 99)
        lm.save_model(folder / "later.npz", plain)
    whole = pathlib.Path(folder / "ok.npz").read_bytes()
    (folder / "damaged.npz").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        ("--x x_train.npy --y short_y.npy", "90 examples but 89 targets"),
        ("--x x_train.npy --y nan_y.npy", "row 5 is nan"),
        ("--x nan_x.npy --y y_train.npy", "2 of them are NaN or infinite (7, 9, "),
        ("--x nan_x.npy --y y_train.npy --no-standardize", "(7, 9, from 0)"),
        ("--x x_train.npy --y same_y.npy", "all training targets are of one class"),
        ("--x x_train.npy", "--x needs --y"),
        ("--x y_train.npy --y y_train.npy", "must have shape (n, ...)"),
        ("--x objects.npy --y y_train.npy", "is no .npy file"),
        ("--x parts.npz --y y_train.npy", "holds several arrays"),
        ("--x no.npy --y y_train.npy", "no such file or folder: no.npy"),
        ("--x x_train.npy --y y_train.npy --x-test x_test.npy", "go together"),
        (
            "--x x_train.npy --y y_train.npy --x-test narrow.npy --y-test y_train.npy",
            "--x-test (5,)",
        ),
        ("", "give --data PATH, or else --x"),
        ("--data parts.npz --x x_train.npy", "give --data PATH, or else --x"),
        ("--data parts.npz --y y_train.npy", "--y goes with --x"),
        ("--data no.npz", "no such file or folder: no.npz"),
        ("--data table.csv", "a table needs target"),
        ("--data parts.npz --reg 0", "--reg: expected a finite number > 0"),
        ("--data parts.npz --reg -1", "--reg: expected a finite number > 0"),
        ("--data parts.npz --folds 1", "--folds must be 0 or at least 2"),
        ("--data parts.npz --method magic", "magic"),
        ("--data parts.npz --method exact", "depend on their batch"),
        (
            "--data parts.npz --method one_pass --objective kernel",
            "--objective belongs to --method variance_reduced",
        ),
        ("--data parts.npz --method one_pass --features 1", "num_features must be"),
        ("--data parts.npz --features 200000", "lower --features to"),
        ("--data parts.npz --network cntk", "needs images"),
        ("--data parts.npz --zca", "--zca is for images"),
        ("--data parts.npz --save text.txt", "--save text.txt: must end in .npz"),
        ("--data parts.npz --save parts.npz", "no model of this library"),
        ("--data parts.npz --save text.txt/m.npz", "is a file, expected a folder"),
        ("--data parts.npz --save /proc/m.npz", "cannot write in /proc"),
        ("--data parts.npz --json out.txt", "--json out.txt: must end in .json"),
        ("--data parts.npz --checkpoint new.npz", "must be different files"),
        ("--data parts.npz --checkpoint ok.npz", "belongs to another run"),
        (
            "--data parts.npz --checkpoint text.txt",
            "is not a checkpoint, or it is damaged",
        ),
    ],
)
def test_mistakes_in_fit(files, monkeypatch, capsys, argv, match):
    monkeypatch.chdir(files)
    words = ["fit", *SMALL, "--save", "new.npz", *argv.split()]
    if match.startswith("cannot write") and not os.path.isdir("/proc"):
        pytest.skip("no such read-only folder")
    run(*words, code=2)
    printed = capsys.readouterr().err
    assert printed.startswith("python -m jax_ntk_sketch: error: ")
    assert match in printed and printed.count("\n") == 1
    assert not (files / "new.npz").exists()


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        ("--model no.npz --x x_test.npy", "--model: no such file: no.npz"),
        ("--model text.txt --x x_test.npy", "is not a model of this library"),
        ("--model parts.npz --x x_test.npy", "is not a model of this library"),
        ("--model x_test.npy --x x_test.npy", "is not a model of this library"),
        ("--model sums.npz --x x_test.npy", "a checkpoint of a fit"),
        ("--model damaged.npz --x x_test.npy", "or it is damaged"),
        ("--model later.npz --x x_test.npy", "version 99 of the format"),
        ("--model python.npz --x x_test.npy", "does not say what its inputs are"),
        ("--model ok.npz --x narrow.npy", "shape (5,), the model was fitted to (6,)"),
        ("--model ok.npz --x nan_x.npy", "2 of them are NaN or infinite (7, 9, "),
        ("--model ok.npz --x x_test.npy --y short_y.npy", "30 examples but 89"),
        ("--model ok.npz --data table.csv", "name it with --target"),
        ("--model ok.npz --data table.csv --target no", "no column 'no'"),
        ("--model ok.npz", "give --data PATH, or else --x"),
        ("--x x_test.npy", "--model"),
        ("--model ok.npz --x x_test.npy --out p.txt", "must end in .npy or .csv"),
        ("--model ok.npz --x x_test.npy --out x_test.npy", "are the same file"),
        ("--model ok.npz --x x_test.npy --out text.txt/p.npy", "is a file"),
    ],
)
def test_mistakes_in_predict(files, monkeypatch, capsys, argv, match):
    monkeypatch.chdir(files)
    words = ["predict", "--no-progress", *argv.split()]
    if "--out" not in words:
        words += ["--out", "p.npy"]
    run(*words, code=2)
    printed = capsys.readouterr().err
    assert printed.startswith("python -m jax_ntk_sketch: error: ")
    assert match in printed and printed.count("\n") == 1
    assert not (files / "p.npy").exists()


def test_nothing_to_predict_for(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    run("predict", "--model", "ok.npz", "--x", "x_test.npy", code=2)
    assert "nothing to do" in capsys.readouterr().err
    run("predict", "--model", "ok.npz", "--x", "x_test.npy", "--y", "y_test.npy")
    assert "of them are wrong" in capsys.readouterr().out


def test_rows_that_are_not_finite_are_left_out(files, capsys):
    where = ["--x", files / "nan_x.npy", "--y", files / "y_train.npy"]
    argv = ["--save", files / "skipped.npz", "--nonfinite", "skip"]
    run("fit", *SMALL, *where, *argv)
    printed = capsys.readouterr().err
    assert printed.startswith("python -m jax_ntk_sketch: warning: fit: 2 examples")
