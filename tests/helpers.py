"""What several test files share."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import registry

import jax_ntk_sketch as jns
from jax_ntk_sketch.interop import neural_tangents as jnt


@contextlib.contextmanager
def x64(enabled: bool = True):
    """Double precision inside the block, on every JAX that we support."""
    old = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", enabled)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", old)


def draw(fmap, shape, seed=0):
    """The parameters of a feature map, from one compiled program."""
    return registry.jit_once(lambda key: fmap.init(key, shape))(jax.random.key(seed))


def theirs(net, x1, x2, get, **extras):
    """The kernels of Neural Tangents, as one compiled program."""
    kernel_fn = jnt.to_stax(net)[2]
    run = registry.jit_once(lambda x1, x2, extras: kernel_fn(x1, x2, get, **extras))
    return run(x1, x2, extras)


def kernels_in_float64(net, x1, x2, **extras):
    """Both kernels of Neural Tangents, {kind: (n1, n2)}."""
    kinds = ("nngp", "ntk")
    with x64():
        x1, x2 = (jnp.asarray(x, float) for x in (x1, x2))
        out = theirs(net, x1, x2, kinds, **extras)
        return {kind: np.asarray(getattr(out, kind)) for kind in kinds}


def check_exact(net, x, dtype="float64"):
    """Exact features have Neural Tangents' kernels, also of examples and themselves."""
    kinds = ("nngp", "ntk")
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    # Neural Tangents rounds cosines of 1, where kappa0 is infinitely steep.
    steep = np.where(np.eye(len(x)), 1e3 if dtype == "float64" else 10, 1)
    with x64(dtype == "float64"):
        x = jnp.asarray(x, dtype)
        fmap = jns.feature_map(net, num_features=1, get=kinds, method="exact")
        phi = registry.jit_once(fmap.apply)(fmap.init(jax.random.key(0), x), x)
        wanted = theirs(net, x, None, kinds)
        for kind in kinds:
            z, k = np.asarray(getattr(phi, kind)), np.asarray(getattr(wanted, kind))
            error = (np.abs(z @ z.T - k) / steep).max()
            assert error <= tolerance * np.abs(k).max(), (kind, error)
