"""Error against the number of features and against seconds, for all methods.

    python benchmarks/pareto.py pareto --data FOLDER
    python benchmarks/pareto.py pareto --methods nystrom --num-features 1024 4096
    python benchmarks/pareto.py plot

Two errors. Protocol FC-1000: relative and doubly centred error of the features' Gram
matrix on the first 1000 MNIST training images / 255, against the exact NTK. Protocol
FIT-4000: distance of ridge's test predictions from exact NTK ridge's, see
`regression.py`. Maps that learn from data see 4000 other images in the first, the
fitting images in the second. Seconds are those of `apply`, compiled and warm, for 1000
images in batches of 128, without what was learned before.

Lines beside them: the published methods, uniform Nyström, and as the floor the best m
columns there are, which are the leading eigenvectors of the exact kernel: of the very
1000 images for the first error, of the 4000 fitting images for the second.

Every single result is kept in the output folder, so that a run can be done in pieces;
"plot" writes the table and the plot of all of them.
"""

import functools
import pathlib

import candidates
import common
import jax
import numpy as np
import regression
from fully_connected import exact, network

import jax_ntk_sketch as jns

COUNT, SAMPLE = 1000, 4000
FLOOR = regression.COMPONENTS
# Drawn thin and grey: what the others are to be compared with.
LINES = (
    "published random features",
    "published sketch",
    "nystrom, uniform",
    FLOOR,
)
# For the others: all but the grey one.
COLOURS = [f"C{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)]


@functools.cache
def images(folder: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The images that errors are of, and others to learn from."""
    x = common.mnist(folder)[0]
    return x[:COUNT], x[COUNT : COUNT + SAMPLE]


@functools.cache
def kernel(folder: str | None, depth: int) -> np.ndarray:
    """Their exact NTK."""
    return exact(images(folder)[0], None, depth)


def errors(args, name: str, depth: int, m: int, seed: int) -> dict[str, float]:
    """Relative and centred error, and seconds for 1000 images."""
    k = kernel(args.data, depth)
    if name == FLOOR:
        values, vectors = np.linalg.eigh(k)
        kept = vectors[:, -m:]
        gram, seconds = (kept * values[-m:]) @ kept.T, 0.0
    else:
        x, sample = images(args.data)
        fmap, params = candidates.draw(network(depth), name, m, seed, sample, args.base)
        run = jax.jit(functools.partial(fmap.apply, batch_size=128))
        phi = np.asarray(run(params, x), np.float64)
        gram = phi @ phi.T
        seconds = common.seconds(lambda: run(params, x), repeats=args.repeats)[1]
    return {
        "relative": jns.validation.relative_error(k, gram),
        "centred": jns.validation.centered_relative_error(k, gram),
        "seconds": seconds,
    }


def pareto(args) -> None:
    """Measures what is not kept yet, then writes table and plot."""
    kept = candidates.Kept(args.output, "pareto")
    for depth in args.depths:
        for m in args.num_features:
            for name in args.methods:
                if name == FLOOR and m >= COUNT:
                    continue  # nothing is left out
                for seed in range(1 if name == FLOOR else args.seeds):
                    kept.get(
                        functools.partial(errors, args, name, depth, m, seed),
                        method=regression.label(name, args.base),
                        depth=depth,
                        num_features=m,
                        seed=seed,
                    )
    if not args.no_regression:
        regression.measure(args, candidates.Kept(args.output, "regression"))
    plot(args)


def summary(args) -> list[dict]:
    """Means and standard errors of all that is kept, one entry per map."""
    groups: dict[tuple, dict[str, list[float]]] = {}
    for file, names in (
        ("pareto", ("relative", "centred", "seconds")),
        ("regression", ("distance",)),
    ):
        for r in candidates.Kept(args.output, file).results.values():
            key = (r["depth"], r["method"], r["num_features"])
            for name in names:
                groups.setdefault(key, {}).setdefault(name, []).append(r[name])
    out = []
    for (depth, method, m), values in sorted(groups.items()):
        stats = {name: candidates.mean_and_error(v) for name, v in values.items()}
        out.append({"depth": depth, "method": method, "num_features": m, **stats})
    return out


def plot(args) -> None:
    """The table and the plot of all results that are kept."""
    results = summary(args)

    def cell(r: dict, name: str, digits: int) -> str:
        if name not in r:
            return ""
        return "{:.{d}f} ± {:.{d}f}".format(*r[name], d=digits)

    table = [
        (
            r["depth"],
            r["method"],
            r["num_features"],
            cell(r, "relative", 4),
            cell(r, "centred", 4),
            cell(r, "distance", 4),
            f"{1e3 * r['seconds'][0]:.0f}" if r.get("seconds", (0,))[0] else "",
        )
        for r in results
    ]
    head = (
        "depth",
        "method",
        "features",
        "relative error",
        "centred error",
        "regression distance",
        "ms per 1000 images",
    )
    common.write(args.output, "pareto", common.markdown(head, table), results)
    for depth in sorted({r["depth"] for r in results}):
        name = "pareto.png" if depth == args.depths[0] else f"pareto-{depth}.png"
        draw_panels([r for r in results if r["depth"] == depth], depth, args, name)


def draw_panels(results: list[dict], depth: int, args, name: str) -> None:
    """Three panels for one depth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2))
    panels = (
        ("num_features", "centred", "features", "centred kernel error"),
        ("num_features", "distance", "features", "distance from exact ridge"),
        ("seconds", "distance", "seconds for 1000 images", "distance from exact ridge"),
    )
    methods = {r["method"] for r in results}
    others = [n for n in candidates.NAMES if n not in LINES]  # a colour each, always
    others += sorted(methods - set(others) - set(LINES))
    ordered = [n for n in (*LINES, *others) if n in methods]
    for axis, (x, y, x_label, y_label) in zip(axes, panels, strict=True):
        for method in ordered:
            points = []
            for r in results:
                if r["method"] == method and x in r and y in r:
                    at = r[x] if x == "num_features" else r[x][0]
                    points.append((at, *r[y]))
            points = [p for p in sorted(points) if p[0] > 0]
            if not points:
                continue
            place, mean, error = zip(*points, strict=True)
            if method in LINES:
                dashes = ("-", "--", ":", "-.")[LINES.index(method)]
                style = dict(color="0.55", linestyle=dashes, marker=".")
            else:
                colour = COLOURS[others.index(method) % len(COLOURS)]
                style = dict(color=colour, marker="o", markersize=4)
            axis.errorbar(place, mean, error, label=method, linewidth=1.2, **style)
        axis.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
        axis.grid(alpha=0.3, which="both")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        if x == "num_features":
            places = sorted({r[x] for r in results})
            axis.set_xticks(places, [str(place) for place in places])
    axes[1].set_title(f"MNIST, {depth} hidden layer{'s' * (depth > 1)}")
    drawn = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        drawn.update(zip(labels, handles, strict=True))
    options = dict(loc="lower center", ncols=5, fontsize="small")
    figure.legend(drawn.values(), drawn.keys(), **options)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(pathlib.Path(args.output) / name, dpi=90)
    pyplot.close(figure)


JOBS = {"pareto": pareto, "plot": plot}


def main() -> None:
    """Runs the jobs that are named."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--depths", nargs="+", type=int, default=[1])
    parser.add_argument(
        "--num-features",
        nargs="+",
        type=int,
        default=[256, 512, 1024, 2048, 4096, 8192],
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="calls to time")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[*candidates.NAMES, FLOOR],
        choices=[*candidates.NAMES, FLOOR],
    )
    parser.add_argument("--base", default=candidates.BASE, choices=candidates.METHODS)
    parser.add_argument(
        "--no-regression", action="store_true", help="kernel errors and times only"
    )
    common.run_jobs(parser, JOBS)


if __name__ == "__main__":
    main()
