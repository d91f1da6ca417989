"""Several devices and several processes: the same features and weights as one."""

import functools
import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch import methods, sharding, stax
from jax_ntk_sketch.linear_model import checkpoint

ROOT = pathlib.Path(jns.__file__).parent.parent
CHILD = pathlib.Path(__file__).parent / "sharding_child.py"
SCRIPT = ROOT / "benchmarks" / "two_machines.py"

# Seconds in which JAX is to find that a process is gone, and those that it may take
# to end the others then.
HEARTBEAT, GRACE = 10, 10


def start(*args, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    env["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, env=env, text=True)


def result(process):
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    return out


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def test_eight_devices_equal_one():
    found = json.loads(result(start(CHILD, "devices", devices=8)))
    assert found.pop("devices") == 8
    error = found.pop("error")
    assert "in example 3 " in error or "in example 400 " in error
    for name, value in found.items():
        assert value < (2e-6 if "features" in name else 1e-6), (name, value)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes with two devices each say, and those two lists of names."""
    folder, port = tmp_path_factory.mktemp("sums"), free_port()
    both = [start(CHILD, "processes", i, port, folder, devices=2) for i in (0, 1)]
    return [json.loads(result(process).splitlines()[-1]) for process in both]


@pytest.mark.long
def test_two_processes_equal_one(two):
    for said in two:
        assert said["devices"] == 4
        assert said["relative"] < 1e-6 and said["empty relative"] < 1e-6
        assert said["stream relative"] < 1e-6
        assert said["features"] < 2e-6
        assert said["num_classes"] == 3
        assert said["resumed"] == said["parts"] == said["again"]
        assert said["parts"] == said["late"] == said["at the end"]
        assert said["files"] == ["sums.process0.jns", "sums.process1.jns"]
        assert np.shape(said["fold errors"]) == (3, 2)
    for name in ("parts", "empty", "folds", "classes", "fold errors"):
        assert two[0][name] == two[1][name], name


@pytest.mark.long
def test_an_error_of_one_process_is_one_of_both(two):
    assert two[1]["bad row"].startswith("ValueError: fit: x must be finite")
    assert two[0]["bad row"].startswith(
        "RuntimeError: fit: process 1 stopped with an error: ValueError: fit: x must"
    )
    # The other process hears of it long before the end of its own 500 batches.
    assert two[0]["late bad row"].startswith("ValueError: fit: x must be finite")
    assert two[1]["late bad row"].startswith("RuntimeError: fit: process 0 stopped")
    assert two[0]["batches taken"] == 51 and two[1]["batches taken"] < 300
    singular = [said["singular"] for said in two]
    assert singular[0].startswith("LinAlgError: ridge_solve: reg must be at least")
    assert "process 0 stopped with an error: LinAlgError" in singular[1]
    assert two[0]["options"].startswith("RuntimeError: fit: process 1 stopped")
    assert two[1]["options"] == "ValueError: fit: folds must be 0 or at least 2, got 1"


@pytest.mark.parametrize(
    "name, message",
    [
        ("no examples", "fit: x must hold examples in one of the processes"),
        ("params", "fit: params must be the same in all processes; it is "),
        ("kinds", "targets must be the same in all processes; it is [] in process 0"),
        ("dtypes", "it is [[6], 'float32'] in process 0 and [[6], 'int32'] in process"),
        ("functions", "fmap must have the same features in all processes"),
        ("reg", "reg must be the same in all processes; it is [0.001] in process 0"),
        ("mesh", "mesh must be the same in all processes; it is [0, 1, 2048, 2049] in"),
    ],
)
def test_processes_must_agree(two, name, message):
    for said in two:
        assert said[name].startswith("ValueError: fit: "), said[name]
        assert message in said[name]


@pytest.mark.long
def test_processes_that_do_not_come_are_named(two):
    """One sleeps before a fit; it then makes one with its own mesh."""
    first, second = two
    late = "fit: process 0 has waited for process 1 to call fit with this mesh for 1 s"
    assert first["warnings"] == [late] and second["warnings"] == []
    missing = "TimeoutError: fit: all processes of the mesh must call fit, but process "
    assert first["missing"].startswith(f"{missing}1 did not within 3 s; make the same")
    assert second["missing"].startswith("RuntimeError: fit: process 0 stopped with")


@pytest.mark.long
def test_killed_processes_end_the_others_and_resume(tmp_path):
    """SIGTERM, and `kill -9` of each in turn, in the script that users start."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200_001, 6)).astype(np.float32)
    y = np.sin(x[:, 0])
    for name, array in (("x_train", x), ("y_train", y)):
        np.save(tmp_path / name, array)

    def launch(name):
        port, both = free_port(), []
        # With a checkpoint after each batch, the processes are killed early on.
        for i in (0, 1):
            args = f"--coordinator localhost:{port} --num-processes 2 --process-id {i}"
            args += f" --data {tmp_path} --num-features 64 --batch-size 64"
            args += f" --checkpoint {tmp_path / name} --checkpoint-seconds 0"
            args += f" --save {tmp_path / name}.jns --heartbeat-seconds {HEARTBEAT}"
            both.append(start(SCRIPT, *args.split()))
        return both

    def done(name):
        files = [tmp_path / name / f"sums.process{i}.jns" for i in (0, 1)]
        if not all(file.exists() for file in files):
            return [0, 0]
        return [checkpoint.load(file)[1]["batches"] for file in files]

    whole = launch("whole")
    for process in whole:
        result(process)
    before = [0, 0]
    for victim, kind in ((1, "SIGTERM"), (1, "SIGKILL"), (0, "SIGKILL")):
        both = launch("killed")
        # In the second round process 0 may have nothing left to do but wait.
        while max(np.subtract(done("killed"), before)) <= 0 or not min(done("killed")):
            for process in both:
                assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        both[victim].send_signal(signal.Signals[kind])
        moment = time.monotonic()
        if kind == "SIGTERM":
            for process in both:
                _, errors = process.communicate(timeout=GRACE)
                assert process.returncode == 128 + signal.SIGTERM, errors
                assert "fit: ends because of SIGTERM after" in errors
                assert "the same call resumes from" in errors
            before = done("killed")
            continue
        _, errors = both[1 - victim].communicate(timeout=HEARTBEAT + GRACE)
        # The other ends with an error, and soon: at once where process 0 is gone.
        assert both[1 - victim].returncode not in (0, None)
        assert "another task died" in errors or "UNAVAILABLE" in errors, errors
        assert time.monotonic() - moment < (HEARTBEAT + GRACE if victim else GRACE)
        both[victim].communicate()
        before = done("killed")
        assert min(before) > 0
    for process in launch("killed"):
        result(process)
    fitted, killed = (jns.io.load(tmp_path / f"{n}.jns") for n in ("whole", "killed"))
    a, b = (np.asarray(f.best.weights).tobytes() for f in (fitted, killed))
    assert a == b
    # The same from one device.
    net = stax.serial(
        stax.Flatten(), stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1)
    )
    fmap = jns.feature_map(net, num_features=64)
    params = fmap.init(jax.random.key(0), (6,))
    one = lm.fit(fmap, params, x, y, reg=float(fitted.best.reg))
    a, b = (np.asarray(f.best.weights, np.float64) for f in (fitted, one))
    assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_the_script_runs_without_data(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--num-features", "256"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "test error 0.0" in capsys.readouterr().out


def exact(states):
    """The sums in float64, and the scale sqrt(G_ii G_jj) of each entry."""
    sums = sum(np.asarray(s.total, float) + np.asarray(s.carry, float) for s in states)
    root = np.sqrt(np.diag(sums))
    return sums, np.maximum(np.outer(root, root), 1e-300)


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", ["normal", "scaled", "heavy", "tiny"])
def test_the_reduction_keeps_the_digits(kind, wide):
    """As many as `ridge_merge`, whatever the columns' and devices' scales."""
    with x64(wide):
        dtype, rng, states = np.float64 if wide else np.float32, RNG(), []
        for device in range(5):
            n = int(rng.integers(1, 500))
            phi = rng.standard_normal((n, 40))
            if kind == "scaled":
                phi *= 10.0 ** np.linspace(-6, 6, 40)
            if kind == "heavy":
                phi = rng.standard_t(1.2, (n, 40))
            if kind == "tiny":
                phi *= 1e-13
            phi[:, 3] = 0
            phi *= 1e-3 if device == 1 else 1
            y = rng.standard_normal((n, 2))
            state = lm.ridge_init(40, 2, dtype=dtype)
            states.append(lm.ridge_update(state, phi.astype(dtype), y.astype(dtype)))
        sums, scale = exact(states)
        merged, _ = exact([functools.reduce(lm.ridge_merge, states)])
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        psum = jax.vmap(lambda s: lm.ridge_psum(s, "data"), axis_name="data")(together)
        for device in (0, 4):
            found, _ = exact([jax.tree.map(lambda a, d=device: a[d], psum)])
            assert (np.abs(found - sums) / scale).max() < 1e-12
            assert (np.abs(found - merged) / scale).max() < 1e-12
        # A plain sum of the totals would have lost half of the digits.
        if not wide:
            plain = jnp.sum(together.total, 0) + jnp.sum(together.carry, 0)
            assert (np.abs(plain - sums) / scale).max() > 1e-9


def RNG():
    return np.random.default_rng(3)


def test_meshes_that_do_not_do():
    net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    fmap = jns.feature_map(net, num_features=20)
    params = fmap.init(jax.random.key(0), (4,))
    x = np.ones((3, 4), np.float32)
    two_axes = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("a", "b"))
    for mesh, kind, message in (
        (two_axes, ValueError, r"mesh must have one axis.* got \('a', 'b'\)"),
        (jax.devices(), TypeError, "mesh must be a jax.sharding.Mesh.*; got list"),
    ):
        with pytest.raises(kind, match=f"fit: {message}"):
            lm.fit(fmap, params, x, x[:, 0], reg=1.0, mesh=mesh)
        with pytest.raises(kind, match=f"transform: {message}"):
            jns.transform(fmap, params, x, mesh=mesh)
        with pytest.raises(kind, match=f"sharding.apply: {message}"):
            sharding.apply(fmap, params, x, mesh=mesh)
    with pytest.raises(ValueError, match="devices must hold at least one"):
        sharding.data_mesh([])
    exact = jns.feature_map(net, num_features=20, method=methods.Exact())
    with pytest.raises(
        ValueError, match='the method "exact", which needs all examples'
    ):
        sharding.apply(exact, (), x, mesh=sharding.data_mesh())
