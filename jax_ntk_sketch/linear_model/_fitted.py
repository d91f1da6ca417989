"""`FittedModel`: a linear model on features, with the map that makes them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jax_ntk_sketch._arrays import match_columns, sliceable
from jax_ntk_sketch._numerics import at_least_float32
from jax_ntk_sketch._protocol import FeatureMap, check_feature_map
from jax_ntk_sketch._typing import Array, Examples, PyTree, Shape
from jax_ntk_sketch.batches.prepared import Prepared
from jax_ntk_sketch.batches.reader import Batch, Reader
from jax_ntk_sketch.features._transform import (
    apply_in_parts,
    check_work,
    for_each_batch,
    map_reader,
)
from jax_ntk_sketch.linear_model.cross_validation import CrossValidation
from jax_ntk_sketch.linear_model.model import RidgeModel
from jax_ntk_sketch.linear_model.ridge import RidgeState

# `Batch.inputs` in a compiled function.
Inputs: TypeAlias = tuple[Examples, dict[str, PyTree], Array]


class CGInfo(NamedTuple):
    """Diagnostics of `fit_cg`.

    Attributes:
      residuals: (steps + 1,), after each step the largest of the targets' residuals,
        relative to their right-hand sides, as the recurrence computes them.
      residual: the same for the returned weights, from a separate pass.
      bound: a bound on the distance between the predictions of the returned weights and
        of the exact weights, from that pass; see `fit_cg`.
      converged: whether `bound` is at most twice the tolerance.
      num_passes: how often the data were read.
    """

    residuals: NDArray
    residual: float
    bound: float
    converged: bool
    num_passes: int


class GradientInfo(NamedTuple):
    """Diagnostics of `fit_gradient`.

    Attributes:
      losses: (num_epochs,), the mean loss of the steps of each epoch, with the penalty.
    """

    losses: NDArray


class Preprocessing(Protocol):
    """A function of some of the examples (n, ...), to inputs (n, *shape) of a map."""

    @property
    def shape(self) -> Shape: ...

    def __call__(self, x: Examples) -> NDArray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class FittedModel:
    """A feature map, its parameters, and a linear model on its features.

    Attributes:
      fmap, params: the map and its parameters, as given to the fit.
      best: the `RidgeModel` for the chosen value of `reg`.
      all_models: the `RidgeModel` for all values of `reg`, with diagnostics.
      cross_validation: the errors of each fold; None without folds.
      info: diagnostics of `fit_cg` and `fit_gradient`; None for `fit`.
      num_skipped: how many examples were left out because they were not finite, in all
        processes together.
      feature_names: the names of the columns of the examples, if they were a table with
        names. Tables to predict for are matched by these names.
      preprocessing: the step from examples to inputs of the map, which `predict` takes;
        None if there is none.
      metadata, arrays: JSON and arrays of your own, which `jax_ntk_sketch.io.save`
        keeps with the model.
      sums: the sums over all examples, from which `ridge_solve` makes the model of any
        other `reg`; None for other fits than `fit`, and for loaded models.
    """

    fmap: FeatureMap
    params: PyTree
    best: RidgeModel
    all_models: RidgeModel
    cross_validation: CrossValidation | None = None
    info: CGInfo | GradientInfo | None = None
    num_skipped: int = 0
    feature_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    arrays: dict[str, NDArray] = dataclasses.field(default_factory=dict)
    sums: RidgeState | None = None

    def predict(
        self,
        x: Examples,
        *,
        batch_size: int | None = None,
        max_bytes: int | None = None,
        progress: bool | None = False,
        mesh: Mesh | None = None,
        pattern: PyTree = None,
        mask: PyTree = None,
    ) -> NDArray:
        """Return predictions; for classes these are scores.

        Args:
          x: n examples, as `jax_ntk_sketch.transform` takes them. The columns of a
            table are matched by name if the model was fitted to a table with names;
            their order does not matter, and other columns are left out. The columns of
            an array are matched by position.
          batch_size, max_bytes, progress, mesh, pattern, mask: as `transform` takes
            them. By default no progress is shown.

        Returns:
          `(n, t)`, or `(n,)` if the targets had this shape.

        Raises:
          TypeError, ValueError: as `transform`; or a column is missing.

        Cost: that of `transform`. What is compiled serves all later calls with as many
        rows, or as few as make the same power of two, at most 128 on a CPU.
        """
        return self._mapped(
            self.best.predict,
            x,
            {"pattern": pattern, "mask": mask},
            {"batch_size": batch_size, "max_bytes": max_bytes, "mesh": mesh},
            progress,
        )

    def predict_class(
        self,
        x: Examples,
        *,
        batch_size: int | None = None,
        max_bytes: int | None = None,
        progress: bool | None = False,
        mesh: Mesh | None = None,
        pattern: PyTree = None,
        mask: PyTree = None,
    ) -> NDArray:
        """Return the label of the class with the largest score, for each example.

        Args:
          x, batch_size, max_bytes, progress, mesh, pattern, mask: as `predict` takes
            them.

        Returns:
          Labels `(n,)`, integers or text as those of the fit.

        Raises:
          TypeError: as `transform`.
          ValueError: as `transform`; or the model was not fitted on class labels.
        """
        return self._mapped(
            self.best.predict_class,
            x,
            {"pattern": pattern, "mask": mask},
            {"batch_size": batch_size, "max_bytes": max_bytes, "mesh": mesh},
            progress,
        )

    def _mapped(
        self,
        run: Callable[[Array | NDArray], Array | NDArray],
        x: Examples,
        extras: dict[str, PyTree],
        options: dict[str, Any],
        progress: bool | None,
    ) -> NDArray:
        x = match_columns("predict", "x", x, self.feature_names)
        if (step := self.preprocessing) is not None:
            x = Prepared(sliceable("predict", "x", x), step.shape, step)
        reader = map_reader("predict", self.fmap, x, extras=extras, **options)
        max_bytes, mesh = options["max_bytes"], options["mesh"]
        parts: list[NDArray] = []

        def consume(batch: Batch, phi: PyTree) -> None:
            # All batches have one size, so that the model is compiled once.
            rows = run(phi if mesh is None else np.asarray(phi))
            parts.append(np.asarray(rows)[: len(batch.finite)])

        for_each_batch(
            self.fmap,
            self.params,
            reader,
            consume,
            max_bytes=max_bytes,
            mesh=mesh,
            progress=progress,
        )
        if not parts:
            return np.asarray(run(np.zeros((0, self.fmap.num_features), np.float32)))
        return np.concatenate(parts)


def check_one_kernel(owner: str, fmap: FeatureMap) -> None:
    """Check that a fit can use a feature map.

    Raises:
      TypeError: `fmap` is not a feature map.
      ValueError: it has two kernels, or needs all examples in one batch.
    """
    check_feature_map(owner, fmap)
    if not isinstance(fmap.get, str):
        raise ValueError(
            f'{owner}: fmap must have one kernel, get="ntk" or get="nngp", got '
            f"get={fmap.get!r}"
        )
    if fmap.method.batch_dependent:
        raise ValueError(
            f'{owner}: fmap must not have the method "exact", which needs all examples '
            "in one batch; use fit_ridge(fmap.apply(params, x), y)"
        )


def batch_features(
    fmap: FeatureMap, max_bytes: int | None, params: PyTree, inputs: Inputs
) -> tuple[Array, Array, Array]:
    """Return the features of `Batch.inputs`, the weights, and which rows are finite.

    Features and weights are 0 in the other rows, and where the squared norm of the
    features is not finite.
    """
    x, extras, weight = inputs
    phi = apply_in_parts(fmap, max_bytes, params, x, extras)
    assert isinstance(phi, jax.Array)
    # The sums of a fit have the squares of features, which overflow before features do.
    finite = jnp.isfinite(jnp.sum(jnp.square(at_least_float32(phi)), axis=1))
    return jnp.where(finite[:, None], phi, 0), jnp.where(finite, weight, 0), finite


def features_like(
    fmap: FeatureMap, params: PyTree, x: Examples, extras: dict[str, PyTree]
) -> jax.ShapeDtypeStruct:
    """Return the shape of the features of x, and the dtype in which they are summed."""
    phi = jax.eval_shape(functools.partial(fmap.apply, params), x, **extras)
    return phi.update(dtype=jnp.promote_types(phi.dtype, jnp.float32))


def first_shapes(
    fmap: FeatureMap, params: PyTree, reader: Reader, max_bytes: int | None
) -> tuple[jax.ShapeDtypeStruct, int | None]:
    """Return `features_like` the first batch, and the number of targets or None.

    Raises:
      ValueError: there are no examples, or they do not fit in `max_bytes`.
    """
    batch = None if reader.num_examples == 0 else reader.template()
    if batch is None or not len(batch.numbers):
        raise ValueError(f"{reader.owner}: x must hold examples, got no examples")
    assert batch.y is not None
    check_work(reader.owner, fmap, batch.x, max_bytes, reader.size, batch.extras)
    t = None if batch.y.ndim == 1 else batch.y.shape[1]
    return features_like(fmap, params, batch.x, batch.extras), t
