"""General activations: kernels of one layer against the degree and the features.

    python benchmarks/activations.py degree
    python benchmarks/activations.py features --activations ReLU erf --seeds 5

The inputs are Gaussian in d dimensions. Each coordinate has variance 1/d, so that
variances before the activation are near 1 (the protocol of arXiv 2209.04121). Errors
are relative, in Frobenius norms of the kernel with its diagonal. The NNGP kernel
is the dual kernel k, and the NTK is that of a network with an output layer.

"degree" truncates the Hermite series at each input's own standard deviation, without
randomness. It also measures the published approximation, which is one polynomial, with
the coefficients at variance 1, for all inputs. "features" measures the error of Gram
matrices, as root mean square over seeds. The largest maps have fewer seeds.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator

import common
import jax
import jax.numpy as jnp
import maps
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, stax

ACTIVATIONS: dict[str, stax.Activation] = {
    "ReLU": stax.Relu(),
    "Abs": stax.Abs(),
    "sin": stax.Sin(),
    "Gaussian": stax.Gaussian(),
    "erf": stax.Erf(),
    "GELU": stax.Gelu(),
}
METHODS = (
    "ntk_random_features", "ntk_sketch",
    "variance_reduced, regression", "ntk_sketch, uncompressed",
    "variance_reduced",
)  # fmt: skip
# The degrees in the printed table; the JSON file has all.
SHOWN = (1, 4, 8, 20)
# Maps with more columns get fewer seeds.
MANY_COLUMNS = 2**13


@functools.cache
def inputs(num: int, dim: int) -> np.ndarray:
    """Return inputs `(num, dim)` in float64."""
    return np.random.default_rng(0).normal(size=(num, dim)) / dim**0.5


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Use double precision inside the block, on every JAX that is supported."""
    old = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", old)


def exact(name: str, num: int, dim: int) -> dict[str, np.ndarray]:
    """Return the NNGP kernel and the NTK, `(num, num)` each."""
    x = inputs(num, dim)
    with double_precision():
        cov = jnp.asarray(x @ x.T)
        value, slope = kernels.dual(ACTIVATIONS[name]).kernels(cov, jnp.diagonal(cov))
        return {"nngp": np.asarray(value), "ntk": np.asarray(value + cov * slope)}


def series_errors(name: str, num: int, dim: int, degree: int) -> dict[str, list[float]]:
    """Return the errors of both kernels, truncated at the degrees 0 to `degree`."""
    x, relative = inputs(num, dim), jns.validation.relative_error
    cov = x @ x.T
    s = np.sqrt(np.diagonal(cov))
    cosines = cov / np.outer(s, s)
    with double_precision():
        dual = kernels.dual(ACTIVATIONS[name])
        a = np.asarray(dual.coefficients(jnp.asarray(s), degree))
        b = np.asarray(dual.slope_coefficients(jnp.asarray(s), degree))
    whole = exact(name, num, dim)
    value, slope, power = np.zeros_like(cov), np.zeros_like(cov), np.ones_like(cov)
    errors: dict[str, list[float]] = {"nngp": [], "ntk": []}
    # The slope of a polynomial has one degree less.
    for left, right in zip(a.T, b.T, strict=True):
        value += np.outer(left, left) * power
        errors["nngp"].append(relative(whole["nngp"], value))
        errors["ntk"].append(relative(whole["ntk"], value + cov * slope))
        slope += np.outer(right, right) * power
        power *= cosines
    return errors


def published_errors(name: str, num: int, dim: int, degree: int) -> list[float]:
    """Return the NNGP errors of the polynomials with the coefficients at variance 1."""
    x = inputs(num, dim)
    whole = exact(name, num, dim)["nngp"]
    errors = []
    with double_precision():
        cov = jnp.asarray(x @ x.T)
        dual = kernels.dual(ACTIVATIONS[name])
        a = np.asarray(dual.coefficients(jnp.ones(()), degree))
        # From orthonormal polynomials to powers.
        a = a / np.sqrt(np.cumprod([1.0, *range(1, degree + 1)]))
        for q in range(degree + 1):
            powers = np.polynomial.hermite_e.herme2poly(a[: q + 1])
            dual = kernels.dual(stax.Polynomial(tuple(powers)))
            value, _ = dual.kernels(cov, jnp.diagonal(cov))
            errors.append(jns.validation.relative_error(whole, np.asarray(value)))
    return errors


def degree(args: common.Options) -> None:
    """Measure the error against the degree."""
    size = (args.num, args.dim, args.degree)
    records = []
    for name in args.activations:
        errors = series_errors(name, *size)
        errors["published"] = published_errors(name, *size)
        for q in range(args.degree + 1):
            by_kind = {kind: values[q] for kind, values in errors.items()}
            records.append({"activation": name, "degree": q, **by_kind})
    shown = [r for r in records if r["degree"] in SHOWN]
    titles = {"nngp": "NNGP kernel", "published": "Published", "ntk": "NTK"}
    tables = []
    for kind, title in titles.items():
        labels = ("degree", "{degree}", "{activation}")
        table = common.wide_table(shown, *labels, f"{{{kind}:.1e}}")
        tables.append(f"{title}:\n\n{table}")
    common.report(args, "activations-degree", "\n\n".join(tables), records)


def network(name: str, dim: int) -> stax.Layer:
    """Return a network of one hidden layer.

    Its `W_std` undoes the division of inputs by sqrt(d).
    """
    dense = stax.Dense(1, W_std=dim**0.5)
    return stax.serial(dense, ACTIVATIONS[name], stax.Dense(1))


def features(args: common.Options) -> None:
    """Measure the error against the number of features."""
    x = inputs(args.num, args.dim).astype(np.float32)
    records = []
    cases = itertools.product(args.num_features, args.methods, args.activations)
    for m, method, name in cases:
        fmap = maps.feature_map(network(name, args.dim), method, m, args.get)
        kernel = exact(name, *x.shape)[args.get]
        seeds = args.seeds if m < MANY_COLUMNS else args.few_seeds
        errors = maps.gram_errors(fmap, kernel, x, seeds)[:, 0]
        error, se = maps.root_mean_square(errors)
        labels = {"num_features": m, "method": method, "activation": name}
        records.append({**labels, "error": error, "se": se})
        print(records[-1], flush=True)
    head, row = "columns | method", "{num_features:,} | `{method}`"
    text = common.wide_table(records, head, row, "{activation}", "{error:.4f}")
    common.report(args, f"activations-features-{args.get}", text, records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"degree": degree, "features": features},
        activations=(list(ACTIVATIONS), "activations", ACTIVATIONS),
        num=(1000, "inputs"),
        dim=(256, "dimension of the inputs"),
        degree=(20, "largest degree"),
        get=("nngp", "kernel of the features", ("nngp", "ntk")),
        num_features=([256, 1024, 4096, 65536], "features"),
        seeds=(5, "draws of each map"),
        few_seeds=(2, f"draws of maps with {MANY_COLUMNS} features or more"),
        methods=(list(METHODS[:3]), "feature maps", METHODS),
    )
