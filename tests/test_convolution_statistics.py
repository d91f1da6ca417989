"""Random features of convolutional networks: means, rates, batches, gradients."""

import functools

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.validation.measures import loglog_slope

KEY = jax.random.key(0)
BOTH = ("nngp", "ntk")


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Random features of networks with one hidden layer.

HIDDEN = {
    "concatenated": ("hadamard", (5, 4, 2), None),
    "bias": ("hadamard", (5, 4, 2), 0.4),
    "gaussian": ("gaussian", (5, 4, 2), 0.4),
    "sphere": ("sphere", (5, 4, 2), 0.4),
    "patches": ("hadamard", (4, 3, 24), 0.4),  # 217 channels, more than 64
}


def exact_kernels(net, x):
    def run(x1, x2):
        return jnt.to_stax(net)[2](x1, x2, BOTH)._asdict()

    with x64():
        x = jnp.asarray(x, jnp.float64)
        half = len(x) // 2
        return jax.tree.map(np.asarray, registry.jit_once(run)(x[:half], x[half:]))


def cross_blocks(fmap, x, seeds, seed=0):
    """{kind: (seeds, n/2, n/2)}."""
    half = len(x) // 2

    def one(key):
        phi = fmap.apply(fmap.init(key, x.shape[1:]), x)
        return {
            kind: jnp.matmul(z[:half], z[half:].T, precision=jax.lax.Precision.HIGHEST)
            for kind, z in phi._asdict().items()
        }

    keys = jax.random.split(jax.random.key(seed), seeds)
    return jax.tree.map(np.asarray, registry.jit_once(jax.vmap(one))(keys))


@pytest.mark.long_cases("sphere", "concatenated")
@pytest.mark.parametrize("name", HIDDEN)
def test_one_hidden_layer_is_unbiased(name):
    """False alarm rate 1e-4; Hadamard directions have a bias of up to 0.5 %."""
    directions, shape, b_std = HIDDEN[name]
    conv = stax.Conv(1, (3, 3), None, "SAME", 1.3, b_std)
    net = stax.serial(conv, stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1, 1.1, 0.2))
    x = normal(4, *shape)
    x[3] += x[0]
    method = methods.NTKRandomFeatures(directions=directions)
    fmap = jns.feature_map(net, num_features=200, get=BOTH, method=method)
    samples, exact = cross_blocks(fmap, x, 1000), exact_kernels(net, x)
    for kind in BOTH:
        slack = 0.005 if directions == "hadamard" else 0.0
        contract.assert_mean(samples[kind], exact[kind], slack=slack)


@pytest.mark.long
@pytest.mark.parametrize("method", ["ntk_random_features", "published"])
def test_error_falls_like_the_inverse_square_root(method):
    """Two hidden layers, patches sketched: slope between -0.65 and -0.4."""
    if method == "published":
        method = methods.NTKRandomFeatures(
            directions="gaussian", antithetic=False, product="tensor_srht"
        )
    conv = stax.Conv(1, (3, 3), None, "SAME", 2**0.5)
    pool, relu = stax.AvgPool((2, 2), (2, 2)), stax.Relu()
    net = stax.serial(
        conv, relu, pool, conv, relu, stax.GlobalAvgPool(), stax.Dense(1, 2**0.5)
    )
    x = normal(6, 4, 4, 3)
    exact = exact_kernels(net, x)
    sizes, errors = (48, 144, 432), []
    for m in sizes:
        fmap = jns.feature_map(net, num_features=m, get=BOTH, method=method)
        samples = cross_blocks(fmap, x, 80, seed=m)
        errors.append([np.sqrt(np.mean((samples[k] - exact[k]) ** 2)) for k in BOTH])
    for kind, error in zip(BOTH, np.transpose(errors), strict=True):
        slope = loglog_slope(sizes, error)
        assert -0.65 <= slope <= -0.4, (kind, slope, error)


# Feature maps of images as functions.

NET = stax.serial(
    stax.Conv(1, (3, 3), None, "SAME", 2**0.5, 0.1), stax.Relu(),
    stax.AvgPool((2, 2), (2, 2)),
    stax.Conv(1, (2, 2), None, "SAME", 2**0.5), stax.Relu(), stax.Flatten(),
    stax.Dense(1),
)  # fmt: skip


@functools.lru_cache
def prepared(method):
    fmap = jns.feature_map(NET, num_features=90, method=method)
    params = registry.jit_once(lambda key: fmap.init(key, (4, 6, 3)))(KEY)
    return fmap, params


SAMPLED = ("ntk_random_features", "ntk_sketch")


@pytest.mark.long
@pytest.mark.parametrize("method", SAMPLED)
def test_batches_and_single_images_give_the_same_features(method):
    fmap, params = prepared(method)
    x = normal(7, 4, 6, 3)
    run = registry.jit_once(fmap.apply, static_argnames="batch_size")
    whole = run(params, x)
    assert whole.shape == (7, 90) and np.isfinite(whole).all()
    for size in (3, 9):
        contract.assert_close(run(params, x, batch_size=size), whole)
    contract.assert_close(run(params, x[::-1]), whole[::-1])
    contract.assert_close(run(params, x[2:3]), whole[2:3])


def test_no_image_at_all():
    fmap, params = prepared("ntk_random_features")
    out = jax.eval_shape(fmap.apply, params, normal(0, 4, 6, 3))
    assert out.shape == (0, 90)


@pytest.mark.long
@pytest.mark.parametrize("method", SAMPLED)
def test_gradients_with_respect_to_images(method):
    """Finite, also for a black image, and the derivative along a direction.

    Steps are flat almost everywhere, and their derivative has the right mean instead
    (tests/test_gradients.py).
    """
    fmap, params = prepared(method)
    x = normal(3, 4, 6, 3).astype(np.float64)
    v, w = normal(3, 4, 6, 3, seed=1), normal(90, seed=2)

    def loss(x):
        return jnp.sum(jnp.sin(fmap.apply(params, x)) @ w.astype(x.dtype))

    with x64():
        slope = registry.jit_once(jax.grad(loss))
        gradient = np.asarray(slope(x))
        assert (gradient != 0).any((1, 2, 3)).all()
        if method != "ntk_random_features":
            loss_of = registry.jit_once(loss)
            step = 1e-6
            difference = (loss_of(x + step * v) - loss_of(x - step * v)) / (2 * step)
            np.testing.assert_allclose(np.sum(gradient * v), difference, rtol=1e-5)
        x[1] = 0
        x[2, :, :3] = 0.5
        assert np.isfinite(slope(x)).all()


@pytest.mark.parametrize("method", SAMPLED)
def test_large_images_by_shape_alone(method):
    fmap = jns.feature_map(jns.recipes.myrtle(10), num_features=8192, method=method)

    def run(key, x):
        return fmap.apply(fmap.init(key, x.shape[1:]), x)

    x = jax.ShapeDtypeStruct((10**5, 224, 224, 3), np.float32)
    assert jax.eval_shape(run, KEY, x).shape == (10**5, 8192)
