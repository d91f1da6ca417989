"""Sparse inputs of dimension 10^6: time, and the error of the sketch.

    python benchmarks/sparse.py time error

"time" uses 128 examples with 16 to 16,384 nonzeros each, 4096 columns of
the sketch and 1024 features. "error" uses 300 simulated documents of 100 words.
"""

import functools
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax
from jax_ntk_sketch.interop import neural_tangents as jnt

DIM, EXAMPLES, COLUMNS, FEATURES = 10**6, 128, 4096, 1024
METHODS = ("one_pass", "ntk_sketch", "variance_reduced")
NET = stax.serial(
    *[stax.Dense(512, W_std=2**0.5), stax.Relu()] * 2, stax.Dense(1, W_std=2**0.5)
)
NONZEROS = (16, 64, 256, 1024, 4096, 16384)
# With more nonzeros than this they take most of the time of a sketch.
MANY_NONZEROS = 256


def examples(nonzeros: int) -> scipy.sparse.csr_array:
    """Return rows `(EXAMPLES, DIM)` with this many nonzeros at uniform places."""
    rng = np.random.default_rng(0)
    places = [rng.choice(DIM, nonzeros, replace=False) for _ in range(EXAMPLES)]
    values = rng.standard_normal(EXAMPLES * nonzeros, np.float32)
    edges = np.arange(EXAMPLES + 1) * nonzeros
    entries = (values, np.concatenate(places), edges)
    return scipy.sparse.csr_array(entries, shape=(EXAMPLES, DIM))


def feature_map(method: str) -> jns.FeatureMap:
    """Return the feature map of a method."""
    fmap = jns.feature_map(NET, num_features=FEATURES, method=method)
    return jns.with_sparse_inputs(fmap, sketch_dim=COLUMNS)


def time(args: common.Options) -> None:
    """Measure the seconds of the sketch alone and of `apply`."""
    sketch = jns.sketch.HashedOSNAP(DIM, COLUMNS, feature_map("one_pass").sparsity)

    def sketch_alone(params: Any, x: jns.SparseRows) -> jax.Array:
        entries = (x.indices, x.rows, x.values)
        return sketch.apply_sparse(params, *entries, num_rows=EXAMPLES)

    key = jax.random.key(0)
    runs = {"sketch alone": (jax.jit(sketch_alone), sketch.init(key))}
    for method in METHODS:
        fmap = feature_map(method)
        runs[f"`{method}`"] = (jax.jit(fmap.apply), fmap.init(key, (DIM,)))
    records = []
    times: dict[str, list[float]] = {name: [] for name in runs}
    for nonzeros in NONZEROS:
        x = jax.device_put(jns.SparseRows.from_scipy(examples(nonzeros)))
        for name, (run, params) in runs.items():
            again = common.seconds(functools.partial(run, params, x), repeats=9)[1]
            times[name].append(again)
            record = {"method": name, "column": f"{nonzeros:,}", "value": 1e3 * again}
            records.append(record)
            print(record, flush=True)
    first = NONZEROS.index(MANY_NONZEROS)
    for name, values in times.items():
        for title, start in (("slope", 0), (f"slope from {MANY_NONZEROS}", first)):
            slope = common.slope(NONZEROS[start:], values[start:])
            records.append({"method": name, "column": title, "value": slope})
    text = common.wide_table(
        records, "ms by nonzeros of an example", "{method}", "{column}", "{value:.3g}"
    )
    common.report(args, "sparse-time", text, records)


def documents(n: int = 300, words: int = 100) -> scipy.sparse.csr_array:
    """Return counts of words: frequencies fall like 1 / rank, and topics are shared."""
    rng = np.random.default_rng(1)
    topics = [rng.permutation(DIM) for _ in range(10)]
    weight = 1 / np.arange(1, DIM + 1)
    weight /= weight.sum()
    rows, columns = [], []
    for row in range(n):
        drawn = rng.choice(DIM, words, p=weight)
        of_topic = rng.random(words) < 0.5
        columns.append(np.where(of_topic, topics[row % 10][drawn], drawn))
        rows.append(np.full(words, row))
    places = np.concatenate(rows), np.concatenate(columns)
    counts = np.ones(n * words, np.float32)
    return scipy.sparse.coo_array((counts, places), shape=(n, DIM)).tocsr()


def error(args: common.Options) -> None:
    """Measure the relative error of the NTK, of the sketch alone and with features."""
    x = documents()
    # The kernel needs inner products only: of the root of the Gram matrix, over DIM.
    values, vectors = np.linalg.eigh((x @ x.T).toarray().astype(np.float64))
    flat = vectors * np.sqrt(np.maximum(values, 0) * len(values) / DIM)
    kernel = jnt.to_stax(NET)[2](flat.astype(np.float32), None, "ntk")
    kernel = np.asarray(kernel, np.float64)
    rows = jax.device_put(jns.SparseRows.from_scipy(x))
    records = []
    alone = jns.feature_map(NET, num_features=1, method="exact")
    method = methods.VarianceReduced(objective="kernel")
    with_features = jns.feature_map(NET, num_features=4096, method=method)
    for name, base, sizes in (
        ("sketch alone", alone, (256, 1024, 4096, 16384)),
        ("4096 features", with_features, (256, 1024, 4096)),
    ):
        for columns in sizes:
            for exact_norms in (True, False):
                fmap = jns.with_sparse_inputs(
                    base, sketch_dim=columns, exact_norms=exact_norms
                )
                run = jax.jit(fmap.apply)
                errors = []
                for key in jax.random.split(jax.random.key(0), args.seeds):
                    phi = run(fmap.init(key, (DIM,)), rows)
                    gram = jnp.matmul(phi, phi.T, precision="highest")
                    errors.append(jns.validation.relative_error(kernel, gram))
                record = {"columns": columns, "features": name, "norms": exact_norms}
                record["error"], record["se"] = common.mean_and_error(errors)
                records.append(record)
                print(record, flush=True)
    head = "columns | features | exact norms | error"
    row = "{columns} | {features} | {norms} | {error:.4f} ± {se:.4f}"
    common.report(args, "sparse-error", common.table(records, head, row), records)


if __name__ == "__main__":
    jobs = {"time": time, "error": error}
    common.main(__doc__, jobs, seeds=(5, "draws of each map"))
