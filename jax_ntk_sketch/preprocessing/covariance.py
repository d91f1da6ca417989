r"""Means and covariances of examples of any number, in float64 on the host.

A batch of n examples is represented by its count, its mean and its scatter

.. math:: S = \sum_i (x_i - \bar x)(x_i - \bar x)^\top .

With :math:`\delta = \bar x_b - \bar x_a`, two batches merge into

.. math::
  \bar x = \bar x_a + \tfrac{n_b}{n} \delta, \qquad
  S = S_a + S_b + \tfrac{n_a n_b}{n} \delta \delta^\top ,

which does not subtract large numbers from each other. The split into batches changes
the result by rounding only. The relative error in norm is a small multiple of 1e-15,
even if the mean is many orders of magnitude larger than the deviations.

The arithmetic is float64 on the host, whatever the dtype of the examples. Whitening
divides by the smallest eigenvalues, which the rounding of float32 sums would replace.
The eigendecomposition that follows costs more than the sums.

Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances" (1979).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._typing import Examples
from jax_ntk_sketch.batches.reader import Nonfinite, Reader, warn_skipped
from jax_ntk_sketch.batches.source import ArraySource

Matrix = NDArray[np.float64]


class Moments(NamedTuple):
    """The statistics of examples.

    Attributes:
      num_rows: the number of examples; for columns that of examples and pixels.
      mean: an array of the shape of one example, with d entries.
      scatter: (d, d), the sums of products of deviations from the mean; or (d,), the
        diagonal of that matrix.
    """

    num_rows: int
    mean: Matrix
    scatter: Matrix

    @property
    def covariance(self) -> Matrix:
        """The maximum-likelihood estimate `scatter / n`; n - 1 would be unbiased."""
        return self.scatter / self.num_rows


def read_moments(
    owner: str,
    x: Examples,
    *,
    columns: bool = False,
    batch_size: int | None = None,
    nonfinite: Nonfinite = "raise",
) -> Moments:
    """Return the statistics of all examples.

    Args:
      owner: the function to name in error messages.
      x: (n, *shape), checked by `check_examples`.
      columns: whether to compute the variances of the columns, over examples and
        pixels, instead of the covariances of the entries.
      batch_size: the number of examples in a float64 copy; None for the default of the
        reader.
      nonfinite: "raise" or "skip".

    Raises:
      TypeError: x is traced.
      ValueError: fewer than two examples are finite, or one is not.

    Cost: n d^2 multiply-adds, and 32 d^2 bytes that are moved for each batch.
    """
    reader = Reader(
        ArraySource(owner, x),
        batch_size=batch_size,
        nonfinite=nonfinite,
        pad=False,
        dtype=np.float64,
    )
    moments, count, skipped = None, 0, 0
    for batch in reader.batches():
        rows = batch.x[batch.finite]
        count, skipped = count + len(rows), skipped + batch.num_skipped
        if columns:
            rows = rows.reshape(-1, rows.shape[-1])
        if len(rows):
            more = _moments_of_batch(rows, diagonal=columns)
            moments = more if moments is None else _merge(moments, more)
    warn_skipped(owner, skipped, stacklevel=4)
    if moments is None or count < 2:
        raise ValueError(
            f"{owner}: x must hold at least 2 examples, got {count} with finite entries"
        )
    return moments


def _merge(a: Moments, b: Moments) -> Moments:
    """Return the statistics of the examples of both."""
    n = a.num_rows + b.num_rows
    delta = b.mean - a.mean
    scatter = _scatter(delta.reshape(1, -1), diagonal=a.scatter.ndim == 1)
    scatter *= a.num_rows * b.num_rows / n
    scatter += a.scatter
    scatter += b.scatter
    return Moments(n, a.mean + delta * (b.num_rows / n), scatter)


def _moments_of_batch(x: Matrix, *, diagonal: bool) -> Moments:
    """Return the statistics of at least one example."""
    rows = x.reshape(len(x), -1)
    # Relative to the first example, the deviations of a constant entry are exactly 0
    # instead of the rounding error of its mean.
    shift = rows[0].copy()
    rows = rows - shift
    center = rows.mean(axis=0)
    rows -= center
    mean = (shift + center).reshape(x.shape[1:])
    return Moments(len(x), mean, _scatter(rows, diagonal=diagonal))


def _scatter(rows: Matrix, *, diagonal: bool) -> Matrix:
    """Return `rows.T @ rows`, exactly symmetric (a BLAS syrk), or its diagonal."""
    return np.square(rows).sum(axis=0) if diagonal else rows.T @ rows
