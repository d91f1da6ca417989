"""Scales beside the record: the features, kernels and gradients that they give."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt

BOTH = ("nngp", "ntk")
KEY = jax.random.key(0)
DENSE = stax.serial(
    stax.Dense(4, 1.2, 0.4), stax.Erf(), stax.Dense(3, 1.1), stax.Relu(),
    stax.Dense(1, 0.9, 0.3),
)  # fmt: skip
BRANCHES = stax.serial(
    stax.Dense(4, 1.2, 0.4), stax.Relu(), stax.FanOut(2),
    stax.parallel(stax.Dense(2, 1.1), stax.serial(stax.Dense(2, 0.7, 0.3))),
    stax.FanInSum(), stax.Relu(), stax.Dense(1),
)  # fmt: skip
CONV = stax.serial(
    stax.Conv(4, (2, 1), None, "SAME", 1.2, 0.3), stax.Relu(),
    stax.Conv(4, (1, 1), W_std=1.1, b_std=0.4), stax.Relu(), stax.GlobalAvgPool(),
    stax.Dense(1, 1.2),
)  # fmt: skip
ATTENTION = stax.serial(
    stax.Conv(4, (2, 1), None, "SAME", 1.2, 0.3), stax.Relu(),
    stax.GlobalSelfAttention(4, 4, 4, 1, W_key_std=1.1, b_std=0.4),
    stax.GlobalAvgPool(), stax.Dense(1),
)  # fmt: skip
NETS = {
    "dense": (DENSE, (4,)),
    "branches": (BRANCHES, (4,)),
    "convolution": (CONV, (3, 2, 2)),
    "attention": (ATTENTION, (3, 2, 2)),
}
METHODS = ("ntk_random_features", "nystrom", "exact")


def changed(net):
    """The network with other scales."""
    text = stax.to_json(net)
    for old, new in (("1.2", "1.5"), ("0.4", "0.1"), ("0.3", "0.6"), ("1.1", "0.8")):
        text = text.replace(f'std": {old}', f'std": {new}')
    return stax.from_json(text)


def test_scales_are_the_numbers_of_the_record():
    fmap = jns.feature_map(BRANCHES, num_features=50)
    assert fmap.scales() == (
        {"W_std": 1.2, "b_std": 0.4},
        {"W_std": 1.1},
        {"W_std": 0.7, "b_std": 0.3},
        {"W_std": 1.0},
    )
    unbiased = jns.feature_map(stax.serial(stax.Dense(1, 2.0, 0.0)), num_features=9)
    assert unbiased.scales() == ({"W_std": 2.0},)
    attention = jns.feature_map(ATTENTION, num_features=50).scales()[1]
    assert attention == {
        "W_key_std": 1.1, "W_value_std": 1.0, "W_query_std": 1.0, "W_out_std": 1.0,
        "b_std": 0.4,
    }  # fmt: skip


@pytest.mark.long_cases("attention", "branches", "convolution-nystrom")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_features_are_those_of_the_network_with_these_numbers(name, method):
    """One compiled function of the numbers gives both networks."""
    net, shape = NETS[name]
    x = np.random.default_rng(0).normal(size=(5, *shape))
    make = functools.partial(jns.feature_map, num_features=60, get=BOTH, method=method)
    fmap = make(net)

    @jax.jit
    def features(scales):
        params = fmap.init(KEY, shape, sample=x, scales=scales)
        return fmap.apply(params, x, scales=scales, batch_size=None)

    with x64(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # few examples
        for one in (fmap, make(changed(net))):
            wanted = one.apply(one.init(KEY, shape, sample=x), x)
            for a, b in zip(features(one.scales()), wanted, strict=True):
                a, b = (np.asarray(z @ z.T) for z in (a, b))
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * abs(b).max())


@pytest.mark.long_cases("attention", "branches", "convolution")
@pytest.mark.parametrize("name", NETS)
def test_gradients_of_exact_features_are_those_of_neural_tangents(name):
    """The kernel between different examples, of both kinds, by each number."""
    net, shape = NETS[name]
    fmap = jns.feature_map(net, num_features=1, get=BOTH, method="exact")
    with x64():
        x = np.random.default_rng(0).normal(size=(4, *shape))
        weights = np.random.default_rng(1).normal(size=(2, 2, 2))
        params = fmap.init(KEY, shape)

        def ours(scales):
            phi = fmap.apply(params, jnp.asarray(x), scales=scales)
            kernels = [z[:2] @ z[2:].T for z in phi]
            return sum(jnp.sum(w * k) for w, k in zip(weights, kernels, strict=True))

        def theirs(scales):
            kernel_fn = jnt.to_stax(net, scales=scales)[2]
            kernels = kernel_fn(x[:2], x[2:], BOTH)
            return sum(jnp.sum(w * k) for w, k in zip(weights, kernels, strict=True))

        scales = fmap.scales()
        (value, slopes), (wanted, expected) = (
            jax.jit(jax.value_and_grad(f))(scales) for f in (ours, theirs)
        )
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        for slope, other in zip(*map(jax.tree.leaves, (slopes, expected)), strict=True):
            np.testing.assert_allclose(slope, other, rtol=1e-5, atol=1e-7)


@pytest.mark.long_cases("dense-4", "convolution")
@pytest.mark.parametrize(
    "name, size", [("dense", 4), ("dense", 12), ("convolution", 3)]
)
def test_gradients_of_landmarks_are_finite_differences(name, size):
    """The root and the principal directions depend on the scales as well.

    Directions turn with their space and not within it, so that a random sketch of them,
    as after Flatten, would have other differences of the same mean.
    """
    net, shape = NETS[name]
    fmap = jns.feature_map(net, num_features=4, method="nystrom")
    with x64():
        x = np.random.default_rng(0).normal(size=(size, *shape))
        z = jnp.asarray(x[:3] + 0.1)

        @jax.jit
        def loss(scales):
            params = fmap.init(KEY, shape, sample=x, scales=scales)
            phi = fmap.apply(params, z, scales=scales)
            return jnp.sum(jnp.sin(phi @ phi.T))

        leaves, tree = jax.tree.flatten(fmap.scales())
        slopes = jax.tree.leaves(jax.grad(loss)(tree.unflatten(leaves)))
        for i, slope in enumerate(slopes):
            both = []
            for step in (1e-5, -1e-5):
                moved = [*leaves]
                moved[i] += step
                both.append(loss(tree.unflatten(moved)))
            difference = (both[0] - both[1]) / 2e-5
            np.testing.assert_allclose(slope, difference, rtol=1e-4, atol=1e-6)


def test_what_does_not_take_scales_says_so():
    x = np.ones((2, 4), np.float32)
    for method in ("variance_reduced", "ntk_sketch", "one_pass", "auto"):
        net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
        fmap = jns.feature_map(net, num_features=64, method=method)
        message = r"scales must be None with .*'ntk_random_features', 'nystrom', 'exac"
        with pytest.raises(ValueError, match=message):
            fmap.init(KEY, (4,), scales=fmap.scales())
        with pytest.raises(ValueError, match=message):
            fmap.apply(fmap.init(KEY, (4,)), x, scales=fmap.scales())
    fmap = jns.feature_map(net, num_features=64, method="ntk_random_features")
    params = fmap.init(KEY, (4,))
    for scales in ((), fmap.scales()[:1], ({"W_std": np.ones(2)}, {"W_std": 1.0}), 1.0):
        for run in (
            lambda s=scales: fmap.apply(params, x, scales=s),
            lambda s=scales: jnt.to_stax(net, scales=s),
        ):
            with pytest.raises(ValueError, match="scales must be scalars in the plac"):
                run()
    # Records keep floats.
    with pytest.raises(TypeError, match="W_std must be a number"):
        jax.jit(lambda s: stax.Dense(1, s).W_std)(1.0)
