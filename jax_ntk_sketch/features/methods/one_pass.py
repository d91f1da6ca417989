r"""Method "one_pass": one polynomial for a whole fully connected network.

The kernel of the network is N f(alpha) + c, see `_zonal_kernel`. f is replaced by a
polynomial :math:`\sum_j c_j \alpha^j` with :math:`c_j \ge 0`. With u the unit vector of
an example's features before the first `Relu` and r their norm, the features are

.. math:: r \sqrt{c_0} \oplus r \sqrt{c_1} Z_1 \oplus \dots \oplus r \sqrt{c_p} Z_p
   \oplus \sqrt{c}

where a `PolySketch` makes :math:`Z_j`, a sketch of :math:`u^{\otimes j}`.

Source: the experiments of arXiv 2106.07880.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import normalize_rows, safe_sqrt
from jax_ntk_sketch._typing import PyTree
from jax_ntk_sketch.features.expected_kernels import Kernels
from jax_ntk_sketch.features.methods._zonal_kernel import (
    ZonalKernel,
    why_not_zonal,
    zonal_steps,
)
from jax_ntk_sketch.features.methods.ntk_sketch import noise_weights
from jax_ntk_sketch.features.state import Features, Spec, with_constant
from jax_ntk_sketch.features.step import Context, Step, network_rule
from jax_ntk_sketch.features.widths import allocate_columns, polysketch_width
from jax_ntk_sketch.kernels.polynomial_fit import fit_nonnegative
from jax_ntk_sketch.methods import OnePass
from jax_ntk_sketch.sketch import PolySketch


def polynomial(method: OnePass, kernel: ZonalKernel) -> np.ndarray:
    """Return the coefficients >= 0 of the powers 0..p that the method uses for f."""
    if method.coefficients == "taylor":
        return kernel.series(method.degree)
    return fit_nonnegative(
        kernel.function, method.degree, min_cosine=method.min_cosine
    )[0]


@network_rule.register
def one_pass_network_steps(
    method: OnePass, net: stax.Layer, spec: Spec, context: Context
) -> list[Step]:
    reason = why_not_zonal(net, context.kind)
    if reason is not None:
        raise ValueError(
            f'feature_map: method "one_pass" {reason}; use method="variance_reduced" '
            'or "ntk_sketch"'
        )
    last_step = functools.partial(_polynomial_step, method)
    return zonal_steps(method, net, spec, context, last_step)


def _polynomial_step(
    method: OnePass, kernel: ZonalKernel, input_dim: int, max_columns: int
) -> Step:
    """Return the step from the first `Relu` to the output."""
    c = polynomial(method, kernel)
    num_constants = int(c[0] > 0) + int(kernel.constant > 0)
    sizes = _columns_of_powers(c[1:], input_dim, max_columns - num_constants)
    columns = num_constants + sum(sizes)
    width = polysketch_width(columns)
    poly = PolySketch(input_dim, len(sizes), sizes, width, method.leaf)

    def apply(params: PyTree, f: Features) -> Features:
        powers = poly.apply(params, normalize_rows(f.nngp, f.nngp_diag))
        norm = safe_sqrt(f.nngp_diag)[..., None]
        # The first part has no columns: with weights of size zero there is no other.
        parts = [f.nngp[..., :0]] + [
            norm * jnp.asarray(math.sqrt(c_j), z_j.dtype) * z_j
            for c_j, z_j in zip(c, powers, strict=True)
            if c_j > 0
        ]
        phi = with_constant(jnp.concatenate(parts, axis=-1), math.sqrt(kernel.constant))
        nngp_diag = f.nngp_diag * float(c.sum()) + kernel.constant
        return Features.of_kind(kernel.kind, phi, nngp_diag)

    def mean(k: Kernels) -> np.ndarray:
        return kernel.of_inputs(k, np.polynomial.Polynomial(c))

    return Step(
        name=f"one polynomial of degree {len(sizes)}",
        spec=Spec.of_kind(kernel.kind, columns),
        apply=apply,
        init=poly.init,
        flops=poly.flops + 2 * columns,
        live_elements=2 * input_dim + 2 * columns + 4 * poly.inner_width,
        mean=mean,
    )


def _columns_of_powers(c: np.ndarray, input_dim: int, total: int) -> tuple[int, ...]:
    """Return the columns of the powers 1..p, the linear one exact if that is better.

    Noise is counted as in `noise_weights`. A sketched linear part without replacement
    has the noise c_1^2 (1/m_1 - 1/d), an exact one none.
    """
    weights = noise_weights(np.concatenate([[0.0], c]))[1:]

    def noise(sizes: np.ndarray) -> float:
        sketched = (weights > 0) & (np.arange(len(c)) > 0)
        linear = c[0] ** 2 * max(0.0, 1 / max(sizes[0], 1) - 1 / input_dim)
        return linear + float((weights[sketched] ** 2 / sizes[sketched]).sum())

    sketched = np.array(allocate_columns(weights, total))
    nonlinear = weights.copy()
    nonlinear[0] = 0.0
    exact = np.array(allocate_columns(nonlinear, max(total - input_dim, 0)))
    exact[0] = input_dim if c[0] > 0 else 0
    fits = exact.sum() <= total
    sizes = exact if fits and noise(exact) <= noise(sketched) else sketched
    return tuple(int(size) for size in sizes)
