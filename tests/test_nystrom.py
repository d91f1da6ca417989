"""Method "nystrom" and `jns.nystrom`: exact where they are, below the kernel elsewhere.

The kernel between two batches, on which they rest, against Neural Tangents.
"""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import x64
from references import network_kernels
from registry import quick_compilation

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax
from jax_ntk_sketch.features._steps_of import steps_of
from jax_ntk_sketch.features.methods.nystrom import sampling
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.kernels import exact_kernel
from jax_ntk_sketch.kernels.exact import diagonal_kernels

KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quick_compilation():
        yield


ROOT2 = 2**0.5
BOTH = ("nngp", "ntk")
RELU = stax.Relu()


def dense(W_std=ROOT2, b_std=None):
    return stax.Dense(1, W_std, b_std)


DEEP = stax.serial(dense(), RELU, dense(), RELU, dense())
NETS = {
    "plain": DEEP,
    "biases": stax.serial(dense(1.3, 0.2), RELU, dense(0.8, 0.3), RELU, dense(1, 0.1)),
    "layer norm": stax.serial(
        stax.Identity(), dense(1.2, 0.5), stax.LayerNorm(eps=0.1), RELU, dense(),
        stax.serial(dense(1.1), stax.LayerNorm(), RELU), dense(0.9, 0.4),
    ),
    "no dense behind": stax.serial(dense(), RELU, dense(1, 0.2), RELU),
}  # fmt: skip
CONV = stax.serial(
    stax.Conv(1, (3, 3), None, "SAME", ROOT2, 0.2), RELU, stax.AvgPool((2, 2), (2, 2)),
    stax.Conv(1, (2, 2), None, "CIRCULAR", 1.2), RELU, stax.GlobalAvgPool(),
    dense(1.1, 0.1),
)  # fmt: skip
IMAGES = {
    "pools": ((4, 4, 2), CONV),
    "strides": (
        (5, 4, 2),
        stax.serial(
            stax.Conv(1, (2, 2), (1, 2)), RELU, stax.Conv(1, (3, 1)), RELU,
            stax.GlobalAvgPool(),
        ),
    ),
    "dense on pixels": (
        (5, 2), stax.serial(dense(1, 0.2), RELU, dense(), RELU, stax.GlobalAvgPool())
    ),
    "dense behind": (
        (3, 2),
        stax.serial(
            stax.Conv(1, (3,), None, "SAME"), RELU, stax.GlobalAvgPool(), dense(), RELU,
            dense(),
        ),
    ),
}  # fmt: skip


def rows(n=30, d=6, seed=0):
    """Examples of different lengths; the last is a copy and the one before zero."""
    x = (
        np.random.default_rng(seed).normal(size=(n, d))
        * np.linspace(0.3, 2, n)[:, None]
    )
    x[-2], x[-1] = 0, x[0]
    return x


def images(shape, n=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape))


def features(net, x, sample=None, key=KEY, **options):
    names = [field.name for field in dataclasses.fields(methods.Nystrom)]
    fields = {name: options.pop(name) for name in names if name in options}
    fmap = jns.feature_map(net, method=methods.Nystrom(**fields), **options)
    return fmap.apply(fmap.init(key, x, sample=x if sample is None else sample), x)


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", NETS)
def test_kernel_between_batches(name):
    with x64():
        x, z = rows(7), rows(5, seed=1)
        exact = jnt.to_stax(NETS[name])[2](x, z, BOTH)
        both = exact_kernel(NETS[name], x, z, get=BOTH)
        for ours, wanted in zip(both, exact, strict=True):
            np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)
        # Of a batch with itself, where Neural Tangents' diagonal is off by the root
        # of the rounding error, and only there.
        alone = exact_kernel(NETS[name], x, get=BOTH)
        both = exact_kernel(NETS[name], x, x, get=BOTH)
        for ours, wanted in zip(alone, both, strict=True):
            np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=1e-6)
    own = diagonal_kernels(NETS[name], jnp.asarray(x) / x.shape[1] ** 0.5)
    for ours, k in zip(own, alone, strict=True):
        np.testing.assert_allclose(ours, np.diagonal(k), rtol=1e-5, atol=1e-5)


def test_kernel_between_batches_refuses():
    with pytest.raises(
        TypeError, match=r"exact_kernel: net must consist of .* got stax.Conv"
    ):
        exact_kernel(stax.Conv(1, (2, 2)), np.ones((2, 3)), get="ntk")
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        exact_kernel(DEEP, np.ones((2, 3)), np.ones((2, 4)), get="ntk")


@pytest.mark.long_cases("plain", "biases-ntk", "layer norm", "no dense")
@pytest.mark.parametrize("get", BOTH)
@pytest.mark.parametrize("name", NETS)
def test_exact_where_all_examples_are_landmarks(name, get):
    """Also with copies and zero vectors, and with more columns than examples."""
    for dtype, tolerance in (("float32", 1e-3), ("float64", 1e-6)):
        with x64(dtype == "float64"):
            x = rows().astype(dtype)
            exact = exact_kernel(NETS[name], x, get=get)
            for num in (30,) if dtype == "float64" else (47,):
                phi = features(NETS[name], x, num_features=num, get=get)
                assert phi.shape == (30, num) and phi.dtype == dtype
                assert relative(phi @ phi.T, exact) < tolerance


def test_all_landmarks_give_the_best_approximation_of_their_rank():
    """Rows that pad a sample, from 30 to 32, count nothing."""
    with x64():
        x = np.random.default_rng(0).standard_normal((30, 4))
        k = np.asarray(exact_kernel(DEEP, x, get="ntk"))
        for normalize, scale in ((True, np.diag(k)[:, None] ** 0.5), (False, 1)):
            phi = features(DEEP, x, num_features=4, oversample=8.0, normalize=normalize)
            values, vectors = np.linalg.eigh(k / scale / np.transpose(scale))
            best = scale * vectors[:, -4:] * values[-4:] ** 0.5
            assert relative(phi @ phi.T, best @ best.T) < 1e-6


def unpadded(rows):
    return rows, jnp.ones(len(jax.tree.leaves(rows)[0]), bool)


@pytest.mark.long
def test_padding_counts_nothing_layer_by_layer(monkeypatch):
    """From 27 positions to 28, all of which are landmarks."""
    net = stax.serial(stax.Conv(1, (2, 2), padding="SAME"), RELU, stax.GlobalAvgPool())
    net = stax.serial(net, dense(), RELU, dense())
    x = np.random.default_rng(0).standard_normal((3, 3, 3, 2))
    grams = []
    with x64():
        for pads in (True, False):
            if not pads:
                monkeypatch.setattr(sampling, "padded", unpadded)
                steps_of.cache_clear()
            phi = features(net, x, num_features=6, get="ntk", oversample=9.0)
            grams.append(phi @ phi.T)
    np.testing.assert_allclose(*grams, rtol=1e-6, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize(
    ("landmarks", "oversample"), [("rpcholesky", 1.0), ("uniform", 2.5)]
)
def test_below_the_kernel(landmarks, oversample):
    """And nearer with every landmark; at examples that were not in the sample."""
    with x64():
        x, new = rows(80), rows(40, seed=1)
        k = exact_kernel(DEEP, new, get="ntk")
        errors = []
        for num in (5, 30):
            phi = features(
                DEEP, new, x, num_features=num, landmarks=landmarks,
                oversample=oversample,
            )  # fmt: skip
            rest = np.asarray(k - phi @ phi.T)
            assert np.linalg.eigvalsh(rest)[0] > -1e-9
            errors.append(np.trace(rest) / np.trace(k))
        assert errors[0] > 1.5 * errors[1] > 0, errors


def test_equals_the_definition():
    """K_xz K_zz^-1 K_zx in NumPy, with the landmarks that were chosen."""
    with x64():
        x, new = rows(25), rows(9, seed=1)
        fmap = jns.feature_map(
            NETS["biases"], num_features=10, method=methods.Nystrom(oversample=1)
        )
        params = fmap.init(KEY, x, sample=x)
        (params_of_kernel,) = [p for p in params["ntk"] if len(p)]
        z = np.asarray(params_of_kernel["landmarks"]) * x.shape[1] ** 0.5
        assert z.shape == (10, 6)
        assert all(np.isclose(x, row).all(1).any() for row in z)
        k = network_kernels(NETS["biases"], np.concatenate([z, new]))["ntk"]
        phi = fmap.apply(params, new)
        nystrom = k[10:, :10] @ np.linalg.inv(k[:10, :10]) @ k[:10, 10:]
        np.testing.assert_allclose(phi @ phi.T, nystrom, rtol=1e-7)
        # On its landmarks it is exact; the reference is steep there.
        phi = fmap.apply(params, z)
        np.testing.assert_allclose(phi @ phi.T, k[:10, :10], rtol=1e-5)


@pytest.mark.parametrize("oversample", [1.0, 2.0])
def test_long_rows_do_not_take_the_landmarks(oversample):
    """The kernel of this network is homogeneous, so that lengths change no span."""
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    lengths = np.where(np.arange(60) % 7, 1, 100)[:, None]
    options = {"num_features": 12, "oversample": oversample}
    phis = [features(DEEP, x, sample, **options) for sample in (x, lengths * x)]
    grams = [np.asarray(phi @ phi.T) for phi in phis]
    np.testing.assert_allclose(*grams, rtol=0, atol=1e-3 * grams[0].max())


@pytest.mark.long
def test_oversampling_helps():
    """The principal directions are the best of all projections, on the sample."""
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    k = np.asarray(exact_kernel(DEEP, x, get="ntk"), np.float64)
    scale = np.diag(k) ** -0.5
    errors = []
    for s in (1.0, 5.0):
        phi = scale[:, None] * features(DEEP, x, num_features=12, oversample=s)
        errors.append(len(k) - np.sum(phi**2))
    best = np.linalg.eigvalsh(scale[:, None] * k * scale)[:-12].sum()
    assert errors[0] > 1.2 * errors[1]
    np.testing.assert_allclose(errors[1], best, rtol=0.01)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "get"), [("pools", "nngp"), *((name, "ntk") for name in IMAGES)]
)
def test_layer_by_layer_exact(name, get):
    """Where all patches of the sample are landmarks, and the sample is all there is."""
    shape, net = IMAGES[name]
    with x64():
        x = images(shape, n=3)
        exact = network_kernels(net, x)[get]
        phi = features(net, x, num_features=400, get=get)
        assert relative(phi @ phi.T, exact) < 1e-6


@pytest.mark.long
def test_layer_by_layer_error_falls():
    get = "ntk"
    x = images((4, 4, 2), n=30).astype(np.float32).cumsum(1).cumsum(2)
    net = jns.recipes.cntk(2)
    exact = network_kernels(net, x[:8])[get]
    errors = []
    for num in (8, 64):
        phi = features(net, x[:8], x[8:], num_features=num, get=get)
        errors.append(relative(phi @ phi.T, exact))
    assert errors[0] > 3 * errors[1] and errors[1] < 0.15, errors


CASES = {
    "fully connected": (DEEP, rows(40).astype(np.float32), 12),
    "convolutional": (
        stax.serial(*CONV.layers[:3], stax.GlobalAvgPool(), dense()),
        images((4, 4, 2), 20).astype(np.float32),
        24,
    ),
}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    net, x, num = CASES[request.param]
    fmap = jns.feature_map(net, num_features=num, method="nystrom")
    return fmap, x, fmap.init(KEY, x, sample=x)


@pytest.mark.long
def test_pure(case):
    """Parameters are arrays; jit, vmap and batches change nothing; keys do."""
    fmap, x, params = case
    leaves = jax.tree.leaves(params)
    assert all(leaf.dtype in (np.float32, np.int8) for leaf in leaves)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(lambda key: fmap.init(key, x, sample=x), KEY)
    )
    phi = np.asarray(fmap.apply(params, x))
    close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-3)
    jax.tree.map(np.testing.assert_array_equal, params, fmap.init(KEY, x, sample=x))
    learn = jax.jit(lambda key, x: fmap.init(key, x.shape[1:], sample=x))
    jitted = jax.jit(fmap.apply)(learn(KEY, x), x)
    # Principal directions are unique up to signs.
    close(np.abs(jitted), np.abs(phi))
    close(jax.vmap(lambda row: fmap.apply(params, row[None])[0])(x), phi)
    close(fmap.apply(params, x, batch_size=7), phi)
    close(jns.transform(fmap, params, x, batch_size=16), phi)
    other = fmap.apply(fmap.init(jax.random.key(1), x, sample=x), x)
    assert relative(other, phi) > 1e-3
    half = fmap.apply(params, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16 and relative(half.astype(np.float32), phi) < 0.05
    with x64():
        double = fmap.apply(params, x.astype(np.float64))
        assert double.dtype == np.float64
        close(double, phi)


@pytest.mark.long
def test_both_kernels(case):
    fmap, x, params = case
    both = jns.feature_map(
        fmap.net, num_features=fmap.num_features, get=BOTH, method="nystrom"
    )
    phi = both.apply(both.init(KEY, x, sample=x), x)
    np.testing.assert_array_equal(phi.ntk, fmap.apply(params, x))
    assert phi.nngp.shape == phi.ntk.shape
    assert np.isfinite(phi.nngp).all()


@pytest.mark.long
def test_gradients_are_finite(case):
    fmap, x, params = case
    x = np.concatenate([x[:3], 0 * x[:1]])
    slope = jax.grad(lambda x: jnp.sum(fmap.apply(params, x) ** 2))(x)
    assert np.isfinite(slope).all()


def test_plan_knows_the_parameters(case):
    fmap, x, params = case
    plan = fmap.plan(x)
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    assert plan.num_features == fmap.num_features
    assert sum(row.param_bytes for row in plan.rows) == size
    assert "landmarks" in str(plan)


@pytest.mark.long
def test_sample_passes_in_batches(monkeypatch):
    """Memory is planned, and batches do not change what is learned."""
    x = np.random.default_rng(3).standard_normal((40, 4, 4, 2)).astype(np.float32)
    fmap = jns.feature_map(CONV, num_features=12, method="nystrom")
    batched = fmap.init(KEY, x, sample=x)
    module = importlib.import_module("jax_ntk_sketch.features.step")
    monkeypatch.setattr(module, "_SAMPLE_BATCH", 100)
    steps_of.cache_clear()  # each step keeps a compiled function
    whole = fmap.init(KEY, x, sample=x)
    # Roots amplify rounding, and by how much depends on the processor: of them the
    # features are compared.
    for a, b in zip(batched["ntk"], whole["ntk"], strict=True):
        for name in a if isinstance(a, dict) else ():
            if name not in ("nngp_root", "ntk_root"):
                np.testing.assert_allclose(a[name], b[name], atol=1e-6, err_msg=name)
    first, second = (np.asarray(fmap.apply(p, x)) for p in (batched, whole))
    assert relative(first @ first.T, second @ second.T) < 5e-5
    plans = [fmap.plan(x, sample=x[:n]) for n in (20, 40)]
    assert plans[1].fit_bytes > plans[0].fit_bytes > 4 * 4096 * 18
    assert "to learn them, peak" in str(plans[0])


@pytest.mark.long
def test_hardly_any_example():
    """Duplicates, zeros and single examples: finite features, the rest zero."""
    net, x, num = CASES["convolutional"]
    copies = np.concatenate([np.repeat(x[:1], 30, axis=0), 0 * x[:2]])
    assert np.isfinite(features(net, x, copies, num_features=num)).all()
    for sample in (rows()[:1], np.repeat(rows()[:1], 30, axis=0)):
        assert np.isfinite(features(DEEP, rows(), sample, num_features=12)).all()


def test_too_small_a_sample_warns():
    message = "with 4 rows to learn from, only 4 of 9 columns can be used"
    with pytest.warns(RuntimeWarning, match=message):
        phi = np.asarray(features(DEEP, rows(), rows()[:4], num_features=9))
    assert (np.linalg.norm(phi, axis=0) > 0).sum() == 4
    shape, net = IMAGES["pools"]
    fmap = jns.feature_map(net, num_features=999, method="nystrom")
    with pytest.warns(RuntimeWarning, match="rows to learn from, only"):
        jax.eval_shape(lambda key: fmap.init(key, shape, sample=images(shape, 2)), KEY)


def test_without_relu_it_is_linear():
    x = rows().astype(np.float32)
    net = stax.serial(dense(), dense(1, 0.3))
    phi = features(net, x, num_features=20)
    np.testing.assert_allclose(phi @ phi.T, exact_kernel(net, x, get="ntk"), rtol=1e-4)
    fmap = jns.feature_map(net, num_features=20, method="nystrom")
    fmap.init(KEY, (6,))  # nothing to learn from


def test_flatten_first_is_fully_connected():
    x = images((3, 2, 2), 12)
    net = stax.serial(stax.Flatten(), DEEP)
    flat = features(DEEP, x.reshape(12, -1), num_features=5)
    np.testing.assert_allclose(
        np.abs(features(net, x, num_features=5)), np.abs(flat), rtol=0.01, atol=0.01
    )


def test_refuses():
    fmap = jns.feature_map(DEEP, num_features=8, method="nystrom")
    with pytest.raises(ValueError, match="learns from data; pass sample=x"):
        fmap.init(KEY, (6,))
    with pytest.raises(ValueError, match="sample must be given"):
        fmap.init(KEY, rows())  # of which only the shape is taken
    x = rows()
    with pytest.raises(ValueError, match="at least one example"):
        fmap.init(KEY, x, sample=x[:0])
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"finite, got NaN .* in example 3"):
        fmap.init(KEY, x, sample=x)
    with pytest.raises(ValueError, match="Relu must follow"):
        features(stax.serial(RELU, dense()), rows(), num_features=8)
    with pytest.raises(
        ValueError, match=r"oversample must be finite and >= 1, got 0\.5"
    ):
        methods.Nystrom(oversample=0.5)
    with pytest.raises(ValueError, match="landmarks must be one of"):
        methods.Nystrom("best")


FAR = np.linspace(500, 501, 65, dtype=np.float32)[:, None]


@pytest.mark.parametrize("get", BOTH)
def test_kernels_that_rounding_makes_indefinite(get):
    """Far from the origin the kernel has few right digits; the features have as many.

    The kernel exp(-(x - y)^2) is rounded to steps of 0.03 there in float32.
    """
    net = stax.serial(dense(1), stax.Rbf(1.0), *[dense(1)] * (get == "ntk"))
    with x64():
        exact = np.asarray(exact_kernel(net, FAR.astype(np.float64), get=get))
    single = relative(exact_kernel(net, FAR, get=get), exact)
    assert single > 0.01
    with pytest.warns(UserWarning, match=r"NetworkFeatureMap.init: rounding .* 6\d of"):
        phi = features(net, FAR, num_features=32, get=get)
    assert relative(phi @ phi.T, exact) < single
