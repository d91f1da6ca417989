"""Graph neural tangent kernels: accuracy on molecules, and time against edges.

    python benchmarks/graphs.py accuracy --sets MUTAG NCI1 --data FOLDER
    python benchmarks/graphs.py time

`accuracy`: 10-fold cross-validation with the folds of the archives (`graphs/MUTAG.npz`,
`graphs/NCI1.npz`): ridge on features of `recipes.gntk`, and with its exact kernel where
the graphs are few. The penalty is chosen on the training part of each fold, by
generalised cross-validation; no test graph has a part in any choice, and there is no
other choice. `time`: features of random graphs of 1,000 nodes with 1,000 to 100,000
edges, and of graphs of degree 8 with 100 to 10,000 nodes.
"""

import time
import warnings
from typing import Any

import common
import jax
import numpy as np
import scipy.linalg
import scipy.sparse

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods
from jax_ntk_sketch.linear_model import fit_ridge

METHODS = {
    "ntk_random_features": methods.NTKRandomFeatures(),
    "variance_reduced": methods.VarianceReduced(),
    "variance_reduced, kernel": methods.VarianceReduced(objective="kernel"),
    "ntk_sketch": methods.NTKSketch(),
}
# Penalties per graph, over the kernel's mean diagonal.
REGS = 10.0 ** np.arange(-7, 0.1, 0.5)


def load(args: Any, name: str) -> jns.data.GraphDataset:
    return jns.data.load_graphs(common.archive(args.data, f"graphs/{name}.npz"))


def network(args: Any) -> jns.stax.Serial:
    return jns.recipes.gntk(args.blocks, args.mlp_depth)


def root(k: np.ndarray) -> np.ndarray:
    """Features of a kernel matrix, (n, n)."""
    values, vectors = scipy.linalg.eigh((k + k.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0))


def scaled(phi: np.ndarray) -> np.ndarray:
    """Rows over the root of their mean square: penalties are then fractions.

    As many columns as rows where there are more, which changes no prediction.
    """
    if phi.shape[1] > len(phi):
        wide = phi.astype(np.float64)
        phi = root(wide @ wide.T)
    return phi / np.sqrt(np.mean(np.sum(np.square(phi, dtype=np.float64), axis=1)))


def accuracies(
    phi: np.ndarray, y: np.ndarray, folds: Any, num_regs: list[int]
) -> list[float]:
    """Of classes by ridge on their indicators, one for each fold."""
    out = []
    targets = np.eye(y.max() + 1)[y] - 1 / (y.max() + 1)
    for train, test in folds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # values of reg dropped
            model = fit_ridge(phi[train], targets[train], reg=REGS.tolist()).best()
        guess = np.argmax(np.asarray(model.predict(phi[test])), axis=1)
        out.append(float(np.mean(guess == y[test])))
        num_regs.append(int(np.argmin(np.abs(np.log(REGS / float(model.reg))))))
    return out


def exact_kernel(args: Any, data: jns.data.GraphDataset) -> np.ndarray:
    """The network's NTK of all graphs, (n, n): all pairs of nodes at once."""
    pattern, mask = data.graphs.pattern, data.graphs.mask
    x = data.graphs.x[mask].astype(np.float64)
    # Nodes of all graphs one after the other.
    number = np.cumsum(mask.reshape(-1)).reshape(mask.shape) - 1
    graph, edge = np.nonzero(pattern[..., 0] >= 0)
    ends = number[graph[:, None], pattern[graph, edge]]
    ones = np.ones(len(ends))
    into = scipy.sparse.csr_array((ones, (ends[:, 1], ends[:, 0])), [len(x)] * 2)
    whole = np.nonzero(mask)[0], np.arange(len(x))
    pool = scipy.sparse.csr_array((np.ones(len(x)), whole), (len(mask), len(x)))

    def moved(m: Any, k: np.ndarray) -> np.ndarray:
        return (m @ (m @ k).T).T

    nngp = x @ x.T / x.shape[1]
    ntk = np.zeros_like(nngp)
    for _ in range(args.blocks):
        nngp, ntk = moved(into, nngp), moved(into, ntk)
        for _ in range(args.mlp_depth):
            ntk = 2 * (ntk + nngp)
            norms = np.sqrt(2 * np.diag(nngp))
            product = np.outer(norms, norms)
            cos = np.clip(2 * nngp / product, -1, 1)
            step = 1 - np.arccos(cos) / np.pi
            ntk *= step / 2
            nngp = product * (np.sqrt(1 - cos**2) / np.pi + cos * step) / 2
    return moved(pool, ntk + nngp)


def features(
    args: Any, data: jns.data.GraphDataset, method: str, num: int, seed: int
) -> tuple[np.ndarray, float]:
    """Features of all graphs, and seconds for them without compilation."""
    graphs = data.graphs
    fmap = jns.feature_map(network(args), num_features=num, method=METHODS[method])
    params = fmap.init(jax.random.key(seed), graphs.x.shape[1:])
    size = min(args.batch, len(data.y))

    def run(some: jns.graphs.Graphs) -> np.ndarray:
        return jns.transform(
            fmap, params, some.x, pattern=some.pattern, batch_size=size, progress=False
        )

    run(graphs.take(np.arange(size)))  # compiles
    start = time.perf_counter()
    phi = run(graphs)
    return phi, time.perf_counter() - start


def accuracy(args: Any) -> None:
    rows, results = [], []
    for name in args.sets:
        data = load(args, name)
        few = len(data.y) <= args.num_exact
        jobs: list[tuple[str, int]] = [
            (method, num) for method in args.methods for num in args.num_features
        ]
        for method, num in ([("exact", 0)] if few else []) + jobs:
            scores, seconds, chosen = [], [], []
            for seed in range(1 if method == "exact" else args.num_seeds):
                start = time.perf_counter()
                if method == "exact":
                    phi = root(exact_kernel(args, data))
                    took = time.perf_counter() - start
                else:
                    phi, took = features(args, data, method, num, seed)
                seconds.append(took)
                scores.append(accuracies(scaled(phi), data.y, data.folds, chosen))
            by_fold = np.mean(scores, axis=0)
            row = dict(
                set=name,
                method=method,
                features=num or None,
                accuracy=float(by_fold.mean()),
                std_folds=float(by_fold.std()),
                std_seeds=float(np.mean(scores, axis=1).std()),
                seconds=float(np.median(seconds)),
                regs=[float(REGS[i]) for i in chosen],
            )
            results.append(row)
            rows.append(
                (
                    name,
                    method,
                    num or "",
                    f"{100 * row['accuracy']:.1f} ± {100 * row['std_folds']:.1f}",
                    f"{100 * row['std_seeds']:.1f}",
                    f"{row['seconds']:.2f}",
                )
            )
            print(rows[-1], flush=True)
    head = (
        "set",
        "method",
        "features",
        "test accuracy, % (± deviation of 10 folds)",
        f"deviation of {args.num_seeds} seeds",
        "seconds, all graphs",
    )
    title = f"GNTK of {args.blocks} blocks, {args.mlp_depth} layers each\n\n"
    text = title + common.markdown(head, rows)
    common.write(args.output, "graphs-accuracy", text, results)


def random_graph(nodes: int, edges: int) -> jns.graphs.Graphs:
    """One graph of edges between nodes drawn at random, with 16 tags."""
    rng = np.random.default_rng(0)
    tags = np.eye(16, dtype=np.float32)[rng.integers(0, 16, nodes)]
    pairs = rng.integers(0, nodes, (edges, 2))
    return jns.graphs.pad([tags], [pairs], undirected=False, loops=False)


def line(x: Any, y: Any) -> tuple[float, float, float]:
    """The slope of the logarithms; and y = a + b x, fitted to relative errors."""
    y = np.asarray(y)
    slope = np.polyfit(np.log(x), np.log(y), 1)[0]
    each, at = np.polyfit(x, y, 1, w=1 / y)
    return float(slope), float(at), float(each)


def edges(args: Any) -> None:
    fixed = [(1000, count) for count in (1000, 3000, 10_000, 30_000, 100_000)]
    degree = [(nodes, 8 * nodes) for nodes in (100, 300, 1000, 3000, 10_000)]
    rows, results = [], []
    for title, sizes in (("1,000 nodes", fixed), ("degree 8", degree)):
        whole, alone = [], []
        for nodes, count in sizes:
            graph = random_graph(nodes, count)
            seconds = []
            for net in (
                network(args),
                # What depends on the edges, at the width that it has in the network.
                jns.stax.serial(
                    jns.stax.Aggregate(implementation="SPARSE"),
                    jns.stax.GlobalSumPool(),
                ),
            ):
                only = len(net.layers) == 2
                x = graph.x if not only else np.ones((1, nodes, 512), np.float32)
                fmap = jns.feature_map(
                    net,
                    num_features=1024,
                    get="nngp" if only else "ntk",
                    method="ntk_random_features",
                )
                params = fmap.init(jax.random.key(0), x.shape[1:])
                run = jax.jit(fmap.apply)
                given = jax.device_put((x, graph.pattern))
                seconds.append(
                    common.seconds(
                        lambda run=run, params=params, given=given: run(
                            params, given[0], pattern=given[1]
                        ),
                        3,
                    )[1]
                )
            whole.append(seconds[0])
            alone.append(seconds[1])
            rows.append((title, nodes, count, *(f"{1e3 * s:.1f}" for s in seconds)))
            results.append(dict(nodes=nodes, edges=count, seconds=seconds))
            print(rows[-1], flush=True)
        counts = [count for _, count in sizes]
        lines = [line(counts, values) for values in (whole, alone)]
        results[-1]["lines"] = lines
        rows.append((title, "slope", "", *(f"{fit[0]:.2f}" for fit in lines)))
        cells = [f"{1e3 * at:.1f} + {1e6 * each:.2f}e-3 E" for _, at, each in lines]
        rows.append((title, "line", "", *cells))
    head = ("graphs", "nodes", "edges", "GNTK features, ms", "one Aggregate of 512, ms")
    text = common.markdown(head, rows)
    common.write(args.output, "graphs-time", text, results)


if __name__ == "__main__":
    options = common.parser(__doc__.splitlines()[0])
    options.add_argument("--sets", nargs="+", default=["MUTAG"])
    options.add_argument("--methods", nargs="+", default=list(METHODS))
    options.add_argument("--num-features", nargs="+", type=int, default=[1024, 4096])
    options.add_argument("--num-seeds", type=int, default=3)
    options.add_argument("--num-exact", type=int, default=500)
    options.add_argument("--blocks", type=int, default=4)
    options.add_argument("--mlp-depth", type=int, default=1)
    options.add_argument("--batch", type=int, default=32)
    common.run_jobs(options, {"accuracy": accuracy, "time": edges})
