"""Networks with branches: algebra, convergence, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import check_exact, theirs, x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch.interop import neural_tangents as jnt

pytestmark = pytest.mark.filterwarnings("ignore:`FanIn` layers assume")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 5))
IMAGES = RNG.normal(size=(4, 4, 4, 2))
FIRST = np.moveaxis(IMAGES, -1, 1)
DENSE, OUT = stax.Dense(6, 1.2, 0.3), stax.Dense(6, 0.9, 0.1)
CONV = stax.Conv(6, (3, 3), padding="SAME", W_std=1.1, b_std=0.2)
FIRST_CONV = stax.Conv(
    6, (3, 3), padding="SAME", W_std=1.1, dimension_numbers=("NCHW", "OIHW", "NCHW")
)
BLOCK = stax.serial(stax.Relu(), OUT, stax.Gelu(), OUT)


def residual(block, join=None):
    branches = stax.parallel(block, stax.Identity())
    return stax.serial(stax.FanOut(2), branches, join or stax.FanInSum())


def branched(*layers, join):
    return stax.serial(stax.FanOut(len(layers)), stax.parallel(*layers), join)


HIDDEN = stax.serial(DENSE, stax.Relu())
NARROW = stax.serial(stax.Dense(2), stax.Erf())
IMAGE_BLOCK = stax.serial(stax.Relu(), CONV, stax.Relu(), CONV)
STRIDED = stax.Conv(9, (3, 3), (2, 2), "SAME", 1.1, 0.2)
FLAT = {
    "residual": stax.serial(DENSE, residual(BLOCK), OUT),
    "residual blocks": stax.serial(
        DENSE, stax.repeat(residual(BLOCK), 3), stax.Relu(), OUT
    ),
    "three": stax.serial(branched(DENSE, OUT, OUT, join=stax.FanInSum()), BLOCK),
    "concatenated": stax.serial(
        branched(HIDDEN, NARROW, stax.Dense(3), join=stax.FanInConcat()), OUT, BLOCK
    ),
    "concatenated axis 1": stax.serial(
        branched(HIDDEN, NARROW, join=stax.FanInConcat(1)), OUT
    ),
    "product": stax.serial(branched(HIDDEN, DENSE, join=stax.FanInProd()), OUT),
    "product of three": stax.serial(
        branched(HIDDEN, OUT, HIDDEN, join=stax.FanInProd()), OUT, BLOCK
    ),
    "nested": stax.serial(
        DENSE,
        residual(stax.serial(stax.Relu(), OUT, residual(BLOCK), stax.Relu(), OUT)),
        stax.Relu(),
        OUT,
    ),
    "two parallels": stax.serial(
        stax.FanOut(2),
        stax.parallel(DENSE, OUT),
        stax.parallel(BLOCK, stax.serial()),
        stax.FanInSum(),
        stax.Relu(),
        OUT,
    ),
    "one branch": stax.serial(DENSE, stax.FanOut(1), stax.FanInProd(), BLOCK),
}
SPATIAL = {
    "residual": stax.serial(
        CONV, residual(IMAGE_BLOCK), stax.Relu(), stax.GlobalAvgPool(), OUT
    ),
    "wide residual": stax.serial(
        CONV,
        branched(
            stax.serial(stax.Relu(), STRIDED, stax.Relu(), CONV, stax.Conv(9, (1, 1))),
            STRIDED,
            join=stax.FanInSum(),
        ),
        stax.Relu(),
        stax.AvgPool((2, 2)),
        stax.Flatten(),
        OUT,
    ),
    "pooled": stax.serial(
        branched(
            stax.serial(CONV, stax.Relu(), stax.GlobalAvgPool()),
            stax.serial(CONV, stax.Gelu(), stax.GlobalAvgPool()),
            join=stax.FanInConcat(),
        ),
        OUT,
    ),
    "channels": stax.serial(
        branched(CONV, stax.serial(CONV, stax.Relu()), join=stax.FanInConcat(3)),
        CONV,
        stax.Relu(),
        stax.GlobalAvgPool(),
    ),
    "rows": stax.serial(
        branched(CONV, CONV, join=stax.FanInConcat(1)),
        stax.Relu(),
        CONV,
        stax.Relu(),
        stax.GlobalAvgPool(),
        OUT,
    ),
    "columns": stax.serial(
        branched(CONV, CONV, join=stax.FanInConcat(-2)),
        stax.AvgPool((2, 2)),
        stax.Flatten(),
    ),
    "product": stax.serial(
        branched(CONV, stax.serial(CONV, stax.Relu()), join=stax.FanInProd()),
        CONV,
        stax.Relu(),
        stax.GlobalAvgPool(),
        OUT,
    ),
}
CHANNELS_FIRST = {
    "residual": stax.serial(
        FIRST_CONV,
        residual(stax.serial(stax.Relu(), FIRST_CONV)),
        stax.Relu(),
        stax.GlobalAvgPool(channel_axis=1),
        OUT,
    ),
    "channels": stax.serial(
        branched(
            FIRST_CONV,
            stax.serial(FIRST_CONV, stax.Relu()),
            join=stax.FanInConcat(1),
        ),
        FIRST_CONV,
        stax.Relu(),
        stax.Flatten(),
        OUT,
    ),
    "rows": stax.serial(
        branched(FIRST_CONV, FIRST_CONV, join=stax.FanInConcat(2)),
        stax.Relu(),
        stax.Flatten(),
    ),
}
CASES = [
    pytest.param(net, x, id=f"{kind}-{name}")
    for kind, nets, x in (
        ("flat", FLAT, X),
        ("images", SPATIAL, IMAGES),
        ("first", CHANNELS_FIRST, FIRST),
    )
    for name, net in nets.items()
]
BOTH = ("nngp", "ntk")


@pytest.mark.long_cases(
    "float32",
    "wide residual",
    "images-residual",
    "residual blocks",
    "concatenated",
    "images-rows",
)
@pytest.mark.parametrize(
    ("dtype", "net", "x"),
    [
        pytest.param(dtype, *case.values, id=f"{dtype}-{case.id}")
        for dtype, cases in (("float64", CASES), ("float32", CASES[::3]))
        for case in cases
    ],
)
def test_exact_is_neural_tangents(dtype, net, x):
    check_exact(net, x, dtype)


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in FLAT if "concat" not in n])
def test_kernels_between_batches(name):
    """The recursion that "nystrom" reads off the record."""
    with x64():
        x = jnp.asarray(X)
        ours = kernels.exact_kernel(FLAT[name], x[:3], x[3:], get=BOTH)
        wanted = theirs(FLAT[name], x[:3], x[3:], BOTH)
        for k, exact in zip(ours, wanted, strict=True):
            np.testing.assert_allclose(k, exact, rtol=1e-9)


def test_text():
    for net in (*FLAT.values(), *SPATIAL.values()):
        assert eval(repr(net)) == net == stax.from_json(stax.to_json(net))
        assert hash(net) == hash(eval(repr(net)))
    assert stax.repeat(DENSE, 2) == stax.serial(DENSE, DENSE)
    assert stax.repeat(DENSE, 0) == stax.serial()
    kinds = [
        type(layer).__name__
        for layer in stax.walk(residual(HIDDEN), into_branches=True)
    ]
    assert kinds == ["FanOut", "Dense", "Relu", "Identity", "FanInSum"]


METHODS = ["ntk_random_features", "ntk_sketch", "variance_reduced"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "net", "x"),
    [
        *((method, FLAT["residual"], X) for method in METHODS),
        *((method, SPATIAL["residual"], IMAGES) for method in METHODS),
        ("ntk_random_features", FLAT["product"], X),
        ("ntk_random_features", SPATIAL["rows"], IMAGES),
    ],
)
def test_errors_fall(method, net, x):
    """From 256 to 2048 columns, up to the bias of the polynomials."""
    x = jnp.asarray(x, jnp.float32)
    k = np.asarray(jnt.to_stax(net)[2](x, None, "ntk"))
    small, large = (registry.error(net, x, k, method, m) for m in (256, 2048))
    assert large < 0.25 and (large < small / 2 or large < 0.09), (small, large)


@pytest.mark.long
def test_vmap_grad_and_plan():
    net = FLAT["residual"]
    fmap = jns.feature_map(net, num_features=300, method="ntk_random_features")
    x = jnp.asarray(X, jnp.float32)
    params = fmap.init(jax.random.key(1), (5,))
    keys = jax.random.split(jax.random.key(0), 2)
    drawn = registry.jit_once(lambda key: fmap.apply(fmap.init(key, (5,)), x))
    many = jax.vmap(drawn)(keys)
    one = drawn(keys[1])
    np.testing.assert_allclose(many[1], one, rtol=2e-4, atol=2e-4)
    slope = registry.jit_once(jax.grad(lambda x: jnp.sum(fmap.apply(params, x) ** 2)))(
        x
    )
    assert np.isfinite(slope).all() and (np.asarray(slope) != 0).any()
    printed = str(fmap.plan((5,)))
    assert "FanOut" in printed and "|" in printed


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (stax.serial(DENSE, stax.FanInSum()), r"FanInSum\(\) takes branches"),
        (stax.serial(stax.parallel(DENSE, DENSE)), "put FanOut"),
        (stax.parallel(DENSE, DENSE), "put FanOut"),
        (stax.serial(stax.FanOut(2), DENSE), "takes one input, got 2 branches"),
        (stax.serial(DENSE, stax.FanOut(2)), "must have one output, got 2 branches"),
        (
            stax.serial(stax.FanOut(3), stax.parallel(DENSE, DENSE)),
            "as many layers as branches, 3, got 2",
        ),
        (branched(DENSE, stax.Dense(3), join=stax.FanInSum()), "equal shapes"),
        (branched(DENSE, stax.Dense(3), join=stax.FanInProd()), r"\(6,\), \(3,\)"),
        (branched(DENSE, HIDDEN, join=stax.FanInSum()), "branch 1 is not"),
        (branched(DENSE, DENSE, join=stax.FanInConcat(5)), "among the 2 axes"),
        (
            stax.serial(branched(HIDDEN, DENSE, join=stax.FanInConcat()), stax.Relu()),
            "Relu must follow a linear layer",
        ),
        (
            stax.serial(branched(HIDDEN, DENSE, join=stax.FanInProd()), stax.Relu()),
            "Relu must follow a linear layer",
        ),
        (
            branched(stax.FanOut(2), DENSE, join=stax.FanInSum()),
            "one that ends in branches",
        ),
    ],
)
def test_mistakes(net, match):
    for method in ("ntk_sketch", "exact", "nystrom"):
        fmap = jns.feature_map(net, num_features=64, method=method)
        with pytest.raises(ValueError, match=match):
            fmap.plan((5,))


def test_mistakes_in_images():
    conv = stax.Conv(6, (3, 3), (2, 2), "SAME")
    net = branched(CONV, conv, join=stax.FanInSum())
    with pytest.raises(ValueError, match=r"\(4, 4, 6\), \(2, 2, 6\)"):
        jns.feature_map(net, num_features=64).plan((4, 4, 2))
    net = branched(CONV, FIRST_CONV, join=stax.FanInSum())
    with pytest.raises(ValueError, match="must agree on the axis of the channels"):
        jns.feature_map(net, num_features=64).plan((4, 4, 2))
    rows = branched(CONV, stax.serial(CONV, stax.Relu()), join=stax.FanInConcat(1))
    with pytest.raises(ValueError, match="every branch must be Gaussian"):
        jns.feature_map(rows, num_features=64).plan((4, 4, 2))
    with pytest.raises(ValueError, match="fully connected"):
        fmap = jns.feature_map(FLAT["residual"], num_features=64, method="one_pass")
        fmap.plan((5,))


def test_mistakes_in_records():
    with pytest.raises(TypeError, match="argument 0 must be a layer record"):
        stax.parallel(3)
    with pytest.raises(ValueError, match="at least one layer"):
        stax.parallel()
    with pytest.raises(ValueError, match="num must be an integer >= 1, got 0"):
        stax.FanOut(0)
    with pytest.raises(ValueError, match="n must be an integer >= 0, got -1"):
        stax.repeat(DENSE, -1)
    with pytest.raises(ValueError, match="not be 0, the batch axis"):
        stax.FanInConcat(0)
    with pytest.raises(TypeError, match="axis must be an integer"):
        stax.FanInConcat("channels")
