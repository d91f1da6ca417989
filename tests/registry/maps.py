"""The feature maps of networks, with every method."""

import dataclasses
import functools

import numpy as np
from references import (
    CosineKernel,
    complex_kappa0,
    complex_kappa1,
    kappa0,
    kappa1,
    network_kernels,
    one_pass_kernel,
    power_series,
    sketch_kernels,
)

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax
from jax_ntk_sketch import random_features as random_features
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap
from jax_ntk_sketch.kernels.polynomial_fit import fit_nonnegative
from registry.case import DIM, Case

ROOT2 = 2**0.5
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
LOW_DEGREES = methods.VarianceReduced("regression")
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
    "reduced-shallow": ("shallow", LOW_DEGREES, BOTH, 37, False),
    "reduced-kernel-deep": (
        "deep",
        methods.VarianceReduced(objective="kernel"),
        "ntk",
        30,
        False,
    ),
    "reduced-deep-biased": ("deep-biased", LOW_DEGREES, BOTH, 42, False),
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
    "reduced-signal": ("signal", LOW_DEGREES, BOTH, 70, False),
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
    return fit_nonnegative(function, degree, min_cosine=low)[0]


def map_kernels(fmap: NetworkFeatureMap, x) -> list[np.ndarray]:
    """The exact means of the features' Gram matrices, in the order of the leaves."""
    kinds = [fmap.get] if isinstance(fmap.get, str) else fmap.get
    net, method = fmap.net, fmap.method
    x = x.reshape(-1, *SHAPES.get(fmap.net, (DIM,)))
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
                from_batch=method.batch_dependent,
                shape=SHAPES.get(net, (DIM,)),
            )
        )
    return cases


FEATURE_MAPS = _feature_maps(_MAPS)
CONVOLUTIONS = _feature_maps(_CONVOLUTIONS)
