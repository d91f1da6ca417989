"""The wide residual network: its kernel, its finite form, its features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt

pytestmark = pytest.mark.filterwarnings("ignore:`FanIn` layers assume")

BOTH = ("nngp", "ntk")
IMAGES = np.random.default_rng(0).normal(size=(4, 6, 5, 3))


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


@pytest.mark.parametrize(
    ("dtype", "arguments"),
    [
        ("float64", {"block_size": 2, "b_std": 0.1}),
        ("float32", {"block_size": 1, "k": 2, "W_std": 1.0}),
    ],
)
def test_exact_is_neural_tangents(dtype, arguments):
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    net = jns.recipes.wide_resnet(**arguments)
    with x64(dtype == "float64"):
        x = jnp.asarray(IMAGES, dtype)
        fmap = jns.feature_map(net, num_features=1, get=BOTH, method="exact")
        phi = registry.jit_once(fmap.apply)(fmap.init(jax.random.key(0), x), x)
        kernel_fn = registry.jit_once(jnt.to_stax(net)[2], static_argnums=2)
        wanted = kernel_fn(x[:2], x[2:], BOTH)
        for kind in BOTH:
            z, k = np.asarray(getattr(phi, kind)), np.asarray(getattr(wanted, kind))
            error = np.abs(z[:2] @ z[2:].T - k).max()
            assert error <= tolerance * np.abs(k).max(), (kind, error)


def test_shape_of_the_finite_network():
    """6 block_size + 4 layers: weights on the longest path, and the two shortcuts."""
    net = jns.recipes.wide_resnet(2, 3, 7)
    shape, params = jax.eval_shape(
        lambda key: jnt.to_stax(net)[0](key, (1, 32, 32, 3)), jax.random.key(0)
    )
    assert tuple(map(int, jax.tree.leaves(_shape(net, (2, 32, 32, 3))))) == (2, 7)
    kernels = [w.shape for w in jax.tree.leaves(params) if len(w.shape) == 4]
    assert len(kernels) == 1 + 3 * (2 * 2 + 1) and max(w[3] for w in kernels) == 192
    layers = list(stax.every_layer(net))
    strides = [x.strides for x in layers if isinstance(x, stax.Conv)]
    assert strides.count((2, 2)) == 4  # two groups, on both paths
    assert eval(repr(net)) == net == stax.from_json(stax.to_json(net))


def _shape(net, shape):
    init_fn, _, _ = jnt.to_stax(net)
    return init_fn(jax.random.key(0), shape)[0]


def test_errors_fall():
    net = jns.recipes.wide_resnet(1)
    x = jnp.asarray(IMAGES, jnp.float32)
    exact = jns.feature_map(net, num_features=1, method="exact")
    phi = np.asarray(registry.jit_once(exact.apply)(exact.init(jax.random.key(0), x), x))
    k, off = phi @ phi.T, ~np.eye(len(x), dtype=bool)
    errors = []
    for size in (2048, 8192):
        fmap = jns.feature_map(net, num_features=size, method="ntk_random_features")
        apply, squares = registry.jit_once(fmap.apply), []
        init = registry.jit_once(lambda key, fmap=fmap: fmap.init(key, x.shape[1:]))
        for key in jax.random.split(jax.random.key(1), 3):
            phi = np.asarray(apply(init(key), x))
            assert phi.shape == (len(x), size) and np.isfinite(phi).all()
            squares.append(np.square(phi @ phi.T - k)[off].mean())
        errors.append(np.sqrt(np.mean(squares) / np.square(k[off]).mean()))
    # By two at least, up to the noise of three draws.
    assert errors[1] < 0.15 and errors[1] < 0.6 * errors[0], errors


@pytest.mark.parametrize("arguments", [(0,), (True,), (2, 1.5), (2, 0)])
def test_mistakes(arguments):
    with pytest.raises(ValueError, match="must be a positive integer, got"):
        jns.recipes.wide_resnet(*arguments)
