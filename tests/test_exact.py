"""The "exact" method against Neural Tangents and closed forms.

The exact method factors the batch's own kernel with the same rules that the random
methods use, so what it tests is the algebra of every layer, without random error.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import theirs, x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.features.methods.exact import factor
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.kernels.exact import diagonal_kernels

SCALES = list(itertools.product((0.5, 1.0, 2**0.5), (None, 0.1)))
TOLERANCE = {np.dtype("float32"): 1e-4, np.dtype("float64"): 1e-9}


def network(depth, W_std, b_std):
    dense = stax.Dense(1, W_std, b_std)
    return stax.serial(*[dense, stax.Relu()] * depth, dense)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def inputs(dtype):
    x = np.random.default_rng(0).standard_normal((11, 7))
    return jnp.asarray(x, dtype)


@pytest.mark.long_cases("0-", "2-", "4-", "5-")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("depth", range(6))
def test_equals_neural_tangents(depth, dtype):
    """Depths 0 to 5, all scales, NNGP and NTK, with and without biases."""
    with x64(dtype == "float64"):
        x = inputs(dtype)
        x1, x2 = x[:6], x[6:]
        for W_std, b_std in SCALES:
            net = network(depth, W_std, b_std)
            fmap = jns.feature_map(
                net, num_features=1, get=("nngp", "ntk"), method="exact"
            )
            phi = fmap.apply(fmap.init(jax.random.key(0), x), x)
            exact = theirs(net, x1, x2, ("nngp", "ntk"))
            for kind in ("nngp", "ntk"):
                z = np.asarray(getattr(phi, kind))
                assert z.dtype == np.dtype(dtype)
                tolerance = TOLERANCE[z.dtype]
                cross = np.asarray(getattr(exact, kind))
                assert relative(z[:6] @ z[6:].T, cross) < tolerance
                # Neural Tangents' own NTK diagonal is off by the square root of the
                # rounding error (kappa0 is infinitely steep at cosine 1), so the
                # diagonal is compared with the closed form.
                diagonal = diagonal_kernels(net, x / x.shape[1] ** 0.5)
                wanted = getattr(diagonal, kind)
                assert relative(np.sum(z * z, axis=1), wanted) < tolerance


def test_equals_neural_tangents_on_whole_batches():
    """Diagonal included, at the rounding error of Neural Tangents' diagonal."""
    with x64():
        x = inputs("float64")
        net = network(3, 2**0.5, 0.1)
        fmap = jns.feature_map(net, num_features=1, method="exact")
        z = np.asarray(fmap.apply(fmap.init(jax.random.key(0), x), x))
        exact = np.asarray(jnt.to_stax(net)[2](x, None, "ntk"))
        assert relative(z @ z.T, exact) < 1e-7


@pytest.mark.parametrize(
    "net",
    [
        stax.serial(stax.Identity(), stax.Dense(3, 1.5)),
        stax.serial(stax.Dense(3, 1.5, 0.2), stax.Dense(2, 0.7, 0.3), stax.Relu()),
        stax.serial(
            stax.serial(stax.Dense(3, 1.5), stax.Relu()),
            stax.Identity(),
            stax.serial(stax.Dense(4, 0.9, 0.5), stax.Dense(4, 1.1)),
        ),
    ],
    ids=["linear", "ends in Relu", "nested"],
)
def test_other_shapes_of_networks(net):
    with x64():
        x = inputs("float64")
        fmap = jns.feature_map(net, num_features=1, get=("nngp", "ntk"), method="exact")
        phi = fmap.apply(fmap.init(jax.random.key(0), x), x)
        exact = theirs(net, x[:6], x[6:], ("nngp", "ntk"))
        for kind in ("nngp", "ntk"):
            z = np.asarray(getattr(phi, kind))
            assert relative(z[:6] @ z[6:].T, np.asarray(getattr(exact, kind))) < 1e-9


@pytest.mark.parametrize("method", ["one_pass", "ntk_random_features", "ntk_sketch"])
@pytest.mark.parametrize("b_std", [None, 0.3])
def test_linear_networks_are_exact_for_every_method(method, b_std):
    with x64():
        x = inputs("float64")
        net = stax.serial(stax.Dense(3, 1.5, b_std), stax.Dense(1, 0.8, b_std))
        fmap = jns.feature_map(net, num_features=40, get=("nngp", "ntk"), method=method)
        phi = fmap.apply(fmap.init(jax.random.key(0), x), x)
        exact = jnt.to_stax(net)[2](x, None, ("nngp", "ntk"))
        for kind in ("nngp", "ntk"):
            z = np.asarray(getattr(phi, kind))
            assert z.shape == (11, 40)
            assert relative(z @ z.T, np.asarray(getattr(exact, kind))) < 1e-12


def test_factor_of_singular_kernels():
    with x64():
        rows = np.random.default_rng(1).standard_normal((9, 4))
        rows[5], rows[7] = rows[2], 0.0
        k = jnp.asarray(rows @ rows.T)
        f = np.asarray(factor(k))
        np.testing.assert_allclose(f @ f.T, k, atol=1e-14 * np.abs(k).max() * 9)
        assert not f[7].any()
        assert not f[:, 4:].any()  # rank 4

        def trace(k):
            return jnp.sum(factor(k) ** 2)

        gradient = jax.grad(trace)(k)
        assert np.isfinite(gradient).all()


def test_gradients_at_zero_and_at_equal_rows():
    net = network(2, 2**0.5, None)
    fmap = jns.feature_map(net, num_features=1, method="exact")
    x = jnp.asarray(np.random.default_rng(2).standard_normal((4, 3)), jnp.float32)
    x = x.at[1].set(x[0]).at[3].set(0.0)
    params = fmap.init(jax.random.key(0), x)
    phi = fmap.apply(params, x)
    assert not np.asarray(phi)[3].any()
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(fmap.apply(params, x))))(x)
    assert np.isfinite(gradient).all()


def test_batches_are_refused():
    fmap = jns.feature_map(network(1, 1.0, None), num_features=1, method="exact")
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match="batch_size must be None with Exact"):
        fmap.apply(fmap.init(jax.random.key(0), x), x, batch_size=2)
