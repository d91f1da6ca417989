"""Checks of arguments that several modules share."""

import operator

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["check_coefficients", "check_count"]


def check_coefficients(coefficients: ArrayLike, name: str) -> np.ndarray:
    """Checks the coefficients of a polynomial kernel, `sum_j c_j t^j`.

    It is positive definite in every dimension only if no coefficient is negative.

    Args:
      coefficients: of powers 0, 1, ..., (degree + 1,), finite and >= 0.
      name: what the caller's argument is called, for the message.

    Returns:
      The coefficients as a float64 NumPy array.

    Raises:
      ValueError: not one-dimensional, empty, negative, NaN or infinite.

    >>> check_coefficients([0.5, 1], "coefficients")
    array([0.5, 1. ])
    """
    try:
        array = np.asarray(coefficients, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be real numbers c_0, c_1, ..., got {coefficients!r}"
        ) from None
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"{name} must be one-dimensional and not empty, got shape {array.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if bad.size:
        index = int(bad[0])
        raise ValueError(
            f"{name} must be finite and >= 0, got {array[index]} at index {index}"
        )
    return array


def check_count(value: int, name: str, least: int = 0) -> int:
    """`value` as an int of at least `least`; TypeError or ValueError otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return number
