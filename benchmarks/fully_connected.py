"""Fully connected networks on MNIST: accuracy and throughput.

    python benchmarks/fully_connected.py accuracy --data FOLDER
    python benchmarks/fully_connected.py throughput --data FOLDER

"accuracy" measures the error of the features' Gram matrix against the exact NTK. The
examples are the first 1000 training images over 255. The network has W_std = sqrt(2)
in all layers and no bias. Maps that learn from data see the next 4000 images.
"throughput" measures examples per second, compiled and warm, with 8192 features and one
hidden layer.
"""

import functools

import common
import jax
import jax.numpy as jnp
import maps

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
    "auto",
    "variance_reduced",
    "variance_reduced, regression",
    "one_pass",
    "one_pass, degree 4",
    "one_pass, degree 2",
    "ntk_random_features",
    "ntk_sketch",
    "ntk_sketch, degrees 2, 1",
    "ntk_sketch, degrees 8, 7",
)
LEARNED = ("nystrom", "nystrom, uniform")  # fmt: skip


def accuracy(args: common.Options) -> None:
    """Measure errors, and put the published ones beside them."""
    images = common.mnist(args.data)[0]
    x, sample = images[:1000], images[1000:5000]
    records = []
    for depth in args.depths:
        net, kernel = maps.relu_network(depth), maps.exact(x, None, depth)
        for m in args.num_features:
            for name in args.methods:
                fmap = maps.feature_map(net, name, m)
                errors = maps.gram_errors(fmap, kernel, x, args.seeds, sample).T
                record = {"depth": depth, "num_features": m, "method": name}
                for kind, values in zip(("relative", "centered"), errors, strict=True):
                    record[kind], record[f"{kind}_se"] = common.mean_and_error(values)
                records.append(record)
                print(record, flush=True)
            size = {"depth": depth, "num_features": m}
            same = [r for r in records if size.items() <= r.items()]
            sketches = [r for r in same if r["method"].startswith("ntk_sketch")]
            if sketches:
                best = min(sketches, key=lambda r: r["relative"])
                records.append({**best, "method": "ntk_sketch, best degrees"})
            names = ("published sketch", "published random features")
            for name, error in zip(names, PUBLISHED.get((depth, m), ()), strict=False):
                records.append({**size, "method": name, "relative": error})
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


def throughput(args: common.Options) -> None:
    """Measure examples per second of one warm call."""
    x = jnp.asarray(common.mnist(args.data)[0][: args.num_timed])
    records = []
    for name in args.methods:
        fmap = maps.feature_map(maps.relu_network(1), name, 8192)
        params = fmap.init(jax.random.key(0), x, sample=x)
        run = jax.jit(functools.partial(fmap.apply, batch_size=args.batch_size))
        first, again = common.seconds(functools.partial(run, params, x), repeats=7)
        speed, published = len(x) / again, PUBLISHED_SPEED.get(name)
        flops = fmap.plan((784,)).flops * speed / 1e9
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
        {"accuracy": accuracy, "throughput": throughput},
        depths=([1, 2, 3], "hidden layers"),
        num_features=([1024, 4096, 8192], "features"),
        seeds=(5, "draws of each map"),
        batch_size=(128, "batch_size of apply"),
        num_timed=(4096, "images whose features are timed"),
        methods=(list(METHODS), "feature maps", (*METHODS, *LEARNED)),
    )
