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
from jax.sharding import Mesh

from jax_ntk_sketch import sharding
from jax_ntk_sketch._progress import progress as with_progress
from jax_ntk_sketch.batches.reader import (
    Chunk,
    Source,
    check_options,
    features,
    features_like,
    warn_skipped,
)
from jax_ntk_sketch.batches.sparse_rows import num_examples, readable
from jax_ntk_sketch.features._transform import refuse_mesh, source_batch, transform
from jax_ntk_sketch.linear_model import checkpoint as files
from jax_ntk_sketch.linear_model._multihost import Processes, reduce_over
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

__all__ = ["FittedModel", "fit"]

# What a checkpoint must agree with that all processes must, too.
_COMMON = ("feature map", "params", "folds", "batch_size", "nonfinite")

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
      skipped: examples left out because they were not finite, of all processes.
    """

    fmap: Any
    params: Any
    model: RidgeModel
    path: RidgeModel
    cross_validation: CrossValidation | None = None
    skipped: int = 0

    def predict(
        self, x: Any, *, batch_size: int | None = None, mesh: Mesh | None = None
    ) -> np.ndarray:
        """Predictions (n, t) or (n,), for classes their scores.

        Args:
          x: examples, as `jax_ntk_sketch.transform` takes them.
          batch_size, mesh: as there.
        """
        return self._mapped(self.model.predict, x, batch_size, mesh)

    def predict_class(
        self, x: Any, *, batch_size: int | None = None, mesh: Mesh | None = None
    ) -> np.ndarray:
        """Labels (n,).

        Raises:
          ValueError: the model was not fitted on classes.
        """
        return self._mapped(self.model.predict_class, x, batch_size, mesh)

    def _mapped(
        self, run: Any, x: Any, batch_size: int | None, mesh: Mesh | None
    ) -> np.ndarray:
        x = readable("predict", "x", x)
        # Chosen once, not for each block: it takes the plan of the feature map.
        batch = source_batch("predict", "x", self.fmap, x, batch_size, None).shape[0]
        devices = 1 if mesh is None else sharding.local_mesh("predict", mesh).size
        block = max(_BATCH, batch * devices)
        parts = []
        for i in range(0, max(1, num_examples(x)), block):
            phi = transform(
                self.fmap,
                self.params,
                x[i : i + block],
                batch_size=batch,
                progress=False,
                mesh=mesh,
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
    mesh: Mesh | None = None,
) -> FittedModel:
    r"""Ridge regression on `fmap`'s features of data of any size, in one pass.

    Minimises :math:`\frac1n \|\Phi w + b - y\|^2 + \mathrm{reg}\,\|w\|^2` as
    `fit_ridge` does, with features made batch by batch and kept only as sums.

    Args:
      fmap: a feature map with one kernel (`get` "ntk" or "nngp").
      params: what its `init` returned.
      data: (n, *shape) examples with `y` beside them: an array, a memory map, anything
        with a length and slices, scipy.sparse for a map made by
        `jax_ntk_sketch.with_sparse_inputs`; or an iterable of batches `(x, y)` or `(x, y,
        weight)` of any lengths, which is read once.
      y: (n,), or (n, t); integers of shape (n,) are class labels 0..num_classes - 1.
      reg: one value >= 0, or a sequence to choose from: by k-fold cross-validation
        if `folds`, else by generalised cross-validation (`RidgeInfo.gcv`). Values
        with which the system is singular are dropped, with a warning.
      intercept: whether to fit an unpenalised intercept.
      sample_weight: (n,) >= 0, see `ridge_update`.
      num_classes: for class labels; with batches it is required, with arrays the
        largest label + 1 is the default.
      folds: 0, or k >= 2: example i is in fold i mod k of its batch of `batch_size`.
      batch_size: examples whose features are summed at a time, on each device.
      nonfinite: "raise" for an error that names examples which are NaN or infinite, or
        whose targets or features are; "skip" to leave them out, with a warning that
        counts them. The sums never see them.
      checkpoint: a file in which the sums are kept every `checkpoint_seconds`; if it
        is there and of the same run, the pass goes on behind it, to bitwise the same
        weights. It stays when the pass is done.
      checkpoint_seconds: >= 0.
      progress: True to show a bar on stderr, False not to, None (default) to show it
        where stderr is a terminal.
      mesh: of `jax_ntk_sketch.sharding.data_mesh`, to split each chunk over several
        devices. Devices of several processes: each calls `fit` with the same arguments
        but `data`, `y` and `sample_weight`, which are its own part of the examples, of
        any length; `num_classes` is by default that of all. Nothing is sent until all
        have read theirs; then one `psum` adds their sums. Every process gets the same
        model, to the bit, and has a checkpoint of its own, with its number in its name
        ("sums.process1.npz"). Where one raises, all do; where one is killed, JAX ends
        the others, see `jax_ntk_sketch.sharding`.

    Returns:
      `FittedModel`.

    Raises:
      TypeError, ValueError: shapes, dtypes or labels that do not fit, with the number
        of the example or batch; a checkpoint of another run, or damaged; an iterator
        that cannot be read again where `checkpoint` would have to; arguments that
        are not the same in all processes.
      RuntimeError: another process stopped with an error.
      numpy.linalg.LinAlgError: a numerically singular system with all values of `reg`.

    Where a checkpoint cannot be written (a full disk), a warning says so, the file
    before stays, and the pass goes on.

    Cost: features of n examples, 4 n m^2 flops for their sums, and the solves of
    `ridge_solve`. Memory: 8 (m + t + 1)^2 bytes of sums, times `folds` + 1 if there are
    folds, 24 m^2 bytes to solve, and a batch; with a mesh sums and a batch on each
    device.

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
    local = None if mesh is None else sharding.local_mesh("fit", mesh)
    with Processes("fit", mesh) as processes:
        check_options("fit", fmap, nonfinite, batch_size=batch_size)
        if isinstance(folds, bool) or not isinstance(folds, int | np.integer):
            raise TypeError(f"fit: folds must be an integer, got {folds!r}")
        if folds < 0 or folds == 1:
            raise ValueError(f"fit: folds must be 0 or at least 2, got {folds}")
        regs = np.atleast_1d(check_reg("fit", reg)).tolist()
        size = batch_size * (1 if local is None else local.size)
        source = Source("fit", data, y, sample_weight, num_classes, size)
        if checkpoint is not None and source.once:
            raise ValueError(
                "fit: data is an iterator, which is used up when a run is started "
                "again; with a checkpoint give a list, an array or an object with "
                "__iter__"
            )
        run = _Pass(fmap, params, source, folds, nonfinite, local, processes)
        run.agree({"reg": regs, "intercept": intercept, "num_classes": num_classes})
        if checkpoint is not None:
            checkpoint = run.resume(checkpoint)
        label = f"sums, batches of {size}"
        last = time.monotonic()
        chunks, count = source.chunks(run.chunks_done), source.count(run.chunks_done)
        for chunk in with_progress(chunks, label, count, progress):
            run.add(chunk)
            now = time.monotonic()
            if checkpoint is not None and now - last >= checkpoint_seconds:
                run.save(checkpoint)
                last = now
            processes.check()
        if not run.states:
            raise ValueError("fit: there are no examples")
        if checkpoint is not None:
            run.save(checkpoint)
        skipped = sum(map(int, processes.meet("end of the pass", str(run.skipped))))
        warn_skipped("fit", skipped)
        states = run.states
        if mesh is not None:
            states = tuple(reduce_over(mesh, state) for state in states)
        path, validation = processes.from_first(
            lambda: _solve(states, regs, intercept, source.num_classes)
        )
    if validation is None:
        model = path.best()
    else:
        model = path.select(int(np.flatnonzero(path.reg == validation.best)[0]))
    return FittedModel(fmap, params, model, path, validation, skipped)


def _solve(
    states: tuple[RidgeState, ...],
    regs: list[float],
    intercept: bool,
    num_classes: int | None,
) -> tuple[RidgeModel, CrossValidation | None]:
    """The models of all values of `reg`, and their errors if there are folds."""
    total = functools.reduce(ridge_merge, states)
    path = ridge_solve(total, regs, intercept=intercept, singular="drop")
    path = dataclasses.replace(path, num_classes=num_classes)
    if len(states) == 1:
        return path, None
    kept = path.reg.tolist()
    return path, ridge_cross_validate(states, kept, intercept=intercept)


class _Pass:
    """The sums of a pass over a source, of each fold, and where it is."""

    def __init__(
        self,
        fmap: Any,
        params: Any,
        source: Source,
        folds: int,
        nonfinite: str,
        mesh: Mesh | None,
        processes: Processes,
    ) -> None:
        self.fmap, self.source, self.mesh = fmap, source, mesh
        self.processes = processes
        self.params = params if mesh is None else sharding.replicate(mesh, params)
        self.folds, self.nonfinite = max(1, folds), nonfinite
        self.states: tuple[RidgeState, ...] = ()
        self.chunks_done = self.skipped = 0

    def agree(self, options: dict[str, Any]) -> None:
        """Checks, with several processes, that they do the same."""
        if self.processes.count == 1:
            return
        first, source = self.source.first(), self.source
        shared = {name: self._fingerprint[name] for name in _COMMON} | options
        shared.update(examples=None, targets=None)
        if first is not None:
            x, y = (a if hasattr(a, "dtype") else np.asarray(a) for a in first[1:3])
            dtype = jax.dtypes.canonicalize_dtype(x.dtype)
            shared["examples"] = [list(x.shape[1:]), str(dtype)]
            labels = source.num_classes is not None
            shared["targets"] = ["class labels"] if labels else list(y.shape[1:])
        # The classes that were found differ where one has no examples of the last.
        said = self.processes.agree(shared, found=source.num_classes)
        examples = next((s["examples"] for s in said if s["examples"]), None)
        if examples is None:
            raise ValueError("fit: there are no examples, in any process")
        found = [s["found"] for s in said if s["found"] is not None]
        source.num_classes = max(found, default=None)
        self._fingerprint["num_classes"] = source.num_classes
        targets = next(s["targets"] for s in said if s["examples"])
        if source.num_classes is not None:
            targets = [source.num_classes]
        shape, dtype = examples
        self._start(np.zeros((1, *shape), dtype), np.zeros((1, *targets)))

    def _start(self, x: Any, y: np.ndarray) -> None:
        """Sums of nothing, for examples and targets like these."""
        phi = features_like(self.fmap, self.params, x)
        t = None if y.ndim == 1 else y.shape[1]
        # One each: they are updated in place.
        states = [
            ridge_init(phi.shape[1], t, dtype=phi.dtype) for _ in range(self.folds)
        ]
        self.states = tuple(map(self._on_devices, states))

    def _on_devices(self, state: RidgeState) -> RidgeState:
        """One of each device; the same for all."""
        mesh = self.mesh
        if mesh is None:
            return state
        shape = (mesh.size, *state.total.shape)
        return sharding.split(
            mesh, jax.tree.map(lambda a: np.broadcast_to(a, shape), state)
        )

    def add(self, chunk: Chunk) -> None:
        """One chunk more; where it raises, the pass is over."""
        if not self.states:
            self._start(chunk.x, chunk.y)
        y = chunk.y.astype(self.states[0].total.dtype)
        rows = chunk.x, y, chunk.weight
        if self.mesh is not None:
            refuse_mesh("fit", chunk.x)
            rows = sharding.split(self.mesh, rows)
        self.states, finite = _add(
            self.fmap, self.params, self.states, *rows, self.mesh
        )
        self.skipped += chunk.skipped("fit", finite, self.nonfinite)
        self.chunks_done += 1

    @functools.cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """Return what identifies the run; a checkpoint must have the same."""
        devices = 1 if self.mesh is None else self.mesh.size
        fingerprint = {
            "feature map": repr(self.fmap),
            "params": files.digest(jax.tree.leaves(self.params)),
            "folds": self.folds,
            "batch_size": self.source.size // devices,
            "devices": devices,
            "process": f"{self.processes.index} of {self.processes.count}",
            "num_classes": self.source.num_classes,
            "number of examples": self.source.n,
            "nonfinite": self.nonfinite,
        }
        if (first := self.source.first()) is not None:
            fingerprint["first examples"] = files.digest(
                part for part in first[1:] if part is not None
            )
        return fingerprint

    def save(self, path: str | os.PathLike) -> None:
        """Keeps the sums; where that fails, the file before."""
        arrays = {}
        for i, state in enumerate(self.states):
            arrays[f"total{i}"] = np.asarray(state.total)
            arrays[f"carry{i}"] = np.asarray(state.carry)
        where = {"chunks": self.chunks_done, "skipped": self.skipped}
        targets = self.states[0].num_targets
        try:
            files.save(path, arrays, {**self._fingerprint, **where, "targets": targets})
        except OSError as error:
            warnings.warn(
                f"fit: the checkpoint {path} could not be written ({error}); the one "
                "before stays as it was, and the fit goes on",
                RuntimeWarning,
                stacklevel=3,
            )

    def resume(self, path: str | os.PathLike) -> pathlib.Path:
        """Goes on where a checkpoint is, if it is there; the file of this process."""
        path = pathlib.Path(path)
        if self.processes.count > 1:
            name = f"{path.stem}.process{self.processes.index}{path.suffix}"
            path = path.with_name(name)
        if not path.exists():
            return path
        arrays, metadata = files.load(path, self._fingerprint)

        def read(name: str) -> jax.Array:
            array = arrays.pop(name)
            if self.mesh is not None:
                return sharding.split(self.mesh, array)
            return jnp.asarray(array)

        self.states = tuple(
            RidgeState(read(f"total{i}"), read(f"carry{i}"), metadata["targets"])
            for i in range(self.folds)
        )
        self.chunks_done, self.skipped = metadata["chunks"], metadata["skipped"]
        return path


# The sums are updated in place: at m = 8192 they are half a gigabyte.
@functools.partial(jax.jit, static_argnums=(0, 6), donate_argnums=2)
def _add(
    fmap: Any,
    params: Any,
    states: tuple[RidgeState, ...],
    x: Any,
    y: Any,
    weight: Any,
    mesh: Mesh | None,
) -> tuple[tuple[RidgeState, ...], jax.Array]:
    """The states with one chunk more, and which of its features are finite.

    With a mesh, each device adds its rows to its states, which have an axis for that.
    """

    def add(params: Any, states: Any, x: Any, y: Any, weight: Any) -> Any:
        phi, weight, finite = features(fmap, params, x, weight)
        k = len(states)
        out = []
        for i, state in enumerate(states):
            rows = slice(i, None, k)
            out.append(
                ridge_update(state, phi[rows], y[rows], sample_weight=weight[rows])
            )
        return tuple(out), finite

    def add_on_device(params: Any, states: Any, *rows: Any) -> Any:
        states, finite = add(params, jax.tree.map(lambda a: a[0], states), *rows)
        return jax.tree.map(lambda a: a[None], states), finite

    if mesh is None:
        return add(params, states, x, y, weight)
    return sharding.over(mesh, add_on_device)(params, states, x, y, weight)
