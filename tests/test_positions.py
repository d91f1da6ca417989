"""Transposed and local convolutions, resized and indexed images: method "exact" against
Neural Tangents, random methods against that."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import kernels_in_float64, x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.methods import VarianceReduced
from jax_ntk_sketch.stax import Slice

BOTH = ("nngp", "ntk")
KEY = jax.random.key(0)
RELU, FLAT, MEAN, SUM = (
    stax.Relu(), stax.Flatten(), stax.GlobalAvgPool(), stax.GlobalSumPool(),
)  # fmt: skip
FIRST = ("NCHW", "OIHW", "NCHW")
IMAGE, SIGNAL = (3, 4, 2), (5, 2)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


def dense(b_std=None):
    return stax.Dense(1, 1.3, b_std)


def layer(kind, *shape, strides=None, padding="VALID", b_std=None, order=None):
    return kind(1, shape, strides, padding, 1.2, b_std, order)


up = functools.partial(layer, stax.ConvTranspose)
local = functools.partial(layer, stax.ConvLocal)
conv = functools.partial(layer, stax.Conv)


def resize(*shape, method="linear", **options):
    return stax.ImageResize((-1, *shape, -1), method, **options)


def index(idx, **options):
    return stax.Index(idx, **options)


NETS = {
    "up": (SIGNAL, up(3), FLAT),
    "up, pooled": (IMAGE, up(2, 3, strides=(2, 1), b_std=0.3), RELU, MEAN),
    "up, same": (
        SIGNAL, conv(2), RELU, up(3, strides=(2,), padding="SAME"), RELU, FLAT, dense(),
    ),
    "up, small filter": (
        SIGNAL, up(2, strides=(3,), b_std=0.2), RELU, conv(2), RELU, SUM, dense(0.1),
    ),
    "up, small filter, same": (
        SIGNAL, conv(1), RELU, up(2, strides=(3,), padding="SAME"), RELU, MEAN, dense(),
    ),
    "up, two axes": (
        IMAGE, conv(2, 2, b_std=0.2), RELU,
        up(3, 2, strides=(1, 2), padding="SAME", b_std=0.1), RELU,
        stax.AvgPool((2, 2)), dense(), RELU, FLAT,
    ),
    "up, channels first": (
        (2, 3, 3), up(2, 3, strides=(2, 2), order=FIRST), RELU,
        up(2, 2, padding="SAME", order=FIRST), RELU, stax.GlobalAvgPool(channel_axis=1),
    ),
    "local": (SIGNAL, local(2), FLAT),
    "local, pooled": (IMAGE, local(2, 3, b_std=0.3), RELU, MEAN, dense()),
    "local, mixed": (
        SIGNAL, conv(2, b_std=0.2), RELU, local(3, padding="SAME", b_std=0.4), RELU,
        conv(2, padding="CIRCULAR"), RELU, stax.AvgPool((2,)), dense(0.2), RELU, FLAT,
    ),
    "local, twice": (
        SIGNAL, local(3, strides=(2,), padding="SAME"), RELU,
        local(2, padding="CIRCULAR", b_std=0.2), RELU, FLAT, dense(), RELU, dense(),
    ),
    "local, first": (
        (2, 3, 3), local(2, 2, order=FIRST, b_std=0.1), RELU, stax.GlobalSumPool(0, 1),
    ),
    "local, one": (SIGNAL, dense(), RELU, local(1, b_std=0.2), RELU, SUM),
    "resize": (IMAGE, resize(5, 3), FLAT),
    "resize, smaller": (
        IMAGE, conv(2, 2), RELU, resize(1, 2), conv(1, 2, b_std=0.1), RELU, MEAN,
    ),
    "resize, aliased": (
        IMAGE, conv(2, 2), resize(-1, 2, antialias=False), RELU, SUM, dense(0.2),
    ),
    "resize, nearest": (
        (2, 3, 3), conv(2, 2, b_std=0.2, order=FIRST), RELU,
        stax.ImageResize((-1, -1, 5, 3), "NEAREST", channel_axis=1),
        conv(2, 2, order=FIRST), RELU, FLAT, dense(),
    ),
    "index": (IMAGE, index(Slice[:, ::2, -1]), FLAT),
    "index, behind": (
        IMAGE, conv(2, 2, b_std=0.1), RELU, index(Slice[:, 1]), conv(2), RELU, MEAN,
    ),
    "index, before": (IMAGE, conv(2, 2), index(Slice[..., ::-1, 1:, :]), RELU, FLAT),
    "index, all": (SIGNAL, conv(2), RELU, index(Slice[:, -1]), dense(0.2), RELU, FLAT),
    "index, first": (
        (2, 3, 3), conv(2, 2, order=FIRST), RELU,
        index(Slice[:, :, 1:, ...], channel_axis=1), stax.GlobalAvgPool(channel_axis=1),
    ),
}  # fmt: skip


def examples(shape):
    x = np.random.default_rng(0).standard_normal((4, *shape))
    x[-1] *= 0.1
    return x.astype(np.float32).astype(np.float64)


def exact(net, x, dtype="float64"):
    with x64(dtype == "float64"):
        fmap = jns.feature_map(net, num_features=1, get=BOTH, method="exact")
        params = fmap.init(KEY, x.shape[1:])
        out = registry.jit_once(fmap.apply)(params, jnp.asarray(x, dtype))
        return {kind: np.asarray(getattr(out, kind)) for kind in BOTH}


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def check(shape, layers, dtype="float64"):
    net, x = stax.serial(*layers), examples(shape)
    phi, k = exact(net, x, dtype), kernels_in_float64(net, x[:2], x[2:])
    for kind in BOTH:
        if not k[kind].any():
            assert not phi[kind].any()
            continue
        tolerance = 1e-9 if dtype == "float64" else 1e-4
        assert relative(phi[kind][:2] @ phi[kind][2:].T, k[kind]) < tolerance


@pytest.mark.parametrize("name", NETS)
def test_equals_neural_tangents(name):
    shape, *layers = NETS[name]
    check(shape, layers)


@pytest.mark.parametrize("name", ["up, two axes", "local, mixed", "resize, nearest"])
def test_single_precision(name):
    shape, *layers = NETS[name]
    check(shape, layers, "float32")


@pytest.mark.parametrize("size, step", [(1, 2), (2, 2), (3, 1), (3, 2), (4, 2), (2, 3)])
def test_transposed_and_wrapped(size, step):
    first = up(size, strides=(step,), padding="CIRCULAR", b_std=0.1)
    # What is cut off says where the period begins.
    check((4, 2), (first, RELU, index(Slice[:, 1:3]), FLAT))


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("size, step", [(1, 1), (1, 3), (3, 2), (2, 3), (5, 2), (4, 4)])
def test_sizes_of_jax(size, step, padding):
    fmap = jns.feature_map(
        stax.serial(up(size, strides=(step,), padding=padding), FLAT),
        num_features=999,
        get="nngp",
        method="exact",
    )
    x = jnp.ones((1, 4, 1))
    wanted = jax.lax.conv_transpose(x, jnp.ones((size, 1, 1)), (step,), padding)
    phi = fmap.apply(fmap.init(KEY, (4, 1)), x)
    # The kernel of ones is the number of pixels that each output sees.
    np.testing.assert_allclose(
        np.sum(phi**2), 1.2**2 / size * jnp.mean(wanted), rtol=1e-5
    )


@pytest.mark.parametrize("method", ["cubic", "lanczos3"])
def test_other_resizes_act_on_features(method):
    """They have no kernel in Neural Tangents: of linear features they are the image."""
    net = stax.serial(resize(5, 3, method=method), FLAT)
    x = examples(IMAGE)
    z = exact(net, x)["nngp"]
    image = jax.image.resize(jnp.asarray(x, jnp.float32), (4, 5, 3, 2), method)
    rows = np.asarray(image).reshape(4, -1)
    np.testing.assert_allclose(z @ z.T, rows @ rows.T / rows.shape[1], rtol=1e-4)
    with pytest.raises(ValueError, match='must be "nearest" or "linear"'):
        jnt.to_stax(net)


RANDOM = {
    "up": NETS["up, two axes"],
    "local": NETS["local, mixed"],
    "local, image": NETS["local, pooled"],
    "resize": NETS["resize, smaller"],
    "index": NETS["index, behind"],
}


@pytest.mark.long
@pytest.mark.parametrize(
    "method, name",
    [
        *(("ntk_random_features", name) for name in RANDOM),
        ("ntk_sketch", "local, image"),
        # Its other objective leaves out most of the diagonal.
        (VarianceReduced(objective="kernel"), "up"),
        (VarianceReduced(objective="kernel"), "local"),
    ],
)
def test_random_methods_converge(method, name):
    shape, *layers = RANDOM[name]
    net, x = stax.serial(*layers), examples(shape).astype(np.float32)
    wanted = exact(net, x)["ntk"]
    wanted, errors = wanted @ wanted.T, []
    for num in (96, 768):
        fmap = jns.feature_map(net, num_features=num, method=method)

        def gram(key, fmap=fmap):
            z = fmap.apply(fmap.init(key, shape), x)
            return z @ z.T

        run = registry.jit_once(jax.vmap(gram))
        k = np.asarray(run(jax.random.split(KEY, 5)), np.float64)
        errors.append(np.sqrt(np.mean([relative(one, wanted) ** 2 for one in k])))
    # An eighth of the variance, .35, and what a method's bias and chance add.
    assert errors[1] < 0.6 * errors[0] + 0.03
    assert errors[1] < 0.25


@pytest.mark.long
def test_nystrom():
    shape, *layers = RANDOM["up"]
    net = stax.serial(*layers)
    x = np.random.default_rng(1).standard_normal((12, *shape))
    wanted = exact(net, x)["ntk"]
    with x64():
        fmap = jns.feature_map(net, num_features=200, method="nystrom")
        z = np.asarray(fmap.apply(fmap.init(KEY, x, sample=x), x))
    assert relative(z @ z.T, wanted @ wanted.T) < 0.25


def test_local_positions_are_uncorrelated():
    """Over keys: the mean of the kernel that a pool behind reads."""
    net = stax.serial(conv(2), RELU, local(3, padding="SAME"), SUM)
    x = examples((9, 2)).astype(np.float32)
    fmap = jns.feature_map(net, num_features=64, method="ntk_random_features")

    def gram(key):
        z = fmap.apply(fmap.init(key, x.shape[1:]), x)
        return z @ z.T

    k = registry.jit_once(jax.vmap(gram))(jax.random.split(KEY, 400))
    wanted = exact(net, x)["ntk"]
    error = np.std(k, axis=0) / 400**0.5
    assert (np.abs(np.mean(k, axis=0) - wanted @ wanted.T) < 5 * error).all()


@pytest.mark.long
@pytest.mark.parametrize("name", ["up, two axes", "local, mixed", "index, behind"])
def test_transformations_of_jax(name):
    shape, *layers = NETS[name]
    net = stax.serial(*layers)
    fmap = jns.feature_map(net, num_features=64, method="ntk_random_features")
    params = fmap.init(KEY, shape)
    x = examples(shape).astype(np.float32)
    run = functools.partial(fmap.apply, params)
    phi = registry.jit_once(run)(x)
    one = registry.jit_once(jax.vmap(lambda z: run(z[None])[0]))(x)
    np.testing.assert_allclose(one, phi, atol=1e-4)
    gradient = registry.jit_once(jax.grad(lambda z: jnp.sum(run(z) ** 2)))(x)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    assert fmap.plan(shape).num_features == 64


@pytest.mark.parametrize(
    "net",
    [
        up(3, strides=(2,), padding="SAME", b_std=0.1),
        local(2, 2, order=FIRST),
        stax.ImageResize((-1, 4, 4, -1), "bilinear", precision=jax.lax.Precision.HIGH),
        index(Slice[:, ::2, -1, 1:, ...], channel_axis=-1),
        index(Slice[:], channel_axis=1),
        index(Slice[...]),
    ],
    ids=repr,
)
def test_text_of_records(net):
    assert stax.from_json(stax.to_json(net)) == net == eval(repr(net))
    assert hash(net) == hash(eval(repr(net)))


@pytest.mark.parametrize(
    "make, error, match",
    [
        (
            lambda: up(3, strides=(1, 2)),
            ValueError,
            "strides must have 1 entries",
        ),
        (
            lambda: local(3, padding="FULL"),
            ValueError,
            "ConvLocal: padding must be",
        ),
        (
            lambda: local(3, order=FIRST),
            ValueError,
            "ConvLocal: dimension_numbers",
        ),
        (
            lambda: up(0),
            ValueError,
            "ConvTranspose: filter_shape must be an integer >= 1",
        ),
        (
            lambda: resize(4, 0),
            ValueError,
            "ImageResize: shape must be an integer >= 1",
        ),
        (
            lambda: stax.ImageResize(4, "linear"),
            TypeError,
            "shape must be a sequence",
        ),
        (
            lambda: stax.ImageResize((2, 4, -1), "linear"),
            ValueError,
            "-1 for the batch",
        ),
        (
            lambda: resize(4, method="sinc"),
            ValueError,
            "method must be one of 'nearest'",
        ),
        (lambda: resize(4, antialias=1), TypeError, "antialias must be a bool"),
        (lambda: resize(4, precision="low"), ValueError, "precision must be one of"),
        (lambda: resize(4, batch_axis=1), ValueError, "batch_axis must be 0"),
        (
            lambda: index(Slice[0]),
            ValueError,
            "must begin with : or ..., for the batch",
        ),
        (lambda: index(Slice[:, [1, 2]]), TypeError, "slices, integers and"),
        (lambda: index(Slice[:, 1.5]), TypeError, "slices, integers and"),
        (lambda: index(Slice[:, ::0]), ValueError, "the step 0"),
        (lambda: index(Slice[..., 1, ...]), ValueError, "one ... at most"),
        (lambda: index((":", "1-2")), ValueError, "got the entry '1-2'"),
    ],
)
def test_records_refuse(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("method", ["exact", "variance_reduced"])
@pytest.mark.parametrize(
    "layers, shape, match",
    [
        ((up(3), MEAN), (6,), r"needs 1 spatial axes, got none"),
        ((local(3), MEAN), (4, 4, 2), r"ConvLocal\(1, \(3,\).* needs 1 spatial axes"),
        ((local(5), MEAN), (4, 2), "at least as large as the window"),
        ((resize(3, 3), MEAN), (4, 2), "an entry for each of the 3 axes"),
        ((index(Slice[:, 7]), MEAN), (4, 2), "out of bounds"),
        ((index(Slice[:, 4:]), MEAN), (4, 2), "takes none of the spatial axes"),
        ((index(Slice[:, :, 0]), MEAN), (4, 2), "the channels, axis 2"),
        ((index(Slice[:, :, :, :]), MEAN), (4, 2), "at most 3 entries"),
    ],
)
def test_what_init_refuses(layers, shape, match, method):
    fmap = jns.feature_map(stax.serial(*layers), num_features=40, method=method)
    with pytest.raises(ValueError, match=match):
        fmap.init(KEY, shape)


@pytest.mark.parametrize("method", ["one_pass"])
@pytest.mark.parametrize("name", ["up", "local", "resize", "index"])
def test_one_pass_refuses(name, method):
    shape, *layers = RANDOM[name]
    fmap = jns.feature_map(stax.serial(*layers), num_features=40, method=method)
    with pytest.raises(ValueError, match="is for fully connected networks"):
        fmap.init(KEY, shape)


def test_layers_without_record_say_why():
    with pytest.raises(AttributeError, match=r"fmap\.apply\(params, x, pattern="):
        stax.unmask_fn  # noqa: B018
    with pytest.raises(AttributeError, match="here features flow between layers"):
        stax.Kernel  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'Convolution'"):
        stax.Convolution  # noqa: B018
