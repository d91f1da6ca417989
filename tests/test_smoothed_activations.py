"""Activations behind Dropout: functions smoothed by its noise, and their series."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import x64

from jax_ntk_sketch import kernels, stax
from jax_ntk_sketch.features.methods.variance_reduced.expansion import (
    expansion_weights,
)
from jax_ntk_sketch.kernels.duals.base import hermite_nodes

RELU = stax.Relu()

SMOOTHED = [
    RELU,
    stax.ABRelu(0.3, -1.2),
    stax.Sign(),
    stax.RectifiedMonomial(3),
    stax.Gelu(),
    stax.ExpNormalized(),
    stax.Hermite(3),
    stax.Polynomial((0.5, -1.0, 0.3)),
    stax.Elementwise(jnp.tanh),
]


@pytest.mark.long
@pytest.mark.parametrize("layer", SMOOTHED, ids=repr)
def test_smoothed_functions_have_the_kernel(layer):
    """E g1(z1) g2(z2) = k, the variances holding noise beside z1 and z2."""
    kept, s = np.array([0.4, 0.6]), np.array([0.9, 1.3])
    nodes, weights = hermite_nodes(100, 0)
    weights = weights[:, 0]
    with x64():
        dual = kernels.dual(layer)
        functions = (dual.smoothed_value, dual.smoothed_slope)
        for cosine in (-0.9, 0.3, 1.0):
            other = cosine * nodes[:, None] + (1 - cosine**2) ** 0.5 * nodes
            cov = cosine * np.prod(s * kept**0.5)
            wanted = dual.covariances(*map(jnp.asarray, (cov, *s**2)))
            for g, k in zip(functions, wanted, strict=True):
                one, two = (
                    g(jnp.asarray(z), jnp.asarray(s[i]), jnp.asarray(kept[i]))
                    for i, z in enumerate((nodes, other.reshape(-1)))
                )
                total = (weights * one) @ np.reshape(two, other.shape) @ weights
                np.testing.assert_allclose(total, k, rtol=1e-6, atol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("layer", SMOOTHED, ids=repr)
def test_smoothed_functions_without_noise(layer):
    """The functions themselves; gradients are finite there, and without a rest."""
    dual = kernels.dual(layer)
    z = jnp.array([-2.0, -0.3, 0.4, 1.1])
    s = jnp.full((), 1.2)
    pairs = {"value": dual.smoothed_value, "slope": dual.smoothed_slope}
    for name, smoothed in pairs.items():
        np.testing.assert_allclose(
            smoothed(z, s, jnp.ones(())),
            getattr(dual, name)(z, s),
            rtol=1e-5,
            atol=1e-6,
        )

        def total(z, s, kept, smoothed=smoothed):
            return smoothed(z, s, kept).sum()

        for kept, scale in ((1.0, 1.2), (0.0, 1.2), (1.0, 0.0), (0.5, 0.0)):
            inputs = (z.at[0].set(0), jnp.full((), scale), jnp.full((), kept))
            slopes = jax.grad(total, (0, 1, 2))(*inputs)
            assert all(np.isfinite(slope).all() for slope in slopes)


def test_series_of_the_cosines_behind_dropout():
    """Around equal a, with degrees above six that hardly count."""
    a2, ratio, c = np.array([0.0, 0.3, 0.6]), np.array([0.4, 0.5, 0.3]), 0.8
    q, rho = np.array([1.0, 0.7, 1.3]), np.sqrt(1 - a2)
    dim = 50
    cov = q * (a2 + rho**2 * ratio * c)
    p = np.asarray(kernels.gegenbauer.gegenbauer_values(np.array(c), 6, dim))
    for layer in (RELU, stax.Abs(), stax.Erf()):
        dual = kernels.dual(layer)
        wanted = dual.covariances(*map(jnp.asarray, (cov, q, q)))
        for order in (0, 1):
            inputs = (jnp.asarray(z, jnp.float32) for z in (q, a2, rho))
            t2 = jnp.asarray(ratio)
            g = expansion_weights(
                dual, *inputs, dim, of_slope=not order, signed=False, t2=t2
            )
            total = np.square(np.stack(g, -1)) @ p
            np.testing.assert_allclose(total, wanted[1 - order], rtol=3e-3)
