"""Every activation: its dual kernels, features by each method, its mistakes."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import theirs, x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, methods, stax
from jax_ntk_sketch.interop import neural_tangents as jnt

pytestmark = pytest.mark.filterwarnings(
    "ignore:Numerical Activation",
    "ignore:Using JAX autodiff",
    "ignore:Inputs to this layer",
)


def swish(x):
    return x * jax.nn.sigmoid(x)


def mish(x):
    return x * jnp.tanh(jax.nn.softplus(x))


def erf_kernel(cov, var1, var2):
    return 2 / np.pi * jnp.arcsin(2 * cov / jnp.sqrt((1 + 2 * var1) * (1 + 2 * var2)))


CLOSED = [
    stax.Relu(),
    stax.Relu(do_stabilize=True),
    stax.ABRelu(0.3, -1.2),
    stax.ABRelu(-0.5, 2.0, do_stabilize=True),
    stax.LeakyRelu(0.1),
    stax.Abs(),
    stax.Sign(),
    stax.Monomial(0),
    stax.Monomial(3),
    stax.Monomial(4),
    stax.Monomial(2),
    stax.RectifiedMonomial(0),
    stax.RectifiedMonomial(1),
    stax.RectifiedMonomial(2),
    stax.RectifiedMonomial(3),
    stax.Polynomial((0.5, -1.0, 0.3, 0.2)),
    stax.Polynomial((0, 2)),
    stax.Hermite(0),
    stax.Hermite(3),
    stax.Erf(),
    stax.Erf(1.2, 0.7, 0.3),
    stax.Sigmoid_like(),
    stax.Gelu(),
    stax.Gelu(approximate=True),
    stax.Sin(),
    stax.Sin(1.1, 0.8, 0.3),
    stax.Cos(1.1, 0.8, 0.3),
    stax.Rbf(0.4),
    stax.Gaussian(),
    stax.Gaussian(1.2, -0.4),
    stax.Exp(1.1, 0.3),
    stax.Gabor(),
    stax.ExpNormalized(),
    stax.ExpNormalized(0.8, -0.7, do_clip=True),
]
NUMERICAL = [
    stax.ElementwiseNumerical(jnp.tanh, 25),
    stax.ElementwiseNumerical(jnp.sin, 20, jnp.cos),
    stax.Elementwise(mish),
    stax.Elementwise(jax.scipy.special.erf, erf_kernel),
]
# One of each record.
EACH = list({type(layer): layer for layer in CLOSED + NUMERICAL}.values())

RNG = np.random.default_rng(0)
X, Z = RNG.normal(size=(6, 5)), RNG.normal(size=(4, 5))
X[1] *= 0.3
X[2] = 2 * X[3]
IMAGES = RNG.normal(size=(4, 4, 4, 2))


def every(layers):
    return pytest.mark.parametrize("layer", layers, ids=lambda x: repr(x)[5:45])


# The quick suite takes one of each record.
VARIANTS = [
    layer if layer in EACH else pytest.param(layer, marks=pytest.mark.long)
    for layer in CLOSED + NUMERICAL
]


@every(VARIANTS)
def test_dual_is_neural_tangents(layer):
    linear = jnt.to_stax(stax.Dense(1, 1.3, 0.4))[2]
    whole = jnt.to_stax(stax.serial(stax.Dense(1, 1.3, 0.4), layer))[2]
    with x64():
        for z in (None, jnp.asarray(Z)):
            before = linear(jnp.asarray(X), z, ("nngp", "ntk", "cov1", "cov2"))
            dual = kernels.dual(layer)
            nngp, slope = dual.kernels(before.nngp, before.cov1, before.cov2)
            wanted = np.stack(whole(jnp.asarray(X), z, ("nngp", "ntk")))
            # Theirs of rectified powers is NaN where the cosine is 1.
            known = ~np.isnan(wanted)
            if z is not None or not isinstance(layer, stax.RectifiedMonomial):
                assert known.all()
            assert known.mean() > 0.7
            got = np.stack([nngp, slope * before.ntk])
            np.testing.assert_allclose(
                got[known], wanted[known], rtol=1e-10, atol=1e-12
            )


@pytest.mark.long
@every([x for x in CLOSED + NUMERICAL if not isinstance(x, stax.Elementwise)])
def test_hermite_series_sums_to_the_kernels(layer):
    """sum a_l(s) a_l(t) alpha^l at different variances, of both; and the derivative."""
    with x64():
        dual = kernels.dual(layer)
        s, alpha = jnp.array([0.7, 1.1]), 0.4
        cov = alpha * s[0] * s[1]
        pair = dual.covariances(cov, s[0] ** 2, s[1] ** 2)
        powers = alpha ** np.arange(31)
        for wanted, series in zip(
            pair,
            (dual.coefficients(s, 30), dual.slope_coefficients(s, 30)),
            strict=True,
        ):
            np.testing.assert_allclose(
                (series[0] * series[1]) @ powers, wanted, rtol=2e-6, atol=1e-10
            )
        slope = jax.grad(lambda c: dual.covariances(c, s[0] ** 2, s[1] ** 2)[0])(cov)
        if not isinstance(layer, stax.Sign) and layer != stax.RectifiedMonomial(0):
            np.testing.assert_allclose(slope, pair[1], rtol=1e-5, atol=1e-12)
        # The function itself has the coefficients' mean square.
        z, w = np.polynomial.hermite_e.hermegauss(200)
        values = np.asarray(dual.value(jnp.asarray(z), s[0]))
        mean = float((w * values**2).sum() / w.sum())
        np.testing.assert_allclose(mean, dual.diagonal(s[0] ** 2)[0], rtol=2e-2)


def networks(layer):
    dense, out = stax.Dense(1, 1.2, 0.3), stax.Dense(1, 0.9, 0.1)
    conv = stax.Conv(1, (3, 3), padding="SAME", W_std=1.1, b_std=0.2)
    first = ("NCHW", "OIHW", "NCHW")
    yield stax.serial(dense, stax.LayerNorm(), layer, stax.Dense(1, 1.4)), X
    yield stax.serial(dense, layer, out), X
    if isinstance(layer, stax.RectifiedMonomial):
        # Theirs is NaN at the cosine 1, so in whatever has a diagonal.
        yield stax.serial(stax.Dense(1), stax.Dense(1), layer), X
        yield stax.serial(dense, layer, stax.Dense(1, 0.7)), X
        return
    yield stax.serial(dense, layer, out, layer, out), X
    # Theirs of signs takes different pixels of an image for equal ones.
    if not isinstance(layer, stax.Sign):
        pool, mean = stax.AvgPool((2, 2)), stax.GlobalAvgPool()
        yield stax.serial(conv, layer, pool, conv, layer, mean, out), IMAGES
    image = stax.Conv(1, (2, 2), W_std=1.1, b_std=0.2, dimension_numbers=first)
    yield (
        stax.serial(image, layer, stax.Flatten(), out, layer, out),
        np.moveaxis(IMAGES, -1, 1),
    )


@pytest.mark.long
@every(EACH)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_is_neural_tangents(layer, dtype):
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    with x64(dtype == "float64"):
        nets = list(networks(layer))
        small = nets.pop(1)
        for net, x in [small, nets[-1]] if dtype == "float32" else nets:
            x = jnp.asarray(x, dtype)
            kinds = ("nngp", "ntk")
            fmap = jns.feature_map(net, num_features=1, get=kinds, method="exact")
            phi = fmap.apply(fmap.init(jax.random.key(0), x), x)
            wanted = theirs(net, x[:2], x[2:], kinds)
            for kind in kinds:
                z, k = np.asarray(getattr(phi, kind)), np.asarray(getattr(wanted, kind))
                error = np.abs(z[:2] @ z[2:].T - k).max()
                assert error <= tolerance * np.abs(k).max(), (net, kind, error)


def errors(net, x, method, num_features, seeds):
    """Root mean square of the relative errors of both kernels, over keys."""
    fmap = jns.feature_map(
        net, num_features=num_features, get=("nngp", "ntk"), method=method
    )
    exact = kernels.exact_kernel(net, x, get=("nngp", "ntk"))

    @jax.jit
    @jax.vmap
    def one(key):
        phi = fmap.apply(fmap.init(key, x.shape[1:]), x)
        off = ~jnp.eye(len(x), dtype=bool)
        return [
            jnp.linalg.norm((f @ f.T - k) * off) / jnp.linalg.norm(k * off)
            for f, k in zip(phi, exact, strict=True)
        ]

    return [
        float(np.sqrt(np.mean(np.square(e)))) for e in one(jax.random.split(KEY, seeds))
    ]


KEY = jax.random.key(3)


@pytest.mark.long
@every(EACH)
def test_random_features_are_unbiased(layer):
    """In three dimensions, where a direction of fixed length is far from normal."""
    x = jnp.asarray(0.6 * X[:, :3])
    net = stax.serial(stax.Dense(1, 0.9, 0.0), layer)
    method = methods.NTKRandomFeatures(directions="orthogonal")
    kinds = ("nngp", "ntk")
    fmap = jns.feature_map(net, num_features=32, get=kinds, method=method)

    @jax.jit
    @jax.vmap
    def grams(key):
        phi = fmap.apply(fmap.init(key, x.shape[1:]), x)
        return [f @ f.T for f in phi]

    found = grams(jax.random.split(KEY, 4000))
    exact = kernels.exact_kernel(net, x, get=kinds)
    for samples, wanted in zip(found, exact, strict=True):
        contract.assert_mean(samples, wanted)


METHODS = ["ntk_sketch", "variance_reduced"]
SOME = [
    stax.ABRelu(0.3, -1.2),
    stax.Sign(),
    stax.Monomial(2),
    stax.RectifiedMonomial(2),
    stax.Polynomial((0.5, -1.0, 0.3)),
    stax.Erf(1.2, 0.7, 0.3),
    stax.Gelu(),
    stax.Cos(),
    stax.Gaussian(1.2, -0.4),
    stax.ExpNormalized(0.8, -1.0),
    stax.Elementwise(jnp.tanh),
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "layer"),
    [
        pytest.param(method, layer, id=f"{method}-{repr(layer)[6:20]}")
        for method, layers in zip(METHODS, (SOME[::4], SOME[2::4]), strict=True)
        for layer in layers
    ],
)
def test_error_falls_like_the_inverse_square_root(method, layer):
    """Between two sizes, up to what a method leaves out: degrees above its own, and
    for "variance_reduced" coefficients that depend on two norms by more than a product.
    """
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(24, 16)) * rng.uniform(0.5, 1.5, (24, 1)) + 0.2)
    net = stax.serial(stax.Dense(1, 1.0, 0.3), layer, stax.Dense(1, 1.0, 0.1))
    small, large = (errors(net, x, method, m, 8) for m in (128, 2048))
    for before, after in zip(small, large, strict=True):
        if before == 0:  # the NTK behind Sign
            assert after == 0
            continue
        slope = np.log(after / before) / np.log(16)
        assert after < 0.25 and (slope < -0.3 or after < 0.08), (before, after)
