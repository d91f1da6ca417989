"""Products with constant arrays: exact on features, for every method."""

import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import check_exact

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 3, 4, 2))
FIRST, FLAT_INPUT = np.moveaxis(IMAGES, -1, 1), IMAGES[:, 0, 0]
NCHW = ("NCHW", "OIHW", "NCHW")
RELU, FLAT, MEAN = stax.Relu(), stax.Flatten(), stax.GlobalAvgPool()
ROW, MATRIX = (1.0, -1.0, 0.5), RNG.normal(size=(4, 3))


def dense():
    return stax.Dense(4, 1.2, 0.2)


def conv(order=None, shape=(2, 2)):
    return stax.Conv(4, shape, None, "SAME", 1.1, 0.2, order)


def over(axis, other, **options):
    """Contracts an axis with the first of an array."""
    if "lhs" in options:
        return stax.DotGeneral(lhs=other, dimension_numbers=(((0,), (axis,)), ((), ())))
    numbers = (((axis,), (0,)), ((), ()))
    return stax.DotGeneral(rhs=other, dimension_numbers=numbers, **options)


NETS = {
    "scalar": (IMAGES, conv(), RELU, stax.DotGeneral(rhs=2.0), conv(), RELU, MEAN),
    "scalar, flat": (
        FLAT_INPUT, dense(), RELU, stax.DotGeneral(lhs=-3), dense(), RELU, dense(),
    ),
    "identity": (IMAGES, conv(), stax.DotGeneral(), RELU, FLAT, dense()),
    "row": (IMAGES, conv(), RELU, over(1, ROW), conv(None, (2,)), RELU, MEAN, dense()),
    "columns, left": (IMAGES, conv(), over(2, (1, 2, 0.5, 1), lhs=1), RELU, FLAT),
    "all positions": (
        IMAGES, conv(), RELU,
        stax.DotGeneral(
            rhs=RNG.normal(size=(3, 4)), precision="highest",
            dimension_numbers=(((1, 2), (0, 1)), ((), ())),
        ),
        dense(), RELU, dense(),
    ),
    "matrix, channels first": (
        FIRST, conv(NCHW), RELU, over(3, MATRIX, channel_axis=1), conv(NCHW), RELU,
        stax.GlobalAvgPool(channel_axis=1), dense(),
    ),
    "outer product, channels first": (
        FIRST, conv(NCHW), stax.DotGeneral(rhs=ROW, channel_axis=1), RELU, FLAT,
        dense(),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("float64", name) for name in NETS] + [("float32", "row"), ("float32", "scalar")],
)
def test_exact_is_neural_tangents(dtype, name):
    x, *layers = NETS[name]
    check_exact(stax.serial(*layers), x, dtype)


@pytest.mark.long
def test_errors_fall():
    x, *layers = NETS["matrix, channels first"]
    net, x = stax.serial(*layers), jnp.asarray(x, jnp.float32)
    k = np.asarray(jnt.to_stax(net)[2](x, None, "ntk"))
    small, large = (
        registry.error(net, x, k, "ntk_random_features", m) for m in (256, 2048)
    )
    assert large < 0.2 and large < small / 1.9, (small, large)


def test_text():
    for _, *layers in NETS.values():
        net = stax.serial(*layers)
        assert eval(repr(net)) == net == stax.from_json(stax.to_json(net))
        assert hash(net) == hash(eval(repr(net)))
    assert stax.DotGeneral(rhs=jnp.ones((2, 1))).rhs == ((1.0,), (1.0,))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: stax.DotGeneral(1.0, 2.0), "lhs and rhs must not both"),
        (lambda: stax.DotGeneral(rhs="ab"), "rhs must be an array of numbers"),
        (lambda: stax.DotGeneral(lhs=((1, 2), (3,))), "lhs must be an array"),
        (lambda: stax.DotGeneral(rhs=np.nan), "rhs must be finite"),
        (lambda: stax.DotGeneral(rhs=1.0, dimension_numbers=((1,), (0,))), "axes from"),
        (lambda: over(-1, ROW), "axes from 0"),
        (lambda: stax.DotGeneral(rhs=1.0, precision="best"), "precision must be one"),
    ],
)
def test_mistakes_in_records(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (over(1, (1.0, 2.0)), "on positions"),
        (over(0, ROW), "must leave the batch on axis 0"),
        (over(3, ROW), "the channels on axis -1"),
        (over(1, MATRIX.T), "the channels on axis -1"),
        (over(2, MATRIX, lhs=1), "must leave the batch on axis 0"),
        (over(7, ROW), "on positions"),
    ],
)
def test_mistakes_in_networks(layer, match):
    net = stax.serial(conv(), RELU, layer, MEAN)
    with pytest.raises(ValueError, match=match):
        jns.feature_map(net, num_features=64).plan((3, 4, 2))
