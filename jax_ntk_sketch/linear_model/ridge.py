r"""Ridge regression from sums over batches.

Notation: n examples (the sum of their weights), m features, t targets, r values of
`reg`. The objective is stated in `jax_ntk_sketch.linear_model`.

>>> import jax
>>> import jax.numpy as jnp
>>> from jax_ntk_sketch.linear_model import ridge_init, ridge_solve, ridge_update
>>> phi = jax.random.normal(jax.random.key(0), (100, 3))
>>> y = phi @ jnp.array([1.0, 2.0, 3.0]) + 4.0
>>> state = ridge_init(num_features=3, num_targets=None)
>>> for start in (0, 50):
...     state = ridge_update(state, phi[start : start + 50], y[start : start + 50])
>>> model = ridge_solve(state, reg=1e-9)
>>> bool(jnp.allclose(model.weights, jnp.array([1.0, 2.0, 3.0]), atol=1e-5))
True
"""

import dataclasses
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._checks import check_choice, check_float_dtype, check_size
from jax_ntk_sketch._numerics import two_sum
from jax_ntk_sketch._typing import Array, ArrayLike, Dtype
from jax_ntk_sketch.linear_model._double_float import add_gram
from jax_ntk_sketch.linear_model._shifted_solver import ShiftedSolver
from jax_ntk_sketch.linear_model._traced_ridge import solve_traced
from jax_ntk_sketch.linear_model.model import RidgeInfo, RidgeModel, make_model

# The relative error, in spectral norm, of the sums of a state. Errors of 1e-12 to 1e-10
# were measured in float32, and 4e-10 with heavy tails. A solve cannot be more accurate.
ROUNDING = {"float32": 2.0**-32, "float64": 2.0**-48}
_TINY = np.finfo(np.float64).tiny


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("total", "carry", "rows"),
    meta_fields=("num_targets",),
)
@dataclasses.dataclass(frozen=True, eq=False)
class RidgeState:
    r"""The sums over all examples seen, which determine ridge regression.

    `total + carry` is :math:`[\Phi, y, 1]^\top W [\Phi, y, 1]` with the sample
    weights W. It holds the Gram matrix, the moments, the squares of the targets, the
    column sums and the count, to about twice the digits of its dtype.

    Attributes:
      total: (m + t + 1, m + t + 1), the sums as rounded to the dtype.
      carry: of the same shape, the digits that `total` cannot hold.
      rows: (2,), the number of examples of positive weight, as a sum and its carry.
      num_targets: t, or None for targets of shape (n,).
    """

    total: Array
    carry: Array
    rows: Array
    num_targets: int | None

    @property
    def num_features(self) -> int:
        """The number of features m."""
        return self.total.shape[-1] - _num_columns(self.num_targets) - 1

    @property
    def count(self) -> Array:
        """The number of examples seen, or the sum of their weights; ()."""
        return self.total[..., -1, -1] + self.carry[..., -1, -1]


def ridge_init(
    num_features: int, num_targets: int | None, *, dtype: Dtype = None
) -> RidgeState:
    """Return the state before any example.

    Args:
      num_features: m >= 1.
      num_targets: t >= 1, or None for targets and predictions of shape (n,).
      dtype: float32 or float64; by default the default float of JAX.

    Returns:
      `RidgeState` of 8 (m + t + 1)^2 bytes in float32.

    Raises:
      TypeError: a size is not an integer, or `dtype` is another one.
      ValueError: a size is smaller than 1.
    """
    m = check_size("ridge_init", "num_features", num_features)
    if num_targets is not None:
        num_targets = check_size("ridge_init", "num_targets", num_targets)
    dtype = check_float_dtype("ridge_init", dtype)
    size = m + _num_columns(num_targets) + 1
    zeros = jnp.zeros((size, size), dtype)
    rows = jnp.zeros(2, dtype)
    return RidgeState(zeros, jnp.zeros_like(zeros), rows, num_targets)


def ridge_update(
    state: RidgeState,
    phi: ArrayLike,
    y: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> RidgeState:
    """Return the state after more examples.

    Any number of batches of any length may follow each other. Their order and the split
    into batches change the sums by rounding only. The function can be traced, so that
    it does not look for NaN and infinity. `ridge_solve` refuses the sums that they
    leave; `fit_ridge` finds the rows.

    Args:
      state: `RidgeState`; it is not changed.
      phi: (n, m) real features, in the dtype of the state or a coarser one.
      y: (n, t) real targets; (n,) if t is 1 or None.
      sample_weight: (n,), >= 0, by default 1. In the objective an example of weight 2
        counts as two examples, and only the ratios of weights matter. One of weight 0
        does not count, but must be finite. The rows are multiplied by the square roots
        of the weights, rounded to the dtype.

    Returns:
      `RidgeState`.

    Raises:
      TypeError: phi is complex or finer than the state, or y is complex.
      ValueError: the shapes do not fit.

    Cost: 4 n (m + t + 1)^2 flops in float32, half as many in float64.
    """
    owner = "ridge_update"
    m, t = state.num_features, _num_columns(state.num_targets)
    dtype = state.total.dtype
    phi, y = jnp.asarray(phi), jnp.asarray(y)
    if phi.ndim != 2 or phi.shape[1] != m:
        raise ValueError(f"{owner}: phi must have shape (n, {m}), got {phi.shape}")
    n = len(phi)
    flat_only = state.num_targets is None
    shapes = [(n,)] if flat_only else [(n, t)] + [(n,)] * (t == 1)
    if y.shape not in shapes:
        raise ValueError(f"{owner}: y must have shape {shapes[0]}, got {y.shape}")
    if jnp.promote_types(phi.dtype, dtype) != dtype:
        raise TypeError(
            f"{owner}: phi must have dtype {dtype} or a coarser one, because the state "
            f"has, got {phi.dtype}; use ridge_init(..., dtype={phi.dtype}) or cast phi"
        )
    if not jnp.isrealobj(y):
        raise TypeError(f"{owner}: y must be real, got dtype {y.dtype}")
    weight = None if sample_weight is None else jnp.asarray(sample_weight)
    if weight is not None and weight.shape != (n,):
        raise ValueError(
            f"{owner}: sample_weight must have shape ({n},), got {weight.shape}"
        )
    if n == 0:
        return state
    total, carry = _add_rows(state.total, state.carry, phi, y.reshape(n, t), weight)
    count = n if weight is None else jnp.sum(weight > 0)
    rows = add_counts(state.rows, jnp.asarray([count, 0], dtype))
    return dataclasses.replace(state, total=total, carry=carry, rows=rows)


@jax.jit
def _add_rows(
    total: Array, carry: Array, phi: Array, y: Array, weight: Array | None
) -> tuple[Array, Array]:
    parts = [phi, y, jnp.ones((len(phi), 1))]
    rows = jnp.concatenate([part.astype(total.dtype) for part in parts], axis=1)
    if weight is not None:
        rows = rows * jnp.sqrt(weight.astype(total.dtype))[:, None]
    return add_gram(total, carry, rows)


def ridge_merge(a: RidgeState, b: RidgeState) -> RidgeState:
    """Return the state of the examples of both states.

    The operation is commutative, and associative up to rounding.

    Raises:
      ValueError: the states differ in their sizes or dtypes.
    """
    for name, value, other in (
        ("num_features", a.num_features, b.num_features),
        ("num_targets", a.num_targets, b.num_targets),
        ("dtype", a.total.dtype, b.total.dtype),
    ):
        if value != other:
            raise ValueError(
                f"ridge_merge: a and b must have the same {name}, got {value} and "
                f"{other}"
            )
    total, error = two_sum(a.total, b.total)
    total, carry = two_sum(total, error + (a.carry + b.carry))
    rows = add_counts(a.rows, b.rows)
    return dataclasses.replace(a, total=total, carry=carry, rows=rows)


def add_counts(a: Array, b: Array) -> Array:
    """Return the sum of two numbers that are a sum and its carry each, (2,)."""
    total, error = two_sum(a[0], b[0])
    return jnp.stack(two_sum(total, error + (a[1] + b[1])))


def ridge_solve(
    state: RidgeState,
    reg: float | Sequence[float],
    *,
    intercept: bool = True,
    singular: Literal["raise", "drop"] = "raise",
) -> RidgeModel:
    r"""Return the model that minimizes the objective of ridge regression.

    .. math:: \min_{w, b}\; \frac1n \|\Phi w + b - y\|^2 + \mathrm{reg}\,\|w\|^2

    The system is solved in float64 on the host, whatever the dtype of the state. It is
    centered first if there is an intercept, and reduced once to tridiagonal form, which
    serves all values of `reg`. If the state or `reg` is traced, as under `jit` and
    `grad`, the system is solved in the dtype of the state by Cholesky factorization.
    Nothing is checked then, weights are NaN where the system is singular, and the
    diagnostics but `info.count` are NaN.

    Args:
      state: `RidgeState` of at least one example.
      reg: one number >= 0, or a sequence of r numbers. The unit is stated in
        `jax_ntk_sketch.linear_model`.
      intercept: whether to fit an intercept b, which is not penalized; otherwise b is
        0. Regression with a kernel matrix, K + reg n I, has none.
      singular: the treatment of values of `reg` with which the system is singular to
        the precision of the sums, so that the weights would be noise. "raise" raises;
        "drop" leaves these values out, with a warning.

    Returns:
      `RidgeModel` in the dtype of the state, with a leading axis r if `reg` is a
      sequence.

    Raises:
      TypeError: `reg` is not a number.
      ValueError: `reg` is negative or not finite, or the state is empty or not finite.
      numpy.linalg.LinAlgError: the system is singular, with any value of `reg` if
        `singular` is "raise", with all of them if it is "drop".

    Cost: 4/3 m^3 + O(m^2 t r) flops, and about 24 m^2 bytes on the host in addition to
    the state.

    Guarantee: `info.rounding` estimates the relative error that rounding in the sums
    causes in the weights, usually from above. The weights are then rounded to the dtype
    of the state.
    """
    owner = "ridge_solve"
    check_choice(owner, "singular", singular, ("raise", "drop"))
    if any(isinstance(z, jax.core.Tracer) for z in (state.total, state.carry, reg)):
        return _solve_traced(state, reg, intercept)  # type: ignore[arg-type]
    penalties = check_reg(owner, reg)
    sums = sums_on_host(owner, state)
    m, n, num_rows = state.num_features, sums[-1, -1], _num_rows(state)
    means = sums[-1, :-1] / n if intercept else np.zeros(len(sums) - 1)
    mean, target_mean = means[:m], means[m:]
    solver = ShiftedSolver(sums[:m, :m] - np.outer(n * mean, mean))
    spectrum = solver.eigenvalues
    shifts = np.atleast_1d(penalties * n)
    # The sums were rounded before they were centered: the error is relative to the
    # largest eigenvalue before.
    noise = ROUNDING[str(state.total.dtype)] * (spectrum[-1] + n * mean @ mean)
    solvable = spectrum[0] + shifts > 10 * noise  # else no digit would be right
    if not solvable.all():
        message = _singular_message(state, spectrum, shifts.min(), noise, n)
        if singular == "raise" or not solvable.any():
            raise np.linalg.LinAlgError(message)
        warnings.warn(
            f"{message}; {np.sum(~solvable)} of {len(shifts)} values of reg were "
            "dropped",
            RuntimeWarning,
            stacklevel=2,
        )
        penalties, shifts = np.atleast_1d(penalties)[solvable], shifts[solvable]
    rhs = sums[:m, m:-1] - np.outer(n * mean, target_mean)
    solution = solver.solve(rhs, shifts)
    weights = jnp.asarray(solution, state.total.dtype)
    biases = jnp.asarray(target_mean - mean @ solution, state.total.dtype)
    # The diagnostics are those of the weights as returned.
    w = np.asarray(weights, np.float64)
    product = sums[:m, :m] @ w - n * mean[:, None] * (mean @ w)[:, None, :]
    residual = product + shifts[:, None, None] * w - rhs
    smallest, largest = spectrum[0] + shifts, spectrum[-1] + shifts
    positive = np.maximum(spectrum, 0.0)
    dof = (positive / (positive + shifts[:, None])).sum(axis=1)
    target_squares = np.trace(sums[m:-1, m:-1]) - n * target_mean @ target_mean
    squares = target_squares + (w * (product - 2 * rhs)).sum(axis=(1, 2))
    mse = np.maximum(squares, 0) / (n * rhs.shape[1])
    # The scale of the weights must not matter: dof is of rows, not of their weights.
    free = np.maximum(1 - (dof + intercept) / num_rows, 0)
    info = RidgeInfo(
        count=n,
        condition=largest / smallest,
        effective_dof=dof,
        residual=np.linalg.norm(residual, axis=(1, 2))
        / max(np.linalg.norm(rhs), _TINY),
        rounding=noise / smallest,
        mse=mse,
        gcv=np.divide(mse, free**2, out=np.full_like(mse, np.inf), where=free > 1e-9),
    )
    regs = np.atleast_1d(penalties)
    model = make_model(weights, biases, regs, info, state.num_targets)
    return model.select(0) if penalties.ndim == 0 else model


def _solve_traced(state: RidgeState, reg: ArrayLike, intercept: bool) -> RidgeModel:
    """Return the model of sums or penalties that are traced."""
    sums, m = state.total + state.carry, state.num_features
    weights, biases, regs = solve_traced(sums, m, reg, intercept)
    if jnp.ndim(reg) == 0:
        weights, biases, regs = weights[0], biases[0], regs[0]
    unknown: Any = jnp.full_like(regs, jnp.nan)
    info = RidgeInfo(sums[-1, -1], *[unknown] * 6)
    return make_model(weights, biases, regs, info, state.num_targets)


def _singular_message(
    state: RidgeState, spectrum: NDArray, shift: float, noise: float, n: float
) -> str:
    return (
        f"ridge_solve: reg must be at least {1e3 * noise / n:.1g} for these sums, got "
        f"{shift / n:.3g}: the system is singular to {state.total.dtype} precision, "
        f"with eigenvalues from {spectrum[0] + shift:.2g} to "
        f"{spectrum[-1] + shift:.2g} (m = {state.num_features} features, "
        f"{_num_rows(state):.0f} examples). Use a larger reg, fewer features or "
        "more examples; usual values of reg are 1e-6 to 1 times the mean squared norm "
        f"of the features, {max(spectrum.sum(), 0) / n:.2g}"
    )


def check_reg(owner: str, reg: float | Sequence[float]) -> NDArray[np.float64]:
    """Return `reg` as an array () or (r,) of finite numbers >= 0.

    Raises:
      TypeError: `reg` does not hold numbers.
      ValueError: a number is negative or not finite, or there is none.
    """
    try:
        penalties = np.asarray(reg, np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{owner}: reg must be a number or a sequence of numbers, got {reg!r}"
        ) from None
    if penalties.ndim > 1 or penalties.size == 0:
        raise ValueError(
            f"{owner}: reg must be a number or a sequence of numbers, got {reg!r}"
        )
    if not (np.isfinite(penalties).all() and (penalties >= 0).all()):
        raise ValueError(f"{owner}: reg must be finite and >= 0, got {reg!r}")
    return penalties


def sums_on_host(owner: str, state: RidgeState) -> NDArray[np.float64]:
    """Return the sums of a state in float64.

    Raises:
      TypeError: the state is traced.
      ValueError: the state is a batch of states, empty or not finite.
    """
    if isinstance(state.total, jax.core.Tracer):
        raise TypeError(
            f"{owner}: state must be concrete; do not call it under jit or vmap"
        )
    if state.total.ndim != 2:
        raise ValueError(
            f"{owner}: state must be one state, got a batch of states with sums of "
            f"shape {state.total.shape}; index its leading axes first"
        )
    sums = np.array(state.total, np.float64)
    sums += np.asarray(state.carry)
    if not np.isfinite(sums).all():
        raise ValueError(
            f"{owner}: the sums must be finite, got NaN or infinity: some features or "
            "targets are not finite, or too large for the dtype; fit_ridge names them"
        )
    if sums[-1, -1] <= 0:
        raise ValueError(
            f"{owner}: state must have seen examples, got none; add them with "
            "ridge_update"
        )
    return sums


def _num_rows(state: RidgeState) -> float:
    return float(np.asarray(state.rows, np.float64).sum())


def _num_columns(num_targets: int | None) -> int:
    return 1 if num_targets is None else num_targets
