"""Ridge regression on the features of data of any size: one pass, which can resume."""

import dataclasses
import functools
import os
import pathlib
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch.linear_model import checkpoint as files
from jax_ntk_sketch.linear_model.cross_validation import (
    CrossValidation,
    ridge_cross_validate,
)
from jax_ntk_sketch.linear_model.model import RidgeModel
from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    check_reg,
    ridge_init,
    ridge_merge,
    ridge_solve,
    ridge_update,
)
from jax_ntk_sketch.linear_model.source import (
    Chunk,
    Source,
    check_options,
    features,
    features_like,
)
from jax_ntk_sketch.progress import progress as with_progress
from jax_ntk_sketch.sparse_rows import num_examples, readable
from jax_ntk_sketch.transform import transform

__all__ = ["FittedModel", "fit"]

# Rows whose features are made and summed at a time. Fewer make the sums slower, which
# pass over the whole Gram matrix each time; more take memory, 4 m bytes a row.
_BATCH = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class FittedModel:
    """A feature map, its parameters and a linear model on its features.

    Attributes:
      fmap, params: as given to `fit`.
      model: the `RidgeModel` of the chosen `reg`.
      path: that of all values of `reg`, with their diagnostics.
      cross_validation: errors by fold, where there were folds.
      skipped: examples left out because they were not finite.
    """

    fmap: Any
    params: Any
    model: RidgeModel
    path: RidgeModel
    cross_validation: CrossValidation | None = None
    skipped: int = 0

    def predict(self, x: Any, *, batch_size: int | None = None) -> np.ndarray:
        """Predictions (n, t) or (n,), for classes their scores.

        Args:
          x: examples, as `jax_ntk_sketch.transform` takes them.
          batch_size: examples at a time.
        """
        return self._mapped(self.model.predict, x, batch_size)

    def predict_class(self, x: Any, *, batch_size: int | None = None) -> np.ndarray:
        """Labels (n,).

        Raises:
          ValueError: the model was not fitted on classes.
        """
        return self._mapped(self.model.predict_class, x, batch_size)

    def _mapped(self, run: Any, x: Any, batch_size: int | None) -> np.ndarray:
        parts = []
        x = readable("predict", "x", x)
        for i in range(0, max(1, num_examples(x)), _BATCH):
            phi = transform(
                self.fmap,
                self.params,
                x[i : i + _BATCH],
                batch_size=batch_size,
                progress=False,
            )
            parts.append(np.asarray(run(phi)))
        return np.concatenate(parts)


def fit(
    fmap: Any,
    params: Any,
    data: Any,
    y: Any = None,
    *,
    reg: float | Sequence[float],
    intercept: bool = True,
    sample_weight: Any = None,
    num_classes: int | None = None,
    folds: int = 0,
    batch_size: int = _BATCH,
    nonfinite: str = "raise",
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool | None = None,
) -> FittedModel:
    r"""Ridge regression on `fmap`'s features of data of any size, in one pass.

    Minimises :math:`\frac1n \|\Phi w + b - y\|^2 + \mathrm{reg}\,\|w\|^2` as
    `fit_ridge` does, with features made batch by batch and kept only as sums.

    Args:
      fmap: a feature map with one kernel (`get` "ntk" or "nngp").
      params: what its `init` returned.
      data: (n, *shape) examples with `y` beside them: an array, a memory map, anything
        with a length and slices, scipy.sparse for a map made by
        `jax_ntk_sketch.sparse_inputs`; or an iterable of batches `(x, y)` or `(x, y,
        weight)` of any lengths, which is read once.
      y: (n,), or (n, t); integers of shape (n,) are class labels 0..num_classes - 1.
      reg: one value >= 0, or a sequence to choose from: by k-fold cross-validation
        if `folds`, else by generalised cross-validation (`RidgeInfo.gcv`).
      intercept: whether to fit an unpenalised intercept.
      sample_weight: (n,) >= 0, see `ridge_update`.
      num_classes: for class labels; with batches it is required, with arrays the
        largest label + 1 is the default.
      folds: 0, or k >= 2: example i is in fold i mod k of its batch of `batch_size`.
      batch_size: examples whose features are summed at a time.
      nonfinite: "raise" for an error that names examples which are NaN or infinite, or
        whose targets or features are; "skip" to leave them out, with a warning that
        counts them. The sums never see them.
      checkpoint: a file in which the sums are kept every `checkpoint_seconds`; if it
        is there and of the same run, the pass goes on behind it, to bitwise the same
        weights. It stays when the pass is done.
      checkpoint_seconds: >= 0.
      progress: True to show a bar on stderr, False not to, None (default) to show it
        where stderr is a terminal.

    Returns:
      `FittedModel`.

    Raises:
      TypeError, ValueError: shapes, dtypes or labels that do not fit, with the number
        of the example or batch; a checkpoint of another run, or damaged; an iterator
        that cannot be read again where `checkpoint` would have to.
      numpy.linalg.LinAlgError: a numerically singular system, see `ridge_solve`.

    Where a checkpoint cannot be written (a full disk), a warning says so, the file
    before stays, and the pass goes on.

    Cost: features of n examples, 4 n m^2 flops for their sums, and the solves of
    `ridge_solve`. Memory: 8 (m + t + 1)^2 bytes of sums, times `folds` + 1 if there are
    folds, 24 m^2 bytes to solve, and a batch.

    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=50)
    >>> x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    >>> params = fmap.init(jax.random.key(0), (4,))
    >>> fitted = fit(fmap, params, x, x[:, 0] > 0, reg=[1e-6, 1e-4, 1e-2])
    >>> bool((fitted.predict_class(x) == (x[:, 0] > 0)).mean() > 0.9)
    True
    """
    check_options("fit", fmap, nonfinite, batch_size=batch_size)
    if isinstance(folds, bool) or not isinstance(folds, int | np.integer):
        raise TypeError(f"fit: folds must be an integer, got {folds!r}")
    if folds < 0 or folds == 1:
        raise ValueError(f"fit: folds must be 0 or at least 2, got {folds}")
    regs = np.atleast_1d(check_reg("fit", reg)).tolist()
    source = Source("fit", data, y, sample_weight, num_classes, batch_size)
    if checkpoint is not None and source.once:
        raise ValueError(
            "fit: data is an iterator, which is used up when a run is started again; "
            "with a checkpoint give a list, an array or an object with __iter__"
        )
    run = _Pass(fmap, params, source, folds, nonfinite)
    if checkpoint is not None:
        run.resume(checkpoint)
    label = f"sums, batches of {batch_size}"
    last = time.monotonic()
    chunks, count = source.chunks(run.chunks_done), source.count(run.chunks_done)
    for chunk in with_progress(chunks, label, count, progress):
        run.add(chunk)
        now = time.monotonic()
        if checkpoint is not None and now - last >= checkpoint_seconds:
            run.save(checkpoint)
            last = now
    if not run.states:
        raise ValueError("fit: there are no examples")
    if checkpoint is not None:
        run.save(checkpoint)
    if run.skipped:
        warnings.warn(
            f"fit: {run.skipped} examples that are not finite were left out",
            RuntimeWarning,
            stacklevel=2,
        )
    total = functools.reduce(ridge_merge, run.states)
    path = ridge_solve(total, regs, intercept=intercept)
    path = dataclasses.replace(path, num_classes=source.num_classes)
    validation = None
    if folds:
        validation = ridge_cross_validate(run.states, regs, intercept=intercept)
        model = path.select(int(np.flatnonzero(path.reg == validation.best)[0]))
    else:
        model = path.best()
    return FittedModel(fmap, params, model, path, validation, run.skipped)


class _Pass:
    """The sums of a pass over a source, of each fold, and where it is."""

    def __init__(
        self,
        fmap: Any,
        params: Any,
        source: Source,
        folds: int,
        nonfinite: str,
    ) -> None:
        self.fmap, self.params, self.source = fmap, params, source
        self.folds, self.nonfinite = max(1, folds), nonfinite
        self.states: tuple[RidgeState, ...] = ()
        self.chunks_done = self.skipped = 0

    def add(self, chunk: Chunk) -> None:
        """One chunk more; where it raises, the pass is over."""
        if not self.states:
            self.states = self._zeros(chunk)
        y = chunk.y.astype(self.states[0].total.dtype)
        self.states, finite = _add(
            self.fmap, self.params, self.states, chunk.x, y, chunk.weight
        )
        self.skipped += chunk.skipped("fit", finite, self.nonfinite)
        self.chunks_done += 1

    def _zeros(self, chunk: Chunk) -> tuple[RidgeState, ...]:
        phi = features_like(self.fmap, self.params, chunk.x)
        t = None if chunk.y.ndim == 1 else chunk.y.shape[1]
        # One each: they are updated in place.
        return tuple(
            ridge_init(phi.shape[1], t, dtype=phi.dtype) for _ in range(self.folds)
        )

    @functools.cached_property
    def _about(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        about = {
            "feature map": repr(self.fmap),
            "params": files.digest(jax.tree.leaves(self.params)),
            "folds": self.folds,
            "batch_size": self.source.size,
            "num_classes": self.source.num_classes,
            "number of examples": self.source.n,
            "nonfinite": self.nonfinite,
        }
        for _, x, y, weight in self.source.raw():
            parts = [x, y] if weight is None else [x, y, weight]
            about["first examples"] = files.digest(parts)
            break
        return about

    def save(self, path: str | os.PathLike) -> None:
        """Keeps the sums; where that fails, the file before."""
        arrays = {}
        for i, state in enumerate(self.states):
            arrays[f"total{i}"] = np.asarray(state.total)
            arrays[f"carry{i}"] = np.asarray(state.carry)
        where = {"chunks": self.chunks_done, "skipped": self.skipped}
        targets = self.states[0].num_targets
        try:
            files.save(path, arrays, {**self._about, **where, "targets": targets})
        except OSError as error:
            warnings.warn(
                f"fit: the checkpoint {path} could not be written ({error}); the one "
                "before stays as it was, and the fit goes on",
                RuntimeWarning,
                stacklevel=3,
            )

    def resume(self, path: str | os.PathLike) -> None:
        """Goes on where a checkpoint is, if it is there."""
        if not pathlib.Path(path).exists():
            return
        arrays, about = files.load(path, self._about)
        self.states = tuple(
            RidgeState(
                jnp.asarray(arrays[f"total{i}"]),
                jnp.asarray(arrays[f"carry{i}"]),
                about["targets"],
            )
            for i in range(self.folds)
        )
        self.chunks_done, self.skipped = about["chunks"], about["skipped"]


# The sums are updated in place: at m = 8192 they are half a gigabyte.
@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _add(
    fmap: Any, params: Any, states: tuple[RidgeState, ...], x: Any, y: Any, weight: Any
) -> tuple[tuple[RidgeState, ...], jax.Array]:
    """The states with one chunk more, and which of its features are finite."""
    phi, weight, finite = features(fmap, params, x, weight)
    k = len(states)
    out = []
    for i, state in enumerate(states):
        rows = slice(i, None, k)
        out.append(ridge_update(state, phi[rows], y[rows], sample_weight=weight[rows]))
    return tuple(out), finite
