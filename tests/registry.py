"""Every sketch, random feature and feature map; `contract.py` has what all keep."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from references import (
    CosineKernel,
    complex_kappa0,
    complex_kappa1,
    cosines,
    kappa0,
    kappa1,
    network_kernels,
    one_pass_kernel,
    power_series,
    sketch_kernels,
    window_matrices,
)

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, sketch, stax
from jax_ntk_sketch._numerics import next_power_of_two
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.kernels.polynomial_fit import fit_nonnegative
from jax_ntk_sketch.random_features.directions import DIRECTIONS

DIM = 6
ROOT2 = 2**0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """A record of the package and what is known of its features.

    Attributes:
      name: for the test's name.
      record: the frozen record; it has `init` and `apply`.
      columns: of every output, in order.
      kernel: x (n, d) to the exact expectations of the Gram matrices of the outputs,
        float64; None where there is none in closed form.
      large: the same kind of record with a million columns in all.
      variance: likewise the exact variances of the first Gram matrix.
      slack: largest relative bias, where the features are known not to be unbiased.
      zero: whether the zero vector has zero features.
      from_batch: whether the features depend on the whole batch.
    """

    name: str
    record: Any
    columns: tuple[int, ...]
    kernel: Callable[[np.ndarray], list[np.ndarray]] | None = None
    large: Any = None
    variance: Callable[[np.ndarray], np.ndarray] | None = None
    slack: float = 0.0
    zero: bool = True
    from_batch: bool = False

    def __str__(self) -> str:
        return self.name


def shape_of(record: Any) -> tuple[int, ...]:
    """The shape of one example: flat, or the same DIM numbers as an image."""
    if isinstance(record, sketch.PatchSRHT):
        return PATCH_SHAPES[record.window]
    return SHAPES.get(getattr(record, "net", None), (DIM,))


def init(record: Any, key: jax.Array) -> Any:
    shape = [shape_of(record)] if isinstance(record, NetworkFeatureMap) else []
    return record.init(key, *shape)


def apply(record: Any, params: Any, x: Any) -> Any:
    """Features of x (n, DIM); TensorSRHT takes two parts of it, others images."""
    if isinstance(record, sketch.TensorSRHT):
        return record.apply(params, x[..., :2], x[..., 2:])
    shape = shape_of(record)
    if len(shape) > 1:
        x = x.reshape(*x.shape[:-1], *shape)
    out = record.apply(params, x)
    if isinstance(record, sketch.PatchSRHT):  # all positions as one vector
        out = out.reshape(*x.shape[: -len(shape)], -1)
    return out


def features(record: Any, key: jax.Array, x: Any) -> list[jax.Array]:
    return jax.tree.leaves(apply(record, init(record, key), x))


# Half the time of these tests is compilation, of programs that run once or twice.
jit_once = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@contextlib.contextmanager
def quick_compilation():
    """The same for operations outside `jit`."""
    old = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", old)


def error(net, x, kernel, method, num_features, seeds=8):
    """Root mean square over keys of the NTK's relative errors between examples."""
    fmap = jns.feature_map(net, num_features=num_features, method=method)

    @jit_once
    @jax.vmap
    def grams(key):
        z = fmap.apply(fmap.init(key, x.shape[1:]), x)
        return z @ z.T

    off = ~np.eye(len(x), dtype=bool)
    k = np.asarray(grams(jax.random.split(jax.random.key(0), seeds)))
    return np.sqrt(np.mean((k - kernel)[:, off] ** 2) / np.mean(kernel[off] ** 2))


# Sketches.


def inner(x):
    x = np.asarray(x, np.float64)
    return x @ x.T


def one_term(x):
    """m times the variance of CountSketch, of which all other formulas are made."""
    square = np.square(np.asarray(x, np.float64))
    norms = square.sum(1)
    return np.outer(norms, norms) + inner(x) ** 2 - 2 * square @ square.T


def osnap_variance(x, blocks):
    return one_term(x) * sum(1 / size for size in blocks) / len(blocks) ** 2


def rows_moments(x, rows):
    """E A_i A_j of the products A_i = (r_i x)(r_i y), for rows r of entries ±1.

    Rows of one rotation cannot coincide, which makes them negatively correlated.
    """
    size = next_power_of_two(x.shape[1])
    i, j = np.indices((rows, rows))
    same, one = i == j, i // size == j // size
    factor = same - (one & ~same) / max(size - 1, 1)
    return inner(x)[..., None, None] ** 2 + factor * one_term(x)[..., None, None]


def srht_variance(x, rows):
    return rows_moments(x, rows).mean((-1, -2)) - inner(x) ** 2


def tensor_srht_variance(x, rows):
    products = rows_moments(x[:, :2], rows) * rows_moments(x[:, 2:], rows)
    return products.mean((-1, -2)) - tensor(x)[0] ** 2


def tensor(x):
    return [inner(x[:, :2]) * inner(x[:, 2:])]


def powers(x, degrees):
    return [inner(x) ** j for j in degrees]


def _sketches() -> list[Case]:
    def case(name, record, kernel, large, variance=None, zero=True):
        columns = getattr(record, "output_dims", (record.output_dim,))
        return Case(name, record, columns, kernel, large, variance, zero=zero)

    big, partial = 10**6, functools.partial
    linear = partial(powers, degrees=(1,))
    cases = [
        case(
            "CountSketch",
            sketch.CountSketch(DIM, 7),
            linear,
            sketch.CountSketch(784, big),
            partial(osnap_variance, blocks=(7,)),
        ),
        case(
            "OSNAP",
            sketch.OSNAP(DIM, 7, sparsity=3),
            linear,
            sketch.OSNAP(784, big),
            partial(osnap_variance, blocks=(2, 2, 3)),
        ),
        case(
            "HashedOSNAP",
            sketch.HashedOSNAP(DIM, 7, sparsity=3),
            linear,
            sketch.HashedOSNAP(784, big),
            partial(osnap_variance, blocks=(2, 2, 3)),
        ),
        case(
            "SRHT",
            sketch.SRHT(DIM, 5),
            linear,
            sketch.SRHT(784, big),
            partial(srht_variance, rows=5),
        ),
        case(
            "SRHT-stacked",
            sketch.SRHT(DIM, 19),
            linear,
            sketch.SRHT(784, big),
            partial(srht_variance, rows=19),
        ),
        case(
            "TensorSRHT",
            sketch.TensorSRHT((2, 4), 11),
            tensor,
            sketch.TensorSRHT((784, 9), big),
            partial(tensor_srht_variance, rows=11),
        ),
    ]
    for name, arguments in {
        "PolySketch-3": (3, 13),
        "PolySketch-5-osnap": (5, (3, 0, 9, 11, 5), 12, "osnap"),
        "PolySketch-2-srht": (2, (7, 9), 10, "srht"),
    }.items():
        record = sketch.PolySketch(DIM, *arguments)
        degree, leaf = record.degree, record.leaf
        large = sketch.PolySketch(784, degree, big // degree, leaf=leaf)
        exact = partial(_powers_of, sizes=record.output_dims)
        cases.append(case(name, record, exact, large, zero=False))
    return cases


def _patches() -> list[Case]:
    cases = []
    for name, (window, channels, output_dim, bias) in _PATCHES.items():
        record = sketch.PatchSRHT(window, channels, output_dim, bias)
        positions = math.prod(window.output_shape(PATCH_SHAPES[window][:-1]))
        cases.append(
            Case(
                name,
                record,
                (positions * output_dim,),
                functools.partial(patch_kernel, record),
                dataclasses.replace(record, output_dim=10**6),
                zero=not bias,
            )
        )
    return cases


LINE = sketch.Window((4,), padding="SAME")
PLANE = sketch.Window((2, 3), (1, 2), "CIRCULAR")
VOLUME = sketch.Window((3, 1, 3), None, "SAME", (2, 1, 1))
PATCH_SHAPES = {LINE: (3, 2), PLANE: (2, 3, 1), VOLUME: (3, 1, 2, 1)}
_PATCHES = {
    "PatchSRHT-1": (LINE, 2, 5, 0.0),
    "PatchSRHT-2-bias": (PLANE, 1, 5, 0.7),
    "PatchSRHT-3": (VOLUME, 1, 5, 0.0),
    "PatchSRHT-whole": (LINE, 2, 11, 0.5),
}


def patch_kernel(record, x):
    """Summed over the positions."""
    shape, window = shape_of(record), record.window
    m = window_matrices(
        window.shape, window.strides, window.padding, shape[:-1], window.dilation
    )
    pixels = x.reshape(len(x), -1, shape[-1])
    patches = np.einsum("o...p,npc->n...oc", m, pixels).reshape(len(x), -1)
    return [inner(patches) + math.prod(m.shape[1:-1]) * record.bias**2]


def _powers_of(x, sizes):
    return [inner(x) ** j if m else 0 * inner(x) for j, m in enumerate(sizes)]


# Random features.


def step_kernel(x):
    product, alpha = cosines(inner(x))
    return (product > 0) * kappa0(alpha) / 2


def direction_variance(x, num, sphere):
    norms = np.square(np.asarray(x, np.float64)).sum(1)
    fourth = np.outer(norms, norms) + 2 * inner(x) ** 2
    return num * (fourth * (DIM / (DIM + 2) if sphere else 1) - inner(x) ** 2)


def _random_features() -> list[Case]:
    cases, num = [], 11
    for name, directions in DIRECTIONS.items():
        record = directions(DIM, num)
        variance = functools.partial(
            direction_variance, num=num, sphere=name == "sphere"
        )
        # Elsewhere directions depend on each other, and there are no formulas.
        known = name in ("gaussian", "sphere")
        cases.append(
            Case(
                f"{type(record).__name__}-{name}",
                record,
                (num,),
                lambda x: [num * inner(x)],
                directions(784, 10**6),
                variance if known else None,
            )
        )
    return cases


# Feature maps.

SHALLOW = stax.serial(stax.Dense(4, ROOT2), stax.Relu(), stax.Dense(1, 1.3))
BIASED = stax.serial(
    stax.Dense(4, 1.2, 0.4), stax.Relu(), stax.Dense(1, ROOT2, 0.3), stax.Identity()
)
HEADLESS = stax.serial(stax.serial(stax.Dense(4, 1.1), stax.Dense(3)), stax.Relu())
DEEP = stax.serial(
    stax.Dense(4, ROOT2), stax.Relu(), stax.serial(stax.Dense(4, ROOT2), stax.Relu()),
    stax.Dense(2, 0.9),
)  # fmt: skip
DEEP_BIASED = stax.serial(*[stax.Dense(4, 1.2, 0.3), stax.Relu()] * 2, stax.Dense(1))
LINEAR = stax.serial(stax.Dense(4, 1.3, 0.2), stax.Identity(), stax.Dense(1, 0.7))
# Signals with channels first, and images.
SIGNAL = stax.serial(
    stax.Conv(4, (2,), None, "CIRCULAR", 1.2, 0.3, ("NCW", "OIW", "NCW")),
    stax.Relu(), stax.Flatten(), stax.Dense(1, 1.1),
)  # fmt: skip
IMAGE = stax.serial(
    stax.Conv(4, (2, 2), None, "SAME", ROOT2), stax.Relu(), stax.AvgPool((1, 2)),
    stax.Conv(4, (2, 1), None, "SAME", ROOT2), stax.Relu(), stax.GlobalAvgPool(),
    stax.Dense(1, 0.9),
)  # fmt: skip
SHAPES: dict[stax.Layer, tuple[int, ...]] = {SIGNAL: (2, 3), IMAGE: (2, 3, 1)}
NETS = {
    "signal": SIGNAL,
    "image": IMAGE,
    "shallow": SHALLOW,
    "biased": BIASED,
    "headless": HEADLESS,
    "deep": DEEP,
    "deep-biased": DEEP_BIASED,
    "linear": LINEAR,
}
RF = methods.NTKRandomFeatures
PUBLISHED_RF = RF(directions="gaussian", antithetic=False, product="tensor_srht")
TAYLOR_SKETCH = methods.NTKSketch(
    degree=4, derivative_degree=5, coefficients="taylor", leaf="srht", oversample=1.5
)
FIT_SKETCH = methods.NTKSketch(degree=2, derivative_degree=3)
FIT_PASS = methods.OnePass(degree=4)
TAYLOR_PASS = methods.OnePass(degree=5, coefficients="taylor", leaf="osnap")
BOTH = ("nngp", "ntk")

# name: (network, method, get, columns, whether its mean is known).
_MAPS: dict[str, tuple] = {
    "exact-deep-biased": ("deep-biased", methods.Exact(), BOTH, (5, 10), False),
    "exact-deep": ("deep", methods.Exact(), "ntk", (10,), False),
    "rf-shallow": ("shallow", RF(directions="orthogonal"), BOTH, 37, True),
    "rf-biased": ("biased", RF(directions="sphere", antithetic=False), "ntk", 41, True),
    "rf-headless": ("headless", RF(directions="gaussian"), "ntk", 30, True),
    "rf-deep": ("deep", RF(), "ntk", 41, False),
    "rf-published-shallow": ("shallow", PUBLISHED_RF, "ntk", 37, True),
    "rf-published-deep-biased": ("deep-biased", PUBLISHED_RF, BOTH, 42, False),
    "sketch-shallow": ("shallow", FIT_SKETCH, BOTH, 37, True),
    "sketch-biased": ("biased", TAYLOR_SKETCH, "ntk", 45, True),
    "sketch-deep": ("deep", FIT_SKETCH, "ntk", 41, False),
    "sketch-deep-biased": ("deep-biased", TAYLOR_SKETCH, "nngp", 41, False),
    "one_pass-shallow": ("shallow", TAYLOR_PASS, "ntk", 33, True),
    "one_pass-biased": ("biased", FIT_PASS, BOTH, 37, True),
    "one_pass-headless": ("headless", FIT_PASS, "ntk", 12, True),
    "one_pass-deep": ("deep", FIT_PASS, "ntk", 30, True),
    "reduced-shallow": ("shallow", methods.VarianceReduced(), BOTH, 37, False),
    "reduced-kernel-deep": (
        "deep",
        methods.VarianceReduced(objective="kernel"),
        "ntk",
        30,
        False,
    ),
    "reduced-deep-biased": ("deep-biased", methods.VarianceReduced(), BOTH, 42, False),
    "linear": ("linear", FIT_PASS, BOTH, 29, True),
    "linear-compressed": ("linear", FIT_PASS, "ntk", 9, True),
}
_CONVOLUTIONS: dict[str, tuple] = {
    "exact-signal": ("signal", methods.Exact(), "nngp", (5 * 3 * 3,), False),
    "exact-image": ("image", methods.Exact(), BOTH, (20, 40), False),
    "rf-signal": ("signal", RF(directions="gaussian"), BOTH, 70, True),
    "rf-image": ("image", RF(), "ntk", 41, False),
    "sketch-signal": ("signal", FIT_SKETCH, BOTH, 76, True),
    "sketch-image": ("image", FIT_SKETCH, "ntk", 41, False),
    "reduced-signal": ("signal", methods.VarianceReduced(), BOTH, 70, False),
    "reduced-image": ("image", methods.VarianceReduced(), "ntk", 41, False),
}  # fmt: skip


def coefficients(method, function, degree: int, exact) -> np.ndarray:
    """Of the polynomial that a method has for a function of the cosine.

    Args:
      method: with `coefficients`, "taylor" or "fit".
      function: the oracle's own, of real cosines.
      degree: of the polynomial.
      exact: the same function, of complex numbers.
    """
    if method.coefficients == "taylor":
        return power_series(exact, degree)
    low = getattr(method, "min_cosine", -1.0)
    return fit_nonnegative(function, degree, min_cosine=low).coefficients


def map_kernels(fmap: NetworkFeatureMap, x) -> list[np.ndarray]:
    """The exact means of the features' Gram matrices, in the order of the leaves."""
    kinds = [fmap.get] if isinstance(fmap.get, str) else fmap.get
    net, method = fmap.net, fmap.method
    x = x.reshape(-1, *shape_of(fmap))
    if net is SIGNAL:
        x = np.moveaxis(x, 1, -1)
    hidden = any(isinstance(layer, stax.Relu) for layer in stax.walk(net))
    if isinstance(method, methods.OnePass) and hidden:
        oracles = [CosineKernel(net, kind) for kind in kinds]
        fits = [coefficients(method, f, method.degree, f) for f in oracles]
        pairs = zip(kinds, fits, strict=True)
        return [one_pass_kernel(net, kind, c, x) for kind, c in pairs]
    if isinstance(method, methods.NTKSketch):
        c0 = coefficients(method, kappa0, method.derivative_degree, complex_kappa0)
        c1 = coefficients(method, kappa1, method.degree, complex_kappa1)
        both = sketch_kernels(net, c0, c1, x)
    else:
        both = network_kernels(net, x)
    return [both[kind] for kind in kinds]


def _feature_maps(maps: dict[str, tuple]) -> list[Case]:
    cases = []
    for name, (net, method, get, num, known) in maps.items():
        net, kinds = NETS[net], (get,) if isinstance(get, str) else get
        columns = num if isinstance(num, tuple) else (num,) * len(kinds)
        fmap = jns.feature_map(net, num_features=columns[0], get=get, method=method)
        cases.append(
            Case(
                name,
                fmap,
                columns,
                functools.partial(map_kernels, fmap) if known else None,
                dataclasses.replace(fmap, num_features=10**6),
                zero=not any(getattr(layer, "b_std", None) for layer in stax.walk(net)),
                from_batch=isinstance(method, methods.Exact),
            )
        )
    return cases


SKETCHES = _sketches()
PATCHES = _patches()
RANDOM_FEATURES = _random_features()
FEATURE_MAPS = _feature_maps(_MAPS)
CONVOLUTIONS = _feature_maps(_CONVOLUTIONS)
ALL = SKETCHES + PATCHES + RANDOM_FEATURES + FEATURE_MAPS + CONVOLUTIONS
