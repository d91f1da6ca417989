"""CIFAR-10: accuracy of ridge on convolutional NTK features.

    python benchmarks/cifar10.py features --data FOLDER
    python benchmarks/cifar10.py exact --data FOLDER

"features" is test accuracy against training size and width, with and without ZCA, with
exact regression on a fully connected NTK of the same images beside it; one table, one
plot. "exact" compares with exact CNTK regression on images averaged to 16 x 16 pixels,
as many as its cost allows; its kernel is kept in the output folder block by block, so
that a run which was stopped goes on where it was.

The ridge penalty is chosen on a tenth of the training images, at least 100, and the
model then fitted on all of them; test images are looked at once. The folder holds
`cifar10_jpegbytes.npz` or CIFAR-10 as it is distributed; accuracies on images that were
compressed again as JPEG compare with each other, not with published ones.
"""

import hashlib
import pathlib
import time

import common
import jax
import numpy as np
import scipy.linalg

import jax_ntk_sketch as jns
from jax_ntk_sketch import data, kernels, methods, preprocessing, stax
from jax_ntk_sketch._progress import progress
from jax_ntk_sketch.interop import neural_tangents as jnt

NETWORKS = {
    "cntk": jns.recipes.cntk(3),
    "myrtle5": jns.recipes.myrtle(5),
    # The normalised Gaussian exp(gamma (cos - 1)) in place of the rectifier.
    "myrtle5_gaussian": jns.recipes.myrtle(
        5, activation=jns.stax.ExpNormalized(1.0), W_std=1.0
    ),
    "myrtle5_gaussian2": jns.recipes.myrtle(
        5, activation=jns.stax.ExpNormalized(2.0), W_std=1.0
    ),
    "myrtle7": jns.recipes.myrtle(7),
    "myrtle10": jns.recipes.myrtle(10),
}
METHODS = {
    "ntk_random_features": methods.NTKRandomFeatures(),
    "ntk_sketch": methods.NTKSketch(2, 1, oversample=1.0),
    "variance_reduced": methods.VarianceReduced(),
}

# Penalties, relative to the mean of the kernel's diagonal and per example.
REGS = tuple(10.0**k for k in range(-9, 0))
FC_DEPTH = 3


def load(args) -> tuple[np.ndarray, ...]:
    """Training and test images (n, 32, 32, 3) in [0, 1], and labels."""
    folder = pathlib.Path(args.data or ".")
    path = folder / "cifar10_jpegbytes.npz"
    source = path if path.is_file() else folder
    most = max(args.num_train)
    try:
        loaded = data.load(
            source, num_train=most, num_test=args.num_test, seed=0, progress=progress
        )
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"{error}\ngive the folder of the images with --data"
        ) from None
    return loaded.x_train, loaded.y_train, loaded.x_test, loaded.y_test


def prepare(
    x: np.ndarray, test: np.ndarray, zca: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Each image standardised; then ZCA fitted on training images, if wanted."""
    x, test = (np.asarray(preprocessing.standardize_examples(z)) for z in (x, test))
    if zca is not None:
        params = preprocessing.zca_fit(x, reg=zca)
        x, test = (
            np.concatenate(
                [
                    np.asarray(preprocessing.zca_apply(params, z[i : i + 1000]))
                    for i in range(0, len(z), 1000)
                ]
            )
            for z in (x, test)
        )
    return x, test


def smaller(side: int, *parts: np.ndarray) -> list[np.ndarray]:
    """Images of 32 x 32 pixels averaged to side x side."""
    step = 32 // side
    shape = (-1, side, step, side, step, 3)
    return [x.reshape(shape).mean(axis=(2, 4)) for x in parts]


def codes(labels: np.ndarray) -> np.ndarray:
    """One-hot codes minus 1/10."""
    return np.eye(10)[labels] - 0.1


def equations(
    train: np.ndarray, y: np.ndarray, is_kernel: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and right side of ridge regression without its penalty."""
    if is_kernel:
        return train, y
    return gram(train), train.T.astype(np.float64) @ y


def solve(a: np.ndarray, right: np.ndarray, shift: float) -> np.ndarray:
    """The solution of (a + shift I) w = right."""
    a = a.copy()
    a[np.diag_indices_from(a)] += shift
    factor = scipy.linalg.cho_factor(a, lower=True, overwrite_a=True)
    return scipy.linalg.cho_solve(factor, right)


def gram(phi: np.ndarray) -> np.ndarray:
    """Φ'Φ in float64, a block of rows at a time."""
    out = np.zeros((phi.shape[1],) * 2)
    for i in range(0, len(phi), 2048):
        block = phi[i : i + 2048].astype(np.float64)
        out += block.T @ block
    return out


def score(scores: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy."""
    return float((scores.argmax(axis=1) == labels).mean())


def evaluate(train, test, labels, test_labels, is_kernel: bool) -> dict:
    """Accuracy on test with the penalty that is best on held-out training images,
    and the scores of the test images.

    Args:
      train: (n, m) features, or the (n, n) kernel.
      test: (n_test, m) features, or the (n_test, n) kernel.
      labels, test_labels: integers.
      is_kernel: which of the two.
    """
    start = time.perf_counter()
    n = len(train)
    if not is_kernel and n <= train.shape[1]:  # fewer equations in the dual
        right = train.astype(np.float64).T
        train, test, is_kernel = train @ right, test @ right, True
    rows = np.random.default_rng(0).permutation(n)
    held, fit = rows[: max(n // 10, 100)], np.sort(rows[max(n // 10, 100) :])
    y = codes(labels)
    if is_kernel:
        train = train.astype(np.float64)
        scale = np.diag(train).mean()
        part, check = train[np.ix_(fit, fit)], train[np.ix_(held, fit)]
    else:
        scale = float((train.astype(np.float64) ** 2).sum(1).mean())
        part, check = train[fit], train[held]
    a, right = equations(part, y[fit], is_kernel)
    best = (-1.0, 0.0)
    for reg in REGS:
        w = solve(a, right, len(fit) * scale * reg)
        best = max(best, (score(check @ w, labels[held]), reg))
    w = solve(*equations(train, y, is_kernel), n * scale * best[1])
    predictions = test @ w
    return {
        "accuracy": score(predictions, test_labels),
        "held_out": best[0],
        "reg": best[1],
        "seconds": time.perf_counter() - start,
        "scores": predictions,
    }


def featurise(
    network: str, method: str, m: int, *parts: np.ndarray
) -> tuple[list[np.ndarray], float]:
    """Features of each part, one draw, and the seconds they took."""
    fmap = jns.feature_map(NETWORKS[network], num_features=m, method=METHODS[method])
    params = fmap.init(jax.random.key(0), parts[0])
    start = time.perf_counter()
    phi = [jns.transform(fmap, params, x) for x in parts]
    return phi, time.perf_counter() - start


def features(args) -> None:
    """Accuracy against training size and width, with and without ZCA."""
    x, y, x_test, y_test = load(args)
    if args.side is not None:
        x, x_test = smaller(args.side, x, x_test)
    rows, results = [], []

    def report(what: str, zca: float | None, m, n: int, seconds: float, r) -> None:
        accuracy = f"{r['accuracy']:.4f}"
        row = (
            what,
            "no" if zca is None else f"{zca:g}",
            str(m),
            str(n),
            accuracy,
            f"{r['held_out']:.4f}",
            f"{r['reg']:.0e}",
            f"{seconds:.0f} + {r['seconds']:.0f} s",
        )
        rows.append(row)
        r = {key: value for key, value in r.items() if key != "scores"}
        r["fit_seconds"] = r.pop("seconds")
        results.append(dict(what=what, zca=zca, m=m, n=n, seconds=seconds, **r))
        print(" | ".join(row), flush=True)

    for zca in args.zca:
        zca = None if zca == 0 else zca
        a, b = prepare(x, x_test, zca)
        if args.fc:
            for n in args.num_train:
                start = time.perf_counter()
                train, test = fc_kernels(a[:n], b)
                seconds = time.perf_counter() - start
                r = evaluate(train, test, y[:n], y_test, is_kernel=True)
                report(f"fully connected NTK, depth {FC_DEPTH}", zca, "", n, seconds, r)
                del train, test
        for network in args.networks:
            for method in args.methods:
                for m in args.num_features:
                    (phi, phi_test), seconds = featurise(network, method, m, a, b)
                    for n in args.num_train:
                        r = evaluate(phi[:n], phi_test, y[:n], y_test, is_kernel=False)
                        report(f"{network}, {method}", zca, m, n, seconds, r)
    head = (
        "features",
        "ZCA",
        "columns",
        "training images",
        "test accuracy",
        "held out",
        "reg",
        "features + fits",
    )
    common.write(args.output, "cifar10", common.markdown(head, rows), results)
    plot(pathlib.Path(args.output) / "cifar10.png", results)


def fc_kernels(x: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exact fully connected NTK of training images, and of test with training."""
    dense = stax.Dense(1, W_std=2**0.5)
    net = stax.serial(*[dense, stax.Relu()] * FC_DEPTH, dense)
    x, test = (z.reshape(len(z), -1) for z in (x, test))

    def exact(a: np.ndarray) -> jax.Array:
        return kernels.exact_kernel(net, a, x, get="ntk")

    def all_pairs(a: np.ndarray) -> np.ndarray:
        blocks = [np.asarray(exact(a[i : i + 500])) for i in range(0, len(a), 500)]
        return np.concatenate(blocks)

    return all_pairs(x), all_pairs(test)


def plot(path: pathlib.Path, results: list[dict]) -> None:
    """Accuracy against training size, a line for each kind of features."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    lines: dict[str, list[tuple[int, float]]] = {}
    for r in results:
        name = f"{r['what']} {r['m']}" + (f", ZCA {r['zca']:g}" if r["zca"] else "")
        lines.setdefault(name, []).append((r["n"], r["accuracy"]))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xscale="log", xlabel="training images", ylabel="test accuracy")
    axes.legend(fontsize="x-small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def exact(args) -> None:
    """Exact CNTK regression and ridge on features, on images of fewer pixels."""
    x, y, x_test, y_test = load(args)
    n = max(args.num_train)
    rows, results = [], []
    side = args.side or 16
    for zca in args.zca:
        zca = None if zca == 0 else zca
        a, b = prepare(*smaller(side, x, x_test), zca)
        for network in args.networks:
            start = time.perf_counter()
            everything = np.concatenate([a[:n], b])
            k = exact_kernel(NETWORKS[network], everything, n, args.output)
            seconds = time.perf_counter() - start
            r = evaluate(k[:n], k[n:], y[:n], y_test, is_kernel=True)
            cells = [(f"{network}, exact", "", seconds, r)]
            for method in args.methods:
                for m in args.num_features:
                    (phi,), seconds = featurise(network, method, m, everything)
                    r = evaluate(phi[:n], phi[n:], y[:n], y_test, is_kernel=False)
                    cells.append((f"{network}, {method}", str(m), seconds, r))
            train, test = fc_kernels(a[:n], b)
            r = evaluate(train, test, y[:n], y_test, is_kernel=True)
            cells.append((f"fully connected NTK, depth {FC_DEPTH}", "", 0.0, r))
            best = cells[0][3]["scores"]
            for what, m, seconds, r in cells:
                distance = float(np.sqrt(np.mean((r["scores"] - best) ** 2)))
                rows.append(
                    (
                        what,
                        "no" if zca is None else f"{zca:g}",
                        m,
                        f"{r['accuracy']:.4f}",
                        f"{distance:.4f}",
                        f"{r['held_out']:.4f}",
                        f"{r['reg']:.0e}",
                        f"{seconds:.0f} s",
                    )
                )
                kept = {k: r[k] for k in ("accuracy", "held_out", "reg")}
                results.append(
                    dict(what=what, zca=zca, m=m, seconds=seconds, rms=distance, **kept)
                )
                print(" | ".join(rows[-1]), flush=True)
    head = (
        f"{n} training, {len(x_test)} test images, {side} x {side}",
        "ZCA",
        "columns",
        "test accuracy",
        "rms to exact scores",
        "held out",
        "reg",
        "kernel or features",
    )
    common.write(args.output, "cifar10-exact", common.markdown(head, rows), results)


def exact_kernel(
    net, x: np.ndarray, n: int, folder: str, block: int = 20
) -> np.ndarray:
    """The NTK of all images with the n training ones, (len(x), n).

    Finished rows of blocks are kept on disk, named by network and images.
    """
    kernel_fn = jnt.to_stax(net)[2]
    run = jax.jit(lambda p, q: kernel_fn(p, q, "ntk"))
    name = hashlib.sha256(repr(net).encode() + x.tobytes()).hexdigest()[:16]
    place = pathlib.Path(folder) / f"kernel-{name}-{n}-{block}"
    place.mkdir(parents=True, exist_ok=True)
    out = np.zeros((len(x), n))
    for i in progress(range(0, len(x), block), "exact kernel"):
        rows, path = slice(i, i + block), place / f"{i}.npy"
        last = min(n, i + block)  # training rows: up to the diagonal
        if not path.is_file():
            starts = range(0, last if i < n else n, block)
            parts = [run(x[rows], x[j : j + block]) for j in starts]
            part = path.with_suffix(".part")
            with open(part, "wb") as file:
                np.save(file, np.concatenate(parts, axis=1))
            part.replace(path)
        known = np.load(path)
        known = known[:, :n] if i >= n else known[:, :last]
        out[rows, : known.shape[1]] = known
        if i < n:
            out[: known.shape[1], rows] = known[: n - i].T
    return out


JOBS = {"features": features, "exact": exact}


def main() -> None:
    """Runs the jobs that are named."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--num-train", nargs="+", type=int, default=[1000, 3000, 10000])
    parser.add_argument("--num-test", type=int, default=2000)
    parser.add_argument("--num-features", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument(
        "--zca", nargs="+", type=float, default=[0.0, 0.1], help="relative reg; 0: none"
    )
    parser.add_argument("--networks", nargs="+", default=["cntk"], choices=NETWORKS)
    parser.add_argument(
        "--methods", nargs="+", default=["ntk_random_features"], choices=METHODS
    )
    parser.add_argument("--no-fc", dest="fc", action="store_false")
    parser.add_argument(
        "--side", type=int, help="pixels, averaged from 32; for exact 16 unless given"
    )
    common.run_jobs(parser, JOBS)


if __name__ == "__main__":
    main()
