r"""Ridge regression from sums over batches.

Notation: n examples (the sum of their weights), m features, t targets, r values of
`reg`. `ridge_penalty` states the objective, which `jax_ntk_sketch.validation` shares.

>>> import jax, jax.numpy as jnp
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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jax_ntk_sketch._numerics import two_sum
from jax_ntk_sketch.linear_model._double_float import add_gram
from jax_ntk_sketch.linear_model._shifted_solver import Tridiagonal
from jax_ntk_sketch.linear_model.model import RidgeInfo, RidgeModel

__all__ = [
    "RidgeState",
    "ridge_init",
    "ridge_merge",
    "ridge_penalty",
    "ridge_solve",
    "ridge_update",
]

# Relative error, in spectral norm, of the sums of a state: in float32 1e-12 to 1e-10
# was measured, 4e-10 with heavy tails. It says how many digits a solve can keep.
ROUNDING = {"float32": 2.0**-32, "float64": 2.0**-48}
_TINY = np.finfo(np.float64).tiny


def ridge_penalty(reg: Any, n: Any) -> Any:
    r"""The penalty :math:`\lambda = \mathrm{reg} \cdot n`: `reg` is per example.

    Everywhere in this library ridge regression minimises

    .. math:: \frac1n \|\Phi w + b - y\|_F^2 + \mathrm{reg}\,\|w\|_F^2,

    which is :math:`\|\Phi w + b - y\|^2 + \lambda \|w\|^2`. The intercept b is not
    penalised. Its kernel form has :math:`K + \lambda I`, with :math:`K \approx
    \Phi \Phi^\top` of shape (n, n).

    >>> ridge_penalty(1e-3, 5000)
    5.0
    """
    return reg * n


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("total", "carry"),
    meta_fields=("num_targets",),
)
@dataclasses.dataclass(frozen=True, eq=False)
class RidgeState:
    r"""What ridge regression needs to know of the examples seen.

    `total + carry` is :math:`[\Phi, y, 1]^\top W [\Phi, y, 1]` with the sample
    weights W: the Gram matrix, the moments, the targets' squares, the sums and the
    count at once, to about twice the digits of its dtype.

    Attributes:
      total, carry: (m + t + 1, m + t + 1).
      num_targets: t, or None for targets of shape (n,).
    """

    total: Array
    carry: Array
    num_targets: int | None

    @property
    def num_features(self) -> int:
        """The number of features m."""
        return self.total.shape[-1] - _columns(self.num_targets) - 1

    @property
    def count(self) -> Array:
        """The number of examples seen, or the sum of their weights; ()."""
        return self.total[..., -1, -1] + self.carry[..., -1, -1]


def ridge_init(
    num_features: int, num_targets: int | None, *, dtype: Any = None
) -> RidgeState:
    """The state of no examples.

    Args:
      num_features: m >= 1.
      num_targets: t >= 1; or None for targets of shape (n,), and predictions so.
      dtype: float32 or float64; default JAX's default float.

    Returns:
      `RidgeState`, 8 (m + t + 1)^2 bytes in float32.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range.
    """
    for name, value in (("num_features", num_features), ("num_targets", num_targets)):
        if name == "num_targets" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"ridge_init: {name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"ridge_init: {name} must be positive, got {value}")
    dtype = jnp.zeros((), dtype).dtype
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"ridge_init: dtype must be float32 or float64, got {dtype}")
    size = int(num_features) + _columns(num_targets) + 1
    zeros = jnp.zeros((size, size), dtype)
    return RidgeState(zeros, jnp.zeros_like(zeros), num_targets)


def ridge_update(
    state: RidgeState,
    phi: ArrayLike,
    y: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> RidgeState:
    """The state after more examples; any number of batches of any length.

    The order and the split into batches change the sums by rounding only, see
    `jax_ntk_sketch.linear_model._double_float`. NaN or infinite entries are not looked for, so
    that the function can be traced: `ridge_solve` refuses what they leave, and
    `fit_ridge` finds them before.

    Args:
      state: `RidgeState`.
      phi: (n, m) real features; the state's dtype, or a coarser one.
      y: (n, t), or (n,) where t is 1 or None.
      sample_weight: (n,) >= 0, default 1. An example of weight 2 counts as two, one
        of weight 0 not at all (if finite). Rows are multiplied by the weights'
        square roots, which rounds them to the dtype.

    Returns:
      `RidgeState`; the argument is unchanged.

    Raises:
      TypeError, ValueError: shapes or dtypes that do not fit, at trace time.

    Cost: 4 n (m + t + 1)^2 flops in float32, half of it in float64.
    """
    m, t = state.num_features, _columns(state.num_targets)
    dtype = state.total.dtype
    phi, y = jnp.asarray(phi), jnp.asarray(y)
    if phi.ndim != 2 or phi.shape[1] != m:
        raise ValueError(f"phi must have shape (n, {m}), got {phi.shape}")
    n = len(phi)
    if state.num_targets is None and y.shape != (n,):
        raise ValueError(f"y must have shape ({n},), a number per row; got {y.shape}")
    if y.shape not in [(n, t)] + [(n,)] * (t == 1):
        raise ValueError(f"y must have shape ({n}, {t}), got {y.shape}")
    if jnp.promote_types(phi.dtype, dtype) != dtype:
        raise TypeError(
            f"phi has dtype {phi.dtype}, which a state of dtype {dtype} cannot hold; "
            f"use ridge_init(..., dtype={phi.dtype}) or cast phi"
        )
    if not jnp.isrealobj(y):
        raise TypeError(f"y must be real, got dtype {y.dtype}")
    weight = None if sample_weight is None else jnp.asarray(sample_weight)
    if weight is not None and weight.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), got {weight.shape}")
    if n == 0:
        return state
    total, carry = _add_rows(state.total, state.carry, phi, y.reshape(n, t), weight)
    return dataclasses.replace(state, total=total, carry=carry)


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
    """The state of the examples of both; commutative, and associative to rounding.

    Raises:
      ValueError: states of different sizes or dtypes.
    """
    for name, this, that in (
        ("num_features", a.num_features, b.num_features),
        ("num_targets", a.num_targets, b.num_targets),
        ("dtype", a.total.dtype, b.total.dtype),
    ):
        if this != that:
            raise ValueError(f"ridge_merge: {name} differs: {this} and {that}")
    total, error = two_sum(a.total, b.total)
    total, carry = two_sum(total, error + (a.carry + b.carry))
    return dataclasses.replace(a, total=total, carry=carry)


def ridge_solve(
    state: RidgeState,
    reg: float | Sequence[float],
    *,
    intercept: bool = True,
    singular: str = "raise",
) -> RidgeModel:
    r"""Minimises :math:`\frac1n\|\Phi w + b - y\|^2 + \mathrm{reg}\,\|w\|^2`.

    Solved in float64 on the host whatever the state's dtype: centred by the sums if
    there is an intercept, reduced once to tridiagonal form for all values of `reg`.

    Args:
      state: `RidgeState` of at least one example; concrete, not traced.
      reg: one number >= 0, or a sequence of r of them (see `ridge_penalty`).
      intercept: whether to fit an unpenalised intercept b; else it is 0. Regression
        with the kernel itself, `K + reg n I`, has none.
      singular: what happens to values of `reg` so small that the system is singular
        to the sums' precision and the weights would be noise: "raise", or "drop" for
        a path without them, and a warning.

    Returns:
      `RidgeModel` in the state's dtype; a leading axis r where `reg` is a sequence.

    Raises:
      TypeError, ValueError: `reg` negative or not finite, a traced or empty state,
        sums that are not finite.
      numpy.linalg.LinAlgError: the system is singular, with any value of `reg` if
        `singular` is "raise", with all of them if it is "drop".

    Cost: 4/3 m^3 + O(m^2 t r) flops, about 24 m^2 bytes on the host besides the
    state.

    Guarantee: `info.rounding` estimates the weights' relative error from rounding in
    the sums, mostly from above. In float32 at condition number 1e6, 2e-5 or less was
    measured against double precision. Beside it there is the rounding of the weights
    to the state's dtype.
    """
    penalties = check_reg("ridge_solve", reg)
    if singular not in ("raise", "drop"):
        raise ValueError(
            f'ridge_solve: singular must be "raise" or "drop", got {singular!r}'
        )
    sums = sums_on_host(state, "ridge_solve")
    m, n = state.num_features, sums[-1, -1]
    means = sums[-1, :-1] / n if intercept else np.zeros(len(sums) - 1)
    mean, target_mean = means[:m], means[m:]
    system = Tridiagonal(sums[:m, :m] - np.outer(n * mean, mean))
    spectrum = system.eigenvalues
    lambdas = np.atleast_1d(ridge_penalty(penalties, n))
    # The sums were rounded before they were centred: the error is relative to the
    # largest eigenvalue from before.
    noise = ROUNDING[str(state.total.dtype)] * (spectrum[-1] + n * mean @ mean)
    solvable = spectrum[0] + lambdas > 10 * noise  # else not one digit would be right
    if not solvable.all():
        least = lambdas.min()
        message = (
            f"ridge_solve: with reg = {least / n:.3g} the system is singular to "
            f"{state.total.dtype} precision: eigenvalues from "
            f"{spectrum[0] + least:.2g} to {spectrum[-1] + least:.2g} (m = {m} "
            f"features, {n:.0f} examples). Use reg of {1e3 * noise / n:.1g} or more, "
            "fewer features or more examples"
        )
        if singular == "raise" or not solvable.any():
            raise np.linalg.LinAlgError(message)
        warnings.warn(
            f"{message}; {np.sum(~solvable)} of {len(lambdas)} values of reg were "
            "dropped",
            RuntimeWarning,
            stacklevel=2,
        )
        penalties, lambdas = np.atleast_1d(penalties)[solvable], lambdas[solvable]
    least, largest = spectrum[0] + lambdas, spectrum[-1] + lambdas
    rhs = sums[:m, m:-1] - np.outer(n * mean, target_mean)
    solution = system.solve(rhs, lambdas)
    weights = jnp.asarray(solution, state.total.dtype)
    biases = jnp.asarray(target_mean - mean @ solution, state.total.dtype)
    w = np.asarray(weights, np.float64)
    product = sums[:m, :m] @ w - n * mean[:, None] * (mean @ w)[:, None, :]
    residual = product + lambdas[:, None, None] * w - rhs
    positive = np.maximum(spectrum, 0.0)
    dof = (positive / (positive + lambdas[:, None])).sum(axis=1)
    targets = np.trace(sums[m:-1, m:-1]) - n * target_mean @ target_mean
    squares = targets + (w * (product - 2 * rhs)).sum(axis=(1, 2))
    mse = np.maximum(squares, 0) / (n * rhs.shape[1])
    free = np.maximum(1 - (dof + intercept) / n, 0)
    info = RidgeInfo(
        count=n,
        condition=largest / least,
        effective_dof=dof,
        residual=np.linalg.norm(residual, axis=(1, 2))
        / max(np.linalg.norm(rhs), _TINY),
        rounding=noise / least,
        mse=mse,
        gcv=np.divide(mse, free**2, out=np.full_like(mse, np.inf), where=free > 1e-9),
    )
    flat = state.num_targets is None
    model = RidgeModel(
        weights=weights[..., 0] if flat else weights,
        intercept=biases[..., 0] if flat else biases,
        reg=np.atleast_1d(penalties),
        info=info,
        num_targets=state.num_targets,
    )
    return model.select(0) if penalties.ndim == 0 else model


def check_reg(name: str, reg: Any) -> NDArray[np.float64]:
    """`reg` as an array, () or (r,), checked for the function `name`."""
    penalties = np.asarray(reg, np.float64)
    if penalties.ndim > 1 or penalties.size == 0:
        raise ValueError(f"{name}: reg must be a number or a sequence, got {reg!r}")
    if not (np.isfinite(penalties).all() and (penalties >= 0).all()):
        raise ValueError(f"{name}: reg must be finite and >= 0, got {reg!r}")
    return penalties


def sums_on_host(state: RidgeState, name: str) -> NDArray[np.float64]:
    """The sums in float64, checked for the function `name`."""
    if isinstance(state.total, jax.core.Tracer):
        raise TypeError(f"{name} runs on the host and cannot be traced by jit or vmap")
    if state.total.ndim != 2:
        raise ValueError(
            f"{name} takes one state; index the leading axes of a batch of them "
            f"first (sums of shape {state.total.shape})"
        )
    sums = np.array(state.total, np.float64)
    sums += np.asarray(state.carry)
    if not np.isfinite(sums).all():
        raise ValueError(
            f"{name}: the sums are not finite: some features or targets were NaN "
            "or infinite, or too large for the dtype. fit_ridge names the rows"
        )
    if sums[-1, -1] <= 0:
        raise ValueError(f"{name}: the state has seen no examples; ridge_update it")
    return sums


def _columns(num_targets: int | None) -> int:
    return 1 if num_targets is None else num_targets
