"""Arc-cosine kernels and closed-form fully connected kernels."""

import decimal
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import x64

from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.kernels.exact import diagonal_kernels

EPS = {"float32": np.finfo(np.float32).eps, "float64": np.finfo(np.float64).eps}


# References that share nothing with the code: 60-digit decimals, textbook formulas.


def decimal_kappas(alpha: float) -> tuple[float, float]:
    with decimal.localcontext(prec=60):
        a = Decimal(float(alpha))
        sine = ((1 - a) * (1 + a)).sqrt()
        # The angle pi - arccos(a) = 2 arctan(sqrt((1 + a) / (1 - a))).
        pi = 2 * (arctan(Decimal(1) / 2) + arctan(Decimal(1) / 3)) * 2
        angle = pi if a == 1 else 2 * arctan(((1 + a) / (1 - a)).sqrt())
        return float(angle / pi), float((sine + a * angle) / pi)


def arctan(x: Decimal) -> Decimal:
    halvings = 12
    for _ in range(halvings):
        x = x / (1 + (1 + x * x).sqrt())
    return 2**halvings * sum(
        (-1) ** k * x ** (2 * k + 1) / (2 * k + 1) for k in range(12)
    )


def numpy_kappas(alpha):
    """Plain formulas, also for complex arguments."""
    angle = np.pi - np.arccos(alpha)
    return angle / np.pi, (np.sqrt(1 - alpha * alpha) + alpha * angle) / np.pi


def numpy_recursion(depth, alpha):
    """Sigma_depth and K_depth."""
    nngp = ntk = alpha
    for _ in range(depth):
        zeroth, first = numpy_kappas(nngp)
        nngp, ntk = first, ntk * zeroth + first
    return nngp, ntk


# kappa0 and kappa1.

NEAR = np.geomspace(1e-7, 0.5, 25)
GRID = np.concatenate([[-1, 0, 1], np.linspace(-0.99, 0.99, 41), NEAR - 1, 1 - NEAR])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kappas_to_relative_rounding_error_on_the_whole_interval(dtype):
    alpha = GRID.astype(dtype)
    exact = np.array([decimal_kappas(a) for a in alpha]).T
    with x64(dtype == "float64"):
        for f, reference in zip((kernels.kappa0, kernels.kappa1), exact, strict=True):
            for value in (f(alpha), jax.jit(f)(alpha)):
                assert value.dtype == dtype
                np.testing.assert_allclose(value, reference, rtol=16 * EPS[dtype])
            assert f(jnp.array([-1, 1], dtype)).tolist() == [0, 1]


@pytest.mark.parametrize("name", ["kappa0", "kappa1"])
def test_kappas_dtypes_clipping_and_bad_input(name):
    f = getattr(kernels, name)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        value = f(jnp.asarray(GRID, dtype))
        assert value.dtype == dtype
        reference = f(jnp.asarray(GRID, dtype).astype(jnp.float32))
        assert (value == reference.astype(dtype)).all()
    for integers in (jnp.array([-1, 1]), np.array([-1, 1]), [-1, 1]):
        value = f(integers)
        assert value.dtype == jnp.float32 and value.tolist() == [0, 1]
    assert f(jnp.array([False, True])).tolist() == [float(f(0.0)), 1]
    assert f(jnp.array([-1.001, 1.001])).tolist() == [0, 1]
    assert f(jnp.zeros((2, 0, 3))).shape == (2, 0, 3)
    assert np.isnan(f(jnp.nan))
    with pytest.raises(TypeError, match="alpha must be real"):
        f(1j)


def test_gradients_are_right_inside_and_finite_at_the_ends():
    with x64():
        inside = jnp.linspace(-0.999, 0.999, 101)
        ends = jnp.array([-1.0, 1.0, -1.1, 1.1])
        for jacobian in (jax.jacfwd, jax.jacrev):
            slope0 = jax.jit(jax.vmap(jacobian(kernels.kappa0)))
            slope1 = jax.jit(jax.vmap(jacobian(kernels.kappa1)))
            expected = 1 / (np.pi * np.sqrt(1 - inside**2))
            np.testing.assert_allclose(slope0(inside), expected, rtol=1e-13)
            assert slope0(ends).tolist() == [0, 0, 0, 0]
            for points in (inside, ends):
                np.testing.assert_allclose(
                    slope1(points), kernels.kappa0(points), rtol=1e-15
                )
        for f in (kernels.kappa0, kernels.kappa1):
            second = jax.jit(jax.vmap(jax.grad(jax.grad(f))))
            assert np.isfinite(second(ends)).all()
        second = jax.jit(jax.vmap(jax.grad(jax.grad(kernels.kappa0))))(inside)
        expected = inside / (np.pi * (1 - inside**2) ** 1.5)
        np.testing.assert_allclose(second, expected, rtol=1e-12, atol=1e-13)


# The dual kernels of the rectifier.

RELU = kernels.dual(stax.Relu())


def test_relu_kernels_are_the_gaussian_expectations():
    # In polar coordinates: (1 / pi) and (1 / 2 pi) times an integral over the circle.
    angles = np.linspace(0, 2 * np.pi, 20000, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    x = np.array([[1.0, 0.0], [0.3, -0.4], [-2.0, 0.1]])
    y = np.array([[0.5, 0.5], [-3.0, 0.0]])
    f, g = x @ directions, y @ directions
    covariance = np.maximum(f, 0) @ np.maximum(g, 0).T / angles.size * 2
    slopes = (f > 0).astype(float) @ (g > 0).T / angles.size
    with x64():
        value = RELU.kernels(x @ y.T, (x**2).sum(1), (y**2).sum(1))
    np.testing.assert_allclose(value[0], covariance, atol=1e-6)
    np.testing.assert_allclose(value[1], slopes, atol=2e-4)


def test_relu_kernels_at_zero_and_huge_norms_and_on_the_diagonal():
    relu_kernels = jax.jit(RELU.kernels)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7)).astype(np.float32)
    x[2] = 0
    diag = (x * x).sum(1)
    nngp, slopes = relu_kernels(x @ x.T, diag)
    np.testing.assert_allclose(np.diag(nngp), diag / 2, rtol=2e-7)
    expected = np.full(5, 0.5)
    expected[2] = 0.25
    assert np.diag(slopes).tolist() == expected.tolist()
    assert (nngp[2] == 0).all() and (slopes[2] == 0.25).all()
    # Batches of matrices, and norms whose product overflows.
    many = relu_kernels(jnp.stack([x @ x.T] * 2), jnp.stack([diag] * 2))
    assert many[0].shape == (2, 5, 5) and (many[0][1] == nngp).all()
    large = relu_kernels(jnp.full((1, 1), 1e30), *[jnp.full(1, 2e30)] * 2)
    np.testing.assert_allclose(large[0][0, 0], 1e30 * kernels.kappa1(0.5), rtol=1e-6)
    with pytest.raises(ValueError, match=r"nngp must have shape .* got \(5, 5\), \(4,"):
        RELU.kernels(x @ x.T, diag[:4])


def test_relu_kernels_gradients():
    def both(x, y):
        norms = (x * x).sum(1), (y * y).sum(1)
        return jnp.stack([k.sum() for k in RELU.kernels(x @ y.T, *norms)])

    with x64():
        keys = jax.random.split(jax.random.key(1), 2)
        x, y = (jax.random.normal(key, (1, 4)) for key in keys)
        slopes = jax.jit(jax.jacrev(both))
        step = 1e-6 * jnp.eye(4)[:, None]
        near = jax.vmap(lambda h: both(x + h, y) - both(x - h, y))(step).T / 2e-6
        np.testing.assert_allclose(slopes(x, y)[:, 0], near, rtol=1e-7, atol=1e-9)
        # At x = 0 the mean of the one-sided slopes: relu's linear part, y / 4.
        zero = jnp.zeros_like(x)
        np.testing.assert_allclose(slopes(zero, y)[0], y / 4, rtol=1e-15)
        assert (slopes(zero, y)[1] == 0).all()
        # At x = y the covariance is <x, y> / 2 to first order.
        np.testing.assert_allclose(slopes(x, x)[0], x / 2, rtol=1e-6)
        second = jax.jit(jax.jacfwd(jax.jacrev(both)))
        for point in (x, zero):
            assert np.isfinite(slopes(point, point)).all()
            assert np.isfinite(second(point, point)).all()


# Closed-form fully connected kernels.


def inputs(dtype="float64"):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))
    x[2] = 0
    return x.astype(dtype), y.astype(dtype)


def numpy_kernels(x, y, weights, biases):
    """The textbook recursion in double precision, `arccos` and all."""

    def dense(k, weight, bias):
        return weight**2 * k + (bias or 0.0) ** 2

    cross, xx, yy = x @ y.T / x.shape[1], (x**2).mean(1), (y**2).mean(1)
    ntk = 0.0
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if i:
            norms = np.sqrt(xx[:, None] * yy)
            cosine = np.divide(cross, norms, np.zeros_like(norms), where=norms > 0)
            zeroth, first = numpy_kappas(np.clip(cosine, -1, 1))
            cross, ntk, xx, yy = norms * first / 2, ntk * zeroth / 2, xx / 2, yy / 2
        cross, xx, yy = (dense(k, weight, bias) for k in (cross, xx, yy))
        ntk = weight**2 * ntk + cross
    return cross, ntk


def network(depth, W_std=1.0, b_std=None):
    """A ReLU network of `depth` hidden layers; scales are numbers or sequences."""
    weights, biases = (
        each if isinstance(each, list) else [each] * (depth + 1)
        for each in (W_std, b_std)
    )
    first, *rest = (stax.Dense(1, w, b) for w, b in zip(weights, biases, strict=True))
    return stax.serial(first, *(stax.serial(stax.Relu(), dense) for dense in rest))


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_exact_kernel_is_the_recursion(depth):
    x, y = inputs()
    weights = np.linspace(0.5, 1.6, depth + 1).tolist()
    for biases in ([None] * (depth + 1), [None, 0.2, 0.0, 0.3, None, 1.0][: depth + 1]):
        net = network(depth, weights, biases)
        with x64():
            nngp, ntk = kernels.exact_kernel(net, x, y, get=("nngp", "ntk"))
            alone = kernels.exact_kernel(net, x, y, get="ntk")
        exact = numpy_kernels(x, y, weights, biases)
        np.testing.assert_allclose(nngp, exact[0], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(ntk, exact[1], rtol=1e-12, atol=1e-15)
        assert (alone == ntk).all() and ntk.dtype == np.float64


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_ntk_is_the_normalised_one_in_neural_tangents_scaling(depth):
    x, y = inputs()
    s, d = 1.7, x.shape[1]
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    cosine = np.divide(x @ y.T, norms, np.zeros_like(norms), where=norms > 0)
    expected = (
        (s**2 / 2) ** depth * s**2 / d * norms * numpy_recursion(depth, cosine)[1]
    )
    with x64():
        ntk = kernels.exact_kernel(network(depth, s), x, y, get="ntk")
    np.testing.assert_allclose(ntk, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("depth", "W_std", "b_std"), [(0, 0.5, 0.1), (2, 1.0, 0.1), (5, 2**0.5, 0.1)]
)
def test_exact_kernel_is_neural_tangents(depth, W_std, b_std):
    try:
        jnt.load()
    except ImportError as error:
        pytest.skip(str(error))
    net = network(depth, W_std, b_std)
    x, y = inputs()
    with x64():
        kernel_fn = jnt.to_stax(net)[2]
        for x2 in (None, y):
            get = ("nngp", "ntk")
            both = kernels.exact_kernel(net, x, x2, get=get)
            for found, exact in zip(both, kernel_fn(x, x2, get), strict=True):
                exact = np.array(exact)
                if x2 is None:
                    # Neural Tangents' own diagonal carries sqrt(eps).
                    diag = np.diag(exact).copy()
                    np.testing.assert_allclose(np.diag(found), diag, rtol=1e-6)
                    np.fill_diagonal(exact, np.diag(found))
                np.testing.assert_allclose(found, exact, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("b_std", [None, 0.3])
def test_diagonal_is_exact(dtype, b_std):
    x, _ = inputs(dtype)
    net, get = network(5, 1.4, b_std), ("ntk", "nngp")
    with x64(dtype == "float64"):
        whole = kernels.exact_kernel(net, x, get=get)
        diag = diagonal_kernels(net, jnp.asarray(x / np.sqrt(5, dtype=dtype)))
    assert whole._fields == get
    for kind in get:
        norms = getattr(diag, kind)
        assert norms.dtype == dtype and norms.shape == (6,)
        matrix = getattr(whole, kind)
        np.testing.assert_allclose(np.diag(matrix), norms, rtol=16 * EPS[dtype])
    if b_std is None:
        expected = 6 * 0.98**5 * 1.96 / 5 * (x**2).sum(1)
        np.testing.assert_allclose(diag.ntk, expected, rtol=1e-6)


def test_exact_gradients_are_finite_and_right():
    x, y = inputs()
    net = network(2, 1.3)
    with x64():

        def total(x, y):
            return kernels.exact_kernel(net, x, y, get="ntk").sum()

        gradient = jax.jit(jax.grad(total, (0, 1)))
        near = y.copy()
        near[0] = x[1]  # coinciding points; x[2] is zero
        assert all(np.isfinite(slope).all() for slope in gradient(x, near))
        slopes = jax.jacfwd(lambda x: kernels.exact_kernel(net, x, get="ntk"))(x)
        assert np.isfinite(slopes).all()
        x[2] = 1
        slopes = gradient(x, y)
        direction = np.random.default_rng(0).normal(size=x.shape)
        ends = [float(total(x + h * direction, y)) for h in (1e-6, -1e-6)]
        slope = (ends[0] - ends[1]) / 2e-6
        assert float((slopes[0] * direction).sum()) == pytest.approx(slope, rel=1e-7)


def test_exact_transforms_and_dtypes():
    x, y = inputs("float32")
    net = network(2, 1.0, 0.1)

    def f(x, y):
        return kernels.exact_kernel(net, x, y, get=("ntk",))

    eager = f(x, y)
    np.testing.assert_allclose(jax.jit(f)(x, y).ntk, eager.ntk, rtol=1e-6)
    assert jax.tree.structure(f(x, y)) == jax.tree.structure(eager)
    many = jax.vmap(f, (0, None))(np.stack([x, -x]), y)
    np.testing.assert_allclose(many.ntk[0], eager.ntk, rtol=1e-6)
    shape = jax.eval_shape(f, *[jax.ShapeDtypeStruct((10**6, 784), jnp.float32)] * 2)
    assert shape.ntk.shape == (10**6, 10**6) and shape.ntk.dtype == jnp.float32
    half = f(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)).ntk
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), eager.ntk, rtol=0.05, atol=0.02)
    for dtype in (int, bool):
        ntk = f((x > 0).astype(dtype), (y > 0).astype(dtype)).ntk
        exact = f((x > 0).astype(np.float32), (y > 0).astype(np.float32)).ntk
        assert ntk.dtype == jnp.float32 and (ntk == exact).all()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"x": np.ones(3)}, ValueError, r"x must be a matrix .* got shape \(3,\)"),
        ({"z": np.ones((2, 3, 1))}, ValueError, "z must be a matrix"),
        ({"x": np.ones((2, 0))}, ValueError, "with d >= 1"),
        ({"z": np.ones((2, 4))}, ValueError, "the same number of columns"),
        ({"x": np.ones((2, 3)) * 1j}, TypeError, "x must be real"),
        ({"net": stax.Dropout(0.5)}, TypeError, r"net must .* got stax\.Dropout"),
        ({"get": "cov"}, ValueError, 'get must be "ntk", "nngp" or a tuple'),
        ({"get": ()}, ValueError, "get must be"),
        ({"get": ("ntk", "ntk")}, ValueError, "get must be"),
    ],
)
def test_exact_kernel_arguments(arguments, error, match):
    defaults = {"net": network(1), "x": np.ones((2, 3)), "get": "ntk"}
    with pytest.raises(error, match=match):
        kernels.exact_kernel(**defaults | arguments)
