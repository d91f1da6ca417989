"""The wide residual network: its kernel, its finite form, its features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import check_exact

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt

pytestmark = pytest.mark.filterwarnings("ignore:`FanIn` layers assume")

IMAGES = np.random.default_rng(0).normal(size=(4, 6, 5, 3))


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


@pytest.mark.long
@pytest.mark.parametrize(
    ("dtype", "arguments"),
    [
        ("float64", {"blocks_per_group": 2, "b_std": 0.1}),
        ("float32", {"blocks_per_group": 1, "width_factor": 2, "W_std": 1.0}),
    ],
)
def test_exact_is_neural_tangents(dtype, arguments):
    check_exact(jns.recipes.wide_resnet(**arguments), IMAGES, dtype)


def test_shape_of_the_finite_network():
    """6 blocks_per_group + 4 layers have weights, and the two shortcuts."""
    net = jns.recipes.wide_resnet(2, 3, out_dim=7)
    shapes = []

    def init(key):
        shape, params = jnt.to_stax(net)[0](key, (2, 32, 32, 3))
        shapes.append(shape)
        return params

    params = jax.eval_shape(init, jax.random.key(0))
    assert shapes == [(2, 7)]
    kernels = [w.shape for w in jax.tree.leaves(params) if len(w.shape) == 4]
    assert len(kernels) == 1 + 3 * (2 * 2 + 1) and max(w[3] for w in kernels) == 192
    layers = list(stax.walk(net, into_branches=True))
    strides = [x.strides for x in layers if isinstance(x, stax.Conv)]
    assert strides.count((2, 2)) == 4  # two groups, on both paths
    assert eval(repr(net)) == net == stax.from_json(stax.to_json(net))


METHODS = ["ntk_random_features", "ntk_sketch", "variance_reduced"]


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_columns_of_a_full_size(method):
    """Nothing is compiled: that would take a minute; blocks alone: test_branches."""
    fmap = jns.feature_map(jns.recipes.wide_resnet(1), num_features=4096, method=method)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def run(key, x):
        return fmap.apply(fmap.init(key, x.shape[1:]), x)

    out = jax.eval_shape(run, jax.random.key(0), x)
    assert out.shape == (2, 4096) and out.dtype == jnp.float32
    assert fmap.plan(x.shape[1:]).num_features == 4096


@pytest.mark.parametrize("arguments", [(0,), (True,), (2, 1.5), (2, 0)])
def test_mistakes(arguments):
    with pytest.raises((TypeError, ValueError), match=r"must be an integer.*, got"):
        jns.recipes.wide_resnet(*arguments)
