"""What the feature maps share: their kernels, and checks of examples and batches."""

import dataclasses
import warnings

from jax_ntk_sketch import methods
from jax_ntk_sketch._arrays import to_jax
from jax_ntk_sketch._checks import check_example, check_input, check_size, is_shape
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import Array, ArrayLike, Examples, Get, Kind, Shape
from jax_ntk_sketch.batches.sparse_rows import refuse_sparse


@dataclasses.dataclass(frozen=True)
class DerivedFeatureMap:
    """A feature map that uses another one, `base`."""

    base: FeatureMap

    @property
    def get(self) -> Get:
        """The kernel or kernels of `base`."""
        return self.base.get

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kernels of `base`, as a tuple."""
        return self.base.kinds

    @property
    def method(self) -> methods.Method:
        """The method of `base`."""
        return self.base.method


def example_shape(owner: str, example: Shape | Examples) -> Shape:
    """Return the shape of one example, from the shape or from examples.

    Raises:
      ValueError: `example` is neither a shape nor examples.
    """
    return check_example(owner, example)[0]


def check_sample(
    owner: str, sample: Examples | None, shape: Shape, reason: str | None
) -> Array | None:
    """Return a dense sample as floats; None if the map does not learn.

    Args:
      owner: the function to name in the message.
      sample: what the user gave as `sample`, or None.
      shape: the shape of one example.
      reason: why the map learns from a sample; None if it does not.

    Raises:
      TypeError: the sample is complex or sparse.
      ValueError: the map learns and there is no sample; its examples have another
        shape.
    """
    if sample is None:
        if reason is not None:
            require_sample(owner, reason, shape)
        return None
    refuse_sparse(owner, sample, "sample")
    if is_shape(sample) or example_shape(owner, sample) != shape:
        found = getattr(sample, "shape", sample)
        raise ValueError(
            f"{owner}: sample must be an array (n, {', '.join(map(str, shape))}), "
            f"examples of the shape that example has, got {found}"
        )
    if reason is None:
        return None
    return check_input(owner, "sample", to_jax(owner, "sample", sample), shape[-1])


def require_sample(owner: str, reason: str, shape: Shape) -> None:
    """Raise because there is no sample.

    Raises:
      ValueError: always.
    """
    raise ValueError(
        f"{owner}: sample must be given, because {reason}; pass sample=x, examples "
        f"(n, {', '.join(map(str, shape))}) like those to come"
    )


def warn_few(owner: str, rows: int, usable: int, columns: int) -> None:
    """Warn that a sample is too small for the columns of a map.

    Args:
      owner: the function to name in the message.
      rows: the examples or positions that landmarks or directions can come from.
      usable: how many columns can be used.
      columns: how many columns there are.
    """
    if usable < columns:
        warnings.warn(
            f"{owner}: with {rows} rows to learn from, only {usable} of {columns} "
            "columns can be used, and the others are zero; give more examples or a "
            "smaller num_features",
            RuntimeWarning,
            stacklevel=3,
        )


def check_params(owner: str, params: object) -> None:
    """Check that parameters are what `init` returned, and not the examples.

    Raises:
      TypeError: they are no dictionary.
    """
    if not isinstance(params, dict):
        raise TypeError(
            f"{owner}: params must be the dictionary that init returned, got "
            f"{type(params).__name__}; params come first, apply(params, x)"
        )


def check_shape(owner: str, x: ArrayLike, shape: Shape, reason: str) -> Array:
    """Return x as an array, which must be examples of this shape.

    Raises:
      ValueError: the examples have another shape.
    """
    x = to_jax(owner, "x", x)
    if x.ndim < 1 or x.shape[1:] != shape:
        hint = "; use x[None] for one example" * (x.shape == shape)
        raise ValueError(
            f"{owner}: x must have shape (n, {', '.join(map(str, shape))}), {reason}, "
            f"got shape {x.shape}{hint}"
        )
    return x


def check_takes_scales(owner: str, method: methods.Method) -> None:
    """Check that a method takes scales that may be traced.

    Raises:
      ValueError: it does not.
    """
    if not method.takes_scales:
        known = [name for name, m in methods.METHODS.items() if m.takes_scales]
        raise ValueError(
            f"{owner}: scales must be None with {method}, which reads those of the "
            f"network before it is traced; they are taken by the methods {known}"
        )


def plan_sizes(
    owner: str, example: Shape | Examples, batch_size: int | None
) -> tuple[Shape, int, int]:
    """Return the shape of one example, the number of examples, and the batch size.

    A shape counts as one example. The batch holds all examples by default. Only the
    shape of `example` is read.
    """
    shape, given = check_example(owner, example)
    count = max(1, given or 1)
    if batch_size is None:
        return shape, count, count
    return shape, count, check_size(owner, "batch_size", batch_size)
