r"""Gegenbauer polynomials, which replace powers on a sphere of given dimension.

On the unit sphere of :math:`\mathbb R^d`, :math:`P_l` is the Gegenbauer polynomial of
degree l with :math:`P_l(1) = 1`. :math:`h_l` is its multiple that is orthonormal as a
function of :math:`t = w\cdot u` for w uniform on the sphere. For unit vectors u, v

    E h_l(w.u) h_k(w.v) = P_l(u.v) if l = k, else 0.

Everything here is NumPy in float64, for use before anything is traced.

Source: Mueller, Spherical harmonics (1966), and the three-term recurrence of orthogonal
polynomials; derived in the text of each function.
"""

import numpy as np

from jax_ntk_sketch._checks import check_size


def gegenbauer_recurrence(degree: int, dim: int) -> np.ndarray:
    r"""Return :math:`A_1, \dots, A_{degree}` of the recurrence of the :math:`h_l`.

    :math:`t h_l = A_{l+1} h_{l+1} + A_l h_{l-1}`.

    Args:
      degree: the number of coefficients, >= 1.
      dim: d, >= 2.

    Returns:
      (degree,) float64, beginning with A_1 = 1 / sqrt(d).

    Raises:
      TypeError: an argument is not an integer.
      ValueError: an argument is too small.

    >>> from jax_ntk_sketch.kernels.gegenbauer import gegenbauer_recurrence
    >>> gegenbauer_recurrence(2, 3).round(4).tolist()
    [0.5774, 0.5164]
    """
    degree = check_size("gegenbauer_recurrence", "degree", degree)
    dim = check_size("gegenbauer_recurrence", "dim", dim, 2)
    i = np.arange(1, degree + 1, dtype=float)
    # At i = 1 the general formula is 0/0 for d = 2.
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = i * (i + dim - 3) / ((2 * i + dim - 2) * (2 * i + dim - 4))
    squares[0] = 1 / dim
    return np.sqrt(squares)


def orthonormal_values(t: np.ndarray, degree: int, dim: int) -> np.ndarray:
    """Return h_0(t), ..., h_degree(t) on a new last axis."""
    a = gegenbauer_recurrence(max(degree, 1), dim)
    values = [np.ones_like(t), t / a[0]]
    for i in range(1, degree):
        values.append((t * values[-1] - a[i - 1] * values[-2]) / a[i])
    return np.stack(values[: degree + 1], axis=-1)


def gegenbauer_values(alpha: np.ndarray, degree: int, dim: int) -> np.ndarray:
    """Return P_0(alpha), ..., P_degree(alpha) on a new last axis."""
    values = [np.ones_like(alpha), alpha]
    for i in range(1, degree):
        value = (2 * i + dim - 2) * alpha * values[-1] - i * values[-2]
        values.append(value / (i + dim - 2))
    return np.stack(values[: degree + 1], axis=-1)


def gegenbauer_coefficients(c: np.ndarray, dim: int) -> np.ndarray:
    r"""Return b with :math:`\sum_l b_l P_l(\alpha) = \sum_j c_j \alpha^j`.

    Horner's scheme with
    :math:`\alpha P_l = ((l+d-2) P_{l+1} + l P_{l-1}) / (2l+d-2)`. For c >= 0 all terms
    are nonnegative, so no digits are lost.

    Args:
      c: coefficients of powers 0, 1, ..., (k,).
      dim: d, >= 2.

    Returns:
      (k,) float64.

    >>> import numpy as np
    >>> from jax_ntk_sketch.kernels.gegenbauer import gegenbauer_coefficients
    >>> gegenbauer_coefficients(np.array([0.0, 0.0, 1.0]), 4).round(4).tolist()
    [0.25, 0.0, 0.75]
    """
    b = np.zeros(len(c) + 2)
    i = np.arange(len(b))
    up = np.where(i == 0, 1.0, (i + dim - 2) / np.maximum(2 * i + dim - 2, 1))
    down = np.where(i == 0, 0.0, i / np.maximum(2 * i + dim - 2, 1))
    for value in np.asarray(c, float)[::-1]:
        raised = np.concatenate([[0.0], (b * up)[:-1]])
        lowered = np.concatenate([(b * down)[1:], [0.0]])
        b = raised + lowered
        b[0] += value
    return b[: len(c)]


def gegenbauer_quadrature(num: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Gauss nodes and weights of t = w.u, (num,) each.

    They are exact for polynomials of degree < 2 num.
    """
    a = gegenbauer_recurrence(num, dim)[: num - 1]
    nodes, vectors = np.linalg.eigh(np.diag(a, 1) + np.diag(a, -1))
    return nodes, vectors[0] ** 2
