"""Attention: "exact" against Neural Tangents, random methods, masks, mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import check_exact

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt

pytestmark = pytest.mark.filterwarnings("ignore:Linear scaling attention used")

BOTH = ("nngp", "ntk")
RNG = np.random.default_rng(0)
SEQUENCES, IMAGES = RNG.normal(size=(4, 5, 3)), RNG.normal(size=(4, 3, 4, 2))
FIRST = np.moveaxis(IMAGES, -1, 1)
NCHW = ("NCHW", "OIHW", "NCHW")
RELU, FLAT, MEAN = stax.Relu(), stax.Flatten(), stax.GlobalAvgPool()
attention = functools.partial(stax.GlobalSelfAttention, 4, 5, 6, 3)
root = functools.partial(attention, False, attention_mechanism="IDENTITY")


def dense(b_std=0.2):
    return stax.Dense(4, 1.2, b_std)


def conv(order=None):
    return stax.Conv(4, (2, 2), None, "SAME", 1.1, 0.2, order)


def decay(distance):
    return jnp.exp(-distance / 2)


HEAD = dense(), RELU
NETS = {
    "alone": (SEQUENCES, attention(), MEAN),
    "scales": (SEQUENCES, attention(True, 1.3, 0.8, 0.9, 1.1, 0.3), FLAT),
    "softmax": (SEQUENCES, *HEAD, attention(b_std=0.1), RELU, FLAT, dense()),
    "no bias": (SEQUENCES, *HEAD, attention(), attention(), RELU, MEAN, dense()),
    "relu": (
        IMAGES, conv(), RELU, attention(attention_mechanism="RELU", b_std=0.1), RELU,
        MEAN, dense(),
    ),
    "abs, channels first": (
        FIRST, conv(NCHW), attention(attention_mechanism="ABS", channel_axis=1),
        conv(NCHW), RELU, stax.GlobalAvgPool(channel_axis=1),
    ),
    "identity": (
        SEQUENCES, *HEAD, attention(attention_mechanism="IDENTITY", b_std=0.2), RELU,
        FLAT, dense(),
    ),
    "sum": (
        SEQUENCES, *HEAD, attention(pos_emb_type="SUM", W_pos_emb_std=0.7), RELU, FLAT,
    ),
    "sum, of values": (
        SEQUENCES, attention(pos_emb_type="SUM", val_pos_emb=True, b_std=0.2), RELU,
        FLAT,
    ),
    "concatenated": (
        SEQUENCES, *HEAD,
        attention(
            pos_emb_type="CONCAT", W_pos_emb_std=0.7, val_pos_emb=True,
            n_chan_pos_emb=3, pos_emb_decay_fn=decay,
        ),
        RELU, MEAN, dense(),
    ),
    "concatenated, of images": (
        FIRST, conv(NCHW),
        attention(
            pos_emb_type="CONCAT", pos_emb_p_norm=1, pos_emb_decay_fn=decay,
            channel_axis=1,
        ),
        RELU, FLAT,
    ),
    "root": (SEQUENCES, root(1.3, 0.8, 0.9, 1.1, 0.3), FLAT),
    "root, deep": (SEQUENCES, *HEAD, root(b_std=0.1), RELU, MEAN, dense()),
    "root, sum": (
        SEQUENCES, *HEAD, root(pos_emb_type="SUM", pos_emb_decay_fn=decay), RELU, FLAT,
    ),
    "root, of values": (
        SEQUENCES, *HEAD, root(b_std=0.1, pos_emb_type="CONCAT", val_pos_emb=True),
        RELU, FLAT, dense(),
    ),
    "root, input": (SEQUENCES, root(pos_emb_type="CONCAT"), FLAT),
}  # fmt: skip
DROPOUT = {
    "softmax": (SEQUENCES, *HEAD, stax.Dropout(0.7), attention(), RELU, FLAT, dense()),
    "values": (
        SEQUENCES, *HEAD, stax.Dropout(0.7),
        attention(pos_emb_type="CONCAT", val_pos_emb=True, b_std=0.1), RELU, FLAT,
    ),
    "root": (
        SEQUENCES, *HEAD, stax.Dropout(0.7), root(b_std=0.2, pos_emb_type="CONCAT"),
        RELU, FLAT, dense(),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


def features(net, x, method="exact", columns=1, **beside):
    fmap = jns.feature_map(net, num_features=columns, get=BOTH, method=method)
    params = fmap.init(jax.random.key(0), x.shape[1:])
    return registry.jit_once(fmap.apply)(params, x, **beside)


@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        pytest.param(dtype, case, id=f"{dtype}-{name}")
        for dtype, nets in (
            ("float64", NETS | {f"{k}, dropout": v for k, v in DROPOUT.items()}),
            ("float32", {name: NETS[name] for name in ("softmax", "root, deep")}),
        )
        for name, case in nets.items()
    ],
)
def test_exact_is_neural_tangents(dtype, case):
    x, *layers = case
    check_exact(stax.serial(*layers), x, dtype)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("softmax", "ntk_random_features"),
        ("concatenated", "variance_reduced"),
        ("root, deep", "ntk_random_features"),
    ],
)
def test_errors_fall(name, method):
    """From 256 to 2048 columns, the inverse square root, .35, up to half of it more."""
    x, *layers = NETS[name]
    net, x = stax.serial(*layers), jnp.asarray(x, jnp.float32)
    k = np.asarray(jnt.to_stax(net)[2](x, None, "ntk"))
    small, large = (registry.error(net, x, k, method, m) for m in (256, 2048))
    assert large < 0.2 and large < small / 1.9, (small, large)


@pytest.mark.parametrize("layer", [attention(b_std=0.1), root(), attention(True, 2.0)])
def test_masked_positions_do_not_count(layer):
    """Sequences that are padded have the features of those that are not."""
    net = stax.serial(*HEAD, layer, RELU, MEAN, dense())
    x = jnp.asarray(SEQUENCES, jnp.float32)
    padded = jnp.pad(x, [(0, 0), (0, 2), (0, 0)], constant_values=3.0)
    mask = jnp.arange(7) < jnp.full((4, 1), 5)
    whole, part = features(net, x), features(net, padded, mask=mask)
    for kind in BOTH:
        z, y = getattr(whole, kind), getattr(part, kind)
        np.testing.assert_allclose(y @ y.T, z @ z.T, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="mask must be a bool"):
        features(net, padded, mask=mask[:, :3])


@pytest.mark.long
def test_text_gradient_and_columns():
    for _, *layers in NETS.values():
        net = stax.serial(*layers)
        assert hash(net) == hash(stax.serial(*layers))
        if not any(getattr(x, "pos_emb_decay_fn", None) for x in layers):
            assert eval(repr(net)) == net == stax.from_json(stax.to_json(net))
    net, x = stax.serial(*NETS["softmax"][1:]), jnp.asarray(SEQUENCES, jnp.float32)
    fmap = jns.feature_map(net, num_features=300)
    params = fmap.init(jax.random.key(0), x.shape[1:])
    slope = registry.jit_once(jax.grad(lambda x: (fmap.apply(params, x) ** 2).sum()))(x)
    assert np.isfinite(slope).all() and np.asarray(slope).any()
    assert "GlobalSelfAttention" in str(fmap.plan((5, 3)))
    large = jns.feature_map(net, num_features=10**6, method="ntk_sketch")
    run = functools.partial(large.init, example=x.shape[1:])
    params = jax.eval_shape(run, jax.random.key(0))
    assert jax.eval_shape(large.apply, params, x).shape == (4, 10**6)


@pytest.mark.long
def test_finite_networks_approach_the_kernel():
    """Of independent heads, up to four standard errors and the bias of finite width."""
    wide = stax.GlobalSelfAttention(16, 64, 8, 32, b_std=0.2)
    net = stax.serial(stax.Dense(128, 1.2), wide, FLAT, stax.Dense(1))
    x = jnp.asarray(SEQUENCES[:3], jnp.float32)
    init_fn, apply_fn, kernel_fn = jnt.to_stax(net)

    def outputs(key):
        return apply_fn(init_fn(key, x.shape)[1], x)[:, 0]

    keys = jax.random.split(jax.random.key(0), 500)
    every = registry.jit_once(lambda keys: jax.lax.map(outputs, keys, batch_size=50))
    y = np.asarray(every(keys), np.float64)
    products = y[:, :, None] * y[:, None, :]
    error = products.std(0) / len(y) ** 0.5
    k = np.asarray(kernel_fn(x, None, "nngp"))
    z = features(net, x).nngp
    np.testing.assert_allclose(z @ z.T, k, rtol=1e-4)
    assert (np.abs(products.mean(0) - k) < 4 * error + 0.03 * k.max()).all()
    assert (error < 0.1 * k.max()).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: stax.GlobalSelfAttention(4, 4, 4, 0),
            "n_heads must be an integer >= 1",
        ),
        (lambda: attention(1), "linear_scaling must be a bool"),
        (lambda: attention(W_key_std=-1), "W_key_std must be finite and >= 0"),
        (lambda: attention(attention_mechanism="TANH"), "must be one of 'SOFTMAX'"),
        (lambda: attention(pos_emb_type="ADD"), "must be one of 'NONE', 'SUM'"),
        (lambda: attention(pos_emb_decay_fn=2.0), "pos_emb_decay_fn must be a func"),
        (lambda: attention(n_chan_pos_emb=3), "n_chan_pos_emb must be None"),
        (lambda: attention(batch_axis=1), "batch_axis must be 0"),
    ],
)
def test_mistakes_in_records(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ((FLAT, attention()), "needs spatial axes, got none"),
        ((attention(False), MEAN), "other kernels have no closed form"),
        (
            (attention(pos_emb_type="SUM", pos_emb_decay_fn=lambda d: d), MEAN),
            "smallest eigenvalue is",
        ),
        (
            (attention(pos_emb_type="SUM", pos_emb_decay_fn=jnp.sum), MEAN),
            "must be elementwise",
        ),
        ((attention(channel_axis=1), MEAN), "must agree on the axis of the channels"),
    ],
)
def test_mistakes_in_networks(layers, match):
    for method in ("exact", "ntk_sketch", "nystrom"):
        fmap = jns.feature_map(stax.serial(*layers), num_features=64, method=method)
        with pytest.raises(ValueError, match=match):
            fmap.plan((5, 3))
