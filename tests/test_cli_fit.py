"""`fit` on the command line: end to end, interrupted, and with mistakes."""

import dataclasses
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from cli_files import SMALL, check_mistake, fitted, run, weights, write_files

import jax_ntk_sketch as jns
from jax_ntk_sketch.cli import main, report
from jax_ntk_sketch.cli.inputs import inputs_from_options
from jax_ntk_sketch.cli.options import APPROXIMATIONS
from jax_ntk_sketch.linear_model import _pass
from jax_ntk_sketch.preprocessing import inputs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


# The command line


def test_without_a_command_it_prints_help(capsys):
    run()
    printed = capsys.readouterr().out
    for command in ("compare", "fit", "predict"):
        assert command in printed
    run("--version")
    assert capsys.readouterr().out == f"jax_ntk_sketch {jns.__version__}\n"


def test_the_module_is_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jax_ntk_sketch", "fit", "--unknown"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("python -m jax_ntk_sketch: error: the following arg")


@pytest.mark.parametrize("command", ["compare", "fit", "predict"])
def test_help_names_every_method_once(capsys, command):
    run(command, "--help")
    printed = capsys.readouterr().out
    for option in ("--data", "--targets", "--target-column", "--output"):
        assert option in printed
    if command != "predict":
        (methods,) = re.findall(r"(auto, \S+[^;]*);", printed)
        assert sorted(re.split(r",\s+", methods)) == sorted(APPROXIMATIONS)


def test_interrupted_is_one_line_and_130(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("jax_ntk_sketch.cli.compare.run", interrupt)
    run("compare", code=130)
    assert capsys.readouterr().err == "python -m jax_ntk_sketch: interrupted\n"


# End to end


def test_table_with_text_labels(files, tmp_path, capsys):
    argv = ["--data", files / "table.csv", "--target-column", "kind"]
    model, content = fitted(tmp_path, *argv)
    printed = capsys.readouterr().out
    assert "120 training" not in printed and "96 training and 24 test rows" in printed
    assert "the first column, which has no name, was left out" in printed
    assert content["data"]["task"] == "classification"
    assert content["test"]["error"] < 0.5 < content["test"]["baseline"]
    assert content["inputs"] == ["Columns are standardized with the training rows."]
    saved = jns.io.load(model)
    assert saved.feature_names == tuple("abcdef")
    assert saved.metadata["target"] == "kind"
    assert saved.best.classes == ("high", "low", "mid")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.jns",
        "report.json",
    ]
    chosen = min(content["path"], key=lambda row: row["gcv"])
    assert chosen["reg"] == content["reg"]
    assert content["options"]["seed"] == 0 and content["seconds"] > 0


def test_arrays_on_disk_equal_the_archive(files, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    archive, one = fitted(tmp_path / "a", "--data", files / "parts.npz")
    seen = []

    class Watched(inputs.Prepared):
        def __getitem__(self, rows):
            assert isinstance(self._x, np.memmap)
            out = super().__getitem__(rows)
            seen.append(len(out))
            return out

    monkeypatch.setattr(inputs, "Prepared", Watched)
    argv = ["--data", files / "x_train.npy", "--targets", files / "y_train.npy"]
    argv += ["--test-data", files / "x_test.npy"]
    argv += ["--test-targets", files / "y_test.npy"]
    arrays, two = fitted(tmp_path / "b", *argv)
    assert weights(archive) == weights(arrays)
    assert one["test"] == two["test"] and one["path"] == two["path"]
    assert seen.count(30) >= 3  # --batch-size


def test_several_targets(tmp_path):
    x = np.random.default_rng(0).normal(size=(90, 6))
    y = np.stack([np.sin(x[:, 0]), x[:, 1] / 10 + 5], axis=1)
    np.savez(tmp_path / "two.npz", x=x, y=y)
    _, content = fitted(tmp_path, "--data", tmp_path / "two.npz")
    assert content["metric"] == "mean squared error"
    assert content["test"]["error"] < 0.5 * content["test"]["baseline"]


def test_integers_are_classes_unless_asked(files, tmp_path):
    argv = ["--data", files / "whole.npz", "--num-train", "60"]
    assert fitted(tmp_path, *argv)[1]["metric"] == "share of wrong labels"
    argv += ["--task", "regression"]
    assert fitted(tmp_path, *argv)[1]["metric"] == "mean squared error"


def test_the_test_part_chooses_nothing(files, tmp_path):
    """Other test labels give the same weights."""
    with np.load(files / "parts.npz") as file:
        arrays = dict(file)
    arrays["y_test"] = np.roll(arrays["y_test"], 1)
    np.savez(tmp_path / "other.npz", **arrays)
    (tmp_path / "a").mkdir()
    one, right = fitted(tmp_path, "--data", files / "parts.npz")
    two, wrong = fitted(tmp_path / "a", "--data", tmp_path / "other.npz")
    assert weights(one) == weights(two)
    assert wrong["test"]["error"] > right["test"]["error"]


def test_examples_that_are_not_finite_are_left_out(files, tmp_path, capsys):
    argv = ["--data", files / "nan_x.npy", "--targets", files / "y_train.npy"]
    _, content = fitted(tmp_path, *argv, "--nonfinite", "skip")
    assert content["num_skipped"] == 2
    assert (
        "python -m jax_ntk_sketch: warning: fit: left out 2 examples"
        in capsys.readouterr().err
    )


# Interrupted, and run again


@pytest.mark.parametrize("kept", [False, True])
def test_the_same_command_resumes(files, tmp_path, monkeypatch, kept):
    argv = ["fit", "--data", files / "parts.npz", *SMALL, "--checkpoint-seconds", "0"]
    run(*argv, "--output", tmp_path / "whole.jns")
    checkpoint = tmp_path / ("sums.jns" if kept else "model.jns.checkpoint")
    argv += ["--output", tmp_path / "model.jns"]
    argv += ["--checkpoint", checkpoint] * kept
    original = inputs.Prepared.__getitem__

    def interrupt(self, rows):
        if isinstance(rows, slice) and rows.start == 60 and checkpoint.exists():
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(inputs.Prepared, "__getitem__", interrupt)
    run(*argv, code=130)
    assert checkpoint.exists() and not (tmp_path / "model.jns").exists()
    monkeypatch.setattr(inputs.Prepared, "__getitem__", original)
    added, add = [], _pass.Pass.add

    def count(self, batch):
        added.append(batch)
        add(self, batch)

    monkeypatch.setattr(_pass.Pass, "add", count)
    run(*argv)
    assert weights(tmp_path / "model.jns") == weights(tmp_path / "whole.jns")
    assert checkpoint.exists() == kept
    # The sums of the first batches were kept; those of one are computed to compare.
    assert len(added) == 2
    if kept:
        argv += ["--overwrite"]
        run(*argv, "--seed", "1", code=2)  # it belongs to another fit
        run(*argv, "--reg", "1e-3", "1e-2")
        assert len(added) == 3


def test_the_old_model_stays_if_the_fit_fails(files, tmp_path, monkeypatch, capsys):
    model, _ = fitted(tmp_path, "--data", files / "parts.npz")
    before = model.read_bytes()
    argv = ["fit", "--data", files / "parts.npz", *SMALL, "--output", model]
    run(*argv, code=2)
    assert "exists; give another path, or --overwrite" in capsys.readouterr().err
    argv += ["--overwrite"]
    many = ["--num-features", "128", "--reg", "1e-30"]
    run(*argv, *many, code=2)
    printed = capsys.readouterr().err
    assert "singular" in printed and "with another --reg needs no pass" in printed
    checkpoint = tmp_path / "model.jns.checkpoint"
    assert checkpoint.exists() and model.read_bytes() == before
    checkpoint.unlink()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run(*argv, code=2)
    assert "No space left" in capsys.readouterr().err
    assert model.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.jns", "report.json"]


def test_written_files_are_whole_or_old(tmp_path, monkeypatch):
    report.write_files(tmp_path, {"a.txt": "old", "b.bin": b"old"})

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            report.write_files(tmp_path, {"a.txt": "new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin"]
    assert (tmp_path / "a.txt").read_text() == "old"


# Preprocessing


def options(**changes):
    argv = ["fit", "--data", "d.npz", "--output", "m.jns"]
    for name, value in changes.items():
        flag = f"--{name.replace('_', '-')}"
        argv += (
            [flag]
            if value is True
            else [flag.replace("--", "--no-", 1)]
            if (value is False)
            else [flag, str(value)]
        )
    from jax_ntk_sketch.cli import _parser

    return _parser().parse_args(argv)


@pytest.mark.parametrize(
    ("shape", "pixels", "changes", "expected"),
    [
        ((6,), False, {}, ((6,), True, False, None)),
        ((8, 8), True, {}, ((64,), False, False, None)),
        ((6,), True, {"standardize_columns": True}, ((6,), True, False, None)),
        ((8, 8), True, {"network": "cntk"}, ((8, 8, 1), False, False, None)),
        ((8, 8, 3), True, {"network": "cntk"}, ((8, 8, 3), False, True, 0.1)),
        ((99, 99, 3), True, {"network": "cntk"}, ((99, 99, 3), False, True, None)),
        ((8, 8, 3), True, {"network": "myrtle5", "zca": False, "zca_reg": 2},
         ((8, 8, 3), False, True, None)),
        ((8, 8), True, {"network": "cntk", "zca": True, "zca_reg": 2},
         ((8, 8, 1), False, True, 2.0)),
        ((8, 8, 3), True, {"network": "cntk", "standardize_images": False},
         ((8, 8, 3), False, False, 0.1)),
    ],
)  # fmt: skip
def test_steps_that_are_chosen(shape, pixels, changes, expected):
    steps = inputs_from_options(shape, pixels, options(**changes))
    found = steps.shape, steps.standardize_columns, steps.standardize_images
    assert (*found, steps.zca_reg) == expected and steps.pixels == pixels


def test_whitening_is_that_of_the_library():
    x = np.random.default_rng(0).normal(size=(70, 4, 4, 3)).astype(np.float32)
    steps = inputs.Inputs((4, 4, 3), standardize_images=True, zca_reg=0.2).learned(x)
    ready = jns.preprocessing.standardize_examples(x)
    params = jns.preprocessing.zca_fit(ready, reg=0.2)
    wanted = jns.preprocessing.zca_apply(params, ready)
    np.testing.assert_allclose(steps(x), wanted, atol=1e-4)
    again = inputs.Inputs.restored(*steps.saved())
    assert again(x[:5]).tobytes() == steps(x[:5]).tobytes()
    assert "whitens" in steps.steps()[1]


def test_columns_are_standardized_in_double_precision():
    rng = np.random.default_rng(0)
    x = rng.normal([0, 1e6, 0], size=(50, 3))
    x[:, 2] = 0.1  # constant columns are centered only
    steps = inputs.Inputs((3,), standardize_columns=True).learned(x)
    z = steps(x)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(axis=0), [1, 1, 0], rtol=1e-5, atol=1e-6)


def test_networks():
    from jax_ntk_sketch.cli.options import network

    stds = {"W_std": 2**0.5, "b_std": None}
    dense, last = jns.stax.Dense(512, **stds), jns.stax.Dense(1, **stds)
    relu = jns.stax.Relu()
    assert network(options()) == jns.stax.serial(dense, relu, dense, relu, last)
    assert network(options(depth=0)) == jns.stax.serial(last)
    found = network(options(network="cntk", depth=5, bias_std=0.1, weight_std=1))
    assert found == jns.recipes.cntk(5, W_std=1.0, b_std=0.1)
    assert network(options(network="myrtle7")) == jns.recipes.myrtle(7, **stds)


# Mistakes


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        ("x_train.npy --targets short_y.npy", "x has 90 rows but y has 89"),
        ("x_train.npy --targets nan_y.npy", "row 5 is nan"),
        ("nan_x.npy --targets y_train.npy", "7"),
        ("x_train.npy --targets same_y.npy", "training targets are of one class"),
        ("x_train.npy", "--data X.npy needs --targets Y.npy"),
        ("y_train.npy --targets y_train.npy", "must have shape (n, ...)"),
        ("objects.npy --targets y_train.npy", "is not a .npy file"),
        ("no.npy --targets y_train.npy", "no such file or folder: no.npy"),
        ("x_train.npy --targets y_train.npy --test-data x_test.npy", "go together"),
        (
            "x_train.npy --targets y_train.npy --test-data narrow.npy --test-targets "
            "y_train.npy",
            "rows of one shape, got (90, 6) and (90, 5)",
        ),
        ("x_train.npy --target-column y", "--target-column is for tables"),
        ("parts.npz --targets y_train.npy", "--targets goes with --data X.npy"),
        ("no.npz", "no such file or folder: no.npz"),
        ("table.csv", "a table needs a target column, given by its name"),
        ("table.csv --target-column no", "no column 'no' for the target"),
        ("table.csv --target-column a", "column 'kind' is 'mid', expected a number"),
        ("digits --target-column y", "--target-column is for tables"),
        ("parts.npz --target-column y", "is for tables"),
        ("parts.npz --reg 0", "--reg: expected a number > 0, got 0"),
        ("parts.npz --reg -1", "--reg: expected a finite number >= 0, got '-1'"),
        ("parts.npz --weight-std nan", "expected a finite number >= 0, got 'nan'"),
        ("parts.npz --num-features 0", "an integer of at least 1, got '0'"),
        ("parts.npz --method magic", "invalid choice: 'magic'"),
        ("parts.npz --method exact", "invalid choice: 'exact'"),
        ("parts.npz --objective kernel", "--objective is for variance_reduced"),
        ("parts.npz --num-features 1", "num_features must be"),
        ("parts.npz --num-features 200000 --max-memory 1", "smaller --num-features"),
        ("parts.npz --network cntk", "needs images"),
        ("parts.npz --network myrtle5", "--depth is for fc and cntk; myrtle5 has"),
        ("parts.npz --zca", "--zca and --standardize-images are for image networks"),
        ("parts.npz --output text.txt", "--output text.txt: must end in .jns"),
        ("parts.npz --output old.jns", "exists; give another path"),
        ("parts.npz --output old.jns --overwrite", "is not a model of this library"),
        ("parts.npz --output text.txt/m.jns", "cannot write in text.txt"),
        ("parts.npz --report-json out.txt", "--report-json out.txt: must end in .json"),
        ("parts.npz --checkpoint new.jns", "must be different files"),
        ("parts.npz --checkpoint text.txt", "text.txt"),
        ("parts.npz --unknown", "unrecognized arguments: --unknown"),
    ],
)
def test_mistakes(files, monkeypatch, capsys, argv, match):
    monkeypatch.chdir(files)
    (files / "old.jns").write_bytes((files / "parts.npz").read_bytes())
    words = ["fit", *SMALL, "--output", "new.jns", "--data", *argv.split()]
    check_mistake(capsys, words, match)
    assert not (files / "new.jns").exists()


def test_without_what_tables_and_digits_need(files, tmp_path, monkeypatch, capsys):
    words = ["fit", *SMALL, "--output", tmp_path / "m.jns", "--data"]
    monkeypatch.setitem(sys.modules, "sklearn", None)
    check_mistake(capsys, [*words, "digits"], 'pip install "jax_ntk_sketch[sklearn]"')
    monkeypatch.setitem(sys.modules, "pandas", None)
    words += [files / "table.csv", "--target-column", "kind"]
    check_mistake(capsys, words, 'pip install "jax_ntk_sketch[tables]"')


def test_a_bug_keeps_its_traceback(files, tmp_path, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(jns.cli.fit, "_bytes_needed", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["fit", *SMALL, "--data", str(files / "parts.npz"), "--output", "m.jns"])


def test_planned_memory_grows_as_stated(files):
    args = options()
    net = jns.stax.serial(jns.stax.Dense(1), jns.stax.Relu(), jns.stax.Dense(1))
    fmap = jns.feature_map(net, num_features=4000, method="one_pass")
    steps = inputs.Inputs((6,))
    targets = jns.cli.fit.Targets.of(np.arange(9000) % 3, "classification")
    needed = jns.cli.fit._bytes_needed(fmap, steps, targets, args)
    assert 32 * 4000**2 < needed < 40 * 4000**2
    fmap = dataclasses.replace(fmap, method=jns.methods.Nystrom())
    with_sample = jns.cli.fit._bytes_needed(fmap, steps, targets, options())
    assert with_sample > needed  # 12000 landmarks and their inverse root


def test_seed_and_kernel_reach_the_features(files, tmp_path):
    kinds = []
    for kernel in ("ntk", "nngp"):
        argv = ["--data", files / "parts.npz", "--kernel", kernel, "--seed", "3"]
        model, _ = fitted(tmp_path, *argv)
        kinds.append(weights(model))
        assert jns.io.load(model).fmap.get == kernel
    assert kinds[0] != kinds[1]
    found = jns.io.load(model)
    wanted = found.fmap.init(jax.random.key(3), (6,))
    assert found.fmap.get == "nngp"
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted)
