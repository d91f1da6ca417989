r"""Predictions during training, as `neural_tangents.predict`, with features.

Gradient flow on the mean squared error changes the outputs of a wide network by its NTK
:math:`K = \Phi\Phi^\top`. With N the number of target values,
:math:`\tau = \eta t / N`, :math:`\lambda` the penalty and
:math:`\Phi^\top\Phi = V s^2 V^\top`,

.. math:: f_t(x) = f_0(x) + \phi(x)^\top V
    \frac{1 - e^{-(s^2+\lambda)\tau}}{s^2 + \lambda} V^\top \Phi^\top (y - f_0).

This is the formula for kernels, after :math:`\Phi^\top (\Phi\Phi^\top)^k =
(\Phi^\top\Phi)^k \Phi^\top`. It takes O(n m^2 + m^3) operations instead of O(n^3). The
functions have the names, arguments and conventions of Neural Tangents, with features in
place of kernels, so that results can be compared entry by entry. Where n < m, the
singular vectors of the features replace the eigenvectors, with O(n^2 m) operations.

Source: Lee et al., arXiv 1902.06720, equations 10 to 16. The docstrings derive the
formulas in features.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._checks import check_get, check_number
from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch._protocol import KernelFeatures
from jax_ntk_sketch._typing import (
    KINDS,
    Array,
    ArrayLike,
    Dtype,
    Get,
    Kind,
    kernels_tuple,
)
from jax_ntk_sketch.linear_model._flow import GradientFlow
from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    ridge_init,
    ridge_update,
    sums_on_host,
)

_BATCH = 4096


class Gaussian(NamedTuple):
    """A Gaussian prediction for n examples.

    Attributes:
      mean: (..., n, k) or (..., n), for times (...).
      covariance: (..., n, n), or variances (..., n), the same for all k targets.
    """

    mean: Array
    covariance: Array


# What the functions that predict return: the last type holds several kernels.
Outputs: TypeAlias = Array | tuple[Array, Array]
Prediction: TypeAlias = Array | Gaussian | tuple[Array | Gaussian, ...]


def gradient_descent_mse(
    phi_train: ArrayLike | RidgeState,
    y_train: ArrayLike | None = None,
    learning_rate: float = 1.0,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
) -> Callable[..., Outputs]:
    r"""Return a function that predicts outputs under gradient flow, at any time.

    The flow is that of the mean squared error.

    Args:
      phi_train: (n, m) features. Or a `RidgeState` that has seen features and targets
        of any number of batches, without sample weights. Then `y_train` is None, and
        only outputs on test examples can be predicted.
      y_train: (n, k) or (n,) targets.
      learning_rate: the number :math:`\eta` that multiplies the time.
      diag_reg: :math:`\lambda` over the mean diagonal entry of the kernel, >= 0.
      diag_reg_absolute_scale: whether `diag_reg` is :math:`\lambda` itself.

    Returns:
      `predict_fn(t=None, fx_train_0=0.0, fx_test_0=None, phi_test=None)`:

      - t: a time or an array of times, >= 0; None or infinity for the end of training.
      - fx_train_0: the outputs on the training set at time 0; None to predict no
        outputs there.
      - fx_test_0: the outputs on the test set at time 0; None to predict none there.
      - phi_test: (p, m) features of the test set, given together with `fx_test_0`.

      It returns `fx_train_t`, `fx_test_t` or the pair, each of shape t.shape + (n, k)
      or t.shape + (n,), in the dtype of `phi_train`. It can be traced, also in t.

      At the end of training without a penalty, training outputs are the projection of
      the targets on the features. They are the targets themselves if m >= n and the
      features are independent.

    Raises:
      TypeError: features or targets are not real, or `diag_reg` is not a number.
      ValueError: shapes do not fit, the training data are not finite, or `diag_reg` is
        negative or not finite.

    Cost: 4 n m^2 + 9 m^3 flops once, or O(n^2 m) where n < m; then O(p m r) for each
    call with r = min(n, m). The memory is 24 r m bytes.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch import linear_model
    >>> phi = jnp.eye(3)
    >>> predict_fn = linear_model.gradient_descent_mse(phi, jnp.ones((3, 1)))
    >>> predict_fn(3 * jnp.log(2.0)).ravel().round(3).tolist()
    [0.5, 0.5, 0.5]
    """
    owner = "gradient_descent_mse"
    phi: Array | None = None
    y: Array | None = None
    n: float
    if isinstance(phi_train, RidgeState):
        if y_train is not None:
            raise ValueError(
                f"{owner}: y_train must be None with a RidgeState, which has its own "
                "targets"
            )
        sums = sums_on_host(owner, phi_train)
        flat, m = phi_train.num_targets is None, phi_train.num_features
        n, k = float(sums[-1, -1]), len(sums) - 1 - m
        mean = float(np.trace(sums[:m, :m])) / n
        reg = _penalty(owner, diag_reg, diag_reg_absolute_scale, mean)
        flow = GradientFlow.of_gram(sums[:m, :m], reg, phi_train.total.dtype)
        moments = flow.coordinates(sums[:m, m:-1])
    else:
        phi, y, flat = _training_set(owner, phi_train, y_train)
        m, (n, k) = phi.shape[1], y.shape
        penalty = functools.partial(_penalty, owner, diag_reg, diag_reg_absolute_scale)
        flow, moments = _flow(owner, phi, y, penalty)

    def predict_fn(
        t: ArrayLike | None = None,
        fx_train_0: ArrayLike | None = 0.0,
        fx_test_0: ArrayLike | None = None,
        phi_test: ArrayLike | None = None,
    ) -> Outputs:
        if fx_train_0 is None and fx_test_0 is None:
            raise ValueError("predict_fn: fx_train_0 or fx_test_0 must be given")
        if (fx_test_0 is None) != (phi_test is None):
            raise ValueError(
                "predict_fn: fx_test_0 and phi_test must be given together"
            )
        # The loss is a mean over all target values.
        tau = _scaled_times(t, learning_rate / (n * k), flow.dtype)
        remaining, outputs = moments, []
        if fx_train_0 is not None and phi is not None and y is not None:
            start = jnp.broadcast_to(_initial_outputs(fx_train_0, flow), y.shape)
            remaining = moments - flow.project(phi, start)
            along = flow.outputs(phi, flow.train_gain(tau), remaining)
            outputs.append(start + flow.train_gain_off(tau) * (y - start) + along)
        elif fx_train_0 is not None and not _is_zero(fx_train_0):
            raise ValueError(
                "predict_fn: fx_train_0 must be 0 with a RidgeState, which has no "
                "examples to subtract it from; add batches with targets y - fx_train_0"
            )
        if fx_test_0 is not None and phi_test is not None:
            test = _test_features("phi_test", phi_test, m, flow.dtype)
            change = flow.outputs(test, flow.gain(tau), remaining)
            outputs.append(_initial_outputs(fx_test_0, flow) + change)
        if not outputs:
            raise ValueError(
                "predict_fn: outputs on the training set need its features, which a "
                "RidgeState does not hold; give fx_test_0 and phi_test"
            )
        outputs = [fx[..., 0] if flat else fx for fx in outputs]
        return outputs[0] if len(outputs) == 1 else (outputs[0], outputs[1])

    return predict_fn


def gradient_descent_mse_ensemble(
    features_train: KernelFeatures,
    y_train: ArrayLike,
    learning_rate: float = 1.0,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
) -> Callable[..., Prediction]:
    r"""Return a function that predicts an ensemble of networks, at any time.

    The initial outputs are Gaussian with the NNGP kernel. With "ntk", gradient flow
    trains all layers. With "nngp" it trains the last layer only; the limit is the
    posterior of the NNGP process with noise :math:`\lambda`.

    Let :math:`\Psi` be the NNGP features, and :math:`B = V g V^\top \Phi^\top \Psi`
    with the factor g of the formula in the docstring of the module. The covariance of
    the NTK ensemble is :math:`R R^\top` with the rows :math:`\psi(x) - B^\top \phi(x)`.

    Args:
      features_train: the features of the training set, with the attributes `nngp`
        (n, m') and `ntk` (n, m). A feature map with get=("nngp", "ntk") returns them.
      y_train: (n, k) or (n,) targets.
      learning_rate: see `gradient_descent_mse`.
      diag_reg: see `gradient_descent_mse`.
      diag_reg_absolute_scale: see `gradient_descent_mse`.

    Returns:
      `predict_fn(t=None, features_test=None, get=None, compute_cov=False)`:

      - t: a time or an array of times, >= 0; None or infinity for the end of training.
      - features_test: the features of p test examples, (p, m') and (p, m), like
        `features_train`; None for the training set.
      - get: "nngp", "ntk", or a tuple of them; None for both.
      - compute_cov: whether to compute covariances; "diagonal" for the variances only.
      - nngp_diag: the exact NNGP kernel of each test example with itself, (p,). The
        part of it that the features leave out is added to the variances, which are too
        small without it. For fully connected networks it is the diagonal of
        `jax_ntk_sketch.kernels.exact_kernel(net, x, get="nngp")`.

      It returns a `Gaussian` if `compute_cov`, else the mean (..., p, k). Covariances
      are (..., p, p), and variances (..., p). If `get` is a tuple, it returns a named
      tuple of these with the fields in that order, and for None in the order "nngp",
      "ntk". It can be traced, also in t.

    Raises:
      TypeError: as `gradient_descent_mse`; or `features_train` lacks an attribute.
      ValueError: as `gradient_descent_mse`.

    Cost: 4 n ((m + m')^2 + m'^2) + 9 (m^3 + m'^3) flops once, or O(n^2 (m + m')) where
    n is less than m and m'; then O(p m (m + m')) for each call and time, and O(p^2 m')
    more for covariances that are not diagonal.

    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch import NNGPFirst, linear_model
    >>> train = NNGPFirst(nngp=jnp.eye(3), ntk=2 * jnp.eye(3))
    >>> y = jnp.ones((3, 1))
    >>> predict_fn = linear_model.gradient_descent_mse_ensemble(train, y)
    >>> mean, covariance = predict_fn(jnp.inf, train, "ntk", compute_cov=True)
    >>> mean.ravel().tolist(), float(abs(covariance).max())
    ([1.0, 1.0, 1.0], 0.0)
    """
    owner = "gradient_descent_mse_ensemble"
    for kind in KINDS:
        if not hasattr(features_train, kind):
            raise TypeError(
                f"{owner}: features_train must have the attributes nngp and ntk, got "
                f"{type(features_train).__name__}; use the features of a map with "
                'get=("nngp", "ntk")'
            )
    phi, y, flat = _training_set(owner, features_train.ntk, y_train)
    psi, _, _ = _training_set(owner, features_train.nngp, y_train)
    psi = psi.astype(phi.dtype)
    n, num_values = len(y), y.size
    train: dict[Kind, Array] = {"ntk": phi, "nngp": psi}
    penalty = functools.partial(_penalty, owner, diag_reg, diag_reg_absolute_scale)
    right = {"ntk": jnp.concatenate([psi, y], axis=1), "nngp": y}
    flows: dict[Kind, GradientFlow] = {}
    moments: dict[Kind, Array] = {}
    for kind in KINDS:
        flows[kind], moments[kind] = _flow(owner, train[kind], right[kind], penalty)
    cross, moments["ntk"] = jnp.split(moments["ntk"], [psi.shape[1]], axis=1)

    def mean(kind: Kind, tau: Array, test: dict[Kind, Array] | None) -> Array:
        flow = flows[kind]
        if test is None:
            along = flow.outputs(train[kind], flow.train_gain(tau), moments[kind])
            return flow.train_gain_off(tau) * y + along
        return flow.outputs(test[kind], flow.gain(tau), moments[kind])

    def nngp_covariance(
        tau: Array, test: dict[Kind, Array] | None, diagonal: bool
    ) -> Array:
        flow, x = flows["nngp"], (train if test is None else test)["nngp"]
        coordinates = matmul(x, flow.basis)
        prior = flow.train_prior(tau) if test is None else flow.prior(tau)
        along = _products(coordinates * prior[..., None, :], coordinates, diagonal)
        if test is None:
            off = flow.train_prior_off(tau)
            return along + (
                off[..., 0] if diagonal else off * jnp.eye(n, dtype=x.dtype)
            )
        # Directions that no training example has keep their initial variance.
        rest = x - matmul(coordinates, flow.basis.T)
        return along + _products(rest, rest, diagonal)

    def ntk_covariance(
        tau: Array, test: dict[Kind, Array] | None, diagonal: bool
    ) -> Array:
        flow = flows["ntk"]
        if test is None:
            along = flow.outputs(phi, flow.train_gain(tau), cross)
            rows = (1 - flow.train_gain_off(tau)) * psi - along
        else:
            rows = test["nngp"] - flow.outputs(test["ntk"], flow.gain(tau), cross)
        return _products(rows, rows, diagonal)

    def predict_fn(
        t: ArrayLike | None = None,
        features_test: KernelFeatures | None = None,
        get: Get | None = None,
        compute_cov: bool | Literal["diagonal"] = False,
        nngp_diag: ArrayLike | None = None,
    ) -> Prediction:
        kinds = check_get("predict_fn", KINDS if get is None else get)
        diagonal = compute_cov == "diagonal"
        if isinstance(compute_cov, str) and not diagonal:
            raise ValueError(
                'predict_fn: compute_cov must be True, False or "diagonal", got '
                f"{compute_cov!r}"
            )
        tau = _scaled_times(t, learning_rate / num_values, phi.dtype)
        test = None
        if features_test is not None:
            test = {
                kind: _test_features(
                    f"features_test.{kind}",
                    getattr(features_test, kind),
                    train[kind].shape[1],
                    phi.dtype,
                )
                for kind in KINDS
                if kind in kinds or compute_cov
            }
        left_out = _left_out(nngp_diag, test, compute_cov)
        covariance = {"nngp": nngp_covariance, "ntk": ntk_covariance}
        predictions: dict[Kind, Array | Gaussian] = {}
        for kind in kinds:
            value = mean(kind, tau, test)
            value = value[..., 0] if flat else value
            if compute_cov:
                found = covariance[kind](tau, test, diagonal)
                if left_out is not None:
                    found += left_out if diagonal else jnp.diag(left_out)
                predictions[kind] = Gaussian(value, found)
            else:
                predictions[kind] = value
        if isinstance(get, str):
            return predictions[get]
        return kernels_tuple(kinds)(**predictions)

    return predict_fn


def _flow(
    owner: str, phi: Array, right: Array, penalty: Callable[[float], float]
) -> tuple[GradientFlow, Array]:
    """Return the flow of features, and the coordinates of their products with `right`.

    Args:
      owner: the function to name in messages.
      phi: (n, m). Their Gram matrix is not formed where n < m.
      right: (n, k).
      penalty: a function of the mean diagonal entry of the kernel.

    Raises:
      TypeError: the features are traced.
      ValueError: they or `right` are not finite.
    """
    n, m = phi.shape
    if n >= m:
        sums = sums_on_host(owner, _sums(phi, right))
        reg = penalty(float(np.trace(sums[:m, :m])) / n)
        flow = GradientFlow.of_gram(sums[:m, :m], reg, phi.dtype)
        return flow, flow.coordinates(sums[:m, m:-1])
    if isinstance(phi, jax.core.Tracer) or isinstance(right, jax.core.Tracer):
        raise TypeError(
            f"{owner}: features must be concrete; do not call it under jit or vmap"
        )
    rows, columns = np.asarray(phi, np.float64), np.asarray(right, np.float64)
    if not (np.isfinite(rows).all() and np.isfinite(columns).all()):
        raise ValueError(
            f"{owner}: features and targets must be finite, got NaN or infinity; "
            "fit_ridge names the rows"
        )
    reg = penalty(float(np.square(rows).sum()) / n)
    flow = GradientFlow.of_features(rows, reg, phi.dtype)
    return flow, flow.coordinates(rows.T @ columns)


def _products(a: Array, b: Array, diagonal: bool) -> Array:
    """Return the inner products of rows with all rows, or with their own only."""
    if diagonal:
        return jnp.sum(a * b, axis=-1)
    return matmul(a, jnp.swapaxes(b, -1, -2))


def _left_out(
    nngp_diag: ArrayLike | None, test: dict[Kind, Array] | None, compute_cov: object
) -> Array | None:
    """Return the variances (p,) that features leave out; None if they are not known.

    Raises:
      ValueError: `nngp_diag` has another shape, or is given without a use.
    """
    if nngp_diag is None:
        return None
    if test is None or not compute_cov:
        raise ValueError(
            "predict_fn: nngp_diag must be None without features_test and compute_cov"
        )
    squares = jnp.sum(test["nngp"] ** 2, axis=1)
    exact = jnp.asarray(nngp_diag, squares.dtype)
    if exact.shape != squares.shape:
        raise ValueError(
            f"predict_fn: nngp_diag must have shape {squares.shape}, one number for "
            f"each test example, got {exact.shape}"
        )
    return jnp.maximum(exact - squares, 0)


def _penalty(owner: str, diag_reg: float, absolute: bool, mean: float) -> float:
    """Return the penalty, given the mean diagonal entry of the kernel."""
    diag_reg = check_number(owner, "diag_reg", diag_reg, least=0)
    return diag_reg * (1.0 if absolute else mean)


def _scaled_times(t: ArrayLike | None, scale: float, dtype: Dtype) -> Array:
    """Return `scale * t` with one more axis, (..., 1)."""
    times = jnp.asarray(math.inf if t is None else t, dtype)
    if not isinstance(times, jax.core.Tracer) and not bool((times >= 0).all()):
        raise ValueError(f"predict_fn: t must be >= 0, got {t}")
    return (times * scale)[..., None]


def _training_set(
    owner: str, phi: ArrayLike, y: ArrayLike | None
) -> tuple[Array, Array, bool]:
    """Return features, targets (n, k), and whether the targets had no second axis."""
    if y is None:
        raise ValueError(f"{owner}: y_train must be given with features, got None")
    phi, y = jnp.asarray(phi), jnp.asarray(y)
    if phi.ndim != 2 or y.ndim not in (1, 2) or len(phi) != len(y) or not len(y):
        raise ValueError(
            f"{owner}: features must have shape (n, m) and targets (n, k) or (n,), "
            f"n >= 1, got {phi.shape} and {y.shape}"
        )
    dtype = jnp.promote_types(phi.dtype, jnp.float32)
    if not (jnp.issubdtype(dtype, jnp.floating) and jnp.isrealobj(y)):
        raise TypeError(
            f"{owner}: features and targets must be real numbers, got {phi.dtype} and "
            f"{y.dtype}"
        )
    flat = y.ndim == 1
    return phi.astype(dtype), y.reshape(len(y), -1).astype(dtype), flat


def _test_features(name: str, phi: ArrayLike, m: int, dtype: Dtype) -> Array:
    phi = jnp.asarray(phi, dtype)
    if phi.ndim != 2 or phi.shape[1] != m:
        raise ValueError(
            f"predict_fn: {name} must have shape (p, {m}), got {phi.shape}"
        )
    return phi


def _initial_outputs(fx: ArrayLike, flow: GradientFlow) -> Array:
    """Return outputs (n, k), or an array that broadcasts to that shape."""
    fx = jnp.asarray(fx, flow.dtype)
    return fx[:, None] if fx.ndim == 1 else fx


def _is_zero(value: ArrayLike) -> bool:
    return isinstance(value, int | float) and value == 0


def _sums(phi: Array, y: Array) -> RidgeState:
    """Return the sums over all examples."""
    state = ridge_init(phi.shape[1], y.shape[1], dtype=phi.dtype)
    for i in range(0, len(phi), _BATCH):
        state = ridge_update(state, phi[i : i + _BATCH], y[i : i + _BATCH])
    return state
