"""Ridge regression from sums that are traced, for `jit` and gradients."""

import jax
import jax.numpy as jnp

from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch._typing import Array, ArrayLike


def solve_traced(
    sums: Array, m: int, reg: ArrayLike, intercept: bool
) -> tuple[Array, Array, Array]:
    """Return weights (r, m, t), intercepts (r, t) and penalties (r,).

    The system is solved by Cholesky factorization in the dtype of the sums. Weights are
    NaN where it is singular.

    Args:
      sums: the inner products of features, targets and ones, (m + t + 1, m + t + 1).
      m: the number of features.
      reg: () or (r,).
      intercept: whether to fit an intercept.
    """
    n = sums[-1, -1]
    means = sums[-1, :-1] / n if intercept else jnp.zeros_like(sums[-1, :-1])
    mean, target_mean = means[:m], means[m:]
    gram = sums[:m, :m] - n * mean[:, None] * mean[None, :]
    rhs = sums[:m, m:-1] - n * mean[:, None] * target_mean[None, :]
    eye = jnp.eye(m, dtype=sums.dtype)
    regs = jnp.atleast_1d(jnp.asarray(reg, sums.dtype))

    def solve(penalty: Array) -> Array:
        factor = jax.scipy.linalg.cho_factor(gram + penalty * n * eye, lower=True)
        return jax.scipy.linalg.cho_solve(factor, rhs)

    weights = jax.vmap(solve)(regs)
    return weights, target_mean[None, :] - matmul(mean, weights), regs
