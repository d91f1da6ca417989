r"""Means and covariances from any number of batches, in float64 on the host.

A batch of n examples is represented by its count, its mean and its scatter

.. math:: S = \sum_i (x_i - \bar x)(x_i - \bar x)^\top .

With :math:`\delta = \bar x_b - \bar x_a`, two batches merge into

.. math::
  \bar x = \bar x_a + \tfrac{n_b}{n} \delta, \qquad
  S = S_a + S_b + \tfrac{n_a n_b}{n} \delta \delta^\top ,

which does not subtract large numbers from each other.

The arithmetic is float64 on the host, whatever the dtype of the examples. Whitening
divides by the smallest eigenvalues, which the rounding of float32 sums would replace.
The eigendecomposition that follows costs more than the sums.

Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances" (1979).

>>> import numpy as np
>>> from jax_ntk_sketch import preprocessing
>>> x = np.random.default_rng(0).normal(size=(100, 3))
>>> state = preprocessing.covariance_init(3)
>>> for start in (0, 30):
...     state = preprocessing.covariance_update(state, x[start : start + 30])
>>> rest = preprocessing.covariance_update(preprocessing.covariance_init(3), x[60:])
>>> state = preprocessing.covariance_merge(rest, state)
>>> np.allclose(state.covariance, np.cov(x.T, bias=True), rtol=1e-13)
True
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._checks import check_examples, check_size
from jax_ntk_sketch._typing import Examples
from jax_ntk_sketch.batches.reader import Nonfinite, Reader, warn_skipped
from jax_ntk_sketch.batches.source import ArraySource

Matrix = NDArray[np.float64]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("count", "mean", "scatter"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, eq=False)
class CovarianceState:
    """The statistics of all examples seen: float64 NumPy arrays on the host.

    The state is a pytree, so that it can be saved and sent. Without x64, `jit` would
    round it to float32.

    Attributes:
      count: (), the number of examples n.
      mean: an array of the shape of one example, with d entries.
      scatter: (d, d), the sums of products of deviations from the mean; or (d,), the
        diagonal of that matrix.
    """

    count: Matrix
    mean: Matrix
    scatter: Matrix

    @property
    def covariance(self) -> Matrix:
        """The maximum-likelihood estimate `scatter / n`; n - 1 would be unbiased."""
        return self.scatter / self.count


def covariance_init(
    dim: int | Sequence[int], *, diagonal: bool = False
) -> CovarianceState:
    """Return the state before any example.

    Args:
      dim: the number of entries of an example, d >= 1, or its shape, such as
        (32, 32, 3).
      diagonal: whether to keep the d variances only. They suffice for
        `standardize_columns_from_covariance` but not for `zca_from_covariance`.

    Returns:
      `CovarianceState` of 8 d^2 bytes: 72 MiB for images of shape (32, 32, 3).

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is not positive, or the shape is empty.
    """
    sizes = dim if isinstance(dim, Sequence) else (dim,)
    shape = tuple(check_size("covariance_init", "dim", size) for size in sizes)
    if not shape:
        raise ValueError(f"covariance_init: dim must name at least one size, got {dim}")
    d = math.prod(shape)
    scatter = np.zeros(d if diagonal else (d, d))
    return CovarianceState(np.zeros(()), np.zeros(shape), scatter)


def covariance_update(
    state: CovarianceState, x: Examples, *, nonfinite: Nonfinite = "raise"
) -> CovarianceState:
    """Return the state after more examples.

    Any number of batches of any length may follow each other.

    Args:
      state: `CovarianceState`; it is not changed.
      x: (n, *shape), real, any dtype. Integers are not rescaled.
      nonfinite: "raise" to raise an error that names examples with NaN or infinity;
        "skip" to leave them out, with a warning.

    Returns:
      `CovarianceState`.

    Raises:
      TypeError: x is complex or traced.
      ValueError: the examples have another shape, or one of them has NaN or infinite
        entries. The message names it.

    Cost: n d^2 multiply-adds in float64. The merge moves 32 d^2 bytes, which is hidden
    by batches of at least d examples. The working memory is at most about 128 MiB and
    16 d^2 bytes, because longer batches are cut.

    Guarantee: the order and the split into batches change the result by rounding only.
    The relative error in norm is a small multiple of 1e-15, even if the mean is many
    orders of magnitude larger than the deviations. Digits that the dtype of the
    examples rounds away are lost before: a float32 entry near 1e4 is known to 5e-4.
    """
    owner = "covariance_update"
    x = check_examples(owner, x, state.mean.shape)
    return _add_examples(owner, state, x, None, nonfinite)


def covariance_merge(a: CovarianceState, b: CovarianceState) -> CovarianceState:
    """Return the state of the examples of both states.

    The states may come from two devices or machines. The operation is commutative, and
    associative up to rounding.

    Raises:
      ValueError: the states have different shapes.
    """
    for name in ("mean", "scatter"):
        shape, other = getattr(a, name).shape, getattr(b, name).shape
        if shape != other:
            raise ValueError(
                f"covariance_merge: a and b must be of examples of one shape, got "
                f"{name} of shapes {shape} and {other}"
            )
    if a.count == 0 or b.count == 0:
        return b if a.count == 0 else a
    n = np.asarray(a.count + b.count)
    delta = b.mean - a.mean
    scatter = _scatter(delta.reshape(1, -1), diagonal=a.scatter.ndim == 1)
    scatter *= a.count * b.count / n
    scatter += a.scatter
    scatter += b.scatter
    return CovarianceState(n, a.mean + delta * (b.count / n), scatter)


def covariance_of_examples(
    owner: str,
    examples: Examples,
    batch_size: int | None,
    nonfinite: Nonfinite,
    *,
    columns: bool = False,
) -> CovarianceState:
    """Return the state of all examples, for `zca_fit` and `standardize_columns_fit`.

    Args:
      owner: the function to name in error messages.
      examples: (n, *shape), checked by `check_examples`.
      batch_size: the number of examples in a float64 copy; None for the default of the
        reader.
      nonfinite: "raise" or "skip".
      columns: whether to keep the variances of the columns, over examples and pixels,
        instead of the covariances of the entries.
    """
    if len(examples) < 2:
        raise ValueError(
            f"{owner}: x must hold at least 2 examples, got {len(examples)}"
        )
    shape = examples.shape[-1:] if columns else examples.shape[1:]
    state = covariance_init(shape, diagonal=columns)
    return _add_examples(owner, state, examples, batch_size, nonfinite)


def check_count(owner: str, state: CovarianceState) -> None:
    """Raise `ValueError` if the state has seen fewer than two examples."""
    if state.count < 2:
        raise ValueError(
            f"{owner}: state must have seen at least 2 examples, got "
            f"{int(state.count)}; add examples with covariance_update"
        )


def _add_examples(
    owner: str,
    state: CovarianceState,
    x: Examples,
    batch_size: int | None,
    nonfinite: Nonfinite,
) -> CovarianceState:
    """Return the state after the rows of x, which have the shape of the state."""
    reader = Reader(
        ArraySource(owner, x),
        batch_size=batch_size,
        nonfinite=nonfinite,
        pad=False,
        dtype=np.float64,
    )
    diagonal, skipped = state.scatter.ndim == 1, 0
    for batch in reader.batches():
        rows = batch.x[batch.finite].reshape(-1, *state.mean.shape)
        if len(rows):
            state = covariance_merge(state, _batch_state(rows, diagonal=diagonal))
        skipped += batch.num_skipped
    warn_skipped(owner, skipped, stacklevel=4)
    return state


def _batch_state(x: Matrix, *, diagonal: bool) -> CovarianceState:
    """Return the state of one batch of at least one example."""
    rows = x.reshape(len(x), -1)
    # Relative to the first example, the deviations of a constant entry are exactly 0
    # instead of the rounding error of its mean.
    shift = rows[0].copy()
    rows = rows - shift
    center = rows.mean(axis=0)
    rows -= center
    mean = (shift + center).reshape(x.shape[1:])
    return CovarianceState(
        np.array(float(len(x))), mean, _scatter(rows, diagonal=diagonal)
    )


def _scatter(rows: Matrix, *, diagonal: bool) -> Matrix:
    """Return `rows.T @ rows`, exactly symmetric (a BLAS syrk), or its diagonal."""
    return np.square(rows).sum(axis=0) if diagonal else rows.T @ rows
