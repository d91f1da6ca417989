"""Convolutional networks: error and speed against width and against pixels.

    python benchmarks/convolutional.py accuracy --data FOLDER
    python benchmarks/convolutional.py throughput pixels memory

"accuracy" is the centred error of the features' Gram matrices on 80 CIFAR-10 images of
16 x 16 pixels against the exact CNTK: three convolutions of 3 x 3 pixels, two average
pools, global average pooling; M columns of NNGP features and 2 M of NTK features; the
root mean square over seeds. Landmarks are taken from other images. "throughput" is
images a second at 32 x 32 x 3 pixels and 1024 features, and where the time goes.
"pixels" is time per image against the number of pixels, with the exact kernel's time
per pair beside it. "memory" is the peak resident memory of featurising 10,000 images,
beside what the plan said.
"""

import functools
import json
import pathlib
import subprocess
import sys
import time

import common
import jax
import jax.numpy as jnp
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods
from jax_ntk_sketch.features.build import build_steps
from jax_ntk_sketch.features.state import Features
from jax_ntk_sketch.interop import neural_tangents as jnt

# Root mean square of the centred errors (NNGP, NTK) of the published random features.
PUBLISHED = {128: (0.395, 0.292), 256: (0.239, 0.238), 512: (0.207, 0.127)}

# Images a second of other implementations on two such cores, at 32 x 32 x 3 pixels.
PUBLISHED_SPEED = {
    "PyTorch CNTKSketch, three convolutions, 1024 outputs": 4.7,
    "JAX proposal, random features of width 512, two pools": 12,
    "JAX proposal, PolySketch of width 512, two pools": 9,
}

METHODS = {
    "ntk_random_features": methods.NTKRandomFeatures(),
    "ntk_random_features, published": methods.NTKRandomFeatures(
        directions="gaussian", antithetic=False, product="tensor_srht"
    ),
    "variance_reduced": methods.VarianceReduced(),
    "variance_reduced, kernel": methods.VarianceReduced(objective="kernel"),
    "nystrom": methods.Nystrom(),
    "ntk_sketch, degrees 2, 1": methods.NTKSketch(2, 1, oversample=1.0),
    "ntk_sketch, degrees 4, 3": methods.NTKSketch(4, 3, oversample=1.0),
}

NET = jns.recipes.cntk(3)


def images16(
    folder: str | None, first: int, others: int
) -> tuple[np.ndarray, np.ndarray]:
    """80 images, and others to learn from, averaged over 2 x 2 pixels.

    Each colour channel is standardised by the 80 images.
    """
    path = common.archive(folder, "cifar10_lossless_subset.npz")
    with np.load(path, allow_pickle=False) as file:
        x = file["x_train"].astype(np.float64) / 255
    x = x.reshape(len(x), 16, 2, 16, 2, 3).mean(axis=(2, 4))
    known, rest = x[first : first + 80], np.delete(x, slice(first, first + 80), axis=0)
    rest = rest[len(rest) - others :]
    mean, spread = known.mean(axis=(0, 1, 2)), known.std(axis=(0, 1, 2))
    return tuple(((z - mean) / spread).astype(np.float32) for z in (known, rest))


def exact_kernels(net, x: np.ndarray, block: int = 10) -> dict[str, np.ndarray]:
    """NNGP kernel and NTK of all pairs by Neural Tangents, block by block."""
    kernel_fn = jnt.to_stax(net)[2]
    run = jax.jit(lambda a, b: tuple(kernel_fn(a, b, ("nngp", "ntk"))))
    out = np.zeros((2, len(x), len(x)))
    for i in range(0, len(x), block):
        for j in range(0, i + 1, block):
            rows, columns = slice(i, i + block), slice(j, j + block)
            for k, part in zip(out, run(x[rows], x[columns]), strict=True):
                k[rows, columns] = part
                k[columns, rows] = np.asarray(part).T
    return {"nngp": out[0], "ntk": out[1]}


def accuracy(args) -> None:
    """Centred errors, with the published ones beside them."""
    x, others = images16(args.data, args.first, args.others)
    exact = exact_kernels(NET, x)
    rows, results = [], []
    for width in args.widths:
        for name in args.methods:
            row = [str(width), name]
            for kind, columns in (("nngp", width), ("ntk", 2 * width)):
                fmap = jns.feature_map(
                    NET, num_features=columns, get=kind, method=METHODS[name]
                )
                sample = others if name == "nystrom" else x
                squares = []
                for seed in range(args.seeds):
                    params = fmap.init(jax.random.key(seed), sample)
                    phi = jns.transform(fmap, params, x, batch_size=4)
                    phi = phi.astype(np.float64)
                    error = jns.validation.centered_relative_error(
                        exact[kind], phi @ phi.T
                    )
                    squares.append(error**2)
                rms = float(np.sqrt(np.mean(squares)))
                error = float(np.std(squares) / np.sqrt(args.seeds) / 2 / rms)
                published = PUBLISHED.get(width, (None, None))[kind == "ntk"]
                row += [f"{rms:.4f} ± {error:.4f}", str(published or "")]
                results.append(
                    dict(width=width, method=name, kind=kind, rms=rms, error=error)
                )
            rows.append(row)
            print(" | ".join(row), flush=True)
    head = ("M", "method", "NNGP", "published", "NTK", "published")
    common.write(args.output, "cntk-16", common.markdown(head, rows), results)


def throughput(args) -> None:
    """Images a second, and the stages' shares of the time."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32, 32, 3)), jnp.float32)
    peak = _matmul_flops()
    rows, results = [], []
    for name in args.methods:
        fmap = jns.feature_map(NET, num_features=1024, method=METHODS[name])
        params = fmap.init(jax.random.key(0), x)
        flops = fmap.plan(x).flops
        for batch in args.batches:
            run = jax.jit(functools.partial(fmap.apply, batch_size=batch))
            first, again = common.seconds(functools.partial(run, params, x))
            speed, bound = len(x) / again, peak / flops
            rows.append(
                (
                    name,
                    str(batch),
                    f"{speed:.0f}",
                    f"{first - again:.1f} s",
                    f"{flops / 1e6:.0f} MF",
                    f"{bound:.0f}",
                    f"{speed / bound:.2f}",
                )
            )
            results.append(
                dict(method=name, batch=batch, speed=speed, flops=flops, peak=peak)
            )
        print(_stage_table(name, fmap, params, x[:8]), flush=True)
    head = (
        "method",
        "batch_size",
        "images/s",
        "compile",
        "flops/image",
        f"bound at {peak / 1e9:.0f} GF/s",
        "share",
    )
    others = [(name, "", str(v), "", "", "", "") for name, v in PUBLISHED_SPEED.items()]
    text = common.markdown(head, rows + others)
    common.write(args.output, "conv-throughput", text, results)


def _matmul_flops(size: int = 2048) -> float:
    """What a float32 matrix product reaches, flops/s."""
    a = jnp.ones((size, size), jnp.float32)
    _, again = common.seconds(lambda: jax.jit(jnp.matmul)(a, a))
    return 2 * size**3 / again


def _stage_table(name: str, fmap, params, x) -> str:
    """Milliseconds per image of each step, compiled by itself and run one by one."""
    built = build_steps(NET, fmap.method, "ntk", fmap.num_features, x.shape[1:], 1)
    f = Features(x, x[..., :0], jnp.zeros(len(x)))
    rows = []
    for stage, p in zip(built, params["ntk"], strict=True):

        def run(p, f, stage=stage):
            def one(g):
                alone = stage.apply(p, jax.tree.map(lambda a: a[None], g))
                return jax.tree.map(lambda a: a[0], alone)

            return jax.lax.map(one, f)

        compiled = jax.jit(run)
        _, again = common.seconds(functools.partial(compiled, p, f))
        f = compiled(p, f)
        ms = 1e3 * again / len(x)
        speed = f"{stage.flops / ms / 1e6:.1f}"
        rows.append((stage.name, f"{ms:.3f}", f"{stage.flops / 1e6:.1f}", speed))
    head = (f"{name}: step", "ms/image", "MF/image", "GF/s")
    return common.markdown(head, rows)


def pixels(args) -> None:
    """Time per image, and per pair of the exact kernel, against pixels; slopes."""
    sides, rows, results = (8, 16, 32, 64), [], []
    times: dict[str, list[float]] = {}
    for name in args.methods:
        fmap = jns.feature_map(NET, num_features=1024, method=METHODS[name])
        run = jax.jit(functools.partial(fmap.apply, batch_size=1))
        for side in sides:
            count = max(8, 64 * 256 // side**2)
            x = np.random.default_rng(0).normal(size=(count, side, side, 3))
            x = jnp.asarray(x, jnp.float32)
            params = fmap.init(jax.random.key(0), x)
            _, again = common.seconds(functools.partial(run, params, x))
            times.setdefault(name, []).append(again / count)
    kernel_fn = jnt.to_stax(NET)[2]
    exact = jax.jit(lambda a, b: kernel_fn(a, b, "ntk"))
    exact_sides = (8, 12, 16, 24)
    for side in exact_sides:
        a, b = np.random.default_rng(1).normal(size=(2, 4, side, side, 3))
        a, b = a.astype(np.float32), b.astype(np.float32)
        _, again = common.seconds(functools.partial(exact, a, b), repeats=3)
        times.setdefault("exact, per pair", []).append(again / 16)
    for name, values in times.items():
        used = exact_sides if name.startswith("exact") else sides
        slope = np.polyfit(np.log(np.square(used)), np.log(values), 1)[0]
        cells = [
            f"{s}x{s}: {1e3 * t:.2f} ms" for s, t in zip(used, values, strict=True)
        ]
        rows.append((name, "; ".join(cells), f"{slope:.2f}"))
        results.append(dict(method=name, sides=used, seconds=values, slope=slope))
    head = ("method", "time", "log-log slope in pixels")
    common.write(args.output, "conv-pixels", common.markdown(head, rows), results)


# Run by itself, so that its peak is its own. What Python, JAX and compiled code hold is
# the resident memory (not its peak) after a run on few images.
_CHILD = """
import json, resource, sys
import jax, numpy as np
import jax_ntk_sketch as jns
sys.path.insert(0, {folder!r})
import convolutional
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def now():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize()
fmap = jns.feature_map(convolutional.NET, num_features=1024,
                       method=convolutional.METHODS[{method!r}])
sample = np.random.default_rng(1).random((64, 32, 32, 3), np.float32)
params = fmap.init(jax.random.key(0), sample)
few = np.zeros(({batch}, 32, 32, 3), np.float32)
jns.transform(fmap, params, few, batch_size={batch}, progress=False)
before = now()
x = np.random.default_rng(0).random(({count}, 32, 32, 3), np.float32)
phi = jns.transform(fmap, params, x, batch_size={batch}, progress=False)
print(json.dumps(dict(before=before, peak=peak(), norm=float((phi**2).mean()))))
"""


def memory(args) -> None:
    """Peak resident memory of `transform`, in a process of its own, and the plan."""
    rows, results = [], []
    folder = str(pathlib.Path(__file__).parent)
    for name in args.methods:
        for batch in args.batches:
            fmap = jns.feature_map(NET, num_features=1024, method=METHODS[name])
            shape = (args.images, 32, 32, 3)
            example = jax.ShapeDtypeStruct(shape, jnp.float32)
            planned = fmap.plan(example, batch_size=batch).peak_bytes
            code = _CHILD.format(
                folder=folder, method=name, count=args.images, batch=batch
            )
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            seconds = time.perf_counter() - start
            r = json.loads(done.stdout)
            ratio = (r["peak"] - r["before"]) / planned
            rows.append(
                (
                    name,
                    str(batch),
                    f"{planned / 1e6:.0f} MB",
                    f"{r['before'] / 1e6:.0f} MB",
                    f"{r['peak'] / 1e6:.0f} MB",
                    f"{ratio:.2f}",
                    f"{seconds:.0f} s",
                )
            )
            results.append(dict(method=name, batch=batch, planned=planned, **r))
            print(" | ".join(rows[-1]), flush=True)
    head = (
        "method",
        "batch_size",
        "plan",
        "before",
        "peak resident",
        "(peak - before) / plan",
        "time",
    )
    common.write(args.output, "conv-memory", common.markdown(head, rows), results)


JOBS = {
    "accuracy": accuracy,
    "throughput": throughput,
    "pixels": pixels,
    "memory": memory,
}


def main() -> None:
    """Runs the jobs that are named."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--first", type=int, default=0, help="of the 80 images that errors are of"
    )
    parser.add_argument(
        "--others", type=int, default=300, help="images that landmarks are taken from"
    )
    parser.add_argument("--images", type=int, default=10_000, help="for memory")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 16], help="batch_size of apply"
    )
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=list(METHODS)
    )
    common.run_jobs(parser, JOBS)


if __name__ == "__main__":
    main()
