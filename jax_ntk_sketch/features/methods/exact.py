r"""Method "exact": the kernel of the batch, factored at each activation.

All positions of all examples in the batch are rows of a kernel. At an activation both
kernels follow from the dual kernels k and k', and each is factored as
:math:`F F^\top`. The rows of F are the features after the activation.
"""

import jax
import jax.numpy as jnp

from jax_ntk_sketch._numerics import matmul, safe_reciprocal, safe_sqrt
from jax_ntk_sketch._typing import Array, PyTree
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import Context, Step, activation_rule
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.methods import Exact


@activation_rule.register
def exact_step(
    method: Exact, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    n = context.batch_size * spec.pixels

    def apply(params: PyTree, f: Features) -> Features:
        kernels = dual.kernels(_gram(f.nngp), f.nngp_diag.reshape(-1))
        # Too few nodes of a quadrature depend on which of two inputs comes first.
        nngp, slopes = ((k + k.T) / 2 for k in kernels)
        ntk = f.ntk
        if context.wants_ntk:
            ntk = factor(_gram(f.ntk) * slopes).reshape(*f.nngp_diag.shape, n)
        nngp = factor(nngp).reshape(*f.nngp_diag.shape, n)
        return Features(nngp, ntk, dual.diagonal(f.nngp_diag)[0])

    kinds = 2 if context.wants_ntk else 1
    return Step(
        name="exact",
        spec=Spec(n, n if context.wants_ntk else 0),
        apply=apply,
        flops=spec.pixels * (2 * n * (spec.nngp_dim + spec.ntk_dim) + kinds * n * n),
        live_elements=spec.live_elements() + 3 * kinds * n * spec.pixels,
    )


@jax.jit
def factor(k: Array) -> Array:
    r"""Return a square factor F with :math:`F F^\top = k`.

    It is a Cholesky factorization with diagonal pivoting, of k scaled to a diagonal of
    ones. Unlike an unpivoted one it is backward stable for singular kernels
    (duplicates, zero vectors), and its gradient is finite there. Columns begin at the
    largest remaining diagonal entry, and end where that is rounding error.

    Args:
      k: (n, n), symmetric positive semidefinite up to rounding.

    Returns:
      (n, n); it has rows of zeros where k has.
    """
    n = k.shape[-1]
    floor = n * jnp.finfo(k.dtype).eps
    # Otherwise short rows would be rounding errors of long ones.
    length = safe_sqrt(jax.lax.stop_gradient(jnp.diagonal(k)))
    inverse = safe_reciprocal(length)
    k = k * inverse[:, None] * inverse[None, :]

    def add_column(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        columns, rest = state
        pivot = jnp.argmax(jnp.where(rest > floor, rest, -1))
        nonzero = rest[pivot] > floor
        column = k[:, pivot] - matmul(columns, columns[pivot])
        column = column * jax.lax.rsqrt(jnp.where(nonzero, rest[pivot], 1))
        column = jnp.where(nonzero, column, 0)
        rest = (rest - column**2).at[pivot].set(-1)
        return columns.at[:, i].set(column), rest

    # The length is fixed: only then can the loop be differentiated in reverse.
    start = (jnp.zeros_like(k), jnp.diagonal(k))
    columns, _ = jax.lax.fori_loop(0, n, add_column, start)
    # With a NaN in k nothing is above the floor.
    return jnp.where(jnp.isnan(k).any(), jnp.nan, columns * length[:, None])


def _gram(features: Array) -> Array:
    rows = features.reshape(-1, features.shape[-1])
    return matmul(rows, rows.T)
