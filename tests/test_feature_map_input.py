"""Arguments that feature maps refuse or convert, and sizes of all kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_exact

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, sketch, stax
from jax_ntk_sketch.features.widths import allocate_columns

DENSE = stax.Dense(1, 2**0.5)
NET = stax.serial(DENSE, stax.Relu(), DENSE, stax.Relu(), DENSE)
BIASED = stax.serial(*[stax.Dense(1, 1.5, 0.1), stax.Relu()] * 2, stax.Dense(1, 1, 0.1))
KEY = jax.random.key(0)
METHODS = ("one_pass", "ntk_random_features", "ntk_sketch")
X = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)


@pytest.mark.parametrize("get", ["ntk", "nngp"])
@pytest.mark.parametrize("net", [NET, BIASED], ids=["homogeneous", "biased"])
@pytest.mark.parametrize("method", METHODS)
def test_exactly_num_features_columns_and_the_least(method, net, get):
    """The error names the least, the least works, and so do odd sizes above it."""
    if method == "one_pass" and net is BIASED:
        with pytest.raises(ValueError, match='"one_pass" needs a kernel that depends'):
            jns.feature_map(net, num_features=64, method=method).init(KEY, (6,))
        return
    try:
        jns.feature_map(net, num_features=1, get=get, method=method).init(KEY, (6,))
        least = 1
    except ValueError as error:
        assert "num_features must be at least" in str(error)
        least = int(str(error).split("at least ")[1].split()[0])
    assert least <= 20
    for m in (least, least + 1, 37, 101):
        fmap = jns.feature_map(net, num_features=m, get=get, method=method)
        shape = jax.eval_shape(
            lambda key, f=fmap: f.apply(f.init(key, (6,)), jnp.asarray(X)), KEY
        )
        assert shape.shape == (3, m)


@pytest.mark.long
def test_both_kernels_at_once_are_the_single_ones():
    for method in (*METHODS, "exact"):
        both = jns.feature_map(NET, num_features=50, get=("ntk", "nngp"), method=method)
        phi = both.apply(both.init(KEY, X), X)
        assert isinstance(phi, jns.KernelFeatures)
        for kind in ("ntk", "nngp"):
            one = jns.feature_map(NET, num_features=50, get=kind, method=method)
            np.testing.assert_array_equal(
                getattr(phi, kind), one.apply(one.init(KEY, X), X)
            )


def test_batches_do_not_change_the_features():
    fmap = jns.feature_map(NET, num_features=60)
    x = np.random.default_rng(1).standard_normal((11, 6)).astype(np.float32)
    params = fmap.init(KEY, x)
    whole = fmap.apply(params, x)
    for size in (1, 4, 11, 20):
        parts = fmap.apply(params, x, batch_size=size)
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
        fmap.apply(params, x, batch_size=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_integers_and_booleans_are_floats(dtype):
    fmap = jns.feature_map(NET, num_features=60)
    x = np.array([[1, 0, 3, 0, 1, 2]], dtype)
    params = fmap.init(KEY, x)
    phi = fmap.apply(params, x)
    assert phi.dtype == np.float32
    np.testing.assert_array_equal(phi, fmap.apply(params, x.astype(np.float32)))


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"net": "mlp"}, TypeError, "net must be a record of jax_ntk_sketch.stax"),
        ({"num_features": 0}, ValueError, "num_features must be an integer >= 1"),
        ({"num_features": 2.5}, TypeError, "num_features must be an integer"),
        ({"get": "kernel"}, ValueError, "get must be"),
        ({"get": ("ntk", "ntk")}, ValueError, "get must be"),
        ({"get": ()}, ValueError, "get must be"),
        ({"method": "sketch"}, ValueError, "method must be one of 'auto', 'ntk_sket"),
        ({"method": 3}, TypeError, "method must be a string or a record"),
    ],
)
def test_bad_arguments_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        jns.feature_map(**{"net": NET, "num_features": 64, **arguments})


@pytest.mark.parametrize(
    "build, match",
    [
        (lambda: methods.NTKSketch(degree=0), "degree must be"),
        (lambda: methods.NTKSketch(derivative_degree=0), "derivative_degree must be"),
        (lambda: methods.NTKSketch(coefficients="best"), "coefficients must be one"),
        (
            lambda: methods.NTKSketch(oversample=0.5),
            "oversample must be finite and >= 1",
        ),
        (lambda: methods.NTKRandomFeatures(directions="x"), "directions must be one"),
        (lambda: methods.NTKRandomFeatures(product="x"), "product must be one of"),
        (lambda: methods.NTKRandomFeatures(nngp_fraction=1), "nngp_fraction must be"),
        (lambda: methods.OnePass(degree=True), "degree must be an integer"),
        (lambda: methods.OnePass(leaf="x"), "leaf must be one of"),
        (
            lambda: methods.OnePass(min_cosine=1.0),
            "min_cosine must be finite and >= -1",
        ),
    ],
)
def test_bad_hyper_parameters_are_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()
    with pytest.raises(TypeError, match="derivative_degree must be an integer"):
        methods.NTKSketch(derivative_degree=1.5)


def test_bad_examples_and_parameters_are_named():
    fmap = jns.feature_map(NET, num_features=64)
    params = fmap.init(KEY, (6,))
    for example in ((6, 6), np.ones((2, 3, 4))):
        with pytest.raises(ValueError, match=r"still has spatial axes.*Flatten"):
            fmap.init(KEY, example)
    for example in ((), (0,), (3, 0), X[0]):
        with pytest.raises(ValueError, match="example must be the shape of one ex"):
            fmap.init(KEY, example)
    with pytest.raises(ValueError, match=r"use x\[None\] for one example"):
        fmap.apply(params, X[0])
    for bad in (X[None], X[:, :5]):
        with pytest.raises(ValueError, match=r"x must have shape \(n, 6\), for which"):
            fmap.apply(params, bad)
    other = jns.feature_map(NET, num_features=65)
    with pytest.raises(
        ValueError, match="params must come from init of an equal feature map"
    ):
        other.apply(params, X)
    with pytest.raises(TypeError, match="x must be real"):
        fmap.apply(params, X.astype(complex))


def test_bad_keys_are_named():
    fmap = jns.feature_map(NET, num_features=64)
    with pytest.raises(TypeError, match=r"make one with jax.random.key\(seed\)"):
        fmap.init(0, (6,))
    with pytest.raises(ValueError, match="must be one key, got an array of keys"):
        fmap.init(jax.random.split(KEY), (6,))
    with pytest.raises(TypeError, match="got an array of float32"):
        fmap.init(jnp.zeros(2), (6,))
    with pytest.raises(TypeError, match="not a legacy PRNG key"):
        fmap.init(jnp.zeros(3, jnp.uint32), (6,))
    jax.tree.map(
        np.testing.assert_array_equal,
        fmap.init(KEY, (6,)),
        fmap.init(jax.random.PRNGKey(0), (6,)),
    )


def test_layers_out_of_place_are_named():
    for net in (stax.Relu(), stax.serial(DENSE, stax.Relu(), stax.Relu())):
        for method in ("ntk_random_features", "exact"):
            with pytest.raises(ValueError, match="Relu must follow a linear layer"):
                jns.feature_map(net, num_features=64, method=method).init(KEY, (6,))


@pytest.mark.parametrize(
    "build, error, match",
    [
        (lambda: sketch.SRHT(0, 4), ValueError, "SRHT: input_dim must be"),
        (lambda: sketch.CountSketch(4, 2.5), TypeError, "CountSketch: output_dim must"),
        (lambda: sketch.OSNAP(4, 3, 4), ValueError, "sparsity must be at most"),
        (lambda: sketch.TensorSRHT((4,), 8), ValueError, "must be two sizes"),
        (lambda: sketch.PolySketch(4, 3, (2, 2)), ValueError, "one size for each of"),
        (lambda: sketch.PolySketch(4, 3, 8, leaf="x"), ValueError, "leaf must be one"),
        (
            lambda: sketch.hadamard_transform(jnp.ones(6)),
            ValueError,
            "must be a power of two, got 6",
        ),
        (
            lambda: sketch.SRHT(4, 4).apply(sketch.SRHT(4, 4).init(KEY), jnp.ones(5)),
            ValueError,
            "last axis of x must have size 4",
        ),
    ],
)
def test_bad_sketches_are_named(build, error, match):
    with pytest.raises(error, match=match):
        build()


def test_allocation_uses_every_column():
    for weights in ([1.0, 2.0, 3.0], [0.0, 5.0, 1e-9], [1.0], [0.0, 0.0]):
        for total in (0, 1, 2, 7, 100):
            sizes = allocate_columns(np.array(weights), total)
            positive = np.array(weights) > 0
            assert all((np.array(sizes) > 0) == positive)
            least = int(positive.sum())
            assert sum(sizes) == (max(total, least) if least else 0)


@pytest.mark.parametrize("method", [*METHODS, "variance_reduced", "nystrom", "exact"])
def test_rows_of_any_length(method):
    """Networks without biases are homogeneous, from the smallest float to the largest.

    In one batch, rows of 1e-30, 1 and 1e30 have the features that they have alone.
    """
    fmap = jns.feature_map(NET, num_features=36, method=method)
    params = fmap.init(KEY, X, sample=X)
    usual = np.asarray(fmap.apply(params, X))
    lengths = np.array([2.0**-100, 1.0, 2.0**100])[:, None]
    phi = np.asarray(fmap.apply(params, np.float32(lengths * X)))
    assert (np.abs(phi / lengths - usual) < 1e-5 * np.abs(usual).max()).all()


def test_long_rows_of_networks_that_are_not_homogeneous():
    """Gelu and biases act like Relu there; other rows that overflow are NaN."""
    x = np.float32(1e25 * X)
    nets = {
        activation: stax.serial(stax.Dense(1, 1.5, 0.5), activation, DENSE)
        for activation in (stax.Gelu(), stax.Relu(), stax.Gaussian())
    }
    gelu, relu, gaussian = (
        np.float64(fmap.apply(fmap.init(KEY, (6,)), x))
        for net in nets.values()
        for fmap in [jns.feature_map(net, num_features=1, method="exact")]
    )
    np.testing.assert_allclose(gelu @ gelu.T, relu @ relu.T, rtol=1e-5)
    assert np.isnan(gaussian).all()


CONV, RELU, DENSE = stax.Conv(1, (1, 1), b_std=0.3), stax.Relu(), stax.Dense(1)
ATTENTION = stax.GlobalSelfAttention(1, 1, 1, 1, linear_scaling=True)


@pytest.mark.parametrize("method", ["ntk_random_features", "ntk_sketch"])
@pytest.mark.parametrize(
    "layers",
    [
        (stax.ConvLocal(1, (2, 2)), RELU, CONV, RELU),
        (stax.Aggregate((1, 2), 0, -1), CONV, RELU, stax.Aggregate((1, 2), 0, -1)),
        (CONV, RELU, stax.Dropout(0.5), ATTENTION),
        (CONV, RELU),
    ],
    ids=["local", "graph", "attention", "plain"],
)
def test_no_examples(layers, method):
    """By shapes alone; axes whose size is inferred have none if nothing is there."""
    net = stax.serial(*layers, stax.Flatten(), DENSE)
    fmap = jns.feature_map(net, num_features=70, method=method)
    params = jax.eval_shape(lambda key: fmap.init(key, (2, 2, 3)), KEY)
    graph = any(isinstance(layer, stax.Aggregate) for layer in layers)
    extras = {"pattern": np.zeros((0, 2, 2, 2, 2), np.float32)} if graph else {}
    x = np.zeros((0, 2, 2, 3), np.float32)
    phi = jax.eval_shape(lambda params: fmap.apply(params, x, **extras), params)
    assert phi.shape == (0, 70)


def linear_kernel(a, b, get):
    return a @ (a if b is None else b).T


@pytest.mark.parametrize("kind", ["network", "landmarks", "sparse inputs"])
def test_params_and_examples_are_swapped(kind):
    """JAX said "entry not a 2- or 3- tuple"."""
    fmap = jns.feature_map(NET, num_features=9, method="ntk_random_features")
    if kind == "sparse inputs":
        fmap = jns.with_sparse_inputs(fmap, sketch_dim=4)
    if kind == "landmarks":
        fmap = jns.landmark_features(linear_kernel, num_features=2)
    params = fmap.init(KEY, (6,), sample=X)
    for run in (fmap.apply, jax.jit(fmap.apply)):
        with pytest.raises(TypeError, match=r"apply: params .* come first, apply\(par"):
            run(X, params)
    with pytest.raises(
        TypeError, match=r"transform: x .* got dict; params come before"
    ):
        jns.transform(fmap, X, params)


def test_layers_over_nothing_do_what_they_do_in_neural_tangents():
    """A convolution is Dense there, and a pool does nothing."""
    over_nothing = stax.serial(
        stax.Conv(1, ()),
        stax.Relu(),
        *(stax.AvgPool(()), stax.SumPool(()), stax.GlobalAvgPool()),
        *(stax.GlobalSumPool(), stax.ConvTranspose(1, ())),
    )
    phi = []
    for net in (over_nothing, stax.serial(DENSE, stax.Relu(), DENSE)):
        fmap = jns.feature_map(net, num_features=36, method="ntk_random_features")
        phi.append(jax.jit(fmap.apply)(fmap.init(KEY, (6,)), X))
    np.testing.assert_array_equal(*phi)
    assert stax.Polynomial(()) == stax.Polynomial((0,))
    with pytest.raises(ValueError, match="must have 0 spatial axes for a window of"):
        jns.feature_map(over_nothing, num_features=36).plan((4, 4, 3))
    with pytest.raises(ValueError, match=r"at least one axis, .* graphs of one node"):
        stax.Aggregate(aggregate_axis=())
    with pytest.raises(ValueError, match="must have -1 for the batch and for the ch"):
        stax.ImageResize((3, 4, 4, 2), "linear")


@pytest.mark.long
@pytest.mark.parametrize(
    "layers",
    [
        (stax.Conv(7, (), W_std=1.3, b_std=0.2), stax.Relu(), stax.Conv(1, ())),
        (stax.Conv(7, (), parameterization="standard", s=(2, 3)), stax.Relu(), DENSE),
        (stax.ConvLocal(7, ()), stax.Relu(), stax.ConvTranspose(1, (), b_std=0.2)),
        (DENSE, stax.Relu(), stax.AvgPool(()), stax.GlobalSumPool(), DENSE),
        (DENSE, stax.Relu(), stax.SumPool(()), stax.GlobalAvgPool(), DENSE),
        (DENSE, stax.Polynomial(()), stax.Dense(1, 1.0, 0.5)),
    ],
    ids=["Conv", "standard", "ConvLocal", "AvgPool", "SumPool", "Polynomial"],
)
def test_layers_over_nothing_have_the_kernels_of_neural_tangents(layers):
    check_exact(stax.serial(*layers), X)


def test_landmarks_are_compiled_once(caplog):
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    fmap = jns.feature_map(NET, num_features=8, method="nystrom")
    # Making a key compiles too, where the programs of former tests were dropped.
    first, second = jax.random.key(0), jax.random.key(1)
    fmap.init(first, (6,), sample=x)
    with jax.log_compiles():
        fmap.init(second, (6,), sample=x)
        assert not [line for line in caplog.messages if "Finished XLA" in line]
        # The part that takes seconds is not compiled for one row less.
        fmap.init(second, (6,), sample=x[:79])
    compiled = [line for line in caplog.messages if "Finished XLA" in line]
    assert compiled and not [line for line in compiled if "jit(learn)" in line]


@pytest.mark.parametrize("layer", [stax.Gelu(), stax.Erf(), stax.Relu()], ids=repr)
@pytest.mark.parametrize("size", [0.05, 0.4])
def test_short_rows_of_half_precision(layer, size):
    """What is linear at zero and at infinity is not homogeneous in between."""
    net = stax.serial(stax.Dense(1, 1.4), layer, stax.Dense(1))
    fmap = jns.feature_map(net, num_features=64, method="ntk_random_features")
    x = size * np.random.default_rng(0).standard_normal((5, 6)).astype(np.float16)
    params = fmap.init(KEY, (6,))
    half, single = (fmap.apply(params, x.astype(t)) for t in ("float16", "float32"))
    assert half.dtype == np.float16
    half = np.asarray(half, np.float32)
    error = np.linalg.norm(half @ half.T - single @ single.T)
    assert error < 0.01 * np.linalg.norm(single @ single.T)
