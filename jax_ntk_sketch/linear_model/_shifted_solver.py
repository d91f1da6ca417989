r"""Solutions of many ridge systems with one matrix, in float64 on the host.

One orthogonal reduction :math:`G = Q T Q^\top` to tridiagonal form serves every
penalty: :math:`(G + \lambda I)^{-1} b = Q (T + \lambda I)^{-1} Q^\top b`. The
eigenvalues of T are those of G. The reduction costs 4/3 m^3 flops, an eighth of the
time of a full eigendecomposition at m = 3000. Each further penalty costs O(m^2) per
target.

Source: Eldén, "Algorithms for the regularization of ill-conditioned least squares
problems", BIT 17 (1977).
"""

import numpy as np
import scipy
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class ShiftedSolver:
    """A solver of `(matrix + penalty I) X = rhs` for one symmetric matrix.

    Args:
      matrix: (m, m) float64, symmetric and finite. It is overwritten.

    Attributes:
      eigenvalues: (m,) float64, in ascending order.

    >>> import numpy as np
    >>> from jax_ntk_sketch.linear_model._shifted_solver import ShiftedSolver
    >>> solver = ShiftedSolver(np.diag([3.0, 1.0]))
    >>> solver.eigenvalues.tolist()
    [1.0, 3.0]
    >>> solver.solve(np.ones((2, 1)), np.array([1.0])).ravel().tolist()
    [0.25, 0.5]
    """

    def __init__(self, matrix: Matrix) -> None:
        m = len(matrix)
        work, _ = scipy.linalg.lapack.dsytrd_lwork(m, lower=1)
        # The transpose of a symmetric matrix in C order is the matrix itself in Fortran
        # order, which LAPACK overwrites in place.
        packed, self._diagonal, self._off_diagonal, self._scales, _ = (
            scipy.linalg.lapack.dsytrd(
                matrix.T, lower=1, lwork=int(work), overwrite_a=1
            )
        )
        # Q = diag(1, Q1), and the reflectors below the diagonal are those of a QR
        # decomposition with orthogonal factor Q1.
        self._reflectors = np.asfortranarray(packed[1:, :-1])
        self.eigenvalues: Matrix = scipy.linalg.eigvalsh_tridiagonal(
            self._diagonal, self._off_diagonal, lapack_driver="sterf"
        )

    def solve(self, rhs: Matrix, penalties: Matrix) -> Matrix:
        """Return one solution for each penalty.

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
        band[1, :-1] = self._off_diagonal
        rotated = self._rotate(rhs, "T")
        solutions = np.empty((m, len(penalties) * t))
        for i, penalty in enumerate(penalties):
            band[0] = self._diagonal + penalty
            solutions[:, i * t : (i + 1) * t] = (
                scipy.linalg.solveh_banded(band, rotated, lower=True)
                if m > 1  # LAPACK's wrapper requires an off-diagonal
                else rotated / band[0]
            )
        solutions = self._rotate(solutions, "N")
        return np.moveaxis(solutions.reshape(m, len(penalties), t), 1, 0)

    def _rotate(self, x: Matrix, trans: str) -> Matrix:
        """Return `Q.T @ x` if `trans` is "T", `Q @ x` if it is "N"."""
        x = np.array(x, order="F")
        if len(x) > 1:
            work = 64 * max(1, x.shape[1])
            x[1:], _, info = scipy.linalg.lapack.dormqr(
                "L", trans, self._reflectors, self._scales, x[1:], work
            )
            if info:
                raise RuntimeError(f"LAPACK dormqr failed with code {info}")
        return x
