"""Convolutional networks: method "exact" against Neural Tangents.

The exact method factors the batch's own kernel with the rules of all other methods, so
what it tests is the algebra of every layer. Cross blocks of a joint batch are compared:
on the diagonal Neural Tangents' own NTK is off by the root of the rounding error.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import kernels_in_float64, x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
BOTH = ("nngp", "ntk")
ROOT2 = 2**0.5

RELU, FLAT = stax.Relu(), stax.Flatten()
MEAN, SUM = stax.GlobalAvgPool(), stax.GlobalSumPool()
MEAN1, SUM1 = stax.GlobalAvgPool(channel_axis=1), stax.GlobalSumPool(channel_axis=1)
NORM, NORM1 = stax.LayerNorm(), stax.LayerNorm(1)
IMAGE, SIGNAL, SOLID = (4, 5, 3), (7, 2), (3, 4, 3, 2)
FIRST = ("NCHW", "OIHW", "NCHW")


def conv(*shape, strides=None, padding="VALID", W_std=1.3, b_std=None, order=None):
    return stax.Conv(1, shape, strides, padding, W_std, b_std, order)


def avg(*shape, strides=None, padding="VALID", edges=False, axis=-1):
    return stax.AvgPool(shape, strides, padding, edges, channel_axis=axis)


def add(*shape, strides=None, padding="VALID", axis=-1):
    return stax.SumPool(shape, strides, padding, channel_axis=axis)


def dense(b_std=None):
    return stax.Dense(1, ROOT2, b_std)


same = functools.partial(conv, padding="SAME")
wrapped = functools.partial(conv, padding="CIRCULAR")
first = functools.partial(conv, order=FIRST)

# Every layer, with the least around it that makes a network: (shape, *layers).
ALONE = {
    "conv": (IMAGE, conv(3, 2), MEAN),
    "conv-same": (IMAGE, same(3, 2), MEAN),
    "conv-circular": (IMAGE, wrapped(2, 3), MEAN),
    "conv-bias": (IMAGE, same(3, 3, b_std=0.4), MEAN),
    "conv-strides": (IMAGE, conv(2, 2, strides=(1, 2)), MEAN),
    "conv-relu-flatten": (IMAGE, conv(2, 3, b_std=0.2), RELU, FLAT),
    "layer norm": (IMAGE, same(3, 3), NORM, RELU, SUM),
    "layer norm, eps": (IMAGE, conv(2, 2), stax.LayerNorm(eps=0.5), RELU, FLAT),
    "layer norm, last": (IMAGE, conv(2, 2, b_std=0.3), NORM, MEAN),
    "layer norm, flat": ((6,), dense(0.3), NORM, RELU, dense(), NORM),
    "avg pool": (IMAGE, avg(2, 3), FLAT, dense()),
    "sum pool": (IMAGE, add(3, 2), FLAT, dense()),
    "avg pool, behind": (IMAGE, conv(1, 2), RELU, avg(2, 2), FLAT),
    "sum pool, behind": (IMAGE, conv(1, 2), RELU, add(2, 2, strides=(2, 1)), FLAT),
    "global avg pool": (IMAGE, MEAN, dense(0.1)),
    "global sum pool": (IMAGE, SUM, dense(0.1)),
    "flatten": (IMAGE, FLAT, dense(0.1)),
    "flatten flat": ((6,), FLAT, dense(), RELU, FLAT),
    "dense on pixels": (IMAGE, dense(0.2), RELU, MEAN),
    "identity": (SIGNAL, stax.Identity(), conv(2), stax.Identity(), RELU, MEAN),
}

EDGES = {"padding": "SAME", "edges": True}
MIXED = {
    "1-D same": (SIGNAL, same(3), RELU, same(3, b_std=0.2), RELU, MEAN, dense()),
    "1-D strides": (
        (9, 2), same(4, strides=(2,), b_std=0.3), RELU, conv(3, strides=(2,)), RELU,
        FLAT, dense(0.1),
    ),
    "1-D circular": (
        SIGNAL, wrapped(4, strides=(2,)), RELU, wrapped(3), RELU, avg(3, strides=(2,)),
        SUM, dense(),
    ),
    "1-D channels first": (
        (2, 7), conv(3, b_std=0.3, order=("NCH", "OIH", "NCH")), NORM1, RELU,
        avg(2, strides=(1,), padding="SAME", axis=1),
        conv(2, order=("NCH", "HIO", "NCH")), RELU, MEAN1,
    ),
    "strides 2, 1": (
        (6, 5, 3), same(3, 2, strides=(2, 1), b_std=0.1), RELU,
        same(2, 3, strides=(1, 2)), RELU, MEAN, dense(0.2),
    ),
    "circular": (
        (6, 4, 1), wrapped(3, 3, strides=(2, 1)), RELU, wrapped(2, 2), RELU, FLAT,
        dense(),
    ),
    "edges": (
        (5, 5, 2), same(3, 3, b_std=0.1), RELU, avg(3, 2, strides=(2, 2), **EDGES),
        same(2, 2), RELU, avg(2, 3, padding="SAME"), FLAT, dense(),
    ),
    "edges before relu": (
        (5, 4, 2), same(2, 2), avg(3, 3, **EDGES), RELU, conv(2, 2), RELU, MEAN,
    ),
    "circular pool": (
        (5, 4, 2), conv(2, 2, b_std=0.2), RELU, avg(3, 2, padding="CIRCULAR"),
        same(3, 3), RELU, add(2, 2, strides=(2, 1), padding="CIRCULAR"), SUM,
    ),
    "window and stride": (
        (6, 6, 2), same(3, 3), RELU, avg(3, 3, strides=(2, 1), padding="SAME"),
        conv(2, 2), RELU, add(2, 1, strides=(1, 2)), MEAN, dense(),
    ),
    "channels first": (
        (3, 4, 5), first(3, 3, padding="SAME", b_std=0.2), RELU,
        avg(2, 2, strides=(2, 2), axis=1), first(2, 2), RELU, MEAN1, dense(0.1),
    ),
    "channels first, sums": (
        (2, 5, 4), conv(2, 3, b_std=0.1, order=("NCHW", "HWIO", "NCHW")), NORM1, RELU,
        add(2, 2, axis=1), first(2, 1), RELU, SUM1,
    ),
    "channels first, flat": (
        (3, 4, 4), first(2, 2, strides=(2, 1)), RELU, FLAT, dense(), RELU, dense(),
    ),
    "NHWC": (
        (4, 4, 2), conv(2, 2, order=("NHWC", "OIHW", "NHWC")), RELU, same(3, 3), RELU,
        MEAN, dense(),
    ),
    "connected head": (
        (4, 5, 2), same(3, 3), RELU, FLAT, dense(0.2), RELU, dense(0.1), RELU, dense(),
    ),
    "pooled head": (
        (4, 4, 2), same(3, 3, b_std=0.2), stax.serial(RELU, stax.serial(MEAN)),
        dense(), stax.Identity(), RELU, dense(0.3),
    ),
    "1 x 1": (
        IMAGE, conv(1, 1), RELU, same(3, 3), RELU, conv(1, 1, b_std=0.3), RELU,
        conv(1, 1, strides=(2, 2)), RELU, MEAN,
    ),
    "linear twice": (
        (5, 5, 2), same(3, 3, b_std=0.1), conv(2, 2, b_std=0.2), RELU,
        same(2, 2), same(3, 1, b_std=0.3), RELU, FLAT, dense(), dense(0.1),
    ),
    "linear": (IMAGE, same(3, 3, b_std=0.4), conv(2, 2, b_std=0.2), avg(2, 2), FLAT),
    "pool first": (
        (6, 5, 2), avg(2, 2, padding="SAME"), conv(2, 2), avg(2, 2), RELU, same(3, 3),
        add(2, 2), RELU, add(2, 1), MEAN, dense(),
    ),
    "norms": (
        (4, 4, 3), same(3, 3, b_std=0.1), NORM, RELU, avg(2, 2), same(2, 2), NORM,
        RELU, FLAT, dense(), NORM, RELU, dense(),
    ),
    "3-D": (
        SOLID, same(2, 3, 2, b_std=0.2), RELU, avg(1, 2, 2, strides=(2, 1, 1)),
        same(2, 1, 2), RELU, MEAN, dense(),
    ),
    "3-D channels first": (
        (2, 3, 3, 3), conv(2, 2, 2, strides=(1, 2, 1), padding="CIRCULAR",
        order=("NCDHW", "OIDHW", "NCDHW")), RELU, FLAT, dense(0.1),
    ),
    "myrtle": ((16, 16, 3), jns.recipes.myrtle(5)),
    "cntk": ((4, 4, 3), jns.recipes.cntk(2, b_std=0.1)),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


def examples(shape, n=4):
    """Rounded to single precision; the last is smaller than the others."""
    x = np.random.default_rng(0).standard_normal((n, *shape)).astype(np.float32)
    x[-1] *= 0.1
    return x.astype(np.float64)


def exact_features(net, x, dtype="float64"):
    """Features of both kernels, by the "exact" method; {kind: (n, columns)}."""
    with x64(dtype == "float64"):
        fmap = jns.feature_map(net, num_features=1, get=BOTH, method="exact")
        params = fmap.init(jax.random.key(0), x.shape[1:])
        out = registry.jit_once(fmap.apply)(params, jnp.asarray(x, dtype))
        assert out.ntk.dtype == np.dtype(dtype)
        return {kind: np.asarray(getattr(out, kind)) for kind in BOTH}


def assert_equal_kernels(features, exact, half, tolerance):
    for kind in BOTH:
        z = features[kind].astype(np.float64)
        error = np.linalg.norm(z[:half] @ z[half:].T - exact[kind])
        assert error <= tolerance * np.linalg.norm(exact[kind]), kind
        assert np.linalg.norm(exact[kind]) > 0


def assert_equals_neural_tangents(shape, layers, n=4):
    net, x = stax.serial(*layers), examples(shape, n)
    exact = kernels_in_float64(net, x[: n // 2], x[n // 2 :])
    for dtype, tolerance in TOLERANCE.items():
        features = exact_features(net, x, dtype)
        assert_equal_kernels(features, exact, n // 2, tolerance)


@pytest.mark.parametrize("name", ALONE)
def test_each_layer_equals_neural_tangents(name):
    shape, *layers = ALONE[name]
    assert_equals_neural_tangents(shape, layers)


@pytest.mark.long_cases(
    "myrtle",
    "edges",
    "1 x 1",
    "pool first",
    "sums",
    "norms",
    "linear twice",
    "3-D",
    "1-D",
)
@pytest.mark.parametrize("name", MIXED)
def test_networks_equal_neural_tangents(name):
    shape, *layers = MIXED[name]
    assert_equals_neural_tangents(shape, layers, n=2 if name == "myrtle" else 4)
