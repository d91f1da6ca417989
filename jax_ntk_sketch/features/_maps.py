"""What the feature maps share: their kernels, and checks of examples and batches."""

import dataclasses

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


def dense_sample(owner: str, example: Shape | Examples) -> tuple[Shape, Array | None]:
    """Return the shape of one example, and the examples as floats if they are given.

    Raises:
      TypeError: the examples are complex or sparse.
      ValueError: `example` is neither a shape nor examples.
    """
    refuse_sparse(owner, example)
    shape, _ = check_example(owner, example)
    if is_shape(example):
        return shape, None
    return shape, check_input(
        owner, "example", to_jax(owner, "example", example), shape[-1]
    )


def require_sample(
    owner: str, reason: str, shape: Shape, sample: Array | None
) -> Array:
    """Return the sample of a map that learns from data.

    Raises:
      ValueError: a shape is given in place of a sample.
    """
    if sample is None:
        raise ValueError(
            f"{owner}: {reason}: give an array of examples, (n, d) or "
            f"(n, *spatial, c), in place of the shape {shape}"
        )
    return sample


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


def plan_sizes(
    owner: str, example: Shape | Examples, batch_size: int | None
) -> tuple[Shape, int, int]:
    """Return the shape of one example, the number of examples, and the batch size.

    A shape counts as one example. The batch holds all examples by default.
    """
    shape, given = check_example(owner, example)
    count = max(1, given or 1)
    if batch_size is None:
        return shape, count, count
    return shape, count, check_size(owner, "batch_size", batch_size)
