"""The standard parameterization, LayerNorm over any axes, Dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import check_exact, x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, methods, stax
from jax_ntk_sketch.features.methods._zonal_kernel import why_not_zonal
from jax_ntk_sketch.features.state import Features, Spec, dropout_variance
from jax_ntk_sketch.features.step import Context, layer_rule
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.kernels.power_series import relu_block_series

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 5))
IMAGES = RNG.normal(size=(4, 4, 4, 2))
FIRST = np.moveaxis(IMAGES, -1, 1)
BOTH = ("nngp", "ntk")
NCHW = ("NCHW", "OIHW", "NCHW")


def dense(width, b_std=0.3, s=(1, 1), W_std=1.2):
    return stax.Dense(width, W_std, b_std, parameterization="standard", s=s)


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
    "biases of deviation 0": (
        stax.serial(dense(8, 0.0), RELU, dense(5, 0.0), RELU, dense(1, 0.0)),
        X,
    ),
    "widths that are not used": (
        stax.serial(stax.Dense(8, 1.2, 0.1, s=(2, 3)), RELU, dense(5, s=(1, 2))),
        X,
    ),
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
            *(RELU, conv(3, s=(2, 1)), RELU, POOL),
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
            stax.Conv(3, (3, 3), padding="SAME"), RELU, stax.Conv(3, (3, 3)),
            stax.LayerNorm((1, 2, -1), eps=0.1), stax.Gelu(), POOL, MIXED,
        ),
        IMAGES,
    ),
    "channels first": (
        stax.serial(
            stax.Conv(3, (3, 3), dimension_numbers=NCHW),
            stax.LayerNorm((1, 3), channel_axis=1), RELU, FLAT,
        ),
        FIRST,
    ),
    "a tuple of one": (stax.serial(MIXED, stax.LayerNorm((-1,)), RELU, MIXED), X),
}  # fmt: skip
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
            stax.Conv(3, (3, 3), padding="SAME"), RELU, stax.Dropout(0.8),
            stax.Conv(3, (3, 3)), RELU, FLAT, MIXED,
        ),
        IMAGES,
    ),
    "pools": (
        stax.serial(
            stax.Conv(3, (3, 3), padding="SAME", b_std=0.1), stax.Gelu(),
            stax.Dropout(0.7), stax.AvgPool((3, 2), None, "SAME", True),
            stax.Conv(3, (2, 2), b_std=0.1), stax.Abs(), stax.SumPool((2, 2), (1, 1)),
            stax.Conv(3, (2, 1)), stax.Erf(), POOL, MIXED, RELU, MIXED,
        ),
        IMAGES,
    ),
    "channels first": (
        stax.serial(
            stax.Conv(3, (3, 3), dimension_numbers=NCHW), stax.Dropout(0.6),
            stax.SumPool((2, 1), channel_axis=1),
            stax.Conv(3, (1, 2), dimension_numbers=NCHW), RELU,
            stax.GlobalSumPool(channel_axis=1), MIXED, stax.Erf(),
        ),
        FIRST,
    ),
    "branches": (
        stax.serial(
            MIXED, RELU, stax.FanOut(2),
            stax.parallel(MIXED, stax.serial(stax.Dropout(0.7), MIXED)),
            stax.FanInSum(), stax.Abs(), stax.FanOut(2),
            stax.parallel(MIXED, stax.serial(stax.Dropout(0.8), MIXED)),
            stax.FanInProd(), MIXED, RELU,
        ),
        X,
    ),
}  # fmt: skip
WIDE = stax.Dense(4, 2.0, 0.2)
# So much is dropped that kernels without it are off by .36 and 4.7.
MUCH = {
    "flat": (
        stax.serial(
            MIXED, RELU, stax.Dropout(0.3), WIDE, stax.Erf(), stax.Dropout(0.5), WIDE,
            RELU, MIXED,
        ),
        X,
    ),
    "pools": (
        stax.serial(
            stax.Conv(3, (3, 3), padding="SAME", W_std=1.2, b_std=0.1), RELU,
            stax.Dropout(0.1), stax.AvgPool((2, 2), (2, 2)),
            stax.Conv(3, (2, 2), W_std=2.0, b_std=0.1), stax.Erf(), FLAT, WIDE, RELU,
        ),
        IMAGES,
    ),
}  # fmt: skip


def cases(*groups):
    return [
        pytest.param(*case, id=f"{group}-{name}")
        for group, nets in groups
        for name, case in nets.items()
    ]


EVERY = cases(("standard", STANDARD), ("norm", NORMS), ("dropout", DROPS))


@pytest.mark.long_cases(
    "float32",
    "dropout-pools",
    "channels first",
    "transposed",
    "twice",
    "branches",
    "standard-pools",
)
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
    check_exact(net, x, dtype)


@pytest.mark.long
@pytest.mark.parametrize(
    ("net", "x", "methods"),
    [
        (*STANDARD["plain"], ("ntk_sketch", "variance_reduced")),
        (*STANDARD["images"], ("ntk_random_features",)),
        (*NORMS["after a nonlinear layer"], ("variance_reduced",)),
        (*MUCH["flat"], ("ntk_random_features",)),
        (
            *MUCH["pools"],
            ("ntk_sketch", "ntk_random_features", "variance_reduced"),
        ),
    ],
    ids=["plain", "images", "norm", "dropout", "dropout, pools"],
)
def test_errors_fall(net, x, methods):
    x = jnp.asarray(x, jnp.float32)
    k = np.asarray(jnt.to_stax(net)[2](x, None, "ntk"))
    for method in methods:
        small, large = (registry.error(net, x, k, method, m) for m in (256, 2048))
        assert large < 0.15 and (large < small / 2 or large < 0.05), (small, large)


SPREAD = {
    "average": stax.AvgPool((2, 2)),
    "average of edges": stax.AvgPool((2, 3), (1, 2), "SAME", True),
    "sum": stax.SumPool((2, 2)),
    "global average": POOL,
    "global sum": stax.GlobalSumPool(),
    "resized": stax.ImageResize((-1, 3, 6, -1), "linear"),
    "resized, signed": stax.ImageResize((-1, 4, 3, -1), "cubic"),
    "local": stax.ConvLocal(3, (2, 2)),
    "dense": stax.Aggregate(),
    "sparse": stax.Aggregate(implementation="SPARSE"),
    "masked": POOL,
    "contracted": stax.DotGeneral(None, (1, -1, 2), (((1,), (0,)), ((), ()))),
    "attention": stax.GlobalSelfAttention(3, 2, 2, 2, b_std=0.1),
    "attention, root": stax.GlobalSelfAttention(
        3, 2, 2, 2, False, attention_mechanism="IDENTITY"
    ),
    "sum of branches": stax.FanInSum(),
    "product of branches": stax.FanInProd(),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SPREAD)
def test_variances_behind_pools(name):
    """Those of exact features, which show what is dropped as columns of its own."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 4, 4, 2))
    beside = {}
    if name == "dense":
        beside = {"pattern": rng.random((2, 3, 3, 3, 3))}
    if name == "sparse":  # few nodes, so that edges are there twice
        edges = rng.integers(0, 3, (2, 40, 2, 2))
        edges[:, 30:] = -1
        beside = {"pattern": (edges, rng.random((2, 40)))}
    if name == "masked":
        beside = {"mask": rng.random((2, 3, 3)) < 0.5}

    def features(method, *layers):
        net = stax.serial(stax.Conv(3, (2, 2)), *layers, SPREAD[name])
        if "branches" in name:  # norms are the features' own on one
            one = stax.serial(stax.AvgPool((2, 2)), stax.Dense(3))
            two = stax.serial(stax.Conv(3, (2, 2)), *layers, stax.Dense(3))
            both = stax.FanOut(2), stax.parallel(one, two)
            net = stax.serial(stax.Conv(3, (2, 2)), *both, SPREAD[name])
        f = Features(x, x[..., :0], jnp.sum(x**2, axis=-1))
        spec = Spec(2, 0, shape=(4, 4))
        # Sketched, local convolutions have norms of their own.
        width = 16 if name == "local" else 4096
        for stage in layer_rule(net, spec, Context(method, False, width, 2)):
            f = stage.run(stage.init(jax.random.key(0)), f, **beside)
        assert stage.spec.after_dropout == bool(layers and method != methods.Exact())
        return f

    with x64():
        x = jnp.asarray(x)
        f = features(methods.NTKSketch(), stax.Dropout(0.6))
        exact = features(methods.Exact(), stax.Dropout(0.6))
        added = exact.nngp_diag - features(methods.Exact()).nngp_diag
        assert added.mean() > 0.1 * exact.nngp_diag.mean()
        if name == "local":
            np.testing.assert_allclose(dropout_variance(f), added, rtol=1e-9)
        else:
            np.testing.assert_allclose(f.nngp_diag, exact.nngp_diag, rtol=1e-9)


def test_cosines_behind_dropout():
    spec = Spec(3, 0, min_cosine=0.5, before_activations=False)
    (stage,) = layer_rule(
        stax.Dropout(0.6), spec, Context(methods.NTKSketch(), True, 8)
    )
    assert stage.spec.min_cosine == 0.3


@pytest.mark.long
@pytest.mark.parametrize("name", MUCH)
def test_landmarks_behind_dropout(name):
    net, x = MUCH[name]
    x = jnp.asarray(x, jnp.float32)
    sample = np.random.default_rng(2).normal(size=(64, *x.shape[1:]))
    fmap = jns.feature_map(net, num_features=128, method="nystrom")
    with registry.quick_compilation():
        params = fmap.init(jax.random.key(0), x, sample=sample.astype(np.float32))
        z = np.asarray(registry.jit_once(fmap.apply)(params, x))
    k = np.asarray(jnt.to_stax(net)[2](x[:2], x[2:], "ntk"))
    assert np.linalg.norm(z[:2] @ z[2:].T - k) < 0.03 * np.linalg.norm(k)


def test_lengths_of_directions_behind_dropout():
    """They matter there to Relu too: of equal lengths, the error is .029."""
    net = stax.serial(stax.Dense(4), stax.Dropout(0.3), stax.Dense(4), RELU)
    x = jnp.asarray(X[:, :2], jnp.float32)
    k = np.asarray(jnt.to_stax(net)[2](x, None, "ntk"))
    method = methods.NTKRandomFeatures(directions="orthogonal")
    assert registry.error(net, x, k, method, 8192) < 0.02


@pytest.mark.long
@pytest.mark.parametrize("method", ["ntk_random_features", "variance_reduced"])
def test_gradients_behind_dropout(method):
    """Also of an example of zeros, and where hardly anything is dropped."""
    plain = stax.Dense(3, 1.2)
    net = stax.serial(
        plain, RELU, stax.Dropout(1 - 1e-7), plain, RELU, stax.Dropout(0.5), plain,
        stax.Sign(), plain,
    )  # fmt: skip
    x = jnp.asarray(X, jnp.float32).at[0].set(0)
    fmap = jns.feature_map(net, num_features=32, method=method)
    params = fmap.init(jax.random.key(0), (5,))

    def total(x):
        return jnp.sum(fmap.apply(params, x) ** 2)

    value, slope = registry.jit_once(jax.value_and_grad(total))(x)
    assert np.isfinite(value) and np.isfinite(slope).all()


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
    with pytest.raises(
        TypeError, match="net must consist of Dense of parameterization"
    ):
        kernels.exact_kernel(net, jnp.asarray(x), get="ntk")
    with pytest.raises(ValueError, match='parameterization must be "ntk"'):
        relu_block_series([RELU, dense(3, None), RELU], 3)
    net = DROPS["flat"][0]
    with pytest.raises(TypeError, match=r"net must consist of .* got stax\.Dropout"):
        kernels.exact_kernel(net, jnp.asarray(x), get="ntk")
    plan = jns.feature_map(net, num_features=64, method="nystrom").plan((5,))
    assert sum("landmarks)" in row.name for row in plan.rows) == 2
    dropped = stax.serial(stax.Dense(1), stax.Dropout(0.5), MIXED, RELU)
    assert "got stax.Dropout" in why_not_zonal(dropped, "ntk")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: stax.Dense(3, parameterization="mup"), "one of 'ntk', 'standard'"),
        (lambda: dense(3, s=(0, 1)), "s must be an integer >= 1"),
        (lambda: conv(3, b_std=0.0), "b_std must be None or positive"),
        (lambda: stax.Dropout(0.0), "rate must be finite and <= 1 and > 0"),
        (lambda: stax.Dropout(1.2), "rate must be finite and <= 1 and > 0"),
        (lambda: stax.Dropout(0.5, "eval"), "one of 'train', 'test'"),
        (lambda: stax.LayerNorm(()), "axis must have at least one axis"),
        (lambda: stax.LayerNorm((0, -1)), "must not be 0, the batch axis"),
        (lambda: stax.LayerNorm(2, channel_axis=1), "integer axis must be the axis"),
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
            "have the axis of the channels",
        ),
        (stax.serial(stax.Conv(3, (2, 2)), stax.LayerNorm((7, -1))), "exact", "4 axes"),
        (stax.serial(stax.Dropout(0.5), stax.Conv(3, (2, 2))), "exact", "the input"),
        (DROPS["flat"][0], "one_pass", "got stax.Dropout"),
    ],
)
def test_mistakes_in_networks(net, method, match):
    fmap = jns.feature_map(net, num_features=64, method=method)
    with pytest.raises(ValueError, match=match):
        fmap.plan((4, 4, 2))
