r"""Principal directions of features, from one pass over them.

The features :math:`\Phi` are (n, M). The columns of U, (M, m), span the leading
eigenvectors of :math:`G = \Phi^\top\Phi`, which is not formed. A test matrix
:math:`\Omega`, (s, M), holds the features of s examples. It is multiplied by G batch by
batch, and

.. math:: G \approx Y^\top (\Omega Y^\top)^{-1} Y = F^\top F, \qquad Y = \Omega G,
   \quad F = L^{-1} Y, \quad L L^\top = \Omega Y^\top.

The features of examples are better tests than random vectors: they are random vectors
times :math:`G^{1/2}`. Products that decide about orthogonality are computed in float64
on the host. Sums over batches are in float32 with their rounding errors, so that
millions of examples keep their digits.

Source: Tropp, Yurtsever, Udell, Cevher, "Fixed-rank approximation of a positive-
semidefinite matrix from streaming data" (arXiv 1706.05736), Algorithm 3.
"""

import numpy as np
import scipy
from numpy.typing import NDArray

from jax_ntk_sketch._numerics import matmul, two_sum
from jax_ntk_sketch._typing import Array

# Examples in the sample: 4 m, but at most 3072 more than m. With 4 m examples of images
# the squared norm that is lost was 0.4 % above the optimum.
_SAMPLE_FACTOR, _SAMPLE_EXCESS = 4, 3072

# Smaller eigenvalues, relative to the largest one, are rounding errors.
_RANK_TOLERANCE = 1e-10

# Subspace iteration: m / _SPARE more columns than m, and the number of steps.
_SPARE, _STEPS = 4, 4

# Columns of features that are in float64 at a time.
_BLOCK = 1024

# A squared norm whose square root is a normal float32.
_TINY = 1e-60


def sample_size(m: int) -> int:
    """Return how many examples make the test matrix for m directions."""
    return min(_SAMPLE_FACTOR * m, m + _SAMPLE_EXCESS)


def state_bytes(wide: int, m: int, s: int, n: int | None) -> int:
    """Return the peak bytes while m directions of `wide` features are learned.

    Args:
      wide: M, the number of features.
      m: the number of directions.
      s: the number of rows of the test matrix.
      n: the number of examples; None for many.
    """
    last = 4 * wide * s + 32 * s * s + 4 * wide * m
    # Tests, sums, rounding errors, a product and copies of the compiler.
    return last if n is not None and n <= s else max(last, 24 * wide * s)


def whiten(sample: NDArray) -> NDArray:
    r"""Return nearly orthonormal rows (s, M) with the span of the sample's.

    The sample is overwritten. Without this step the condition number of
    :math:`\Omega G \Omega^\top` is squared, and float32 loses directions that weigh a
    thousandth of the heaviest one.
    """
    kernel = _gram(sample)
    kernel[np.diag_indices_from(kernel)] += max(1e-12 * np.trace(kernel), _TINY)
    lower = np.linalg.cholesky(kernel).astype(sample.dtype)
    for start in range(0, sample.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        sample[:, part] = scipy.linalg.solve_triangular(
            lower, sample[:, part], lower=True
        )
    return sample


def add_products(
    sums: tuple[Array, Array], tests: Array, phi: Array
) -> tuple[Array, Array]:
    """Add `tests @ phi.T @ phi`, (s, M), to sums that are pairs `total, carry`."""
    total, carry = sums
    total, error = two_sum(total, matmul(matmul(tests, phi.T), phi))
    return total, carry + error


def factor(y: NDArray, tests: NDArray) -> NDArray:
    r"""Return F (s, M) with :math:`F^\top F \approx G`.

    Args:
      y: (s, M), :math:`\Omega G`; it is overwritten.
      tests: (s, M), :math:`\Omega`.
    """
    core = np.zeros((len(y),) * 2)
    for start in range(0, y.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        core += y[:, part].astype(np.float64) @ tests[:, part].T.astype(np.float64)
    core = (core + core.T) / 2
    # The shift covers the rounding of y. It makes F^T F smaller than G, never larger.
    shift = max(float(np.finfo(y.dtype).eps) * np.trace(core), _TINY)
    lower = None
    while lower is None:
        try:
            lower = np.linalg.cholesky(core + shift * np.eye(len(core)))
        except np.linalg.LinAlgError:
            shift *= 10
    for start in range(0, y.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        y[:, part] = scipy.linalg.solve_triangular(
            lower, y[:, part].astype(np.float64), lower=True, overwrite_b=True
        )
    return y


def directions(f: NDArray, m: int) -> NDArray:
    """Return the m leading eigenvectors of `f.T @ f` as columns, zero beyond its rank.

    Args:
      f: (s, M).
      m: the number of columns, at most M.

    Returns:
      (M, m) with the dtype of `f`: orthonormal columns, ordered by falling eigenvalue.

    >>> import numpy as np
    >>> from jax_ntk_sketch.features._principal_directions import directions
    >>> f = np.diag([1.0, 3.0, 2.0])[:2]
    >>> np.abs(directions(f, 3)).round(6)
    array([[0., 1., 0.],
           [1., 0., 0.],
           [0., 0., 0.]])
    """
    values, vectors = _leading(_gram(f), min(m, len(f)))
    kept = values > _RANK_TOLERANCE * max(float(values[0]), _TINY)
    scaled = vectors[:, kept] / np.sqrt(values[kept])
    out = np.zeros((f.shape[1], m), f.dtype)
    for start in range(0, f.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        out[part, : kept.sum()] = f[:, part].T.astype(np.float64) @ scaled
    return out


def _gram(f: NDArray) -> NDArray:
    """Return `f @ f.T` in float64, computed in blocks of columns."""
    out = np.zeros((len(f),) * 2)
    for start in range(0, f.shape[1], _BLOCK):
        block = f[:, start : start + _BLOCK].astype(np.float64)
        out += block @ block.T
    return out


def _leading(h: NDArray, m: int) -> tuple[NDArray, NDArray]:
    """Return the m largest eigenvalues of a psd matrix, falling, and their vectors.

    If m is small, subspace iteration is several times faster than a decomposition of
    the whole matrix. The subspace is found in float32; eigenvectors need float64.
    """
    size = m + m // _SPARE + 8
    basis = None
    if 3 * size < len(h):
        single = (h / max(np.trace(h), _TINY)).astype(np.float32)
        basis = np.random.default_rng(0).standard_normal((len(h), size), np.float32)
        for _ in range(_STEPS):
            # Any well-conditioned basis works. The L of an LU factorization is one at
            # any rank, and it takes much less time than a QR on a busy machine.
            basis = scipy.linalg.lu(single @ basis, permute_l=True)[0]
        basis = basis.astype(np.float64)
        lower = np.linalg.cholesky(basis.T @ basis)
        basis = scipy.linalg.solve_triangular(lower, basis.T, lower=True).T
        h = basis.T @ h @ basis
    values, vectors = np.linalg.eigh(h)
    values, vectors = values[: -m - 1 : -1], vectors[:, : -m - 1 : -1]
    return values, vectors if basis is None else basis @ vectors
