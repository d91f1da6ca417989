r"""Principal directions of many features from one pass over them.

With :math:`\Phi` the (n, M) features, U, (M, m), spans the leading eigenvectors of
:math:`G = \Phi^\top\Phi`, which is not formed. A test matrix :math:`\Omega`, (s, M),
made of the features of s examples, is multiplied by G batch by batch, and

.. math:: G \approx Y^\top (\Omega Y^\top)^{-1} Y = F^\top F, \qquad Y = \Omega G,
   \quad F = L^{-1} Y, \quad L L^\top = \Omega Y^\top.

Examples as tests are as good as random ones and one half more power of G, for the
price of their features. Products that decide about orthogonality are in float64, on
the host; sums over batches in float32 with their carries (without them the result was
the same for 20,000 examples; they keep it so for millions).

Source: Tropp, Yurtsever, Udell, Cevher, "Fixed-rank approximation of a positive-
semidefinite matrix from streaming data" (arXiv 1706.05736), Algorithm 3.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array
from numpy.typing import NDArray

from jax_ntk_sketch._numerics import two_sum

__all__ = [
    "add_products",
    "directions",
    "factor",
    "sample_size",
    "state_bytes",
    "whiten",
]

# Sample sizes. The squared norm that is lost is 6 % above the least with 1.25 m
# examples, 2 % with 2 m, 0.4 % with 4 m (20,000 images, 256 of 2048 features).
_SAMPLE, _MORE = 4, 3072

# Directions that weigh less than this part of the heaviest are rounding.
_RANK = 1e-10

# Subspace iteration: columns beyond m, as a part of m, and steps.
_SPARE, _STEPS = 4, 4

# Columns of features that are worked on in float64 at a time.
_BLOCK = 1024

# Of a squared norm; its root is a normal float32.
_TINY = 1e-60
_PRECISION = jax.lax.Precision.HIGHEST


def sample_size(m: int) -> int:
    """How many examples make the test matrix for m directions."""
    return min(_SAMPLE * m, m + _MORE)


def state_bytes(wide: int, m: int, s: int, n: int | None) -> int:
    """The most that learning m directions of `wide` features takes at a time.

    Args:
      wide: M, the number of features.
      m: directions.
      s: tests: examples, or M where that is less.
      n: examples, None for many.
    """
    last = 4 * wide * s + 32 * s * s + 4 * wide * m
    # Tests, sums, carries, a product and what compilers keep: 20 to 24 was measured.
    return last if n is not None and n <= s else max(last, 24 * wide * s)


def whiten(sample: NDArray) -> NDArray:
    """Rows (s, M) of the span of the sample's, nearly orthonormal; overwrites it.

    Without it the condition number of :math:`\\Omega G \\Omega^\\top` would be squared,
    and directions that weigh a thousandth of the heaviest be lost in float32.
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


def add_products(sums: tuple[Array, Array], tests: Array, phi: Array) -> tuple:
    """Adds `tests @ phi.T @ phi`, (s, M), to sums held as `total + carry`."""
    left = jnp.matmul(tests, phi.T, precision=_PRECISION)
    product = jnp.matmul(left, phi, precision=_PRECISION)
    total, error = two_sum(sums[0], product)
    return total, sums[1] + error


def factor(y: NDArray, tests: NDArray) -> NDArray:
    """F (s, M) with :math:`F^\\top F \\approx G`, from `y`, :math:`\\Omega G`.

    `y` is overwritten.
    """
    core = np.zeros((len(y),) * 2)
    for start in range(0, y.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        core += y[:, part].astype(np.float64) @ tests[:, part].T.astype(np.float64)
    core = (core + core.T) / 2
    # The shift is that of the rounding of y: F^T F is below G by it, never above.
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
    """The m leading eigenvectors of `f.T @ f`, as columns; zero beyond its rank.

    Args:
      f: (s, M).
      m: at most M.

    Returns:
      (M, m), dtype of `f`, orthonormal columns by falling weight.

    >>> f = np.diag([1.0, 3.0, 2.0])[:2]
    >>> np.abs(directions(f, 3)).round(6)
    array([[0., 1., 0.],
           [1., 0., 0.],
           [0., 0., 0.]])
    """
    values, vectors = _leading(_gram(f), min(m, len(f)))
    kept = values > _RANK * max(float(values[0]), _TINY)
    scaled = vectors[:, kept] / np.sqrt(values[kept])
    out = np.zeros((f.shape[1], m), f.dtype)
    for start in range(0, f.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        out[part, : kept.sum()] = f[:, part].T.astype(np.float64) @ scaled
    return out


def _gram(f: NDArray) -> NDArray:
    """`f @ f.T` in float64, a block of columns at a time."""
    out = np.zeros((len(f),) * 2)
    for start in range(0, f.shape[1], _BLOCK):
        block = f[:, start : start + _BLOCK].astype(np.float64)
        out += block @ block.T
    return out


def _leading(h: NDArray, m: int) -> tuple[NDArray, NDArray]:
    """The m largest eigenvalues of a psd matrix, falling, and their vectors.

    Subspace iteration where m is a small part: several times faster than all of them.
    Which subspace may be found in float32; what is done in it may not.
    """
    size = m + m // _SPARE + 8
    basis = None
    if 3 * size < len(h):
        single = (h / max(np.trace(h), _TINY)).astype(np.float32)
        basis = np.random.default_rng(0).standard_normal((len(h), size), np.float32)
        for _ in range(_STEPS):
            # Any well-conditioned basis will do; the L of an LU is one at any rank,
            # and where processors are busy a QR takes up to thirty times as long.
            basis = scipy.linalg.lu(single @ basis, permute_l=True)[0]
        basis = basis.astype(np.float64)
        lower = np.linalg.cholesky(basis.T @ basis)
        basis = scipy.linalg.solve_triangular(lower, basis.T, lower=True).T
        h = basis.T @ h @ basis
    values, vectors = np.linalg.eigh(h)
    values, vectors = values[: -m - 1 : -1], vectors[:, : -m - 1 : -1]
    return values, vectors if basis is None else basis @ vectors
