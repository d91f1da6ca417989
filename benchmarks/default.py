"""No regret: what the library chooses, beside every map of a frozen version.

    python benchmarks/default.py --data FOLDER
    python benchmarks/default.py data --sets pol digits --columns 256 1024 --depths 1

A set is "digits", "mnist" or a file `uci_regression/NAME.npz` with `X` and `y`. Of each
set at most --rows random rows are fitted, and at most 1000 others are held out. Inputs
of `uci_regression` are standardized by the fitting rows. Networks have --depths hidden
`Relu` layers with W_std = sqrt(2).

"oblivious" compares `feature_map(net, num_features=m)` with maps that learn nothing, by
the centered error of the kernel of the held-out rows.

"data" compares `choose(key, net, m, sample=x, y=y)` with all maps, learned from the
fitting rows. The loss is the distance of the held-out predictions of ridge regression
from those of the exact kernel, over their size. The penalty is the one of the exact
machine's smallest leave-one-out error, for all maps. Only cells with at most half as
many columns as fitting rows count.

The opponents are those of the commit 6ecfbb4, whose package the script extracts into
the folder of the results. A ratio is the loss of the library's choice over that of
the best opponent; its error is that of the mean over seeds, paired. A stopped run goes
on where it was.
"""

import functools
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from typing import Any

import common
import jax
import maps
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch.cli.regression import ridge_weights

COMMIT = "6ecfbb4"
ROOT = pathlib.Path(__file__).parent.parent
SETS = (
    "digits", "mnist", "bike", "elevators", "keggdirected", "kin40k", "pol", "protein",
)  # fmt: skip
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
REGS = 10.0 ** np.arange(-8, 0.1, 0.5)
# Distances below this part of the predictions are equal.
EQUAL = 0.01


@functools.lru_cache(1)
def rows(folder: str | None, name: str, most: int) -> dict[str, np.ndarray]:
    """Return "x", "x_test", "y" and "y_test" of a set."""
    rng = np.random.default_rng(0)
    if name == "digits":
        digits = jns.data.load_digits()
        x = np.concatenate([digits.x_train, digits.x_test]).reshape(-1, 64)
        y = maps.codes(np.concatenate([digits.y_train, digits.y_test]))
    elif name == "mnist":
        x, labels, _, _ = common.mnist(folder)
        x, y = x[: most + 1000], maps.codes(labels[: most + 1000])
    else:
        x, y = common.arrays(folder, f"uci_regression/{name}.npz", "X", "y")
        y = y[:, None]
    order = rng.permutation(len(x))[: most + 1000]
    fitting = order[: min(most, len(order) * 3 // 4)]
    test = order[len(fitting) : len(fitting) + 1000]
    x, x_test, y, y_test = x[fitting], x[test], y[fitting], y[test]
    if name not in ("digits", "mnist"):
        x, x_test = maps.standardize(x, x, x_test)
        y, y_test = maps.standardize(y, y, y_test)
    x, x_test = (z.astype(np.float32) for z in (x, x_test))
    return {"x": x, "x_test": x_test, "y": y, "y_test": y_test}


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

    def features(self, arrays: dict[str, np.ndarray], **request: Any) -> Any:
        """Return the features of the fitting and the held-out rows.

        Raises:
          ValueError: the map does not support the network or the number of columns.
        """
        self.process = self.process or self.start()
        assert self.process.stdin is not None and self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            places = {"rows": f"{folder}/rows.npz", "out": f"{folder}/features.npz"}
            np.savez(places["rows"], x=arrays["x"], x_test=arrays["x_test"])
            print(json.dumps(request | places), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())
            if answer["error"]:
                raise ValueError(answer["error"])
            with np.load(places["out"]) as file:
                return file["phi"], file["phi_test"]


@functools.lru_cache(1)
def machine(
    folder: str | None, name: str, most: int, depth: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the exact machine's penalty, its held-out predictions and their kernel."""
    data = rows(folder, name, most)
    k, cross, kernel = (
        maps.exact(data[a], None if b is None else data[b], depth)
        for a, b in (("x", None), ("x_test", "x"), ("x_test", None))
    )
    _, reg, weights = maps.kernel_ridge(k, data["y"], REGS)
    return reg * np.trace(k), cross @ weights, kernel


def own_features(
    name: str, arrays: dict[str, np.ndarray], depth: int, columns: int, seed: int
) -> Any:
    """Return the features of what this version chooses, and its method."""
    net, key = maps.relu_network(depth), jax.random.key(seed)
    x, y = arrays["x"], arrays["y"]
    if name == "auto":
        fmap = jns.feature_map(net, num_features=columns)
    else:
        fmap = jns.choose(key, net, columns, sample=x, y=y, progress=False)
    params = fmap.init(jax.random.key(1000 + seed), x.shape[1:], sample=x)
    phi, phi_test = (
        jns.transform(fmap, params, z, progress=False) for z in (x, arrays["x_test"])
    )
    jax.clear_caches()
    return phi, phi_test, fmap.plan(x.shape[1:]).method


def measure(
    args: common.Options, use: str, opponents: Opponents, **cell: Any
) -> common.Record:
    """Return the "loss" of a map, and for ours its "method"."""
    arrays = rows(args.data, cell["set"], args.rows)
    penalty, predictions, kernel = machine(
        args.data, cell["set"], args.rows, cell["depth"]
    )
    options = {name: cell[name] for name in ("depth", "columns", "seed")}
    found: common.Record = {}
    if cell["map"] in OURS.values():
        phi, phi_test, found["method"] = own_features(cell["map"], arrays, **options)
    else:
        phi, phi_test = opponents.features(arrays, map=cell["map"], **options)
    if use == "oblivious":
        return {"loss": maps.gram_error(kernel, phi_test)[1], **found}
    phi, phi_test = (z.astype(np.float64) for z in (phi, phi_test))
    gram, right = phi.T @ phi, phi.T @ arrays["y"]
    guess = phi_test @ ridge_weights(gram, penalty / len(gram), right)
    distance = np.linalg.norm(guess - predictions) / np.linalg.norm(predictions)
    return {"loss": float(distance), **found}


def compare(args: common.Options, use: str) -> None:
    """Measure all cells of one use, and report the ratios."""
    kept = common.Kept(args.output, f"default-{use}")
    opponents = Opponents(args.output)
    known = OBLIVIOUS + (LEARNED if use == "data" else ())
    names = [OURS[use], *(name for name in known if name in args.opponents)]
    for name in args.sets:
        fitted = len(rows(args.data, name, args.rows)["x"])
        for depth in args.depths:
            for columns in args.columns:
                if use == "data" and 2 * columns > fitted:
                    continue
                for seed in range(args.seeds):
                    for one in names:
                        cell = {"set": name, "depth": depth, "columns": columns}
                        cell |= {"seed": seed, "map": one}
                        run = functools.partial(measure, args, use, opponents, **cell)
                        kept.get(run, **cell)
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
        error = off.std(ddof=1) / len(off) ** 0.5 if len(off) > 1 else np.nan
        equal = ours == "choose" and max(loss, other) < EQUAL
        chosen = {r["method"] for r in found if r["map"] == ours}
        out.append(
            {
                "set": name, "depth": depth, "columns": columns, "loss": loss,
                "best": best, "best_loss": other, "ratio": loss / other,
                "error": error / other, "seeds": len(seeds),
                "counts": bool(not equal and not abs(off.mean()) <= 2 * error),
                "chosen": "; ".join(sorted(chosen)),
            }
        )  # fmt: skip
    return out


def table(records: list[common.Record]) -> str:
    """Return the summary and the table of the cells."""
    counted = [r["ratio"] if r["counts"] else min(r["ratio"], 1.0) for r in records]
    values = np.array(counted)
    summary = (
        f"{len(values)} cells: {np.mean(values <= 1.05):.0%} within 1.05 of the best "
        f"opponent, the largest ratio {values.max(initial=0):.2f}."
    )
    head = "set | depth | columns | loss | best opponent | its loss | ratio | chosen"
    row = (
        "{set} | {depth} | {columns} | {loss:.4f} | {best} | {best_loss:.4f} | "
        "{ratio:.2f} ± {error:.2f} | {chosen}"
    )
    return summary + "\n\n" + common.table(records, head, row)


if __name__ == "__main__":
    common.main(
        __doc__,
        {use: functools.partial(compare, use=use) for use in OURS},
        sets=(list(SETS), "sets"),
        depths=([1, 2, 3], "hidden layers"),
        columns=([256, 512, 1024, 2048, 4096], "columns"),
        rows=(4000, "the most rows to fit"),
        opponents=([*OBLIVIOUS, *LEARNED], "maps of the frozen version"),
        seeds=(3, "draws of each map"),
    )
