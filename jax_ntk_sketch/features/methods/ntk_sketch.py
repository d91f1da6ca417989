"""Method "ntk_sketch" (arXiv 2104.00415; arXiv 2106.07880, Algorithm 1)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._numerics import (
    evaluate_eagerly,
    next_power_of_two,
    normalize_rows,
    safe_sqrt,
)
from jax_ntk_sketch._typing import PyTree
from jax_ntk_sketch.features.layers.activations import reference_coefficients
from jax_ntk_sketch.features.state import ExactColumns, Features, Spec
from jax_ntk_sketch.features.step import Context, Step, activation_rule
from jax_ntk_sketch.features.widths import allocate_columns, polysketch_width
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.kernels.polynomial_fit import fit_nonnegative
from jax_ntk_sketch.methods import NTKSketch
from jax_ntk_sketch.sketch import PolySketch, TensorSRHT

__all__ = ["noise_weights"]


def noise_weights(coefficients: np.ndarray) -> np.ndarray:
    """How many columns each power deserves, relative to the others.

    The noise of power j in m_j columns is about c_j^2 j / m_j (linear in j, as the
    tree has it); the sum over j is least where m_j is proportional to c_j sqrt(j).
    """
    return np.asarray(coefficients) * np.sqrt(np.arange(len(coefficients)))


@activation_rule.register
def ntk_sketch_step(
    method: NTKSketch, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    a = spec.nngp_dim
    degree = method.degree
    if context.wants_ntk:
        degree = max(degree, method.derivative_degree)
    value, slope = _series(method, dual, spec.min_cosine, degree)

    # Columns: kappa1's one constant and sizes[j] of power j. kappa0's are not part of
    # the output; its powers from 2 on weigh so little that a quarter of the width is
    # enough for them, and what the Hadamard transform would pad with is used too.
    first = context.max_columns // 2 if context.wants_ntk else context.max_columns
    sizes = np.array(
        allocate_columns(noise_weights(value.squares)[1:], max(first - 1, 0))
    )
    sizes[0] = min(sizes[0], a)
    first = 1 + int(sizes.sum())
    product = max(1, context.max_columns - first) if context.wants_ntk else 0
    inner = np.zeros_like(sizes)
    if context.wants_ntk:
        weights = noise_weights(slope.squares)[1:]
        weights[0] = 0  # the linear part of kappa0 is the features themselves
        padded = next_power_of_two(1 + a + context.max_columns // 4)
        inner = np.array(allocate_columns(weights, padded - 1 - a))
    # Exact columns are left out of the final compression, which is of flat features.
    carried = ExactColumns()
    if not spec.shape:
        carried = ExactColumns(constants=(0,) if value.squares[0] else ())
        if sizes[0] == a:  # the first power is the features themselves
            constants, linears = (
                tuple(1 + i for i in columns)
                for columns in (
                    spec.exact_columns.constants,
                    spec.exact_columns.linears,
                )
            )
            carried = ExactColumns(carried.constants + constants, linears)
    dims = tuple(int(max(s, i)) for s, i in zip(sizes, inner, strict=True))
    columns = (
        context.max_columns if context.wants_ntk else min(first, context.max_columns)
    )
    poly = PolySketch(a, degree, dims, polysketch_width(columns), method.leaf)
    dotted = 1 + a + int(inner.sum())
    mix = TensorSRHT((max(1, spec.ntk_dim), dotted), max(1, product))

    def powers(
        z: Sequence[jax.Array],
        coefficients: jax.Array,
        columns: Sequence[int] | np.ndarray,
    ) -> jax.Array:
        """The powers of z (..., .) side by side, times coefficients (..., degree+1)."""
        parts = [coefficients[..., :1]]
        for j, (zj, size) in enumerate(zip(z[1:], columns, strict=True), 1):
            if size:
                scale = jnp.asarray((zj.shape[-1] / size) ** 0.5, zj.dtype)
                parts.append(coefficients[..., j : j + 1] * scale * zj[..., :size])
        return jnp.concatenate(parts, axis=-1)

    def init(key: jax.Array) -> PyTree:
        poly_key, mix_key = jax.random.split(key)
        params = {"powers": poly.init(poly_key)}
        return params | ({"mix": mix.init(mix_key)} if context.wants_ntk else {})

    def apply(params: PyTree, f: Features) -> Features:
        unit = normalize_rows(f.nngp, f.nngp_diag)
        s = safe_sqrt(f.nngp_diag)
        z = poly.apply(params["powers"], unit)
        nngp = powers(z, value.at(s), sizes)
        ntk = f.ntk
        if context.wants_ntk:
            dot = powers((z[0], unit, *z[2:]), slope.at(s), [a, *inner[1:]])
            ntk = mix.apply(params["mix"], ntk, dot)
        norm2 = dual.diagonal(f.nngp_diag)[0]
        if spec.norms_from_features and not spec.after_dropout:
            norm2 = jnp.sum(nngp**2, axis=-1)
        return Features(nngp, ntk, norm2)

    return Step(
        name="sketch",
        spec=Spec(first, product, exact_columns=carried),
        apply=apply,
        init=init,
        flops=spec.pixels
        * (poly.flops + (mix.flops + dotted if context.wants_ntk else 0) + first),
        live_elements=spec.live_elements()
        + spec.pixels * (sum(dims) + dotted + 4 * context.max_columns),
    )


class _Series(NamedTuple):
    """Of an activation or its derivative: coefficients of the powers of the cosine.

    Attributes:
      squares: (degree + 1,), at variance 1.
      at: standard deviations (...) to the roots with their signs, (..., degree + 1).
    """

    squares: np.ndarray
    at: Callable[[jax.Array], jax.Array]


def _series(
    method: NTKSketch, dual: DualActivation, low: float, degree: int
) -> tuple[_Series, _Series]:
    """Of both, cut off behind the degrees that the method has for each."""
    degrees = (method.degree, method.derivative_degree)
    if method.coefficients == "fit":
        return _fits(method, dual, low, degree)
    both = reference_coefficients(dual, degree)
    masks = [np.arange(degree + 1) <= d for d in degrees]
    functions = (dual.coefficients, dual.slope_coefficients)

    def cut(
        function: Callable[[jax.Array, int], jax.Array], mask: np.ndarray
    ) -> Callable[[jax.Array], jax.Array]:
        return lambda s: function(s, degree) * jnp.asarray(mask, s.dtype)

    first, second = (
        _Series(c * mask, cut(function, mask))
        for c, mask, function in zip(both, masks, functions, strict=True)
    )
    return first, second


def _fits(
    method: NTKSketch, dual: DualActivation, low: float, degree: int
) -> tuple[_Series, _Series]:
    """Nonnegative fits; of functions that are homogeneous, where variances factor."""
    power = dual.homogeneity_degree
    if power is None:
        raise ValueError(
            f'{method!r}: coefficients="fit" is for activations that are homogeneous, '
            'such as Relu; use coefficients="taylor"'
        )

    def fit(which: int, own: int, power: int) -> _Series:
        def function(alpha: np.ndarray) -> np.ndarray:
            one = jnp.ones(())
            return evaluate_eagerly(
                lambda: np.asarray(
                    dual.covariances(jnp.asarray(alpha), one, one)[which]
                )
            )

        c = np.array(fit_nonnegative(function, own, min_cosine=low).coefficients)
        c = np.pad(c, (0, degree + 1 - len(c)))

        def at(s: jax.Array) -> jax.Array:
            scale = s**power if power else s > 0
            return jnp.asarray(np.sqrt(c), s.dtype) * scale[..., None]

        return _Series(c, at)

    return (
        fit(0, method.degree, power),
        fit(1, method.derivative_degree, max(0, power - 1)),
    )
