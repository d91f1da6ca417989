"""Method "exact": the batch's own kernel, factored at every nonlinear layer."""

import jax
import jax.numpy as jnp

from jax_ntk_sketch._typing import PyTree
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import Context, Step, activation_rule
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.methods import Exact

__all__ = ["factor"]


@activation_rule.register
def exact_step(
    method: Exact, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    n = context.batch_size * spec.pixels  # all positions of all examples are rows
    out = Spec(n, n if context.wants_ntk else 0)

    def apply(params: PyTree, f: Features) -> Features:
        pair = dual.kernels(_gram(f.nngp), f.nngp_diag.reshape(-1))
        # Too few nodes of a quadrature depend on which of two inputs comes first.
        nngp, derivative = ((k + k.T) / 2 for k in pair)
        ntk = f.ntk
        if context.wants_ntk:
            ntk = factor(_gram(f.ntk) * derivative).reshape(*f.nngp_diag.shape, n)
        nngp = factor(nngp).reshape(*f.nngp_diag.shape, n)
        return Features(nngp, ntk, dual.diagonal(f.nngp_diag)[0])

    kinds = 2 if context.wants_ntk else 1
    return Step(
        name="exact",
        spec=out,
        apply=apply,
        flops=spec.pixels * (2 * n * (spec.nngp_dim + spec.ntk_dim) + kinds * n * n),
        live_elements=spec.live_elements() + 3 * kinds * n * spec.pixels,
    )


@jax.jit
def factor(k: jax.Array) -> jax.Array:
    r"""A square factor F with :math:`F F^\top = k`, by Cholesky with diagonal pivoting.

    Unlike an unpivoted factorisation it is backward stable for kernels that are
    singular (duplicates, zero vectors), and its gradient stays finite there: columns
    begin at the largest remaining diagonal and end where it is rounding error.

    Args:
      k: (n, n), symmetric positive semidefinite up to rounding.

    Returns:
      (n, n); rows of zeros where k has them.
    """
    n = k.shape[-1]
    floor = n * jnp.finfo(k.dtype).eps * jnp.max(jnp.diagonal(k), initial=0)

    def step(
        i: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        columns, rest = carry
        pivot = jnp.argmax(jnp.where(rest > floor, rest, -1))
        alive = rest[pivot] > floor
        column = k[:, pivot] - jnp.matmul(
            columns, columns[pivot], precision=jax.lax.Precision.HIGHEST
        )
        column = column * jax.lax.rsqrt(jnp.where(alive, rest[pivot], 1))
        column = jnp.where(alive, column, 0)
        rest = (rest - column**2).at[pivot].set(-1)
        return columns.at[:, i].set(column), rest

    # Of fixed length: only then can the loop be differentiated in reverse.
    start = (jnp.zeros_like(k), jnp.diagonal(k))
    columns, _ = jax.lax.fori_loop(0, n, step, start)
    # With a NaN in k nothing is above the floor.
    return jnp.where(jnp.isnan(floor), jnp.nan, columns)


def _gram(features: jax.Array) -> jax.Array:
    features = features.reshape(-1, features.shape[-1])
    return jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
