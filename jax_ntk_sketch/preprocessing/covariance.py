r"""Means and covariances from any number of batches, in float64 on the host.

A batch of n examples is held as its count, its mean and its scatter

.. math:: S = \sum_i (x_i - \bar x)(x_i - \bar x)^\top .

Two of them merge without a subtraction of large numbers (Chan, Golub, LeVeque,
"Updating formulae and a pairwise algorithm for computing sample variances", 1979):
with :math:`\delta = \bar x_b - \bar x_a`,

.. math::
  \bar x = \bar x_a + \tfrac{n_b}{n} \delta, \qquad
  S = S_a + S_b + \tfrac{n_a n_b}{n} \delta \delta^\top .

The arithmetic is float64 on the host, whatever the dtype of the examples: whitening
divides by the smallest eigenvalues, which float32 sums would leave to rounding, and
the eigendecomposition that follows costs more than the sums do.

>>> import numpy as np
>>> x = np.random.default_rng(0).normal(size=(100, 3))
>>> state = covariance_init(3)
>>> for start in (0, 30):
...     state = covariance_update(state, x[start : start + 30])
>>> rest = covariance_update(covariance_init(3), x[60:])
>>> state = covariance_merge(rest, state)
>>> np.allclose(state.covariance, np.cov(x.T, bias=True), rtol=1e-13)
True
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jax_ntk_sketch.preprocessing.checks import check_examples, host_batches

__all__ = [
    "CovarianceState",
    "covariance_init",
    "covariance_merge",
    "covariance_update",
]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("count", "mean", "scatter"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, eq=False)
class CovarianceState:
    """What is known of the examples seen; NumPy arrays in float64, kept on the host.

    (As a pytree it can be saved or sent; passing it through `jit` without double
    precision would round it to float32.)

    Attributes:
      count: (), the number of examples n.
      mean: the shape of one example, d entries.
      scatter: (d, d), sums of products of deviations from the mean; or (d,), their
        diagonal.
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @property
    def covariance(self) -> NDArray[np.float64]:
        """`scatter / n`, (d, d): maximum likelihood, so n and not n - 1."""
        return self.scatter / self.count


def covariance_init(
    dim: int | Sequence[int], *, diagonal: bool = False
) -> CovarianceState:
    """The state of no examples.

    Args:
      dim: the number of entries of an example, d >= 1, or its shape, (32, 32, 3).
      diagonal: keep the variances only, d numbers in place of d^2. That is enough
        for `standardize_columns_from_covariance`, not for `zca_from_covariance`.

    Returns:
      `CovarianceState`, 8 d^2 bytes: 75 MB for images of 32x32x3.

    Raises:
      TypeError, ValueError: sizes that are not positive integers.
    """
    try:
        shape = tuple(map(operator.index, dim if isinstance(dim, Sequence) else (dim,)))
    except TypeError:
        raise TypeError(
            f"covariance_init: dim must be an integer or a shape, got {dim!r}"
        ) from None
    if not shape or min(shape) < 1:
        raise ValueError(f"covariance_init: dim must be positive, got {dim!r}")
    d = math.prod(shape)
    scatter = np.zeros(d if diagonal else (d, d))
    return CovarianceState(np.zeros(()), np.zeros(shape), scatter)


def covariance_update(state: CovarianceState, x: ArrayLike) -> CovarianceState:
    """The state after more examples; any number of batches of any length.

    Args:
      state: `CovarianceState`.
      x: (n, *shape) with the state's shape; real, any dtype, integers as they are.

    Returns:
      `CovarianceState`; the argument is unchanged.

    Raises:
      TypeError, ValueError: a traced or complex x, another shape, NaN or infinite
        entries (the example is named).

    Cost: n d^2 multiply-adds in float64 and 32 d^2 bytes of traffic for the merge:
    batches of d examples or more hide the latter. Working memory about 128 MB (longer
    batches are cut) and 16 d^2 bytes.

    Guarantee: order and splitting change the result by rounding only, relative 1e-15
    times small factors in norm, also where the mean is many orders of magnitude
    larger than the deviations. What the examples' own dtype rounded is lost before: a
    float32 entry near 1e4 is known to 5e-4.
    """
    x = check_examples("covariance_update", x, state.mean.shape)
    diagonal = state.scatter.ndim == 1
    for batch in host_batches("covariance_update", x, None):
        state = covariance_merge(state, _batch(batch, diagonal=diagonal))
    return state


def covariance_of(
    owner: str, examples: Any, batch_size: int | None, *, channels: bool = False
) -> CovarianceState:
    """The state of all examples, for `zca_fit` and `standardize_columns_fit`.

    Args:
      owner: the function to name in errors.
      examples: (n, *shape), checked by `check_examples`.
      batch_size: examples per float64 copy; None for copies of about 64 MB.
      channels: variances of the channels over examples and pixels instead of
        covariances of the entries.

    Raises:
      TypeError, ValueError: as `host_batches`; n < 2.
    """
    if len(examples) < 2:
        raise ValueError(
            f"{owner}: x must hold 2 examples or more, got {len(examples)}"
        )
    shape = examples.shape[-1:] if channels else examples.shape[1:]
    state = covariance_init(shape, diagonal=channels)
    for batch in host_batches(owner, examples, batch_size):
        rows = batch.reshape(-1, *shape)
        state = covariance_merge(state, _batch(rows, diagonal=channels))
    return state


def covariance_merge(a: CovarianceState, b: CovarianceState) -> CovarianceState:
    """The state of the examples of both, from two devices or machines.

    Commutative and associative to rounding.

    Raises:
      ValueError: states of different shapes.
    """
    for name in ("mean", "scatter"):
        this, that = getattr(a, name).shape, getattr(b, name).shape
        if this != that:
            raise ValueError(f"covariance_merge: {name} has shapes {this} and {that}")
    if a.count == 0 or b.count == 0:
        return b if a.count == 0 else a
    n = np.asarray(a.count + b.count)
    delta = b.mean - a.mean
    scatter = _products(delta.reshape(1, -1), diagonal=a.scatter.ndim == 1)
    scatter *= a.count * b.count / n
    scatter += a.scatter
    scatter += b.scatter
    return CovarianceState(n, a.mean + delta * (b.count / n), scatter)


def _batch(x: NDArray[np.float64], *, diagonal: bool) -> CovarianceState:
    """The state of one batch of at least one example."""
    rows = x.reshape(len(x), -1)
    # Relative to one example, so that an entry that never changes deviates by 0
    # exactly and not by the rounding of its mean.
    shift = rows[0].copy()
    rows = rows - shift
    center = rows.mean(axis=0)
    rows -= center
    mean = (shift + center).reshape(x.shape[1:])
    return CovarianceState(
        np.array(float(len(x))), mean, _products(rows, diagonal=diagonal)
    )


def _products(rows: NDArray[np.float64], *, diagonal: bool) -> Any:
    """`rows.T @ rows`, exactly symmetric (a BLAS syrk), or its diagonal."""
    return np.square(rows).sum(axis=0) if diagonal else rows.T @ rows
