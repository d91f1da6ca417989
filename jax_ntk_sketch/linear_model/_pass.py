"""One pass of `fit` over the examples, which can be interrupted and resumed."""

import contextlib
import functools
import os
import pathlib
import signal
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_ntk_sketch import _tensor_file, sharding
from jax_ntk_sketch._files import locked
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import Array, Examples, PyTree, Shape
from jax_ntk_sketch.batches.reader import Batch, Reader
from jax_ntk_sketch.features._transform import check_work
from jax_ntk_sketch.linear_model import checkpoint as files
from jax_ntk_sketch.linear_model._fitted import Inputs, batch_features, features_like
from jax_ntk_sketch.linear_model._multihost import Processes
from jax_ntk_sketch.linear_model.ridge import RidgeState, ridge_init, ridge_update

# What all processes must have in common with a checkpoint and with each other.
_COMMON = ("feature map", "params", "folds", "batch_size", "nonfinite")
# The arrays of a state, in a checkpoint.
_SUMS = ("total", "carry", "rows")
# What they have in common if they have examples.
_OF_EXAMPLES = ("examples", "targets", "pattern", "mask", "feature_names")


class Pass:
    """One pass over the examples: the sums of each fold, and how far it got.

    Attributes:
      states: the sums of each fold; () before the first example.
      batches_done: how many batches they are sums of.
      skipped: how many of their examples were left out.
    """

    def __init__(
        self,
        fmap: FeatureMap,
        params: PyTree,
        reader: Reader,
        folds: int,
        max_bytes: int | None,
        mesh: Mesh | None,
        processes: Processes,
    ) -> None:
        self.fmap, self.reader, self.mesh = fmap, reader, mesh
        self.max_bytes = max_bytes
        self.processes = processes
        self.params = params if mesh is None else sharding.replicate(mesh, params)
        self.folds = max(1, folds)
        self.states: tuple[RidgeState, ...] = ()
        self.batches_done = self.skipped = 0
        self._summed, self._first_sums = files.Summed(), np.zeros((2, 0))
        # The checkpoint of this process, and its contents until they are restored.
        self._path: pathlib.Path | None = None
        self._saved: tuple[dict[str, np.ndarray], files.Description] | None = None

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
        x = _struct(known["examples"])
        self._start(x, tuple(targets), extras)
        self._agree_on_features(x, tuple(targets), extras)
        self._start(x, tuple(targets), extras)

    def _agree_on_features(
        self, x: Examples, targets: Shape, extras: dict[str, PyTree]
    ) -> None:
        """Check that all processes have the same features of the same examples.

        Functions of a network may have one name and different values.
        """
        size = self.reader.size
        weight = np.zeros(size, np.float32)
        weight[: self._fingerprint["batch_size"]] = 1

        def rows(like: jax.ShapeDtypeStruct) -> np.ndarray:
            shape = (size, *like.shape[1:])
            values = 4 * np.abs(np.sin(np.arange(np.prod(shape)))).reshape(shape)
            return values.astype(like.dtype)

        def ones(like: jax.ShapeDtypeStruct) -> np.ndarray:
            return np.full((size, *like.shape[1:]), like.dtype == bool, like.dtype)

        inputs = rows(x), jax.tree.map(ones, extras), weight
        states, _ = self._added(inputs, np.zeros((size, *targets)))
        replies = self.processes.gather(_feature_sums(states).tolist())
        first, *others = map(np.array, replies)
        for i, sums in enumerate(others, 1):
            if not files.are_close(first, sums):
                self.processes.fail(
                    ValueError,
                    "fmap must have the same features in all processes, but those of "
                    f"processes 0 and {i} differ; a function of the network or the "
                    "version of this library is another one there",
                )

    def _start(self, x: Examples, targets: Shape, extras: dict[str, PyTree]) -> None:
        """Make sums of nothing, for examples and targets of these shapes."""
        size = self.reader.size // (1 if self.mesh is None else self.mesh.size)
        check_work(self.reader.owner, self.fmap, x, self.max_bytes, size, extras)
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
        self.states, finite = self._added(batch.inputs, batch.y)
        if self._path is not None and not self.batches_done:
            self._first_sums = _feature_sums(self.states)
        self.skipped += self.reader.count_skipped(batch, finite)
        self.batches_done += 1

    def _added(
        self, inputs: tuple[Examples, dict[str, PyTree], np.ndarray], y: np.ndarray
    ) -> tuple[tuple[RidgeState, ...], Array]:
        """Return the states after one more batch; those before it are deleted."""
        rows = inputs, y.astype(self.states[0].total.dtype)
        if self.mesh is not None:
            rows = sharding.split(self.mesh, rows)
        return _add(
            self.fmap, self.max_bytes, self.mesh, self.params, self.states, *rows
        )

    @functools.cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """Return what identifies the run; a checkpoint must have the same."""
        devices = 1 if self.mesh is None else self.mesh.size
        leaves = map(np.asarray, jax.tree.leaves(self.params))
        return {
            "feature map": repr(self.fmap),
            "params": _tensor_file.digest([*leaves]),
            "folds": self.folds,
            "batch_size": self.reader.size // devices,
            "devices": devices,
            "process": f"{self.processes.index} of {self.processes.count}",
            "classes": self.reader.classes and list(self.reader.classes),
            "number of examples": self.reader.num_examples,
            "nonfinite": self.reader.nonfinite,
        }

    @contextlib.contextmanager
    def checkpoint(self, path: str | os.PathLike | None) -> Iterator[None]:
        """Resume from a checkpoint if there is one, and keep others from writing it.

        Raises:
          ValueError: the checkpoint is damaged, in use, or of another run.
        """
        if path is None:
            yield
            return
        path = pathlib.Path(path)
        if self.processes.count > 1:
            name = f"{path.stem}.process{self.processes.index}{path.suffix}"
            path = path.with_name(name)
        with locked("fit", path):
            self._path = path
            if path.exists():
                arrays, description = self._saved = files.load(path)
                for name, value in self._fingerprint.items():
                    files.check_entry(path, description, name, value)
                if description.get("batches") == 0:
                    self._restore(path, arrays, description)
            yield

    def save(self) -> None:
        """Write the checkpoint; if that fails, the old file stays."""
        assert self._path is not None
        arrays = {"first sums": self._first_sums}
        for i, state in enumerate(self.states):
            for name in _SUMS:
                arrays[f"{name}{i}"] = np.asarray(getattr(state, name))
        description = {
            **self._fingerprint,
            "batches": self.batches_done,
            "skipped": self.skipped,
            "first examples": self._summed.first,
            "examples": self._summed.all,
        }
        try:
            files.save(self._path, arrays, description)
        except OSError as error:
            warnings.warn(
                f"fit: the checkpoint {self._path} could not be written ({error}); the "
                "old file stays, and the fit goes on",
                RuntimeWarning,
                stacklevel=3,
            )

    def end(self) -> NoReturn:
        """Write the checkpoint, if there is one, and end this process after SIGTERM."""
        what = "there is no checkpoint"
        if self._path is not None:
            # A checkpoint that is still being read again has more than these sums.
            if self._saved is None:
                self.save()
            what = f"the same call resumes from {self._path}"
        warnings.warn(
            f"fit: ends because of SIGTERM after {self.batches_done} batches; {what}",
            RuntimeWarning,
            stacklevel=3,
        )
        raise SystemExit(128 + signal.SIGTERM)

    def has_summed(self, batch: Batch) -> bool:
        """Return whether the checkpoint has the sums of the next batch.

        Raises:
          ValueError: the checkpoint has the sums of other examples, or of features of
            another map.
        """
        if self._path is None:
            return False
        self._summed.add(batch)
        if self._saved is None:
            return False
        arrays, description = self._saved
        check = functools.partial(files.check_entry, self._path, description)
        if not self.batches_done:
            check("first examples", self._summed.first)
            self.add(batch)
            if not files.are_close(self._first_sums, arrays.get("first sums")):
                raise ValueError(
                    f"{self._path} belongs to another run: the features of its first "
                    "examples were others, because a function of the network or this "
                    "library has changed; give another path or delete the file"
                )
        else:
            self.batches_done += 1
        if self.batches_done == description.get("batches"):
            check("examples", self._summed.all)
            self._restore(self._path, arrays, description)
        return True

    def check_restored(self) -> None:
        """Check, after the last batch, that there were those of the checkpoint.

        Raises:
          ValueError: the checkpoint has the sums of more batches.
        """
        if self._path is not None and self._saved is not None:
            files.check_entry(self._path, self._saved[1], "batches", self.batches_done)

    def _restore(
        self,
        path: pathlib.Path,
        arrays: dict[str, np.ndarray],
        description: files.Description,
    ) -> None:
        """Take the sums of the checkpoint.

        Raises:
          ValueError: the file does not have such sums.
        """
        skipped, restored = description.get("skipped", 0), []
        intact = isinstance(skipped, int)
        for i, state in enumerate(self.states):
            parts = {name: arrays.pop(f"{name}{i}", np.zeros(0)) for name in _SUMS}
            for name, part in parts.items():
                like = getattr(state, name)
                intact &= (part.shape, part.dtype) == (like.shape, like.dtype)
                intact &= bool(np.isfinite(part).all())
            restored.append(parts)
        if not intact:
            raise ValueError(
                f"{path} is damaged: it must have {self.folds} finite sums of shape "
                f"{self.states[0].total.shape}; give another path or delete the file"
            )
        self._saved, self.skipped = None, skipped
        self.states = tuple(
            RidgeState(
                **{name: self._read(part) for name, part in parts.items()},
                num_targets=state.num_targets,
            )
            for parts, state in zip(restored, self.states, strict=True)
        )

    def _read(self, array: np.ndarray) -> Array:
        if self.mesh is None:
            return jnp.asarray(array)
        return sharding.split(self.mesh, array)


@jax.jit
def _sums(states: tuple[RidgeState, ...]) -> Array:
    totals = [s.total.reshape(-1, *s.total.shape[-2:]).sum(axis=0) for s in states]
    total = functools.reduce(jnp.add, totals)
    return jnp.stack([total[:, -1], jnp.diagonal(total)])


def _feature_sums(states: tuple[RidgeState, ...]) -> np.ndarray:
    """Return the sums (2, m + t + 1) of what was summed, and of its squares."""
    return np.asarray(_sums(states), np.float64)


def _layout(array: Examples) -> tuple[list[int], str]:
    """Return the shape of one row and the dtype on a device, to be sent as JSON."""
    array = array if hasattr(array, "dtype") else np.asarray(array)
    return list(array.shape[1:]), str(jax.dtypes.canonicalize_dtype(array.dtype))


def _struct(layout: tuple[list[int], str]) -> jax.ShapeDtypeStruct:
    """Return one row of a `_layout`."""
    return jax.ShapeDtypeStruct((1, *layout[0]), np.dtype(layout[1]))


# The sums are updated in place: at m = 8192 they are half a gigabyte.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _add(
    fmap: FeatureMap,
    max_bytes: int | None,
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
        return _add_rows(fmap, max_bytes, params, states, inputs, y)

    def add_on_device(
        params: PyTree, states: tuple[RidgeState, ...], inputs: Inputs, y: Array
    ) -> tuple[tuple[RidgeState, ...], Array]:
        states = jax.tree.map(lambda a: a[0], states)
        states, finite = _add_rows(fmap, max_bytes, params, states, inputs, y)
        return jax.tree.map(lambda a: a[None], states), finite

    return sharding.over(mesh, add_on_device)(params, states, inputs, y)


def _add_rows(
    fmap: FeatureMap,
    max_bytes: int | None,
    params: PyTree,
    states: tuple[RidgeState, ...],
    inputs: Inputs,
    y: Array,
) -> tuple[tuple[RidgeState, ...], Array]:
    phi, weight, finite = batch_features(fmap, max_bytes, params, inputs)
    folds = [slice(i, None, len(states)) for i in range(len(states))]
    added = [
        ridge_update(state, phi[rows], y[rows], sample_weight=weight[rows])
        for state, rows in zip(states, folds, strict=True)
    ]
    return tuple(added), finite
