r"""Power series of the kernels of fully connected ReLU networks.

Everything here is NumPy in double precision, on the host. On unit vectors with
cosine `alpha`, with `L` hidden layers and `W_std = sqrt(2)` (scaling aside),

    Sigma_0 = alpha,   Sigma_l = kappa1(Sigma_{l-1})                      (NNGP)
    K_0 = alpha,       K_l = K_{l-1} kappa0(Sigma_{l-1}) + Sigma_l        (NTK)

All their Taylor coefficients are >= 0. Because `Sigma_l(0) > 0`, series cannot be
composed by substitution of truncated ones; the coefficients come from

    kappa1(s)' = kappa0(s) s',        kappa0(s)' = s' / (pi sqrt(1 - s^2))

and the recurrence for a power of a series. No step subtracts, so they are accurate
to rounding at every degree.

Source: Bietti and Mairal, On the inductive bias of neural tangent kernels (2019),
equations 4 and 5 (the kernels); Knuth, The art of computer programming, volume 2,
section 4.7 (powers of series).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jax_ntk_sketch import stax
from jax_ntk_sketch._checks import check_size

__all__ = [
    "ReluBlockSeries",
    "ReluBlockValues",
    "kappa0_coefficients",
    "kappa1_coefficients",
    "kappa_values",
    "nngp_coefficients",
    "ntk_coefficients",
    "relu_block_series",
    "relu_block_values",
]


class ReluBlockValues(NamedTuple):
    """`ReluBlockSeries` evaluated: three arrays of the shape of the cosines."""

    nngp: np.ndarray
    ntk_additive: np.ndarray
    ntk_multiplicative: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ReluBlockSeries:
    r"""What a block of layers does to the kernels that enter it, as power series.

    With `nngp_in = N alpha`, `N = sqrt(N_x N_y)` the entering norms:

        nngp_out = N nngp(alpha)
        ntk_out  = N ntk_additive(alpha) + ntk_in ntk_multiplicative(alpha)

    Attributes:
      nngp, ntk_additive, ntk_multiplicative: coefficients of powers 0..degree,
        (degree + 1,) float64, >= 0, read-only.
      at_one: the three functions at `alpha = 1`, exact; what the truncated series
        lack there is `at_one - sum(coefficients)`, the largest truncation error.
    """

    nngp: np.ndarray
    ntk_additive: np.ndarray
    ntk_multiplicative: np.ndarray
    at_one: ReluBlockValues


def kappa0_coefficients(degree: int) -> np.ndarray:
    r"""Taylor coefficients of `kappa0` at 0.

    `kappa0(alpha) = 1/2 + sum_i c_i alpha^(2i+1) / (pi (2i+1))` with
    `c_i = (2i)! / (4^i i!^2)`.

    Args:
      degree: the last power, >= 0.

    Returns:
      Coefficients of powers 0..degree, (degree + 1,) float64, >= 0, read-only.

    >>> kappa0_coefficients(3).round(4)
    array([0.5   , 0.3183, 0.    , 0.0531])
    """
    return _kappas(_variable(check_size("power series", "degree", degree, 0)))[0]


def kappa1_coefficients(degree: int) -> np.ndarray:
    r"""Taylor coefficients of `kappa1` at 0.

    `kappa1(alpha) = 1/pi + alpha/2 + sum_i c_i alpha^(2i+2) / (pi (2i+1) (2i+2))`
    with `c_i = (2i)! / (4^i i!^2)`.

    Args:
      degree: the last power, >= 0.

    Returns:
      Coefficients of powers 0..degree, (degree + 1,) float64, >= 0, read-only.

    >>> kappa1_coefficients(4).round(4)
    array([0.3183, 0.5   , 0.1592, 0.    , 0.0133])
    """
    return _kappas(_variable(check_size("power series", "degree", degree, 0)))[1]


def nngp_coefficients(depth: int, degree: int) -> np.ndarray:
    r"""Taylor coefficients of the normalised NNGP kernel `Sigma_depth(alpha)`.

    Args:
      depth: number of hidden ReLU layers, >= 0.
      degree: the last power, >= 0.

    Returns:
      Coefficients of powers 0..degree, (degree + 1,) float64, >= 0, read-only. The
      whole series sums to `Sigma_depth(1) = 1`. O(depth degree^2) operations.

    >>> nngp_coefficients(2, 2).round(4)
    array([0.4937, 0.3016, 0.138 ])
    """
    return _network(
        check_size("power series", "depth", depth, 0),
        check_size("power series", "degree", degree, 0),
    )[0]


def ntk_coefficients(depth: int, degree: int) -> np.ndarray:
    r"""Taylor coefficients of the normalised NTK `K_depth(alpha)`.

    In Neural Tangents' convention, with input size d and the same `W_std` on all
    depth + 1 dense layers, without biases, the NTK of x and y is
    `(W_std^2 / 2)^depth W_std^2 / d |x| |y| K_depth(cos(x, y))`.

    Args:
      depth: number of hidden ReLU layers, >= 0.
      degree: the last power, >= 0.

    Returns:
      Coefficients of powers 0..degree, (degree + 1,) float64, >= 0, read-only. The
      whole series sums to `K_depth(1) = depth + 1`. O(depth degree^2) operations.

    >>> ntk_coefficients(1, 4).round(4)
    array([0.3183, 1.    , 0.4775, 0.    , 0.0663])
    """
    return _network(
        check_size("power series", "depth", depth, 0),
        check_size("power series", "degree", degree, 0),
    )[1]


def relu_block_series(layers: Iterable[stax.Layer], degree: int) -> ReluBlockSeries:
    r"""Power series of a block of `Dense`, `Relu` and `Identity` layers.

    For the part of a network from its first to its last `Relu`: linear layers
    before and after it act on features exactly and need no series.

    Args:
      layers: records in order of application, `serial` ones included; no bias.
      degree: the last power, >= 0.

    Returns:
      A `ReluBlockSeries`, all factors `W_std` included.

    Raises:
      ValueError: a layer with a bias, or one that is not listed above.

    >>> block = relu_block_series([stax.Relu(), stax.Dense(9, 2**0.5), stax.Relu()], 2)
    >>> (2 * block.nngp).round(4)
    array([0.4937, 0.3016, 0.138 ])
    """
    layers = tuple(layers)
    variable = _variable(check_size("power series", "degree", degree, 0))
    one = np.zeros_like(variable)
    one[0] = 1.0
    nngp, additive, multiplicative = _block(
        "relu_block_series", layers, variable, one, _kappas, _product
    )
    return ReluBlockSeries(
        _freeze(nngp),
        _freeze(additive),
        _freeze(multiplicative),
        relu_block_values(layers, 1.0),
    )


def relu_block_values(
    layers: Iterable[stax.Layer], alpha: ArrayLike
) -> ReluBlockValues:
    r"""The three functions of `ReluBlockSeries` in closed form, for fits and checks.

    Args:
      layers: as for `relu_block_series`.
      alpha: cosines in [-1, 1], any shape.

    Returns:
      Three float64 arrays of the shape of `alpha`.

    Raises:
      ValueError: a layer with a bias, or one that is not supported.

    >>> [float(value) for value in relu_block_values([stax.Relu()], 1.0)]
    [0.5, 0.0, 0.5]
    """
    alpha = np.clip(np.asarray(alpha, np.float64), -1, 1)
    one = np.ones_like(alpha)
    return ReluBlockValues(
        *_block("relu_block_values", layers, alpha, one, kappa_values, np.multiply)
    )


Kappas = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _block(
    caller: str,
    layers: Iterable[stax.Layer],
    alpha: np.ndarray,
    one: np.ndarray,
    kappas: Kappas,
    product: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The recursion over layers, for series and for values alike."""
    variance, cosine = 1.0, alpha  # nngp = variance * cosine
    additive, multiplicative = np.zeros_like(one), one
    for i, layer in enumerate(stax.walk(stax.serial(*layers))):
        if isinstance(layer, stax.Identity):
            continue
        if isinstance(layer, stax.Relu):
            zeroth, cosine = kappas(cosine)
            variance /= 2
            additive = product(additive, zeroth) / 2
            multiplicative = product(multiplicative, zeroth) / 2
        elif isinstance(layer, stax.Dense):
            if layer.parameterization != "ntk":
                raise ValueError(
                    f"{caller}: layer {i}, {layer!r}, is not supported; "
                    'parameterization must be "ntk"'
                )
            if layer.b_std:
                raise ValueError(
                    f"{caller}: layer {i}, {layer!r}, has a bias between two Relu "
                    "layers; the kernel is then not a power series in the cosine. "
                    'Use method="ntk_sketch" or "ntk_random_features", which go '
                    "layer by layer, or b_std=None"
                )
            variance *= layer.W_std**2
            additive = layer.W_std**2 * additive + variance * cosine
            multiplicative = layer.W_std**2 * multiplicative
        else:
            raise ValueError(
                f"{caller}: layer {i}, {layer!r}, is not supported; "
                "supported are Dense, Relu, Identity and serial of them"
            )
    return variance * cosine, additive, multiplicative


@functools.lru_cache(maxsize=64)
def _network(depth: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """`Sigma_depth` and `K_depth`."""
    nngp = ntk = _variable(degree)
    for _ in range(depth):
        zeroth, nngp = _kappas(nngp)
        ntk = _freeze(_product(ntk, zeroth) + nngp)
    return nngp, ntk


def _kappas(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`kappa0(s)` and `kappa1(s)` for a series s with coefficients >= 0."""
    zeroth, first = (np.empty_like(series) for _ in range(2))
    zeroth[0], first[0] = kappa_values(series[0])
    derivative = series[1:] * np.arange(1, series.size)
    root = _inverse_sine(series)
    zeroth[1:] = _integral(_product(derivative, root[:-1])) / np.pi
    first[1:] = _integral(_product(derivative, zeroth[:-1]))
    return _freeze(zeroth), _freeze(first)


def _inverse_sine(series: np.ndarray) -> np.ndarray:
    """`(1 - s^2)^(-1/2)` for a series s with coefficients >= 0 and s(0) < 1."""
    square = _product(series, series)
    constant = (1 - series[0]) * (1 + series[0])
    power = np.zeros_like(series)
    power[0] = constant**-0.5
    # From r p' = -r' p / 2 with r = 1 - s^2: every term is >= 0.
    for k in range(1, series.size):
        j = np.arange(1, k + 1)
        power[k] = ((k - j / 2) * square[j]) @ power[k - j] / (k * constant)
    return power


def kappa_values(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sine = np.sqrt((1 - alpha) * (1 + alpha))
    angle = np.arctan2(sine, -alpha)  # pi - arccos(alpha)
    return angle / np.pi, (sine + alpha * angle) / np.pi


def _variable(degree: int) -> np.ndarray:
    """The series `alpha`."""
    series = np.zeros(degree + 1)
    series[1:2] = 1.0
    return _freeze(series)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.convolve(a, b)[: a.size] if a.size else a


def _integral(series: np.ndarray) -> np.ndarray:
    """The antiderivative without its constant, coefficients of powers 1, 2, ..."""
    return series / np.arange(1, series.size + 1)


def _freeze(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
