"""The dual of each activation of the language: a closed form, or quadrature."""

import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import evaluate_eagerly, lift, safe_sqrt
from jax_ntk_sketch._typing import Array
from jax_ntk_sketch.kernels.arc_cosine import cosine
from jax_ntk_sketch.kernels.duals.base import (
    DualActivation,
    MissingFunctionError,
    Scalar,
    Smooth,
)
from jax_ntk_sketch.kernels.duals.homogeneous import Homogeneous
from jax_ntk_sketch.kernels.duals.polynomial import (
    ExpNormalizedDual,
    HermiteDual,
    PolynomialDual,
)

# Nodes in each of two dimensions for a function without a closed form.
QUADRATURE_NODES = 64


@functools.singledispatch
def dual(layer: stax.Activation) -> DualActivation:
    """Return the Gaussian averages of an activation; one rule per record type.

    Args:
      layer: an activation, a record of `jax_ntk_sketch.stax`.

    Returns:
      A `DualActivation`. Its `kernels(nngp, diag1, diag2)` are the covariances of the
      activation and of its derivative, and `coefficients(s, degree)` its Hermite
      coefficients at standard deviations s. `value(z, s)` and `slope(z, s)` are the
      function and its derivative.

    Raises:
      TypeError: `layer` is not an activation.
      ValueError: the function of `layer` is not elementwise, or its quadrature
        diverges.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch import stax
    >>> from jax_ntk_sketch.kernels import dual
    >>> q = jnp.ones(1)
    >>> k, slope = dual(stax.Erf()).kernels(jnp.array([[0.5]]), q, q)
    >>> round(float(k[0, 0]), 4), round(float(slope[0, 0]), 4)
    (0.2163, 0.4502)
    """
    raise TypeError(f"dual: layer must be an activation such as Relu(), got {layer!r}")


# The rules that only name a class or another activation.
_RULES: dict[type[stax.Activation], Callable[[Any], DualActivation]] = {
    stax.Relu: lambda layer: Homogeneous(1, 1.0, 0.0),
    stax.ABRelu: lambda layer: Homogeneous(1, layer.b, -layer.a),
    stax.LeakyRelu: lambda layer: Homogeneous(1, 1.0, -layer.alpha),
    stax.Abs: lambda layer: Homogeneous(1, 1.0, 1.0),
    stax.Sign: lambda layer: Homogeneous(0, 1.0, -1.0),
    stax.RectifiedMonomial: lambda layer: Homogeneous(layer.degree, 1.0, 0.0),
    stax.Monomial: lambda layer: PolynomialDual((0.0,) * layer.degree + (1.0,)),
    stax.Polynomial: lambda layer: PolynomialDual(layer.coef),
    stax.Hermite: lambda layer: HermiteDual(layer.degree),
    stax.ExpNormalized: lambda layer: ExpNormalizedDual(layer.gamma, layer.shift),
    stax.Sigmoid_like: lambda layer: dual(stax.Erf(0.5, 1 / 2.4020563531719796, 0.5)),
    stax.Cos: lambda layer: dual(stax.Sin(layer.a, layer.b, layer.c + math.pi / 2)),
    stax.Rbf: lambda layer: dual(
        stax.Sin(math.sqrt(2), math.sqrt(2 * layer.gamma), math.pi / 4)
    ),
}
for _record, _rule in _RULES.items():
    dual.register(_record, _rule)


@dual.register
def erf_dual(layer: stax.Erf) -> DualActivation:
    a, b, c = layer.a, layer.b, layer.c

    def covariances(cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        determinant = 4 * b**4 * _determinant(cov, q1, q2)
        root = safe_sqrt(1 + 2 * b * b * (q1 + q2) + determinant)
        k = a * a * 2 / math.pi * jnp.arctan2(2 * b * b * cov, root) + c * c
        return k, (2 * a * b) ** 2 / math.pi / root

    return Smooth(
        lambda x: a * erf(b * x) + c,
        lambda x: 2 * a * b / math.sqrt(math.pi) * jnp.exp(-((b * x) ** 2)),
        covariances,
    )


@dual.register
def gelu_dual(layer: stax.Gelu) -> DualActivation:
    def phi(x: Array) -> Array:
        return jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def covariances(cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        # With w = (1 + q1) (1 + q2) - cov^2.
        w = 1 + q1 + q2 + _determinant(cov, q1, q2)
        root = safe_sqrt(w)
        angle = jnp.arctan2(cov, root)
        share1, share2 = 1 / (1 + q1), 1 / (1 + q2)
        k = cov * share1 * (cov * share2) / root + q1 * share1 * (q2 * share2) * root
        slope = cov / root * (1 / w + share1 + share2) + angle
        return (k + cov * angle) / (2 * math.pi) + cov / 4, slope / (2 * math.pi) + 0.25

    return Smooth(
        lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
        lambda x: (1 + erf(x / math.sqrt(2))) / 2 + x * phi(x),
        covariances,
    )


@dual.register
def sin_dual(layer: stax.Sin) -> DualActivation:
    a, b, c = layer.a, layer.b, layer.c

    def covariances(cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        mean, cov = b * b * (q1 + q2) / 2, b * b * cov
        same = jnp.exp(cov - mean)
        mirrored = math.cos(2 * c) * jnp.exp(-cov - mean)
        k = a * a / 2 * (same - mirrored)
        return k, (a * b) ** 2 / 2 * (same + mirrored)

    return Smooth(
        lambda x: a * jnp.sin(b * x + c),
        lambda x: a * b * jnp.cos(b * x + c),
        covariances,
    )


@dual.register
def gaussian_dual(layer: stax.Gaussian) -> DualActivation:
    a, b = layer.a, layer.b

    def covariances(cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        w = 1 - 2 * b * (q1 + q2) + 4 * b * b * _determinant(cov, q1, q2)
        root = jnp.sqrt(w)
        return a * a / root, (2 * a * b) ** 2 * cov / (w * root)

    return Smooth(
        lambda x: a * jnp.exp(b * x * x),
        lambda x: 2 * a * b * x * jnp.exp(b * x * x),
        covariances,
        1 / (4 * b) if b > 0 else math.inf,
    )


@dual.register
def exp_dual(layer: stax.Exp) -> DualActivation:
    a, b = layer.a, layer.b

    def covariances(cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        k = a * a * jnp.exp(b * b * (cov + (q1 + q2) / 2))
        return k, b * b * k

    return Smooth(
        lambda x: a * jnp.exp(b * x), lambda x: a * b * jnp.exp(b * x), covariances
    )


@dual.register
def gabor_dual(layer: stax.Gabor) -> DualActivation:
    def covariances(cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        # With sign 1, the Gaussian integral of exp(-x^2 - y^2) cos(x - y), and with
        # sign -1 that of cos(x + y). The product of the sines is half their difference.
        determinant = 4 * _determinant(cov, q1, q2)
        w = 1 + 2 * (q1 + q2) + determinant
        rest = q1 + q2 + determinant

        def integral(sign: float) -> tuple[Array, Array]:
            """Return the integral and its derivative by the covariance."""
            exponent = -(rest - sign * 2 * cov) / (2 * w)
            value = jnp.exp(exponent) / jnp.sqrt(w)
            d_rest = -8 * cov - sign * 2
            d_w = -8 * cov
            d_exponent = -d_rest / (2 * w) - exponent * d_w / w
            return value, value * (d_exponent - d_w / (2 * w))

        (same, d_same), (mirrored, d_mirrored) = integral(1.0), integral(-1.0)
        return (same - mirrored) / 2, (d_same - d_mirrored) / 2

    return Smooth(
        lambda x: jnp.exp(-x * x) * jnp.sin(x),
        lambda x: jnp.exp(-x * x) * (jnp.cos(x) - 2 * x * jnp.sin(x)),
        covariances,
    )


@dual.register
def elementwise_numerical_dual(layer: stax.ElementwiseNumerical) -> DualActivation:
    return _numerical_dual("ElementwiseNumerical", layer.fn, layer.df, layer.deg)


@dual.register
def elementwise_dual(layer: stax.Elementwise) -> DualActivation:
    fn, nngp_fn = layer.fn, layer.nngp_fn
    if nngp_fn is None:
        assert fn is not None
        return _numerical_dual("Elementwise", fn, None, QUADRATURE_NODES)
    slope_fn = layer.d_nngp_fn or jax.grad(nngp_fn)

    def covariances(cov: Array, q1: Array, q2: Array) -> tuple[Array, Array]:
        value, slope = jnp.vectorize(nngp_fn), jnp.vectorize(slope_fn)
        return value(cov, q1, q2), slope(cov, q1, q2)

    if fn is None:
        return Smooth(_missing_function, _missing_function, covariances)
    df = _derivative(fn)
    _check_elementwise("Elementwise", fn, df)
    return Smooth(fn, df, covariances)


@functools.lru_cache(maxsize=64)
def _numerical_dual(
    owner: str, fn: Scalar, df: Scalar | None, num_nodes: int
) -> DualActivation:
    df = df or _derivative(fn)
    _check_elementwise(owner, fn, df)
    _check_quadrature(owner, fn)
    return Smooth(fn, df, functools.partial(_quadrature, fn, df, num_nodes))


def _determinant(cov: Array, q1: Array, q2: Array) -> Array:
    """Return q1 q2 - cov^2, which does not cancel where the cosine is exactly 1."""
    norms, alpha = cosine(cov, q1, q2)
    alpha = jnp.clip(alpha, -1, 1)
    return norms * norms * ((1 - alpha) * (1 + alpha))


def _quadrature(
    fn: Scalar, df: Scalar, num_nodes: int, cov: Array, q1: Array, q2: Array
) -> tuple[Array, Array]:
    """Return k and k' by Gauss-Hermite quadrature in two dimensions.

    u is sqrt(q1) times one normal variable; v is its regression on u plus another one.
    """
    x, w = np.polynomial.hermite_e.hermegauss(num_nodes)
    w = w / w.sum()
    cov, q1, q2 = jnp.broadcast_arrays(cov, q1, q2)
    root = safe_sqrt(q1)
    nonzero = root > 0
    regression = jnp.where(nonzero, cov / jnp.where(nonzero, root, 1), 0)
    residual = q2 - regression**2
    residual = safe_sqrt(jnp.where(residual > 0, residual, 0))
    nodes = jnp.asarray(x, cov.dtype)
    weights, wide = jnp.asarray(w, cov.dtype), residual[..., None]

    def add_node(
        totals: tuple[Array, Array], node: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        x_i, w_i = node
        u = root * x_i
        v = regression[..., None] * x_i + wide * lift(nodes, wide)
        k, slope = (f(u) * jnp.matmul(f(v), weights) for f in (fn, df))
        return (totals[0] + w_i * k, totals[1] + w_i * slope), None

    zero = jnp.zeros_like(cov)
    return jax.lax.scan(add_node, (zero, zero), (nodes, weights))[0]


def _derivative(fn: Scalar) -> Scalar:
    def df(x: Array) -> Array:
        return jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]

    return df


def _check_elementwise(owner: str, fn: Scalar, df: Scalar) -> None:
    shape = jax.ShapeDtypeStruct((3, 2), jnp.float32)
    try:
        # Wrapped: JAX 0.10 crashes on callables without weak references, such as
        # NumPy's ufuncs.
        shapes = [jax.eval_shape(lambda x, f=f: f(x), shape).shape for f in (fn, df)]
    except Exception as error:
        raise ValueError(
            f"{owner}: fn must take arrays, elementwise, in jax.numpy, but {fn} failed "
            f"on an array of shape (3, 2): {type(error).__name__}: "
            f"{str(error).splitlines()[0]}; use jnp.where in place of if, or "
            "jnp.vectorize"
        ) from error
    if any(s != (3, 2) for s in shapes):
        raise ValueError(
            f"{owner}: fn must be elementwise, but {fn} and its derivative map an "
            f"array of shape (3, 2) to shapes {shapes}"
        )


def _check_quadrature(owner: str, fn: Scalar) -> None:
    """Check that E fn(z)^2, z standard normal, is finite and found by the nodes."""
    means = []
    for num_nodes in (40, 60, 80):
        z, w = np.polynomial.hermite_e.hermegauss(num_nodes)
        values = np.asarray(
            evaluate_eagerly(functools.partial(fn, jnp.asarray(z))), np.float64
        )
        keep = w > 0
        means.append(float((w[keep] * values[keep] ** 2).sum() / w.sum()))
    spread = max(means) - min(means)
    if not np.isfinite(means).all() or spread > 0.2 * abs(means[-1]):
        raise ValueError(
            f"{owner}: the Gaussian average of {fn} squared diverges: quadratures with "
            f"40, 60 and 80 nodes give {', '.join(f'{m:.3g}' for m in means)} at "
            "variance 1; the function must grow more slowly than exp(x^2 / 4)"
        )


def _missing_function(x: Array) -> NoReturn:
    raise MissingFunctionError(
        "Elementwise: this method draws features of the function, but fn is None; give "
        'fn together with nngp_fn, or use method="exact"'
    )
