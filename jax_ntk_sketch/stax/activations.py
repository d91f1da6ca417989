"""Elementwise nonlinearities, named and parameterised as in Neural Tangents."""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

from jax_ntk_sketch.stax.base import Layer, positive_int, set_field

__all__ = [
    "ABRelu",
    "Abs",
    "Activation",
    "Cos",
    "Elementwise",
    "ElementwiseNumerical",
    "Erf",
    "Exp",
    "ExpNormalized",
    "Gabor",
    "Gaussian",
    "Gelu",
    "Hermite",
    "LeakyRelu",
    "Monomial",
    "Polynomial",
    "Rbf",
    "RectifiedMonomial",
    "Relu",
    "Sigmoid_like",
    "Sign",
    "Sin",
]


@dataclasses.dataclass(frozen=True, repr=False)
class Activation(Layer):
    """Base of the nonlinearities that act on each number alone.

    What one does to a Gaussian is its `jax_ntk_sketch.kernels.duals.base`.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check = _CHECKS.get(field.type)
            if check is not None:
                value = check(self, field.name, getattr(self, field.name))
                set_field(self, field.name, value)


@dataclasses.dataclass(frozen=True, repr=False)
class ABRelu(Activation):
    """`a min(x, 0) + b max(x, 0)`.

    Args:
      a: slope for x < 0.
      b: slope for x > 0.
      do_stabilize: for `to_stax`, where Neural Tangents then scales its kernels;
        features and kernels of this library never multiply two variances and need it
        not.
    """

    a: float
    b: float
    do_stabilize: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Relu(Activation):
    """The rectifier `max(x, 0)`; `do_stabilize` as in `ABRelu`."""

    do_stabilize: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class LeakyRelu(Activation):
    """`alpha min(x, 0) + max(x, 0)`; `do_stabilize` as in `ABRelu`."""

    alpha: float
    do_stabilize: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Abs(Activation):
    """`|x|`; `do_stabilize` as in `ABRelu`."""

    do_stabilize: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Sign(Activation):
    """The sign, -1, 0 or 1. Its derivative is 0, and so is the NTK behind it."""


@dataclasses.dataclass(frozen=True, repr=False)
class Monomial(Activation):
    """`x**degree`, degree >= 0. (Neural Tangents: up to 5.)"""

    degree: int


@dataclasses.dataclass(frozen=True, repr=False)
class RectifiedMonomial(Activation):
    """`x**degree` for x >= 0, else 0; degree 0 is the step, 1 the rectifier."""

    degree: int


@dataclasses.dataclass(frozen=True, repr=False)
class Polynomial(Activation):
    """`coef[0] + coef[1] x + ... + coef[n] x**n`.

    Args:
      coef: at least one number.
    """

    coef: tuple[float, ...]

    def __post_init__(self) -> None:
        if isinstance(self.coef, str) or not isinstance(self.coef, Iterable):
            raise TypeError(
                f"Polynomial: coef must be a sequence of numbers, got {self.coef!r}"
            )
        coef = tuple(_number(self, "coef", c) for c in self.coef)
        if not coef:
            raise ValueError("Polynomial: coef must not be empty; (0,) is zero")
        set_field(self, "coef", coef)


@dataclasses.dataclass(frozen=True, repr=False)
class Hermite(Activation):
    """The Hermite polynomial of a degree >= 0, of norm 1 under N(0, 1).

    As in Neural Tangents its inputs should have variance 1 (say, by `LayerNorm`): its
    kernel is `nngp**degree`. At other variances that is the kernel of the polynomial
    scaled to be homogeneous.
    """

    degree: int


@dataclasses.dataclass(frozen=True, repr=False)
class Erf(Activation):
    """`a erf(b x) + c`."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0


@dataclasses.dataclass(frozen=True, repr=False)
class Sigmoid_like(Activation):
    """`erf(x / 2.4020563531719796) / 2 + 1/2`, close to the logistic function."""


@dataclasses.dataclass(frozen=True, repr=False)
class Gelu(Activation):
    """`x Phi(x)`, Phi the distribution function of N(0, 1).

    Args:
      approximate: the finite network takes a formula with tanh; kernels do not differ.
    """

    approximate: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Sin(Activation):
    """`a sin(b x + c)`."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0


@dataclasses.dataclass(frozen=True, repr=False)
class Cos(Activation):
    """`a cos(b x + c)`."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0


@dataclasses.dataclass(frozen=True, repr=False)
class Rbf(Activation):
    """`sqrt(2) sin(sqrt(2 gamma) x + pi/4)`, of the kernel exp(-gamma |x - y|^2 / d).

    Args:
      gamma: > 0.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_zero(self, "gamma")


@dataclasses.dataclass(frozen=True, repr=False)
class Gaussian(Activation):
    """`a exp(b x**2)`.

    Args:
      a: a factor.
      b: where it is positive, kernels are finite for variances below 1 / (4 b) only;
        features of examples beyond are NaN.
    """

    a: float = 1.0
    b: float = -1.0


@dataclasses.dataclass(frozen=True, repr=False)
class Exp(Activation):
    """`a exp(b x)`."""

    a: float = 1.0
    b: float = 1.0


@dataclasses.dataclass(frozen=True, repr=False)
class Gabor(Activation):
    """`exp(-x**2) sin(x)`."""


@dataclasses.dataclass(frozen=True, repr=False)
class ExpNormalized(Activation):
    """The normalised Gaussian kernel `N exp(gamma (nngp / N + shift))`.

    N is the root of the product of the variances. There is no such function of one
    number: `to_stax` has kernels only, no finite network.

    Args:
      gamma: >= 0.
      shift: of the cosine; -1 leaves the variances as they are.
      do_clip: cosines are clipped to [-1, 1] (by this library always).
    """

    gamma: float = 1.0
    shift: float = -1.0
    do_clip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_zero(self, "gamma")


@dataclasses.dataclass(frozen=True, repr=False)
class Elementwise(Activation):
    """Any function of one number.

    A network with such a layer can be printed and compared, but not saved as JSON, and
    its `repr` names the function only.

    Args:
      fn: takes arrays of any shape to arrays of the same shape, elementwise, in
        `jax.numpy`, and can be differentiated. None if only `method="exact"` is used.
      nngp_fn: (covariance, variance 1, variance 2) to the mean of fn(u) fn(v), numbers,
        if it is known in closed form; else Gauss-Hermite quadrature is used.
      d_nngp_fn: likewise of the derivative of fn; by default the derivative of
        `nngp_fn` by the covariance.

    Raises:
      TypeError, ValueError: neither function is given, or one cannot be called.
    """

    fn: Callable | None = None
    nngp_fn: Callable | None = None
    d_nngp_fn: Callable | None = None

    def __post_init__(self) -> None:
        for name in ("fn", "nngp_fn", "d_nngp_fn"):
            _callable(self, name)
        if self.fn is None and self.nngp_fn is None:
            raise ValueError("Elementwise: give fn, or nngp_fn, or both; got neither")
        if self.d_nngp_fn is not None and self.nngp_fn is None:
            raise ValueError("Elementwise: d_nngp_fn needs nngp_fn")


@dataclasses.dataclass(frozen=True, repr=False)
class ElementwiseNumerical(Activation):
    """Any function of one number, by a Gauss-Hermite quadrature of given size.

    Args:
      fn: as for `Elementwise`.
      deg: nodes, >= 1. With 25 Neural Tangents' K(x, z) of tanh differs from K(z, x) by
        3e-5 at variances of 1.5 (NTK); features have the mean of both.
      df: derivative of fn; by default JAX's.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.
    """

    fn: Callable
    deg: int
    df: Callable | None = None

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"ElementwiseNumerical: fn must be a function: {self.fn!r}")
        _callable(self, "df")
        set_field(self, "deg", positive_int(self, "deg", self.deg))


def _number(record: Layer, name: str, value: Any) -> float:
    where = f"{type(record).__name__}: {name}"
    if isinstance(value, str | bool):
        raise TypeError(f"{where} must be a number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{where} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{where} must be finite, got {value!r}")
    return number


def _count(record: Layer, name: str, value: Any) -> int:
    where = f"{type(record).__name__}: {name}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{where} must be an integer, got {value!r}")
    number = operator.index(value)
    if number < 0:
        raise ValueError(f"{where} must be >= 0, got {value!r}")
    return number


def _flag(record: Layer, name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(
            f"{type(record).__name__}: {name} must be True or False, got {value!r}"
        )
    return value


_CHECKS: dict[Any, Callable[[Layer, str, Any], Any]] = {
    float: _number,
    int: _count,
    bool: _flag,
}


def _at_least_zero(record: Layer, name: str) -> None:
    value = getattr(record, name)
    if value < 0:
        raise ValueError(f"{type(record).__name__}: {name} must be >= 0, got {value!r}")


def _callable(record: Layer, name: str) -> None:
    value = getattr(record, name)
    if value is not None and not callable(value):
        raise TypeError(
            f"{type(record).__name__}: {name} must be a function, got {value!r}"
        )
