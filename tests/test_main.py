"""The command line: the main job end to end, and what it says of mistakes."""

import json
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jax_ntk_sketch import data, stax
from jax_ntk_sketch.cli import blas, exact, fully_connected, main, report, ridge
from jax_ntk_sketch.cli.arguments import UsageError

TINY = ["--num-train", "300", "--num-test", "200", "--num-compare", "60"]
TINY += ["--num-features", "128", "--num-seeds", "1", "--methods", "one_pass"]


@pytest.fixture(scope="module")
def digits_report(tmp_path_factory):
    """One run of the default command on digits, every method."""
    folder = tmp_path_factory.mktemp("main") / "out" / "report"
    argv = ["--num-train", "900", "--num-compare", "100", "--num-seeds", "2"]
    argv += ["--num-features", "128", "1024", "--output", str(folder)]
    assert main([*argv, "--depth", "1"]) == 0
    return folder


# The job


def test_report_files(digits_report):
    assert sorted(p.name for p in digits_report.iterdir()) == [
        "report.json",
        "report.md",
        "report.png",
    ]
    assert (digits_report / "report.png").read_bytes()[:4] == b"\x89PNG"
    text = (digits_report / "report.md").read_text()
    assert text.startswith("# The NTK of a fully connected network on digits")
    assert "| exact NTK" in text and "report.png" in text


def test_report_numbers(digits_report):
    content = json.loads((digits_report / "report.json").read_text())
    assert content["data"]["num_train"] == 900
    assert content["metric"] == "accuracy" and content["baseline"] < 0.3
    assert content["exact"]["score"] > 0.95
    net = fully_connected.network(1, 2**0.5, None)
    assert stax.from_json(json.dumps(content["network"])) == net
    rows = {(row["method"], row["num_features"]): row for row in content["rows"]}
    names = ("ntk_sketch", "ntk_random_features", "one_pass")
    assert rows.keys() >= {(name, m) for name in names for m in (128, 1024)}
    for (_, m), row in rows.items():
        assert len(row["score"]["values"]) == 2 and row["reg"] > 0
        assert 0.9 < row["score"]["mean"] <= 1 or m < 1024
        assert row["score"]["mean"] > 0.7
        assert 0 < row["errors"]["ntk"]["relative"]["mean"] < 0.5
        assert all(seconds >= 0 for seconds in row["seconds"].values())
    for name in names:
        fine, coarse = rows[name, 1024]["errors"], rows[name, 128]["errors"]
        assert fine["ntk"]["relative"]["mean"] < coarse["ntk"]["relative"]["mean"]


def test_regression_from_a_table(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * [1, 10, 100]
    y = np.sin(x[:, 0]) + x[:, 1] / 10 + 5
    lines = [",".join(map(str, row)) for row in np.column_stack([x, y])]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["a,b,c,price", *lines]))
    out = tmp_path / "out"
    argv = ["fc", "--data", str(path), "--target", "price", "--output", str(out)]
    argv += [*TINY, "--b-std", "0.1", "--depth", "1"]
    argv += ["--methods", "ntk_random_features"]
    assert main(argv) == 0
    content = json.loads((out / "report.json").read_text())
    assert content["metric"] == "mean squared error"
    assert "columns standardised" in " ".join(content["data"]["notes"])
    # The target's variance is about 1.4; the baseline predicts the mean.
    assert 1 < content["baseline"] < 2
    assert content["exact"]["score"] < 0.2
    assert content["rows"][0]["score"]["mean"] < 0.5
    assert "Report:" in capsys.readouterr().out


def test_same_seed_same_numbers(tmp_path):
    contents = []
    for name in ("a", "b"):
        assert main([*TINY, "--output", str(tmp_path / name), "--seed", "4"]) == 0
        content = json.loads((tmp_path / name / "report.json").read_text())
        contents.append([content["exact"]["score"], content["rows"][0]["errors"]])
    assert contents[0] == contents[1]


def test_without_neural_tangents_and_matplotlib(tmp_path, monkeypatch, capsys):
    (tmp_path / "report.png").write_bytes(b"of an earlier run")

    def missing(net):
        raise ImportError("not installed")

    argv = [*TINY, "--output", str(tmp_path)]
    assert main(argv) == 0
    with_it = json.loads((tmp_path / "report.json").read_text())
    monkeypatch.setattr(fully_connected.jnt, "to_stax", missing)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(argv) == 0
    assert "closed form (neural-tangents is not installed)" in capsys.readouterr().out
    without = json.loads((tmp_path / "report.json").read_text())
    assert without["exact"]["score"] == pytest.approx(with_it["exact"]["score"], 1e-2)
    assert not (tmp_path / "report.png").exists()
    assert "No figure" in (tmp_path / "report.md").read_text()


# Mistakes


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--data", "nowhere.npz"], "no such file or folder: nowhere.npz"),
        (["--data", "{csv}"], "needs target"),
        (["--data", "{csv}", "--target", "z"], "no column 'z' for target"),
        (["--data", "{nan}", "--target", "y"], "row 0 (line 2), column 'a' is nan"),
        (["--data", "{few}", "--target", "y"], "4 training rows are too few"),
        (["--data", "{same}", "--target", "y"], "all the same"),
        (["--target", "y"], "--target is for tables"),
        (["--task", "regression", "--data", "{pdf}"], "unknown kind of file"),
        (["--num-features", "2"], "num_features must be at least"),
        (["--num-features", "0"], "an integer of at least 1, got '0'"),
        (["--depth", "-1"], "argument --depth: expected an integer of at least 0"),
        (["--methods", "magic"], "magic"),
        (["--methods", "exact"], "the reference that is always shown"),
        (["--W-std", "nan"], "expected a finite number > 0, got 'nan'"),
        (["--b-std", "-1"], "expected a finite number >= 0"),
        (["--reg", "0"], "--reg: expected a finite number > 0"),
        (["--num-seeds", "x"], "expected an integer of at least 1, got 'x'"),
        (["--output", "{csv}"], "is a file, expected a folder"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["fit-everything"], "invalid choice: 'fit-everything'"),
    ],
)
def test_mistakes_give_one_line_and_exit_2(tmp_path, capsys, argv, match):
    rows = "".join(f"{i % 7},{i}.5\n" for i in range(30))
    files = {
        "csv": f"a,y\n{rows}",
        "nan": f"a,y\nnan,1\n{rows}",
        "few": "a,y\n" + "1,2.5\n" * 5,
        "same": "a,y\n" + "1,2.5\n" * 30,
        "pdf": "%PDF",
    }
    for name, text in files.items():
        suffix = "pdf" if name == "pdf" else "csv"
        (tmp_path / f"{name}.{suffix}").write_text(text)
        argv = [a.replace(f"{{{name}}}", f"{tmp_path}/{name}.{suffix}") for a in argv]
    if argv[0].startswith("-"):
        # What comes last wins, and --output must not litter the working folder.
        argv = [*TINY, "--output", str(tmp_path / "out"), *argv]
    assert main(argv) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("python -m jax_ntk_sketch: error: ")
    assert match in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_too_many_rows_for_memory(monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 10_000)  # 10^8 bytes in all
    exact.require_memory(1000)
    with pytest.raises(UsageError, match=r"takes about 0\.6 GB .* lower --num-train"):
        exact.require_memory(5000)


def test_interrupt_is_one_line_and_130(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(fully_connected.arguments, "load_data", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err == "python -m jax_ntk_sketch: interrupted\n"


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(fully_connected, "fit_exact", broken)
    with pytest.raises(ValueError, match="a bug"):
        main([*TINY, "--output", str(tmp_path)])


@pytest.mark.parametrize("argv", [["--help"], ["fc", "--help"]])
def test_help(capsys, argv):
    assert main(argv) == 0
    text = capsys.readouterr().out
    for option in ("--data", "--target", "--num-features", "--methods", "--reg"):
        assert option in text
    assert "ntk_random_features" in text


# Report folders


def test_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    report.write_folder(tmp_path, {"a.txt": "old", "b.bin": b"old"})
    calls = []

    def full_disk(fd):
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        report.write_folder(tmp_path, {"a.txt": "new", "b.bin": b"new"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.bin"]
    assert (tmp_path / "a.txt").read_text() == "old"
    monkeypatch.undo()
    written = report.write_folder(tmp_path, {"a.txt": "new", "b.bin": None})
    assert written == [tmp_path / "a.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_job_keeps_the_old_report_if_writing_fails(tmp_path, monkeypatch, capsys):
    (tmp_path / "report.json").write_text("old")

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    assert main([*TINY, "--output", str(tmp_path)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


# Regressions


def test_small_solves_use_one_blas_thread(monkeypatch):
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def threads():
        info = threadpoolctl.threadpool_info()
        return [pool["num_threads"] for pool in info if pool["user_api"] == "blas"]

    before = threads()
    with blas.one_thread_if_small(1000):
        assert set(threads()) == {1}
    with blas.one_thread_if_small(100_000):
        assert threads() == before
    assert threads() == before
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with blas.one_thread_if_small(1000):
        assert threads() == before


def toy(task="classification", n=30, n_test=8):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n + n_test, 4)).astype(np.float32)
    y = x @ np.arange(4.0) + 3
    if task == "classification":
        y = np.array([3, 5, 9])[np.digitize(y, [2, 4])]
    return data.Dataset(x[:n], y[:n], x[n:], y[n:], "toy", task)


def test_targets_of_classes():
    targets = ridge.Targets.of(toy(), seed=0)
    assert targets.held_out.sum() == 6
    np.testing.assert_allclose(targets.codes.sum(1), 0, atol=1e-15)
    y = targets.data.y_test
    perfect = (y[:, None] == np.array([3, 5, 9])).astype(float)
    assert targets.score(perfect) == 1.0
    assert targets.score(-perfect) == 0.0
    common = max(set(targets.data.y_train), key=list(targets.data.y_train).count)
    assert targets.baseline() == np.mean(y == common)


def test_targets_of_numbers():
    targets = ridge.Targets.of(toy("regression"), seed=0)
    np.testing.assert_allclose(targets.codes.mean(), 0, atol=1e-14)
    y_train, y_test = targets.data.y_train, targets.data.y_test
    assert targets.score((y_test - y_train.mean())[:, None]) == pytest.approx(0)
    assert targets.baseline() == pytest.approx(np.mean((y_test - y_train.mean()) ** 2))
    held = targets.codes[targets.held_out]
    assert targets.held_out_loss(held + 2) == pytest.approx(4)


def linear_kernel(x1, x2):
    x2 = x1 if x2 is None else x2
    return jnp.matmul(x1, x2.T, precision="highest") + 1


@pytest.mark.parametrize("block", [7, 1000])
def test_exact_fit_solves_kernel_ridge(monkeypatch, block):
    monkeypatch.setattr(exact, "_BLOCK", block)
    targets = ridge.Targets.of(toy(), seed=0)
    x, x_test = targets.data.x_train, targets.data.x_test
    kernel = exact.Kernel(linear_kernel)
    K = x.astype(float) @ x.T.astype(float) + 1
    np.testing.assert_allclose(kernel.symmetric(x), K, rtol=1e-5, atol=1e-5)
    fit = exact.fit_exact(kernel, targets, [0.1])
    K_test = x_test.astype(float) @ x.T.astype(float) + 1
    expected = K_test @ np.linalg.solve(K + 0.1 * 30 * np.eye(30), targets.codes)
    np.testing.assert_allclose(fit.predictions, expected, rtol=1e-4, atol=1e-4)
    assert fit.reg == 0.1 and set(fit.seconds) == {"compile", "kernel", "fit"}


def test_exact_fit_chooses_by_held_out_rows_only():
    targets = ridge.Targets.of(toy("regression"), seed=0)
    kernel = exact.Kernel(linear_kernel)
    # The targets are linear without noise: the smallest penalty is the best.
    assert exact.fit_exact(kernel, targets, [10.0, 1e-3, 1.0]).reg == 1e-3
    default = exact.fit_exact(kernel, targets, None)
    diagonal = np.diag(kernel.symmetric(targets.data.x_train)).mean()
    np.testing.assert_allclose(
        default.regs, diagonal * np.array(exact.RELATIVE_REGS), rtol=1e-6
    )
    with pytest.raises(UsageError, match="--reg"):
        exact.fit_exact(exact.Kernel(lambda a, b: -linear_kernel(a, b)), targets, [1.0])


@pytest.mark.parametrize("m", [6, 200])
def test_features_and_kernel_give_the_same_regression(m):
    """Both forms of ridge, also where rows are fewer than features."""
    targets = ridge.Targets.of(toy(), seed=0)
    w = np.random.default_rng(2).normal(size=(4, m)).astype(np.float32) / m**0.5

    def apply(params, x):
        return jnp.maximum(jnp.matmul(x, params, precision="highest"), 0)

    x, x_test = targets.data.x_train, targets.data.x_test
    phi, phi_test = np.asarray(apply(w, x)), np.asarray(apply(w, x_test))
    predictions, reg = ridge.fit_features(phi, phi_test, targets, [10.0, 1e-2])

    def kernel(x1, x2):
        a, b = apply(w, x1), apply(w, x1 if x2 is None else x2)
        return jnp.matmul(a, b.T, precision="highest")

    expected = exact.fit_exact(exact.Kernel(kernel), targets, [10.0, 1e-2])
    assert reg == expected.reg == 1e-2
    np.testing.assert_allclose(predictions, expected.predictions, atol=1e-4)
    if m == 6:
        copies = np.concatenate([phi, phi], axis=1)
        copies_test = np.concatenate([phi_test, phi_test], axis=1)
        with pytest.raises(UsageError, match=r"--reg: .*singular"):
            ridge.fit_features(copies, copies_test, targets, [1e-300, 1e-301])
