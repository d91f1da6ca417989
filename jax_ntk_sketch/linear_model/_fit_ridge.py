"""`fit_ridge`: ridge regression on features, given as arrays or batches."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jax_ntk_sketch._typing import Examples, Targets, Task
from jax_ntk_sketch.batches.reader import Nonfinite, Reader, warn_skipped
from jax_ntk_sketch.batches.source import Batches, open_source
from jax_ntk_sketch.linear_model.model import RidgeModel
from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    ridge_init,
    ridge_solve,
    ridge_update,
)

# The sums are updated in place: at m = 8192 they are half a gigabyte.
_update = jax.jit(ridge_update, donate_argnums=0)


def fit_ridge(
    phi: Examples | Batches,
    y: Targets = None,
    *,
    reg: float | Sequence[float],
    intercept: bool = True,
    sample_weight: Targets = None,
    num_classes: int | None = None,
    task: Task | None = None,
    batch_size: int | None = None,
    nonfinite: Nonfinite = "raise",
    progress: bool | None = None,
) -> RidgeModel:
    r"""Fit ridge regression on features, for numbers or classes.

    .. math:: \min_{w, b}\; \frac1n \|\Phi w + b - y\|^2 + \mathrm{reg}\,\|w\|^2

    Integers, booleans and text y of shape (n,) are class labels. Their one-hot codes
    minus 1 / num_classes are fitted; `RidgeModel.predict` returns scores and
    `predict_class` labels. All other targets are numbers. To regress on counts, give
    task="regression".

    Args:
      phi: features (n, m), given together with y: an array or a memory map. Or an
        iterable of batches `(phi, y)` or `(phi, y, weight)` of any lengths, which is
        read once.
      y: targets `(n,)` or `(n, t)`, or labels `(n,)`. None if phi yields batches.
      reg: one number >= 0; or r numbers for a model each, at the cost of one.
        `RidgeModel.best` chooses one of them. Of several numbers, those that leave the
        system singular are dropped, with a warning. Usual values are 1e-6 to 1 times
        `(phi**2).sum(axis=1).mean()`, which is the mean of K(x, x).
      intercept: whether to fit an intercept, which is not penalized.
      sample_weight: `(n,)`, >= 0; see `ridge_update`.
      num_classes, task: as `fit` takes them.
      batch_size: rows that are on the device at a time. By default 1024, or fewer if
        they take more than 64 MiB.
      nonfinite: "raise" to raise an error that names rows with NaN or infinity; "skip"
        to leave them out, with a warning.
      progress: True to show progress on stderr, False not to, None (default) to show it
        if stderr is a terminal.

    Returns:
      `RidgeModel` in float64 if the features are, else in float32.

    Raises:
      TypeError: phi or y does not hold numbers, or a batch is not a pair.
      ValueError: shapes or labels do not fit, or a row is not finite; the rows are
        named.
      numpy.linalg.LinAlgError: the system is singular with all values of `reg`, see
        `ridge_solve`.

    Cost: 4 n m^2 + 4/3 m^3 flops (float32). The memory is 8 m^2 bytes on the device and
    about 24 m^2 bytes on the host.

    >>> import numpy as np
    >>> from jax_ntk_sketch.linear_model import fit_ridge
    >>> phi = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    >>> label = phi @ np.ones(3) > 0
    >>> model = fit_ridge(phi, label, reg=[1e-3, 1e-1])
    >>> model.weights.shape, model.predict_class(phi).shape
    ((2, 3, 2), (2, 100))
    >>> model.best(phi, label).weights.shape
    (3, 2)
    """
    reader = Reader(
        open_source("fit_ridge", phi, y, sample_weight, {}, name="phi"),
        batch_size=batch_size,
        num_classes=num_classes,
        task=task,
        nonfinite=nonfinite,
        pad=False,
    )
    state: RidgeState | None = None
    skipped = 0
    for batch in reader.batches(label="sums", progress=progress):
        rows, targets = jnp.asarray(batch.x), batch.y
        assert targets is not None
        if state is None:
            dtype = jnp.promote_types(rows.dtype, jnp.float32)
            t = None if targets.ndim == 1 else targets.shape[1]
            state = ridge_init(rows.shape[1], t, dtype=dtype)
        state = _update(state, rows, targets, sample_weight=batch.weight)
        skipped += batch.num_skipped
    if state is None:
        raise ValueError("fit_ridge: phi must hold at least one row, got no rows")
    warn_skipped("fit_ridge", skipped)
    model = ridge_solve(state, reg, intercept=intercept, singular="drop")
    return dataclasses.replace(model, classes=reader.classes)
