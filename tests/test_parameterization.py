"""The standard parameterization, LayerNorm over any axes, Dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch.interop import neural_tangents as jnt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 5))
IMAGES = RNG.normal(size=(4, 4, 4, 2))
FIRST = np.moveaxis(IMAGES, -1, 1)
BOTH = ("nngp", "ntk")
NCHW = ("NCHW", "OIHW", "NCHW")


def dense(width, b_std=0.3, s=(1, 1), W_std=1.2):
    return stax.Dense(width, W_std, b_std, "standard", s)


def conv(width, b_std=0.3, s=(1, 1), strides=(1, 1), numbers=None, padding="SAME"):
    return stax.Conv(
        width, (3, 3), strides, padding, 1.1, b_std, numbers, "standard", s
    )


MIXED = stax.Dense(4, 1.1, 0.2)
POOL, FLAT, RELU = stax.GlobalAvgPool(), stax.Flatten(), stax.Relu()
STANDARD = {
    "plain": (stax.serial(dense(8), RELU, dense(6), RELU, dense(1)), X),
    "scaled": (
        stax.serial(dense(8, None, (1, 4)), RELU, dense(3, None, (4, 2)), MIXED),
        X,
    ),
    "mixed": (stax.serial(MIXED, stax.Erf(), dense(6), stax.Gelu(), MIXED), X),
    "linear": (stax.serial(dense(8), dense(6, None)), X),
    "images": (
        stax.serial(conv(8, s=(1, 2)), RELU, conv(6, s=(2, 1)), RELU, POOL, dense(1)),
        IMAGES,
    ),
    "no bias": (
        stax.serial(conv(8, None), RELU, FLAT, dense(3), RELU, dense(2)),
        IMAGES,
    ),
    "pools": (
        stax.serial(conv(8), stax.AvgPool((2, 2)), conv(5), RELU, POOL, MIXED),
        IMAGES,
    ),
    "patches of one": (
        stax.serial(
            stax.Conv(3, (1, 1), parameterization="standard", b_std=0.1), RELU, POOL
        ),
        IMAGES,
    ),
    "channels first": (
        stax.serial(
            conv(8, numbers=NCHW), RELU, stax.GlobalAvgPool(channel_axis=1), dense(2)
        ),
        FIRST,
    ),
    "transposed": (
        stax.serial(
            stax.ConvTranspose(
                5, (3, 3), (2, 2), "SAME", 1.1, 0.2, None, "standard", (1, 2)
            ),
            RELU,
            conv(3, s=(2, 1)),
            RELU,
            POOL,
        ),
        IMAGES,
    ),
    "local": (
        stax.serial(
            stax.ConvLocal(5, (3, 3), None, "SAME", 1.1, 0.2, None, "standard"),
            RELU,
            FLAT,
            dense(2),
        ),
        IMAGES,
    ),
    "concatenated": (
        stax.serial(
            stax.FanOut(2),
            stax.parallel(dense(3, s=(1, 2)), dense(5)),
            stax.FanInConcat(),
            dense(4),
        ),
        X,
    ),
}
ALL, SPATIAL = (1, 2, 3), (1, -1)
NORMS = {
    "whole image": (
        stax.serial(stax.Conv(3, (3, 3), b_std=0.1), stax.LayerNorm(ALL), RELU, POOL),
        IMAGES,
    ),
    "rows": (
        stax.serial(
            stax.Conv(3, (3, 3), padding="SAME"), stax.LayerNorm(SPATIAL), RELU, FLAT
        ),
        IMAGES,
    ),
    "after a nonlinear layer": (
        stax.serial(
            stax.Conv(3, (3, 3), padding="SAME"),
            RELU,
            stax.Conv(3, (3, 3)),
            stax.LayerNorm((1, 2, -1), eps=0.1),
            stax.Gelu(),
            POOL,
            MIXED,
        ),
        IMAGES,
    ),
    "channels first": (
        stax.serial(
            stax.Conv(3, (3, 3), dimension_numbers=NCHW),
            stax.LayerNorm((1, 3), channel_axis=1),
            RELU,
            FLAT,
        ),
        FIRST,
    ),
    "a tuple of one": (stax.serial(MIXED, stax.LayerNorm((-1,)), RELU, MIXED), X),
}
DROPS = {
    "flat": (stax.serial(MIXED, RELU, stax.Dropout(0.7), MIXED, RELU, MIXED), X),
    "twice": (
        stax.serial(
            MIXED, RELU, stax.Dropout(0.7), MIXED, stax.Erf(), stax.Dropout(0.9), MIXED
        ),
        X,
    ),
    "test": (stax.serial(MIXED, RELU, stax.Dropout(0.5, "test"), MIXED), X),
    "images": (
        stax.serial(
            stax.Conv(3, (3, 3), padding="SAME"),
            RELU,
            stax.Dropout(0.8),
            stax.Conv(3, (3, 3)),
            RELU,
            FLAT,
            MIXED,
        ),
        IMAGES,
    ),
}


def cases(*groups):
    return [
        pytest.param(*case, id=f"{group}-{name}")
        for group, nets in groups
        for name, case in nets.items()
    ]


EVERY = cases(("standard", STANDARD), ("norm", NORMS), ("dropout", DROPS))


@pytest.mark.parametrize(
    ("dtype", "net", "x"),
    [
        pytest.param(dtype, *case.values, id=f"{dtype}-{case.id}")
        for dtype, some in (("float64", EVERY), ("float32", EVERY[::3]))
        for case in some
    ],
)
@pytest.mark.filterwarnings("ignore:`FanIn` layers assume")
def test_exact_is_neural_tangents(dtype, net, x):
    """Between different examples: Dropout's kernels with themselves differ."""
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    with x64(dtype == "float64"):
        x = jnp.asarray(x, dtype)
        fmap = jns.feature_map(net, num_features=1, get=BOTH, method="exact")
        phi = jax.jit(fmap.apply)(fmap.init(jax.random.key(0), x), x)
        wanted = jnt.to_stax(net)[2](x[:2], x[2:], BOTH)
        for kind in BOTH:
            z, k = np.asarray(getattr(phi, kind)), np.asarray(getattr(wanted, kind))
            error = np.abs(z[:2] @ z[2:].T - k).max()
            assert error <= tolerance * np.abs(k).max(), (kind, error)


@pytest.mark.parametrize(
    ("net", "x", "methods"),
    [
        (*STANDARD["plain"], ("ntk_sketch", "variance_reduced")),
        (*STANDARD["images"], ("ntk_random_features",)),
        (*NORMS["after a nonlinear layer"], ("variance_reduced",)),
        (*DROPS["flat"], ("ntk_sketch",)),
    ],
    ids=["plain", "images", "norm", "dropout"],
)
def test_errors_fall(net, x, methods):
    x = jnp.asarray(x, jnp.float32)
    k = np.asarray(jnt.to_stax(net)[2](x, None, "ntk"))
    for method in methods:
        small, large = (registry.error(net, x, k, method, m) for m in (256, 2048))
        assert large < 0.15 and (large < small / 2 or large < 0.05), (small, large)


def test_text():
    for net, _ in (*STANDARD.values(), *NORMS.values(), *DROPS.values()):
        assert eval(repr(net)) == net == stax.from_json(stax.to_json(net))
    assert repr(stax.LayerNorm()) == "stax.LayerNorm()"
    assert stax.LayerNorm(1).channel_axis == 1


def test_whole_network_methods_refuse():
    """They take each layer in turn, or say that they cannot; never another kernel."""
    net, x = STANDARD["plain"]
    with pytest.raises(ValueError, match='parameterization="ntk"'):
        jns.feature_map(net, num_features=64, method="one_pass").plan((5,))
    with pytest.raises(TypeError, match='parameterization must be "ntk"'):
        kernels.cross_kernel(net, jnp.asarray(x))
    with pytest.raises(ValueError, match='parameterization must be "ntk"'):
        kernels.relu_block_series([RELU, dense(3, None), RELU], 3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: stax.Dense(3, parameterization="mup"), '"ntk" or "standard"'),
        (lambda: stax.Dense(3, s=(1, 2)), 's is for parameterization="standard"'),
        (lambda: dense(3, s=(0, 1)), "s must be a positive integer"),
        (lambda: dense(3, b_std=0.0), "b_std must be None or positive"),
        (lambda: stax.Dropout(0.0), "probability to keep"),
        (lambda: stax.Dropout(1.2), "probability to keep"),
        (lambda: stax.Dropout(0.5, "eval"), '"train" or "test"'),
        (lambda: stax.LayerNorm(()), "must hold the channel axis"),
        (lambda: stax.LayerNorm((0, -1)), "must not be 0, the batch axis"),
        (lambda: stax.LayerNorm(2, channel_axis=1), "integer axis is that of the"),
        (lambda: stax.LayerNorm(batch_axis=1), "batch_axis must be 0"),
    ],
)
def test_mistakes_in_records(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("net", "method", "match"),
    [
        (
            stax.serial(stax.Conv(3, (2, 2)), stax.LayerNorm((1, 2))),
            "exact",
            "hold the",
        ),
        (stax.serial(stax.Conv(3, (2, 2)), stax.LayerNorm((7, -1))), "exact", "4 axes"),
        (stax.serial(stax.Dropout(0.5), stax.Conv(3, (2, 2))), "exact", "the input"),
        (DROPS["images"][0], "variance_reduced", "follows Dropout, whose variances"),
        (
            stax.serial(
                stax.Conv(3, (3, 3)), stax.Dropout(0.5), POOL, MIXED, RELU, MIXED
            ),
            "exact",
            "follows Dropout and pooling",
        ),
    ],
)
def test_mistakes_in_networks(net, method, match):
    fmap = jns.feature_map(net, num_features=64, method=method)
    with pytest.raises(ValueError, match=match):
        fmap.plan((4, 4, 2))
