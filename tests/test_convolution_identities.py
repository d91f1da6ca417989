"""Dilated convolutions, and networks that are the same by another name: identities."""

import jax
import numpy as np
import pytest
import registry
import test_convolution
from helpers import kernels_in_float64, x64
from test_convolution import (
    BOTH,
    FLAT,
    MEAN,
    NORM1,
    RELU,
    SUM,
    TOLERANCE,
    add,
    assert_equal_kernels,
    avg,
    conv,
    dense,
    exact_features,
    examples,
    first,
    same,
    wrapped,
)

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


# Neural Tangents has no dilation. But a convolution of dilation 2 acts on x[::2] and on
# x[1::2] as an ordinary one on each, and Flatten is a mean over positions, so that the
# kernel is the mean over these phases of their kernels.


def dilated(layers, steps):
    return [
        stax.Conv(**{**vars(layer), "dilation": steps})
        if isinstance(layer, stax.Conv)
        else layer
        for layer in layers
    ]


DILATED = {
    "1-D": ((8, 2), (2,), conv(3, b_std=0.2), RELU, FLAT),
    "1-D circular": ((8, 2), (2,), wrapped(2), RELU, FLAT),
    "1-D by 3": ((12, 1), (3,), wrapped(3), RELU, FLAT, dense()),
    "1-D same": ((8, 2), (2,), same(3), RELU, FLAT),
    "2-D": ((6, 4, 2), (2, 1), conv(2, 2, b_std=0.2), RELU, FLAT),
    "2-D both": ((6, 4, 1), (3, 2), wrapped(2, 2), RELU, FLAT),
    "deep": ((8, 6, 1), (2, 2), same(3, 3), RELU, wrapped(2, 3), RELU, FLAT),
    "channels first": ((1, 6, 4), (2, 2), first(2, 2), NORM1, RELU, FLAT, dense()),
}


@pytest.mark.long_cases("1-D", "both", "deep")
@pytest.mark.parametrize("name", DILATED)
def test_dilated_convolutions_act_on_phases(name):
    shape, steps, *layers = DILATED[name]
    x = examples(shape)
    begin = 2 if name == "channels first" else 1
    exact = {kind: 0.0 for kind in BOTH}
    phases = list(np.ndindex(steps))
    for phase in phases:
        index = [slice(None)] * begin
        index += [slice(i, None, step) for i, step in zip(phase, steps, strict=True)]
        part = x[tuple(index)]
        kernel = kernels_in_float64(stax.serial(*layers), part[:2], part[2:])
        for kind in BOTH:
            exact[kind] = exact[kind] + kernel[kind] / len(phases)
    net = stax.serial(*dilated(layers, steps))
    assert_equal_kernels(exact_features(net, x), exact, 2, TOLERANCE["float64"])


def test_dilation_with_strides():
    """Steps of 2 over a dilation of 2 see the even phase alone."""
    net = stax.serial(stax.Conv(1, (2, 3), (2, 1), dilation=(2, 1)), RELU, MEAN)
    x = examples((7, 4, 2))
    even = stax.serial(conv(2, 3, W_std=1.0), RELU, MEAN)
    exact = kernels_in_float64(even, x[:2, ::2], x[2:, ::2])
    assert_equal_kernels(exact_features(net, x), exact, 2, TOLERANCE["float64"])


def test_neural_tangents_has_no_dilation():
    layer = stax.Conv(1, (2, 2), dilation=(1, 2))
    with pytest.raises(ValueError, match="Neural Tangents has no dilated"):
        jnt.to_stax(stax.serial(layer, MEAN))
    ones = stax.serial(stax.Conv(1, (2, 2), dilation=(1, 1)), MEAN)
    x = examples((3, 3, 1))
    exact = kernels_in_float64(ones, x[:2], x[2:])
    assert_equal_kernels(exact_features(ones, x), exact, 2, TOLERANCE["float64"])


def gram(net, x):
    z = exact_features(net, x)
    return np.stack([z[kind] @ z[kind].T for kind in BOTH])


@pytest.mark.parametrize(
    "one, other",
    [
        ((conv(1, 1, b_std=0.3), RELU, MEAN), (stax.Dense(1, 1.3, 0.3), RELU, MEAN)),
        ((conv(4, 3), RELU, MEAN), (FLAT, stax.Dense(1, 1.3), RELU)),
        ((same(2, 2), RELU, avg(4, 3), FLAT), (same(2, 2), RELU, MEAN)),
        ((same(2, 2), RELU, add(4, 3), FLAT), (same(2, 2), RELU, SUM)),
    ],
    ids=["1 x 1 is Dense", "one position is Dense", "whole pool", "whole sum"],
)
def test_networks_that_are_the_same(one, other):
    x = examples((4, 3, 2))
    a, b = (gram(stax.serial(*layers), x) for layers in (one, other))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())


def test_circular_networks_do_not_see_shifts():
    net = stax.serial(wrapped(3, 2), RELU, wrapped(2, 2), RELU, MEAN)
    x = examples((4, 4, 2), 2)
    both = np.concatenate([x, np.roll(x, (1, 2), (1, 2))])
    k = gram(net, both)
    atol = 1e-7 * np.abs(k).max()  # an equal example is at the diagonal
    np.testing.assert_allclose(k[:, :2, :2], k[:, 2:, 2:], rtol=0, atol=atol)
    np.testing.assert_allclose(k[:, :2, :2], k[:, :2, 2:], rtol=0, atol=atol)


@pytest.mark.parametrize("method", ["ntk_random_features", "ntk_sketch"])
@pytest.mark.parametrize("name", ["linear", "avg pool", "layer norm, last"])
def test_linear_networks_are_exact_for_every_method(name, method):
    """Where their columns fit, as here."""
    shape, *layers = {**test_convolution.ALONE, **test_convolution.MIXED}[name]
    net, x = stax.serial(*layers), examples(shape)
    exact = kernels_in_float64(net, x[:2], x[2:])
    fmap = jns.feature_map(net, num_features=4000, get=BOTH, method=method)
    with x64():
        out = fmap.apply(fmap.init(jax.random.key(0), x), x)
    assert out.ntk.shape == out.nngp.shape == (4, 4000)
    assert_equal_kernels(
        jax.tree.map(np.asarray, out._asdict()), exact, 2, TOLERANCE["float64"]
    )
