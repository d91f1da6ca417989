"""Every benchmark runs, at a small size and on made-up data, and writes a table."""

import io
import pathlib
import runpy
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))
import common  # noqa: E402

TINY_MAPS = "--num-features 64 --seeds 2"
CHOICES = "--depths 1 --rows 60 --seeds 2 --most-seeds 2 --images 20 --side 4 "
CHOICES += "--columns 8 --opponents "
CHOICES += "'OnePass(2)' 'Nystrom(oversample=1)' \"compress VarianceReduced('kernel')\""
RUNS = {
    "activations-degree": "activations.py degree --num 20 --dim 5 --degree 4",
    "activations-features-ntk": "activations.py features --get ntk --num 20 --dim 5 "
    "--activations erf --methods ntk_sketch " + TINY_MAPS,
    "cifar10-features-cntk": "cifar10.py features --num-train 150 --num-test 20 "
    "--num-features 32 --fully-connected",
    "cntk_regression-regression": "cntk_regression.py regression --fit 20 --test 20 "
    "--side 4 --generated 64 --num-features 32 --seeds 1",
    "convolutional-accuracy": "convolutional.py accuracy --widths 32 --seeds 2 "
    "--num 12 --side 8 --others 20 --methods nystrom ntk_random_features",
    "convolutional-throughput": "convolutional.py throughput --batch-sizes 4 "
    "--methods variance_reduced",
    "default-oblivious": "default.py oblivious --sets bike MUTAG " + CHOICES,
    "default-data": "default.py data --sets bike cifar10_lossless_subset " + CHOICES,
    "default-times": "default.py times --num-rows 60 --depths 1 --columns 64",
    "fully_connected-accuracy": "fully_connected.py accuracy --depths 1 "
    "--methods ntk_sketch nystrom " + TINY_MAPS,
    "fully_connected-throughput": "fully_connected.py throughput --num-timed 64 "
    "--methods ntk_random_features",
    "gradients-means": "gradients.py means --num-features 16 --max-keys 20 "
    "--cosines 0.8 --methods ntk_random_features exact one_pass",
    "graphs-accuracy": "graphs.py accuracy --blocks 2 --methods ntk_random_features "
    + TINY_MAPS,
    "memory-fits": "memory.py fits --cases tiny --max-gib 0.001",
    "pareto-regression": "pareto.py regression --methods variance_reduced "
    "'exact eigenvectors' " + TINY_MAPS,
    "scale": "scale.py features exact --num-train 300 --num-chosen 100 "
    "--num-features 64",
    "solvers-cg": "solvers.py cg --depth 1 --num-train 200 --num-features 32",
    "uci-table": "uci.py table --sets bike --splits 1 --width 64 --num-chosen 100 "
    "--num-exact 200",
    "uci-downstream": "uci.py downstream --sets bike --num-train 200 --maps nystrom "
    "compress " + TINY_MAPS,
}


def has_history():
    command = ["git", "-C", FOLDER, "cat-file", "-e", "6ecfbb4^{commit}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def jpeg_bytes(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder with data sets of the right shapes."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def images(n, *shape):
        return rng.integers(0, 256, (n, *shape), np.uint8)

    def archive(name, **arrays):
        (folder / name).parent.mkdir(exist_ok=True)
        np.savez(folder / name, **arrays)

    for name, shape, n, n_test in (
        ("mnist.npz", (28, 28), 5000, 2000),
        ("cifar10_lossless_subset.npz", (32, 32, 3), 120, 20),
    ):
        archive(
            name,
            x_train=images(n, *shape),
            y_train=np.arange(n) % 10,
            x_test=images(n_test, *shape),
            y_test=np.arange(n_test) % 10,
        )
    jpeg: dict[str, np.ndarray] = {}
    for part, n in (("train", 200), ("test", 40)):
        files = [jpeg_bytes(image) for image in images(n, 32, 32, 3)]
        jpeg[f"jpeg_{part}"] = np.frombuffer(b"".join(files), np.uint8)
        jpeg[f"offsets_{part}"] = np.cumsum([0, *map(len, files)])
        jpeg[f"y_{part}"] = np.arange(n) % 10
    archive("cifar10_jpegbytes.npz", **jpeg)
    x = rng.normal(size=(300, 5))
    archive(
        "uci_regression/bike.npz",
        X=x,
        y=np.sin(x[:, 0]),
        test_mask=rng.random((300, 3)) < 0.2,
    )
    graphs = np.arange(20)
    archive(
        "graphs/MUTAG.npz",
        y=graphs % 2,
        n_nodes=np.full(20, 4),
        n_edges=np.full(20, 3),
        node_tag=rng.integers(0, 3, 80),
        edge_i=np.tile([0, 1, 2], 20),
        edge_j=np.tile([1, 2, 3], 20),
        fold1_train=graphs[:15],
        fold1_test=graphs[15:],
    )
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_benchmark_runs(name, data, tmp_path, monkeypatch):
    if name.startswith("default") and not has_history():
        pytest.skip("this checkout has no history, and so no frozen version")
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    monkeypatch.setattr(common, "RESULTS", results)
    script, *options = shlex.split(RUNS[name])
    options += ["--data", str(data), "--output", str(tmp_path), "--write"]
    monkeypatch.setattr(sys, "argv", [str(FOLDER / script), *options])
    runpy.run_path(sys.argv[0], run_name="__main__")
    section = common.read_section(results, name)
    assert str(data) not in section and "--data FOLDER" in section
    for rows in common.read_tables(section):
        assert rows
        for row in rows:
            assert sum(map(bool, row.values())) >= 2, row
            assert "nan" not in str(row), row
    assert (tmp_path / f"{name}.json").is_file()


def test_every_job_has_a_run_or_takes_too_long():
    scripts = {run.split()[0] for run in RUNS.values()}
    without_jobs = {"common.py", "figure.py", "layers.py", "maps.py", "two_machines.py"}
    without_jobs |= {"default_opponents.py", "default_sets.py"}
    known = scripts | without_jobs | {"sparse.py"}  # of dimension 10^6
    assert {path.name for path in FOLDER.glob("*.py")} == known
