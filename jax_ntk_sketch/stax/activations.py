"""Activations: elementwise nonlinearities, with the names of Neural Tangents.

All of them keep the shape of their input, (n, ..., c).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

from jax_ntk_sketch._checks import check_flag, check_number, check_size, set_checked
from jax_ntk_sketch.stax.base import Layer, set_field

# The check of a field by its annotation.
_CHECKS: dict[Any, Callable[..., object]] = {
    float: check_number,
    int: functools.partial(check_size, least=0),
    bool: check_flag,
}


@dataclasses.dataclass(frozen=True, repr=False)
class Activation(Layer):
    """The base of the layers that act on each number alone.

    Fields that are annotated as `float`, `int` (>= 0) or `bool` are checked. The
    kernels of an activation are registered with `jax_ntk_sketch.kernels.dual`.

    Raises:
      TypeError: an argument is not a number, not an integer or not a bool.
      ValueError: a number is not finite, or an integer is negative.

    >>> from jax_ntk_sketch import stax
    >>> isinstance(stax.Relu(), stax.Activation)
    True
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type in _CHECKS:
                set_checked(self, _CHECKS[field.type], field.name)


@dataclasses.dataclass(frozen=True, repr=False)
class ABRelu(Activation):
    """The activation `a min(x, 0) + b max(x, 0)`.

    Args:
      a: the slope for x < 0.
      b: the slope for x > 0.
      do_stabilize: is given to Neural Tangents by `to_stax`. This library does not need
        it, because its formulas never multiply two variances.

    Raises:
      TypeError: a slope is not a number, or `do_stabilize` not a bool.
      ValueError: a slope is not finite.

    >>> from jax_ntk_sketch import stax
    >>> stax.ABRelu(0.1, 1.0)
    stax.ABRelu(0.1, 1.0)
    """

    a: float
    b: float
    do_stabilize: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Relu(Activation):
    """The rectifier `max(x, 0)`.

    Args:
      do_stabilize: as in `ABRelu`.

    Raises:
      TypeError: `do_stabilize` is not a bool.

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
    stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
    """

    do_stabilize: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class LeakyRelu(Activation):
    """The leaky rectifier `alpha min(x, 0) + max(x, 0)`.

    Args:
      alpha: the slope for x < 0.
      do_stabilize: as in `ABRelu`.

    Raises:
      TypeError: `alpha` is not a number, or `do_stabilize` not a bool.
      ValueError: `alpha` is not finite.

    >>> from jax_ntk_sketch import stax
    >>> stax.LeakyRelu(0.1)
    stax.LeakyRelu(0.1)
    """

    alpha: float
    do_stabilize: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Abs(Activation):
    """The absolute value `|x|`.

    Args:
      do_stabilize: as in `ABRelu`.

    Raises:
      TypeError: `do_stabilize` is not a bool.

    >>> from jax_ntk_sketch import stax
    >>> stax.Abs()
    stax.Abs()
    """

    do_stabilize: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Sign(Activation):
    """The sign, which is -1, 0 or 1.

    Its derivative is 0, and so is the NTK after it.

    >>> from jax_ntk_sketch import stax
    >>> stax.Sign()
    stax.Sign()
    """


@dataclasses.dataclass(frozen=True, repr=False)
class Monomial(Activation):
    """The monomial `x**degree`.

    Args:
      degree: an integer >= 0. Neural Tangents has kernels up to degree 5.

    Raises:
      TypeError: `degree` is not an integer.
      ValueError: `degree` is negative.

    >>> from jax_ntk_sketch import stax
    >>> stax.Monomial(3)
    stax.Monomial(3)
    """

    degree: int


@dataclasses.dataclass(frozen=True, repr=False)
class RectifiedMonomial(Activation):
    """The rectified monomial: `x**degree` for x >= 0, else 0.

    Args:
      degree: an integer >= 0; 0 is the step function and 1 the rectifier.

    Raises:
      TypeError: `degree` is not an integer.
      ValueError: `degree` is negative.

    >>> from jax_ntk_sketch import stax
    >>> stax.RectifiedMonomial(2)
    stax.RectifiedMonomial(2)
    """

    degree: int


@dataclasses.dataclass(frozen=True, repr=False)
class Polynomial(Activation):
    """The polynomial `coef[0] + coef[1] x + ... + coef[p] x**p`.

    Args:
      coef: numbers; `()` is `(0,)`, the zero function.

    Raises:
      TypeError: `coef` is not a sequence of numbers.
      ValueError: a number is not finite.

    >>> from jax_ntk_sketch import stax
    >>> stax.Polynomial((0, 1, 0.5))
    stax.Polynomial((0.0, 1.0, 0.5))
    """

    coef: tuple[float, ...]

    def __post_init__(self) -> None:
        if isinstance(self.coef, str) or not isinstance(self.coef, Iterable):
            raise TypeError(
                f"Polynomial: coef must be a sequence of numbers, got {self.coef!r}"
            )
        coef = tuple(check_number("Polynomial", "coef", c) for c in self.coef)
        set_field(self, "coef", coef or (0.0,))


@dataclasses.dataclass(frozen=True, repr=False)
class Hermite(Activation):
    """The Hermite polynomial of norm 1 under N(0, 1).

    Its kernel is `nngp**degree` for inputs of variance 1, for example after
    `LayerNorm`. At other variances this is the kernel of the polynomial scaled to be
    homogeneous, as in Neural Tangents.

    Args:
      degree: an integer >= 0.

    Raises:
      TypeError: `degree` is not an integer.
      ValueError: `degree` is negative.

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.Dense(64), stax.LayerNorm(), stax.Hermite(2))
    stax.serial(stax.Dense(64), stax.LayerNorm(), stax.Hermite(2))
    """

    degree: int


@dataclasses.dataclass(frozen=True, repr=False)
class Erf(Activation):
    """The error function `a erf(b x) + c`.

    Args:
      a, b, c: finite numbers.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is not finite.

    >>> from jax_ntk_sketch import stax
    >>> stax.Erf(b=0.5)
    stax.Erf(b=0.5)
    """

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0


@dataclasses.dataclass(frozen=True, repr=False)
class Sigmoid_like(Activation):
    """The function `erf(x / 2.4020563531719796) / 2 + 1/2`, close to the logistic one.

    >>> from jax_ntk_sketch import stax
    >>> stax.Sigmoid_like()
    stax.Sigmoid_like()
    """


@dataclasses.dataclass(frozen=True, repr=False)
class Gelu(Activation):
    """The function `x Phi(x)`, with Phi the distribution function of N(0, 1).

    Args:
      approximate: whether the finite network uses a formula with tanh. Kernels and
        features do not depend on it.

    Raises:
      TypeError: `approximate` is not a bool.

    >>> from jax_ntk_sketch import stax
    >>> stax.Gelu()
    stax.Gelu()
    """

    approximate: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Sin(Activation):
    """The sine `a sin(b x + c)`.

    Args:
      a, b, c: finite numbers.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is not finite.

    >>> from jax_ntk_sketch import stax
    >>> stax.Sin(b=0.5)
    stax.Sin(b=0.5)
    """

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0


@dataclasses.dataclass(frozen=True, repr=False)
class Cos(Activation):
    """The cosine `a cos(b x + c)`.

    Args:
      a, b, c: finite numbers.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is not finite.

    >>> from jax_ntk_sketch import stax
    >>> stax.Cos(b=0.5)
    stax.Cos(b=0.5)
    """

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0


@dataclasses.dataclass(frozen=True, repr=False)
class Rbf(Activation):
    """The function `sqrt(2) sin(sqrt(2 gamma) x + pi/4)`.

    On inputs of d channels its kernel is exp(-gamma |x - y|^2 / d).

    Args:
      gamma: a number >= 0.

    Raises:
      TypeError: `gamma` is not a number.
      ValueError: `gamma` is negative or not finite.

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.Dense(512), stax.Rbf(0.5))
    stax.serial(stax.Dense(512), stax.Rbf(gamma=0.5))
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        set_checked(self, check_number, "gamma", least=0)


@dataclasses.dataclass(frozen=True, repr=False)
class Gaussian(Activation):
    """The function `a exp(b x**2)`.

    Args:
      a: a factor.
      b: the coefficient of the square. If it is positive, kernels are finite for
        variances below 1 / (4 b), and features are NaN at larger variances.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is not finite.

    >>> from jax_ntk_sketch import stax
    >>> stax.Gaussian(b=-0.5)
    stax.Gaussian(b=-0.5)
    """

    a: float = 1.0
    b: float = -1.0


@dataclasses.dataclass(frozen=True, repr=False)
class Exp(Activation):
    """The exponential function `a exp(b x)`.

    Args:
      a, b: finite numbers.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is not finite.

    >>> from jax_ntk_sketch import stax
    >>> stax.Exp(b=0.5)
    stax.Exp(b=0.5)
    """

    a: float = 1.0
    b: float = 1.0


@dataclasses.dataclass(frozen=True, repr=False)
class Gabor(Activation):
    """The function `exp(-x**2) sin(x)`.

    >>> from jax_ntk_sketch import stax
    >>> stax.Gabor()
    stax.Gabor()
    """


@dataclasses.dataclass(frozen=True, repr=False)
class ExpNormalized(Activation):
    """The layer with the normalized Gaussian kernel `N exp(gamma (nngp / N + shift))`.

    N is the square root of the product of the two variances. A function of one number
    with this kernel does not exist, so that `to_stax` has no finite network.

    Args:
      gamma: a number >= 0.
      shift: a number that is added to the cosine; -1 leaves the variances as they are.
      do_clip: is given to Neural Tangents by `to_stax`. This library always clips
        cosines to [-1, 1].

    Raises:
      TypeError: a number or a bool has another type.
      ValueError: `gamma` is negative, or a number is not finite.

    >>> from jax_ntk_sketch import stax
    >>> stax.ExpNormalized(gamma=0.5)
    stax.ExpNormalized(gamma=0.5)
    """

    gamma: float = 1.0
    shift: float = -1.0
    do_clip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(self, check_number, "gamma", least=0)
