r"""Distances between an exact kernel matrix and an approximation of it, in float64.

K is the exact matrix and K_hat the approximation; both are (n, n) and symmetric. They
are compared on the host, because products in float32 or TF32 have an error of their own
that would hide a small one.
"""

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from jax_ntk_sketch._checks import check_number

Matrix = NDArray[np.float64]


def relative_error(K: ArrayLike, K_hat: ArrayLike) -> float:
    r"""Return the relative Frobenius error :math:`\|K - \hat K\|_F / \|K\|_F`.

    Args:
      K, K_hat: (n, n), finite.

    Returns:
      A float >= 0.

    Raises:
      ValueError: the matrices are not square, of different shapes or not finite; K is
        zero.

    >>> import numpy as np
    >>> from jax_ntk_sketch import validation
    >>> validation.relative_error(np.eye(4), 1.5 * np.eye(4))
    0.5
    """
    return _relative_norm(*_matrices("relative_error", K, K_hat))


def centered_relative_error(K: ArrayLike, K_hat: ArrayLike) -> float:
    r"""Return the relative Frobenius error of :math:`H K H`, :math:`H = I - 11^\top/n`.

    A regressor with an intercept has this error: it does not see a constant feature.

    Args:
      K, K_hat: (n, n), finite.

    Returns:
      A float >= 0.

    Raises:
      ValueError: the matrices are not square, of different shapes or not finite; K is
        constant.

    >>> import numpy as np
    >>> from jax_ntk_sketch import validation
    >>> validation.centered_relative_error(np.eye(4), np.eye(4) + 3.0)
    0.0
    """
    K, K_hat = _matrices("centered_relative_error", K, K_hat)
    return _relative_norm(_center(K), _center(K_hat))


def max_abs_error(K: ArrayLike, K_hat: ArrayLike) -> float:
    r"""Return the largest error of an entry over the largest entry of K.

    .. math:: \max_{ij} |K_{ij} - \hat K_{ij}| \,/\, \max_{ij} |K_{ij}|

    Args:
      K, K_hat: (n, n), finite.

    Returns:
      A float >= 0.

    Raises:
      ValueError: the matrices are not square, of different shapes or not finite; K is
        zero.

    >>> from jax_ntk_sketch import validation
    >>> validation.max_abs_error([[2.0, 0.0], [0.0, 4.0]], [[2.0, 1.0], [1.0, 4.0]])
    0.25
    """
    K, K_hat = _matrices("max_abs_error", K, K_hat)
    return _divide(np.abs(K - K_hat).max(), np.abs(K).max())


def spectral_error(K: ArrayLike, K_hat: ArrayLike, reg: float) -> float:
    r"""Return the spectral error of K_hat, the smallest :math:`\varepsilon` with

    .. math:: (1-\varepsilon)(K+\lambda I) \preceq \hat K + \lambda I
       \preceq (1+\varepsilon)(K+\lambda I), \qquad \lambda = \mathrm{reg} \cdot n

    It is the largest absolute eigenvalue of :math:`L^{-1}(\hat K - K)L^{-\top}`, where
    :math:`L L^\top = K + \lambda I`. If it is below 1, it bounds the risk that ridge
    regression with K_hat adds to the risk with K.

    Args:
      K: (n, n), symmetric, positive semidefinite.
      K_hat: (n, n), symmetric.
      reg: the penalty per example of ridge regression, >= 0; 0 needs a K of full rank.

    Returns:
      A float >= 0.

    Raises:
      TypeError: `reg` is not a number.
      ValueError: the matrices are not square, of different shapes or not finite; `reg`
        is negative or not finite.
      numpy.linalg.LinAlgError: K + reg n I is not positive definite.

    Cost: about 3 n^3 operations and 24 n^2 bytes.
    Source: Avron, Kapralov, Musco, Musco, Velingker and Zandieh, Random Fourier
    features for kernel ridge regression, ICML 2017, which has the bound.

    >>> import numpy as np
    >>> from jax_ntk_sketch import validation
    >>> K, K_hat = np.diag([3.0, 0.0]), np.diag([3.0, 1.0])
    >>> round(validation.spectral_error(K, K_hat, reg=0.5), 12)
    1.0
    """
    K, K_hat = _matrices("spectral_error", K, K_hat)
    reg = check_number("spectral_error", "reg", reg, least=0)
    n = len(K)
    shifted = K + reg * n * np.eye(n)
    try:
        lower = scipy.linalg.cholesky(shifted, lower=True, overwrite_a=True)
    except np.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(
            "spectral_error: K + reg n I must be positive definite, but is not with "
            f"reg = {reg:g} and n = {n}; K is not a kernel matrix, or rounding made it "
            "slightly indefinite: use a larger reg, or compute K in float64"
        ) from error
    half = scipy.linalg.solve_triangular(lower, K_hat - K, lower=True)
    whitened = scipy.linalg.solve_triangular(lower, half.T, lower=True)
    values = scipy.linalg.eigvalsh((whitened + whitened.T) / 2, overwrite_a=True)
    return float(max(-values[0], values[-1], 0.0))


def loglog_slope(num_features: ArrayLike, errors: ArrayLike) -> float:
    r"""Return the exponent s of a least-squares fit :math:`\log e = s \log m + c`.

    The errors of independent random features fall with s = -1/2.

    Args:
      num_features: (k,), positive, with at least two different values.
      errors: (k,), positive.

    Returns:
      The exponent s.

    Raises:
      ValueError: the shapes differ; a value is not positive; the values of
        `num_features` are all equal.

    >>> from jax_ntk_sketch.validation.measures import loglog_slope
    >>> round(loglog_slope([100, 400, 1600], [0.4, 0.2, 0.1]), 6)
    -0.5
    """
    m, e = np.asarray(num_features, np.float64), np.asarray(errors, np.float64)
    if m.ndim != 1 or m.shape != e.shape or len(np.unique(m)) < 2:
        raise ValueError(
            "loglog_slope: num_features and errors must have one shape (k,), with at "
            f"least two different num_features, got {m.shape} and {e.shape}"
        )
    if not ((m > 0).all() and (e > 0).all() and np.isfinite(m * e).all()):
        raise ValueError(
            "loglog_slope: num_features and errors must be positive and finite, got "
            f"the smallest {m.min()} and {e.min()}"
        )
    return float(np.polyfit(np.log(m), np.log(e), 1)[0])


def _matrices(owner: str, K: ArrayLike, K_hat: ArrayLike) -> tuple[Matrix, Matrix]:
    K, K_hat = np.asarray(K, np.float64), np.asarray(K_hat, np.float64)
    if K.ndim != 2 or K.shape[0] != K.shape[1] or K.size == 0 or K.shape != K_hat.shape:
        raise ValueError(
            f"{owner}: K and K_hat must have one shape (n, n), got {K.shape} and "
            f"{K_hat.shape}"
        )
    for name, matrix in (("K", K), ("K_hat", K_hat)):
        if not np.isfinite(matrix).all():
            raise ValueError(
                f"{owner}: {name} must be finite, got NaN or infinite entries"
            )
    return K, K_hat


def _relative_norm(K: Matrix, K_hat: Matrix) -> float:
    return _divide(np.linalg.norm(K - K_hat), np.linalg.norm(K))


def _divide(error: np.floating, size: np.floating) -> float:
    if size == 0:
        raise ValueError(
            "K must not be zero, or constant if it is centered: there is no error "
            "relative to it"
        )
    return float(error / size)


def _center(matrix: Matrix) -> Matrix:
    return matrix - matrix.mean(0) - matrix.mean(1, keepdims=True) + matrix.mean()
