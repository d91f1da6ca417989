"""The bias of a method: its expected kernel in closed form against means over keys."""

import warnings

import jax
import numpy as np
import pytest
import registry

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax
from jax_ntk_sketch.features._bias import expected_kernels
from jax_ntk_sketch.kernels import exact_kernel

RELU = stax.Relu()


def dense(W_std=1.4, b_std=None):
    return stax.Dense(1, W_std, b_std)


def conv(size, b_std=None):
    return stax.Conv(1, (size,), None, "CIRCULAR", 1.4, b_std)


FLAT = {
    "deep": stax.serial(dense(), RELU, dense(), RELU, dense()),
    "biased": stax.serial(dense(1.5, 0.4), RELU, dense(1.5, 0.3), stax.Erf(), dense()),
    "dropout": stax.serial(
        dense(1.4, 0.2), RELU, stax.Dropout(0.6), dense(), RELU, dense()
    ),
    "branches": stax.serial(
        dense(1.2, 0.5), stax.LayerNorm(), stax.Gelu(), stax.FanOut(2),
        stax.parallel(dense(), stax.serial(dense(1.3, 0.2), RELU, dense())),
        stax.FanInSum(), RELU, dense(),
    ),
}  # fmt: skip
IMAGES = stax.serial(
    conv(3, 0.4), stax.Erf(), stax.AvgPool((2,), (2,)), conv(2), RELU,
    stax.GlobalAvgPool(), dense(1.2, 0.3),
)  # fmt: skip
METHODS = {
    "sketch": methods.NTKSketch(coefficients="taylor"),
    "reduced": methods.VarianceReduced(),
    "kernel": methods.VarianceReduced(objective="kernel"),
    "one_pass": methods.OnePass(3),
    "random": methods.NTKRandomFeatures(),
}
X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
X *= np.linspace(0.4, 2, 6, dtype=np.float32)[:, None]
# The same at all positions.
ROWS = np.repeat(X[:, None], 4, axis=1)
# Five points of the sine, where the default is far off.
SINE = np.array([[-0.5], [-1.3], [0.3], [2.2], [1.7]], np.float32)
ERF = stax.serial(*[stax.Dense(1, 1.5, 0.05), stax.Erf()] * 2, stax.Dense(1, 1.5, 0.05))


def expected(fmap, x):
    """The expected kernel of a map, (n, n)."""
    rows = x.reshape(len(x), -1).astype(np.float64)
    inner = rows @ rows.T / rows.shape[1]
    return expected_kernels(fmap, fmap.get, x.shape[1:], inner)[1]


@pytest.mark.long
@pytest.mark.parametrize("get", ["nngp", "ntk"])
@pytest.mark.parametrize("name", [*FLAT, "images"])
@pytest.mark.parametrize("method", METHODS)
def test_expected_kernels_are_means_over_keys(method, name, get):
    net, x = (IMAGES, ROWS) if name == "images" else (FLAT[name], X)
    if method == "one_pass" and name != "deep":
        pytest.skip("for networks of Relu without biases")
    fmap = jns.feature_map(net, num_features=1024, get=get, method=METHODS[method])

    @registry.jit_once
    def gram(keys):
        def one(total, key):
            phi = fmap.apply(fmap.init(key, x.shape[1:]), x)
            return total + phi @ phi.T / len(keys), None

        return jax.lax.scan(one, np.zeros((6, 6), np.float32), keys)[0]

    mean = np.asarray(gram(jax.random.split(jax.random.key(0), 50)))
    wanted = expected(fmap, x)
    # The noise of 50 means, the bias of 1024 columns, and patches that are sketched.
    most = 0.03 if name == "images" else 0.02
    assert np.linalg.norm(mean - wanted) < most * np.linalg.norm(wanted)


def test_biases():
    """A Taylor series of degree 1 has the bias that can be computed by hand."""
    net = stax.serial(dense(1.0), RELU)
    method = methods.NTKSketch(1, 1, "taylor")
    fmap = jns.feature_map(net, num_features=64, get="nngp", method=method)
    alpha = np.linspace(0, 0.9, 31)
    sine = np.sqrt(1 - alpha**2)
    kappa1 = (sine + alpha * (np.pi - np.arccos(alpha))) / np.pi
    error = kappa1 - 1 / np.pi - alpha / 2
    by_hand = np.linalg.norm(error) / np.linalg.norm(kappa1)
    assert fmap.plan((5,)).bias == pytest.approx(by_hand, rel=1e-4)
    # Of both kernels; columns do not matter; unbiased methods.
    both = jns.feature_map(net, num_features=99, get=("nngp", "ntk"), method=method)
    assert both.plan((5,)).bias[0] == fmap.plan((5,)).bias
    for method in ("ntk_random_features", "nystrom", "exact"):
        assert jns.feature_map(net, num_features=64, method=method).plan((5,)).bias == 0


def test_no_number_of_columns_is_suggested_below_the_bias():
    """At once, and with the method that has no bias."""
    options = {"sample": SINE, "relative_error": 0.1, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=r"bias is 0\.1\d .*ntk_random_features"):
        jns.validation.suggest_num_features(
            ERF, (1,), method=methods.VarianceReduced(), **options
        )


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_fits_of_any_degrees(get):
    """The degree of the derivative may be larger, also where it is not used."""
    method = methods.NTKSketch(2, 5, coefficients="fit")
    fmap = jns.feature_map(FLAT["deep"], num_features=64, get=get, method=method)
    assert 0 < fmap.plan((3,)).bias < 0.05


def test_a_large_bias_warns():
    """Where rows are single numbers, without and with a sample; not under `jit`."""
    fmap = jns.feature_map(ERF, num_features=512, method=methods.VarianceReduced())
    key = jax.random.key(0)
    with pytest.warns(UserWarning, match="bias of 0.09.*ntk_random_features"):
        fmap.init(key, (1,))
    stated = fmap.plan((1,), sample=SINE).bias
    with pytest.warns(UserWarning, match=f"bias of {stated:.2g}"):
        params = fmap.init(key, (1,), sample=SINE)
    phi = np.asarray(fmap.apply(params, SINE))
    kernel = exact_kernel(ERF, SINE, get="ntk")
    measured = np.linalg.norm(phi @ phi.T - kernel) / np.linalg.norm(kernel)
    assert 0.1 < stated == pytest.approx(measured, rel=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(lambda key: fmap.init(key, (1,)), key)
        jns.feature_map(FLAT["deep"], num_features=64).init(key, (3,))


@pytest.mark.parametrize(
    "sample, error, match",
    [
        (np.ma.masked_greater(np.ones((4, 3)), 2), TypeError, "not be a masked"),
        (np.full((4, 3), np.nan), ValueError, "got NaN or infinity in example 0 "),
        (np.ones((0, 3)), ValueError, r"at least one example, got shape \(0, 3\)"),
    ],
)
def test_samples_that_say_nothing_are_refused(sample, error, match):
    fmap = jns.feature_map(FLAT["deep"], num_features=64, method="ntk_sketch")
    with pytest.raises(error, match=f"sample must .*{match}"):
        fmap.plan((3,), sample=sample)
