"""No regret: what the library chooses, beside every map of a frozen version.

    python benchmarks/default.py --data FOLDER
    python benchmarks/default.py data --sets pol digits --columns 256 1024 --depths 1

`default_sets.py` says what sets there are, and what networks of --depths hidden layers.
Of each set at most --rows random rows are fitted, and at most 1000 others are held out.
Of color images there are --images for each.

"oblivious" compares `feature_map(net, num_features=m)` with maps that learn nothing, by
the centered error of the kernel of at most 1000 fitting rows.

"data" compares `choose(key, net, m, sample=x, y=y)` with all maps, learned from the
fitting rows. The loss is the distance of the held-out predictions of ridge regression
from those of the exact kernel, over their size. The penalty is the one of the exact
machine's smallest leave-one-out error, for all maps. Only cells with at most half as
many columns as fitting rows count.

"times" measures the seconds of `choose`, with compilation, against the number of rows,
and of the first and the second plan of "auto".

The opponents are those of the commit 6ecfbb4, whose package the script extracts into
the folder of the results. A ratio is the loss of the library's choice over that of
the best opponent; its error is that of the mean over seeds, paired. Opponents that lose
more than --within times the least loss at the first seed are not drawn again. Cells
whose ratio is above 1.05 by less than two errors are run with --most-seeds. A stopped
run goes on where it was.
"""

import functools
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from typing import Any

import common
import default_sets
import jax
import maps
import numpy as np
from default_opponents import network

import jax_ntk_sketch as jns
from jax_ntk_sketch.cli.regression import ridge_weights

COMMIT = "6ecfbb4"
ROOT = pathlib.Path(__file__).parent.parent
OBLIVIOUS = (
    "VarianceReduced('regression')", "VarianceReduced('kernel')", "OnePass(2)",
    "OnePass(4)", "OnePass(8)", "NTKSketch(2, 1)", "NTKSketch(4, 3)", "NTKSketch(8, 7)",
    "NTKRandomFeatures()",
    "NTKRandomFeatures('gaussian', antithetic=False, product='tensor_srht')",
)  # fmt: skip
LEARNED = (
    "Nystrom()", "Nystrom(oversample=1)", "Nystrom('uniform', oversample=1)",
    "compress VarianceReduced('kernel')",
)  # fmt: skip
OURS = {"oblivious": "auto", "data": "choose"}
# Distances below this part of the predictions are equal.
EQUAL = 0.01
# The ratio to the best opponent that is wanted.
BAR = 1.05


def rows(args: common.Options, name: str) -> default_sets.Rows:
    """Return the rows of a set."""
    return default_sets.rows(args.data, name, args.rows, args.images, args.side)


def machine(args: common.Options, name: str, depth: int) -> default_sets.Machine:
    """Return the exact kernel machine of a set."""
    sizes = args.rows, args.images, args.side
    return default_sets.machine(args.data, args.output, name, depth, *sizes)


class Opponents:
    """The process of the frozen version, which is started when it is first needed."""

    def __init__(self, folder: str) -> None:
        self.folder = pathlib.Path(folder).resolve() / COMMIT
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        if not self.folder.is_dir():
            command = ["git", "-C", ROOT, "archive", COMMIT, "jax_ntk_sketch"]
            done = subprocess.run(command, capture_output=True)
            if done.returncode:
                raise SystemExit(
                    f"the opponents need the commit {COMMIT} of this repository, and "
                    f"git said: {done.stderr.decode().strip()}; fetch its whole history"
                )
            with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
                archive.extractall(self.folder, filter="data")
        env = {**os.environ, "PYTHONPATH": str(self.folder)}
        command = [sys.executable, str(ROOT / "benchmarks/default_opponents.py")]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, env=env, text=True, cwd=self.folder
        )

    def features(self, data: default_sets.Rows, **request: Any) -> np.ndarray:
        """Return the features of all rows.

        Raises:
          ValueError: the map does not support the network or the number of columns.
        """
        self.process = self.process or self.start()
        assert self.process.stdin is not None and self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            places = {"rows": f"{folder}/rows.npz", "out": f"{folder}/phi.npy"}
            np.savez(places["rows"], x=data.x, **data.extras)
            request |= places | {"num_fitting": data.num_fitting, "kind": data.kind}
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())
            if answer["error"]:
                raise ValueError(answer["error"])
            return np.load(places["out"])


@functools.lru_cache(1)
def net_of_cell(kind: str, depth: int, columns: int) -> Any:
    """Return the network, and forget the compiled functions of other cells."""
    jax.clear_caches()
    return network(kind, depth)


def own_features(
    use: str, data: default_sets.Rows, depth: int, columns: int, seed: int
) -> tuple[np.ndarray, str]:
    """Return the features of all rows by what this version chooses, and its method."""
    net = net_of_cell(data.kind, depth, columns)
    (x, extras), shape = data.fitting(), data.x.shape[1:]
    if use == "oblivious":
        fmap = jns.feature_map(net, num_features=columns)
    else:
        key, y = jax.random.key(seed), data.y[: data.num_fitting]
        options = {"sample": x, "y": y, "progress": False, **extras}
        fmap = jns.choose(key, net, columns, **options)
    params = fmap.init(jax.random.key(1000 + seed), shape, sample=x, **extras)
    phi = jns.transform(fmap, params, data.x, progress=False, **data.extras)
    return phi, fmap.plan(shape).method


def measure(
    args: common.Options, use: str, opponents: Opponents, **cell: Any
) -> common.Record:
    """Return the "loss" of a map, and for ours its "method"."""
    data = rows(args, cell["set"])
    exact = machine(args, cell["set"], cell["depth"])
    options = {name: cell[name] for name in ("depth", "columns", "seed")}
    found: common.Record = {}
    if cell["map"] == OURS[use]:
        phi, found["method"] = own_features(use, data, **options)
    else:
        phi = opponents.features(data, map=cell["map"], **options)
    if use == "oblivious":
        return {
            "loss": maps.gram_error(exact.kernel, phi[: len(exact.kernel)])[1],
            **found,
        }
    phi, n = phi.astype(np.float64), data.num_fitting
    gram, right = phi[:n].T @ phi[:n], phi[:n].T @ data.y[:n]
    guess = phi[n:] @ ridge_weights(gram, exact.penalty / len(gram), right)
    distance = np.linalg.norm(guess - exact.predictions)
    return {"loss": float(distance / np.linalg.norm(exact.predictions)), **found}


def measure_cell(
    args: common.Options,
    use: str,
    kept: common.Kept,
    opponents: Opponents,
    seeds: int,
    **cell: Any,
) -> None:
    """Measure all maps of a cell, which has the "set", "depth" and "columns"."""
    known = (LEARNED if use == "data" else ()) + OBLIVIOUS
    least = np.inf
    for name in [OURS[use], *(name for name in known if name in args.opponents)]:
        for seed in range(seeds):
            labels = cell | {"seed": seed, "map": name}
            run = functools.partial(measure, args, use, opponents, **labels)
            found = kept.get(run, **labels)
            if found is None:
                break
            if name != OURS[use]:
                least = min(least, found["loss"])
                if found["loss"] > args.within * least:
                    break


def compare(args: common.Options, use: str) -> None:
    """Measure all cells of one use, and report the ratios."""
    kept = common.Kept(args.output, f"default-{use}")
    opponents = Opponents(args.output)
    for name in args.sets:
        data = rows(args, name)
        depths = args.depths if data.kind != "cntk" else [max(args.depths)]
        for depth in depths:
            for columns in data.columns(use, args.columns):
                cell = {"set": name, "depth": depth, "columns": columns}
                measure_cell(args, use, kept, opponents, args.seeds, **cell)
    for r in ratios(kept, OURS[use]):
        if r["ratio"] > BAR and not r["counts"] and r["set"] in args.sets:
            cell = {name: r[name] for name in ("set", "depth", "columns")}
            measure_cell(args, use, kept, opponents, args.most_seeds, **cell)
    records = ratios(kept, OURS[use])
    common.report(args, f"default-{use}", table(records), records)


def ratios(kept: common.Kept, ours: str) -> list[common.Record]:
    """Return for each cell the loss over that of the best opponent, and its error."""
    cells = dict.fromkeys(
        (r["set"], r["depth"], r["columns"]) for r in kept.results.values()
    )
    out = []
    for name, depth, columns in cells:
        losses: dict[str, dict[int, float]] = {}
        found = kept.select(set=name, depth=depth, columns=columns)
        for r in found:
            losses.setdefault(r["map"], {})[r["seed"]] = r["loss"]
        own = losses.pop(ours, {})
        means = {m: float(np.mean([*v.values()])) for m, v in losses.items()}
        if not own or not means:
            continue
        best = min(means, key=lambda m: means[m])
        seeds = sorted(set(own) & set(losses[best]))
        pairs = np.array([(own[s], losses[best][s]) for s in seeds])
        loss, other = pairs.mean(axis=0)
        off = pairs[:, 0] - pairs[:, 1]
        _, error = common.mean_and_error(off)
        equal = ours == "choose" and max(loss, other) < EQUAL
        chosen = {r["method"] for r in found if r["map"] == ours}
        out.append(
            {
                "set": name, "depth": depth, "columns": columns, "loss": loss,
                "best": best, "best_loss": other, "ratio": loss / other,
                "error": error / other, "seeds": len(seeds),
                "spread": np.std([*own.values()]) / len(own) ** 0.5,
                "counts": bool(not equal and not abs(off.mean()) <= 2 * error),
                "chosen": "; ".join(sorted(chosen)),
            }
        )  # fmt: skip
    return out


def rises(records: list[common.Record]) -> list[str]:
    """Return where more columns lose more, by more than two standard errors."""
    out = []
    for r, other in itertools.pairwise(
        sorted(records, key=lambda r: (r["set"], r["depth"], r["columns"]))
    ):
        same = (r["set"], r["depth"]) == (other["set"], other["depth"])
        error = 2 * np.hypot(r["spread"], other["spread"])
        if same and other["loss"] > r["loss"] + error and other["loss"] > EQUAL:
            places = f"from {r['columns']} to {other['columns']} columns"
            out.append(f"{r['set']}, depth {r['depth']}, {places}")
    return out


def table(records: list[common.Record]) -> str:
    """Return the summary and the table of the cells."""
    counted = [r["ratio"] if r["counts"] else min(r["ratio"], 1.0) for r in records]
    values, up = np.array(counted), rises(records)
    summary = (
        f"{len(values)} cells: {np.mean(values <= BAR):.0%} within {BAR} of the best "
        f"opponent, the largest ratio {values.max(initial=0):.2f}. The loss rises: "
        f"{'; '.join(up) or 'nowhere'}."
    )
    head = "set | depth | columns | loss | best opponent | its loss | ratio | chosen"
    row = (
        "{set} | {depth} | {columns} | {loss:.4f} | {best} | {best_loss:.4f} | "
        "{shown} | {chosen}"
    )
    for r in records:
        r["shown"] = f"{r['ratio']:.2f}"
        if r["seeds"] > 1:
            r["shown"] += f" ± {r['error']:.2f}"
    return summary + "\n\n" + common.table(records, head, row)


def times(args: common.Options) -> None:
    """Measure the seconds of `choose` against rows, and of building "auto"."""
    records, rng = [], np.random.default_rng(0)
    for n in args.num_rows:
        x = rng.standard_normal((n, 32), np.float32)
        options = {"sample": x, "y": np.sin(x[:, 0]) * x[:, 1], "progress": False}
        net, m = network("relu", 2), min(1024, n // 4)
        jax.clear_caches()
        key = jax.random.key(0)
        spent = common.timed(functools.partial(jns.choose, key, net, m, **options))
        records.append({"what": f"choose, {n:,} rows", "columns": m, "first": spent})
        print(records[-1], flush=True)
    for depth, m in itertools.product(args.depths, args.columns):
        fmap = jns.feature_map(network("relu", depth), num_features=m)
        first, again = common.seconds(functools.partial(fmap.plan, (64,)), repeats=1)
        record = {"what": f"plan of auto, depth {depth}", "columns": m}
        records.append(record | {"first": first, "again": again})
        print(records[-1], flush=True)
    head = "what | columns | first call, s | again, s"
    text = common.table(records, head, "{what} | {columns} | {first:.1f} | {again:.3f}")
    common.report(args, "default-times", text, records)


if __name__ == "__main__":
    jobs = {use: functools.partial(compare, use=use) for use in OURS}
    common.main(
        __doc__,
        {**jobs, "times": times},
        sets=(list(default_sets.SETS), "sets"),
        depths=([1, 2, 3], "hidden layers"),
        columns=([256, 512, 1024, 2048, 4096], "columns"),
        rows=(4000, "the most rows to fit"),
        opponents=([*OBLIVIOUS, *LEARNED], "maps of the frozen version"),
        seeds=(3, "draws of each map"),
        most_seeds=(10, "draws where three leave it open"),
        within=(1.25, "opponents that are drawn again"),
        num_rows=([1000, 10_000, 1_000_000], "for times: rows"),
        images=(300, "color images to fit, and to hold out"),
        side=(16, "pixels of color images"),
    )
