r"""Method "ntk_sketch": polynomial sketches of the dual kernels of activations.

At an activation let q be the variance of an example, u the unit vector of its NNGP
features, and y its NTK features. Truncated series of the dual kernels are

    k = sum_j a_j(q) a_j(q') alpha^j,    k' = sum_j b_j(q) b_j(q') alpha^j.

A `PolySketch` makes Z_j, a sketch of the tensor power of u of degree j. The features
after the activation are

    x' = (a_0, a_1 Z_1, ..., a_p Z_p),    y' = T(y, (b_0, b_1 u, b_2 Z_2, ..., b_r Z_r))

where T is a `TensorSRHT`.

Source: arXiv 2104.00415; arXiv 2106.07880, Algorithm 1.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._numerics import (
    evaluate_eagerly,
    lift,
    next_power_of_two,
    normalize_rows,
    safe_sqrt,
)
from jax_ntk_sketch._typing import Array, Key, PyTree
from jax_ntk_sketch.features.expected_kernels import (
    Kernels,
    after_activation,
)
from jax_ntk_sketch.features.layers.activations import on_host, reference_coefficients
from jax_ntk_sketch.features.state import ExactColumns, Features, Spec
from jax_ntk_sketch.features.step import Context, Step, activation_rule
from jax_ntk_sketch.features.widths import allocate_columns, polysketch_width
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.kernels.polynomial_fit import fit_nonnegative
from jax_ntk_sketch.methods import NTKSketch
from jax_ntk_sketch.sketch import PolySketch, TensorSRHT


def noise_weights(coefficients: np.ndarray) -> np.ndarray:
    """Return the columns that each power deserves, relative to the others.

    The noise of power j in m_j columns is about c_j^2 j / m_j, because the noise of the
    tree is linear in j. The sum over j is smallest for m_j proportional to c_j sqrt(j).
    """
    return np.asarray(coefficients) * np.sqrt(np.arange(len(coefficients)))


@activation_rule.register
def ntk_sketch_step(
    method: NTKSketch, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    input_dim, max_columns = spec.nngp_dim, context.max_columns
    value, slope = _dual_series(method, dual, spec.min_cosine, context.wants_ntk)
    columns = _divide_columns(value, slope, input_dim, context)
    total = max_columns if context.wants_ntk else min(columns.nngp_total, max_columns)
    sizes = tuple(max(pair) for pair in zip(columns.nngp, columns.slope, strict=True))
    poly = PolySketch(
        input_dim, len(sizes), sizes, polysketch_width(total), method.leaf
    )
    product = TensorSRHT(
        (max(1, spec.ntk_dim), columns.slope_total), max(1, columns.ntk_total)
    )

    def init(key: Key) -> dict[str, PyTree]:
        powers_key, product_key = jax.random.split(key)
        params: dict[str, PyTree] = {"powers": poly.init(powers_key)}
        if context.wants_ntk:
            params["product"] = product.init(product_key)
        return params

    def apply(params: dict[str, PyTree], f: Features) -> Features:
        unit, deviation = normalize_rows(f.nngp, f.nngp_diag), safe_sqrt(f.nngp_diag)
        powers = poly.apply(params["powers"], unit)
        nngp = _weighted_powers(powers, value.at(deviation), columns.nngp)
        ntk = f.ntk
        if context.wants_ntk:
            # The linear part of the derivative's kernel is not sketched.
            exact = (powers[0], unit, *powers[2:])
            slope_columns = (input_dim, *columns.slope[1:])
            slopes = _weighted_powers(exact, slope.at(deviation), slope_columns)
            ntk = product.apply(params["product"], ntk, slopes)
        nngp_diag = dual.diagonal(f.nngp_diag)[0]
        if spec.norms_from_features and not spec.after_dropout:
            nngp_diag = jnp.sum(nngp**2, axis=-1)
        return Features(nngp, ntk, nngp_diag)

    flops = poly.flops + columns.nngp_total
    if context.wants_ntk:
        flops += product.flops + columns.slope_total
    exact_columns = _exact_columns(spec, columns, bool(value.squares[0]))
    elements = sum(sizes) + columns.slope_total + 4 * max_columns
    return Step(
        name="sketch",
        spec=Spec(columns.nngp_total, columns.ntk_total, exact_columns=exact_columns),
        apply=apply,
        init=init,
        flops=spec.pixels * flops,
        live_elements=spec.live_elements() + spec.pixels * elements,
    )


@after_activation.register
def ntk_sketch_kernels(method: NTKSketch, dual: DualActivation, k: Kernels) -> Kernels:
    """Return the kernels of the polynomials."""
    value, slope, same = on_host(_roots(method, dual, k.min_cosine), k.variances)
    length = np.sqrt(k.variances)
    norms = np.outer(length, length)
    alpha = np.divide(k.nngp, norms, where=norms > 0, out=np.zeros_like(norms))
    powers = alpha[..., None] ** np.arange(value.shape[1])
    nngp, slopes = (np.einsum("ij,kj,ikj->ik", a, a, powers) for a in (value, slope))
    if k.from_features and not k.after_dropout:
        same = np.diagonal(nngp)
    return k.through(dual, nngp, slopes, same)


@functools.lru_cache(maxsize=64)
def _roots(
    method: NTKSketch, dual: DualActivation, min_cosine: float
) -> Callable[[Array], tuple[Array, ...]]:
    """Return a compiled function of variances: a_j, b_j and the dual kernel itself."""
    value, slope = _dual_series(method, dual, min_cosine, True)

    def roots(q: Array) -> tuple[Array, ...]:
        s = safe_sqrt(q)
        return value.at(s), slope.at(s), dual.diagonal(q)[0]

    return jax.jit(roots)


class _Columns(NamedTuple):
    """The columns of an activation.

    Attributes:
      nngp: of the powers 1..degree in x'.
      slope: of the powers 2..degree in the second factor of y', after a 0 for power 1.
      slope_total: of the second factor, in all.
      ntk_total: of y'.
    """

    nngp: tuple[int, ...]
    slope: tuple[int, ...]
    slope_total: int
    ntk_total: int

    @property
    def nngp_total(self) -> int:
        """Columns of x'; the constant is one of them."""
        return 1 + sum(self.nngp)


def _divide_columns(
    value: "_Series", slope: "_Series", input_dim: int, context: Context
) -> _Columns:
    share, max_columns = context.sketch_columns, context.max_columns
    nngp = list(allocate_columns(noise_weights(value.squares)[1:], max(share - 1, 0)))
    nngp[0] = min(nngp[0], input_dim)
    if not context.wants_ntk:
        return _Columns(tuple(nngp), (0,) * len(nngp), 1 + input_dim, 0)
    # The second factor of y' is not part of the output. Its powers from 2 on weigh so
    # little that a quarter of the columns is enough for them. Columns that the Hadamard
    # transform would pad are used too.
    weights = noise_weights(slope.squares)[1:]
    weights[0] = 0  # the linear part is the unit vector itself
    padded = next_power_of_two(1 + input_dim + max_columns // 4)
    slope_columns = allocate_columns(weights, padded - 1 - input_dim)
    return _Columns(
        tuple(nngp),
        slope_columns,
        slope_total=1 + input_dim + sum(slope_columns),
        ntk_total=max(1, max_columns - 1 - sum(nngp)),
    )


def _exact_columns(spec: Spec, columns: _Columns, has_constant: bool) -> ExactColumns:
    """Return the exact columns of x' of flat features, which are not compressed."""
    if spec.shape:
        return ExactColumns()
    constants = (0,) if has_constant else ()
    if columns.nngp[0] < spec.nngp_dim:
        return ExactColumns(constants)
    # The first power is the features themselves.
    before = spec.exact_columns
    return ExactColumns(
        constants + tuple(1 + i for i in before.constants),
        tuple(1 + i for i in before.linears),
    )


def _weighted_powers(
    powers: Sequence[Array], coefficients: Array, columns: Sequence[int]
) -> Array:
    """Return powers (..., m_j) side by side, times coefficients (..., degree + 1).

    Of power j >= 1 the first `columns[j - 1]` columns are taken, and scaled.
    """
    parts = [coefficients[..., :1]]
    for j, (power, size) in enumerate(zip(powers[1:], columns, strict=True), start=1):
        if size:
            scale = jnp.asarray((power.shape[-1] / size) ** 0.5, power.dtype)
            parts.append(coefficients[..., j : j + 1] * scale * power[..., :size])
    return jnp.concatenate(parts, axis=-1)


class _Series(NamedTuple):
    """The series of one dual kernel.

    Attributes:
      squares: the coefficients of k at variance 1, (degree + 1,).
      at: takes standard deviations (...) to the roots a_j, with their signs,
        (..., degree + 1).
    """

    squares: np.ndarray
    at: Callable[[Array], Array]


def _dual_series(
    method: NTKSketch, dual: DualActivation, min_cosine: float, wants_ntk: bool
) -> tuple[_Series, _Series]:
    """Return the series of both kernels, each cut off after the method's degree."""
    degree = method.degree
    if wants_ntk:
        degree = max(degree, method.derivative_degree)
    if method.coefficients == "fit":
        return _fitted_series(method, dual, min_cosine, degree)

    def cut_off(
        squares: np.ndarray, series: Callable[[Array, int], Array], last: int
    ) -> _Series:
        mask = np.arange(degree + 1) <= last

        def coefficients(s: Array) -> Array:
            full = series(s, degree)
            return full * lift(jnp.asarray(mask, full.dtype), full)

        return _Series(squares * mask, coefficients)

    value, slope = reference_coefficients(dual, degree)
    return (
        cut_off(value, dual.coefficients, method.degree),
        cut_off(slope, dual.slope_coefficients, method.derivative_degree),
    )


def _fitted_series(
    method: NTKSketch, dual: DualActivation, min_cosine: float, degree: int
) -> tuple[_Series, _Series]:
    """Return nonnegative fits; of homogeneous functions, whose variances factor."""
    power = dual.homogeneity_degree
    if power is None:
        raise ValueError(
            f"feature_map: {method!r} is for homogeneous activations such as Relu, "
            'because of coefficients="fit"; use coefficients="taylor"'
        )

    def fit(of_slope: bool, last: int, power: int) -> _Series:
        def kernel(alpha: np.ndarray) -> np.ndarray:
            one = jnp.ones(())
            pair = evaluate_eagerly(
                lambda: dual.covariances(jnp.asarray(alpha), one, one)
            )
            return np.asarray(pair[int(of_slope)])

        c, _ = fit_nonnegative(kernel, last, min_cosine=min_cosine)
        c = np.pad(c, (0, degree + 1 - len(c)))

        def at(s: Array) -> Array:
            scale = s**power if power else s > 0
            return jnp.asarray(np.sqrt(c), s.dtype) * scale[..., None]

        return _Series(c, at)

    return (
        fit(False, method.degree, power),
        # Without the NTK the degree is that of the activation alone.
        fit(True, min(degree, method.derivative_degree), max(0, power - 1)),
    )
