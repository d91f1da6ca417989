"""`compare` on the command line: end to end, its parts, and mistakes."""

import json
import sys

import numpy as np
import pytest
from cli_files import check_mistake, run, write_files

from jax_ntk_sketch import data, recipes, stax
from jax_ntk_sketch.cli import compare, compare_report, regression
from jax_ntk_sketch.cli.targets import Targets, error_of

TINY = ["--num-train", "80", "--num-test", "40", "--num-compare", "30", "--depth", "1"]
TINY += ["--num-seeds", "2", "--no-progress", "--num-features", "16", "128"]


def compared(folder, *argv):
    """Compare, and return the report as a dictionary."""
    run("compare", *TINY, "--output", folder, *argv)
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a report on digits."""
    folder = tmp_path_factory.mktemp("compare") / "out" / "report"
    compared(folder, "--method", "one_pass", "ntk_random_features")
    return folder


# End to end


def test_report_files(report):
    names = ["report.json", "report.md", "report.png"]
    assert sorted(path.name for path in report.iterdir()) == names
    assert (report / "report.png").read_bytes()[:4] == b"\x89PNG"
    text = (report / "report.md").read_text()
    assert text.startswith("# `fc` on digits") and "report.png" in text
    for words in ("| exact NTK ", "| one_pass ", "kernel error: ", "Versions: jax_ntk"):
        assert words in text


def test_report_numbers(report):
    content = json.loads((report / "report.json").read_text())
    assert content["data"]["num_train"] == 80 and content["data"]["num_test"] == 40
    assert content["metric"] == "share of wrong labels"
    assert content["exact"]["error"] < 0.4 < 0.7 < content["constant_error"]
    std = 2**0.5
    net = stax.serial(stax.Dense(512, std), stax.Relu(), stax.Dense(1, std))
    assert stax.from_json(json.dumps(content["network"])) == net
    rows = {(row["method"], row["num_features"]): row for row in content["rows"]}
    methods = ("one_pass", "ntk_random_features")
    assert rows.keys() == {(name, m) for name in methods for m in (16, 128)}
    for row in rows.values():
        assert len(row["test_error"]) == len(row["distance"]) == 2
        assert row["reg"] > 0 and row["bytes"] > 1000 and row["rows_per_second"] > 0
        assert all(seconds >= 0 for seconds in row["seconds"].values())
        assert len(row["kernel_error"]["relative"]["values"]) == 2
    for name in methods:
        fine, coarse = rows[name, 128], rows[name, 16]
        for kind in ("relative", "centered"):
            found = [row["kernel_error"][kind]["mean"] for row in (fine, coarse)]
            assert 0 < found[0] < found[1] < 2
        assert 0 < np.mean(fine["distance"]) < np.mean(coarse["distance"]) < 2
    assert "standard error of 2 draws" in compare_report.legend(content)
    content["options"]["num_seeds"] = 1
    assert "±" not in compare_report.legend(content)


@pytest.mark.long
def test_same_seed_same_numbers(report, tmp_path):
    before = json.loads((report / "report.json").read_text())["rows"][0]
    after = compared(tmp_path / "a", "--method", "one_pass")["rows"][0]
    other = compared(tmp_path / "b", "--method", "one_pass", "--seed", "4")["rows"][0]
    for name in ("test_error", "distance", "kernel_error", "reg"):
        assert after[name] == before[name] != other[name] or name == "test_error"


@pytest.mark.long
def test_every_method_by_default(tmp_path, capsys):
    argv = ["--num-features", "128", "--bias-std", "0.1", "--depth", "2"]
    content = compared(tmp_path, *argv)
    methods = [row["method"] for row in content["rows"]]
    assert "auto" not in methods and len(set(methods)) == len(methods) >= 3
    assert any(note.startswith("one_pass is left out: ") for note in content["notes"])


def test_regression_from_a_table(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 3)) * [1, 10, 100]
    y = np.sin(x[:, 0]) + x[:, 1] / 10 + 5
    lines = [",".join(map(str, row)) for row in np.column_stack([x, y])]
    (tmp_path / "table.csv").write_text("\n".join(["a,b,c,price", *lines]))
    argv = ["--data", tmp_path / "table.csv", "--target-column", "price"]
    argv += ["--method", "one_pass", "--num-features", "128", "--kernel", "nngp"]
    content = compared(tmp_path / "out", *argv)
    assert content["metric"] == "mean squared error"
    assert "Columns are standardized with the training rows." in content["notes"]
    # The target's variance is about 1.4, and a constant predicts the mean.
    assert 0.5 < content["constant_error"] < 3
    assert content["exact"]["error"] < 0.3 * content["constant_error"]
    assert np.mean(content["rows"][0]["test_error"]) < 0.5 * content["constant_error"]


def images_of(folder):
    """Write 40 color images of 6 x 6 pixels and two classes; return the options."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 200, (40, 6, 6, 3), np.uint8), np.arange(40) % 2
    x[y == 1, :3] += 50
    np.savez(folder / "d.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:],
             y_test=y[30:])  # fmt: skip
    argv = ["--data", folder / "d.npz", "--network", "cntk", "--num-compare", "10"]
    return [*argv, "--method", "ntk_random_features", "--num-features", "128"]


def test_images(tmp_path):
    content = compared(tmp_path / "out", *images_of(tmp_path), "--zca-reg", "0.5")
    notes = " ".join(content["notes"])
    assert "Each image is standardized" in notes and "ZCA with reg = 0.5" in notes
    assert stax.from_json(json.dumps(content["network"])) == recipes.cntk(1)
    assert content["exact"]["error"] < 0.5 and content["num_compare"] == 10
    assert content["rows"][0]["kernel_error"]["relative"]["mean"] < 1
    assert np.mean(content["rows"][0]["distance"]) < 1.5


def test_without_neural_tangents_and_matplotlib(tmp_path, monkeypatch, capsys):
    def missing(net):
        raise ImportError("neural-tangents is not installed")

    monkeypatch.setattr(compare.jnt, "to_stax", missing)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    argv = [*images_of(tmp_path), "--no-exact"]
    content = compared(tmp_path / "out", *argv)
    assert content["exact"] is None and content["rows"][0]["kernel_error"] is None
    assert "Exact regression is left out; --exact computes it." in content["notes"]
    assert not (tmp_path / "out" / "report.png").exists()
    assert "matplotlib is not installed" in (tmp_path / "out/report.md").read_text()
    argv = ["compare", *TINY, *images_of(tmp_path), "--output", tmp_path / "new"]
    check_mistake(capsys, argv, "neural-tangents is not installed")


# The folder


def options(*argv):
    from jax_ntk_sketch.cli import _parser

    return _parser().parse_args(["compare", *argv])


def test_reports_are_not_overwritten(report, tmp_path, monkeypatch, capsys):
    argv = ["compare", *TINY, "--output", report]
    check_mistake(capsys, argv, "exists; give another path, or --overwrite")
    folder = str(report)
    assert compare._folder(options("--output", folder, "--overwrite")) == report
    monkeypatch.chdir(tmp_path)
    assert str(compare._folder(options())) == "report"
    for name in ("report", "report-2"):
        (tmp_path / name).mkdir()
    assert str(compare._folder(options())) == "report-3"
    assert str(compare._folder(options("--overwrite"))) == "report"


# Parts


def toy(task="classification", n=30, n_test=8):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n + n_test, 4)).astype(np.float32)
    y = x @ np.arange(4.0) + 3
    if task == "classification":
        y = np.array([3, 5, 9])[np.digitize(y, [2, 4])]
    return data.Dataset(x[:n], y[:n], x[n:], y[n:], "toy", task)


def test_targets_of_classes():
    targets = Targets.of(np.array(["b", "a", "b"]), "classification")
    assert targets.num_classes == targets.num_targets == 2
    assert targets.y.tolist() == [1, 0, 1]
    codes, offset = targets.codes()
    np.testing.assert_array_equal(codes + offset, [[0, 1], [1, 0], [0, 1]])
    np.testing.assert_allclose(codes.sum(axis=1), 0)
    y = np.array(["a", "z"])  # a class that training did not have
    scores = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert error_of(scores, y, targets.classes) == 0.5
    assert targets.baseline(y) == 1.0


def test_targets_of_numbers():
    targets = Targets.of(np.array([[1.0, 0.0], [3.0, 0.0]]), "regression")
    codes, offset = targets.codes()
    assert codes.tolist() == [[-1, 0], [1, 0]] and offset.tolist() == [2, 0]
    y = np.array([[1.0, 1.0]])
    assert targets.baseline(y) == 1.0 and targets.num_targets == 2
    assert error_of(np.array([[2.0, 1.0]]), y, None) == 0.5
    with pytest.raises(ValueError, match="predictions have shape"):
        error_of(np.zeros(2), y, None)


def linear_kernel(x, z=None):
    return x @ (x if z is None else z).T + 1


def test_exact_regression_solves_kernel_ridge():
    task = regression.Regression(toy(), [0.1], seed=0)
    x, z = toy().x_train.astype(float), toy().x_test.astype(float)
    predictions, reg = task.on_kernel(linear_kernel(x), linear_kernel(z, x))
    codes, _ = task.targets.codes()
    solved = np.linalg.solve(linear_kernel(x) + 0.1 * 30 * np.eye(30), codes)
    np.testing.assert_allclose(predictions, linear_kernel(z, x) @ solved, rtol=1e-8)
    assert reg == 0.1
    labels = np.array([3, 5, 9])[predictions.argmax(axis=1)]
    assert task.error(predictions) == np.mean(labels != toy().y_test)


def test_penalties_are_chosen_on_held_out_rows():
    x, z = toy().x_train.astype(float), toy().x_test.astype(float)
    K, cross = linear_kernel(x), linear_kernel(z, x)
    # The targets are linear without noise: the smallest penalty is the best.
    task = regression.Regression(toy("regression"), [10.0, 1e-3, 1.0], seed=0)
    assert task.on_kernel(K, cross)[1] == 1e-3
    task = regression.Regression(toy("regression"), None, seed=0)
    scale = np.diag(K).mean()
    assert task.on_kernel(K, cross)[1] == pytest.approx(1e-6 * scale)
    task = regression.Regression(toy("regression"), [1.0], seed=0)
    with pytest.raises(np.linalg.LinAlgError, match="no penalty gives finite predict"):
        task.on_kernel(-K, cross)


@pytest.mark.parametrize("m", [6, 200])
def test_features_and_kernel_give_the_same_regression(m):
    """Both forms of ridge, also where features outnumber rows."""
    task = regression.Regression(toy(), [10.0, 1e-2], seed=0)
    w = np.random.default_rng(2).normal(size=(4, m)).astype(np.float32) / m**0.5
    phi, phi_test = (np.maximum(x @ w, 0) for x in (toy().x_train, toy().x_test))
    predictions, reg = task.on_features(phi, phi_test)
    phi, phi_test = phi.astype(float), phi_test.astype(float)
    expected, other = task.on_kernel(phi @ phi.T, phi_test @ phi.T)
    assert reg == other == 1e-2
    np.testing.assert_allclose(predictions, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "rows", "argv", "expected"),
    [
        ((64,), 5000, [], (4000, True)),
        ((8, 8), 5000, ["--network", "cntk"], (200, True)),
        ((32, 32, 3), 500, ["--network", "cntk"], (400, False)),
        ((8, 8), 5000, ["--network", "cntk", "--num-train", "1000"], (1000, False)),
        ((8, 8), 500, ["--network", "cntk", "--num-train", "300", "--exact"],
         (300, True)),
        ((64,), 5000, ["--no-exact"], (4000, False)),
    ],
)  # fmt: skip
def test_rows_and_exact_regression(tmp_path, shape, rows, argv, expected):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((rows, *shape), np.uint8), y=np.arange(rows) % 3)
    loaded, _, exact = compare._data(options("--data", str(path), *argv))
    assert (len(loaded.x_train), exact) == expected


# Mistakes


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        ("--data nowhere.npz", "no such file or folder: nowhere.npz"),
        ("--data few.npz", "5 training and 1 test rows are too few"),
        ("--data same.npz", "the rows to compare kernels on are equal"),
        ("--data x_train.npy --targets y_train.npy", "80 training and 0 test rows"),
        ("--data nan_x.npy --targets y_train.npy --test-data x_test.npy "
         "--test-targets y_test.npy", "7"),
        ("--data parts.npz --network cntk", "needs images"),
        ("--data tiny.npz --network cntk --depth 3 --method ntk_random_features",
         "AvgPool"),
        ("--num-features 2", "num_features must be at least"),
        ("--num-features 0", "an integer of at least 1, got '0'"),
        ("--num-compare 1", "an integer of at least 2, got '1'"),
        ("--num-seeds x", "expected an integer of at least 1, got 'x'"),
        ("--depth -1", "argument --depth: expected an integer of at least 0"),
        ("--method magic", "invalid choice: 'magic'"),
        ("--method exact", "invalid choice: 'exact'"),
        ("--method one_pass --network cntk", "one_pass"),
        ("--method one_pass --bias-std 1 --depth 2", "one_pass"),
        ("--network resnet", "invalid choice: 'resnet'"),
        ("--network cntk --standardize-columns", "is for --network fc"),
        ("--reg 1e-30 1e-29", "--reg: "),
        ("--max-memory 1e-9", "give a smaller --num-train or --num-features"),
        ("--output text.txt", "cannot write in text.txt"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, monkeypatch, capsys, argv, match):
    monkeypatch.chdir(write_files(tmp_path))
    labels = np.arange(30) % 3
    for name, x in (
        ("few", np.eye(6)),
        ("same", np.ones((30, 4))),
        ("tiny", np.random.default_rng(0).uniform(size=(30, 2, 2))),
    ):
        np.savez(f"{name}.npz", x=x, y=labels[: len(x)])
    argv = ["--method", "one_pass", "--output", "out", *argv.split()]
    check_mistake(capsys, ["compare", *TINY, *argv], match)
    assert not (tmp_path / "out").exists()
