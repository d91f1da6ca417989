"""Method "variance_reduced": whole networks against exact kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
import scipy.special

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, methods, stax
from jax_ntk_sketch.features.methods._zonal_kernel import zonal_kernel
from jax_ntk_sketch.features.methods.variance_reduced.expansion import (
    DEGREE,
    expansion_weights,
)
from jax_ntk_sketch.features.methods.variance_reduced.network import zonal_fit
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.validation.measures import centered_relative_error, loglog_slope

ROOT2 = 2**0.5
DENSE = stax.Dense(1, W_std=ROOT2)
BIASED = stax.Dense(1, W_std=ROOT2, b_std=0.3)
CONV = stax.Conv(1, (3, 3), padding="SAME", W_std=ROOT2)
CONV_BIAS = stax.Conv(1, (3, 3), padding="SAME", W_std=1.2, b_std=0.2)
KERNEL = methods.VarianceReduced(objective="kernel")
X = np.random.default_rng(0).standard_normal((12, 24)).astype(np.float32)
DIGITS = np.asarray(jns.data.load_digits().x_train, np.float32).reshape(-1, 64)
IMAGES = np.asarray(jns.data.load_digits().images().x_train[:10], np.float32)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


def network(depth):
    return stax.serial(*[DENSE, stax.Relu()] * depth, DENSE)


def grams(fmap, x, seeds, first=0):
    def gram(key):
        phi = fmap.apply(fmap.init(key, x.shape[1:]), x)
        return jnp.matmul(phi, phi.T, precision=jax.lax.Precision.HIGHEST)

    keys = jax.random.split(jax.random.key(first), seeds)
    return np.asarray(jax.jit(lambda k: jax.lax.map(gram, k))(keys), np.float64)


def exact(net, x, get):
    return np.asarray(jnt.to_stax(net)[2](x, None, get), np.float64)


@pytest.mark.parametrize("objective", ["regression", "kernel"])
@pytest.mark.parametrize("get", ["ntk", "nngp"])
@pytest.mark.parametrize("depth", [1, 2])
def test_mean_is_the_series_of_the_plan(depth, get, objective):
    """Unbiased for K^, whose distance from K is what the plan states."""
    method = methods.VarianceReduced(objective=objective)
    net = network(depth)
    fmap = jns.feature_map(net, num_features=80, get=get, method=method)
    g = grams(fmap, X, 400)
    kernel = zonal_kernel(net, get)
    fit = zonal_fit(method, kernel, X.shape[1], 80)
    lengths = np.linalg.norm(X, axis=1)
    norms = np.outer(lengths, lengths) * 2 / X.shape[1]
    cosines = np.clip(X @ X.T / np.outer(lengths, lengths), -1, 1)
    wanted = norms * fit.values(cosines)
    bars = g.std(axis=0, ddof=1) / np.sqrt(len(g))
    limit = 5 * bars + 1e-5 * np.abs(wanted).max()
    np.testing.assert_array_less(np.abs(g.mean(axis=0) - wanted), limit)


@pytest.mark.parametrize("depth", [1, 2])
def test_error_falls_like_the_inverse_square_root(depth):
    """Around its own mean; the series is the same at all these sizes."""
    sizes = (96, 256, 768)
    errors = []
    for m in sizes:
        method = methods.VarianceReduced(objective="regression")
        fmap = jns.feature_map(network(depth), num_features=m, method=method)
        g = grams(fmap, X[:, :8], 60)
        errors.append(g.std(axis=0, ddof=1).mean())
    slope = loglog_slope(sizes, errors)
    assert -0.8 <= slope <= -0.4, (slope, errors)


@pytest.mark.long
@pytest.mark.parametrize("get", ["ntk", "nngp"])
@pytest.mark.parametrize("depth", [1, 3])
def test_kernel_error_is_below_that_of_random_features(depth, get):
    x = DIGITS[:60]
    errors = {}
    for method in (KERNEL, methods.NTKRandomFeatures()):
        fmap = jns.feature_map(network(depth), num_features=256, get=get, method=method)
        truth = exact(network(depth), x, get)
        errors[method] = np.mean(
            [centered_relative_error(truth, g) for g in grams(fmap, x, 6)]
        )
    ours, theirs = errors.values()
    assert ours < 0.85 * theirs


NETS = {
    "biases": (stax.serial(*[BIASED, stax.Relu()] * 2, BIASED), X, 0.12),
    "layer norm": (
        stax.serial(
            BIASED, stax.LayerNorm(), stax.Relu(), DENSE, stax.LayerNorm(), stax.Relu()
        ),
        X,
        0.2,
    ),
    "cntk": (jns.recipes.cntk(2), IMAGES, 0.02),
    "biased images": (
        stax.serial(
            CONV_BIAS, stax.Relu(), stax.AvgPool((2, 2), strides=(2, 2)), CONV_BIAS,
            stax.Relu(), stax.GlobalAvgPool(), BIASED,
        ),
        IMAGES,
        0.03,
    ),
    "flattened": (
        stax.serial(CONV, stax.Relu(), stax.Flatten(), BIASED, stax.Relu(), DENSE),
        IMAGES,
        0.15,
    ),
}  # fmt: skip


@pytest.mark.long_cases("flattened-ntk", "biased images", "cntk")
@pytest.mark.parametrize("get", ["ntk", "nngp"])
@pytest.mark.parametrize("name", NETS)
def test_layer_by_layer_is_near_the_kernel(name, get):
    net, x, most = NETS[name]
    fmap = jns.feature_map(net, num_features=600, get=get, method="variance_reduced")
    truth = exact(net, x, get)
    errors = [np.linalg.norm(g - truth) for g in grams(fmap, x, 3)]
    assert np.mean(errors) < most * np.linalg.norm(truth)


@pytest.mark.long
def test_images_are_better_than_random_features():
    net = jns.recipes.cntk(2)
    truth = exact(net, IMAGES, "ntk")
    errors = []
    for method in (KERNEL, "ntk_random_features"):
        fmap = jns.feature_map(net, num_features=200, method=method)
        draws = [centered_relative_error(truth, g) for g in grams(fmap, IMAGES, 24)]
        errors.append(np.mean(draws))
    assert errors[0] < 0.95 * errors[1], errors  # .194 and .229, each +- .008


RELU = kernels.dual(stax.Relu())


@pytest.mark.parametrize("order", [0, 1])
def test_weights_are_the_derivatives(order):
    """g_l^2 in many dimensions: kappa^(l)(a^2) rho^(2 l) / l!, from the series."""
    count = 400
    c = (kernels.kappa0_coefficients, kernels.kappa1_coefficients)[order](count)
    a2 = np.array([0.0, 0.2, 0.7])
    rho = np.sqrt(1 - a2)
    inputs = (jnp.full(3, 2.0), jnp.asarray(a2, jnp.float32), jnp.asarray(rho))
    g = expansion_weights(RELU, *inputs, 10**9, of_slope=not order, signed=False)
    powers = np.arange(count + 1)
    for degree in range(DEGREE + 1):
        chosen = powers >= degree
        ways = scipy.special.comb(powers[chosen], degree)
        rest = a2[:, None] ** (powers[chosen] - degree)
        wanted = (np.asarray(c)[chosen] * ways * rest).sum(1) * rho ** (2 * degree)
        scale = 1 if order else 2  # of variance 2, half of it in a rectifier
        np.testing.assert_allclose(scale * g[degree] ** 2, wanted, atol=3e-6)


def test_expansion_is_exact_for_equal_constants():
    """sum_l g_l^2 P_l(t) is kappa(a^2 + rho^2 t) up to what degrees above 6 add."""
    a2, t = 0.6, np.linspace(-0.5, 0.5, 5)
    for order, kappa in enumerate((kernels.kappa0, kernels.kappa1)):
        inputs = (jnp.float32(2.0), jnp.float32(a2), jnp.float32((1 - a2) ** 0.5))
        g = expansion_weights(RELU, *inputs, 40, of_slope=not order, signed=False)
        p = kernels.gegenbauer.gegenbauer_values(t, DEGREE, 40)
        ours = p @ np.array([float(v) ** 2 for v in g]) * (1 if order else 2)
        np.testing.assert_allclose(ours, kappa(a2 + (1 - a2) * t), atol=2e-4)


@pytest.mark.long
def test_regression_prefers_low_degrees():
    """Ridge on it is nearer to the exact machine's than ridge on smaller errors."""
    digits = jns.data.load_digits()
    x = DIGITS[:900]
    y = np.asarray(digits.y_train)[:600]
    y = np.eye(10)[y] - 0.1 if y.ndim == 1 else y
    net = network(1)
    kernel = exact(net, x, "ntk")

    def predictions(k, reg):
        scale = reg * np.trace(k[:600, :600]) / 600
        return k[600:, :600] @ np.linalg.solve(k[:600, :600] + scale * np.eye(600), y)

    wanted = predictions(kernel, 1e-4)
    distances = []
    for objective in ("regression", "kernel"):
        method = methods.VarianceReduced(objective=objective)
        fmap = jns.feature_map(net, num_features=128, method=method)
        best = []
        for g in grams(fmap, x, 3):
            gaps = [predictions(g, r) - wanted for r in (1e-3, 1e-2, 1e-1)]
            best.append(min(np.sqrt((gap**2).mean()) for gap in gaps))
        distances.append(np.mean(best))
    assert distances[0] < distances[1], distances


@pytest.mark.parametrize("dim", [63, 64])
def test_the_smallest_cosine_depends_on_the_number_of_inputs(dim):
    found = {}
    for min_cosine in (None, -1.0, -2 * dim**-0.5):
        method = methods.VarianceReduced(min_cosine=min_cosine)
        fmap = jns.feature_map(network(1), num_features=1024, method=method)
        params = fmap.init(jax.random.key(0), (dim,))
        found[min_cosine] = np.asarray(fmap.apply(params, np.eye(dim)[:2]))
    own, all_count, few_count = found.values()
    assert np.abs(own - all_count).max() > 1e-4
    assert np.array_equal(own, few_count) == (dim == 64)


def test_rare_cosines_lower_the_bias_and_cost_little():
    """The bias below -2 / sqrt(d), and the mean error above."""
    net, d = network(3), 9
    kernel = zonal_kernel(net, "ntk")
    rare, usual = np.linspace(-1, -0.7, 20), np.linspace(-0.6, 0.9, 50)
    bias, error = {}, {}
    for min_cosine in (None, -1.0, -2 * d**-0.5):
        fit = zonal_fit(methods.VarianceReduced(min_cosine=min_cosine), kernel, d, 1024)
        bias[min_cosine] = np.abs(fit.values(rare) - kernel.function(rare)).max()
        squares = (fit.values(usual) - kernel.function(usual)) ** 2
        error[min_cosine] = np.mean(squares + fit.variance(usual)) ** 0.5
    assert bias[None] < 0.3 * bias[-2 * d**-0.5]
    assert error[-2 * d**-0.5] < error[None] < error[-1.0]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="objective"):
        methods.VarianceReduced(objective="speed")
    with pytest.raises(ValueError, match="min_cosine"):
        methods.VarianceReduced(min_cosine=1.0)


@functools.lru_cache
def _map(num):
    return jns.feature_map(network(2), num_features=num, method="variance_reduced")


@pytest.mark.long
@pytest.mark.parametrize("num", [2, 3, 5, 24, 25, 26, 40])
def test_any_number_of_columns(num):
    phi = _map(num).apply(_map(num).init(jax.random.key(0), (24,)), X)
    assert phi.shape == (12, num)
    assert np.isfinite(phi).all()


@pytest.mark.long
def test_programs_do_not_grow_with_the_inputs():
    """Exact columns are no operations each: XLA crashes on chains of some hundreds."""
    net = stax.serial(stax.Dense(1, 1.4, 0.1), stax.Gelu(), stax.Dense(1))
    sizes = []
    for dim in (96, 384):
        fmap = jns.feature_map(net, num_features=4096, method="variance_reduced")
        init = functools.partial(fmap.init, example=(dim,))
        params = jax.eval_shape(init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((3, dim), jnp.float32)
        sizes.append(str(jax.make_jaxpr(fmap.apply)(params, x)).count("\n"))
    assert sizes[1] < 1.2 * sizes[0], sizes
