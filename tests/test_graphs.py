"""Sums over the edges of graphs: method "exact" against Neural Tangents, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import kernels_in_float64, x64

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.graphs import pad
from jax_ntk_sketch.interop import neural_tangents as jnt

BOTH = ("nngp", "ntk")
KEY = jax.random.key(0)
N, NODES, TAGS = 6, 5, 3
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, NODES, TAGS)).astype(np.float32)
WEIGHTS = (
    (RNG.random((N, NODES, NODES)) < 0.5) * RNG.random((N, NODES, NODES))
).astype(np.float32)
EDGES = RNG.integers(0, NODES, (N, 9, 2))
EDGES[:, 5:][RNG.random((N, 4)) < 0.5] = -1
PATTERNS = {"DENSE": WEIGHTS, "SPARSE": EDGES}

RELU, SUM, MEAN = stax.Relu(), stax.GlobalSumPool(), stax.GlobalAvgPool()


def dense(b_std=None):
    return stax.Dense(1, 1.3, b_std)


NETS = {
    "alone": lambda a: (a, SUM),
    "alone, behind": lambda a: (dense(0.3), a, MEAN),
    "gntk": lambda a: (a, dense(), RELU, a, dense(), RELU, SUM, dense()),
    "biases": lambda a: (a, dense(0.3), RELU, a, dense(0.1), RELU, MEAN, dense(0.2)),
    "twice": lambda a: (dense(0.2), RELU, a, a, dense(), RELU, dense(), stax.Flatten()),
    "dropout": lambda a: (
        dense(0.2), RELU, stax.Dropout(0.7), a, dense(), RELU, a, dense(), RELU, SUM,
    ),
    "branches": lambda a: (
        dense(0.3), stax.FanOut(2),
        stax.parallel(stax.Identity(), stax.serial(RELU, a, dense(0.2))),
        stax.FanInSum(), RELU, a, MEAN,
    ),
    "convolution": lambda a: (
        stax.Conv(1, (2,), None, "SAME", 1.2, 0.1), a, RELU,
        stax.AvgPool((2,), padding="SAME"), a, SUM, dense(),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


def exact(net, x, dtype="float64", **beside):
    with x64(dtype == "float64"):
        fmap = jns.feature_map(net, num_features=1, get=BOTH, method="exact")
        params = fmap.init(KEY, x.shape[1:])
        run = registry.jit_once(lambda p, x, beside: fmap.apply(p, x, **beside))
        out = run(params, jnp.asarray(x, dtype), beside)
        return {kind: np.asarray(getattr(out, kind)) for kind in BOTH}


def both_kernels(net, x, pattern, half=N // 2):
    pair = pattern[:half], pattern[half:]
    return kernels_in_float64(net, x[:half], x[half:], pattern=pair)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def check(net, x, pattern, dtype="float64"):
    phi, k = exact(net, x, dtype, pattern=pattern), both_kernels(net, x, pattern)
    half = len(x) // 2
    for kind in BOTH:
        z = phi[kind]
        tolerance = 1e-9 if dtype == "float64" else 1e-4
        if kind == "nngp" or np.any(k[kind]):
            assert relative(z[:half] @ z[half:].T, k[kind]) < tolerance
        else:
            assert not z.any()


@pytest.mark.filterwarnings("ignore:Negative indices")
@pytest.mark.long_cases("branches")
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("implementation", PATTERNS)
def test_equals_neural_tangents(name, implementation):
    aggregate = stax.Aggregate(implementation=implementation)
    net = stax.serial(*NETS[name](aggregate))
    check(net, X, PATTERNS[implementation])


@pytest.mark.filterwarnings("ignore:Negative indices")
@pytest.mark.parametrize("implementation", PATTERNS)
def test_single_precision(implementation):
    aggregate = stax.Aggregate(implementation=implementation)
    net = stax.serial(*NETS["biases"](aggregate))
    check(net, X, PATTERNS[implementation], "float32")


@pytest.mark.long_cases("2-sizes0")
@pytest.mark.parametrize("axis, sizes", [(2, (3,)), ((2, 3), (3, 2)), (3, (2,))])
def test_channels_first_and_axes(axis, sizes):
    """Images whose rows, columns or pixels are nodes."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 2, 3, 2))
    pattern = rng.random((4, *sizes, *sizes))
    order = ("NCHW", "OIHW", "NCHW")
    aggregate = stax.Aggregate(axis, 0, 1)
    conv = stax.Conv(1, (1, 1), None, "VALID", 1.3, 0.1, order)
    net = stax.serial(conv, RELU, aggregate, conv, RELU, stax.Flatten(), dense())
    phi, k = exact(net, x, pattern=pattern), both_kernels(net, x, pattern, 2)
    for kind in BOTH:
        assert relative(phi[kind][:2] @ phi[kind][2:].T, k[kind]) < 1e-9


@pytest.mark.filterwarnings("ignore:Negative indices")
def test_edges_of_two_axes():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 3, 2, 2))
    pattern = np.stack(
        [rng.integers(0, 3, (4, 6, 2)), rng.integers(0, 2, (4, 6, 2))], axis=2
    )
    # Behind one convolution Neural Tangents has the axes in reverse.
    conv = stax.Conv(1, (2, 1), None, "SAME", 1.2, 0.1)
    aggregate = stax.Aggregate(implementation="SPARSE")
    net = stax.serial(conv, RELU, aggregate, dense(), RELU, MEAN, dense())
    phi, k = exact(net, x, pattern=pattern), both_kernels(net, x, pattern, 2)
    for kind in BOTH:
        assert relative(phi[kind][:2] @ phi[kind][2:].T, k[kind]) < 1e-9


def dense_of(edges, weights, nodes):
    out = np.zeros((len(edges), nodes, nodes))
    for n, e in np.ndindex(edges.shape[:2]):
        if edges[n, e].min() >= 0:
            out[n, edges[n, e, 0], edges[n, e, 1]] += weights[n, e]
    return out


@pytest.mark.long
@pytest.mark.parametrize("method", ["exact", "ntk_random_features"])
def test_edges_equal_weights(method):
    """The two implementations, weights on the edges, any weight in padding."""
    rng = np.random.default_rng(3)
    weights = rng.random((N, 9))
    weights[EDGES[..., 0] < 0] = 7.0
    whole = dense_of(EDGES, weights, NODES)

    def features(implementation, pattern):
        net = stax.serial(*NETS["gntk"](stax.Aggregate(implementation=implementation)))
        with x64():
            fmap = jns.feature_map(net, num_features=64, method=method)
            x = jnp.asarray(X, float)
            z = fmap.apply(fmap.init(KEY, x.shape[1:]), x, pattern=pattern)
            return np.asarray(z @ z.T if method == "exact" else z)

    a = features("SPARSE", (EDGES, weights))
    np.testing.assert_allclose(a, features("DENSE", whole), atol=1e-10)
    with_ones = features("SPARSE", (EDGES, np.ones((N, 9))))
    np.testing.assert_allclose(with_ones, features("SPARSE", EDGES), atol=1e-10)


def literature(x, adjacency, num_blocks, mlp_depth):
    """The recursion of Du et al. (c_sigma = 2, no scaling), a pair of graphs at a
    time, written with the matrices of their Section 3.3."""

    def pair(i, j):
        nodes = [i, j]
        s = [[x[a] @ x[b].T for b in nodes] for a in nodes]
        t = [[block.copy() for block in row] for row in s]
        for _ in range(num_blocks):
            for k in (s, t):
                for a in (0, 1):
                    for b in (0, 1):
                        left, right = adjacency[nodes[a]], adjacency[nodes[b]]
                        k[a][b] = left.T @ k[a][b] @ right
            for _ in range(mlp_depth):
                norms = [np.sqrt(np.diag(s[a][a])) for a in (0, 1)]
                for a in (0, 1):
                    for b in (0, 1):
                        outer = np.outer(norms[a], norms[b])
                        c = np.clip(s[a][b] / outer, -1, 1)
                        angle = np.arccos(c)
                        step = (np.pi - angle) / np.pi
                        s[a][b] = outer * (c * step + np.sqrt(1 - c**2) / np.pi)
                        t[a][b] = t[a][b] * step + s[a][b]
        return t[0][1].sum()

    return np.array([[pair(i, j) for j in range(len(x))] for i in range(len(x))])


@pytest.mark.parametrize("num_blocks, mlp_depth", [(1, 1), (2, 2), (3, 1)])
def test_gntk_of_the_literature(num_blocks, mlp_depth):
    rng = np.random.default_rng(4)
    x = rng.random((4, 4, 3))
    edges = [rng.integers(0, 4, (3, 2)) for _ in range(4)]
    graphs = pad(list(x), edges)
    adjacency = dense_of(graphs.pattern, np.ones(graphs.pattern.shape[:2]), 4)
    net = jns.recipes.gntk(num_blocks, mlp_depth)
    z = exact(net, x, pattern=graphs.pattern)["ntk"]
    wanted = literature(x, adjacency, num_blocks, mlp_depth)
    off = ~np.eye(4, dtype=bool)
    assert relative(3 * (z @ z.T)[off], wanted[off]) < 1e-10


SMALL = [RNG.random((size, TAGS)) for size in (3, 5, 2, 4)]
BONDS = [[(0, 1), (1, 2)], [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)], [], [(0, 3)]]
METHODS = ("exact", "ntk_random_features", "ntk_sketch", "variance_reduced")


@pytest.mark.long
@pytest.mark.parametrize(
    "method, name, masked",
    [
        *((method, "gntk", False) for method in METHODS[:2]),
        *((method, "biases", True) for method in METHODS),
        ("ntk_random_features", "mean", True),
    ],
)
def test_padding_changes_nothing(method, name, masked):
    """Twice the nodes: zero nodes stay zero without biases, elsewhere the mask."""
    aggregate = stax.Aggregate(implementation="SPARSE")
    nets = NETS | {"mean": lambda a: (a, dense(), RELU, a, dense(), RELU, MEAN)}
    net = stax.serial(*nets[name](aggregate))
    fmap = jns.feature_map(net, num_features=96, method=method)

    @registry.jit_once
    def gram(x, beside):
        # Parameters do not depend on the number of nodes.
        z = fmap.apply(fmap.init(KEY, x.shape[1:]), x, **beside)
        return z @ z.T

    with x64():
        grams = []
        for size in (5, 10):
            graphs = pad(SMALL, BONDS, num_nodes=size, num_edges=2 * size + 9)
            beside = {"pattern": graphs.pattern}
            if masked:
                beside["mask"] = graphs.mask
            grams.append(np.asarray(gram(graphs.x, beside)))
        alone = pad(SMALL[:1], BONDS[:1])
        one = gram(alone.x, {"pattern": alone.pattern})
    scale = grams[0].max()
    np.testing.assert_allclose(grams[1], grams[0], rtol=1e-6, atol=1e-7 * scale)
    np.testing.assert_allclose(one[0, 0], grams[0][0, 0], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Negative indices")
@pytest.mark.long_cases("dropout", "branches")
@pytest.mark.parametrize("name", ["biases", "dropout", "alone, behind", "branches"])
@pytest.mark.parametrize("implementation", PATTERNS)
def test_masks_are_those_of_neural_tangents(name, implementation):
    """Nodes that do not exist have values and edges, which do not count."""
    aggregate = stax.Aggregate(implementation=implementation)
    net = stax.serial(*NETS[name](aggregate))
    x, pattern = X[:4, :, :1], PATTERNS[implementation][:4]
    mask = np.ones((4, NODES), bool)
    mask[0, 3:] = mask[2, [0, 3]] = mask[3, [0, 2, 3, 4]] = False
    phi = exact(net, np.where(mask[..., None], x, np.nan), pattern=pattern, mask=mask)
    marked = np.where(mask[..., None], x, 1e3)
    with x64():
        # Their mask is one for all channels: that of a single one.
        out = jnt.to_stax(net)[2](
            jnp.asarray(marked[:2, :, :1]),
            jnp.asarray(marked[2:, :, :1]),
            BOTH,
            pattern=(pattern[:2], pattern[2:]),
            mask_constant=1e3,
        )
    for kind in BOTH:
        z = phi[kind]
        assert relative(z[:2] @ z[2:].T, np.asarray(getattr(out, kind))) < 1e-9
