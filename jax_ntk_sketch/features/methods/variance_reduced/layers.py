r"""Method "variance_reduced", layer by layer.

Let P be the NNGP features of a position (of a patch after a convolution), and q its
variance: q = |P|^2, or more after Dropout. P has a part P_c that is the same for all
examples, up to its length. With

    a^2 = |P_c|^2 / q,    rho^2 = 1 - a^2,    t^2 = (|P|^2 / q - a^2) / rho^2,

and e the unit vector of P - P_c, the cosine of two positions is
a a' + rho t rho' t' <e, e'>. The dual kernels of an activation are expanded around
a a', which gives weights g_0 ... g_6 for each position (`expansion`). For the dual
kernel k the features after the activation are

    g_0,    g_1 e_L,    m^(-1/2) (f(w.e) - g_0 - g_1 (w.e)_L)

where e_L are the coordinates of e that are linear in the input, (w.e)_L their part of
w.e, and w one of m random directions. f = g_0 + g_1 h_1 - g_2 h_2 - g_3 h_3 + ... is a
sum of orthonormal Gegenbauer polynomials with alternating signs. The first two blocks
are exact, and only the third one is random.

The NTK features y have constant and linear parts y_C and y_L as well. With g and f now
of the derivative's kernel k', and S a random linear sketch, the NTK features are

    |y_C| g_0,    |y_C| g_1 e_L,    y_L g_0,
    S y * f(w.e) - S (y_C + y_L) g_0 - S y_C g_1 (w.e)_L.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from jax_ntk_sketch._numerics import at_least_float32, safe_reciprocal, safe_sqrt
from jax_ntk_sketch._typing import Array, Key, PyTree
from jax_ntk_sketch.features.expected_kernels import Kernels, after_activation
from jax_ntk_sketch.features.layers.activations import reference_coefficients
from jax_ntk_sketch.features.methods.variance_reduced import expansion
from jax_ntk_sketch.features.patches import Patches, Projection
from jax_ntk_sketch.features.state import ExactColumns, Features, Spec
from jax_ntk_sketch.features.step import Context, Step, accepts_patches, activation_rule
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.kernels.duals.homogeneous import step
from jax_ntk_sketch.methods import VarianceReduced
from jax_ntk_sketch.random_features.zonal import gegenbauer_series_sum
from jax_ntk_sketch.sketch.random_map import init_each

# The signs of f: they keep it bounded.
_SIGNS = tuple(1.0 if i % 4 < 2 else -1.0 for i in range(expansion.DEGREE + 1))


@accepts_patches.register
def variance_reduced_accepts_patches(
    method: VarianceReduced, spec: Spec, context: Context
) -> bool:
    return True


@activation_rule.register
def variance_reduced_step(
    method: VarianceReduced, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    columns = _divide_columns(dual, spec, context)
    x_patches, y_patches = Patches.of(spec, "nngp"), Patches.of(spec, "ntk")
    maps = {"nngp_directions": x_patches.directions(columns.nngp_zonal)}
    if context.wants_ntk:
        maps["slope_directions"] = x_patches.directions(columns.ntk_zonal)
        maps["ntk_sketch"] = y_patches.sketch(columns.ntk_zonal)
    layer = _ExpansionLayer(
        dual=dual,
        exact_high_degrees=method.objective == "kernel",
        after_dropout=spec.after_dropout,
        columns=columns,
        x_patches=x_patches,
        y_patches=y_patches,
        maps=maps,
    )
    flops = sum(projection.flops for projection in maps.values())
    per_column = 5 * expansion.DEGREE + 2 * len(columns.linears) + 8
    flops += per_column * (columns.nngp_zonal + columns.ntk_zonal)
    elements = columns.nngp_total + 4 * columns.ntk_total
    return Step(
        name="constant, linear, zonal",
        spec=Spec(
            columns.nngp_total,
            columns.ntk_total,
            exact_columns=columns.exact_columns(),
        ),
        apply=layer.apply,
        init=layer.init,
        flops=flops * spec.pixels,
        live_elements=spec.live_elements() + elements * spec.pixels,
    )


@after_activation.register
def variance_reduced_kernels(
    method: VarianceReduced, dual: DualActivation, k: Kernels
) -> Kernels:
    """Return the kernels of the expansion."""
    return expansion.expanded_kernels(dual, k, method.objective == "kernel")


class _Columns(NamedTuple):
    """The columns before and after an activation.

    Attributes:
      constants, linears: columns of the NNGP features before it that are used.
      ntk_constants, ntk_linears: columns of the NTK features before it that are used.
      has_constants: whether P_c is not 0; `ntk_has_constants`: whether y_C is not 0.
      nngp_zonal, ntk_zonal: random columns after it; 0 for a kernel that is not wanted.
    """

    constants: tuple[int, ...]
    linears: tuple[int, ...]
    ntk_constants: tuple[int, ...]
    ntk_linears: tuple[int, ...]
    has_constants: bool
    ntk_has_constants: bool
    nngp_zonal: int
    ntk_zonal: int

    @property
    def nngp_total(self) -> int:
        """Columns of the NNGP features after the activation."""
        return 1 + len(self.linears) + self.nngp_zonal

    @property
    def ntk_exact(self) -> int:
        """Exact columns of the NTK features after the activation."""
        constant = self.ntk_has_constants * (1 + len(self.linears))
        return constant + len(self.ntk_linears)

    @property
    def ntk_total(self) -> int:
        """Columns of the NTK features after the activation."""
        return self.ntk_exact + self.ntk_zonal if self.ntk_zonal else 0

    def exact_columns(self) -> ExactColumns:
        """Return the exact columns after the activation."""
        linears = tuple(range(1, 1 + len(self.linears)))
        if not self.ntk_zonal:
            return ExactColumns((0,), linears)
        num_constants = int(self.ntk_has_constants)
        return ExactColumns(
            (0,),
            linears,
            tuple(range(num_constants)),
            tuple(range(num_constants, self.ntk_exact)),
        )


def _divide_columns(dual: DualActivation, spec: Spec, context: Context) -> _Columns:
    exact, max_columns = spec.exact_columns, context.max_columns
    nngp_share = max(1, max_columns // 2 if context.wants_ntk else max_columns)
    has_constants = bool(exact.constants) or bool(Patches.of(spec, "nngp").bias)
    # Even functions have no linear part, unless something constant shifts them.
    has_linear = has_constants or reference_coefficients(dual, 1)[0][1] > 0
    keep_linears = has_linear and 4 * len(exact.linears) <= nngp_share
    linears = exact.linears if keep_linears else ()
    columns = _Columns(
        constants=exact.constants,
        linears=linears,
        ntk_constants=exact.ntk_constants,
        ntk_linears=(),
        has_constants=has_constants,
        ntk_has_constants=bool(exact.ntk_constants)
        or bool(Patches.of(spec, "ntk").bias),
        nngp_zonal=max(1, nngp_share - 1 - len(linears)),
        ntk_zonal=0,
    )
    if not context.wants_ntk:
        return columns
    ntk_share = max(1, max_columns - columns.nngp_total)
    num_linears = len(exact.ntk_linears) + columns.ntk_has_constants * len(linears)
    if 2 * num_linears <= ntk_share:
        columns = columns._replace(ntk_linears=exact.ntk_linears)
    return columns._replace(ntk_zonal=max(1, ntk_share - columns.ntk_exact))


class _Geometry(NamedTuple):
    """The decomposition of the NNGP features P of each position.

    Attributes:
      q: variances, (...).
      norm2: |P|^2, (...).
      a2, rho: a^2 and rho, (...).
      t2: t^2, (...); 1 without Dropout.
      linears: e_L, (..., j).
      inverse_length: 1 / |P - P_c|, (..., 1).
    """

    q: Array
    norm2: Array
    a2: Array
    rho: Array
    t2: Array | float
    linears: Array
    inverse_length: Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _ExpansionLayer:
    """The functions of the step of one activation.

    Attributes:
      dual: the activation.
      exact_high_degrees: whether f has all degrees of a function with a kink.
      after_dropout: as in `Spec`.
      columns: the columns before and after the activation.
      x_patches, y_patches: how P and y are read from images.
      maps: the random maps, "nngp_directions" and, for the NTK, "slope_directions" and
        "ntk_sketch".
    """

    dual: DualActivation
    exact_high_degrees: bool
    after_dropout: bool
    columns: _Columns
    x_patches: Patches
    y_patches: Patches
    maps: dict[str, Projection]

    def init(self, key: Key) -> dict[str, PyTree]:
        """Draw the random maps."""
        return init_each(self.maps, key)

    def apply(self, params: dict[str, PyTree], f: Features) -> Features:
        """Return the features after the activation."""
        dtype, f = f.nngp.dtype, Features(*map(at_least_float32, f))
        geometry = self._geometry(f)
        nngp = self._nngp_features(params, f.nngp, geometry)
        ntk = nngp[..., :0]
        if self.columns.ntk_zonal:
            ntk = self._ntk_features(params, f, geometry)
        nngp_diag = jnp.sum(nngp**2, axis=-1)
        if self.after_dropout:
            nngp_diag = self.dual.diagonal(geometry.q)[0]
        return Features(*(array.astype(dtype) for array in (nngp, ntk, nngp_diag)))

    def _has_high_degrees(self, of_slope: bool) -> bool:
        kink = expansion.with_kink(self.dual, of_slope=of_slope)
        return self.exact_high_degrees and kink is not None

    def _geometry(self, f: Features) -> _Geometry:
        norm2 = q = self.x_patches.squared_norms(f.nngp)
        share: Array | float = 1.0  # |P|^2 / q
        if self.after_dropout:
            q = jnp.maximum(f.nngp_diag, norm2)
            share = norm2 * safe_reciprocal(q)
        constants = self.x_patches.channel_means(f.nngp, self.columns.constants)
        constant_norm2 = jnp.sum(constants**2, axis=-1) + self.x_patches.bias**2
        a2 = jnp.clip(constant_norm2 * safe_reciprocal(q), 0, share)
        t2: Array | float = 1.0
        if self.after_dropout:
            t2 = (share - a2) * safe_reciprocal(1 - a2)
        inverse_length = safe_sqrt(safe_reciprocal(q * (share - a2)))[..., None]
        linears = self.x_patches.channel_means(f.nngp, self.columns.linears)
        linears = linears * inverse_length
        return _Geometry(q, norm2, a2, safe_sqrt(1 - a2), t2, linears, inverse_length)

    def _dual_with_itself(self, geometry: _Geometry, of_slope: bool) -> Array:
        """Return the kernel of features of each position with itself."""
        q = geometry.q
        if self.after_dropout:
            value, slope = self.dual.covariances(geometry.norm2, q, q)
        else:
            value, slope = self.dual.diagonal(q)
        return jnp.where(q > 0, slope, 0) if of_slope else value

    def _zonal_function(
        self, params: dict[str, PyTree], x: Array, geometry: _Geometry, of_slope: bool
    ) -> tuple[list[Array], Array, Array]:
        """Return g_0 ... g_6, and f(w.e) and g_1 (w.e)_L for all directions w."""
        name = "slope_directions" if of_slope else "nngp_directions"
        projection, columns = self.maps[name], self.columns
        dim = projection.sphere_dim
        g = [
            weight[..., None]
            for weight in expansion.expansion_weights(
                self.dual,
                geometry.q,
                geometry.a2,
                geometry.rho,
                dim,
                of_slope=of_slope,
                signed=not columns.has_constants,
                t2=geometry.t2,
            )
        ]
        constant, linear = projection.exact_parts(
            params[name], x, columns.constants, columns.linears
        )
        z = projection.apply(params[name], x) - constant
        z = z * geometry.inverse_length
        weights = [weight * sign for weight, sign in zip(g, _SIGNS, strict=True)]
        linear = linear * geometry.inverse_length * weights[1]
        high = jnp.zeros((), x.dtype)
        if self._has_high_degrees(of_slope):
            function = expansion.with_kink(self.dual, of_slope=of_slope)
            assert function is not None
            low_coefficients, norm = expansion.high_degrees(function.power, dim)
            total = self._dual_with_itself(geometry, of_slope)
            left = total - sum(weight[..., 0] ** 2 for weight in g)
            scale = safe_sqrt(left)[..., None] * (1 / norm)
            high = scale * (-jnp.abs(z) if function.power else 2 * step(z) - 1)
            weights = [
                weight - scale * low
                for weight, low in zip(weights, low_coefficients, strict=True)
            ]
        f = gegenbauer_series_sum(z * dim**-0.5, weights, dim) + high
        return g, f, linear

    def _nngp_features(
        self, params: dict[str, PyTree], x: Array, geometry: _Geometry
    ) -> Array:
        g, f, linear = self._zonal_function(params, x, geometry, of_slope=False)
        zonal = (f - linear - g[0]) * self.columns.nngp_zonal**-0.5
        return jnp.concatenate([g[0], g[1] * geometry.linears, zonal], axis=-1)

    def _ntk_features(
        self, params: dict[str, PyTree], features: Features, geometry: _Geometry
    ) -> Array:
        x, y = features.nngp, features.ntk
        g, f, linear = self._zonal_function(params, x, geometry, of_slope=True)
        sketch, sketch_params = self.maps["ntk_sketch"], params["ntk_sketch"]
        constants, linears = self.columns.ntk_constants, self.columns.ntk_linears
        y_constant, y_linear = sketch.exact_parts(sketch_params, y, constants, linears)
        zonal = sketch.apply(sketch_params, y) * f
        zonal = zonal - (y_constant + y_linear) * g[0] - y_constant * linear
        blocks = [self.y_patches.channel_means(y, linears) * g[0], zonal]
        if self.columns.ntk_has_constants:
            squares = jnp.sum(self.y_patches.channel_means(y, constants) ** 2, axis=-1)
            norm = safe_sqrt(squares + self.y_patches.bias**2)[..., None]
            blocks = [norm * g[0], norm * g[1] * geometry.linears, *blocks]
        return jnp.concatenate(blocks, axis=-1)
