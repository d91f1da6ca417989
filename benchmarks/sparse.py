"""Sparse inputs: time and memory against nonzeros, and the error of the sketch.

`python benchmarks/sparse.py time memory error`: dimension 10^6, any device.
"""

import functools
import json
import pathlib
import subprocess
import sys
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax

DIM, EXAMPLES, COLUMNS, FEATURES = 10**6, 128, 4096, 1024
METHODS = ("one_pass", "ntk_sketch", "variance_reduced")
KERNEL = methods.VarianceReduced(objective="kernel")
NET = stax.serial(
    *[stax.Dense(512, W_std=2**0.5), stax.Relu()] * 2, stax.Dense(1, W_std=2**0.5)
)
PER_EXAMPLE = (16, 64, 256, 1024, 4096, 16384)
# From here on the nonzeros take most of the time of a sketch.
MANY = 256


def examples(per_example: int, n: int = EXAMPLES) -> scipy.sparse.csr_array:
    """Rows of as many nonzeros at uniform places, (n, DIM)."""
    rng = np.random.default_rng(0)
    places = [rng.choice(DIM, per_example, replace=False) for _ in range(n)]
    values = rng.standard_normal(n * per_example, np.float32)
    edges = np.arange(n + 1) * per_example
    return scipy.sparse.csr_array(
        (values, np.concatenate(places), edges), shape=(n, DIM)
    )


def feature_map(method: str, **options: Any) -> jns.SparseFeatureMap:
    fmap = jns.feature_map(NET, num_features=FEATURES, method=method)
    return jns.with_sparse_inputs(fmap, sketch_dim=COLUMNS, **options)


def slope(nonzeros: Any, values: Any) -> float:
    """Of a line through the logarithms."""
    return float(np.polyfit(np.log(nonzeros), np.log(values), 1)[0])


def time(args: Any) -> None:
    """Seconds of the sketch alone and of the whole of `apply`."""
    seconds: dict[str, list[float]] = {"sketch alone": []}
    maps = {method: feature_map(method) for method in METHODS}
    params = {k: f.init(jax.random.key(0), (DIM,)) for k, f in maps.items()}
    for per_example in PER_EXAMPLE:
        x = jax.device_put(jns.SparseRows.from_scipy(examples(per_example)))
        runs = {"sketch alone": jax.jit(maps["one_pass"]._sketched)}
        runs |= {k: jax.jit(f.apply) for k, f in maps.items()}
        for name, run in runs.items():
            given = params.get(name, params["one_pass"])
            took = common.seconds(functools.partial(run, given, x), repeats=9)[1]
            seconds.setdefault(name, []).append(took)
            print(per_example, name, f"{took * 1e3:.2f} ms", flush=True)
    nonzeros = np.array(PER_EXAMPLE) * EXAMPLES
    many = np.array(PER_EXAMPLE) >= MANY
    rows = []
    for name, values in seconds.items():
        took = np.array(values)
        rows.append(
            [
                name,
                *(f"{1e3 * t:.3g}" for t in took),
                f"{slope(nonzeros, took):.2f}",
                f"{slope(nonzeros[many], took[many]):.2f}",
                f"{slope(nonzeros[-2:], took[-2:]):.2f}",
            ]
        )
    head = ["ms", *map(str, PER_EXAMPLE), "slope", f"from {MANY}", "last two"]
    text = (
        f"d = {DIM:,}, {EXAMPLES} examples, {COLUMNS} columns, {FEATURES} features; "
        "nonzeros per example:\n\n" + common.markdown(head, rows)
    )
    common.write(args.output, "sparse-time", text, seconds)


_CHILD = """
import json, pathlib, sys
sys.path.insert(0, {folder!r})
import jax, sparse
import jax_ntk_sketch as jns

def peak(name="VmHWM"):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024

fmap = sparse.feature_map({method!r})
params = fmap.init(jax.random.key(0), (sparse.DIM,))
run = jax.jit(lambda p, x: fmap.apply(p, x, batch_size=16))
x = jns.SparseRows.from_scipy(sparse.examples({per_example}))
compiled = run.lower(params, x).compile()
held = sum(a.nbytes for a in (x.indices, x.rows, x.values))
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = peak("VmRSS")
jax.block_until_ready(compiled(params, jax.device_put(x)))
print(json.dumps(dict(input=held, more=peak() - before)))
"""


def memory(args: Any) -> None:
    """Peak of `apply` above what there was before it, each in a process of its own."""
    results = []
    folder = str(pathlib.Path(__file__).parent)
    for method in METHODS:
        for per_example in (16, 1024, 16384):
            code = _CHILD.format(folder=folder, method=method, per_example=per_example)
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            got = json.loads(done.stdout.splitlines()[-1])
            got |= dict(method=method, nonzeros=per_example * EXAMPLES)
            print(got, flush=True)
            results.append(got)
    fixed = 4 * EXAMPLES * COLUMNS
    rows = [
        [
            r["method"],
            f"{r['nonzeros']:,}",
            f"{r['input'] / 2**20:.1f}",
            f"{r['more'] / 2**20:.1f}",
            f"{(r['more'] - fixed) / r['nonzeros']:.0f}",
        ]
        for r in results
    ]
    head = ["method", "nonzeros", "input, MiB", "apply, MiB", "(apply - 4 n c) / nnz"]
    text = (
        f"4 n c = {fixed / 2**20:.1f} MiB; the same examples, dense: "
        f"{4 * EXAMPLES * DIM / 2**20:,.0f} MiB\n\n" + common.markdown(head, rows)
    )
    common.write(args.output, "sparse-memory", text, results)


def documents(n: int = 300, words: int = 100) -> scipy.sparse.csr_array:
    """Like counts of words: frequencies fall like 1 / rank, topics are shared."""
    rng = np.random.default_rng(1)
    log = -np.log(np.arange(1, DIM + 1))
    topics = [rng.permutation(DIM) for _ in range(10)]
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    rows, columns = [], []
    for row in range(n):
        drawn = rng.choice(DIM, words, p=weight)
        own = rng.random(words) < 0.5
        columns.append(np.where(own, topics[row % 10][drawn], drawn))
        rows.append(np.full(words, row))
    places = np.concatenate(rows), np.concatenate(columns)
    counts = np.ones(n * words, np.float32)
    return scipy.sparse.coo_array((counts, places), shape=(n, DIM)).tocsr()


def error(args: Any) -> None:
    """Relative error of the NTK, of the sketch alone and with features."""
    from jax_ntk_sketch.interop import neural_tangents as jnt

    x = documents()
    n = x.shape[0]
    # A fully connected network's kernel needs inner products only, over d.
    values, vectors = np.linalg.eigh((x @ x.T).toarray().astype(np.float64))
    flat = vectors * np.sqrt(np.maximum(values, 0) * n / DIM)
    kernel = np.asarray(
        jnt.to_stax(NET)[2](flat.astype(np.float32), None, "ntk"), np.float64
    )
    rows_on_device = jax.device_put(jns.SparseRows.from_scipy(x))
    off = ~np.eye(n, dtype=bool)
    results, rows = [], []
    for columns in (256, 1024, 4096, 16384):
        for method, features in ((methods.Exact(), 1), (KERNEL, 4096)):
            if features > 1 and columns > 4096:
                continue
            for exact_norms in (True, False):
                base = jns.feature_map(NET, num_features=features, method=method)
                fmap = jns.with_sparse_inputs(
                    base, sketch_dim=columns, exact_norms=exact_norms
                )
                run = jax.jit(fmap.apply)
                every, others, means = [], [], 0.0
                for key in jax.random.split(jax.random.key(0), args.seeds):
                    phi = run(fmap.init(key, (DIM,)), rows_on_device)
                    gram = jnp.matmul(phi, phi.T, precision="highest")
                    wrong = np.asarray(gram, np.float64) - kernel
                    every.append(np.linalg.norm(wrong) / np.linalg.norm(kernel))
                    others.append(
                        np.linalg.norm(wrong[off]) / np.linalg.norm(kernel[off])
                    )
                    means = means + wrong / args.seeds
                bias = np.linalg.norm(means) / np.linalg.norm(kernel)
                mean, se = np.mean(every), np.std(every, ddof=1) / len(every) ** 0.5
                results.append(
                    dict(
                        sketch_dim=columns,
                        method=repr(method),
                        exact_norms=exact_norms,
                        error=mean,
                        standard_error=se,
                        off_diagonal=np.mean(others),
                        of_the_mean=bias,
                    )
                )
                name = "sketch alone" if features == 1 else f"{features} features"
                rows.append(
                    [
                        columns,
                        name,
                        exact_norms,
                        f"{mean:.4f} ± {se:.4f}",
                        f"{np.mean(others):.4f}",
                        f"{bias:.4f}",
                    ]
                )
                print(rows[-1], flush=True)
    head = ["columns", "", "exact norms", "error", "off diagonal", "of the mean"]
    text = f"{n} documents of 100 words, d = {DIM:,}, {args.seeds} seeds\n\n"
    common.write(
        args.output, "sparse-error", text + common.markdown(head, rows), results
    )


if __name__ == "__main__":
    options = common.parser(__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=5)
    common.run_jobs(options, {"time": time, "memory": memory, "error": error})
