r"""Many ridge systems with one matrix, in float64 on the host.

One orthogonal reduction :math:`G = Q T Q^\top` to tridiagonal form serves every
penalty: :math:`(G + \lambda I)^{-1} b = Q (T + \lambda I)^{-1} Q^\top b`, and the
eigenvalues of T are those of G. It costs 4/3 m^3 flops, an eighth of the time of a
full eigendecomposition at m = 3000; each further penalty costs O(m^2) per target.

Source: Eldén, "Algorithms for the regularization of ill-conditioned least squares
problems", BIT 17 (1977).
"""

import numpy as np
import scipy
from numpy.typing import NDArray

__all__ = ["Tridiagonal"]

Matrix = NDArray[np.float64]


class Tridiagonal:
    """The reduction `Q T Q.T` of a symmetric matrix.

    Args:
      matrix: (m, m) float64, symmetric, finite. Overwritten.

    Attributes:
      eigenvalues: (m,) float64, ascending.

    >>> t = Tridiagonal(np.diag([3.0, 1.0]))
    >>> t.eigenvalues.tolist(), t.solve(np.ones((2, 1)), [1.0]).ravel().tolist()
    ([1.0, 3.0], [0.25, 0.5])
    """

    def __init__(self, matrix: Matrix):
        m = len(matrix)
        work, _ = scipy.linalg.lapack.dsytrd_lwork(m, lower=1)
        # The transpose of a symmetric matrix in C order is itself in Fortran order,
        # which LAPACK overwrites in place.
        packed, self._diagonal, self._off, self._scales, _ = scipy.linalg.lapack.dsytrd(
            matrix.T, lower=1, lwork=int(work), overwrite_a=1
        )
        # Q = diag(1, Q1), and the reflectors below the diagonal are those of a QR
        # decomposition with orthogonal factor Q1.
        self._reflectors = np.asfortranarray(packed[1:, :-1])
        self.eigenvalues: Matrix = scipy.linalg.eigvalsh_tridiagonal(
            self._diagonal, self._off, lapack_driver="sterf"
        )

    def solve(self, rhs: Matrix, penalties: Matrix) -> Matrix:
        """The solutions X of `(matrix + penalty I) X = rhs`, one per penalty.

        Args:
          rhs: (m, t) float64.
          penalties: (r,) float64.

        Returns:
          (r, m, t) float64.

        Raises:
          numpy.linalg.LinAlgError: a shifted matrix is not positive definite.
        """
        m, t = rhs.shape
        band = np.zeros((2, m))
        band[1, :-1] = self._off
        rotated = self._rotate(rhs, "T")
        solutions = np.empty((m, len(penalties) * t))
        for i, penalty in enumerate(penalties):
            band[0] = self._diagonal + penalty
            solutions[:, i * t : (i + 1) * t] = (
                scipy.linalg.solveh_banded(band, rotated, lower=True)
                if m > 1  # where LAPACK's wrapper wants an off-diagonal
                else rotated / band[0]
            )
        solutions = self._rotate(solutions, "N")
        return np.moveaxis(solutions.reshape(m, len(penalties), t), 1, 0)

    def _rotate(self, x: Matrix, trans: str) -> Matrix:
        """`Q.T @ x` or `Q @ x`."""
        x = np.array(x, order="F")
        if len(x) > 1:
            work = 64 * max(1, x.shape[1])
            x[1:], _, info = scipy.linalg.lapack.dormqr(
                "L", trans, self._reflectors, self._scales, x[1:], work
            )
            if info:
                raise RuntimeError(f"LAPACK dormqr failed with code {info}")
        return x
