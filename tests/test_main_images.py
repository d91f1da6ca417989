"""The job on images: end to end, its parts, and what it says of mistakes."""

import argparse
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ntk_sketch import data, feature_map, recipes, stax
from jax_ntk_sketch.cli import exact, features, images, main, memory, pixels
from jax_ntk_sketch.cli.arguments import UsageError

TINY = ["--num-train", "120", "--num-test", "60", "--num-features", "64"]
TINY += ["--depth", "1"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One run of the job on digits, two sizes of a map."""
    folder = tmp_path_factory.mktemp("main") / "out" / "report"
    argv = ["images", "--num-train", "300", "--num-test", "200", "--num-compare", "10"]
    argv += ["--depth", "1", "--num-features", "32", "256", "--output", str(folder)]
    assert main(argv) == 0
    return folder


# The job


def test_report_files(report):
    assert sorted(p.name for p in report.iterdir()) == [
        "report.json",
        "report.md",
        "report.png",
    ]
    assert (report / "report.png").read_bytes()[:4] == b"\x89PNG"
    text = (report / "report.md").read_text()
    assert text.startswith("# Convolutional NTK features of digits")
    assert "| pixels" in text and "Pixels are taken as they are" in text


def test_report_numbers(report):
    content = json.loads((report / "report.json").read_text())
    assert content["data"]["num_train"] == 300 and content["data"]["num_test"] == 200
    assert content["data"]["image_shape"] == [8, 8, 1]
    assert content["chance"] < 0.3 < 0.8 < content["pixels"]["accuracy"] < 0.97
    assert stax.from_json(json.dumps(content["network"])) == recipes.cntk(1)
    assert content["exact"]["seconds"]["run"] > 0
    small, large = content["rows"]
    assert (small["num_features"], large["num_features"]) == (32, 256)
    assert large["accuracy"] > 0.6
    error = {m: row["errors"]["ntk"] for m, row in ((32, small), (256, large))}
    assert error[256]["relative"]["mean"] < error[32]["relative"]["mean"] < 0.8
    assert len(error[32]["centred"]["values"]) == 3
    for row in (small, large):
        fmap = feature_map(
            recipes.cntk(1),
            num_features=row["num_features"],
            method="ntk_random_features",
        )
        plan = fmap.plan((8, 8, 1), batch_size=row["batch_size"])
        assert row["batch_size"] == 128 and row["planned_bytes"] == plan.peak_bytes
        assert row["feature_bytes"] == 500 * row["num_features"] * 4
        assert row["peak_bytes"] > 50e6
        if sys.platform == "linux":
            # A plan of a few MiB, and what the allocator keeps.
            most = 1.5 * row["planned_bytes"] + row["feature_bytes"] + 2**25
            assert 0 <= row["grown_bytes"] < most
        assert row["num_images"] == 500
        speed = 500 / row["seconds"]["features"]
        assert row["images_per_second"] == pytest.approx(speed)


def test_colour_images_are_whitened(tmp_path, capsys):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(3, 6, 6, 3))
    y = rng.integers(0, 3, 80)
    x = 128 + 30 * (means[y] + 0.3 * rng.normal(size=(80, 6, 6, 3)))
    x = np.clip(x, 0, 255).astype(np.uint8)
    np.savez(tmp_path / "toy.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:],
             y_test=y[60:])  # fmt: skip
    argv = ["images", "--data", str(tmp_path / "toy.npz"), *TINY, "--num-compare", "0"]
    argv += ["--output", str(tmp_path), "--zca-reg", "0.5"]
    assert main(argv) == 0
    assert "whitening makes them" in capsys.readouterr().out
    content = json.loads((tmp_path / "report.json").read_text())
    notes = " ".join(content["data"]["notes"])
    assert "each image standardised" in notes and "reg = 0.5 of the mean" in notes
    assert content["rows"][0]["errors"] is None
    assert content["exact"]["kernel"] == "not compared (--num-compare 0)"


def test_same_seed_same_numbers(tmp_path):
    contents = []
    for name in ("a", "b"):
        argv = ["images", *TINY, "--num-compare", "0", "--seed", "4"]
        assert main([*argv, "--output", str(tmp_path / name)]) == 0
        content = json.loads((tmp_path / name / "report.json").read_text())
        row = content["rows"][0]
        # The penalty's candidates have the scale of the features drawn.
        contents.append([row["accuracy"], row["reg"], content["pixels"]["reg"]])
    assert contents[0] == contents[1]


def test_without_neural_tangents_and_matplotlib(tmp_path, monkeypatch, capsys):
    (tmp_path / "report.png").write_bytes(b"of an earlier run")

    def missing(net):
        raise ImportError("not installed")

    monkeypatch.setattr(images.jnt, "to_stax", missing)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["images", *TINY, "--output", str(tmp_path)]) == 0
    assert "not compared (neural-tangents is not installed)" in capsys.readouterr().out
    assert not (tmp_path / "report.png").exists()
    assert "No figure" in (tmp_path / "report.md").read_text()


# Mistakes


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--data", "nowhere.npz"], "no such file or folder: nowhere.npz"),
        (["--data", "{flat}"], "examples of shape (5,) are not images"),
        (["--data", "{numbers}"], "its targets are numbers; this job needs labels"),
        (["--data", "{few}"], "4 training rows are too few"),
        (["--data", "{same}"], "all the same"),
        (["--data", "{tiny}", "--depth", "3"], "AvgPool"),
        (["--num-features", "1"], "num_features must be at least"),
        (["--num-compare", "1"], "--num-compare must be 0 or at least 2, got 1"),
        (["--network", "resnet"], "invalid choice: 'resnet'"),
        (["--network", "myrtle5"], "--depth is for --network cntk"),
        (["--methods", "one_pass"], "one_pass"),
        (["--methods", "exact"], "the reference that is always shown"),
        (["--num-features", "4096", "--batch-mib", "1"], "one example takes"),
        (["--zca", "--zca-reg", "0"], "the covariance is singular"),
        (["--zca-reg", "-1"], "expected a finite number >= 0"),
        (["--target", "y"], "unrecognized arguments: --target"),
    ],
)
def test_mistakes_give_one_line_and_exit_2(tmp_path, capsys, argv, match):
    rng = np.random.default_rng(0)
    labels, grey = np.arange(30) % 3, rng.uniform(size=(30, 8, 8))
    archives = {
        "flat": (rng.uniform(size=(30, 5)), labels),
        "numbers": (grey, rng.uniform(size=30)),
        "few": (grey[:5], labels[:5]),
        "same": (np.ones((30, 8, 8)), labels),
        "tiny": (grey[:, :2, :2], labels),
    }
    for name, (x, y) in archives.items():
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        argv = [a.replace(f"{{{name}}}", f"{tmp_path}/{name}.npz") for a in argv]
    output = tmp_path / "out"
    assert main(["images", *TINY, "--output", str(output), *argv]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("python -m jax_ntk_sketch: error: ")
    assert match in printed and printed.count("\n") == 1
    assert not output.exists()


def test_help(capsys):
    assert main(["images", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--data", "--network", "--zca-reg", "--num-compare", "--batch-mib"):
        assert option in text
    assert "--target" not in text


# Parts


def options(**given):
    usual = {"zca": None, "zca_reg": 0.1, "standardize": None, "no_progress": True}
    return argparse.Namespace(**{**usual, **given})


def toy(channels, n=40):
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(n + 7, 4, 4, channels)).astype(np.float32)
    y = np.arange(n + 7) % 3
    return data.Dataset(x[:n], y[:n], x[n:], y[n:], "toy", "classification")


@pytest.mark.parametrize("batch", [9, 500])
def test_preprocessing(monkeypatch, batch):
    monkeypatch.setattr(pixels, "_BATCH", batch)
    raw = toy(1)
    same, why = pixels.preprocess(raw, options())
    assert same.x_train is raw.x_train and "as they are" in why
    colour = toy(3)
    white, why = pixels.preprocess(colour, options())
    assert "Myrtle-5" in why and "40 of 48" not in why
    flat = white.x_train.reshape(40, -1).astype(np.float64)
    np.testing.assert_allclose(flat.mean(0), 0, atol=1e-5)
    off = np.cov(flat.T, bias=True)
    assert np.linalg.eigvalsh(off)[-1] < 1  # below 1 by the regularisation
    assert white.x_test.shape == (7, 4, 4, 3) and white.x_test.dtype == np.float32
    plain, why = pixels.preprocess(colour, options(zca=False))
    np.testing.assert_allclose(plain.x_test.mean((1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(plain.x_test.std((1, 2, 3)), 1, rtol=1e-5)
    assert "Whitening (--zca)" in why
    kept, _ = pixels.preprocess(colour, options(zca=False, standardize=False))
    assert kept.x_train is colour.x_train


def test_kernel_of_images_in_blocks():
    x = toy(2).x_train[:11]

    def function(x1, x2):
        x2 = x1 if x2 is None else x2
        return jnp.einsum("ahwc,bhwc->ab", x1, x2, precision="highest")

    told = []
    kernel = exact.Kernel(function, block=4)
    matrix = kernel.symmetric(x, announce=told.append)
    expected = np.einsum("ahwc,bhwc->ab", x, x)
    np.testing.assert_allclose(matrix, expected, rtol=1e-5)
    assert len(told) == 1 and 0 < told[0] < 60
    whole = exact.Kernel(function).symmetric(x, announce=told.append)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
    assert len(told) == 1  # nothing left to wait for


def test_fewer_large_images_are_compared():
    def count(size, num_compare=None):
        x = np.random.default_rng(0).uniform(size=(60, size, size, 1))
        y = np.arange(60) % 2
        images_ = data.Dataset(x[:50], y[:50], x[50:], y[50:], "a", "classification")
        args = argparse.Namespace(num_compare=num_compare, seed=0)
        return len(images._compared(images_, args))

    assert [count(size) for size in (8, 16, 32, 64)] == [40, 40, 16, 8]
    assert count(64, 20) == 20 and count(8, 0) == 0 and count(8, 1000) == 50


def test_compiled_features():
    x = toy(1).x_train
    net = stax.serial(stax.Conv(8, (3, 3)), stax.GlobalAvgPool(), stax.Dense(1))
    fmap = feature_map(net, num_features=32)
    compiled = features.compile_features(fmap, x)
    assert compiled.seconds > 0 and compiled.batch_size == 64
    (phi, other), seconds = compiled(jax.random.key(3), x, x[:5])
    expected = fmap.apply(fmap.init(jax.random.key(3), x), x)
    np.testing.assert_allclose(phi, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other, expected[:5], rtol=1e-4, atol=1e-5)
    assert seconds > 0
    matrix = (phi @ phi.T).astype(np.float64)
    report = features.compare_drawn([phi, 2 * phi], matrix, x, reg=1e-3, label="a")
    values = report.ntk.relative.values
    np.testing.assert_allclose(values, [0, 3], atol=1e-5)


def test_peak_memory(monkeypatch):
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        pytest.skip("Linux tells what to compare with")
    (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
    assert memory.peak_resident() == pytest.approx(1024 * int(line.split()[1]), rel=0.2)
    for size in (2**26, 2**25):  # the second below the peak that the first has left
        growth = memory.PeakGrowth()
        del_me = np.ones(size // 8)
        assert 0.95 * size < growth.bytes() < 1.2 * size and del_me[0] == 1
        del del_me
        assert 0.95 * size < growth.bytes() < 1.2 * size
    monkeypatch.setattr(memory, "_PROC", pathlib.Path("/nowhere"))
    assert memory.PeakGrowth().bytes() is None


def test_networks():
    def net(**given):
        usual = {"network": "cntk", "depth": None, "W_std": 1.0, "b_std": None}
        return images.network(argparse.Namespace(**{**usual, **given}))

    assert net() == recipes.cntk(3, W_std=1.0)
    assert net(depth=5, b_std=0.1) == recipes.cntk(5, W_std=1.0, b_std=0.1)
    for depth in (5, 7, 10):
        expected = recipes.myrtle(depth, W_std=1.0)
        assert net(network=f"myrtle{depth}") == expected
    with pytest.raises(UsageError, match="myrtle7 has a depth of its own"):
        net(network="myrtle7", depth=2)
