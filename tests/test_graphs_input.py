"""What graph networks refuse; graphs as arrays, and their data sets."""

import jax
import numpy as np
import pytest
import registry
from test_graphs import (
    BONDS,
    EDGES,
    KEY,
    NODES,
    RELU,
    SMALL,
    SUM,
    WEIGHTS,
    N,
    X,
    dense,
    dense_of,
)

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.graphs import pad


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


NET = stax.serial(stax.Aggregate(), dense(), RELU, SUM)
LIST = stax.serial(stax.Aggregate(implementation="SPARSE"), dense(), RELU, SUM)
PLAIN = stax.serial(dense(), RELU, SUM)


@pytest.mark.parametrize(
    "net, beside, match",
    [
        (NET, {}, r"pattern must be given.*stax.Aggregate"),
        (PLAIN, {"pattern": WEIGHTS}, "pattern must be None.* has no stax.Aggregate"),
        (
            stax.serial(stax.Flatten(), dense()),
            {"mask": np.ones((N, NODES), bool)},
            "mask must be None.* has no stax.Aggregate, .* or stax.GlobalAvgPool",
        ),
        (NET, {"pattern": WEIGHTS[:2]}, "pattern must have the 6 examples of x"),
        (NET, {"pattern": WEIGHTS[:, :3]}, r"one array of weights, \(6, 5, 5\), got"),
        (NET, {"pattern": EDGES}, r"a list of edges needs implementation=\"SPARSE\""),
        (LIST, {"pattern": WEIGHTS}, r"integers \(6, edges, 2\).*float32 \(6, 5, 5\)"),
        (LIST, {"pattern": EDGES[..., :1]}, r"integers \(6, edges, 2\)"),
        (LIST, {"pattern": EDGES + 1}, "must name nodes below"),
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
            "mask must be None.* has stax.Conv",
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
            "must agree on the axis",
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
        ({"aggregate_axis": 1.5}, TypeError, "aggregate_axis must be an integer"),
        ({"batch_axis": 1}, ValueError, "batch_axis must be 0"),
        ({"to_dense": lambda p: p}, ValueError, "to_dense must be None"),
        ({"implementation": "sparse"}, ValueError, "one of 'DENSE', 'SPARSE'"),
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
        (SMALL, BONDS[:1], {}, "the same graphs"),
        ([np.ones(3)], [[]], {}, r"nodes\[0\] must have shape"),
        ([np.ones((2, 1)), np.ones((2, 2))], [[], []], {}, r"nodes\[1\] must have"),
        ([np.ones((2, 1))], [[(0, 2)]], {}, r"edges\[0\] must name nodes from 0 to 1"),
        ([np.ones((2, 1))], [[(0.5, 1)]], {}, r"edges\[0\] must be integers"),
        (SMALL, BONDS, {"num_nodes": 4}, "num_nodes must be an integer >= 5, got 4"),
        (SMALL, BONDS, {"num_edges": 4}, "num_edges must be an integer >= 15, got 4"),
    ],
)
def test_pad_refuses(nodes, edges, options, match):
    with pytest.raises(ValueError, match=match):
        pad(nodes, edges, **options)


def test_pad_adds_what_is_not_listed():
    both = [(0, 1), (1, 0), (1, 2), (1, 2), (0, 0)]
    graph = pad([np.ones((3, 1))], [both])
    found = sorted(map(tuple, graph.pattern[0].tolist()))
    twice = [(1, 2), (1, 2), (2, 1), (2, 1)]
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1), *twice, (2, 2)]
    one_way = pad([np.ones((3, 1))], [[(0, 1), (1, 2), (2, 1), (1, 2)]])
    other = pad([np.ones((3, 1))], [[(1, 0), (2, 1), (1, 2), (2, 1)]])
    assert sorted(one_way.pattern[0].tolist()) == sorted(other.pattern[0].tolist())
    listed = pad([np.ones((3, 1))], [both], undirected=False, loops=False)
    assert listed.pattern[0].tolist() == [list(pair) for pair in both]


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
    # Attributes of nodes stay as they are; tags and labels may be text.
    attributes = np.random.default_rng(0).standard_normal((6, 2))
    np.savez(tmp_path / "a.npz", **{**arrays, "node_tag": attributes})
    x = jns.data.load_graphs(tmp_path / "a.npz").graphs.x
    assert x.shape == (3, 3, 2) and (x[1] == attributes[2:5].astype(np.float32)).all()
    np.savez(tmp_path / "a.npz", **{**arrays, "node_tag": attributes[:, :1]})
    assert jns.data.load_graphs(tmp_path / "a.npz").graphs.x.shape == (3, 3, 1)
    text = {"node_tag": list("NCCONO"), "y": ["no", "yes", "no"]}
    np.savez(tmp_path / "t.npz", **{**arrays, **text})
    named = jns.data.load_graphs(tmp_path / "t.npz")
    assert named.labels == ("no", "yes")
    np.testing.assert_array_equal(named.graphs.x, data.graphs.x)


NO_GRAPHS = {
    name: [] for name in ("y", "n_nodes", "n_edges", "node_tag", "edge_i", "edge_j")
}


@pytest.mark.parametrize(
    "change, match",
    [
        ({"n_edges": [1, 1, 0]}, "n_edges must hold a whole number for each of the 3"),
        ({"n_nodes": [2.0, 3, 1]}, "n_nodes must hold a whole number .* got float64"),
        ({"n_nodes": [7, -2, 1]}, "n_nodes must hold a whole number"),
        (
            {"y": [0.5, 1.5, 0.5]},
            "y must hold whole numbers or text as labels, got 0.5",
        ),
        ({"y": [0, np.nan, 1]}, "y must hold whole numbers or text as labels, got nan"),
        ({"node_tag": [1, 2, np.nan, 1, 1, 1]}, "node_tag: row 2 is nan"),
        ({"node_tag": [1, 2, 0.5, 1, 1, 1]}, "node_tag must be whole numbers or text"),
        ({"node_tag": np.ones((6, 2, 2))}, r"node_tag must be tags \(nodes,\) or numb"),
        ({"fold1_test": [3]}, r"fold1_test must hold numbers of graphs from 0 to 2"),
        ({"fold1_train": [-1]}, "fold1_train must hold numbers of graphs from 0 to 2"),
        ({"fold1_test": [1, 2]}, "fold1_train and fold1_test must not share graphs"),
        (NO_GRAPHS, "y must hold at least one graph"),
    ],
)
def test_load_graphs_refuses(change, match, tmp_path):
    arrays = dict(
        y=[-1, 1, -1], n_nodes=[2, 3, 1], n_edges=[1, 2, 0],
        node_tag=[4, 0, 0, 7, 4, 7], edge_i=[0, 0, 1], edge_j=[1, 1, 2],
        fold1_train=[0, 1], fold1_test=[2],
    )  # fmt: skip
    np.savez(tmp_path / "bad.npz", **{**arrays, **change})
    with pytest.raises(ValueError, match=f"bad.npz: {match}"):
        jns.data.load_graphs(tmp_path / "bad.npz")
