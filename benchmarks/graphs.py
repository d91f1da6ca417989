"""Graph neural tangent kernels: accuracy on molecules, and time against edges.

    python benchmarks/graphs.py accuracy --sets MUTAG NCI1 --data FOLDER
    python benchmarks/graphs.py time

"accuracy" is 10-fold cross-validation with the folds of the archives
`graphs/MUTAG.npz` and `graphs/NCI1.npz`. It fits ridge regression on features of
`recipes.gntk`, and on its exact kernel where there are few graphs. Generalized
cross-validation on the training part of each fold chooses the penalty, and test graphs
have no part in any choice. "time" measures the features of random graphs of 1000 nodes
with 1000 to 100,000 edges, and of graphs with 8 edges a node and 100 to 10,000 nodes.
"""

import functools
import time
import warnings

import common
import jax
import maps
import numpy as np
import scipy.linalg

import jax_ntk_sketch as jns
from jax_ntk_sketch.interop import neural_tangents as jnt
from jax_ntk_sketch.linear_model import fit_ridge

EXACT = "exact"
METHODS = (
    "variance_reduced, regression", "variance_reduced",
    "ntk_random_features", "ntk_sketch",
)  # fmt: skip
# Penalties per graph, relative to the kernel's mean diagonal.
REGS = 10.0 ** np.arange(-7, 0.1, 0.5)


def network(args: common.Options) -> jns.stax.Serial:
    """Return the graph network."""
    return jns.recipes.gntk(args.blocks, args.mlp_depth)


def root(k: np.ndarray) -> np.ndarray:
    """Return features of a kernel matrix, (n, n)."""
    values, vectors = scipy.linalg.eigh((k + k.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0))


def accuracies(phi: np.ndarray, y: np.ndarray, folds: list) -> list[float]:
    """Return the accuracy of ridge regression on one-hot codes, for each fold."""
    if phi.shape[1] > len(phi):  # as many columns as rows give the same predictions
        wide = phi.astype(np.float64)
        phi = root(wide @ wide.T)
    phi = phi / np.sqrt(maps.mean_diagonal(phi))
    targets = maps.codes(y, y.max() + 1)
    out = []
    for train, test in folds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # values of reg dropped
            model = fit_ridge(phi[train], targets[train], reg=REGS.tolist()).best()
        scores = np.asarray(model.predict(phi[test]))
        out.append(float(np.mean(scores.argmax(axis=1) == y[test])))
    return out


def exact_kernel(
    args: common.Options, graphs: jns.graphs.Graphs, block: int = 47
) -> np.ndarray:
    """Return the NTK of all graphs, (n, n), computed in blocks."""
    kernel_fn = jnt.to_stax(network(args))[2]

    @jax.jit
    def run(a: jns.graphs.Graphs, b: jns.graphs.Graphs) -> jax.Array:
        return kernel_fn(a.x, b.x, "ntk", pattern=(a.pattern, b.pattern))

    rows = np.arange(len(graphs.x))
    parts = [graphs.take(rows[i : i + block]) for i in rows[::block]]
    return np.block([[np.asarray(run(a, b), float) for b in parts] for a in parts])


def features(
    args: common.Options, graphs: jns.graphs.Graphs, method: str, m: int, seed: int
) -> tuple[np.ndarray, float]:
    """Return features of all graphs, and their seconds without compilation."""
    start = time.perf_counter()
    if method == EXACT:
        return root(exact_kernel(args, graphs)), time.perf_counter() - start
    net, size = network(args), min(args.batch_size, len(graphs.x))
    fmap = maps.feature_map(net, method, m)
    params = fmap.init(jax.random.key(seed), graphs.x.shape[1:])

    def run(part: jns.graphs.Graphs) -> np.ndarray:
        options = {"pattern": part.pattern, "batch_size": size, "progress": False}
        return jns.transform(fmap, params, part.x, **options)

    run(graphs.take(np.arange(size)))  # compiles
    start = time.perf_counter()
    return run(graphs), time.perf_counter() - start


def accuracy(args: common.Options) -> None:
    """Measure accuracies over folds and seeds."""
    records = []
    for name in args.sets:
        path = common.archive(args.data, f"graphs/{name}.npz")
        data = jns.data.load_graphs(path)
        label = f"{name} ({len(data.y)})"
        runs = [(method, m) for method in args.methods for m in args.num_features]
        if len(data.y) <= args.num_exact:
            runs.insert(0, (EXACT, 0))
        for method, m in runs:
            scores, seconds = [], []
            for seed in range(1 if method == EXACT else args.seeds):
                phi, spent = features(args, data.graphs, method, m, seed)
                seconds.append(spent)
                scores.append(accuracies(phi, data.y, data.folds))
            by_fold = 100 * np.mean(scores, axis=0)
            record = {"set": label, "method": method, "num_features": m or None}
            record |= {"accuracy": by_fold.mean(), "deviation": by_fold.std()}
            records.append({**record, "seconds": float(np.median(seconds))})
            print(records[-1], flush=True)
    head = (
        "set (graphs) | method | features | accuracy, % | deviation of the folds | "
        "seconds"
    )
    row = (
        "{set} | `{method}` | {num_features:d} | {accuracy:.1f} | {deviation:.1f} | "
        "{seconds:.1f}"
    )
    common.report(args, "graphs-accuracy", common.table(records, head, row), records)


def random_graph(nodes: int, edges: int) -> jns.graphs.Graphs:
    """Return one graph of random edges, whose nodes have one of 16 tags."""
    rng = np.random.default_rng(0)
    tags = np.eye(16, dtype=np.float32)[rng.integers(0, 16, nodes)]
    pairs = rng.integers(0, nodes, (edges, 2))
    return jns.graphs.pad([tags], [pairs], undirected=False, loops=False)


def edges(args: common.Options) -> None:
    """Measure the time against edges, and fit a line to its relative errors."""
    fmap = maps.feature_map(network(args), "ntk_random_features", 1024)
    run = jax.jit(fmap.apply)
    fixed = [(1000, count) for count in (1000, 3000, 10_000, 30_000, 100_000)]
    growing = [(nodes, 8 * nodes) for nodes in (100, 300, 1000, 3000, 10_000)]
    records, lines = [], []
    for title, sizes in (("1000 nodes", fixed), ("8 edges a node", growing)):
        times = []
        for nodes, count in sizes:
            graph = random_graph(nodes, count)
            params = fmap.init(jax.random.key(0), graph.x.shape[1:])
            x, pattern = jax.device_put((graph.x, graph.pattern))
            call = functools.partial(run, params, x, pattern=pattern)
            times.append(common.seconds(call, 3)[1])
            record = {"nodes": nodes, "edges": count, "ms": 1e3 * times[-1]}
            records.append(record)
            print(record, flush=True)
        counts = [count for _, count in sizes]
        each, fixed_time = np.polyfit(counts, times, 1, w=1 / np.array(times))
        lines.append(
            f"- {title}: {1e3 * fixed_time:.0f} ms and {1e6 * each:.1f} µs an edge; "
            f"log-log slope {common.slope(counts, times):.2f}."
        )
    head = "nodes | edges | ms"
    row = "{nodes:,} | {edges:,} | {ms:.1f}"
    text = "\n".join([common.table(records, head, row), "", *lines])
    common.report(args, "graphs-time", text, records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"accuracy": accuracy, "time": edges},
        sets=(["MUTAG"], "archives"),
        methods=(list(METHODS), "feature maps", METHODS),
        num_features=([1024, 4096], "features"),
        seeds=(3, "draws of each map"),
        num_exact=(500, "the most graphs with an exact kernel"),
        blocks=(4, "blocks of the network"),
        mlp_depth=(1, "layers of a block"),
        batch_size=(32, "batch_size of transform"),
    )
