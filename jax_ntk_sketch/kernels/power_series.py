r"""Power series of the kernels of fully connected ReLU networks.

Everything here is NumPy in double precision, on the host. On unit vectors with
cosine `alpha`, with `L` hidden layers and `W_std = sqrt(2)` (scaling aside),

    Sigma_0 = alpha,   Sigma_l = kappa1(Sigma_{l-1})                      (NNGP)
    K_0 = alpha,       K_l = K_{l-1} kappa0(Sigma_{l-1}) + Sigma_l        (NTK)

All their Taylor coefficients are >= 0. Because `Sigma_l(0) > 0`, a truncated series
cannot be substituted into another one. The coefficients come instead from

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
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from jax_ntk_sketch import stax
from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch.kernels.arc_cosine import numpy_kappas


class ReluBlockValues(NamedTuple):
    """`ReluBlockSeries` evaluated: three arrays of the shape of the cosines."""

    nngp: np.ndarray
    ntk_additive: np.ndarray
    ntk_multiplicative: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ReluBlockSeries:
    r"""The map from the kernels before a block of layers to those after it.

    Let `N_x` and `N_z` be the NNGP kernels of two inputs with themselves before the
    block, `N = sqrt(N_x N_z)`, and `alpha` the cosine, so that `nngp_in = N alpha`.

        nngp_out = N nngp(alpha)
        ntk_out  = N ntk_additive(alpha) + ntk_in ntk_multiplicative(alpha)

    Attributes:
      nngp, ntk_additive, ntk_multiplicative: coefficients of powers 0..degree,
        (degree + 1,) float64, >= 0, read-only.
      at_one: the three functions at `alpha = 1`, exact. The truncated series lack
        `at_one - sum(coefficients)` there, which is the largest truncation error.
    """

    nngp: np.ndarray
    ntk_additive: np.ndarray
    ntk_multiplicative: np.ndarray
    at_one: ReluBlockValues


def kappa0_coefficients(degree: int) -> np.ndarray:
    r"""Return the Taylor coefficients of `kappa0` at 0.

    `kappa0(alpha) = 1/2 + sum_i c_i alpha^(2i+1) / (pi (2i+1))` with
    `c_i = (2i)! / (4^i i!^2)`.

    Args:
      degree: the last power, >= 0.

    Returns:
      Coefficients of powers 0..degree, (degree + 1,) float64, >= 0, read-only.

    Raises:
      TypeError: `degree` is not an integer.
      ValueError: `degree` is negative.

    >>> from jax_ntk_sketch.kernels import kappa0_coefficients
    >>> kappa0_coefficients(3).round(4)
    array([0.5   , 0.3183, 0.    , 0.0531])
    """
    degree = check_size("kappa0_coefficients", "degree", degree, 0)
    return _kappa_series(_identity_series(degree))[0]


def kappa1_coefficients(degree: int) -> np.ndarray:
    r"""Return the Taylor coefficients of `kappa1` at 0.

    `kappa1(alpha) = 1/pi + alpha/2 + sum_i c_i alpha^(2i+2) / (pi (2i+1) (2i+2))`
    with `c_i = (2i)! / (4^i i!^2)`.

    Args:
      degree: the last power, >= 0.

    Returns:
      Coefficients of powers 0..degree, (degree + 1,) float64, >= 0, read-only.

    Raises:
      TypeError: `degree` is not an integer.
      ValueError: `degree` is negative.

    >>> from jax_ntk_sketch.kernels import kappa1_coefficients
    >>> kappa1_coefficients(4).round(4)
    array([0.3183, 0.5   , 0.1592, 0.    , 0.0133])
    """
    degree = check_size("kappa1_coefficients", "degree", degree, 0)
    return _kappa_series(_identity_series(degree))[1]


def ntk_coefficients(depth: int, degree: int) -> np.ndarray:
    r"""Return the Taylor coefficients of the normalized NTK `K_depth(alpha)`.

    In Neural Tangents' convention, with input size d and the same `W_std` on all
    depth + 1 dense layers, without biases, the NTK of x and z is
    `(W_std^2 / 2)^depth W_std^2 / d |x| |z| K_depth(cos(x, z))`.

    Args:
      depth: number of hidden ReLU layers, >= 0.
      degree: the last power, >= 0.

    Returns:
      Coefficients of powers 0..degree, (degree + 1,) float64, >= 0, read-only. The
      whole series sums to `K_depth(1) = depth + 1`.

    Raises:
      TypeError: `depth` or `degree` is not an integer.
      ValueError: `depth` or `degree` is negative.

    Cost: O(depth degree^2) operations.

    >>> from jax_ntk_sketch.kernels import ntk_coefficients
    >>> ntk_coefficients(1, 4).round(4)
    array([0.3183, 1.    , 0.4775, 0.    , 0.0663])
    """
    depth = check_size("ntk_coefficients", "depth", depth, 0)
    degree = check_size("ntk_coefficients", "degree", degree, 0)
    return _ntk_series(depth, degree)


def relu_block_series(layers: Iterable[stax.Layer], degree: int) -> ReluBlockSeries:
    r"""Return the power series of a block of `Dense`, `Relu` and `Identity` layers.

    The block is the part of a network from its first to its last `Relu`. Linear layers
    before and after it act on features exactly and need no series.

    Args:
      layers: records in order of application, `serial` ones included; no bias.
      degree: the last power, >= 0.

    Returns:
      A `ReluBlockSeries`, all factors `W_std` included.

    Raises:
      ValueError: a layer has a bias, or is not one that is listed above.

    >>> from jax_ntk_sketch import stax
    >>> from jax_ntk_sketch.kernels.power_series import relu_block_series
    >>> block = relu_block_series([stax.Relu(), stax.Dense(9, 2**0.5), stax.Relu()], 2)
    >>> (2 * block.nngp).round(4)
    array([0.4937, 0.3016, 0.138 ])
    """
    layers = tuple(layers)
    alpha = _identity_series(check_size("relu_block_series", "degree", degree, 0))
    one = np.zeros_like(alpha)
    one[0] = 1.0
    nngp, additive, multiplicative = _propagate(
        "relu_block_series", layers, alpha, one, _kappa_series, _product
    )
    return ReluBlockSeries(
        _freeze(nngp),
        _freeze(additive),
        _freeze(multiplicative),
        at_one=relu_block_values(layers, 1.0),
    )


def relu_block_values(
    layers: Iterable[stax.Layer], alpha: npt.ArrayLike
) -> ReluBlockValues:
    r"""Return the three functions of `ReluBlockSeries` in closed form.

    Args:
      layers: as for `relu_block_series`.
      alpha: cosines in [-1, 1], any shape.

    Returns:
      Three float64 arrays of the shape of `alpha`.

    Raises:
      ValueError: a layer has a bias, or is not supported.

    >>> from jax_ntk_sketch import stax
    >>> from jax_ntk_sketch.kernels.power_series import relu_block_values
    >>> [float(value) for value in relu_block_values([stax.Relu()], 1.0)]
    [0.5, 0.0, 0.5]
    """
    alpha = np.clip(np.asarray(alpha, np.float64), -1, 1)
    one = np.ones_like(alpha)
    return ReluBlockValues(
        *_propagate("relu_block_values", layers, alpha, one, numpy_kappas, np.multiply)
    )


Kappas: TypeAlias = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _propagate(
    owner: str,
    layers: Iterable[stax.Layer],
    alpha: np.ndarray,
    one: np.ndarray,
    kappas: Kappas,
    product: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the three functions of `ReluBlockSeries`, as series or as values.

    `alpha` and `one` are the identity and the constant 1 in that form, `kappas` gives
    kappa0 and kappa1 of a function, and `product` multiplies two functions.
    """
    variance, cosine = 1.0, alpha  # nngp = variance * cosine
    additive, multiplicative = np.zeros_like(one), one
    for i, layer in enumerate(stax.walk(stax.serial(*layers))):
        if isinstance(layer, stax.Identity):
            continue
        if isinstance(layer, stax.Relu):
            slope, cosine = kappas(cosine)
            variance /= 2
            additive = product(additive, slope) / 2
            multiplicative = product(multiplicative, slope) / 2
        elif isinstance(layer, stax.Dense):
            _check_dense(owner, i, layer)
            variance *= layer.W_std**2
            additive = layer.W_std**2 * additive + variance * cosine
            multiplicative = layer.W_std**2 * multiplicative
        else:
            raise ValueError(
                f"{owner}: layer {i}, {layer!r}, is not supported; "
                "supported are Dense, Relu, Identity and serial of them"
            )
    return variance * cosine, additive, multiplicative


def _check_dense(owner: str, index: int, layer: stax.Dense) -> None:
    if layer.parameterization != "ntk":
        raise ValueError(
            f"{owner}: layer {index}, {layer!r}, is not supported; "
            'parameterization must be "ntk"'
        )
    if layer.b_std:
        raise ValueError(
            f"{owner}: layer {index}, {layer!r}, has a bias between two Relu layers, "
            "so that the kernel is not a power series in the cosine; use b_std=None, "
            'or method="ntk_sketch" or "ntk_random_features", which go layer by layer'
        )


@functools.lru_cache(maxsize=64)
def _ntk_series(depth: int, degree: int) -> np.ndarray:
    nngp = ntk = _identity_series(degree)
    for _ in range(depth):
        slope, nngp = _kappa_series(nngp)
        ntk = _freeze(_product(ntk, slope) + nngp)
    return ntk


def _kappa_series(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `kappa0(s)` and `kappa1(s)` for a series s with coefficients >= 0."""
    kappa0, kappa1 = (np.empty_like(series) for _ in range(2))
    kappa0[0], kappa1[0] = numpy_kappas(series[0])
    derivative = series[1:] * np.arange(1, series.size)
    root = _inverse_sine(series)
    kappa0[1:] = _integral(_product(derivative, root[:-1])) / np.pi
    kappa1[1:] = _integral(_product(derivative, kappa0[:-1]))
    return _freeze(kappa0), _freeze(kappa1)


def _inverse_sine(series: np.ndarray) -> np.ndarray:
    """Return `(1 - s^2)^(-1/2)` for a series s with coefficients >= 0 and s(0) < 1."""
    square = _product(series, series)
    constant = (1 - series[0]) * (1 + series[0])
    power = np.zeros_like(series)
    power[0] = constant**-0.5
    # From r p' = -r' p / 2 with r = 1 - s^2: every term is >= 0.
    for k in range(1, series.size):
        j = np.arange(1, k + 1)
        power[k] = ((k - j / 2) * square[j]) @ power[k - j] / (k * constant)
    return power


def _identity_series(degree: int) -> np.ndarray:
    """Return the series `alpha`."""
    series = np.zeros(degree + 1)
    series[1:2] = 1.0
    return _freeze(series)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.convolve(a, b)[: a.size] if a.size else a


def _integral(series: np.ndarray) -> np.ndarray:
    """Return the antiderivative's coefficients of powers 1, 2, ..."""
    return series / np.arange(1, series.size + 1)


def _freeze(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
