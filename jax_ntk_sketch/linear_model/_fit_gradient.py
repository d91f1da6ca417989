"""`fit_gradient`: linear models on features by stochastic gradients, for any loss."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._checks import check_key, check_number, check_size
from jax_ntk_sketch._numerics import matmul
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import Array, Examples, Key, PyTree, Targets, Task
from jax_ntk_sketch.batches.reader import Nonfinite, Reader, warn_skipped
from jax_ntk_sketch.batches.source import Batches, open_source
from jax_ntk_sketch.linear_model._fitted import (
    FittedModel,
    GradientInfo,
    Inputs,
    batch_features,
    check_one_kernel,
    first_shapes,
)
from jax_ntk_sketch.linear_model.model import RidgeInfo, make_model

if TYPE_CHECKING:
    from optax import GradientTransformation

Loss: TypeAlias = Callable[[Array, Array], Array]
# Weights (m, t) and intercept (t,).
_Weights: TypeAlias = tuple[Array, Array]


def fit_gradient(
    fmap: FeatureMap,
    params: PyTree,
    x: Examples | Batches,
    y: Targets = None,
    *,
    optimizer: "GradientTransformation",
    loss: Literal["squared_error", "softmax_cross_entropy"] | Loss = "squared_error",
    reg: float = 0.0,
    num_epochs: int = 1,
    intercept: bool = True,
    sample_weight: Targets = None,
    num_classes: int | None = None,
    task: Task | None = None,
    key: Key | None = None,
    batch_size: int = 256,
    max_bytes: int | None = None,
    nonfinite: Nonfinite = "raise",
    progress: bool | None = None,
    pattern: PyTree = None,
    mask: PyTree = None,
) -> FittedModel:
    r"""Fit a linear model on features by gradients of batches, with any loss.

    .. math:: \min_{w, b}\; \frac1n \sum_i \ell(\phi_i^\top w + b, y_i) +
       \mathrm{reg}\,\|w\|^2

    The weights start at zero. The features are computed again in each epoch.

    Args:
      fmap, params, x, y, intercept, sample_weight, num_classes, task, max_bytes,
        nonfinite, progress, pattern, mask: as `fit` takes them. An iterator is read
        once, for one epoch. One device computes all features.
      optimizer: an `optax.GradientTransformation`, which may contain schedules and
        clipping.
      loss: "squared_error", "softmax_cross_entropy" for class labels, or a function of
        scores (n, t) and targets (n, t) that returns (n,). Its targets of classes are
        one-hot codes.
      reg: the penalty per example, >= 0, of the scale that `fit` states.
      num_epochs: passes over the data, >= 1.
      key: a PRNG key, with which arrays are shuffled in each epoch. None (default)
        takes the examples in their own order, which needs no randomness. Batches always
        come in their own order.
      batch_size: examples of a step, >= 1.

    Returns:
      `FittedModel` whose `info` is a `GradientInfo`. For classes, scores are log-odds
      up to a constant with "softmax_cross_entropy", and those of `fit` with
      "squared_error".

    Raises:
      TypeError: as `fit`, or `optimizer` or `key` is of the wrong type.
      ValueError: as `fit`, or `loss` or a number is out of range.
      FloatingPointError: the loss is not finite, because the learning rate is too large
        for example.

    Cost: for each epoch the features of n examples and 4 n m t flops.

    >>> import jax
    >>> import jax_ntk_sketch as jns
    >>> import numpy as np
    >>> import optax
    >>> from jax_ntk_sketch import linear_model, stax
    >>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=100)
    >>> params = fmap.init(jax.random.key(0), (4,))
    >>> x = np.random.default_rng(0).normal(size=(512, 4)).astype(np.float32)
    >>> fitted = linear_model.fit_gradient(
    ...     fmap, params, x, x[:, 0] > 0, loss="softmax_cross_entropy",
    ...     optimizer=optax.adam(0.05), num_epochs=20, key=jax.random.key(1))
    >>> losses = fitted.info.losses
    >>> bool(losses[-1] < 0.7 * losses[0])
    True
    """
    owner = "fit_gradient"
    check_one_kernel(owner, fmap)
    check_size(owner, "num_epochs", num_epochs)
    reg = check_number(owner, "reg", reg, least=0)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"{owner}: optimizer must be an optax.GradientTransformation, for example "
            f"optax.adam(1e-3); got {optimizer!r}"
        )
    extras = {"pattern": pattern, "mask": mask}
    again = "each epoch reads it" if num_epochs > 1 else ""
    source = open_source(owner, x, y, sample_weight, extras, read_again=again)
    reader = Reader(
        source,
        batch_size=batch_size,
        num_classes=num_classes,
        task=task,
        nonfinite=nonfinite,
    )
    if key is not None:
        key = check_key(owner, key)
        if reader.num_examples is None:
            raise ValueError(
                f"{owner}: key must be None for batches, which come in their own "
                "order; shuffle them where they are made"
            )
    num_classes = None if reader.classes is None else len(reader.classes)
    example_loss, center = _example_loss(loss, num_classes)
    phi, num_targets = first_shapes(fmap, params, reader, max_bytes)
    t = num_targets or 1
    weights = jnp.zeros((phi.shape[1], t), phi.dtype), jnp.zeros(t, phi.dtype)
    run = weights, optimizer.init(weights)
    step = _make_step(fmap, max_bytes, optimizer, example_loss, reg, intercept)
    losses, skipped, count = [], 0, 0.0
    for epoch in range(num_epochs):
        order = None
        if key is not None:
            assert reader.num_examples is not None
            epoch_key = jax.random.fold_in(key, epoch)
            order = np.asarray(jax.random.permutation(epoch_key, reader.num_examples))
        label = f"epoch {epoch + 1} of {num_epochs}"
        total, count = jnp.zeros(()), 0.0
        for batch in reader.batches(order=order, label=label, progress=progress):
            assert batch.y is not None
            targets = batch.y.reshape(len(batch.y), -1) + center
            weight = np.asarray(batch.weight, np.float32)
            inputs = batch.x, batch.extras, weight
            run, value, finite = step(params, run, inputs, targets)
            if epoch == 0:
                skipped += reader.count_skipped(batch, finite)
            total = total + value * weight.sum()
            count += float(weight.sum())
        losses.append(float(total) / max(count, np.finfo(np.float64).tiny))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(
                f"{owner}: the loss must stay finite, got {losses[-1]} in epoch "
                f"{epoch + 1}; try a smaller learning rate"
            )
    warn_skipped(owner, skipped)
    (w, b), _ = run
    model = make_model(w, b, reg, RidgeInfo(count), num_targets, reader.classes)
    info = GradientInfo(np.array(losses))
    return FittedModel(
        fmap,
        params,
        model,
        model,
        info=info,
        num_skipped=skipped,
        feature_names=source.feature_names,
    )


def _example_loss(loss: str | Loss, num_classes: int | None) -> tuple[Loss, float]:
    """Return the loss of each example, and what is added to centered one-hot codes."""
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
            "fit_gradient: y must hold class labels, integers of shape (n,), for "
            'loss="softmax_cross_entropy"; with batches give num_classes, too'
        )
    import optax

    return optax.losses.softmax_cross_entropy, one_hot


def _make_step(
    fmap: FeatureMap,
    max_bytes: int | None,
    optimizer: "GradientTransformation",
    example_loss: Loss,
    reg: float,
    intercept: bool,
) -> Callable[..., Any]:
    """Return a compiled step: one batch, one change of the weights."""

    def objective(weights: _Weights, phi: Array, y: Array, weight: Array) -> Array:
        w, b = weights
        scores = matmul(phi, w) + b
        losses = example_loss(scores, y.astype(scores.dtype))
        total = jnp.sum(weight)
        mean = jnp.sum(weight * losses) / jnp.where(total > 0, total, 1)
        return mean + reg * jnp.sum(w**2)

    # The state is updated in place.
    @functools.partial(jax.jit, donate_argnums=1)
    def step(
        params: PyTree, run: tuple[_Weights, PyTree], inputs: Inputs, y: Array
    ) -> tuple[tuple[_Weights, PyTree], Array, Array]:
        weights, state = run
        phi, weight, finite = batch_features(fmap, max_bytes, params, inputs)
        phi = phi.astype(weights[0].dtype)
        value, slope = jax.value_and_grad(objective)(weights, phi, y, weight)
        if not intercept:
            slope = slope[0], jnp.zeros_like(slope[1])
        change, state = optimizer.update(slope, state, weights)
        if not intercept:
            change = change[0], jnp.zeros_like(change[1])
        weights = jax.tree.map(lambda a, b: a + b.astype(a.dtype), weights, change)
        return (weights, state), value, finite

    return step
