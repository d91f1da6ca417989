"""`fit`: ridge regression on the features of data of any size, in one pass."""

import contextlib
import functools
import os
import time
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from jax_ntk_sketch import sharding
from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import Examples, PyTree, Targets, Task
from jax_ntk_sketch.batches.reader import Nonfinite, Reader, warn_skipped
from jax_ntk_sketch.batches.source import Batches, open_source
from jax_ntk_sketch.features._transform import most_examples
from jax_ntk_sketch.linear_model._fitted import (
    FittedModel,
    check_one_kernel,
)
from jax_ntk_sketch.linear_model._multihost import Processes, reduce_over
from jax_ntk_sketch.linear_model._pass import Pass
from jax_ntk_sketch.linear_model.cross_validation import (
    CrossValidation,
    ridge_cross_validate,
)
from jax_ntk_sketch.linear_model.model import model_from_arrays, model_to_arrays
from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    check_reg,
    ridge_merge,
    ridge_solve,
)


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
    max_bytes: int | None = None,
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
      x: examples `(n, *shape)`, given together with y: an array or a table of any
        library, a memory map, anything that has a length and slices, or scipy.sparse
        for a map of `jax_ntk_sketch.with_sparse_inputs`. Rows are taken by position,
        whatever labels they have; the names of columns are kept with the model. Or an
        iterable of batches of any lengths, which is read once: a list, a generator, a
        loader of torch or grain, a data set of Hugging Face, or a function that returns
        a new iterable for each pass. A batch is `(x, y)`, `(x, y, weight)`, or a
        dictionary with "x", "y" and if needed "weight", "pattern" and "mask".
      y: targets `(n,)` or `(n, t)`. Integers, booleans and text `(n,)` are class
        labels. None if x yields batches.
      reg: one value >= 0, or several to choose from. The choice is by cross-validation
        if there are folds, else by generalized cross-validation (`RidgeInfo.gcv`).
        Values that leave the system singular are dropped, with a warning. Usual values
        are 1e-6 to 1 times the mean squared norm of the features, or mean K(x, x).
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
        default 1024, or fewer if they take more than 64 MiB, or if they and their
        features take more than half of `max_bytes`.
      max_bytes: the bytes that examples in work may take besides the parameters, >= 1.
        By default they are 256 MiB on a CPU, and elsewhere a quarter of the device's
        memory; or what one example takes, if that is more.
      nonfinite: "raise" to raise an error that names examples whose values, targets or
        features are NaN or infinite; "skip" to leave them out, with a warning.
      checkpoint: a file that receives the sums every `checkpoint_seconds`. If the file
        exists and belongs to the same run, the pass resumes there, and the weights are
        bitwise the same. The examples that were summed are read again and compared,
        and their features are not computed again. The file is kept at the end. It must
        not be that of another fit that is running.
      checkpoint_seconds: seconds between two checkpoints, >= 0.
      progress: True to show progress on stderr, False not to, None (default) to show it
        if stderr is a terminal.
      mesh: a mesh of `jax_ntk_sketch.sharding.data_mesh`, to split each batch over
        several devices. With devices of several processes, each process calls `fit`
        with its own examples and otherwise the same arguments. They exchange short
        messages while they read their examples; then one `psum` adds the sums. Every
        process returns the same model, bitwise. Each has its own checkpoint, with its
        number in the name ("sums.process1.jns"). If one raises an error, all do; for
        processes that end or do not come see `jax_ntk_sketch.sharding`.
      pattern, mask: the edges and nodes of x if they are graphs, as
        `NetworkFeatureMap.apply` takes them.

    Returns:
      `FittedModel`.

    Raises:
      TypeError: an argument, a batch or a label has the wrong type.
      ValueError: shapes or labels do not fit, or an example is not finite; the example
        or the batch is named. Or one example takes more than `max_bytes`, or than all
        memory. Or the checkpoint is damaged, in use, or of another run: of other
        examples, arguments or features. Or the processes have different arguments or
        features.
      RuntimeError: another process stopped with an error.
      SystemExit: one of several processes got SIGTERM. Each has written its checkpoint.
      TimeoutError: another process did not call `fit` within 10 minutes.
      numpy.linalg.LinAlgError: the system is singular with all values of `reg`.

    If a checkpoint cannot be written, because the disk is full for example, there is a
    warning, the old file stays, and the pass goes on.

    Cost: the features of n examples, 4 n m^2 flops for their sums, and the solves of
    `ridge_solve`. The memory is 8 (m + t + 1)^2 bytes of sums (times `folds` + 1 with
    folds), 24 m^2 bytes to solve, and `max_bytes`. With a mesh each device holds sums
    and its part of the batch.

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
    with Processes("fit", mesh) as processes, contextlib.ExitStack() as stack:
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
            most=functools.partial(most_examples, fmap, max_bytes),
        )
        run = Pass(fmap, params, reader, folds, max_bytes, local, processes)
        options = {"reg": regs, "intercept": intercept, "num_classes": num_classes}
        devices = mesh and [device.id for device in mesh.devices.flat]
        run.agree(options | {"task": task, "mesh": devices})
        stack.enter_context(run.checkpoint(checkpoint))
        label = f"sums, batches of {reader.size}"
        last = time.monotonic()
        batches = reader.batches(label=label, progress=progress)
        for batch in processes.in_step(batches):
            if run.has_summed(batch):
                continue
            run.add(batch)
            now = time.monotonic()
            if checkpoint is not None and now - last >= checkpoint_seconds:
                run.save()
                last = now
        if processes.terminated:
            run.end()
        run.check_restored()
        if not run.states:
            raise ValueError("fit: x must hold examples, got no examples")
        if checkpoint is not None:
            run.save()
        skipped = sum(processes.gather(run.skipped))
        warn_skipped("fit", skipped)
        states = run.states
        if mesh is not None:
            states = tuple(reduce_over(mesh, state) for state in run.states)
        total = functools.reduce(ridge_merge, states)
        arrays = processes.broadcast_from_first(
            lambda: _solve(states, total, regs, intercept)
        )
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
        sums=total,
    )


# The names of the arrays of a cross-validation.
_VALIDATION = [f"cross_validation.{name}" for name in CrossValidation._fields]


def _solve(
    states: tuple[RidgeState, ...],
    total: RidgeState,
    regs: list[float],
    intercept: bool,
) -> dict[str, np.ndarray]:
    """Return the models of all values of `reg`, and their errors if there are folds."""
    models = ridge_solve(total, regs, intercept=intercept, singular="drop")
    arrays = model_to_arrays(models)
    if len(states) > 1:
        kept = models.reg.tolist()
        validation = ridge_cross_validate(states, kept, intercept=intercept)
        arrays |= zip(_VALIDATION, validation, strict=True)
    return arrays
