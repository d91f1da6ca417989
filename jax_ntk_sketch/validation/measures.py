r"""Distances between an exact kernel matrix and an approximation, in float64.

Notation: K exact, K_hat approximate, both (n, n), symmetric, on the host: a float32
or TF32 product would hide small errors in its own.
"""

from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from jax_ntk_sketch.linear_model import ridge_penalty

__all__ = [
    "centered_relative_error",
    "loglog_slope",
    "max_abs_error",
    "relative_error",
    "spectral_error",
]

Matrix = NDArray[np.float64]


def relative_error(K: ArrayLike, K_hat: ArrayLike) -> float:
    r"""The relative Frobenius error :math:`\|K - \hat K\|_F / \|K\|_F`.

    Args:
      K, K_hat: (n, n), finite.

    Raises:
      ValueError: matrices of other or different shapes, not finite; or K is zero.

    >>> relative_error(np.eye(4), 1.5 * np.eye(4))
    0.5
    """
    return _ratio(*_matrices(K, K_hat))


def centered_relative_error(K: ArrayLike, K_hat: ArrayLike) -> float:
    r"""The relative Frobenius error of :math:`H K H`, :math:`H = I - 11^\top/n`.

    What a regressor with intercept sees: it is blind to a constant feature.

    Args:
      K, K_hat: (n, n), finite.

    Raises:
      ValueError: as for `relative_error`; or K is constant.

    >>> centered_relative_error(np.eye(4), np.eye(4) + 3.0)
    0.0
    """
    return _ratio(*(_centre(matrix) for matrix in _matrices(K, K_hat)))


def max_abs_error(K: ArrayLike, K_hat: ArrayLike) -> float:
    r"""The largest error of an entry, relative to the largest entry of K.

    :math:`\max_{ij} |K_{ij} - \hat K_{ij}| \,/\, \max_{ij} |K_{ij}|`.

    Args:
      K, K_hat: (n, n), finite.

    Raises:
      ValueError: as for `relative_error`.

    >>> max_abs_error([[2.0, 0.0], [0.0, 4.0]], [[2.0, 1.0], [1.0, 4.0]])
    0.25
    """
    K, K_hat = _matrices(K, K_hat)
    return _divide(np.abs(K - K_hat).max(), np.abs(K).max())


def spectral_error(K: ArrayLike, K_hat: ArrayLike, reg: float) -> float:
    r"""The smallest :math:`\varepsilon` such that K_hat serves ridge regression.

    .. math:: (1-\varepsilon)(K+\lambda I) \preceq \hat K + \lambda I
       \preceq (1+\varepsilon)(K+\lambda I), \qquad \lambda = \mathrm{reg} \cdot n,

    with the penalty of `jax_ntk_sketch.linear_model.ridge_penalty`. It is the largest
    absolute eigenvalue of :math:`L^{-1}(\hat K - K)L^{-\top}`, :math:`L L^\top = K +
    \lambda I`. Where it is below 1 it bounds what ridge regression loses by K_hat.

    Args:
      K: (n, n), symmetric, positive semi-definite.
      K_hat: (n, n), symmetric.
      reg: penalty per example, >= 0; 0 needs a K of full rank.

    Returns:
      A float >= 0.

    Raises:
      ValueError: as for `relative_error`; or `reg` is negative or not finite.
      numpy.linalg.LinAlgError: K + reg n I is not positive definite.

    Cost: 3 n^3 flops or so, 24 n^2 bytes.

    Source: Avron, Kapralov, Musco, Musco, Velingker, Zandieh, "Random Fourier features
    for kernel ridge regression", ICML 2017: the notion, and the bound on the risk.

    >>> round(spectral_error(np.diag([3.0, 0.0]), np.diag([3.0, 1.0]), reg=0.5), 12)
    1.0
    """
    K, K_hat = _matrices(K, K_hat)
    if not (np.isfinite(reg) and reg >= 0):
        raise ValueError(f"reg must be finite and >= 0, got {reg!r}")
    n = len(K)
    shifted = K + ridge_penalty(reg, n) * np.eye(n)
    try:
        lower = scipy.linalg.cholesky(shifted, lower=True, overwrite_a=True)
    except np.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(
            f"K + reg n I is not positive definite with reg = {reg:g}, n = {n}: K is "
            "not a kernel matrix, or rounding has left it slightly indefinite. Use a "
            "larger reg or compute K in float64"
        ) from error
    half = scipy.linalg.solve_triangular(lower, K_hat - K, lower=True)
    whitened = scipy.linalg.solve_triangular(lower, half.T, lower=True)
    values = scipy.linalg.eigvalsh((whitened + whitened.T) / 2, overwrite_a=True)
    return float(max(-values[0], values[-1], 0.0))


def loglog_slope(num_features: ArrayLike, errors: ArrayLike) -> float:
    r"""The exponent s of the least-squares fit :math:`\log e = s \log m + c`.

    Errors of independent random features fall with s = -1/2.

    Args:
      num_features: (k,) > 0, at least two different values.
      errors: (k,) > 0.

    Raises:
      ValueError: shapes or values that do not fit.

    >>> round(loglog_slope([100, 400, 1600], [0.4, 0.2, 0.1]), 6)
    -0.5
    """
    m, e = np.asarray(num_features, np.float64), np.asarray(errors, np.float64)
    if m.ndim != 1 or m.shape != e.shape or len(np.unique(m)) < 2:
        raise ValueError(
            "loglog_slope: num_features and errors must have one shape (k,), with two "
            f"different num_features at least; got {m.shape} and {e.shape}"
        )
    if not ((m > 0).all() and (e > 0).all() and np.isfinite(m * e).all()):
        raise ValueError("loglog_slope: num_features and errors must be positive")
    return float(np.polyfit(np.log(m), np.log(e), 1)[0])


def _matrices(K: Any, K_hat: Any) -> tuple[Matrix, Matrix]:
    K, K_hat = np.asarray(K, np.float64), np.asarray(K_hat, np.float64)
    if K.ndim != 2 or K.shape[0] != K.shape[1] or K.size == 0 or K.shape != K_hat.shape:
        raise ValueError(
            f"K and K_hat must have one shape (n, n), got {K.shape} and {K_hat.shape}"
        )
    for name, matrix in (("K", K), ("K_hat", K_hat)):
        if not np.isfinite(matrix).all():
            raise ValueError(f"{name} has NaN or infinite entries")
    return K, K_hat


def _ratio(K: Matrix, K_hat: Matrix) -> float:
    return _divide(np.linalg.norm(K - K_hat), np.linalg.norm(K))


def _divide(error: Any, size: Any) -> float:
    if size == 0:
        raise ValueError(
            "K is zero (or constant, if centered): no error relative to it"
        )
    return float(error / size)


def _centre(matrix: Matrix) -> Matrix:
    return matrix - matrix.mean(0) - matrix.mean(1, keepdims=True) + matrix.mean()
