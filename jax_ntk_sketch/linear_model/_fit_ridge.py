"""Ridge regression in one call, on arrays or batches, with checked data."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_ntk_sketch._progress import progress as with_progress
from jax_ntk_sketch.linear_model.model import RidgeModel
from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    ridge_init,
    ridge_solve,
    ridge_update,
)

__all__ = ["fit_ridge"]

# The sums are updated in place: at m = 8192 they are half a gigabyte.
_update = jax.jit(ridge_update, donate_argnums=0)


def fit_ridge(
    phi: Any,
    y: Any = None,
    *,
    reg: float | Sequence[float],
    intercept: bool = True,
    num_classes: int | None = None,
    batch_size: int = 4096,
    progress: bool | None = None,
) -> RidgeModel:
    r"""Ridge regression on features, for numbers or classes.

    Minimises :math:`\frac1n \|\Phi w + b - y\|^2 + \mathrm{reg}\,\|w\|^2`.
    Integer or bool `y` of shape (n,) are class labels 0..num_classes - 1: their
    one-hot codes minus 1/num_classes are fitted, `predict` gives scores and
    `predict_class` labels. Everything else is regression on numbers; counts, say,
    have to be converted to floats to be regressed on.

    Args:
      phi: (n, m) features with `y` beside them, NumPy (memory maps too) or JAX; or
        an iterable of batches `(phi, y)` of any lengths, which is read once.
      y: (n,), or (n, t) for several targets; None where `phi` yields batches.
      reg: one number >= 0, or a sequence of r of them for a model each, at the price
        of one (see `ridge_penalty`; `RidgeModel.best` chooses).
      intercept: whether to fit an unpenalised intercept.
      num_classes: for class labels; default the largest label + 1, which batches
        cannot know: with them it is required.
      batch_size: rows of arrays that are on the device at a time.
      progress: True to show a bar on stderr, False not to, None (default) to show it
        where stderr is a terminal.

    Returns:
      `RidgeModel`, in float64 if the features are, else in float32.

    Raises:
      ValueError, TypeError: shapes, dtypes or labels that do not fit; or rows that
        are NaN or infinite, named, before anything is fitted (with batches, before
        that batch is added).
      numpy.linalg.LinAlgError: a numerically singular system, see `ridge_solve`.

    Cost: 4 n m^2 + 4/3 m^3 flops (float32), about 24 m^2 bytes on the host besides
    8 m^2 on the device.

    >>> phi = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    >>> label = phi @ np.ones(3) > 0
    >>> model = fit_ridge(phi, label, reg=[1e-3, 1e-1])
    >>> model.weights.shape, model.predict_class(phi).shape
    ((2, 3, 2), (2, 100))
    >>> model.best(phi, label).weights.shape
    (3, 2)
    """
    _check_count("batch_size", batch_size, 1)
    if num_classes is not None:
        _check_count("num_classes", num_classes, 2)
    if y is None:
        if hasattr(phi, "shape"):
            raise ValueError("fit_ridge: phi is an array, so y must be given too")
        batches, length = phi, len(phi) if hasattr(phi, "__len__") else None
    else:
        phi, y = _as_array(phi), _as_array(y)
        if phi.ndim != 2 or y.ndim not in (1, 2) or len(phi) != len(y):
            raise ValueError(
                "fit_ridge: phi must have shape (n, m) and y (n,) or (n, t); got "
                f"{phi.shape} and {y.shape}"
            )
        if num_classes is None and _is_label(y) and len(y):
            num_classes = max(2, int(y.max()) + 1)
        _check_rows(phi, y, num_classes, 0, batch_size)
        starts = range(0, len(phi), batch_size)
        batches = ((phi[i : i + batch_size], y[i : i + batch_size]) for i in starts)
        length = len(starts)
    state, start = None, 0
    for index, batch in enumerate(with_progress(batches, "sums", length, progress)):
        try:
            a, b = _as_pair(batch)
            if y is None:
                _check_rows(a, b, num_classes, start, batch_size)
            state = _add(state, a, b, num_classes)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"fit_ridge: batch {index}: {error}") from error
        start += len(a)
    if state is None or start == 0:
        raise ValueError("fit_ridge: there are no examples")
    model = ridge_solve(state, reg, intercept=intercept)
    return dataclasses.replace(model, num_classes=num_classes)


def _add(
    state: RidgeState | None, phi: Array, y: Array, num_classes: int | None
) -> RidgeState:
    """The state with one more batch, made to measure if it is the first."""
    dtype = jnp.float64 if phi.dtype == jnp.float64 else jnp.float32
    if num_classes is not None:
        # Centred codes, so that a regression without intercept starts from no class.
        y = jax.nn.one_hot(y.astype(int), num_classes, dtype=dtype) - 1 / num_classes
    if state is None:
        state = ridge_init(
            phi.shape[1], None if y.ndim == 1 else y.shape[1], dtype=dtype
        )
    return _update(state, phi, y)


def _check_rows(
    phi: Any, y: Any, num_classes: int | None, start: int, block: int
) -> None:
    """Refuses NaN, infinity and labels outside the classes, naming global rows."""
    if num_classes is None and _is_label(y):
        raise ValueError(
            "num_classes must be given with batches of class labels, because the first "
            "batch need not hold them all (to regress on numbers, make y float)"
        )
    if num_classes is not None and not _is_label(y):
        raise TypeError(
            "num_classes is given, so y must be integer or bool labels of shape (n,); "
            f"got {y.dtype} of shape {y.shape}"
        )
    for name, array in (("phi", phi), ("y", y)):
        bad: list[int] = []
        for i in range(0, len(array), block):
            part = jnp.asarray(array[i : i + block])
            if name == "y" and num_classes is not None:
                good = (part >= 0) & (part < num_classes)
                what = f"hold labels outside 0..{num_classes - 1}"
            else:
                good = jnp.isfinite(part).reshape(len(part), -1).all(axis=1)
                what = "are NaN or infinite; drop or repair them"
            bad.extend((start + i + np.flatnonzero(~np.asarray(good))).tolist())
        if bad:
            rows = "row" if len(bad) == 1 else "rows"
            first = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise ValueError(f"{len(bad)} {rows} of {name} ({first}, from 0) {what}")


def _as_pair(batch: Any) -> tuple[Array, Array]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"must be a pair (phi, y), got {type(batch).__name__}")
    phi, y = jnp.asarray(_as_array(batch[0])), jnp.asarray(_as_array(batch[1]))
    if phi.ndim != 2 or y.ndim not in (1, 2) or len(phi) != len(y):
        raise ValueError(
            "phi must have shape (n, m) and y (n,) or (n, t); got "
            f"{phi.shape} and {y.shape}"
        )
    return phi, y


def _as_array(value: Any) -> Any:
    """`value` where it lies if it is an array, so that memory maps stay on disk."""
    array = value if hasattr(value, "dtype") else np.asarray(value)
    if np.dtype(array.dtype).kind in "OSU":
        raise TypeError(
            f"phi and y must be numbers, got dtype {array.dtype}; class names become "
            "labels by numpy.unique(y, return_inverse=True)[1]"
        )
    return array


def _is_label(y: Any) -> bool:
    return y.ndim == 1 and np.dtype(y.dtype).kind in "bui"


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"fit_ridge: {name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"fit_ridge: {name} must be at least {least}, got {value}")
