"""The dual of every activation of the language: closed forms, or quadrature."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import safe_sqrt
from jax_ntk_sketch.kernels.duals.base import (
    DualActivation,
    MissingFunctionError,
    Smooth,
    evaluate_eagerly,
)
from jax_ntk_sketch.kernels.duals.homogeneous import Homogeneous
from jax_ntk_sketch.kernels.duals.polynomial import (
    ExpNormalizedDual,
    HermiteDual,
    PolynomialDual,
)

__all__ = ["QUADRATURE_NODES", "dual"]

# Nodes in each of two dimensions for a function without a closed form.
QUADRATURE_NODES = 64


@functools.singledispatch
def dual(layer: stax.Activation) -> DualActivation:
    """What an activation does to EnsemblePrediction; one implementation per record type.

    Args:
      layer: a record of `jax_ntk_sketch.stax`, an activation.

    Returns:
      A `DualActivation`: `kernels(nngp, diag1, diag2)` gives the covariances of the activation
      and of its derivative, `coefficients(s, degree)` its Hermite coefficients at
      standard deviations s, `value(z, s)` and `slope(z, s)` the function and its
      derivative.

    Raises:
      TypeError: there is no rule for the record.
      ValueError: a function that is not elementwise, or whose quadrature diverges.

    >>> q = jnp.ones(1)
    >>> k, slope = dual(stax.Erf()).kernels(jnp.array([[0.5]]), q, q)
    >>> round(float(k[0, 0]), 4), round(float(slope[0, 0]), 4)
    (0.2163, 0.4502)
    """
    raise TypeError(f"{layer!r} is no activation with a dual kernel")


@dual.register
def relu_dual(layer: stax.Relu) -> DualActivation:
    return Homogeneous(1, 1.0, 0.0)


@dual.register
def ab_relu_dual(layer: stax.ABRelu) -> DualActivation:
    return Homogeneous(1, layer.b, -layer.a)


@dual.register
def leaky_relu_dual(layer: stax.LeakyRelu) -> DualActivation:
    return Homogeneous(1, 1.0, -layer.alpha)


@dual.register
def abs_dual(layer: stax.Abs) -> DualActivation:
    return Homogeneous(1, 1.0, 1.0)


@dual.register
def sign_dual(layer: stax.Sign) -> DualActivation:
    return Homogeneous(0, 1.0, -1.0)


@dual.register
def rectified_monomial_dual(layer: stax.RectifiedMonomial) -> DualActivation:
    return Homogeneous(layer.degree, 1.0, 0.0)


@dual.register
def monomial_dual(layer: stax.Monomial) -> DualActivation:
    return PolynomialDual((0.0,) * layer.degree + (1.0,))


@dual.register
def polynomial_dual(layer: stax.Polynomial) -> DualActivation:
    return PolynomialDual(layer.coef)


@dual.register
def hermite_dual(layer: stax.Hermite) -> DualActivation:
    return HermiteDual(layer.degree)


@dual.register
def exp_normalized_dual(layer: stax.ExpNormalized) -> DualActivation:
    return ExpNormalizedDual(layer.gamma, layer.shift)


@dual.register
def erf_dual(layer: stax.Erf) -> DualActivation:
    a, b, c = layer.a, layer.b, layer.c

    def pair(cov, q1, q2):
        x = 2 * b * b * cov
        root = safe_sqrt((1 + 2 * b * b * q1) * (1 + 2 * b * b * q2) - x * x)
        k = a * a * 2 / math.pi * jnp.arctan2(x, root) + c * c
        return k, (2 * a * b) ** 2 / math.pi / root

    return Smooth(
        lambda x: a * erf(b * x) + c,
        lambda x: 2 * a * b / math.sqrt(math.pi) * jnp.exp(-((b * x) ** 2)),
        pair,
    )


@dual.register
def sigmoid_like_dual(layer: stax.Sigmoid_like) -> DualActivation:
    return dual(stax.Erf(0.5, 1 / 2.4020563531719796, 0.5))


@dual.register
def gelu_dual(layer: stax.Gelu) -> DualActivation:
    def phi(x):
        return jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def pair(cov, q1, q2):
        # With w = (1 + q1) (1 + q2) - c^2 and t = c / sqrt w.
        both = (1 + q1) * (1 + q2)
        w = both - cov * cov
        root = safe_sqrt(w)
        angle = jnp.arctan2(cov, root)
        k = (cov * cov + q1 * q2 * w) / (both * root) + cov * angle
        slope = cov / root * (1 / w + (1 - q1 * q2) / both + 1) + angle
        return k / (2 * math.pi) + cov / 4, slope / (2 * math.pi) + 0.25

    return Smooth(
        lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
        lambda x: (1 + erf(x / math.sqrt(2))) / 2 + x * phi(x),
        pair,
    )


@dual.register
def sin_dual(layer: stax.Sin) -> DualActivation:
    a, b, c = layer.a, layer.b, layer.c

    def pair(cov, q1, q2):
        mean, cov = b * b * (q1 + q2) / 2, b * b * cov
        same, mirrored = (
            jnp.exp(cov - mean),
            math.cos(2 * c) * jnp.exp(-cov - mean),
        )
        k = a * a / 2 * (same - mirrored)
        return k, (a * b) ** 2 / 2 * (same + mirrored)

    return Smooth(
        lambda x: a * jnp.sin(b * x + c), lambda x: a * b * jnp.cos(b * x + c), pair
    )


@dual.register
def cos_dual(layer: stax.Cos) -> DualActivation:
    return dual(stax.Sin(layer.a, layer.b, layer.c + math.pi / 2))


@dual.register
def rbf_dual(layer: stax.Rbf) -> DualActivation:
    return dual(stax.Sin(math.sqrt(2), math.sqrt(2 * layer.gamma), math.pi / 4))


@dual.register
def gaussian_dual(layer: stax.Gaussian) -> DualActivation:
    a, b = layer.a, layer.b

    def pair(cov, q1, q2):
        w = (1 - 2 * b * q1) * (1 - 2 * b * q2) - (2 * b * cov) ** 2
        root = jnp.sqrt(w)
        return a * a / root, (2 * a * b) ** 2 * cov / (w * root)

    return Smooth(
        lambda x: a * jnp.exp(b * x * x),
        lambda x: 2 * a * b * x * jnp.exp(b * x * x),
        pair,
        1 / (4 * b) if b > 0 else math.inf,
    )


@dual.register
def exp_dual(layer: stax.Exp) -> DualActivation:
    a, b = layer.a, layer.b

    def pair(cov, q1, q2):
        k = a * a * jnp.exp(b * b * (cov + (q1 + q2) / 2))
        return k, b * b * k

    return Smooth(lambda x: a * jnp.exp(b * x), lambda x: a * b * jnp.exp(b * x), pair)


@dual.register
def gabor_dual(layer: stax.Gabor) -> DualActivation:
    def pair(cov, q1, q2):
        # Gaussian integrals of exp(-x^2 - y^2) cos(x -+ y); sin sin is half their
        # difference, the derivative that of it by the covariance.
        w = (1 + 2 * q1) * (1 + 2 * q2) - 4 * cov * cov
        rest = q1 + q2 + 4 * (q1 * q2 - cov * cov)

        def part(sign: float):
            exponent = -(rest - sign * 2 * cov) / (2 * w)
            value = jnp.exp(exponent) / jnp.sqrt(w)
            # Of the exponent and of log w by the covariance.
            d_rest = -8 * cov - sign * 2
            d_w = -8 * cov
            d_exponent = -d_rest / (2 * w) - exponent * d_w / w
            return value, value * (d_exponent - d_w / (2 * w))

        (same, d_same), (mirrored, d_mirrored) = part(1.0), part(-1.0)
        return (same - mirrored) / 2, (d_same - d_mirrored) / 2

    return Smooth(
        lambda x: jnp.exp(-x * x) * jnp.sin(x),
        lambda x: jnp.exp(-x * x) * (jnp.cos(x) - 2 * x * jnp.sin(x)),
        pair,
    )


@dual.register
def elementwise_numerical_dual(layer: stax.ElementwiseNumerical) -> DualActivation:
    return _numerical("ElementwiseNumerical", layer.fn, layer.df, layer.deg)


@dual.register
def elementwise_dual(layer: stax.Elementwise) -> DualActivation:
    fn, nngp_fn = layer.fn, layer.nngp_fn
    if nngp_fn is None:
        assert fn is not None
        return _numerical("Elementwise", fn, None, QUADRATURE_NODES)
    slope = layer.d_nngp_fn or jax.grad(nngp_fn)

    def pair(cov, q1, q2):
        return jnp.vectorize(nngp_fn)(cov, q1, q2), jnp.vectorize(slope)(cov, q1, q2)

    if fn is None:
        return Smooth(_no_function, _no_function, pair)
    df = _derivative(fn)
    _check_elementwise("Elementwise", fn, df)
    return Smooth(fn, df, pair)


@functools.lru_cache(maxsize=64)
def _numerical(
    name: str, fn: Callable, df: Callable | None, deg: int
) -> DualActivation:
    df = df or _derivative(fn)
    _check_elementwise(name, fn, df)
    _check_quadrature(name, fn)
    return Smooth(fn, df, functools.partial(_quadrature, fn, df, deg))


def _quadrature(
    fn: Callable, df: Callable, deg: int, cov: jax.Array, q1: jax.Array, q2: jax.Array
) -> Any:
    """Both averages by Gauss-Hermite quadrature in two dimensions.

    u is sqrt(q1) times one normal variable, v its regression on u and another.
    """
    x, w = np.polynomial.hermite_e.hermegauss(deg)
    w = w / w.sum()
    cov, q1, q2 = jnp.broadcast_arrays(cov, q1, q2)
    root = safe_sqrt(q1)
    some = root > 0
    along = jnp.where(some, cov / jnp.where(some, root, 1), 0)
    rest = q2 - along**2
    rest = safe_sqrt(jnp.where(rest > 0, rest, 0))
    nodes = jnp.asarray(x, cov.dtype)
    weights = jnp.asarray(w, cov.dtype)

    def step(total, node):
        xi, wi = node
        u, v = root * xi, along[..., None] * xi + rest[..., None] * nodes
        both = [f(u) * jnp.matmul(f(v), weights) for f in (fn, df)]
        return tuple(t + wi * b for t, b in zip(total, both, strict=True)), None

    zero = jnp.zeros_like(cov)
    return jax.lax.scan(step, (zero, zero), (nodes, weights))[0]


def _derivative(fn: Callable) -> Callable:
    """Of an elementwise function."""

    def df(x: jax.Array) -> jax.Array:
        return jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]

    return df


def _check_elementwise(name: str, fn: Callable, df: Callable) -> None:
    shape = jax.ShapeDtypeStruct((3, 2), jnp.float32)
    try:
        # Wrapped: JAX 0.10 crashes on what holds no weak references, as NumPy's ufuncs.
        shapes = [jax.eval_shape(lambda x, f=f: f(x), shape).shape for f in (fn, df)]
    except Exception as error:
        raise ValueError(
            f"{name}: fn must take arrays, elementwise, in jax.numpy (jnp.where in "
            f"place of if; jnp.vectorize helps), but {fn} failed on one of shape "
            f"(3, 2): {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    if any(s != (3, 2) for s in shapes):
        raise ValueError(
            f"{name}: fn must be elementwise, but {fn} takes an array of shape (3, 2) "
            f"to shapes {shapes} (itself and its derivative)"
        )


def _check_quadrature(name: str, fn: Callable) -> None:
    """Whether E fn(z)^2, z standard normal, is finite and found by nodes."""
    means = []
    for num in (40, 60, 80):
        z, w = np.polynomial.hermite_e.hermegauss(num)
        values = np.asarray(
            evaluate_eagerly(functools.partial(fn, jnp.asarray(z))), np.float64
        )
        keep = w > 0
        means.append(float((w[keep] * values[keep] ** 2).sum() / w.sum()))
    last = means[-1]
    if not np.isfinite(means).all() or max(means) - min(means) > 0.2 * abs(last):
        raise ValueError(
            f"{name}: the Gaussian average of {fn} squared diverges: quadratures with "
            f"40, 60 and 80 nodes give {', '.join(f'{m:.3g}' for m in means)} at "
            "variance 1. It must grow more slowly than exp(x^2 / 4)"
        )


def _no_function(x: Any) -> Any:
    raise MissingFunctionError(
        "Elementwise: this method draws features of the function, but fn is None; give "
        'fn beside nngp_fn, or use method="exact"'
    )
