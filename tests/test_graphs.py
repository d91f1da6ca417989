"""Sums over the edges of graphs: method "exact" against Neural Tangents, padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from helpers import x64

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
    "biases": lambda a: (a, dense(0.3), RELU, dense(0.1), a, RELU, MEAN, dense(0.2)),
    "twice": lambda a: (dense(0.2), RELU, a, a, dense(), RELU, dense(), stax.Flatten()),
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


def theirs(net, x, pattern, half=N // 2):
    kernel_fn = jnt.to_stax(net)[2]
    with x64():
        x = jnp.asarray(x, float)
        out = kernel_fn(
            x[:half], x[half:], BOTH, pattern=(pattern[:half], pattern[half:])
        )
        return {kind: np.asarray(getattr(out, kind)) for kind in BOTH}


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def check(net, x, pattern, dtype="float64"):
    phi, k = exact(net, x, dtype, pattern=pattern), theirs(net, x, pattern)
    half = len(x) // 2
    for kind in BOTH:
        z = phi[kind]
        tolerance = 1e-9 if dtype == "float64" else 1e-4
        if kind == "nngp" or np.any(k[kind]):
            assert relative(z[:half] @ z[half:].T, k[kind]) < tolerance
        else:
            assert not z.any()


@pytest.mark.filterwarnings("ignore:Negative indices")
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
    phi, k = exact(net, x, pattern=pattern), theirs(net, x, pattern, 2)
    for kind in BOTH:
        assert relative(phi[kind][:2] @ phi[kind][2:].T, k[kind]) < 1e-9


@pytest.mark.filterwarnings("ignore:Negative indices")
def test_edges_of_two_axes():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 3, 2, 2))
    pattern = np.stack(
        [rng.integers(0, 3, (4, 6, 2)), rng.integers(0, 2, (4, 6, 2))], axis=2
    )
    net = stax.serial(
        stax.Aggregate(implementation="SPARSE"), dense(), RELU, MEAN, dense()
    )
    phi, k = exact(net, x, pattern=pattern), theirs(net, x, pattern, 2)
    for kind in BOTH:
        assert relative(phi[kind][:2] @ phi[kind][2:].T, k[kind]) < 1e-9


def dense_of(edges, weights, nodes):
    out = np.zeros((len(edges), nodes, nodes))
    for n, e in np.ndindex(edges.shape[:2]):
        if edges[n, e].min() >= 0:
            out[n, edges[n, e, 0], edges[n, e, 1]] += weights[n, e]
    return out


@pytest.mark.parametrize("method", ["exact", "ntk_random_features", "variance_reduced"])
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name, masked", [("gntk", False), ("biases", True), ("mean", True)]
)
def test_padding_changes_nothing(method, name, masked):
    """Twice the nodes: zero nodes stay zero without biases, elsewhere the mask."""
    aggregate = stax.Aggregate(implementation="SPARSE")
    nets = NETS | {"mean": lambda a: (a, dense(), RELU, a, dense(), RELU, MEAN)}
    net = stax.serial(*nets[name](aggregate))
    grams = []
    with x64():
        fmap = jns.feature_map(net, num_features=96, method=method)
        for size in (5, 10):
            graphs = pad(SMALL, BONDS, num_nodes=size, num_edges=2 * size + 9)
            beside = {"pattern": graphs.pattern} | masked * {"mask": graphs.mask}
            # Parameters do not depend on the number of nodes.
            params = fmap.init(KEY, graphs.x.shape[1:])
            z = np.asarray(fmap.apply(params, graphs.x, **beside), np.float64)
            grams.append(z @ z.T)
    np.testing.assert_allclose(
        grams[1], grams[0], rtol=1e-6, atol=1e-7 * grams[0].max()
    )
    alone = pad(SMALL[:1], BONDS[:1])
    with x64():
        params = fmap.init(KEY, alone.x.shape[1:])
        z = fmap.apply(params, alone.x, pattern=alone.pattern)
    np.testing.assert_allclose(np.sum(np.square(z)), grams[0][0, 0], rtol=1e-6)


def test_masks_are_those_of_neural_tangents():
    aggregate = stax.Aggregate()
    net = stax.serial(*NETS["biases"](aggregate))
    graphs = pad(SMALL, BONDS)
    weights = dense_of(graphs.pattern, np.ones(graphs.pattern.shape[:2]), 5)
    phi = exact(net, graphs.x, pattern=weights, mask=graphs.mask)
    marked = np.where(graphs.mask[..., None], graphs.x, 1e3)
    with x64():
        out = jnt.to_stax(net)[2](
            jnp.asarray(marked[:2]),
            jnp.asarray(marked[2:]),
            BOTH,
            pattern=(weights[:2], weights[2:]),
            mask_constant=1e3,
        )
    for kind in BOTH:
        z = phi[kind]
        assert relative(z[:2] @ z[2:].T, np.asarray(getattr(out, kind))) < 1e-9


@functools.lru_cache
def kernels_of(kind):
    graphs = pad(SMALL, BONDS)
    z = exact(jns.recipes.gntk(2), graphs.x, pattern=graphs.pattern)[kind]
    return z @ z.T


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

        k = np.stack([jax.jit(gram)(key) for key in jax.random.split(KEY, 6)])
        k = k.astype(np.float64)
        wanted = kernels_of(kind)
        errors.append(np.sqrt(np.mean([relative(one, wanted) ** 2 for one in k])))
    # A sixteenth of the variance: 1/4, and 1/2 with room for chance.
    assert errors[1] < 0.5 * errors[0] + slack
    assert errors[1] < 0.12


def test_nystrom_learns_from_graphs():
    graphs = pad(SMALL * 4, BONDS * 4)
    fmap = jns.feature_map(jns.recipes.gntk(2), num_features=64, method="nystrom")
    with x64():
        params = fmap.init(KEY, graphs.x, pattern=graphs.pattern)
        z = fmap.apply(params, graphs.x[:4], pattern=graphs.pattern[:4])
    assert relative(np.asarray(z @ z.T), kernels_of("ntk")) < 0.05
    with pytest.raises(ValueError, match=r"FeatureMap.init: .* give pattern="):
        fmap.init(KEY, graphs.x)


def test_transformations_of_jax():
    graphs = pad(SMALL, BONDS)
    fmap = jns.feature_map(jns.recipes.gntk(2), num_features=50, get=BOTH)
    params = fmap.init(KEY, graphs.x.shape[1:])
    phi = fmap.apply(params, graphs.x, pattern=graphs.pattern)

    def ntk(x, pattern, mask):
        return fmap.apply(params, x, pattern=pattern, mask=mask).ntk

    np.testing.assert_allclose(jax.jit(ntk)(*graphs), phi.ntk, atol=1e-4)
    one = jax.vmap(lambda *g: ntk(*(z[None] for z in g))[0])
    np.testing.assert_allclose(one(*graphs), phi.ntk, atol=1e-4)
    batched = fmap.apply(params, graphs.x, pattern=graphs.pattern, batch_size=3)
    np.testing.assert_allclose(batched.ntk, phi.ntk, atol=1e-4)
    hosted = jns.transform(
        fmap, params, graphs.x, pattern=graphs.pattern, mask=graphs.mask, batch_size=3
    )
    np.testing.assert_allclose(hosted.nngp, phi.nngp, atol=1e-4)
    gradient = jax.grad(lambda x: jnp.sum(ntk(x, *graphs[1:]) ** 2))(graphs.x)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    weights = np.ones(graphs.pattern.shape[:2], np.float32)
    by_weight = jax.grad(
        lambda w: jnp.sum(ntk(graphs.x, (graphs.pattern, w), graphs.mask) ** 2)
    )(weights)
    assert np.isfinite(by_weight).all()
    plan = fmap.plan(graphs.x)
    assert "per edge" in str(plan) and plan.num_features == 100


def test_signed_weights():
    """Negative ones need to be said; the features then still have the right kernel."""
    pattern = WEIGHTS - 0.2
    nets = {
        signed: stax.serial(*NETS["gntk"](stax.Aggregate(signed=signed)))
        for signed in (False, True)
    }
    with pytest.raises(ValueError, match=r"negative weights.*signed=True"):
        jns.feature_map(nets[False], num_features=64).apply(
            jns.feature_map(nets[False], num_features=64).init(KEY, X.shape[1:]),
            X,
            pattern=pattern,
        )
    fmap = jns.feature_map(nets[False], num_features=64)
    params = fmap.init(KEY, X.shape[1:])
    some = np.where(np.arange(N)[:, None, None] == 2, pattern, WEIGHTS)
    z = jax.jit(lambda p: fmap.apply(params, X, pattern=p))(some)
    assert (np.isnan(z).any(1) == (np.arange(N) == 2)).all()
    check(nets[True], X, pattern)
    wanted = exact(nets[True], X, pattern=pattern)["ntk"]
    wanted = wanted @ wanted.T
    for method in ("variance_reduced", "ntk_sketch"):
        fmap = jns.feature_map(nets[True], num_features=2048, method=method)

        def gram(key, fmap=fmap):
            z = fmap.apply(fmap.init(key, X.shape[1:]), X, pattern=pattern)
            return z @ z.T

        mean = np.mean([jax.jit(gram)(k) for k in jax.random.split(KEY, 4)], axis=0)
        assert relative(mean, wanted) < 0.1


NET = stax.serial(stax.Aggregate(), dense(), RELU, SUM)
LIST = stax.serial(stax.Aggregate(implementation="SPARSE"), dense(), RELU, SUM)
PLAIN = stax.serial(dense(), RELU, SUM)


@pytest.mark.parametrize(
    "net, beside, match",
    [
        (NET, {}, r"stax.Aggregate, which sums.*give pattern="),
        (PLAIN, {"pattern": WEIGHTS}, "pattern was given, but the network has no"),
        (
            stax.serial(stax.Flatten(), dense()),
            {"mask": np.ones((N, NODES), bool)},
            "mask was given, but the network has no stax.GlobalSumPool",
        ),
        (NET, {"pattern": WEIGHTS[:2]}, "pattern must have the 6 examples of x"),
        (NET, {"pattern": WEIGHTS[:, :3]}, r"one array of weights, \(6, 5, 5\), got"),
        (NET, {"pattern": EDGES}, r"a list of edges needs implementation=\"SPARSE\""),
        (LIST, {"pattern": WEIGHTS}, r"integers \(6, edges, 2\).*float32 \(6, 5, 5\)"),
        (LIST, {"pattern": EDGES[..., :1]}, r"integers \(6, edges, 2\)"),
        (LIST, {"pattern": EDGES + 1}, "names nodes that are not among"),
        (
            LIST,
            {"pattern": (EDGES, np.ones((N, 4)))},
            r"weights of the pattern must have shape \(6, 9\)",
        ),
        (
            NET,
            {"pattern": WEIGHTS, "mask": np.ones((N, 4), bool)},
            r"mask must be a bool for each node, \(6, 5\)",
        ),
        (
            NET,
            {"pattern": WEIGHTS, "mask": np.ones((N, NODES))},
            r"mask must be a bool for each node",
        ),
        (
            stax.serial(stax.Conv(1, (2,)), RELU, SUM),
            {"mask": np.ones((N, NODES), bool)},
            "mask is for the nodes of graphs.*Conv",
        ),
    ],
)
@pytest.mark.parametrize("method", ["exact", "variance_reduced"])
def test_what_apply_refuses(net, beside, match, method):
    fmap = jns.feature_map(net, num_features=40, method=method)
    params = fmap.init(KEY, X.shape[1:])
    with pytest.raises(ValueError, match=match):
        fmap.apply(params, X, **beside)


def test_edges_out_of_range_under_jit_are_nan():
    fmap = jns.feature_map(LIST, num_features=40)
    params = fmap.init(KEY, X.shape[1:])
    for column in (0, 1):
        edges = EDGES.copy()
        edges[2, 0, column] = NODES
        z = jax.jit(lambda p: fmap.apply(params, X, pattern=p))(edges)
        assert (np.isnan(z).any(1) == (np.arange(N) == 2)).all()


@pytest.mark.parametrize(
    "layers, shape, match",
    [
        ((stax.Aggregate(), dense()), (5,), "needs an axis of nodes"),
        ((SUM, stax.Aggregate(), dense()), (5, 3), "needs an axis of nodes"),
        ((stax.Aggregate(2), SUM), (5, 3), "aggregate_axis must be different axes"),
        ((stax.Aggregate((1, 1)), SUM), (5, 3), "aggregate_axis must be different"),
        ((stax.Aggregate(7), SUM), (5, 3), "aggregate_axis must be different"),
        (
            (stax.Aggregate(channel_axis=1), dense(), SUM),
            (5, 3),
            "disagree on the axis",
        ),
        ((stax.Aggregate(), RELU, SUM), (5, 3), "Relu must follow a linear layer"),
    ],
)
def test_what_init_refuses(layers, shape, match):
    fmap = jns.feature_map(stax.serial(*layers), num_features=40)
    with pytest.raises(ValueError, match=match):
        fmap.init(KEY, shape)


def test_one_pass_refuses_graphs():
    fmap = jns.feature_map(NET, num_features=40, method="one_pass")
    with pytest.raises(ValueError, match="is for fully connected networks"):
        fmap.init(KEY, X.shape[1:])


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"aggregate_axis": 0}, ValueError, "aggregate_axis must not be 0"),
        ({"aggregate_axis": ()}, ValueError, "at least one axis"),
        ({"aggregate_axis": 1.5}, TypeError, "aggregate_axis must be one integer"),
        ({"batch_axis": 1}, ValueError, "batch_axis must be 0"),
        ({"to_dense": lambda p: p}, ValueError, "to_dense must be None"),
        ({"implementation": "sparse"}, ValueError, "'DENSE' or 'SPARSE'"),
        ({"signed": 1}, TypeError, "signed must be a bool"),
    ],
)
def test_records_refuse(arguments, error, match):
    with pytest.raises(error, match=match):
        stax.Aggregate(**arguments)


def test_text_of_records():
    net = stax.serial(stax.Aggregate((1, 2), implementation="SPARSE", signed=True), SUM)
    assert stax.from_json(stax.to_json(net)) == net == eval(repr(net))


@pytest.mark.parametrize(
    "nodes, edges, options, match",
    [
        ([], [], {}, "at least one"),
        (SMALL, BONDS[:1], {}, "of the same graphs"),
        ([np.ones(3)], [[]], {}, r"nodes\[0\] must have shape"),
        ([np.ones((2, 1)), np.ones((2, 2))], [[], []], {}, r"nodes\[1\] must have"),
        ([np.ones((2, 1))], [[(0, 2)]], {}, r"edges\[0\] must name nodes from 0 to 1"),
        ([np.ones((2, 1))], [[(0.5, 1)]], {}, r"edges\[0\] must be integers"),
        (SMALL, BONDS, {"num_nodes": 4}, "num_nodes must be at least 5, got 4"),
        (SMALL, BONDS, {"num_edges": 4}, "num_edges must be at least 15, got 4"),
    ],
)
def test_pad_refuses(nodes, edges, options, match):
    with pytest.raises(ValueError, match=match):
        pad(nodes, edges, **options)


def test_pad_averages():
    graphs = pad(SMALL, BONDS, normalize=True)
    weights = dense_of(*graphs.pattern, 5)
    np.testing.assert_allclose(weights.sum(1), graphs.mask, atol=1e-12)
    assert graphs.take(slice(1, 3)).pattern[1].shape == (2, 15)


def test_load_graphs(tmp_path):
    arrays = dict(
        y=np.array([-1, 1, -1]), n_nodes=[2, 3, 1], n_edges=[1, 2, 0],
        node_tag=[4, 0, 0, 7, 4, 7], edge_i=[0, 0, 1], edge_j=[1, 1, 2],
        fold1_train=[0, 1], fold1_test=[2],
    )  # fmt: skip
    np.savez(tmp_path / "three.npz", **arrays)
    data = jns.data.load_graphs(tmp_path / "three.npz")
    assert data.y.tolist() == [0, 1, 0] and data.labels == (-1, 1)
    assert data.graphs.x[1].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert data.graphs.mask.sum(1).tolist() == [2, 3, 1]
    assert [1, 0] in data.graphs.pattern[0].tolist()
    assert [f.tolist() for f in data.folds[0]] == [[0, 1], [2]]
    np.savez(tmp_path / "bad.npz", **{**arrays, "n_edges": [1, 1, 0]})
    with pytest.raises(ValueError, match="n_edges must be a number for each of the 3"):
        jns.data.load_graphs(tmp_path / "bad.npz")
