"""Random features of graphs, and the transformations of JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import x64
from test_graphs import (
    BONDS,
    BOTH,
    KEY,
    NETS,
    SMALL,
    WEIGHTS,
    N,
    X,
    check,
    exact,
    relative,
)

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.graphs import pad


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


@functools.lru_cache
def kernels_of(kind):
    graphs = pad(SMALL, BONDS)
    z = exact(jns.recipes.gntk(2), graphs.x, pattern=graphs.pattern)[kind]
    return z @ z.T


@pytest.mark.long
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "method, slack",
    [("ntk_random_features", 0.02), ("ntk_sketch", 0.06), ("variance_reduced", 0.02)],
)
def test_random_methods_converge(method, slack, kind):
    """The error falls like the root of the columns, to a method's own bias."""
    graphs = pad(SMALL, BONDS)
    errors = []
    for num in (128, 2048):
        fmap = jns.feature_map(
            jns.recipes.gntk(2), num_features=num, get=kind, method=method
        )

        def gram(key, fmap=fmap):
            params = fmap.init(key, graphs.x.shape[1:])
            z = fmap.apply(params, graphs.x, pattern=graphs.pattern)
            assert z.shape == (4, num)  # noqa: B023
            return z @ z.T

        k = np.stack([registry.jit_once(gram)(key) for key in jax.random.split(KEY, 6)])
        k = k.astype(np.float64)
        wanted = kernels_of(kind)
        errors.append(np.sqrt(np.mean([relative(one, wanted) ** 2 for one in k])))
    # A sixteenth of the variance: 1/4, and 1/2 with room for chance.
    assert errors[1] < 0.5 * errors[0] + slack
    assert errors[1] < 0.12


@pytest.mark.long
def test_nystrom_learns_from_graphs():
    graphs = pad(SMALL * 4, BONDS * 4)
    fmap = jns.feature_map(jns.recipes.gntk(2), num_features=64, method="nystrom")
    with x64():
        params = fmap.init(KEY, graphs.x, sample=graphs.x, pattern=graphs.pattern)
        z = np.asarray(fmap.apply(params, graphs.x[:4], pattern=graphs.pattern[:4]))
    assert relative(z @ z.T, kernels_of("ntk")) < 0.05
    with pytest.raises(ValueError, match="init: pattern must be given"):
        fmap.init(KEY, graphs.x, sample=graphs.x)


@pytest.mark.long
def test_transformations_of_jax():
    graphs = pad(SMALL, BONDS)
    fmap = jns.feature_map(
        jns.recipes.gntk(1), num_features=20, get=BOTH, method="ntk_random_features"
    )
    params = fmap.init(KEY, graphs.x.shape[1:])
    phi = registry.jit_once(fmap.apply)(params, graphs.x, pattern=graphs.pattern)

    def ntk(x, pattern, mask):
        return fmap.apply(params, x, pattern=pattern, mask=mask).ntk

    np.testing.assert_allclose(ntk(*graphs), phi.ntk, atol=1e-4)
    one = registry.jit_once(jax.vmap(lambda *g: ntk(*(z[None] for z in g))[0]))
    np.testing.assert_allclose(one(*graphs), phi.ntk, atol=1e-4)
    run = registry.jit_once(functools.partial(fmap.apply, batch_size=3))
    batched = run(params, graphs.x, pattern=graphs.pattern)
    np.testing.assert_allclose(batched.ntk, phi.ntk, atol=1e-4)
    hosted = jns.transform(
        fmap, params, graphs.x, pattern=graphs.pattern, mask=graphs.mask, batch_size=3
    )
    np.testing.assert_allclose(hosted.nngp, phi.nngp, atol=1e-4)
    weights = np.ones(graphs.pattern.shape[:2], np.float32)

    def loss(x, w):
        return jnp.sum(ntk(x, (graphs.pattern, w), graphs.mask) ** 2)

    for gradient in registry.jit_once(jax.grad(loss, (0, 1)))(graphs.x, weights):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    plan = fmap.plan(graphs.x)
    assert "per edge" in str(plan) and plan.num_features == 40


@pytest.mark.long
def test_signed_weights():
    """Negative ones need to be said; the features then still have the right kernel."""
    pattern = WEIGHTS - 0.2
    nets = {
        signed: stax.serial(*NETS["gntk"](stax.Aggregate(signed=signed)))
        for signed in (False, True)
    }
    fmap = jns.feature_map(nets[False], num_features=64, method="ntk_random_features")
    params = fmap.init(KEY, X.shape[1:])
    with pytest.raises(ValueError, match=r"negative weights.*signed=True"):
        fmap.apply(params, X, pattern=pattern)
    some = np.where(np.arange(N)[:, None, None] == 2, pattern, WEIGHTS)
    z = registry.jit_once(lambda p: fmap.apply(params, X, pattern=p))(some)
    assert (np.isnan(z).any(1) == (np.arange(N) == 2)).all()
    check(nets[True], X, pattern)
    wanted = exact(nets[True], X, pattern=pattern)["ntk"]
    wanted = wanted @ wanted.T
    for method in ("variance_reduced", "ntk_sketch"):
        fmap = jns.feature_map(nets[True], num_features=2048, method=method)

        def gram(key, fmap=fmap):
            z = fmap.apply(fmap.init(key, X.shape[1:]), X, pattern=pattern)
            return z @ z.T

        mean = np.mean(
            [registry.jit_once(gram)(k) for k in jax.random.split(KEY, 4)], axis=0
        )
        assert relative(mean, wanted) < 0.1
