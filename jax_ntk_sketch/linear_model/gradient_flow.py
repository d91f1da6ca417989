r"""Training time in feature space: what `neural_tangents.predict` does with kernels.

Gradient flow on the squared error moves the outputs of a wide network by its NTK
:math:`K = \Phi\Phi^\top`. With N the number of targets, :math:`\tau = \eta t / N`,
:math:`\lambda` the regulariser and :math:`\Phi^\top\Phi = V s^2 V^\top`,

.. math:: f_t(x) = f_0(x) + \phi(x)^\top V
    \frac{1 - e^{-(s^2+\lambda)\tau}}{s^2 + \lambda} V^\top \Phi^\top (y - f_0),

which is the formula of kernels, moved through :math:`\Phi^\top (\Phi\Phi^\top)^k =
(\Phi^\top\Phi)^k \Phi^\top`: O(n m^2 + m^3) operations in place of O(n^3). The
functions have the names, arguments and conventions of Neural Tangents' with features
where kernels were, so that results compare entry by entry.

Source: Lee et al., arXiv 1902.06720, equations 10 to 16; the formulas in features are
derived in the text of each function.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch.linear_model.ridge import (
    ROUNDING,
    RidgeState,
    ridge_init,
    ridge_update,
    sums_on_host,
)

__all__ = [
    "EnsemblePrediction",
    "Gaussian",
    "gradient_descent_mse",
    "gradient_descent_mse_ensemble",
]

_BATCH = 4096


class Gaussian(NamedTuple):
    """Mean (..., n, k), and covariance (..., n, n), the same for all k targets."""

    mean: Array
    covariance: Array


class EnsemblePrediction(NamedTuple):
    """What `gradient_descent_mse_ensemble` predicts for both kernels."""

    nngp: Any
    ntk: Any


def gradient_descent_mse(
    phi_train: Any,
    y_train: Any = None,
    learning_rate: float = 1.0,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
) -> Callable[..., Any]:
    r"""Outputs under gradient flow on the mean squared error, at any time.

    Args:
      phi_train: (n, m) features; or a `RidgeState` that has seen features and targets
        of any number of batches (without sample weights), then `y_train` is None and
        only test outputs can be asked for.
      y_train: (n, k) or (n,) targets.
      learning_rate: time is in units of it.
      diag_reg: :math:`\lambda` over the mean of the kernel's diagonal, >= 0.
      diag_reg_absolute_scale: whether `diag_reg` is :math:`\lambda` itself.

    Returns:
      `predict_fn(t=None, fx_train_0=0.0, fx_test_0=None, phi_test=None)`:

      - t: a time or an array of them, >= 0; None or infinity for the end of training.
      - fx_train_0: outputs on the training set at time 0, or None not to predict them.
      - fx_test_0: likewise on the test set.
      - phi_test: (p, m) features of it.

      It returns `fx_train_t`, `fx_test_t` or both, of shape `t.shape + (n, k)`, dtype
      of `phi_train`. It can be traced by `jit`, t too.

      At infinity, without a regulariser, training outputs are the projection of the
      targets on the features: the targets themselves where m >= n.

    Raises:
      TypeError, ValueError: shapes, dtypes or numbers that do not fit; NaN or infinity
        in the training data.

    Cost: 4 n m^2 + 9 m^3 flops once, then O(p m^2) for each call. 24 m^2 bytes.

    >>> phi = jnp.eye(3)
    >>> predict_fn = gradient_descent_mse(phi, jnp.ones((3, 1)))
    >>> predict_fn(3 * jnp.log(2.0)).ravel().round(3).tolist()
    [0.5, 0.5, 0.5]
    """
    if isinstance(phi_train, RidgeState):
        if y_train is not None:
            raise ValueError(
                "gradient_descent_mse: a RidgeState holds its targets; y_train must be "
                "None"
            )
        phi, y, state = None, None, phi_train
        flat = state.num_targets is None
    else:
        phi, y, flat = _training("gradient_descent_mse", phi_train, y_train)
        state = _sums(phi, y)
    sums = sums_on_host(state, "gradient_descent_mse")
    m, n = state.num_features, sums[-1, -1]
    k = sums.shape[0] - 1 - m
    reg = _regulariser(diag_reg, diag_reg_absolute_scale, sums[:m, :m], n)
    flow = _Flow(sums[:m, :m], reg, state.total.dtype)
    moment = flow.coordinates(sums[:m, m:-1])

    def predict_fn(
        t: Any = None,
        fx_train_0: Any = 0.0,
        fx_test_0: Any = None,
        phi_test: Any = None,
    ) -> Any:
        if fx_train_0 is None and fx_test_0 is None:
            raise ValueError("predict_fn: fx_train_0 or fx_test_0 must be given")
        if (fx_test_0 is None) != (phi_test is None):
            raise ValueError("predict_fn: fx_test_0 and phi_test go together")
        tau = _times(t, learning_rate / (n * k), flow.dtype)
        right, start, out = moment, None, []
        if fx_train_0 is not None and phi is not None:
            assert y is not None
            start = jnp.broadcast_to(_outputs(fx_train_0, flow), y.shape)
            right = moment - flow.project(phi, start)
            inside = flow.read(phi, flow.inside(tau), right)
            out.append(start + flow.outside(tau) * (y - start) + inside)
        elif fx_train_0 is not None and not _is_zero(fx_train_0):
            raise ValueError(
                "predict_fn: a RidgeState has no examples to subtract fx_train_0 from; "
                "add batches with targets y - fx_train_0 and leave it at zero"
            )
        if phi_test is not None:
            test = _features("phi_test", phi_test, m, flow.dtype)
            change = flow.read(test, flow.gain(tau), right)
            out.append(_outputs(fx_test_0, flow) + change)
        if not out:
            raise ValueError(
                "predict_fn: outputs on the training set need its features, which a "
                "RidgeState has not; give fx_test_0 and phi_test"
            )
        out = [z[..., 0] if flat else z for z in out]
        return out[0] if len(out) == 1 else tuple(out)

    return predict_fn


def gradient_descent_mse_ensemble(
    features_train: Any,
    y_train: Any,
    learning_rate: float = 1.0,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
) -> Callable[..., Any]:
    r"""Mean and covariance of an ensemble of networks, at any time of training.

    With "ntk" all layers are trained by gradient flow, from initial outputs that are
    Gaussian with the NNGP kernel; with "nngp" only the last layer, which at infinity is
    the posterior of the NNGP process, with noise :math:`\lambda`.

    With :math:`\Psi` the NNGP features and :math:`B = V g V^\top \Phi^\top \Psi`, g
    the factor in the module's formula, the NTK ensemble's covariance is
    :math:`R R^\top` with rows :math:`\psi(x) - B^\top \phi(x)`.

    Args:
      features_train: features of the training set with attributes `nngp` (n, m') and
        `ntk` (n, m), such as `NetworkFeatureMap.apply` returns with `get=("nngp", "ntk")`.
      y_train: (n, k) or (n,) targets.
      learning_rate, diag_reg, diag_reg_absolute_scale: see `gradient_descent_mse`.

    Returns:
      `predict_fn(t=None, features_test=None, get=None, compute_cov=False)`:

      - t: a time or an array of them, >= 0; None or infinity for the end of training.
      - features_test: like `features_train`, (p, m') and (p, m); None for the training
        set itself.
      - get: "nngp", "ntk", or a tuple of them; None for both.

      It returns `EnsemblePrediction` for a tuple, else one of its entries: a `Gaussian` if
      `compute_cov`, else the mean (..., p, k). Covariances are (..., p, p). It can be
      traced by `jit`, t too.

    Raises:
      TypeError, ValueError: as `gradient_descent_mse`.

    Cost: 4 n (m + m')^2 + 9 (m^3 + m'^3) flops once; for each call and time
    O(p m (m + m') + p^2 m').

    >>> from jax_ntk_sketch import KernelFeatures
    >>> train = KernelFeatures(nngp=jnp.eye(3), ntk=2 * jnp.eye(3))
    >>> predict_fn = gradient_descent_mse_ensemble(train, jnp.ones((3, 1)))
    >>> g = predict_fn(jnp.inf, train, "ntk", compute_cov=True)
    >>> g.mean.ravel().tolist(), float(abs(g.covariance).max())
    ([1.0, 1.0, 1.0], 0.0)
    """
    name = "gradient_descent_mse_ensemble"
    for kind in _KINDS:
        if not hasattr(features_train, kind):
            raise TypeError(
                f"{name}: features_train must have the attributes nngp and ntk, got "
                f"{type(features_train).__name__}; NetworkFeatureMap.apply returns such with "
                'get=("nngp", "ntk")'
            )
    phi, y, flat = _training(name, features_train.ntk, y_train)
    psi, _, _ = _training(name, features_train.nngp, y_train)
    psi = psi.astype(phi.dtype)
    sums = sums_on_host(_sums(phi, jnp.concatenate([psi, y], axis=1)), name)
    m, n, size = phi.shape[1], len(y), y.size
    at = {"ntk": slice(0, m), "nngp": slice(m, m + psi.shape[1])}
    data = {"ntk": phi, "nngp": psi}
    targets = slice(m + psi.shape[1], -1)
    flows, moments = {}, {}
    for kind in _KINDS:
        gram = sums[at[kind], at[kind]]
        reg = _regulariser(diag_reg, diag_reg_absolute_scale, gram, n)
        flows[kind] = _Flow(gram, reg, phi.dtype)
        moments[kind] = flows[kind].coordinates(sums[at[kind], targets])
    cross = flows["ntk"].coordinates(sums[at["ntk"], at["nngp"]])

    def mean(kind: str, tau: Array, test: dict[str, Array] | None) -> Array:
        flow = flows[kind]
        if test is None:
            inside = flow.read(data[kind], flow.inside(tau), moments[kind])
            return flow.outside(tau) * y + inside
        return flow.read(test[kind], flow.gain(tau), moments[kind])

    def covariance(kind: str, tau: Array, test: dict[str, Array] | None) -> Array:
        flow, x = flows[kind], data if test is None else test
        if kind == "nngp":
            coordinates = matmul(x["nngp"], flow.basis)
            scaled = coordinates * flow.spread(tau, test is None)[..., None, :]
            inner = matmul(scaled, coordinates.T)
            if test is None:
                return inner + flow.spread_outside(tau) * jnp.eye(n, dtype=flow.dtype)
            # What training never sees keeps the variance that it began with.
            rest = x["nngp"] - matmul(coordinates, flow.basis.T)
            return inner + matmul(rest, rest.T)
        if test is None:
            inside = flow.read(x["ntk"], flow.inside(tau), cross)
            rows = (1 - flow.outside(tau)) * x["nngp"] - inside
        else:
            rows = x["nngp"] - flow.read(x["ntk"], flow.gain(tau), cross)
        return matmul(rows, jnp.swapaxes(rows, -1, -2))

    def predict_fn(
        t: Any = None,
        features_test: Any = None,
        get: str | tuple[str, ...] | None = None,
        compute_cov: bool = False,
    ) -> Any:
        kinds = _KINDS if get is None else (get,) if isinstance(get, str) else get
        if not kinds or any(kind not in _KINDS for kind in kinds):
            raise ValueError(
                f'predict_fn: get must be "nngp", "ntk" or both, got {get!r}'
            )
        tau = _times(t, learning_rate / size, phi.dtype)
        test = None
        if features_test is not None:
            test = {
                kind: _features(
                    f"features_test.{kind}",
                    getattr(features_test, kind),
                    data[kind].shape[1],
                    phi.dtype,
                )
                for kind in _KINDS
                if kind in kinds or compute_cov
            }
        out: dict[str, Any] = dict.fromkeys(_KINDS)
        for kind in kinds:
            value: Any = mean(kind, tau, test)
            value = value[..., 0] if flat else value
            if compute_cov:
                value = Gaussian(value, covariance(kind, tau, test))
            out[kind] = value
        return out[get] if isinstance(get, str) else EnsemblePrediction(**out)

    return predict_fn


_KINDS = ("nngp", "ntk")


class _Flow:
    """A Gram matrix's eigenvectors, and functions of its eigenvalues and of time.

    Times are (..., 1) there and (..., 1, 1) for what is as large as all outputs.
    Directions that rounding cannot tell from zero are left out: no training reaches
    them.
    """

    def __init__(self, gram: np.ndarray, reg: float, dtype: Any) -> None:
        values, vectors = np.linalg.eigh(gram)
        kept = values > ROUNDING[str(dtype)] * max(values[-1], 0) * len(values)
        self._vectors = vectors[:, kept]
        self.basis = jnp.asarray(self._vectors, dtype)
        self.squares = jnp.asarray(values[kept], dtype)
        self.reg, self.dtype = float(reg), dtype

    def coordinates(self, moments: np.ndarray) -> Array:
        """V^T of (m, k), in double precision."""
        return jnp.asarray(self._vectors.T @ moments, self.dtype)

    def project(self, x: Array, y: Array) -> Array:
        """V^T X^T y."""
        return matmul(self.basis.T, matmul(x.T, y))

    def read(self, x: Array, gain: Array, coordinates: Array) -> Array:
        """x V g c: (p, m), (..., r), (r, k) to (..., p, k)."""
        return matmul(matmul(x, self.basis), gain[..., None] * coordinates)

    def _held(self, tau: Array, times: float = 1.0) -> Array:
        """exp(-times reg tau), which without a regulariser is 1 at infinity too."""
        return jnp.exp(-times * self.reg * tau) if self.reg else jnp.ones_like(tau)

    def gain(self, tau: Array) -> Array:
        """(1 - exp(-(s^2 + reg) tau)) / (s^2 + reg), (..., r)."""
        a = self.squares + self.reg
        return -jnp.expm1(-a * tau) / a

    def inside(self, tau: Array) -> Array:
        """Of training outputs, (f(s^2 + reg) - f(reg)) / s^2, f = 1 - exp(-. tau)."""
        return self._held(tau) * -jnp.expm1(-self.squares * tau) / self.squares

    def outside(self, tau: Array) -> Array:
        """1 - exp(-reg tau), (..., 1, 1): what targets off the features gain."""
        return (1 - self._held(tau))[..., None]

    def spread(self, tau: Array, train: bool) -> Array:
        """What is left of the NNGP prior along each direction, (..., r).

        At other examples 1 - s^2 (1 - exp(-2 a tau)) / a with a = s^2 + reg. On the
        training set, as Neural Tangents has it, (f(a) - f(reg)) / s^2 with f(a) = a
        exp(-2 a tau).
        """
        a, s2 = self.squares + self.reg, self.squares
        if not train:
            return (self.reg + s2 * jnp.exp(-2 * a * tau)) / a
        change = jnp.exp(-2 * s2 * tau) + self.reg * jnp.expm1(-2 * s2 * tau) / s2
        return self._held(tau, 2.0) * change

    def spread_outside(self, tau: Array) -> Array:
        """f(reg), (..., 1, 1)."""
        return self.reg * self._held(tau, 2.0)[..., None]


def _regulariser(reg: float, absolute: bool, gram: np.ndarray, n: float) -> float:
    if not (isinstance(reg, int | float | np.number) and 0 <= reg < math.inf):
        raise ValueError(f"diag_reg must be a finite number >= 0, got {reg!r}")
    return float(reg) * (1.0 if absolute else float(np.trace(gram)) / n)


def _times(t: Any, scale: float, dtype: Any) -> Array:
    """Times in units of one target's share, (..., 1)."""
    t = jnp.asarray(jnp.inf if t is None else t, dtype)
    if not isinstance(t, jax.core.Tracer) and not bool((t >= 0).all()):
        raise ValueError("predict_fn: t must be >= 0")
    return (t * scale)[..., None]


def _training(name: str, phi: Any, y: Any) -> tuple[Array, Array, bool]:
    """Features, targets (n, k), and whether these had no second axis."""
    phi, y = jnp.asarray(phi), jnp.asarray(y)
    if phi.ndim != 2 or y.ndim not in (1, 2) or len(phi) != len(y) or not len(y):
        raise ValueError(
            f"{name}: features must have shape (n, m) and targets (n, k) or (n,); got "
            f"{phi.shape} and {y.shape}"
        )
    dtype = jnp.promote_types(phi.dtype, jnp.float32)
    if not (jnp.issubdtype(dtype, jnp.floating) and jnp.isrealobj(y)):
        raise TypeError(f"{name}: features and targets must be real numbers")
    flat = y.ndim == 1
    return phi.astype(dtype), y.reshape(len(y), -1).astype(dtype), flat


def _features(name: str, phi: Any, m: int, dtype: Any) -> Array:
    phi = jnp.asarray(phi, dtype)
    if phi.ndim != 2 or phi.shape[1] != m:
        raise ValueError(
            f"predict_fn: {name} must have shape (p, {m}), got {phi.shape}"
        )
    return phi


def _outputs(fx: Any, flow: _Flow) -> Array:
    """Outputs as (n, k), or what broadcasts to it."""
    fx = jnp.asarray(fx, flow.dtype)
    return fx[:, None] if fx.ndim == 1 else fx


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _sums(phi: Array, y: Array) -> RidgeState:
    state = ridge_init(phi.shape[1], y.shape[1], dtype=phi.dtype)
    for i in range(0, len(phi), _BATCH):
        state = ridge_update(state, phi[i : i + _BATCH], y[i : i + _BATCH])
    return state
