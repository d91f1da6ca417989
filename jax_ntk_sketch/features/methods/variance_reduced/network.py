r"""Method "variance_reduced" for networks whose kernel is a function of the cosine.

The kernel of the network is N f(alpha) + c, see `_zonal_kernel`. A `ZonalFit` divides
the columns among an exact constant, a linear part and zonal features. With u the unit
vector of an example's features before the first `Relu` and r their norm, the features
of the network are

.. math:: r \sqrt{b_0} \oplus r \sqrt{b_1} S u \oplus r \phi(u) \oplus \sqrt{c}

where S is the identity or an `SRHT`, and :math:`\phi` are `ZonalFeatures`.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import normalize_rows, safe_sqrt
from jax_ntk_sketch._typing import PyTree
from jax_ntk_sketch.features.expected_kernels import Kernels
from jax_ntk_sketch.features.methods._zonal_kernel import ZonalKernel, zonal_steps
from jax_ntk_sketch.features.state import Features, Spec, with_constant
from jax_ntk_sketch.features.step import Context, Step, network_rule
from jax_ntk_sketch.kernels.zonal_fit import (
    ZonalFit,
    zonal_fit_low_degree,
    zonal_fit_min_error,
)
from jax_ntk_sketch.methods import VarianceReduced
from jax_ntk_sketch.random_features import ZonalFeatures
from jax_ntk_sketch.random_features.zonal import sphere_dim
from jax_ntk_sketch.sketch import SRHT
from jax_ntk_sketch.sketch.random_map import RandomMap, init_each

# The degree of the power series. The rest is below 1e-3 of the kernel at cosine 0.9.
_SERIES_DEGREE = 40

# Tables have fewer inputs, and are often standardized and of low rank, so that cosines
# below -2 / sqrt(d) occur. With images they do not, and their error would rise.
_MANY_INPUTS = 64


@network_rule.register
def variance_reduced_network_steps(
    method: VarianceReduced, net: stax.Layer, spec: Spec, context: Context
) -> list[Step]:
    last_step = functools.partial(_zonal_step, method)
    return zonal_steps(method, net, spec, context, last_step)


def zonal_fit(
    method: VarianceReduced,
    kernel: ZonalKernel,
    input_dim: int,
    num_columns: int,
) -> ZonalFit:
    """Return the division of `num_columns` columns for f of d-dimensional inputs."""
    series, dim = kernel.series(_SERIES_DEGREE), sphere_dim(input_dim)
    if method.objective == "regression":
        return zonal_fit_low_degree(series, input_dim, dim, num_columns)
    rare_below = -2 * input_dim**-0.5
    if method.min_cosine is not None:
        min_cosine, rare_below = method.min_cosine, -1.0
    elif input_dim < _MANY_INPUTS:
        min_cosine = -1.0
    else:
        min_cosine = rare_below
    return zonal_fit_min_error(
        kernel.function,
        series,
        input_dim,
        dim,
        num_columns,
        min_cosine=min_cosine,
        rare_below=rare_below,
    )


def _zonal_step(
    method: VarianceReduced,
    kernel: ZonalKernel,
    input_dim: int,
    max_columns: int,
) -> Step:
    """Return the step from the first `Relu` to the output."""
    num_constants = int(kernel.constant > 0)
    fit = zonal_fit(method, kernel, input_dim, max(1, max_columns - num_constants))
    linear_columns = min(fit.linear_columns, input_dim)
    parts: dict[str, RandomMap] = {}
    if linear_columns < input_dim:
        parts["linear"] = SRHT(input_dim, linear_columns)
    columns = num_constants + int(fit.constant > 0) + linear_columns
    if fit.zonal_columns and any(fit.weights):
        parts["zonal"] = ZonalFeatures(input_dim, fit.zonal_columns, fit.weights)
        columns += fit.zonal_columns
    diag_at_one = float(fit.values(np.array(1.0)))

    def apply(params: dict[str, PyTree], f: Features) -> Features:
        unit = normalize_rows(f.nngp, f.nngp_diag)
        norm = safe_sqrt(f.nngp_diag)[..., None]
        linear = unit
        if "linear" in parts:
            linear = parts["linear"].apply(params["linear"], unit)
        blocks = [linear * (norm * math.sqrt(fit.linear))]
        if fit.constant > 0:
            blocks.insert(0, norm * math.sqrt(fit.constant))
        if "zonal" in parts:
            blocks.append(norm * parts["zonal"].apply(params["zonal"], unit))
        phi = jnp.concatenate(blocks, axis=-1)
        phi = with_constant(phi, math.sqrt(kernel.constant))
        nngp_diag = f.nngp_diag * diag_at_one + kernel.constant
        return Features.of_kind(kernel.kind, phi, nngp_diag)

    def error(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exact = kernel.function(alpha)
        return exact, (fit.values(alpha) - exact) ** 2 + fit.variance(alpha)

    def mean(k: Kernels) -> np.ndarray:
        return kernel.of_inputs(k, fit.values)

    degree = max((i for i, weight in enumerate(fit.weights) if weight), default=1)
    return Step(
        name=f"constant, {linear_columns} linear, {fit.zonal_columns} zonal columns of "
        f"degree <= {degree}",
        spec=Spec.of_kind(kernel.kind, columns),
        apply=apply,
        init=functools.partial(init_each, parts),
        flops=sum(part.flops for part in parts.values()) + 2 * columns,
        live_elements=3 * input_dim + 4 * columns,
        error=error,
        mean=mean,
    )
