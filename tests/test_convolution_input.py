"""What convolutional networks refuse, and what they convert."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry

import jax_ntk_sketch as jns
from jax_ntk_sketch import sketch, stax

KEY = jax.random.key(0)
FIRST = ("NCHW", "OIHW", "NCHW")
RELU, MEAN, DENSE = stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1)
CONV = stax.Conv(4, (2, 2), b_std=0.1)
NET = stax.serial(CONV, RELU, MEAN, DENSE)
METHODS = ("ntk_random_features", "ntk_sketch", "exact")
X = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


def init(layers, shape, method="ntk_random_features"):
    fmap = jns.feature_map(stax.serial(*layers), num_features=64, method=method)
    return fmap.init(KEY, shape)


# Arguments of layers that make no sense are in `test_stax.py`; here is what depends on
# the image and on the other layers.
NEEDS_AXES = "needs spatial axes.*must be images.*or signals"
OUTPUT = "must have outputs without spatial axes.*end it with Flatten, GlobalAvgPool"
DISAGREE = "layers before .* must agree on the axis of the channels"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "layers, shape, match",
    [
        (
            (stax.Conv(1, (5, 5)), RELU, MEAN),
            (4, 6, 3),
            r"Conv\(1, \(5, 5\)\): the image must be .*, got \(4, 6\); use padding",
        ),
        (
            (stax.Conv(1, (3,), dilation=(3,)), RELU, MEAN),
            (6, 3),
            r"at least as large as the window, \(7,\), got \(6,\)",
        ),
        (
            (CONV, RELU, stax.AvgPool((4, 2)), MEAN),
            (4, 6, 3),
            r"AvgPool\(\(4, 2\)\): the image must be .*, got \(3, 5\)",
        ),
        ((CONV, RELU, MEAN), (9, 3), "must have 2 spatial axes .* got 1"),
        ((CONV, RELU, MEAN), (3, 4, 5, 3), "must have 2 spatial axes .* got 3"),
        ((stax.Conv(1, (2,)), RELU, MEAN), (4, 5, 3), "must have 1 spatial axes"),
        ((CONV, RELU, MEAN), (60,), NEEDS_AXES),
        ((CONV, RELU, MEAN, stax.Conv(1, (1,)), RELU), (4, 5, 3), NEEDS_AXES),
        ((stax.SumPool((2, 2)), stax.Flatten(), DENSE), (60,), NEEDS_AXES),
        ((CONV, RELU), (4, 5, 3), OUTPUT),
        ((CONV, RELU, CONV), (4, 5, 3), OUTPUT),
        ((CONV, RELU, DENSE), (4, 5, 3), OUTPUT),
        ((CONV, RELU, stax.AvgPool((2, 2))), (4, 5, 3), OUTPUT),
        ((DENSE, RELU, DENSE), (4, 5, 3), OUTPUT),
        ((RELU, CONV, MEAN), (4, 5, 3), "Relu must follow a linear layer"),
        ((CONV, RELU, RELU, MEAN), (4, 5, 3), "Relu must follow a linear layer"),
        ((CONV, RELU, stax.AvgPool((2, 2)), RELU, MEAN), (4, 5, 3), "Relu must follow"),
        ((stax.AvgPool((2, 2)), RELU, MEAN), (4, 5, 3), "Relu must follow a linear"),
        ((CONV, RELU, stax.Flatten(), RELU), (4, 5, 3), "Relu must follow a linear"),
        ((stax.LayerNorm(), CONV, MEAN), (4, 5, 3), "LayerNorm must follow a linear"),
        ((CONV, RELU, stax.LayerNorm(), MEAN), (4, 5, 3), "LayerNorm must follow a li"),
    ],
)
def test_layers_that_do_not_fit_are_named(layers, shape, match, method):
    with pytest.raises(ValueError, match=match):
        init(layers, shape, method)


@pytest.mark.parametrize(
    "layers, match",
    [
        ((stax.Conv(1, (2, 2), dimension_numbers=FIRST), RELU, MEAN), DISAGREE),
        ((CONV, stax.LayerNorm(1), RELU, MEAN), DISAGREE),
        ((CONV, RELU, stax.AvgPool((2, 2), channel_axis=1), MEAN), DISAGREE),
        ((CONV, RELU, stax.GlobalSumPool(0, 1)), DISAGREE),
        (
            (
                stax.AvgPool((2, 2), channel_axis=1),
                DENSE,
                RELU,
                stax.GlobalAvgPool(0, 1),
            ),
            DISAGREE,
        ),
        (
            (stax.GlobalAvgPool(0, 4), DENSE),
            "one of the 4 axes of the input.* got 4",
        ),
        (
            (stax.GlobalAvgPool(0, -4), DENSE),
            "one of the 4 axes of the input.* got -4",
        ),
    ],
)
def test_layers_that_disagree_on_the_channels_are_named(layers, match):
    with pytest.raises(ValueError, match=match):
        init(layers, (5, 4, 5))


def test_channel_axes_that_agree_by_another_name():
    """-1 and 3 are one axis; behind Flatten and global pooling all are flat."""
    for layers in (
        (CONV, stax.LayerNorm(3), RELU, stax.AvgPool((2, 2), channel_axis=3), MEAN),
        (
            stax.Conv(1, (2, 2), dimension_numbers=FIRST),
            stax.LayerNorm(-3),
            RELU,
            stax.GlobalAvgPool(0, 1),
            DENSE,
            stax.LayerNorm(),
            RELU,
        ),
        (
            stax.Conv(1, (2, 2), dimension_numbers=FIRST),
            RELU,
            stax.Flatten(),
            DENSE,
            stax.LayerNorm(),
            RELU,
        ),
    ):
        init(layers, (3, 4, 5))


def test_one_pass_is_for_fully_connected_networks():
    for layers in ((CONV, RELU, MEAN), (MEAN, DENSE, RELU), (stax.SumPool((1,)),)):
        with pytest.raises(ValueError, match='"one_pass" is for fully connected netw'):
            init(layers, (4, 5, 3), "one_pass")
    with pytest.raises(ValueError, match=r"first Relu still has.*begin with Flatten"):
        init((DENSE, RELU, DENSE), (4, 5, 3), "one_pass")
    init((stax.Flatten(), DENSE, RELU, DENSE), (4, 5, 3), "one_pass")
    default = jns.feature_map(NET, num_features=8)
    assert "VarianceReduced" in default.plan(np.zeros((9, 4, 5, 3))).method


def test_one_pass_with_flatten_behind_a_relu():
    with pytest.raises(ValueError, match=r"begin with Flatten|fully connected"):
        init((DENSE, RELU, stax.Flatten()), (4, 5, 3), "one_pass")


# Examples.


@pytest.mark.parametrize("method", METHODS)
def test_images_of_another_size_are_refused(method):
    fmap = jns.feature_map(NET, num_features=64, method=method)
    params = fmap.init(KEY, X)
    for x in (X[..., :2], X[:, :3], X[:, :, 1:], np.moveaxis(X, -1, 1)):
        match = re.escape(
            "x must have shape (n, 4, 5, 3), for which init made params, got shape "
            f"{x.shape}"
        )
        with pytest.raises(ValueError, match=match):
            fmap.apply(params, x)
    # An image without batch axis, and flat ones.
    for x in (X[0], X.reshape(3, -1)):
        with pytest.raises(ValueError, match=r"x must have shape \(n, 4, 5, 3\)"):
            fmap.apply(params, x)
    for example in ((), (4, 5, 0), X[0, 0, 0]):
        with pytest.raises(ValueError, match="example must be the shape of one exam"):
            fmap.init(KEY, example)


def test_one_image_without_batch_axis_is_named():
    fmap = jns.feature_map(NET, num_features=64)
    with pytest.raises(ValueError, match=r"\bx\b.*x\[None\]"):
        fmap.apply(fmap.init(KEY, X), X[0])


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_integers_are_floats_as_they_are(method, dtype):
    """Not rescaled, and no sum wraps around at 256."""
    fmap = jns.feature_map(NET, num_features=64, method=method)
    params = fmap.init(KEY, X)
    phi = fmap.apply(params, X.astype(dtype))
    assert phi.dtype == np.float32
    np.testing.assert_array_equal(
        phi, fmap.apply(params, X.astype(dtype).astype(np.float32))
    )


@pytest.mark.long
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["ntk_random_features", "ntk_sketch"])
def test_nan_pixels_stay_in_their_image(method, bad):
    layers = (CONV, RELU, stax.AvgPool((2, 2)), CONV, RELU, MEAN, DENSE)
    fmap = jns.feature_map(stax.serial(*layers), num_features=64, method=method)
    x = X.astype(np.float32)
    params = registry.jit_once(lambda key: fmap.init(key, x.shape[1:]))(KEY)
    run = registry.jit_once(functools.partial(fmap.apply, batch_size=2))
    whole = np.asarray(run(params, x))
    assert np.isfinite(whole).all()
    x[1, 2, 3, 0] = bad
    phi = np.asarray(run(params, x))
    # All but the columns of zeros that fill up to num_features.
    assert np.isnan(phi[1])[whole[0] != 0].all()
    np.testing.assert_array_equal(phi[[0, 2]], whole[[0, 2]])


def test_nan_pixels_do_not_vanish_in_the_exact_method():
    fmap = jns.feature_map(NET, num_features=64, method="exact")
    x = X.astype(np.float32)
    params = fmap.init(KEY, x)
    x[1, 2, 3, 0] = np.nan
    assert np.isnan(fmap.apply(params, x)[1]).any()


def test_patches_of_bad_sizes_are_named():
    window = sketch.Window((3, 3))
    for channels, output_dim, match in (
        (0, 4, "PatchSRHT: channels must be an integer >= 1"),
        (3, -1, "PatchSRHT: output_dim must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=match):
            sketch.PatchSRHT(window, channels, output_dim)
    with pytest.raises(TypeError, match="output_dim must be an integer"):
        sketch.PatchSRHT(window, 3, 2.5)
    for output_dim in (8, 64):
        record = sketch.PatchSRHT(window, 3, output_dim)
        with pytest.raises(TypeError, match=r"make one with jax.random.key\(seed\)"):
            record.init(0)
        params = record.init(KEY)
        with pytest.raises(ValueError, match="last axis of x must have size 3"):
            record.apply(params, jnp.ones((4, 4, 2)))
        with pytest.raises(ValueError, match="at least as large as the window"):
            record.apply(params, jnp.ones((4, 2, 3)))
    with pytest.raises(ValueError, match=r"must have 2 spatial axes .* got 1"):
        window.output_shape((5,))
