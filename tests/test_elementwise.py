"""Any function of one number: its kernels, finite networks of it, its mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch.interop import neural_tangents as jnt

pytestmark = pytest.mark.filterwarnings(
    "ignore:Numerical Activation", "ignore:Using JAX autodiff"
)


def swish(x):
    return x * jax.nn.sigmoid(x)


def mish(x):
    return x * jnp.tanh(jax.nn.softplus(x))


FUNCTIONS = {
    "tanh": jnp.tanh,
    "swish": swish,
    "softplus": jax.nn.softplus,
    "mish": mish,
    "lambda": lambda x: jnp.sin(2 * x) + 0.2 * x**2,
}
every = pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5)) * RNG.uniform(0.5, 1.5, (6, 1))
BOTH = ("nngp", "ntk")


def two_layers(fn, width=1):
    hidden = stax.Dense(width, 1.1, 0.3), stax.Elementwise(fn)
    return stax.serial(*hidden, *hidden, stax.Dense(1, 1.2, 0.2))


CASES = [(name, "float64") for name in FUNCTIONS] + [("mish", "float32")]


@pytest.mark.long_cases("mish", "swish", "softplus")
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_kernels_are_neural_tangents(name, dtype):
    fn, theirs = FUNCTIONS[name], jnt.load().stax
    with x64(dtype == "float64"):
        x = jnp.asarray(X, dtype)
        hidden = theirs.Dense(1, 1.1, 0.3), theirs.ElementwiseNumerical(fn, 64)
        exact = theirs.serial(*hidden, *hidden, theirs.Dense(1, 1.2, 0.2))[2]
        # All pairs of different examples, and the variances.
        wanted, alone = jax.jit(
            lambda x: (exact(x[:3], x[3:], BOTH), exact(x, None, BOTH))
        )(x)
        net = two_layers(fn)
        fmap = jns.feature_map(net, num_features=1, get=BOTH, method="exact")
        phi = jax.jit(fmap.apply)(fmap.init(jax.random.key(0), x), x)
        tolerance = 1e-4 if dtype == "float32" else 1e-9
        for kind in BOTH:
            z = np.asarray(getattr(phi, kind))
            k = np.asarray(getattr(wanted, kind))
            size = np.abs(k).max()
            assert np.abs(z[:3] @ z[3:].T - k).max() <= tolerance * size
            # On its diagonal their quadrature takes the root of a rounding error.
            own, other = (z**2).sum(-1), np.diagonal(getattr(alone, kind))
            assert np.abs(own - other).max() <= max(tolerance, 1e-7) * size


def test_few_nodes_give_the_mean_of_both_orders():
    """Their quadrature takes one input before the other; features cannot."""
    net = stax.serial(
        stax.Dense(1, 1.2, 0.2), stax.ElementwiseNumerical(jnp.tanh, 8), stax.Dense(1)
    )
    with x64():
        x = jnp.asarray(2 * X)
        kernel_fn = jnt.to_stax(net)[2]
        k, other = kernel_fn(x[:3], x[3:], "ntk"), kernel_fn(x[3:], x[:3], "ntk").T
        assert np.abs(k - other).max() > 1e-3
        fmap = jns.feature_map(net, num_features=1, method="exact")
        z = fmap.apply(fmap.init(jax.random.key(0), x), x)
        np.testing.assert_allclose(z[:3] @ z[3:].T, (k + other) / 2, rtol=1e-9)


@pytest.mark.long
@every
def test_kernels_are_those_of_wide_networks(fn):
    """The mean over draws, up to 4 standard errors and the bias of finite width."""
    width, draws = 512, 32
    x = jnp.asarray(X[:3], jnp.float32)
    net = two_layers(fn, width)
    init_fn, apply_fn, _ = jnt.to_stax(net)
    hidden_fn = jnt.to_stax(stax.serial(*net.layers[:-1]))[1]

    @jax.jit
    def one(key):
        _, params = init_fn(key, x.shape)
        hidden = hidden_fn(params[:-1], x)
        nngp = 1.2**2 * hidden @ hidden.T / width + 0.2**2  # mean over the last layer
        jacobian = jax.jacrev(lambda p: apply_fn(p, x)[:, 0])(params)
        parts = [j.reshape(len(x), -1) for j in jax.tree.leaves(jacobian)]
        return nngp, sum(j @ j.T for j in parts)

    keys = jax.random.split(jax.random.key(1), draws)
    seen = np.array([one(key) for key in keys], np.float64)  # (draws, 2, 3, 3)
    mean, error = seen.mean(0), seen.std(0, ddof=1) / draws**0.5
    with x64():
        wanted = np.array(
            jax.jit(lambda x: kernels.exact_kernel(net, x, get=("nngp", "ntk")))(X[:3])
        )
    size = np.abs(wanted).max(axis=(1, 2), keepdims=True)
    assert (error < 0.04 * size).all()  # else the test says nothing
    assert (np.abs(mean - wanted) < 4 * error + 4 * size / width).all()


def dense(activation):
    return stax.serial(stax.Dense(1), activation, stax.Dense(1))


def build(activation, method="exact"):
    """Features of one layer, to the end."""
    fmap = jns.feature_map(dense(activation), num_features=16, method=method)
    x = jnp.asarray(X, jnp.float32)
    params = fmap.init(jax.random.key(0), x, sample=x)
    return jax.jit(fmap.apply)(params, x)


METHODS = ["exact", "ntk_random_features", "ntk_sketch", "variance_reduced"]


def branch(x):
    return x if x > 0 else 0.1 * x


MISTAKES = {
    "diverges": (lambda x: jnp.exp(x**2), "Gaussian average of .* diverges"),
    "overflows": (lambda x: jnp.exp(x**4), "diverges"),
    "branches": (branch, r"jnp\.where in place of if"),
    "numpy": (np.tanh, "must take arrays, elementwise, in jax.numpy"),
    "sums": (lambda x: x.sum(-1), r"must be elementwise, but .* \(3, 2\) to shapes"),
    "first": (lambda x: x[..., :1], "must be elementwise"),
    "wider": (lambda x: jnp.stack([x, x]), "must be elementwise"),
    "constant": (lambda x: 1.0, "must .*elementwise"),
    "array": (lambda x: jnp.ones(()), "must be elementwise"),
    "raises": (lambda x, y: x, "TypeError"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("kind", ["Elementwise", "ElementwiseNumerical"])
def test_mistakes_of_functions(name, kind):
    fn, message = MISTAKES[name]
    more = {"deg": 20} if kind == "ElementwiseNumerical" else {}
    layer = getattr(stax, kind)(fn, **more)
    with pytest.raises(ValueError, match=message) as raised:
        kernels.dual(layer)
    assert str(raised.value).startswith(f"{kind}: ")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["diverges", "branches", "sums"])
def test_mistakes_of_functions_by_method(name, method):
    fn, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        build(stax.Elementwise(fn), method)


@pytest.mark.parametrize("fn", [lambda x: jnp.exp(0.2 * x**2), jnp.exp])
def test_what_grows_slowly_enough_is_finite(fn):
    assert np.isfinite(build(stax.Elementwise(fn))).all()


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS[1:])
def test_infinite_kernels_are_nan(method):
    """exp(x^2 / 2) has a mean square for variances below 1 / 2 only."""
    x = jnp.sqrt(jnp.array([[0.1, 0.3], [0.3, 0.3], [0.2, 0.2]]) * 2)
    net = stax.serial(stax.Dense(1), stax.Gaussian(1.0, 0.5), stax.Dense(1))
    fmap = jns.feature_map(net, num_features=16, get=BOTH, method=method)
    phi = fmap.apply(fmap.init(jax.random.key(0), x), x)
    for z in phi:
        assert np.isnan(z[1]).all() and np.isfinite(z[::2]).all()


def test_negative_variances():
    dual = kernels.dual(stax.Elementwise(jnp.tanh))
    cov, good, bad = jnp.zeros((2, 2)), jnp.ones(2), jnp.array([1.0, -0.5])
    with pytest.raises(ValueError, match=r"diag1 holds variances.*>= 0, got -0\.5"):
        dual.kernels(cov, bad)
    with pytest.raises(ValueError, match=r"diag2 holds variances.*>= 0, got -0\.5"):
        dual.kernels(cov, good, bad)
    assert np.isfinite(dual.kernels(cov, good, jnp.zeros(2))).all()


def test_records_without_functions():
    with pytest.raises(ValueError, match="fn or nngp_fn must be given, got neither"):
        stax.Elementwise()
    with pytest.raises(ValueError, match="nngp_fn must be given with d_nngp_fn"):
        stax.Elementwise(jnp.tanh, d_nngp_fn=jnp.tanh)
    with pytest.raises(TypeError, match="fn must be a function, got 'tanh'"):
        stax.Elementwise("tanh")
    with pytest.raises(TypeError, match="fn must be a function"):
        stax.ElementwiseNumerical(None, 20)
    with pytest.raises(ValueError, match="deg must be"):
        stax.ElementwiseNumerical(jnp.tanh, 0)


def test_a_kernel_without_function_has_exact_features_only():
    layer = stax.Elementwise(nngp_fn=lambda c, q1, q2: c**2)
    z = build(layer)
    assert np.isfinite(z).all()
    for method in METHODS[1:]:
        with pytest.raises(ValueError, match=r'fn is None; .*method="exact"'):
            build(layer, method)


@pytest.mark.parametrize("method", ["one_pass", "nystrom"])
def test_methods_without_it_say_so(method):
    """Or give the right kernel."""
    layer = stax.Elementwise(jnp.tanh)
    try:
        z = build(layer, method)
    except ValueError as error:
        assert "Elementwise" in str(error) and "method=" in str(error)
        return
    x = jnp.asarray(X, jnp.float32)
    k = jnt.to_stax(dense(layer))[2](x, None, "ntk")
    np.testing.assert_allclose(z @ z.T, k, atol=1e-3 * float(k.max()))


def test_functions_are_no_json():
    net = dense(stax.Elementwise(jnp.tanh))
    with pytest.raises(TypeError, match="function"):
        stax.to_json(net)
    assert net == dense(stax.Elementwise(jnp.tanh))


def test_myrtle_takes_any_activation():
    net = jns.recipes.myrtle(7, activation=stax.Elementwise(jnp.tanh))
    seen = [x for x in stax.walk(net) if isinstance(x, stax.Activation)]
    assert seen == [stax.Elementwise(jnp.tanh)] * 6
    assert jns.recipes.myrtle(7, activation=stax.Relu()) == jns.recipes.myrtle(7)
    with pytest.raises(TypeError, match="activation must be a record such as stax"):
        jns.recipes.myrtle(5, activation=jnp.tanh)
