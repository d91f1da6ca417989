"""Linear models on features by stochastic gradients, for any loss and optimiser."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch._progress import progress as with_progress
from jax_ntk_sketch.batches.reader import (
    Source,
    check_options,
    features,
    features_like,
    warn_skipped,
)
from jax_ntk_sketch.linear_model._fit import FittedModel
from jax_ntk_sketch.linear_model.model import RidgeInfo, RidgeModel
from jax_ntk_sketch.linear_model.ridge import check_reg

__all__ = ["fit_gradient"]


def fit_gradient(
    fmap: Any,
    params: Any,
    data: Any,
    y: Any = None,
    *,
    optimizer: Any,
    loss: str | Callable[[jax.Array, jax.Array], jax.Array] = "squared_error",
    reg: float = 0.0,
    num_epochs: int = 1,
    intercept: bool = True,
    sample_weight: Any = None,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    batch_size: int = 256,
    nonfinite: str = "raise",
    progress: bool | None = None,
) -> tuple[FittedModel, np.ndarray]:
    r"""A linear model on features by minibatches, features made again in each epoch.

    Minimises :math:`\frac1n \sum_i \ell(\phi_i^\top w + b, y_i) +
    \mathrm{reg}\,\|w\|^2`, from zero weights.

    Args:
      fmap, params, data, y, intercept, sample_weight, num_classes, nonfinite, progress:
        as `fit`; data that can be read once only do for one epoch. There is no
        `mesh`: one device makes all features.
      optimizer: an `optax.GradientTransformation`, schedules and clipping included.
      loss: "squared_error", "softmax_cross_entropy" (needs class labels), or a function
        of scores (n, t) and targets (n, t), for classes one-hot codes, to (n,).
      reg: >= 0, per example as everywhere.
      num_epochs: passes over the data, >= 1.
      key: for the order of the examples, drawn anew in each epoch; None for the order
        in which they come, as batches always do.
      batch_size: examples of a step.

    Returns:
      `FittedModel`, and the mean loss of each epoch's steps, (num_epochs,), `reg`
      included. For classes scores are log-odds up to a constant with
      "softmax_cross_entropy", and as in `fit` with "squared_error".

    Raises:
      TypeError, ValueError: as `fit`; FloatingPointError where the loss is not finite
        any more, which a smaller learning rate prevents.

    Cost: `num_epochs` times the features of n examples and 4 n m t flops.

    >>> import optax
    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=100)
    >>> x = np.random.default_rng(0).normal(size=(512, 4)).astype(np.float32)
    >>> params = fmap.init(jax.random.key(0), (4,))
    >>> fitted, losses = fit_gradient(
    ...     fmap, params, x, x[:, 0] > 0, loss="softmax_cross_entropy",
    ...     optimizer=optax.adam(0.05), num_epochs=20, key=jax.random.key(1))
    >>> bool(losses[-1] < 0.7 * losses[0])
    True
    """
    check_options(
        "fit_gradient", fmap, nonfinite, batch_size=batch_size, num_epochs=num_epochs
    )
    penalty = check_reg("fit_gradient", reg)
    if penalty.ndim:
        raise ValueError(f"fit_gradient: reg must be one number, got {reg!r}")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "fit_gradient: optimizer must be an optax.GradientTransformation, such as "
            f"optax.adam(1e-3); got {optimizer!r}"
        )
    source = Source("fit_gradient", data, y, sample_weight, num_classes, batch_size)
    if source.once and num_epochs > 1:
        raise ValueError(
            "fit_gradient: data is an iterator, which is used up after one pass; for "
            "more epochs give a list, an array or an object with __iter__"
        )
    if key is not None and source.n is None:
        raise ValueError(
            "fit_gradient: batches come in their own order; key is for arrays"
        )
    each, centre = _loss(loss, source.num_classes)
    run: Any = None
    history, skipped = [], 0
    step = _stepper(fmap, optimizer, each, float(penalty), intercept)
    for epoch in range(num_epochs):
        order = None
        if key is not None:
            assert source.n is not None
            epoch_key = jax.random.fold_in(key, epoch)
            order = np.asarray(jax.random.permutation(epoch_key, source.n))
        label = f"epoch {epoch + 1} of {num_epochs}"
        chunks = source.chunks(order=order)
        total, count = jnp.zeros(()), 0.0
        for chunk in with_progress(chunks, label, source.count(), progress):
            targets = chunk.y.reshape(len(chunk.y), -1) + centre
            if run is None:
                flat = chunk.y.ndim == 1
                run = _start(fmap, params, chunk.x, targets.shape[1], optimizer)
            weight = np.asarray(chunk.weight, np.float32)
            run, value, finite = step(params, run, chunk.x, targets, weight)
            if epoch == 0:
                skipped += chunk.skipped("fit_gradient", finite, nonfinite)
            total = total + value * weight.sum()
            count += float(weight.sum())
        if run is None:
            raise ValueError("fit_gradient: there are no examples")
        history.append(float(total) / max(count, np.finfo(np.float64).tiny))
        if not np.isfinite(history[-1]):
            raise FloatingPointError(
                f"fit_gradient: the loss of epoch {epoch + 1} is {history[-1]}; a "
                "smaller learning rate may do"
            )
    warn_skipped("fit_gradient", skipped)
    (w, b), _ = run
    model = RidgeModel(
        weights=w[:, 0] if flat else w,
        intercept=b[0] if flat else b,
        reg=np.array(float(penalty)),
        info=RidgeInfo(count),
        num_targets=None if flat else w.shape[1],
        num_classes=source.num_classes,
    )
    return FittedModel(fmap, params, model, model, None, skipped), np.array(history)


def _loss(loss: Any, num_classes: int | None) -> tuple[Callable[..., Any], float]:
    """The loss of each example, and what centred one-hot codes lack of 0 and 1."""
    one_hot = 0.0 if num_classes is None else 1 / num_classes
    if callable(loss):
        return loss, one_hot
    if loss == "squared_error":
        return lambda scores, y: jnp.sum((scores - y) ** 2, axis=-1), 0.0
    if loss != "softmax_cross_entropy":
        raise ValueError(
            'fit_gradient: loss must be "squared_error", "softmax_cross_entropy" or a '
            f"function of scores and targets, got {loss!r}"
        )
    if num_classes is None:
        raise ValueError(
            'fit_gradient: loss="softmax_cross_entropy" needs class labels: integers '
            "of shape (n,), with batches also num_classes"
        )
    import optax

    return optax.losses.softmax_cross_entropy, one_hot


def _start(fmap: Any, params: Any, x: Any, t: int, optimizer: Any) -> Any:
    phi = features_like(fmap, params, x)
    w = jnp.zeros((phi.shape[1], t), phi.dtype), jnp.zeros(t, phi.dtype)
    return w, optimizer.init(w)


def _stepper(
    fmap: Any, optimizer: Any, each: Any, reg: float, intercept: bool
) -> Callable[..., Any]:
    def objective(w: Any, phi: jax.Array, y: jax.Array, weight: jax.Array) -> Any:
        scores = matmul(phi, w[0]) + w[1]
        losses = each(scores, y.astype(scores.dtype))
        mean = jnp.sum(weight * losses) / jnp.maximum(jnp.sum(weight), 1e-30)
        return mean + reg * jnp.sum(w[0] ** 2)

    # The state is updated in place.
    @functools.partial(jax.jit, donate_argnums=1)
    def step(params: Any, run: Any, x: Any, y: Any, weight: Any) -> Any:
        w, state = run
        phi, weight, finite = features(fmap, params, x, weight)
        phi = phi.astype(w[0].dtype)
        value, slope = jax.value_and_grad(objective)(w, phi, y, weight)
        if not intercept:
            slope = slope[0], jnp.zeros_like(slope[1])
        change, state = optimizer.update(slope, state, w)
        if not intercept:
            change = change[0], jnp.zeros_like(change[1])
        w = jax.tree.map(lambda a, b: a + b.astype(a.dtype), w, change)
        return (w, state), value, finite

    return step
