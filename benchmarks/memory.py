"""The memory of `fit` on images, volumes and graphs: planned, analysed and measured.

    python benchmarks/memory.py --max-gib 2

"Planned" is what the plan states, and "analysed" what XLA states of the functions that
it compiled, both for all examples. They are those of a device that is not a CPU, on
which `max_bytes` alone bounds the examples in work. "Measured" is the growth of the
resident memory of a process of its own, in a second run on fewer examples. Compiling is
not counted, and the data and the parameters are there before. Examples are made up.
"""

import contextlib
import ctypes
import dataclasses
import functools
import gc
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import common
import jax
import jax.numpy as jnp
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import _plan, methods, recipes, stax
from jax_ntk_sketch.features._transform import work_plan
from jax_ntk_sketch.linear_model import fit, ridge_init, ridge_update
from jax_ntk_sketch.linear_model._fitted import batch_features

TARGETS, NODES, EDGES = 10, 40, 100


@dataclasses.dataclass(frozen=True)
class Case:
    """Examples and a feature map.

    Attributes:
      net, method, num_features: those of the map.
      shape: the shape of an example.
      count: the number of examples.
      measured: the number of examples that memory is measured on, in one batch.
    """

    net: stax.Layer
    method: methods.Method
    num_features: int
    shape: tuple[int, ...]
    count: int
    measured: int

    @property
    def fmap(self) -> jns.FeatureMap:
        """The feature map."""
        return jns.feature_map(
            self.net, num_features=self.num_features, method=self.method
        )

    def extras(self, count: int) -> dict[str, np.ndarray]:
        """Return the edges of graphs."""
        if len(self.shape) != 2:
            return {}
        edges = np.random.default_rng(0).integers(0, NODES, (count, EDGES, 2))
        return {"pattern": edges.astype(np.int32)}


CONV = stax.Conv(1, (3, 3, 3), padding="SAME", W_std=2**0.5)
VOLUMES = stax.serial(
    *[CONV, stax.Relu(), stax.AvgPool((2, 2, 2), strides=(2, 2, 2))] * 2,
    *[CONV, stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1)],
)
SKETCH = methods.NTKSketch(degree=2, derivative_degree=1)
REDUCED, RANDOM = methods.VarianceReduced(), methods.NTKRandomFeatures()
CASES = {
    "CIFAR-10, cntk(3)": Case(recipes.cntk(3), SKETCH, 8192, (32, 32, 3), 50_000, 32),
    "images of 128 x 128, cntk(2)": Case(
        recipes.cntk(2), RANDOM, 1024, (128, 128, 3), 10_000, 8
    ),
    "deep network, myrtle(10)": Case(
        recipes.myrtle(10), REDUCED, 2048, (32, 32, 3), 50_000, 16
    ),
    "volumes of 24 x 24 x 24": Case(VOLUMES, RANDOM, 512, (24, 24, 24, 1), 10_000, 8),
    "graphs of 40 nodes, gntk(4)": Case(
        recipes.gntk(4), SKETCH, 4096, (NODES, 8), 20_000, 128
    ),
    "tiny": Case(recipes.cntk(1), RANDOM, 32, (6, 6, 2), 50, 8),
}

PLANNED = (
    "examples | columns | parameters | data | a batch at once | in work | planned | "
    "analysed | sums | their update | solution"
)
PLANNED_ROW = (
    "{name}: {count:,} | {columns} | {parameters:.3f} | {data:.2f} | {at_once:.1f} | "
    "{rows} of {batch} | {planned:.2f} | {analysed:.2f} | {sums:.2f} | {update:.2f} | "
    "{solution:.2f}"
)
MEASURED = "examples | in work | features planned | measured | fit planned | measured"
MEASURED_ROW = (
    "{name}: {measured} | {measured_rows} | {measured_planned:.2f} | {transform:.2f} | "
    "{fit_planned:.2f} | {fit:.2f}"
)


def gib(count: float) -> float:
    """Return bytes in GiB."""
    return count / 2**30


def analyse(case: Case, max_bytes: int) -> common.Record:
    """Return the bytes that are planned, and those that XLA states."""
    fmap, m = case.fmap, case.num_features
    one = jax.ShapeDtypeStruct((1, *case.shape), jnp.float32)
    plan, _ = work_plan(fmap, one, case.extras(1))
    # As `fit` chooses it.
    batch = min(1024, plan.limit_batch_size(max_bytes))
    plan = plan.with_sizes(batch, batch)
    rows = plan.rows_in_work(max_bytes)
    params = jax.eval_shape(lambda: fmap.init(jax.random.key(0), case.shape))
    x = jax.ShapeDtypeStruct((batch, *case.shape), jnp.float32)
    weight = jax.ShapeDtypeStruct((batch,), jnp.float32)
    features = jax.jit(functools.partial(batch_features, fmap, max_bytes))
    used = memory(features, params, (x, case.extras(batch), weight))
    state = jax.eval_shape(lambda: ridge_init(m, TARGETS))
    phi = jax.ShapeDtypeStruct((batch, m), jnp.float32)
    y = jax.ShapeDtypeStruct((batch, TARGETS), jnp.float32)
    update = memory(jax.jit(ridge_update, donate_argnums=0), state, phi, y)
    return {
        "count": case.count,
        "columns": m,
        "parameters": gib(plan.param_bytes),
        "data": gib(4 * case.count * math.prod(case.shape)),
        "at_once": gib(plan.peak_bytes),
        "rows": rows,
        "batch": batch,
        "planned": gib(plan.with_sizes(batch, rows).work_bytes()),
        "analysed": gib(used.temp_size_in_bytes + used.output_size_in_bytes),
        "sums": gib(8 * (m + TARGETS + 1) ** 2),
        "update": gib(update.temp_size_in_bytes),
        "solution": gib(24 * m**2),
    }


def memory(function: Any, *shapes: Any) -> Any:
    """Return what XLA states of a function that it compiles for arrays like these."""
    return function.lower(*shapes).compile().memory_analysis()


def measure(case: Case, max_bytes: int) -> common.Record:
    """Return the bytes that `transform` and `fit` add to those of this process."""
    fmap, n = case.fmap, case.measured
    x = np.random.default_rng(0).normal(size=(n, *case.shape)).astype(np.float32)
    y = np.zeros((n, TARGETS), np.float32)
    y[:, 0] = np.arange(n) % 2
    params = jax.block_until_ready(fmap.init(jax.random.key(0), case.shape))
    options = {"batch_size": n, "max_bytes": max_bytes, **case.extras(n)}
    plan, _ = work_plan(fmap, x, case.extras(n))
    plan = plan.with_sizes(n, n)
    rows = plan.rows_in_work(max_bytes)
    work = plan.with_sizes(n, rows).work_bytes()
    square = (case.num_features + TARGETS + 1) ** 2
    solution = 24 * case.num_features**2
    return {
        "measured": n,
        "measured_rows": rows,
        "measured_planned": gib(work),
        "transform": grown(lambda: jns.transform(fmap, params, x, **options)),
        "fit_planned": gib(8 * square + max(work + 16 * square, solution)),
        "fit": grown(lambda: fit(fmap, params, x, y, reg=1e-2, **options)),
    }


def grown(run: Callable[[], Any]) -> float:
    """Return by how many GiB a second run raises the memory of this process."""
    run()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    run()
    return gib(status("VmHWM") - before)


def status(name: str) -> int:
    """Return a number of bytes that Linux states of this process."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return 1024 * int(line.split()[1])


def as_on_a_device() -> contextlib.AbstractContextManager[object]:
    """Take away the caches of the CPU, which bound the examples in work there."""
    return mock.patch.object(_plan, "_on_cpu", lambda: False)


def one(args: common.Options) -> None:
    """Measure the case that is named in this process, and print the record."""
    if args.case:
        with as_on_a_device():
            print(json.dumps(measure(CASES[args.case], int(args.max_gib * 2**30))))


def fits(args: common.Options) -> None:
    """Write the tables."""
    max_bytes = int(args.max_gib * 2**30)
    kept = common.Kept(args.output, "memory")
    for name in args.cases:

        def run(name: str = name) -> common.Record:
            with as_on_a_device():
                found = analyse(CASES[name], max_bytes)
            options = ["one", "--case", name, "--max-gib", str(args.max_gib)]
            child = [sys.executable, __file__, *options]
            # The same package, also where it is not installed.
            env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(
                child, stdout=subprocess.PIPE, check=True, text=True, env=env
            )
            return found | json.loads(done.stdout)

        kept.get(run, name=name, max_gib=args.max_gib)
    records = kept.select(max_gib=args.max_gib)
    text = (
        f"GiB, with `max_bytes` of {args.max_gib:g} GiB:\n\n"
        f"{common.table(records, PLANNED, PLANNED_ROW)}\n\n"
        f"{common.table(records, MEASURED, MEASURED_ROW)}"
    )
    common.report(args, "memory-fits", text, records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"fits": fits, "one": one},
        cases=([name for name in CASES if name != "tiny"], "names of cases"),
        case=("", "the case of the job one, which fits runs in another process"),
        max_gib=(2.0, "GiB that examples in work may take"),
    )
