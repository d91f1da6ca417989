"""Measure the mean gradients of inner products of features, against the kernel's.

Job "means" compares the mean over keys of the gradient of <phi(x), phi(y)> with the
gradient of the NTK of Neural Tangents, for x and y of 8 numbers, unit variance and a
cosine. The network has one hidden `Relu` layer. Gradients are taken by x, in a network
without biases, and by all `W_std` and `b_std` where the method takes `scales`. Each
cell has the relative error of the mean, its standard error and, in brackets, the root
mean square of the relative errors of single draws. Landmarks are chosen among 1000
normal examples or, in another row, are 254 of them, x and y.
"""

import functools
from collections.abc import Callable

import common
import jax
import jax.numpy as jnp
import maps
import numpy as np
from numpy.typing import NDArray

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax
from jax_ntk_sketch.interop import neural_tangents as jnt

COSINES = (0.0, 0.8, 0.99)
DIM = 8
PLAIN = maps.relu_network(1)
BIASED = stax.serial(stax.Dense(1, 1.4, 0.3), stax.Relu(), stax.Dense(1, 1.2, 0.2))
NETS = {"x": PLAIN, "scales": BIASED}
NAMES = (
    "ntk_random_features", "published random features", "exact", "nystrom",
    "nystrom, x and y among the landmarks",
    "variance_reduced, regression", "ntk_sketch",
    "one_pass", "one_pass, degree 24",
)  # fmt: skip
METHODS: dict[str, methods.Method] = {
    **maps.METHODS,
    "exact": methods.Exact(),
    "nystrom, x and y among the landmarks": methods.Nystrom(oversample=1.0),
    "one_pass, degree 24": methods.OnePass(degree=24),
}
SAMPLE = np.random.default_rng(7).normal(size=(1000, DIM)).astype(np.float32)


def pair(cosine: float) -> NDArray:
    """Return x and y, (2, DIM), of unit variance and with this cosine."""
    x, y = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, 2)))[0].T
    y = cosine * x + np.sqrt(1 - cosine**2) * y
    return (DIM**0.5 * np.stack([x, y])).astype(np.float32)


def flat(tree: object) -> jax.Array:
    """Return the leaves of a pytree as one vector."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.cache
def exact_gradient(by: str, cosine: float) -> NDArray:
    """Return the gradient of Neural Tangents' NTK by x or by the scales, in float64."""
    net, enabled = NETS[by], jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        x, y = jnp.asarray(pair(cosine), float)

        def kernel(x: jax.Array, scales: object) -> jax.Array:
            kernel_fn = jnt.to_stax(net, scales=scales)[2]
            return kernel_fn(x[None], y[None], "ntk")[0, 0]

        scales = jns.feature_map(net, num_features=1, method="exact").scales()
        slope = jax.jit(jax.grad(kernel, argnums=0 if by == "x" else 1))
        return np.asarray(flat(slope(x, jax.tree.map(jnp.asarray, scales))))
    finally:
        jax.config.update("jax_enable_x64", enabled)


def gradients(
    method: methods.Method, by: str, cosine: float, num_features: int
) -> Callable[[jax.Array], jax.Array]:
    """Return the compiled function from keys (k,) to gradients (k, p)."""
    fmap = jns.feature_map(NETS[by], num_features=num_features, method=method)
    x, y = pair(cosine)
    sample = SAMPLE
    if isinstance(method, methods.Nystrom) and method.oversample == 1:
        sample = np.concatenate([SAMPLE[: num_features - 2], pair(cosine)])

    def gradient(key: jax.Array) -> jax.Array:
        def product(x: jax.Array, scales: object) -> jax.Array:
            params = fmap.init(key, (DIM,), sample=sample, scales=scales)
            phi = fmap.apply(params, jnp.stack([x, y]), scales=scales)
            return phi[0] @ phi[1]

        if by == "x":
            return jax.grad(lambda x: product(x, None))(jnp.asarray(x))
        return flat(jax.grad(product, argnums=1)(jnp.asarray(x), fmap.scales()))

    return jax.jit(lambda keys: jax.lax.map(gradient, keys))


def mean_error(
    method: methods.Method,
    by: str,
    cosine: float,
    *,
    num_features: int = 256,
    wanted: float = 0.0095,
    max_keys: int = 16000,
) -> common.Record:
    """Return the relative error of the mean gradient, its standard error and others.

    Args:
      method: a record.
      by: what gradients are taken by, "x" or "scales".
      cosine: of x and y.
      num_features: the columns of the features.
      wanted: keys are drawn until the standard error is below this.
      max_keys: at most so many are drawn.
    """
    exact = exact_gradient(by, cosine)
    run = gradients(method, by, cosine, num_features)
    length = np.linalg.norm(exact)
    deviation, values, size = np.inf, np.zeros((0, len(exact))), 20
    key = jax.random.key(0)
    while deviation > wanted and len(values) < max_keys:
        keys = jax.random.split(jax.random.fold_in(key, len(values)), size)
        values = np.concatenate([values, np.asarray(run(keys), float)])
        deviation = np.sqrt((values.var(0, ddof=1) / len(values)).sum()) / length
    error = np.linalg.norm(values.mean(0) - exact) / length
    single = np.linalg.norm(values - exact, axis=1) / length
    return {
        "error": float(error),
        "error_se": float(deviation),
        "single": float(np.sqrt(np.mean(single**2))),
        "keys": len(values),
    }


def means(args: common.Options) -> None:
    """Measure the table of mean gradients."""
    kept = common.Kept(args.output, "gradients-means")
    for name in args.methods:
        method = METHODS[name]
        for by in ("x", "scales") if method.takes_scales else ("x",):
            for cosine in args.cosines:
                run = functools.partial(
                    mean_error, method, by, cosine,
                    num_features=args.num_features, max_keys=args.max_keys,
                )  # fmt: skip
                kept.get(run, method=name, by=by, cosine=cosine)
    records = list(kept.results.values())
    text = common.wide_table(
        records,
        "method | by",
        "{method} | {by}",
        "cosine {cosine}",
        "{error:.3f} ± {error_se:.3f} ({single:.2f})",
    )
    common.report(args, "gradients-means", text, records)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"means": means},
        methods=(list(NAMES), "the methods"),
        cosines=(list(COSINES), "the cosines of x and y"),
        num_features=(256, "the columns of the features"),
        max_keys=(16000, "the largest number of keys"),
    )
