"""Neural Tangents: what `load` gives, what it leaves alone, and `to_stax`."""

import pathlib
import subprocess
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.nt_networks import fully_connected_grid, inputs, networks
from helpers import x64

from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import _import_hook
from jax_ntk_sketch.interop import neural_tangents as jnt

with np.load(pathlib.Path(__file__).parent / "fixtures" / "nt_reference.npz") as file:
    REFERENCE = dict(zip(file["names"].tolist(), file["kernels"], strict=True))
GRID = fully_connected_grid()


def in_fresh_python(code: str) -> str:
    """What `code` prints, in an interpreter of its own."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def jit_once(function):
    """`jax.jit` without the effort to make a function fast that is called once."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=options)


def record(depth: int, W_std: float, b_std: float | None) -> stax.Layer:
    hidden = [stax.Dense(8, W_std, b_std), stax.Relu()] * depth
    return stax.serial(*hidden, stax.Dense(1, W_std, b_std))


def both_kernels(kernel_fn, shape, jit=False, **kwargs) -> np.ndarray:
    """NNGP and NTK, (2, 4, 3), in float64."""

    def f(x1, x2):
        return tuple(kernel_fn(x1, x2, ("nngp", "ntk"), **kwargs))

    with x64():
        nngp, ntk = (jit_once(f) if jit else f)(*inputs(shape))
    assert nngp.dtype == ntk.dtype == np.float64
    return np.stack(np.broadcast_arrays(nngp, ntk))


def relative_error(kernels: np.ndarray, reference: np.ndarray) -> float:
    return max(
        np.linalg.norm(k - r) / np.linalg.norm(r)
        for k, r in zip(kernels, reference, strict=True)
    )


# --- the kernels ------------------------------------------------------------------


@pytest.fixture(scope="module")
def nt_networks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # accuracy of the quadrature
        return networks(jnt.load().stax)


def test_reference_is_complete(nt_networks):
    assert REFERENCE.keys() == nt_networks.keys()
    assert len(REFERENCE) >= 20


@pytest.mark.parametrize("name", sorted(GRID))
def test_fully_connected_kernels_equal_those_of_the_unmodified_package(name):
    _, _, kernel_fn = jnt.to_stax(record(*GRID[name]))
    kernels = both_kernels(kernel_fn, (5,))
    assert relative_error(kernels, REFERENCE[name]) < 1e-10


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice of Neural Tangents
@pytest.mark.parametrize("name", sorted(REFERENCE.keys() - GRID.keys()))
def test_other_kernels_equal_those_of_the_unmodified_package(nt_networks, name):
    network = nt_networks[name]
    kernel_fn = network.layer[2]
    kernels = both_kernels(kernel_fn, network.shape, jit=True, **network.kwargs)
    assert relative_error(kernels, REFERENCE[name]) < 1e-10


# --- to_stax ----------------------------------------------------------------------


def test_to_stax_is_the_net_written_by_hand():
    net = stax.serial(
        stax.serial(stax.Dense(8, 1.3, 0.2), stax.Identity(), stax.Relu()),
        stax.serial(),
        stax.Dense(2, b_std=0.0),
    )
    nt_stax = jnt.load().stax
    by_hand = nt_stax.serial(
        nt_stax.Dense(8, 1.3, 0.2), nt_stax.Relu(), nt_stax.Dense(2, 1.0, 0.0)
    )
    ours, theirs = (both_kernels(f, (5,)) for f in (jnt.to_stax(net)[2], by_hand[2]))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("net", [stax.serial(), stax.Identity()])
def test_to_stax_of_nothing_is_the_linear_kernel(net):
    init_fn, apply_fn, kernel_fn = jnt.to_stax(net)
    x1, x2 = inputs((5,))
    nngp, ntk = both_kernels(kernel_fn, (5,))
    np.testing.assert_allclose(nngp, x1 @ x2.T / 5, rtol=1e-14)
    np.testing.assert_array_equal(ntk, 0.0)
    shape, params = init_fn(jax.random.key(0), x1.shape)
    assert shape == x1.shape
    np.testing.assert_array_equal(apply_fn(params, x1), x1)


def test_finite_network():
    """Of one hidden layer: its kernels have the exact ones as their means."""
    nt, num_seeds, width = jnt.load(), 200, 64
    net = stax.serial(
        stax.Dense(width, 1.4, 0.3), stax.Relu(), stax.Dense(1, W_std=1.2, b_std=0.1)
    )
    init_fn, apply_fn, kernel_fn = jnt.to_stax(net)
    x1, x2 = (jnp.asarray(x, jnp.float32) for x in inputs((5,)))
    shape, params = init_fn(jax.random.key(0), (4, 5))
    assert shape == apply_fn(params, x1).shape == (4, 1)
    # Default: one output, traced over, so that the kernels are (n1, n2).
    empirical = nt.empirical_kernel_fn(apply_fn)

    def sample(key):
        return tuple(empirical(x1, x2, ("nngp", "ntk"), init_fn(key, (4, 5))[1]))

    keys = jax.random.split(jax.random.key(1), num_seeds)
    samples = jit_once(jax.vmap(sample))(keys)
    exact = kernel_fn(x1, x2, ("nngp", "ntk"))
    for values, mean in zip(samples, exact, strict=True):
        error = values.mean(0) - mean
        standard_error = values.std(0, ddof=1) / num_seeds**0.5
        # 24 correlated entries; a false alarm in less than 1 of 5000 runs.
        assert jnp.abs(error / standard_error).max() < 4.5
        assert jnp.linalg.norm(standard_error) < 0.2 * jnp.linalg.norm(mean)


@pytest.mark.parametrize("window", ["channels last", "channels first"])
def test_shapes_of_finite_convolutional_networks(window):
    """Every spatial record, by the finite network's own shapes."""
    first = window == "channels first"
    axis, order = (1, ("NCHW", "OIHW", "NCHW")) if first else (-1, None)
    conv = stax.Conv(7, (3, 2), (2, 1), "SAME", dimension_numbers=order)
    avg = stax.AvgPool((2, 2), None, "SAME", True, channel_axis=axis)
    body = (conv, stax.LayerNorm(axis), stax.Relu(), avg)
    total = stax.SumPool((2, 2), (1, 2), channel_axis=axis)
    image, pooled = ((4, 3, 9, 6), (4, 7, 4, 3))
    for layers, shape in (
        ((*body, total), pooled if first else (4, 4, 3, 7)),
        ((*body, total, stax.Flatten()), (4, 84)),
        ((*body, stax.GlobalAvgPool(channel_axis=axis)), (4, 7)),
        ((*body, stax.GlobalSumPool(channel_axis=axis), stax.Dense(2)), (4, 2)),
    ):
        init_fn, apply_fn, _ = jnt.to_stax(stax.serial(*layers))
        x = jnp.ones(image if first else (4, 9, 6, 3))
        out, params = init_fn(jax.random.key(0), x.shape)
        assert out == jax.eval_shape(apply_fn, params, x).shape == shape


def test_to_stax_of_a_record_without_a_rule_names_it():
    class Strange(stax.Layer):
        pass

    with pytest.raises(TypeError, match=r"Dense.*got Strange.*triple_rule\.register"):
        jnt.to_stax(stax.serial(stax.Dense(3), Strange()))


def test_to_stax_of_layers_of_neural_tangents():
    with pytest.raises(TypeError, match="got tuple"):
        jnt.to_stax(jnt.load().stax.Relu())


# --- what Neural Tangents does with kernels ---------------------------------------


@pytest.fixture(scope="module")
def regression():
    """Exact kernel function, inputs and targets in float32, and float64 kernels."""
    _, _, kernel_fn = jnt.to_stax(record(2, 2**0.5, 0.1))
    x_train, x_test = inputs((5,))
    y_train = np.cos(np.arange(8.0)).reshape(4, 2)
    with x64():
        train = kernel_fn(x_train, None, ("nngp", "ntk"))
        test = kernel_fn(x_test, x_train, ("nngp", "ntk"))
        kernels = {
            get: (np.asarray(getattr(train, get)), np.asarray(getattr(test, get)))
            for get in ("nngp", "ntk")
        }
    return kernel_fn, x_train, y_train, x_test, kernels


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_predict_ensemble(regression, get):
    kernel_fn, x_train, y_train, x_test, kernels = regression
    train, test = kernels[get]
    ridge = 0.01 * np.trace(train) / len(train) * np.eye(len(train))
    expected = test @ np.linalg.solve(train + ridge, y_train)
    with x64():
        predict_fn = jnt.load().predict.gradient_descent_mse_ensemble(
            kernel_fn, x_train, y_train, diag_reg=0.01
        )
        mean, covariance = predict_fn(x_test=x_test, get=get, compute_cov=True)
        late = predict_fn(t=1e9, x_test=x_test, get=get)
    np.testing.assert_allclose(mean, expected, rtol=1e-8)
    np.testing.assert_allclose(late, expected, rtol=1e-6)
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_predict_gradient_descent_mse(regression):
    """f(t) = K* K^-1 (1 - exp(-t K / size)) y, from an initial output of zero."""
    _, _, y_train, _, kernels = regression
    train, test = kernels["ntk"]
    values, vectors = np.linalg.eigh(train)
    for t, decay in ((2.0, np.exp(-2.0 * values / y_train.size)), (None, 0.0)):
        expected = test @ vectors @ np.diag((1 - decay) / values) @ vectors.T @ y_train
        with x64():
            predict_fn = jnt.load().predict.gradient_descent_mse(train, y_train)
            _, mean = predict_fn(t, np.zeros((4, 2)), np.zeros((3, 2)), test)
        np.testing.assert_allclose(mean, expected, rtol=1e-7)


def test_predict_gradient_descent_follows_the_mse(regression):
    """The general loss, an ordinary differential equation, on the one it knows."""
    _, _, y_train, _, kernels = regression
    train, test = kernels["ntk"]
    zeros = np.zeros((4, 2)), np.zeros((3, 2))
    predict = jnt.load().predict
    with x64():
        loss = predict.gradient_descent(
            lambda fx, y: 0.5 * jnp.mean((fx - y) ** 2), train, y_train
        )
        mse = predict.gradient_descent_mse(train, y_train)
        numerical, exact = (f(3.0, *zeros, test)[1] for f in (loss, mse))
    np.testing.assert_allclose(numerical, exact, rtol=1e-4, atol=1e-5)


def test_max_learning_rate(regression):
    train, _ = regression[-1]["ntk"]
    rate = jnt.load().predict.max_learning_rate(jnp.asarray(train), y_train_size=8)
    expected = 2 * 8 / np.linalg.eigvalsh(train)[-1]
    assert rate == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("device_count", [0, -1])
def test_batch(regression, device_count):
    kernel_fn, x_train, _, _, kernels = regression
    batched = jnt.load().batch(kernel_fn, batch_size=2, device_count=device_count)
    with x64():
        kernel = batched(x_train, None, "ntk")
    np.testing.assert_allclose(kernel, kernels["ntk"][0], rtol=1e-7)


@pytest.mark.filterwarnings("ignore:size requires:DeprecationWarning")
def test_empirical_kernels_are_products_of_jacobians():
    nt = jnt.load()
    init_fn, apply_fn, _ = jnt.to_stax(record(1, 2**0.5, 0.1))
    x1, x2 = inputs((5,))
    names = "JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS"

    def kernels(params):
        for name in names:
            implementation = nt.NtkImplementation[name]
            ntk_fn = nt.empirical_ntk_fn(apply_fn, implementation=implementation)
            yield ntk_fn(x1, x2, params)

    def jacobian(params, x):
        blocks = jax.jacobian(apply_fn)(params, x)
        leaves = [block.reshape(len(x), -1) for block in jax.tree.leaves(blocks)]
        return jnp.concatenate(leaves, axis=1)

    with x64():
        _, params = init_fn(jax.random.key(0), x1.shape)
        by_hand = jit_once(lambda p: jacobian(p, x1) @ jacobian(p, x2).T)(params)
        for kernel in jit_once(lambda params: tuple(kernels(params)))(params):
            np.testing.assert_allclose(kernel, by_hand, rtol=1e-10)


def test_monte_carlo_kernel():
    nt, width, n_samples = jnt.load(), 128, 64
    hidden, readout = stax.Dense(width, 2**0.5), stax.Dense(1, 2**0.5)
    net = stax.serial(hidden, stax.Relu(), readout)
    init_fn, apply_fn, kernel_fn = jnt.to_stax(net)
    x, _ = (x.astype(np.float32) for x in inputs((5,)))
    monte_carlo = nt.monte_carlo_kernel_fn(
        init_fn, apply_fn, jax.random.key(0), n_samples=n_samples
    )
    exact = kernel_fn(x, None, "ntk")
    error = jnp.linalg.norm(monte_carlo(x, None, "ntk") - exact)
    # The mean over width * n_samples neurons, whose deviations are a few times
    # the mean.
    assert error < 5 / (width * n_samples) ** 0.5 * jnp.linalg.norm(exact)


# --- load -------------------------------------------------------------------------


def test_load_returns_one_module():
    assert jnt.load() is jnt.load() is sys.modules["neural_tangents"]


def test_load_returns_what_has_been_imported(monkeypatch):
    theirs = types.ModuleType("neural_tangents")
    monkeypatch.setitem(sys.modules, "neural_tangents", theirs)
    assert jnt.load() is theirs


def test_load_of_a_blocked_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    with pytest.raises(ImportError, match="pip install --no-deps neural-tangents"):
        jnt.load()


def test_experimental_says_why_it_is_missing():
    with pytest.raises(AttributeError, match=r"empirical_ntk_fn_tf.*needs TensorFlow"):
        jnt.load().experimental.empirical_ntk_fn_tf  # noqa: B018


# Lists what has changed in modules that were there before. Importing a submodule
# rightly makes it an attribute of its package.
SNAPSHOT = """
import sys, threading, time, types
import jax, jax.extend.core, jax.interpreters.ad, scipy.linalg
from jax_ntk_sketch.interop import neural_tangents as jnt

def loaded(package):
    return [name for name in sys.modules if name.partition(".")[0] == package]

def snapshot():
    names = loaded("jax") + loaded("scipy") + ["builtins"]
    return list(sys.meta_path), {name: dict(vars(sys.modules[name])) for name in names}

def changes(before):
    (finders, modules), (finders_now, modules_now) = before, snapshot()
    found = [] if finders == finders_now else ["sys.meta_path"]
    for name, now in modules_now.items():
        if name not in modules:
            if getattr(now["__spec__"], "origin", None) is None:
                found.append(f"{name} is new and has no file")
            continue
        for key in (now.keys() | modules[name].keys()) - {"__warningregistry__"}:
            value = now.get(key)
            is_submodule = value is sys.modules.get(f"{name}.{key}", 0)
            if value is not modules[name].get(key) and not is_submodule:
                found.append(f"{name}.{key}")
    return found

print(loaded("neural_tangents"))
"""


def test_load_leaves_jax_alone_even_meanwhile():
    code = """
class Spy:
    "Is asked for every module that is imported, and compares JAX each time."
    seen, found = [], []
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "neural_tangents":
            self.seen.append(name)
            time.sleep(0.2 if len(self.seen) == 1 else 0)  # lets every thread in
            core, ad = vars(jax.core), vars(jax.interpreters.ad)
            if (core, ad) != self.jax or "jax.util" in sys.modules and not has_util:
                self.found.append(name)

sys.meta_path.insert(0, Spy())
has_util = "jax.util" in sys.modules
Spy.jax = dict(vars(jax.core)), dict(vars(jax.interpreters.ad))
before = snapshot()
results = []
threads = [threading.Thread(target=lambda: results.append(jnt.load())) for _ in "1234"]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
import neural_tangents
print(len(results), {result is neural_tangents for result in results})
print(changes(before), Spy.found, len(Spy.seen) > 10)
"""
    lines = in_fresh_python(SNAPSHOT + code).splitlines()
    # The first line: our package alone has not imported Neural Tangents.
    assert lines == ["[]", "4 {True}", "[] [] True"]


def test_load_that_fails_tells_what_to_install_and_leaves_nothing():
    code = """
class Blocker:
    def find_spec(self, name, path, target=None):
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocker = Blocker()
sys.meta_path.insert(0, blocker)
for blocker.name in "neural_tangents", "frozendict":
    before = snapshot()
    try:
        jnt.load()
    except ImportError as error:
        print(error)
    print(changes(before), loaded("neural_tangents"))

# Another module that cannot be found is not ours to explain.
blocker.name = "neural_tangents._src.predict"
try:
    jnt.load()
except ModuleNotFoundError as error:
    print(error.name)

# A plain import that fails may leave modules behind.
sys.meta_path.remove(blocker)
sys.modules["neural_tangents.stax"] = types.ModuleType("neural_tangents.stax")
print(jnt.load().__version__, hasattr(jnt.load().stax, "Relu"))
"""
    lines = in_fresh_python(SNAPSHOT + code).splitlines()
    install = [
        "  pip install frozendict typing_extensions",
        "  pip install --no-deps neural-tangents",
    ]
    assert "neural_tangents is not installed" in lines[1]
    assert "frozendict is not installed" in lines[5]
    assert lines[2:4] == lines[6:8] == install
    assert lines[4] == lines[8] == "[] []"
    assert lines[9] == "neural_tangents._src.predict"
    assert lines[-1] == "0.6.5 True"


# --- views ------------------------------------------------------------------------


def test_view_gives_a_module_the_names_that_it_lacks_and_no_other(monkeypatch):
    package, module = types.ModuleType("package"), types.ModuleType("package.module")
    package.module, module.present = module, 1
    monkeypatch.setitem(sys.modules, "package", package)
    monkeypatch.setitem(sys.modules, "package.module", module)
    missing = {"package.module": {"present": 2, "absent": 3}, "package.gone": {"x": 4}}
    views = _import_hook.make_views(missing)
    view = views["package"]
    assert (view.module.present, view.module.absent, view.gone.x) == (1, 3, 4)
    assert {"present", "absent"} <= set(dir(view.module))
    module.present = 5
    assert view.module.present == 5
    module.__getattr__ = {"absent": 6, "computed": 7}.__getitem__
    assert (view.module.absent, view.module.computed) == (3, 7)
    del module.__getattr__
    with pytest.raises(AttributeError, match="other"):
        view.module.other  # noqa: B018
    assert not hasattr(module, "absent") and not hasattr(package, "gone")
