"""How errors fall with size, and biases that are stated: many seeds, error bars.

Means of sketches and of unbiased features are in the contract suite.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, methods, stax
from jax_ntk_sketch.features.methods._zonal_kernel import zonal_kernel
from jax_ntk_sketch.features.methods.one_pass import polynomial
from jax_ntk_sketch.validation.measures import loglog_slope

DENSE = stax.Dense(1, 2**0.5)
SEEDS = 300
X = np.random.default_rng(0).standard_normal((12, 24)).astype(np.float32)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


def network(depth):
    return stax.serial(*[DENSE, stax.Relu()] * depth, DENSE)


@functools.lru_cache
def grams(depth, method, num_features, seeds=SEEDS):
    """(seeds, n, n) in float64."""
    fmap = jns.feature_map(network(depth), num_features=num_features, method=method)

    def gram(key):
        phi = fmap.apply(fmap.init(key, X), X)
        return jnp.matmul(phi, phi.T, precision=jax.lax.Precision.HIGHEST)

    keys = jax.random.split(jax.random.key(1), seeds)
    return np.asarray(jax.jit(jax.vmap(gram))(keys), np.float64)


def exact(depth):
    return np.asarray(kernels.exact_kernel(network(depth), X, get="ntk"))


# Powers are sketched at degree 3: the tree then has no inner nodes whose width is
# rounded to powers of two, and the noise is that of the columns asked for.
METHODS = {
    "one_pass": methods.OnePass(degree=3),
    "random features": methods.NTKRandomFeatures(),
    "published random features": methods.NTKRandomFeatures(
        directions="gaussian", antithetic=False, product="tensor_srht"
    ),
    "leverage variant": methods.NTKRandomFeatures(directions="sphere"),
    "ntk_sketch": methods.NTKSketch(degree=2, derivative_degree=1),
}


@pytest.mark.long
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_error_falls_like_the_inverse_square_root(name, depth):
    """Slope of the root mean square error between -0.65 and -0.4.

    Random features are compared with the exact kernel, polynomial methods with their
    own mean: at fixed degree the error of the polynomial does not fall.
    """
    sizes = (96, 256, 768)
    errors = []
    for m in sizes:
        g = grams(depth, METHODS[name], m)
        centre = exact(depth) if "features" in name or "lever" in name else g.mean(0)
        errors.append(np.sqrt(np.mean((g - centre) ** 2)))
    slope = loglog_slope(sizes, errors)
    assert -0.65 <= slope <= -0.4, (slope, errors)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_sketches_do_not_compress_exact_columns(kind):
    """The constant, bias and linear part of Relu, in front of the sketched rest."""
    net = stax.serial(stax.Dense(1, 1.0, 0.5), stax.Relu(), stax.Dense(1, 1.0, 0.3))
    norms = np.sqrt(np.mean(X**2, axis=1) + 0.25)
    inner = X @ X.T / 24 + 0.25
    wanted = np.outer(norms, norms) / (2 * np.pi) + inner / 4 + 0.09

    def run(num_features):
        fmap = jns.feature_map(
            net, num_features=num_features, get=kind, method="ntk_sketch"
        )
        phi = fmap.apply(fmap.init(jax.random.key(0), X), X)
        return np.asarray(phi, np.float64)

    head = run(54)[:, :27]
    np.testing.assert_allclose(head @ head.T, wanted, rtol=0, atol=1e-5)
    # Half of fewer columns has room for the constants only.
    head = run(52)[:, :3]
    constant = np.outer(norms, norms) / (2 * np.pi) + 0.25 / 4 + 0.09
    np.testing.assert_allclose(head @ head.T, constant, rtol=0, atol=1e-5)


@pytest.mark.long
def test_deep_random_features_have_a_bias_that_falls_like_one_over_m():
    """Two hidden layers: kappa1 is not linear, so its noise in layer 1 has a mean."""
    method = METHODS["published random features"]
    biases, bars = [], []
    for m in (64, 256):
        g = grams(2, method, m, 3000)
        off = ~np.eye(len(X), dtype=bool)
        # Averaged over pairs with the sign that the bias has: kappa1 is convex.
        difference = (g - exact(2))[:, off].mean(axis=1)
        biases.append(abs(difference.mean()))
        bars.append(difference.std(ddof=1) / np.sqrt(len(g)))
    assert biases[1] + 3 * bars[1] < 0.02 * np.abs(exact(2)).mean()
    assert biases[1] < biases[0] / 2 + 3 * (bars[0] + bars[1])


@pytest.mark.parametrize("coefficients", ["fit", "taylor"])
@pytest.mark.parametrize("degree", [2, 5])
def test_one_pass_estimates_its_polynomial(degree, coefficients):
    """Unbiased for the polynomial."""
    method = methods.OnePass(degree=degree, coefficients=coefficients)
    g = grams(2, method, 128, 400)
    zonal = zonal_kernel(network(2), "ntk")
    kernel = polynomial(method, zonal)
    lengths = np.linalg.norm(X, axis=1)
    cosines = (X @ X.T) / np.outer(lengths, lengths)
    norms = np.outer(lengths, lengths) * 2 / X.shape[1]
    wanted = norms * np.polynomial.polynomial.polyval(cosines, kernel)
    bars = g.std(axis=0, ddof=1) / np.sqrt(len(g))
    # 144 entries: a correct code fails with probability 1e-4 or less.
    np.testing.assert_array_less(
        np.abs(g.mean(axis=0) - wanted), 5 * bars + 1e-5 * np.abs(wanted).max()
    )


def test_variance_of_count_sketch():
    """Var <Sx, Sy> = (|x|² |y|² + <x, y>² - 2 Σ x² y²) / m."""
    m, seeds = 7, 20000
    sketch = jns.sketch.CountSketch(24, m)
    x, y = X[0], X[1]
    keys = jax.random.split(jax.random.key(3), seeds)

    def product(key):
        params = sketch.init(key)
        return sketch.apply(params, x) @ sketch.apply(params, y)

    values = np.asarray(jax.jit(jax.vmap(product))(keys), np.float64)
    formula = (x @ x) * (y @ y) + (x @ y) ** 2 - 2 * np.sum(x**2 * y**2)
    np.testing.assert_allclose(values.var(), formula / m, rtol=0.08)
