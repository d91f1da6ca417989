"""Feature maps: the contract, and what holds for all of them exactly.

Bad input is in `test_feature_map_input.py`, sizes and costs in `test_plan.py`.
"""

import functools

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import x64
from jax.sharding import Mesh, PartitionSpec

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax
from jax_ntk_sketch.interop import neural_tangents as jnt


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


@pytest.mark.quick_cases(
    "rf-shallow-mom",
    "sketch-shallow-mom",
    "pass-shallow-mom",
    "one_pass-headless-noth",
    "linear-compiled",
    "linear-exp",
)
@pytest.mark.long_cases("deep-biased-vmap", "biased-legacy", *contract.SLOW_CHECKS)
@pytest.mark.parametrize("rule", contract.CHECKS)
@pytest.mark.parametrize("case", registry.FEATURE_MAPS, ids=str)
def test_contract(rule, case):
    getattr(contract, rule)(case)


SEVERAL = [
    case
    for case in registry.FEATURE_MAPS
    if case.name in ("rf-deep", "sketch-deep", "one_pass-deep")
]
X = contract.X


def test_powers_that_both_kernels_share():
    """NNGP features take the first columns of a power, and are scaled by their share.

    Only activations that are neither even nor odd, up to a linear part, share powers.
    """
    net = stax.serial(stax.Dense(1, 1.1), stax.ExpNormalized(1.0), stax.Dense(1))
    sketch = methods.NTKSketch(degree=4, derivative_degree=4)
    fmap = jns.feature_map(net, num_features=60, get=registry.BOTH, method=sketch)

    def gram_matrices(key):
        phi = fmap.apply(fmap.init(key, (registry.DIM,)), X)
        return phi.nngp @ phi.nngp.T, phi.ntk @ phi.ntk.T

    grams = jax.jit(jax.vmap(gram_matrices))(contract.KEYS)
    exact = jnt.to_stax(net)[2](X, None, registry.BOTH)
    for gram, kernel in zip(grams, exact, strict=True):
        contract.assert_mean(gram, kernel, slack=0.01)


@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_features_of_networks_without_biases_are_homogeneous(case):
    """Of degree 1, exactly for powers of two, over ten orders of magnitude."""
    params, run = contract.prepared(case)
    for scale in (2.0**-16, 2.0**16):
        np.testing.assert_allclose(
            run(params, scale * X), scale * np.asarray(run(params, X)), rtol=1e-4
        )


@pytest.mark.long_cases("sketch-deep", "one_pass-deep")
@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_features_belong_to_their_example(case):
    """Not to the batch: rows one by one, in another order, and none at all."""
    params, run = contract.prepared(case)
    phi = run(params, X)
    contract.assert_close(run(params, X[::-1]), phi[::-1])
    contract.assert_close(case.record.apply(params, X[2:3]), phi[2:3])
    assert case.record.apply(params, X[:0]).shape == (0, phi.shape[1])


@pytest.mark.long_cases("sketch-deep", "one_pass-deep")
@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_sharded_over_examples_equals_unsharded(case):
    """On a mesh of whatever devices there are."""
    params, run = contract.prepared(case)
    devices = jax.devices()
    x = np.concatenate([X] * len(devices))
    rows = PartitionSpec("rows")
    sharded = jax.shard_map(
        case.record.apply,
        mesh=Mesh(np.array(devices), ("rows",)),
        in_specs=(PartitionSpec(), rows),
        out_specs=rows,
    )
    contract.assert_close(registry.jit_once(sharded)(params, x), run(params, x))


@pytest.mark.long_cases("sketch-deep")
@pytest.mark.filterwarnings("ignore:NetworkFeatureMap.apply. gradients")
@pytest.mark.parametrize("case", SEVERAL[1:], ids=str)
def test_gradients_are_derivatives(case):
    """In double precision, along a random direction, by central differences."""
    params, _ = contract.prepared(case)
    rng = np.random.default_rng(3)
    x, v, w = rng.normal(size=(3, 4, registry.DIM))
    w = w @ w.T

    def loss(x):
        phi = case.record.apply(params, x)
        return jnp.sum(w * (phi @ phi.T))

    with x64():
        step = 1e-5
        slope = np.sum(np.asarray(registry.jit_once(jax.grad(loss))(x)) * v)
        loss = registry.jit_once(loss)
        difference = (loss(x + step * v) - loss(x - step * v)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


@pytest.mark.parametrize(
    "record",
    [
        registry.FEATURE_MAPS[2].record,
        jns.feature_map(
            stax.serial(stax.Dense(1), stax.Erf(), stax.Dense(1)),
            num_features=36,
            method="ntk_random_features",
        ),
    ],
    ids=["relu", "directions of random lengths"],
)
def test_the_same_in_double_precision_mode(record):
    """The same key gives the same parameters whether or not x64 is enabled."""
    single = record.init(contract.KEY, (registry.DIM,))
    with x64():
        double = record.init(contract.KEY, (registry.DIM,))
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
        assert a.dtype == b.dtype
        contract.assert_close(a, b)


@pytest.mark.long_cases("ntk_sketch")
@pytest.mark.parametrize("method", ["one_pass", "ntk_sketch", "ntk_random_features"])
def test_weights_and_biases_of_size_zero(method):
    """W_std = 0 ends every dependence on x; b_std = 0 is no bias."""
    dense = functools.partial(stax.Dense, 1)
    dead = stax.serial(dense(1.2), stax.Relu(), dense(0.0, 0.5))
    fmap = jns.feature_map(dead, num_features=40, get=registry.BOTH, method=method)
    phi = fmap.apply(fmap.init(contract.KEY, X), X)
    for z in phi:
        contract.assert_close(z @ z.T, np.full((5, 5), 0.25))
    pairs = [
        jns.feature_map(
            stax.serial(dense(1.2, b), stax.Relu(), dense(1.1, b)),
            num_features=40,
            method=method,
        )
        for b in (None, 0.0)
    ]
    first, second = (f.apply(f.init(contract.KEY, X), X) for f in pairs)
    np.testing.assert_array_equal(first, second)


def test_get_is_one_name_or_both():
    net = registry.SHALLOW
    for get in (("ntk",), ["nngp"], None, 3, {"ntk", "nngp"}):
        with pytest.raises(ValueError, match="feature_map: get must"):
            jns.feature_map(net, num_features=40, get=get)
    fmap = jns.feature_map(net, num_features=40, get=["ntk", "nngp"])
    assert hash(fmap) == hash(
        jns.feature_map(net, num_features=40, get=("ntk", "nngp"))
    )


def test_kernels_come_in_the_order_asked_for():
    """As in Neural Tangents; positions and names agree, for maps of maps too."""
    nngp = jns.feature_map(registry.SHALLOW, num_features=40, get="nngp")
    expected = nngp.apply(nngp.init(contract.KEY, X), X)
    mesh = jns.sharding.data_mesh()
    for get in (registry.BOTH, registry.BOTH[::-1]):
        base = jns.feature_map(registry.SHALLOW, num_features=40, get=get)
        maps = [
            (base, base.init(contract.KEY, X)),
            jns.compress(base, base.init(contract.KEY, X), X, num_features=5),
        ]
        sparse = jns.with_sparse_inputs(base, sketch_dim=16)
        maps.append((sparse, sparse.init(contract.KEY, X)))
        for fmap, params in maps:
            phi = fmap.apply(params, X)
            transformed = jns.transform(fmap, params, X)
            for both in (
                phi, transformed, jns.sharding.apply(fmap, params, X, mesh=mesh),
            ):  # fmt: skip
                assert isinstance(both, jns.KernelFeatures) and both._fields == get
                assert both[get.index("nngp")] is both.nngp
                contract.assert_close(both.ntk, phi.ntk)
            if fmap is base:
                contract.assert_close(phi.nngp, expected)


def test_sketch_parameters_are_small():
    """Signs are bytes and indices four: nothing is stored as a matrix."""
    dim, m = 784, 4096
    net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    for method in (methods.OnePass(), methods.NTKSketch(), methods.NTKRandomFeatures()):
        plan = jns.feature_map(net, num_features=m, method=method).plan((dim,))
        assert plan.param_bytes < 0.05 * 4 * dim * m


@pytest.mark.long
def test_compiled_features_are_the_same():
    """XLA of JAX 0.7 and 0.8 compiled columns behind an appended bias wrongly."""
    biased = stax.Dense(1, 1.2, 0.3)
    net = stax.serial(biased, stax.Gelu(), biased, stax.Relu(), biased)
    fmap = jns.feature_map(net, num_features=200, method="variance_reduced")
    x = jax.random.normal(jax.random.key(1), (7, 5))
    params = fmap.init(jax.random.key(0), (5,))
    compiled = jax.jit(fmap.apply)(params, x)
    np.testing.assert_allclose(compiled, fmap.apply(params, x), atol=1e-4)
