"""General activations: kernels of one layer against the degree and the features.

    python benchmarks/activations.py degree
    python benchmarks/activations.py features --activations relu erf --seeds 5

Gaussian inputs of d dimensions, each coordinate of variance 1/d, so that what enters
the activation has variances near 1 (protocol of Han et al., arXiv 2209.04121). The
error is that of the whole kernel, Frobenius norms, the diagonal included. The NNGP
kernel is the dual kernel k, the NTK that of the network with an output layer, k + c k'.

"degree" cuts the Hermite series off, without randomness: sum a_l(s) a_l(t) cos^l with
the coefficients at each input's own standard deviation; and, beside it, the kernel of
the polynomial with the coefficients of variance 1 for all inputs, which is the
published approximation. "features" is the error of the features' Gram matrices, root
mean square over seeds (fewer for the largest maps, the table says how many).
"""

import contextlib
import functools
import time

import common
import jax
import jax.numpy as jnp
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, methods, stax

ACTIVATIONS = {
    "relu": stax.Relu(),
    "abs": stax.Abs(),
    "sin": stax.Sin(),
    "gaussian": stax.Gaussian(),
    "erf": stax.Erf(),
    "gelu": stax.Gelu(),
}
METHODS = {
    "ntk_random_features": methods.NTKRandomFeatures(),
    "ntk_sketch": methods.NTKSketch(),
    "ntk_sketch, uncompressed": methods.NTKSketch(oversample=1.0),
    "variance_reduced": methods.VarianceReduced(),
    "variance_reduced, kernel": methods.VarianceReduced(objective="kernel"),
}
# Degrees in the printed table; the JSON has all.
SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 20)
# From so many columns on there are fewer seeds.
MANY = 2**13


@functools.cache
def inputs(num: int, dim: int) -> np.ndarray:
    """(num, dim), float64."""
    return np.random.default_rng(0).normal(size=(num, dim)) / dim**0.5


@contextlib.contextmanager
def double():
    """Double precision inside the block, on every JAX that is supported."""
    old = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", old)


def relative(k: np.ndarray, approximation: np.ndarray) -> float:
    """The relative error of the whole kernel in the Frobenius norm."""
    return float(np.linalg.norm(k - approximation) / np.linalg.norm(k))


def exact(name: str, num: int, dim: int) -> dict[str, np.ndarray]:
    """NNGP kernel and NTK, (num, num) each."""
    x = inputs(num, dim)
    with double():
        cov = jnp.asarray(x @ x.T)
        value, slope = kernels.dual(ACTIVATIONS[name]).kernels(cov, jnp.diagonal(cov))
        return {"nngp": np.asarray(value), "ntk": np.asarray(value + cov * slope)}


def series_errors(name: str, num: int, dim: int, degree: int) -> dict[str, list[float]]:
    """Errors of both kernels at the degrees 0..degree."""
    x = inputs(num, dim)
    cov = x @ x.T
    s = np.sqrt(np.diagonal(cov))
    alpha = cov / np.outer(s, s)
    with double():
        dual = kernels.dual(ACTIVATIONS[name])
        a = np.asarray(dual.coefficients(jnp.asarray(s), degree))
        b = np.asarray(dual.slope_coefficients(jnp.asarray(s), degree))
    whole = exact(name, num, dim)
    value, slope = np.zeros_like(cov), np.zeros_like(cov)
    power = np.ones_like(cov)
    errors: dict[str, list[float]] = {"nngp": [], "ntk": []}
    # The slope of a polynomial has a degree less.
    for left, right in zip(a.T, b.T, strict=True):
        value += np.outer(left, left) * power
        errors["nngp"].append(relative(whole["nngp"], value))
        errors["ntk"].append(relative(whole["ntk"], value + cov * slope))
        slope += np.outer(right, right) * power
        power *= alpha
    return errors


def published_errors(name: str, num: int, dim: int, degree: int) -> list[float]:
    """Of the polynomials that the Hermite series at variance 1 are, the NNGP kernel."""
    x = inputs(num, dim)
    whole = exact(name, num, dim)["nngp"]
    out = []
    with double():
        cov = jnp.asarray(x @ x.T)
        a = np.asarray(
            kernels.dual(ACTIVATIONS[name]).coefficients(jnp.ones(()), degree)
        )
        # Orthonormal polynomials to powers.
        a = a / np.sqrt(np.cumprod([1.0, *range(1, degree + 1)]))
        for q in range(degree + 1):
            powers = np.polynomial.hermite_e.herme2poly(a[: q + 1])
            dual = kernels.dual(stax.Polynomial(tuple(powers)))
            value, _ = dual.kernels(cov, jnp.diagonal(cov))
            out.append(relative(whole, np.asarray(value)))
    return out


def degree(args) -> None:
    """Tables of the error against the degree, and how far norms vary."""
    size = (args.num, args.dim, args.degree)
    results, tables = [], []
    shown = [q for q in SHOWN if q <= args.degree]
    rows: dict[str, list[tuple]] = {"NNGP": [], "NNGP, published": [], "NTK": []}
    for name in args.activations:
        errors = series_errors(name, *size)
        errors["published"] = published_errors(name, *size)
        results.append(dict(activation=name, **errors))
        for title, kind in zip(rows, ("nngp", "published", "ntk"), strict=True):
            rows[title].append((name, *(f"{errors[kind][q]:.1e}" for q in shown)))
    for title, body in rows.items():
        tables.append(common.markdown((f"{title}, degree", *map(str, shown)), body))
    common.write(args.output, "activations-degree", "\n\n".join(tables), results)


def network(name: str, dim: int) -> stax.Layer:
    """One hidden layer; W_std undoes the division of inputs by sqrt(d)."""
    dense = stax.Dense(1, W_std=dim**0.5)
    return stax.serial(dense, ACTIVATIONS[name], stax.Dense(1))


def features(args) -> None:
    """Tables of the error against the number of features."""
    x = inputs(args.num, args.dim).astype(np.float32)
    sizes = [2**p for p in args.powers]
    seeds = [args.seeds if m < MANY else args.few for m in sizes]
    rows, results = [], []
    for name in args.activations:
        whole = exact(name, args.num, args.dim)[args.get]
        for method in args.methods:
            row = []
            for m, count in zip(sizes, seeds, strict=True):
                fmap = jns.feature_map(
                    network(name, args.dim),
                    num_features=m,
                    get=args.get,
                    method=METHODS[method],
                )
                errors, start = [], time.perf_counter()
                for seed in range(count):
                    params = fmap.init(jax.random.key(seed), x.shape[1:])
                    phi = jns.transform(fmap, params, x, batch_size=125, progress=False)
                    errors.append(relative(whole, phi @ phi.T))
                spent = time.perf_counter() - start
                row.append(float(np.sqrt(np.mean(np.square(errors)))))
                results.append(
                    dict(
                        activation=name,
                        method=method,
                        get=args.get,
                        num_features=m,
                        errors=errors,
                        seconds=spent,
                    )
                )
            rows.append((name, method, *(f"{e:.4f}" for e in row)))
            print(" | ".join(rows[-1]), flush=True)
    columns = [f"2^{p} ({count})" for p, count in zip(args.powers, seeds, strict=True)]
    head = (f"{args.get}, features (seeds)", "method", *columns)
    title = f"activations-features-{args.get}-{'-'.join(args.activations)}"
    common.write(args.output, title, common.markdown(head, rows), results)


JOBS = {"degree": degree, "features": features}


def main() -> None:
    """Runs the jobs that are named."""
    parser = common.parser(__doc__ or "")
    names = list(ACTIVATIONS)
    parser.add_argument("--activations", nargs="+", default=names, choices=names)
    parser.add_argument("--num", type=int, default=1000, help="inputs")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--degree", type=int, default=20)
    parser.add_argument("--get", default="nngp", choices=("nngp", "ntk"))
    parser.add_argument(
        "--powers", nargs="+", type=int, default=list(range(5, 17)), help="of two"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--few", type=int, default=2, help=f"seeds from {MANY} columns on"
    )
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS)[:4], choices=list(METHODS)
    )
    common.run_jobs(parser, JOBS)


if __name__ == "__main__":
    main()
