"""Fully connected networks on MNIST: accuracy and throughput.

    python benchmarks/fully_connected.py accuracy --data FOLDER
    python benchmarks/fully_connected.py throughput equal_error --data FOLDER

"accuracy" is the error of the features' Gram matrix against the exact NTK on the first
1000 training images / 255, W_std = sqrt 2 on all layers, no bias, mean over seeds.
"throughput" is examples a second at 8192 features, one hidden layer, compiled and warm.
"equal_error" gives random features as many columns as they need for the error that
"variance_reduced, kernel" has, and compares times.
"""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax

# Mean relative errors of the published implementations, one pass NTKSketch (the best of
# degree 2, 4, 8) and random features, measured with their PyTorch code.
PUBLISHED = {
    (1, 1024): (0.0977, 0.0863),
    (1, 4096): (0.0539, 0.0503),
    (1, 8192): (0.0419, 0.0351),
    (2, 1024): (0.0951, 0.1396),
    (2, 4096): (0.0472, 0.0712),
    (2, 8192): (0.0339, 0.0551),
    (3, 1024): (0.0829, 0.1514),
    (3, 4096): (0.0448, 0.0794),
    (3, 8192): (0.0316, 0.0685),
}

# Examples a second of the published PyTorch code on two such cores.
PUBLISHED_SPEED = {
    "one_pass, degree 4": 1060,
    "one_pass, degree 8": 740,
    "ntk_random_features": 5500,
}

METHODS = {
    "one_pass, degree 2": methods.OnePass(degree=2),
    "one_pass, degree 4": methods.OnePass(degree=4),
    "one_pass, degree 8": methods.OnePass(degree=8),
    "ntk_random_features": methods.NTKRandomFeatures(),
    "variance_reduced": methods.VarianceReduced(),
    "variance_reduced, kernel": methods.VarianceReduced(objective="kernel"),
    "ntk_sketch, degrees 2, 1": methods.NTKSketch(degree=2, derivative_degree=1),
    "ntk_sketch, degrees 4, 3": methods.NTKSketch(),
    "ntk_sketch, degrees 8, 7": methods.NTKSketch(degree=8, derivative_degree=7),
}


def network(depth: int) -> stax.Layer:
    """`depth` hidden ReLU layers, W_std = sqrt 2."""
    dense = stax.Dense(1, W_std=2**0.5)
    return stax.serial(*[dense, stax.Relu()] * depth, dense)


def exact(x1: np.ndarray, x2: np.ndarray | None, depth: int) -> np.ndarray:
    """The exact NTK in float64."""
    kernel = jns.kernels.exact_kernel(network(depth), x1, x2, get="ntk")
    return np.asarray(kernel, np.float64)


def published(name: str, depth: int, num_features: int) -> float | None:
    """The published method that `name` is compared with; none for "ntk_sketch"."""
    one_pass, random_features = PUBLISHED.get((depth, num_features), (None, None))
    family = name.split(",")[0]
    return {"one_pass": one_pass, "ntk_random_features": random_features}.get(family)


def draws(args, name: str, depth: int, m: int, x, kernel) -> np.ndarray:
    """Relative and centred errors on x, (seeds, 2)."""
    fmap = jns.feature_map(network(depth), num_features=m, method=METHODS[name])
    run = jax.jit(lambda key: fmap.apply(fmap.init(key, x), x))
    errors = []
    for seed in range(args.seeds):
        phi = np.asarray(run(jax.random.key(seed)), np.float64)
        gram = phi @ phi.T
        relative = jns.validation.relative_error(kernel, gram)
        centred = jns.validation.centered_relative_error(kernel, gram)
        errors.append((relative, centred))
    return np.array(errors)


def accuracy(args) -> None:
    """The error table, with the published figures beside it."""
    x = common.mnist(args.data)[0][:1000]
    results = []
    for depth in args.depths:
        kernel = exact(x, None, depth)
        for m in args.num_features:
            for name in args.methods:
                errors = draws(args, name, depth, m, x, kernel)
                mean = np.mean(errors, axis=0)
                error = np.std(errors, axis=0, ddof=1) / np.sqrt(args.seeds)
                results.append(
                    {
                        "depth": depth,
                        "num_features": m,
                        "method": name,
                        "relative": mean[0],
                        "relative_se": error[0],
                        "centred": mean[1],
                        "centred_se": error[1],
                        "published": published(name, depth, m),
                    }
                )
                print(results[-1], flush=True)
    rows = [
        (
            r["depth"],
            r["num_features"],
            r["method"],
            f"{r['relative']:.4f} ± {r['relative_se']:.4f}",
            f"{r['centred']:.3f} ± {r['centred_se']:.3f}",
            "" if r["published"] is None else f"{r['published']:.4f}",
        )
        for r in results
    ]
    head = ("depth", "features", "method", "relative error", "centred", "published")
    common.write(args.output, "accuracy", common.markdown(head, rows), results)


def timed(args, name: str, depth: int, m: int, x: jax.Array) -> tuple[float, float]:
    """Seconds of the first and of a further call on x, compiled as one."""
    fmap = jns.feature_map(network(depth), num_features=m, method=METHODS[name])
    params = jax.jit(lambda key: fmap.init(key, x))(jax.random.key(0))
    run = jax.jit(functools.partial(fmap.apply, batch_size=args.batch))
    return common.seconds(lambda: run(params, x), repeats=7)


def equal_error(args) -> None:
    """Times of random features and "variance_reduced" at the same centred error."""
    x = jnp.asarray(common.mnist(args.data)[0][:4096])
    ours, theirs = "variance_reduced, kernel", "ntk_random_features"
    rows, results = [], []
    for depth in args.depths:
        kernel = exact(x[:1000], None, depth)
        for m in args.num_features:
            # Which falls like the square root: a guess, and one correction of it.
            wanted = draws(args, ours, depth, m, x[:1000], kernel).mean(axis=0)
            columns = 2 * m
            for _ in range(2):
                found = draws(args, theirs, depth, columns, x[:1000], kernel)
                ratio = found.mean(axis=0)[1] / wanted[1]
                columns = round(columns * ratio**2)
            found = draws(args, theirs, depth, columns, x[:1000], kernel).mean(axis=0)
            # In turns, so that both see the same machine.
            times = np.array(
                [
                    [
                        timed(args, ours, depth, m, x)[1],
                        timed(args, theirs, depth, columns, x)[1],
                    ]
                    for _ in range(3)
                ]
            )
            time = np.median(times, axis=0)
            rows.append(
                (
                    depth,
                    m,
                    f"{wanted[0]:.4f}, {wanted[1]:.3f}",
                    f"{1e3 * time[0]:.0f}",
                    columns,
                    f"{found[0]:.4f}, {found[1]:.3f}",
                    f"{1e3 * time[1]:.0f}",
                    f"{time[1] / time[0]:.1f}",
                )
            )
            results.append(
                dict(depth=depth, columns=(m, columns), seconds=time.tolist())
                | {"errors": (wanted.tolist(), found.tolist())}
            )
            print(rows[-1], flush=True)
    head = (
        "depth",
        ours,
        "relative, centred error",
        "ms for 4096",
        theirs,
        "relative, centred error",
        "ms for 4096",
        "times as long",
    )
    common.write(args.output, "equal-error", common.markdown(head, rows), results)


def throughput(args) -> None:
    """Examples a second of one compiled, warm call on 4096 images."""
    x = jnp.asarray(common.mnist(args.data)[0][:4096])
    results = []
    for name in args.methods:
        fmap = jns.feature_map(network(1), num_features=8192, method=METHODS[name])
        first, again = timed(args, name, 1, 8192, x)
        speed = len(x) / again
        flops = fmap.plan((784,)).flops * speed / 1e9
        results.append((name, speed, flops, first, PUBLISHED_SPEED.get(name)))
        print(results[-1], flush=True)
    # What bounds them: a copy of the output, and a matrix product.
    out = jnp.zeros((len(x), 8192), x.dtype)
    copy = jax.jit(lambda z: z + 1)
    square = jnp.zeros((2048, 2048))
    product = jax.jit(lambda z: z @ z)
    _, write_time = common.seconds(lambda: copy(out))
    _, product_time = common.seconds(lambda: product(square))
    bounds = {
        "writing the output alone, examples/s": len(x) / write_time,
        "a dense matrix product, Gflop/s": 2 * 2048**3 / product_time / 1e9,
    }
    rows = [
        (
            name,
            f"{speed:,.0f}",
            f"{published:,}" if published else "",
            f"{speed / published:.1f}" if published else "",
            f"{flops:.0f}",
            f"{first:.1f}",
        )
        for name, speed, flops, first, published in results
    ]
    head = (
        "method",
        "examples/s",
        "published",
        "ratio",
        "planned Gflop/s",
        "first call (s)",
    )
    text = common.markdown(head, rows)
    text += "\n\n" + "\n".join(f"- {k}: {v:,.0f}" for k, v in bounds.items())
    common.write(args.output, "throughput", text, {"methods": results, **bounds})


JOBS = {"accuracy": accuracy, "throughput": throughput, "equal_error": equal_error}


def main() -> None:
    """Runs the jobs that are named."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--num-features", nargs="+", type=int, default=[1024, 4096, 8192]
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--batch", type=int, default=128, help="batch_size of apply, for throughput"
    )
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=list(METHODS)
    )
    common.run_jobs(parser, JOBS)


if __name__ == "__main__":
    main()
