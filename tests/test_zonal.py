"""Gegenbauer polynomials and zonal features: algebra exactly, noise by its formula."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from contract import assert_mean

from jax_ntk_sketch import kernels
from jax_ntk_sketch.kernels import zonal_fit
from jax_ntk_sketch.kernels.gegenbauer import (
    gegenbauer_coefficients,
    gegenbauer_quadrature,
    gegenbauer_recurrence,
    gegenbauer_values,
    orthonormal_values,
)
from jax_ntk_sketch.kernels.zonal_fit import (
    ZonalFit,
    zonal_fit_low_degree,
    zonal_fit_min_error,
)
from jax_ntk_sketch.random_features import ZonalFeatures
from jax_ntk_sketch.random_features.zonal import gegenbauer_series_sum, sphere_dim

DIMS = (2, 3, 8, 784)
ALPHA = np.linspace(-1, 1, 21)


@pytest.mark.parametrize("dim", DIMS)
def test_polynomials_are_gegenbauers(dim):
    ours = gegenbauer_values(ALPHA, 7, dim)
    for degree in range(8):
        if dim == 2:
            wanted = np.cos(degree * np.arccos(ALPHA))
        else:
            order = (dim - 2) / 2
            at_one = scipy.special.eval_gegenbauer(degree, order, 1.0)
            wanted = scipy.special.eval_gegenbauer(degree, order, ALPHA) / at_one
        np.testing.assert_allclose(ours[:, degree], wanted, atol=1e-10)


@pytest.mark.parametrize("dim", DIMS)
def test_orthonormal_ones_are_multiples_and_orthonormal(dim):
    nodes, weights = gegenbauer_quadrature(12, dim)
    h = orthonormal_values(nodes, 10, dim)
    np.testing.assert_allclose(h.T @ (weights[:, None] * h), np.eye(11), atol=1e-9)
    # h_l(t) = h_l(1) P_l(t).
    p = gegenbauer_values(nodes, 10, dim)
    ends = orthonormal_values(np.array(1.0), 10, dim)
    np.testing.assert_allclose(h, ends * p, rtol=1e-7, atol=1e-7 * np.abs(h).max())


@pytest.mark.parametrize("dim", DIMS)
def test_coefficients_are_those_of_the_same_polynomial(dim):
    c = np.random.default_rng(0).random(9)
    b = gegenbauer_coefficients(c, dim)
    ours = gegenbauer_values(ALPHA, 8, dim) @ b
    np.testing.assert_allclose(
        ours, np.polynomial.polynomial.polyval(ALPHA, c), rtol=1e-12
    )
    assert (b >= 0).all()


def test_clenshaw_is_the_sum():
    f = np.random.default_rng(0).normal(size=8)
    t = np.linspace(-0.4, 0.4, 9)
    ours = gegenbauer_series_sum(jnp.asarray(t), tuple(f), 20)
    np.testing.assert_allclose(ours, orthonormal_values(t, 7, 20) @ f, rtol=2e-5)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="dim must be an integer >= 2"):
        gegenbauer_recurrence(3, 1)
    with pytest.raises(ValueError, match="weights must not be empty"):
        ZonalFeatures(3, 4, ())
    with pytest.raises((TypeError, ValueError), match="num_features"):
        ZonalFeatures(3, 0, (1.0,))


@functools.lru_cache
def sampled(dim, num, weights, seeds=4000):
    """Gram matrices of features of four unit vectors of several cosines."""
    rng = np.random.default_rng(1)
    u = rng.normal(size=(2, dim))
    q = np.linalg.qr(u.T)[0].T
    angles = np.arccos(np.array([1.0, 0.8, 0.3, -0.4]))
    x = np.cos(angles)[:, None] * q[0] + np.sin(angles)[:, None] * q[1]
    f = ZonalFeatures(dim, num, weights)

    def gram(key):
        z = f.apply(f.init(key), jnp.asarray(x, jnp.float32))
        return jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)

    keys = jax.random.split(jax.random.key(2), seeds)
    return np.asarray(jax.jit(lambda k: jax.lax.map(gram, k, batch_size=500))(keys)), x


WEIGHTS = {
    "even": (0.0, 0.0, -0.8, 0.0, 0.5, 0.0, -0.2),
    "mixed": (0.3, 0.7, -0.5, -0.3, 0.2),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("dim", "num"), [(2, 5), (5, 7), (16, 40), (100, 150)])
def test_features_are_unbiased(dim, num, name):
    grams, x = sampled(dim, num, WEIGHTS[name])
    f = np.array(WEIGHTS[name])
    wanted = gegenbauer_values(x @ x.T, len(f) - 1, sphere_dim(dim)) @ f**2
    # Three rounds of Hadamard transforms are nearly a rotation.
    assert_mean(grams, wanted, slack=0.003 if dim > 64 else 0.0)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("dim", "num"), [(5, 7), (16, 16), (16, 40), (100, 150)])
def test_variance_is_that_of_the_formula(dim, num, name):
    """Within 10 % for rotations of enough dimensions."""
    grams, x = sampled(dim, num, WEIGHTS[name])
    fit = ZonalFit(dim, sphere_dim(dim), 0.0, 0.0, dim, WEIGHTS[name], num)
    wanted = fit.variance(x @ x.T)
    measured = grams.var(axis=0, ddof=1)
    total = wanted.sum()
    if dim == 16:
        assert abs(measured.sum() / total - 1) < 0.1, measured.sum() / total
    else:
        # In few dimensions, and for rows of Hadamard transforms, more than quadratic
        # polynomials depend on each other: there is less noise than the formula has.
        assert 0.5 < measured.sum() / total < 1.1, measured.sum() / total


def test_a_full_rotation_has_no_noise_in_quadratic_polynomials():
    grams, _ = sampled(16, 32, (0.0, 0.0, 1.0), 200)
    one = ZonalFit(16, 16, 0.0, 0.0, 16, (0.0, 0.0, 1.0), 32)
    loose = ZonalFit(16, 16, 0.0, 0.0, 16, (0.0, 0.0, 1.0), 33)
    # h_2(u) h_2(v) is of degree 4: noise remains, but none of the diagonal's part.
    assert one.variance(np.array(1.0)) < loose.variance(np.array(1.0)) * 33 / 32
    sums = grams[:, 0, 0]
    assert sums.std() < 1.2 * math.sqrt(one.variance(np.array(1.0)))


def test_gradient_of_the_variance():
    alpha = np.linspace(-0.3, 0.9, 7)
    weight = np.linspace(1, 2, 7)
    model = zonal_fit._ZonalVariance(alpha, 6, 50, 70)
    f = np.random.default_rng(3).normal(size=7) * 0.5
    error = scipy.optimize.check_grad(
        lambda z: float(weight @ model(z, weight)[0]),
        lambda z: model(z, weight)[1],
        f,
    )
    assert error < 1e-6 * np.linalg.norm(model(f, weight)[1]) + 1e-9


def ntk(depth):
    def function(alpha):
        alpha = np.asarray(alpha, float)
        s, k = alpha, alpha
        for _ in range(depth):
            slope = (np.pi - np.arccos(np.clip(s, -1, 1))) / np.pi
            s = (np.sqrt(np.maximum(1 - s * s, 0)) / np.pi) + s * slope
            k = k * slope + s
        return k

    return function


@pytest.mark.parametrize("columns", [40, 200, 1000])
@pytest.mark.parametrize("depth", [1, 3])
def test_fit_beats_the_series_it_begins_with(depth, columns):
    """In its own objective: squared bias and variance, averaged over cosines."""
    c = np.array(kernels.ntk_coefficients(depth, 40))
    fit = zonal_fit_min_error(ntk(depth), c, 30, 30, columns)
    used = 1 + fit.linear_columns + fit.zonal_columns
    assert used == columns
    alpha = np.linspace(-1, 0.9, 96)

    def cost(z):
        bias = z.values(alpha) - ntk(depth)(alpha)
        return float((bias**2 + z.variance(alpha)).mean())

    series = zonal_fit._from_series(c[:13], 30, 30, fit.linear_columns, columns)
    assert cost(fit) < cost(series)
    assert cost(fit) < cost(zonal_fit_low_degree(c, 30, 30, columns))


def test_truncation_keeps_the_degrees_that_columns_can_tell_apart():
    c = np.array(kernels.ntk_coefficients(2, 40))
    degrees = []
    for dim, columns in [(784, 1024), (784, 8192), (64, 512), (64, 2048), (8, 2048)]:
        fit = zonal_fit_low_degree(c, dim, dim, columns)
        assert 1 + fit.linear_columns + fit.zonal_columns == columns
        degrees.append(len(fit.weights) - 1)
        # Unbiased for the series up to there.
        np.testing.assert_allclose(
            fit.values(ALPHA),
            np.polynomial.polynomial.polyval(ALPHA, c[: degrees[-1] + 1]),
            rtol=1e-9,
            atol=1e-9,
        )
    assert degrees == [2, 2, 2, 4, 8]
