"""Fully connected networks on MNIST: accuracy and throughput.

    python benchmarks/fully_connected.py accuracy --data FOLDER
    python benchmarks/fully_connected.py throughput equal_error --data FOLDER

"accuracy" measures the error of the features' Gram matrix against the exact NTK. The
examples are the first 1000 training images over 255. The network has W_std = sqrt(2)
in all layers and no bias. "throughput" measures examples per second, compiled and
warm, with 8192 features and one hidden layer. "equal_error" gives random features as
many columns as they need for the error of "variance_reduced, kernel", and compares
their times.
"""

import functools

import common
import jax
import jax.numpy as jnp
import maps
import numpy as np

import jax_ntk_sketch as jns

# Mean relative errors of the published implementations, measured with their PyTorch
# code: the one-pass sketch (the best of degrees 2, 4, 8) and random features.
PUBLISHED = {
    (1, 1024): (0.0977, 0.0863), (1, 4096): (0.0539, 0.0503),
    (1, 8192): (0.0419, 0.0351), (2, 1024): (0.0951, 0.1396),
    (2, 4096): (0.0472, 0.0712), (2, 8192): (0.0339, 0.0551),
    (3, 1024): (0.0829, 0.1514), (3, 4096): (0.0448, 0.0794),
    (3, 8192): (0.0316, 0.0685),
}  # fmt: skip

# Examples per second of the published PyTorch code on two such cores.
PUBLISHED_SPEED = {
    "one_pass, degree 4": 1060,
    "one_pass": 740,
    "ntk_random_features": 5500,
}

METHODS = (
    "variance_reduced, kernel", "variance_reduced", "one_pass", "one_pass, degree 4",
    "one_pass, degree 2", "ntk_random_features", "ntk_sketch",
    "ntk_sketch, degrees 2, 1", "ntk_sketch, degrees 8, 7",
)  # fmt: skip


def feature_map(name: str, depth: int, num_features: int) -> jns.FeatureMap:
    """Return the feature map of a method in METHODS."""
    net, method = maps.relu_network(depth), maps.METHODS[name]
    return jns.feature_map(net, num_features=num_features, method=method)


def accuracy(args: common.Options) -> None:
    """Measure errors, and put the published ones beside them."""
    x = common.mnist(args.data)[0][:1000]
    records = []
    for depth in args.depths:
        kernel = maps.exact(x, None, depth)
        for m in args.num_features:
            for name in args.methods:
                fmap = feature_map(name, depth, m)
                errors = maps.gram_errors(fmap, kernel, x, args.seeds).T
                record = {"depth": depth, "num_features": m, "method": name}
                for kind, values in zip(("relative", "centered"), errors, strict=True):
                    record[kind], record[f"{kind}_se"] = common.mean_and_error(values)
                records.append(record)
                print(record, flush=True)
            sketches = [r for r in records if r["method"].startswith("ntk_sketch")]
            same = [
                r for r in sketches if (r["depth"], r["num_features"]) == (depth, m)
            ]
            if same:
                best = min(same, key=lambda r: r["relative"])
                records.append({**best, "method": "ntk_sketch, best degrees"})
            names = ("published sketch", "published random features")
            for name, error in zip(names, PUBLISHED.get((depth, m), ()), strict=False):
                record = {"depth": depth, "num_features": m, "method": name}
                records.append({**record, "relative": error})
    head = "depth | features"
    row = "{depth} | {num_features}"
    tables = [
        f"{title}:\n\n{common.wide_table(records, head, row, '{method}', template)}"
        for title, template in (
            ("Relative error", "{relative:.4f}"),
            ("Its standard error", "{relative_se:.4f}"),
            ("Centered relative error", "{centered:.3f}"),
        )
    ]
    common.report(args, "fully_connected-accuracy", "\n\n".join(tables), records)


def timed(args: common.Options, name: str, depth: int, m: int, x: jax.Array) -> tuple:
    """Return the seconds of a first and of a further call of `apply` on x."""
    fmap = feature_map(name, depth, m)
    params = jax.jit(lambda key: fmap.init(key, x))(jax.random.key(0))
    run = jax.jit(functools.partial(fmap.apply, batch_size=args.batch_size))
    return common.seconds(lambda: run(params, x), repeats=7)


def equal_error(args: common.Options) -> None:
    """Compare times of random features and "variance_reduced" at equal error."""
    x = jnp.asarray(common.mnist(args.data)[0][: args.num_timed])
    ours, theirs = "variance_reduced, kernel", "ntk_random_features"
    few = np.asarray(x[:1000])
    kernels = {depth: maps.exact(few, None, depth) for depth in args.depths}

    def errors(name: str, depth: int, m: int) -> np.ndarray:
        fmap = feature_map(name, depth, m)
        return maps.gram_errors(fmap, kernels[depth], few, args.seeds).mean(axis=0)

    records = []
    for depth in args.depths:
        for m in args.num_features[:2]:
            wanted = errors(ours, depth, m)
            for i, kind in enumerate(("relative", "centered")):
                columns = 2 * m
                for _ in range(2):
                    ratio = errors(theirs, depth, columns)[i] / wanted[i]
                    columns = round(columns * ratio**2)
                # In turns, so that both maps see the same machine.
                pairs = ((ours, m), (theirs, columns))
                times = [
                    [timed(args, name, depth, width, x)[1] for name, width in pairs]
                    for _ in range(3)
                ]
                first, second = np.median(times, axis=0)
                records.append(
                    {
                        "depth": depth,
                        "kind": kind,
                        "num_features": m,
                        "error": float(wanted[i]),
                        "columns": columns,
                        "columns_ratio": columns / m,
                        "time_ratio": second / first,
                    }
                )
                print(records[-1], flush=True)
    head = (
        "depth | error | features of variance_reduced, kernel | features of "
        "ntk_random_features, over these | time, over these"
    )
    row = "{depth} | {kind} | {num_features} | {columns_ratio:.1f} | {time_ratio:.1f}"
    text = common.table(records, head, row)
    common.report(args, "fully_connected-equal_error", text, records)


def throughput(args: common.Options) -> None:
    """Measure examples per second of one warm call."""
    x = jnp.asarray(common.mnist(args.data)[0][: args.num_timed])
    records = []
    for name in args.methods:
        first, again = timed(args, name, 1, 8192, x)
        speed, published = len(x) / again, PUBLISHED_SPEED.get(name)
        flops = feature_map(name, 1, 8192).plan((784,)).flops * speed / 1e9
        record = {"method": name, "speed": speed, "published": published}
        record |= {"ratio": published and speed / published}
        records.append({**record, "flops": flops, "first": first})
        print(records[-1], flush=True)
    head = "method | examples/s | published | ratio | Gflop/s | first call, s"
    row = (
        "`{method}` | {speed:,.0f} | {published:,} | {ratio:.1f} | {flops:.0f} | "
        "{first:.1f}"
    )
    # What bounds the speed: a copy of the output, and a matrix product.
    out = jnp.zeros((len(x), 8192), x.dtype)
    copy = jax.jit(lambda z: z + 1)
    speed = len(x) / common.seconds(lambda: copy(out))[1]
    bounds = (
        f"- Writing the output alone: {speed:,.0f} examples/s.\n"
        f"- A dense matrix product: {common.matmul_flops() / 1e9:.0f} Gflop/s."
    )
    text = f"{common.table(records, head, row)}\n\n{bounds}"
    common.report(args, "fully_connected-throughput", text, records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"accuracy": accuracy, "throughput": throughput, "equal_error": equal_error},
        depths=([1, 2, 3], "hidden layers"),
        num_features=([1024, 4096, 8192], "features"),
        seeds=(5, "draws of each map"),
        batch_size=(128, "batch_size of apply"),
        num_timed=(4096, "images whose features are timed"),
        methods=(list(METHODS), "feature maps", METHODS),
    )
