"""Power series of kernels and nonnegative fits to them."""

import math

import numpy as np
import pytest

from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch.kernels.duals.homogeneous import Homogeneous
from jax_ntk_sketch.kernels.polynomial_fit import fit_nonnegative
from jax_ntk_sketch.kernels.power_series import relu_block_series, relu_block_values

# References that share nothing with the code: textbook formulas, complex contours.


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


def contour_coefficients(f, degree):
    """Cauchy's integral over a circle inside the disc of convergence."""
    size, radius = 4096, 0.98
    circle = radius * np.exp(2j * np.pi * np.arange(size) / size)
    return (np.fft.fft(f(circle)) / size).real[: degree + 1] / radius ** np.arange(
        degree + 1
    )


def test_taylor_coefficients_of_the_kappas():
    i = np.arange(30)
    c = np.array([math.comb(2 * k, k) / 4**k for k in i])
    kappa0, kappa1 = np.zeros(61), np.zeros(61)
    kappa0[0], kappa0[2 * i + 1] = 0.5, c / (np.pi * (2 * i + 1))
    kappa1[:2], kappa1[2 * i + 2] = [1 / np.pi, 0.5], c / (2 * i + 1) / (2 * i + 2)
    kappa1[2:] /= np.pi
    np.testing.assert_allclose(kernels.kappa0_coefficients(60), kappa0, rtol=1e-13)
    np.testing.assert_allclose(kernels.kappa1_coefficients(60), kappa1, rtol=1e-13)


@pytest.mark.parametrize(
    ("series", "errors"),
    [
        (
            kernels.kappa1_coefficients,
            {2: 0.0225, 4: 0.0093, 6: 0.0053, 8: 0.0035, 18: 0.0011, 34: 0.00042},
        ),
        (
            kernels.kappa0_coefficients,
            {1: 0.182, 3: 0.129, 5: 0.105, 7: 0.091, 17: 0.060, 33: 0.044},
        ),
    ],
)
def test_published_truncation_errors(series, errors):
    alpha = np.linspace(-1, 1, 2001)
    part = 0 if series is kernels.kappa0_coefficients else 1
    for degree, error in errors.items():
        value = np.polynomial.polynomial.polyval(alpha, series(degree))
        found = np.abs(value - numpy_kappas(alpha)[part]).max()
        digits = 5 if error < 1e-3 else 4 if error < 0.03 else 3
        assert round(found, digits) == error


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 6, 20])
def test_network_series_equal_contour_integrals_and_closed_forms(depth):
    degree = 160
    layers = [stax.Relu(), stax.Dense(1, W_std=2**0.5)] * depth
    nngp = relu_block_series(layers, degree).nngp
    ntk = kernels.ntk_coefficients(depth, degree)
    for part, series in enumerate((nngp, ntk)):
        assert series.shape == (degree + 1,) and series.dtype == np.float64
        assert (series >= 0).all() and not series.flags.writeable
        exact = contour_coefficients(lambda a: numpy_recursion(depth, a)[part], degree)  # noqa: B023
        np.testing.assert_allclose(series, exact, rtol=1e-10, atol=1e-14)
        for alpha in (-0.7, 0.0, 0.3, 0.7):
            value = np.polynomial.polynomial.polyval(alpha, series)
            exact = numpy_recursion(depth, np.float64(alpha))[part]
            assert value == pytest.approx(exact, rel=1e-13)
    if depth:
        # The tails at 1, from below: Sigma_L(1) = 1 and K_L(1) = L + 1.
        for series, one in ((nngp, 1), (ntk, depth + 1)):
            tails = one - np.cumsum(series)[[10, 40, 160]]
            assert tails[0] > tails[1] > tails[2] > 0
            # Coefficients fall like j^(-5/2) and j^(-3/2), tails by a factor 8 and 2.
            rate = 8 if one == 1 else 2
            if depth <= 3:
                assert tails[1] / tails[2] == pytest.approx(rate, rel=0.12)
    # A lower degree is a prefix, degree 0 the constant.
    np.testing.assert_array_equal(kernels.ntk_coefficients(depth, 5), ntk[:6])
    np.testing.assert_array_equal(kernels.ntk_coefficients(depth, 0), ntk[:1])


def test_series_arguments():
    for f in (kernels.kappa0_coefficients, kernels.kappa1_coefficients):
        assert f(0).shape == (1,)
        with pytest.raises(ValueError, match="degree must be an integer >= 0, got -1"):
            f(-1)
    with pytest.raises(TypeError, match=r"depth must be an integer, got 1\.5"):
        kernels.ntk_coefficients(1.5, 3)
    with pytest.raises(ValueError, match="depth must be an integer >= 0, got True"):
        kernels.ntk_coefficients(True, 3)


# Blocks of layers.


def test_relu_block_of_a_standard_network_is_k_l():
    for depth in range(4):
        layers = [stax.Relu(), stax.Dense(1, W_std=2**0.5)] * depth
        block = relu_block_series(layers, 40)
        ntk = block.ntk_additive + np.append(0, block.ntk_multiplicative[:-1])
        np.testing.assert_allclose(ntk, kernels.ntk_coefficients(depth, 40), rtol=1e-13)
        np.testing.assert_allclose(block.at_one, [1, depth, 1], rtol=1e-13)


def test_relu_block_of_any_network():
    # nngp_in = alpha and ntk_in = 3 alpha, as after layers of other kinds.
    net = stax.serial(
        stax.Dense(3, 0.7),
        stax.Relu(),
        stax.Identity(),
        stax.serial(stax.Dense(3, 1.3, b_std=0.0), stax.Dense(5, 2.0)),
        stax.Relu(),
        stax.Relu(),
    )
    alpha = np.array([-0.6, 0.0, 0.2, 0.8])
    nngp, variance, ntk = alpha, np.float64(1), 3 * alpha
    for layer in stax.walk(net):
        if isinstance(layer, stax.Relu):
            zeroth, first = numpy_kappas(nngp / variance)
            nngp, ntk = variance * first / 2, ntk * zeroth / 2
            variance = variance / 2
        elif isinstance(layer, stax.Dense):
            nngp, variance = layer.W_std**2 * nngp, layer.W_std**2 * variance
            ntk = layer.W_std**2 * ntk + nngp
    values = relu_block_values([net], alpha)
    series = relu_block_series([net], 150)
    found = np.polynomial.polynomial.polyval
    np.testing.assert_allclose(values.nngp, nngp, rtol=1e-13)
    for name in ("nngp", "ntk_additive", "ntk_multiplicative"):
        closed = getattr(values, name)
        np.testing.assert_allclose(found(alpha, getattr(series, name)), closed, 1e-12)
    both = values.ntk_additive + 3 * alpha * values.ntk_multiplicative
    np.testing.assert_allclose(both, ntk, rtol=1e-13)
    assert series.at_one.nngp == pytest.approx(variance)


@pytest.mark.parametrize("f", [relu_block_series, relu_block_values])
def test_relu_block_says_what_it_cannot_do(f):
    layers = [stax.Relu(), stax.Dense(2, 1.0, 0.1), stax.Relu()]
    with pytest.raises(ValueError, match=r"layer 1, stax\.Dense\(2, b_std=0\.1\)"):
        f(layers, 0)
    with pytest.raises(ValueError, match='method="ntk_sketch" or "ntk_random_feat'):
        f(layers, 0)

    with pytest.raises(ValueError, match=r"layer 0, .* is not supported; supported ar"):
        f([stax.Layer()], 0)


# Fits.


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 8, 16, 33, 64])
def test_fits_are_nonnegative_and_beat_taylor(degree):
    alpha = np.concatenate([np.linspace(-1, 1, 5001), 1 - np.geomspace(1e-9, 1e-3, 99)])
    cases = [
        (lambda a: numpy_kappas(a)[0], kernels.kappa0_coefficients),
        (lambda a: numpy_kappas(a)[1], kernels.kappa1_coefficients),
    ]
    for depth in (1, 3):
        cases.append(
            (
                lambda a, depth=depth: numpy_recursion(depth, a)[1],
                lambda degree, depth=depth: kernels.ntk_coefficients(depth, degree),
            )
        )
    for function, series in cases:
        if degree == 1 and series is not kernels.kappa0_coefficients:
            continue  # the published figures start where Taylor is usable
        (found, max_error), exact = fit_nonnegative(function, degree), function(alpha)
        assert np.isfinite(found).all() and min(found) >= 0
        assert len(found) == degree + 1
        error = np.abs(np.polynomial.Polynomial(found)(alpha) - exact).max()
        assert max_error == pytest.approx(error, rel=1e-3)
        taylor = np.polynomial.polynomial.polyval(alpha, series(degree))
        assert error < 0.9 * np.abs(taylor - exact).max()
        again, _ = fit_nonnegative(function, degree)
        np.testing.assert_array_equal(found, again)


def test_fit_recovers_polynomials_and_keeps_small_coefficients():
    c = np.array([0.2, 0.0, 1e-7, 3.0])
    fit, error = fit_nonnegative(np.polynomial.Polynomial(c), 3)
    np.testing.assert_allclose(fit, c, rtol=1e-6, atol=1e-14)
    assert fit[2] > 0 and error < 1e-13
    # What cannot be represented is reported, not hidden: -a has no such fit.
    fit, error = fit_nonnegative(lambda a: -a, 3)
    assert fit[1] == fit[3] == 0 and error > 0.5


def test_fit_on_a_part_of_the_range():
    def ntk(alpha):
        return numpy_recursion(1, alpha)[1]

    whole, _ = fit_nonnegative(ntk, 4)
    part, max_error = fit_nonnegative(ntk, 4, min_cosine=0.0)
    alpha = np.linspace(0, 1, 1001)
    errors = [
        np.abs(np.polynomial.Polynomial(fit)(alpha) - ntk(alpha)).max()
        for fit in (part, whole)
    ]
    assert max_error == pytest.approx(errors[0], rel=1e-6) and max_error < errors[1]


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_fit_of_what_is_not_finite():
    with pytest.raises(ValueError, match="target must be finite"):
        fit_nonnegative(lambda a: 1 / (a - a), 4)


@pytest.mark.parametrize("power", range(4))
def test_coefficients_of_rectified_powers(power):
    """E max(z, 0)^k h_l(z), against quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    z, weights = 10 * (nodes + 1), 10 * weights
    weights = weights * z**power * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    found = Homogeneous(power, 1.0, 0.0).unit_coefficients(12)
    for degree, coefficient in enumerate(found):
        hermite = np.polynomial.hermite_e.HermiteE.basis(degree)(z)
        wanted = weights @ hermite / math.sqrt(math.factorial(degree))
        assert coefficient == pytest.approx(wanted, abs=1e-12)
