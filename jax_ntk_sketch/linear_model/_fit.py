"""`fit`: ridge regression on the features of data of any size, in one pass."""

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
from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import Array, Examples, PyTree, Shape, Targets, Task
from jax_ntk_sketch.batches.reader import Batch, Nonfinite, Reader, warn_skipped
from jax_ntk_sketch.batches.source import Batches, open_source
from jax_ntk_sketch.linear_model import checkpoint as files
from jax_ntk_sketch.linear_model._fitted import (
    FittedModel,
    Inputs,
    batch_features,
    check_one_kernel,
    features_like,
)
from jax_ntk_sketch.linear_model._multihost import Processes, reduce_over
from jax_ntk_sketch.linear_model.cross_validation import (
    CrossValidation,
    ridge_cross_validate,
)
from jax_ntk_sketch.linear_model.model import model_from_arrays, model_to_arrays
from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    check_reg,
    ridge_init,
    ridge_merge,
    ridge_solve,
    ridge_update,
)

# What all processes must have in common with a checkpoint and with each other.
_COMMON = ("feature map", "params", "folds", "batch_size", "nonfinite")
# The arrays of a state, in a checkpoint.
_SUMS = ("total", "carry", "rows")
# What they have in common if they have examples.
_OF_EXAMPLES = ("examples", "targets", "pattern", "mask", "feature_names")


def fit(
    fmap: FeatureMap,
    params: PyTree,
    x: Examples | Batches,
    y: Targets = None,
    *,
    reg: float | Sequence[float],
    intercept: bool = True,
    sample_weight: Targets = None,
    num_classes: int | None = None,
    task: Task | None = None,
    folds: int = 0,
    batch_size: int | None = None,
    nonfinite: Nonfinite = "raise",
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool | None = None,
    mesh: Mesh | None = None,
    pattern: PyTree = None,
    mask: PyTree = None,
) -> FittedModel:
    r"""Fit ridge regression on features of data of any size, in one pass.

    .. math:: \min_{w, b}\; \frac1n \|\Phi w + b - y\|^2 + \mathrm{reg}\,\|w\|^2

    The objective is that of `fit_ridge`. The features are computed batch by batch, and
    only their sums are kept.

    Args:
      fmap: a feature map with one kernel (`get` is "ntk" or "nngp").
      params: the parameters that its `init` returned.
      x: examples `(n, *shape)`, given together with y: an array, a memory map, anything
        that has a length and slices, or scipy.sparse for a map of
        `jax_ntk_sketch.with_sparse_inputs`. Or an iterable of batches of any lengths,
        which is read once: a list, a generator, a loader of torch or grain, a data set
        of Hugging Face, or a function that returns a new iterable for each pass. A
        batch is `(x, y)`, `(x, y, weight)`, or a dictionary with "x", "y" and if needed
        "weight", "pattern" and "mask".
      y: targets `(n,)` or `(n, t)`. Integers, booleans and text `(n,)` are class
        labels. None if x yields batches.
      reg: one value >= 0, or several to choose from. The choice is by cross-validation
        if there are folds, else by generalized cross-validation (`RidgeInfo.gcv`).
        Values that leave the system singular are dropped, with a warning.
      intercept: whether to fit an intercept, which is not penalized.
      sample_weight: `(n,)`, >= 0; see `ridge_update`.
      num_classes: the number of classes if y holds labels from 0 to num_classes - 1.
        Batches of labels require it. By default the classes of an array are its
        different labels, which `predict_class` returns.
      task: "regression" if integers are numbers, "classification" if they are labels.
        None (default) takes them for labels, and warns if they are many, if they hardly
        repeat, or if all are equal.
      folds: 0, or k >= 2 for k-fold cross-validation: example i of a batch of
        `batch_size` examples is in fold i mod k.
      batch_size: examples whose features are summed at a time, on each device. By
        default 1024, or fewer if they take more than 64 MiB.
      nonfinite: "raise" to raise an error that names examples whose values, targets or
        features are NaN or infinite; "skip" to leave them out, with a warning.
      checkpoint: a file that receives the sums every `checkpoint_seconds`. If the file
        exists and belongs to the same run, the pass resumes there, and the weights are
        bitwise the same. The file is kept at the end.
      checkpoint_seconds: seconds between two checkpoints, >= 0.
      progress: True to show progress on stderr, False not to, None (default) to show it
        if stderr is a terminal.
      mesh: a mesh of `jax_ntk_sketch.sharding.data_mesh`, to split each batch over
        several devices. With devices of several processes, each process calls `fit`
        with its own examples and otherwise the same arguments. They exchange short
        messages while they read their examples; then one `psum` adds the sums. Every
        process returns the same model, bitwise. Each has its own checkpoint, with its
        number in the name ("sums.process1.npz"). If one raises an error, all do; for
        killed processes see `jax_ntk_sketch.sharding`.
      pattern, mask: the edges and nodes of x if they are graphs, as
        `NetworkFeatureMap.apply` takes them.

    Returns:
      `FittedModel`.

    Raises:
      TypeError: an argument, a batch or a label has the wrong type.
      ValueError: shapes or labels do not fit, or an example is not finite; the example
        or the batch is named. Or the checkpoint is damaged or belongs to another run;
        or the processes have different arguments.
      RuntimeError: another process stopped with an error.
      numpy.linalg.LinAlgError: the system is singular with all values of `reg`.

    If a checkpoint cannot be written, because the disk is full for example, there is a
    warning, the old file stays, and the pass goes on.

    Cost: the features of n examples, 4 n m^2 flops for their sums, and the solves of
    `ridge_solve`. The memory is 8 (m + t + 1)^2 bytes of sums (times `folds` + 1 with
    folds), 24 m^2 bytes to solve, and one batch. With a mesh each device holds sums and
    its part of the batch.

    >>> import jax
    >>> import jax_ntk_sketch as jns
    >>> import numpy as np
    >>> from jax_ntk_sketch import linear_model, stax
    >>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=50)
    >>> params = fmap.init(jax.random.key(0), (4,))
    >>> x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    >>> label = x[:, 0] > 0
    >>> fitted = linear_model.fit(fmap, params, x, label, reg=[1e-6, 1e-4, 1e-2])
    >>> bool((fitted.predict_class(x) == label).mean() > 0.9)
    True
    """
    local = None if mesh is None else sharding.local_mesh("fit", mesh)
    with Processes("fit", mesh) as processes:
        check_one_kernel("fit", fmap)
        if check_size("fit", "folds", folds, 0) == 1:
            raise ValueError("fit: folds must be 0 or at least 2, got 1")
        regs = np.atleast_1d(check_reg("fit", reg)).tolist()
        extras = {"pattern": pattern, "mask": mask}
        again = "" if checkpoint is None else "a resumed run reads it again"
        reader = Reader(
            open_source("fit", x, y, sample_weight, extras, read_again=again),
            batch_size=batch_size,
            num_classes=num_classes,
            task=task,
            nonfinite=nonfinite,
            num_devices=None if local is None else local.size,
        )
        run = _Pass(fmap, params, reader, folds, local, processes)
        options = {"reg": regs, "intercept": intercept, "num_classes": num_classes}
        run.agree(options | {"task": task})
        if checkpoint is not None:
            checkpoint = run.resume(checkpoint)
        label = f"sums, batches of {reader.size}"
        last = time.monotonic()
        batches = reader.batches(run.batches_done, label=label, progress=progress)
        for batch in processes.in_step(batches):
            run.add(batch)
            now = time.monotonic()
            if checkpoint is not None and now - last >= checkpoint_seconds:
                run.save(checkpoint)
                last = now
        if not run.states:
            raise ValueError("fit: x must hold examples, got no examples")
        if checkpoint is not None:
            run.save(checkpoint)
        skipped = sum(processes.gather(run.skipped))
        warn_skipped("fit", skipped)
        states = run.states
        if mesh is not None:
            states = processes.collective(
                lambda: tuple(reduce_over(mesh, state) for state in run.states)
            )
        arrays = processes.broadcast_from_first(lambda: _solve(states, regs, intercept))
    models = model_from_arrays(arrays, states[0].num_targets, reader.classes)
    if len(states) == 1:
        validation, best = None, models.best()
    else:
        validation = CrossValidation(*(arrays[name] for name in _VALIDATION))
        best = models.select(int(np.flatnonzero(models.reg == validation.best)[0]))
    return FittedModel(
        fmap,
        params,
        best,
        models,
        cross_validation=validation,
        num_skipped=skipped,
        feature_names=reader.source.feature_names,
    )


# The names of the arrays of a cross-validation.
_VALIDATION = [f"cross_validation.{name}" for name in CrossValidation._fields]


def _solve(
    states: tuple[RidgeState, ...], regs: list[float], intercept: bool
) -> dict[str, np.ndarray]:
    """Return the models of all values of `reg`, and their errors if there are folds."""
    total = functools.reduce(ridge_merge, states)
    models = ridge_solve(total, regs, intercept=intercept, singular="drop")
    arrays = model_to_arrays(models)
    if len(states) > 1:
        kept = models.reg.tolist()
        validation = ridge_cross_validate(states, kept, intercept=intercept)
        arrays |= zip(_VALIDATION, validation, strict=True)
    return arrays


class _Pass:
    """One pass over the examples: the sums of each fold, and how far it got."""

    def __init__(
        self,
        fmap: FeatureMap,
        params: PyTree,
        reader: Reader,
        folds: int,
        mesh: Mesh | None,
        processes: Processes,
    ) -> None:
        self.fmap, self.reader, self.mesh = fmap, reader, mesh
        self.processes = processes
        self.params = params if mesh is None else sharding.replicate(mesh, params)
        self.folds = max(1, folds)
        self.states: tuple[RidgeState, ...] = ()
        self.batches_done = self.skipped = 0

    def agree(self, options: dict[str, Any]) -> None:
        """Check that all processes fit the same, and learn the shapes from the others.

        A process without examples needs the shapes for sums of nothing.
        """
        if self.processes.count == 1:
            return
        first, reader = self.reader.first(), self.reader
        shared = {name: self._fingerprint[name] for name in _COMMON} | options
        shared.update(dict.fromkeys(_OF_EXAMPLES))
        if first is not None:
            names = reader.source.feature_names
            shared["feature_names"] = names and list(names)
            shared["examples"] = _layout(first.x)
            shared["targets"] = _layout(first.y)[0]
            if (labels := reader.classes) is not None:
                text = isinstance(labels[0], str)
                shared["targets"] = [f"class labels, {'text' if text else 'integers'}"]
            for name, value in first.extras.items():
                shared[name] = [_layout(leaf) for leaf in jax.tree.leaves(value)]
        # A process may have no examples of a class.
        reports = self.processes.gather({**shared, "found": reader.classes})
        self.processes.assert_equal(reports, shared)
        known = next((r for r in reports if r["examples"]), None)
        if known is None:
            raise ValueError(
                "fit: x must hold examples in one of the processes, got no examples"
            )
        found = {label for r in reports for label in r["found"] or ()}
        reader.classes = tuple(sorted(found)) or None
        self._fingerprint["classes"] = sorted(found) or None
        targets = [len(found)] if found else known["targets"]
        extras: dict[str, PyTree] = {}
        for name in ("pattern", "mask"):
            if known[name] is not None:
                leaves = [_struct(layout) for layout in known[name]]
                extras[name] = leaves[0] if len(leaves) == 1 else tuple(leaves)
        self._start(_struct(known["examples"]), tuple(targets), extras)

    def _start(self, x: Examples, targets: Shape, extras: dict[str, PyTree]) -> None:
        """Make sums of nothing, for examples and targets of these shapes."""
        phi = features_like(self.fmap, self.params, x, extras)
        t = targets[0] if targets else None
        # Each fold has its own arrays: they are updated in place.
        self.states = tuple(
            self._on_devices(ridge_init(phi.shape[1], t, dtype=phi.dtype))
            for _ in range(self.folds)
        )

    def _on_devices(self, state: RidgeState) -> RidgeState:
        """Return a state with one copy for each device of the mesh."""
        if self.mesh is None:
            return state
        k = self.mesh.size
        copies = jax.tree.map(lambda a: np.broadcast_to(a, (k, *a.shape)), state)
        return sharding.split(self.mesh, copies)

    def add(self, batch: Batch) -> None:
        """Add a batch to the sums. If this raises, the pass is over."""
        assert batch.y is not None
        if not self.states:
            self._start(batch.x, batch.y.shape[1:], batch.extras)
        y = batch.y.astype(self.states[0].total.dtype)
        rows = batch.inputs, y
        if self.mesh is not None:
            rows = sharding.split(self.mesh, rows)
        self.states, finite = _add(
            self.fmap, self.mesh, self.params, self.states, *rows
        )
        self.skipped += self.reader.count_skipped(batch, finite)
        self.batches_done += 1

    @functools.cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """Return what identifies the run; a checkpoint must have the same."""
        devices = 1 if self.mesh is None else self.mesh.size
        fingerprint = {
            "feature map": repr(self.fmap),
            "params": files.digest(jax.tree.leaves(self.params)),
            "folds": self.folds,
            "batch_size": self.reader.size // devices,
            "devices": devices,
            "process": f"{self.processes.index} of {self.processes.count}",
            "classes": self.reader.classes and list(self.reader.classes),
            "number of examples": self.reader.num_examples,
            "nonfinite": self.reader.nonfinite,
        }
        if (first := self.reader.first()) is not None:
            parts = first.x, first.y, first.weight, *jax.tree.leaves(first.extras)
            fingerprint["first examples"] = files.digest(
                part for part in parts if part is not None
            )
        return fingerprint

    def save(self, path: str | os.PathLike) -> None:
        """Write the sums to a file; if that fails, the old file stays."""
        arrays = {}
        for i, state in enumerate(self.states):
            for name in _SUMS:
                arrays[f"{name}{i}"] = np.asarray(getattr(state, name))
        position = {"batches": self.batches_done, "skipped": self.skipped}
        targets = self.states[0].num_targets
        try:
            metadata = {**self._fingerprint, **position, "targets": targets}
            files.save(path, arrays, metadata)
        except OSError as error:
            warnings.warn(
                f"fit: the checkpoint {path} could not be written ({error}); the old "
                "file stays, and the fit goes on",
                RuntimeWarning,
                stacklevel=3,
            )

    def resume(self, path: str | os.PathLike) -> pathlib.Path:
        """Continue at a checkpoint if there is one; return the file of this process."""
        path = pathlib.Path(path)
        if self.processes.count > 1:
            name = f"{path.stem}.process{self.processes.index}{path.suffix}"
            path = path.with_name(name)
        if not path.exists():
            return path
        arrays, metadata = files.load(path)
        files.check_run(path, metadata, self._fingerprint)

        def read(name: str) -> Array:
            array = arrays.pop(name)
            if self.mesh is not None:
                return sharding.split(self.mesh, array)
            return jnp.asarray(array)

        targets = metadata["targets"]
        self.states = tuple(
            RidgeState(
                **{name: read(f"{name}{i}") for name in _SUMS}, num_targets=targets
            )
            for i in range(self.folds)
        )
        self.batches_done, self.skipped = metadata["batches"], metadata["skipped"]
        return path


def _layout(array: Examples) -> tuple[list[int], str]:
    """Return the shape of one row and the dtype on a device, to be sent as JSON."""
    array = array if hasattr(array, "dtype") else np.asarray(array)
    return list(array.shape[1:]), str(jax.dtypes.canonicalize_dtype(array.dtype))


def _struct(layout: tuple[list[int], str]) -> jax.ShapeDtypeStruct:
    """Return one row of a `_layout`."""
    return jax.ShapeDtypeStruct((1, *layout[0]), np.dtype(layout[1]))


# The sums are updated in place: at m = 8192 they are half a gigabyte.
@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _add(
    fmap: FeatureMap,
    mesh: Mesh | None,
    params: PyTree,
    states: tuple[RidgeState, ...],
    inputs: Inputs,
    y: Array,
) -> tuple[tuple[RidgeState, ...], Array]:
    """Return the states after one more batch, and which of its features are finite.

    With a mesh, each device adds its rows to its states. They have an axis for devices.
    """
    if mesh is None:
        return _add_rows(fmap, params, states, inputs, y)

    def add_on_device(
        params: PyTree, states: tuple[RidgeState, ...], inputs: Inputs, y: Array
    ) -> tuple[tuple[RidgeState, ...], Array]:
        states = jax.tree.map(lambda a: a[0], states)
        states, finite = _add_rows(fmap, params, states, inputs, y)
        return jax.tree.map(lambda a: a[None], states), finite

    return sharding.over(mesh, add_on_device)(params, states, inputs, y)


def _add_rows(
    fmap: FeatureMap,
    params: PyTree,
    states: tuple[RidgeState, ...],
    inputs: Inputs,
    y: Array,
) -> tuple[tuple[RidgeState, ...], Array]:
    phi, weight, finite = batch_features(fmap, params, inputs)
    folds = [slice(i, None, len(states)) for i in range(len(states))]
    added = [
        ridge_update(state, phi[rows], y[rows], sample_weight=weight[rows])
        for state, rows in zip(states, folds, strict=True)
    ]
    return tuple(added), finite
