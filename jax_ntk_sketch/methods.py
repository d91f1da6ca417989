"""The approximation methods, as frozen records of their hyper-parameters.

`jax_ntk_sketch.feature_map` takes a method as a record of this module or, with its
defaults, by name:

* "variance_reduced": keeps the constant and linear parts of a kernel exact. It is the
  first choice without data.
* "nystrom": learns landmarks from a sample. It is usually the best regressor for fully
  connected networks, and its kernel is biased toward zero.
* "ntk_random_features": the published random features. They are the fastest on images,
  and the only ones without a bias for one hidden layer.
* "ntk_sketch": the published polynomial sketch, layer by layer.
* "one_pass": one polynomial for a whole fully connected `Relu` network.
* "exact": factors the kernel of the batch. It is an oracle for tests.
* "auto": the one of these without data that suits the network and the size; see `Auto`.

The code of a method is in the file or folder of that name in
`jax_ntk_sketch.features.methods`.
"""

import dataclasses
from typing import ClassVar

from jax_ntk_sketch._checks import check_choice, check_number, set_checked, set_sizes

__all__ = [
    "Auto",
    "Exact",
    "Method",
    "NTKRandomFeatures",
    "NTKSketch",
    "Nystrom",
    "OnePass",
    "VarianceReduced",
]


# The leaves of a `PolySketch`, and the directions of random features.
_LEAVES = ("identity", "srht", "osnap", "count_sketch")
_DIRECTIONS = ("gaussian", "sphere", "orthogonal", "hadamard")


@dataclasses.dataclass(frozen=True)
class Method:
    """The base of the method records.

    Attributes:
      needs_sample: whether `init` learns from examples, given as `sample=`.
      batch_dependent: whether the features of an example depend on the batch that it
        is in; such features are comparable within one call of `apply` only.
      takes_scales: whether the scales of the network may be traced: features are then
        functions of the numbers `fmap.scales()`.
      oversample_width: how many columns a step may have before the final compression,
        as a multiple of `num_features`; 1 means that nothing is compressed.
      max_layer_width: the largest number of columns of an activation that is tried, as
        a multiple of the columns that the network may have at its output.
    """

    needs_sample: ClassVar[bool] = False
    batch_dependent: ClassVar[bool] = False
    takes_scales: ClassVar[bool] = False
    # Without a Dense at the end, the NTK is a part of the columns of an activation.
    max_layer_width: ClassVar[int] = 2

    @property
    def oversample_width(self) -> float:
        """The columns of a step before the final compression, over `num_features`."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class NTKSketch(Method):
    r"""Polynomials of the dual kernels, sketched by `PolySketch` at each activation.

    With :math:`\hat\phi` the NNGP features over their norm, an activation returns
    :math:`\phi' = \bigoplus_i \sqrt{c_i} Z_i`, where :math:`Z_i` sketches
    :math:`\hat\phi^{\otimes i}`. The derivative has
    :math:`\dot\phi = \bigoplus_i \sqrt{b_i} Z_i`, and the NTK features become a
    `TensorSRHT` of :math:`\psi \otimes \dot\phi`. For `Relu`, c and b are the
    coefficients of kappa1 and kappa0.

    Attributes:
      degree: the degree of the polynomial of the activation, >= 1.
      derivative_degree: the degree of the polynomial of its derivative, >= 1.
      coefficients: "taylor" truncates the power series. "fit" solves nonnegative least
        squares on the cosines that the layer can reach. Its bias is 2 to 4 times
        smaller from two hidden layers on, and its noise is larger: at 512 to 2048
        columns "taylor" has the smaller error of the kernel and of a regressor.
      leaf: the leaves of the sketch, see `jax_ntk_sketch.sketch.PolySketch`.
      oversample: the number of columns before the final compression, as a multiple of
        `num_features`, >= 1. With 1 nothing is compressed. After flat layers exact
        columns are not compressed either: constants always, and columns that are
        linear in the input if they are at most half of `num_features`.

    Guarantee: the bias is the error of the polynomials, and O(1/num_features) for each
    further layer. The mean gradient by x is that of the polynomials. It is off most for
    near duplicates, and higher degrees with "fit" mend it.

    Source: arXiv 2104.00415; arXiv 2106.07880, Algorithm 1.
    """

    # Linear parts of few dimensions leave most columns of an activation unused.
    max_layer_width: ClassVar[int] = 16

    degree: int = 4
    derivative_degree: int = 3
    coefficients: str = "taylor"
    leaf: str = "identity"
    oversample: float = 2.0

    def __post_init__(self) -> None:
        set_sizes(self, "degree", "derivative_degree")
        set_checked(self, check_choice, "coefficients", choices=("fit", "taylor"))
        set_checked(self, check_choice, "leaf", choices=_LEAVES)
        set_checked(self, check_number, "oversample", least=1)

    @property
    def oversample_width(self) -> float:
        """The attribute `oversample`."""
        return self.oversample


@dataclasses.dataclass(frozen=True)
class NTKRandomFeatures(Method):
    r"""Random features of an activation, and a sketch of a tensor product.

    A `Relu` returns :math:`\phi' = m_1^{-1/2} \mathrm{relu}(W\phi)`, and
    :math:`\psi'` estimates :math:`\psi \otimes \mathrm{step}(W_0\phi)`.

    Attributes:
      directions: the rows of W. "gaussian" rows are independent and normal. "sphere"
        rows have a fixed length. "orthogonal" rows are blocks of a Haar matrix.
        "hadamard" rows are products of signs and Hadamard transforms, and the fastest.
      antithetic: whether each direction is used twice, as w and -w. This makes the
        linear half of kappa1 exact where blocks of directions are full.
      product: how the tensor product is reduced. "tensor_srht" is the published
        sketch. "direct" multiplies each step feature by one random projection of
        :math:`\psi`, which has less noise and costs less.
      nngp_fraction: the part of the columns that :math:`\phi'` gets, in (0, 1).

    Guarantee: features are unbiased for one hidden layer, up to a negligible error of
    "hadamard" directions. Each further layer has a bias of O(1/num_features). So are
    gradients by x and by scales, up to the width of the bumps that are the derivatives
    of steps. Gradients of one draw have much noise.

    Source: arXiv 2106.07880, Algorithm 2 and section 3.2.
    """

    takes_scales: ClassVar[bool] = True

    directions: str = "hadamard"
    antithetic: bool = True
    product: str = "direct"
    nngp_fraction: float = 0.5

    def __post_init__(self) -> None:
        set_checked(self, check_choice, "directions", choices=_DIRECTIONS)
        set_checked(self, check_choice, "product", choices=("direct", "tensor_srht"))
        set_checked(self, check_number, "nngp_fraction", above=0, below=1)


@dataclasses.dataclass(frozen=True)
class OnePass(Method):
    r"""One nonnegative polynomial for the whole network, and one `PolySketch`.

    The kernel of a fully connected network without biases between its `Relu` layers is
    :math:`|x||y| f(\cos)` of the inputs, a bias of the first layer included. A
    polynomial is fitted to f. Its constant is one exact column, its linear part is
    exact where columns allow, and each higher power is sketched.

    Attributes:
      degree: the degree of the polynomial, >= 1.
      coefficients: "fit" solves nonnegative least squares on [min_cosine, 1], and
        "taylor" truncates the power series.
      leaf: the leaves of the sketch, see `jax_ntk_sketch.sketch.PolySketch`.
      min_cosine: the smallest cosine of the fit, in [-1, 1). 0 is right for nonnegative
        inputs, such as images that are not centered.

    Guarantee: features are unbiased for the kernel of the polynomial. The plan states
    its error as the bias. The mean gradient by x is that of the polynomial. It is off
    most for near duplicates, and a degree of 16 to 24 mends it.

    Source: the experiments of arXiv 2106.07880.
    """

    degree: int = 8
    coefficients: str = "fit"
    leaf: str = "identity"
    min_cosine: float = -1.0

    def __post_init__(self) -> None:
        set_sizes(self, "degree")
        set_checked(self, check_number, "min_cosine", least=-1, below=1)
        set_checked(self, check_choice, "coefficients", choices=("fit", "taylor"))
        set_checked(self, check_choice, "leaf", choices=_LEAVES)


@dataclasses.dataclass(frozen=True)
class VarianceReduced(Method):
    r"""Exact constant and linear parts, and zonal features of the rest.

    Where the kernel is a function of the cosine (fully connected networks without
    biases between `Relu` layers), the whole network is one step. It has an exact
    constant, a linear part that is exact or sketched, and features
    :math:`f(w \cdot u)` of rotated directions, with f a series of Gegenbauer
    polynomials of alternating signs. Other networks are done layer by layer: constant
    channels and channels that are linear in the input stay exact, both dual kernels are
    expanded around the cosine of the constant channels, and the remainder is zonal.

    Attributes:
      objective: what the columns are spent on. "kernel" minimizes the error of the
        kernel. "regression" spends them on low degrees: regression loses less with few
        columns for each input, about as many or fewer.
      min_cosine: for "kernel", the smallest cosine on which columns are spent, in
        [-1, 0.9). None means -2 / sqrt(d), below which random directions of d
        dimensions rarely fall. For d < 64 inputs it means that the others count a
        little, because tables are often centered and of low rank. 0 lowers the noise
        for images.

    Guarantee: for a function of the cosine the bias is that of the truncated series; it
    is largest for near duplicates. Layer by layer the degrees above 6 are left out too,
    and coefficients g(a) g(a') replace a function of a a'. The plan states the bias.
    The mean gradient by x is that of the truncated series, and the noise of one draw is
    the smallest of all methods. It is off most for near duplicates.

    Source: Schoenberg (1942) for zonal expansions; the exact low degrees are those of
    :math:`\kappa_1(\alpha) = \alpha/2 + E|w\cdot u||w\cdot v|/2`.
    """

    objective: str = "kernel"
    min_cosine: float | None = None

    def __post_init__(self) -> None:
        set_checked(self, check_choice, "objective", choices=("regression", "kernel"))
        set_checked(self, check_number, "min_cosine", least=-1, below=0.9)


@dataclasses.dataclass(frozen=True)
class Nystrom(Method):
    r"""Projections on landmarks, which are examples of a sample or patches of them.

    For fully connected networks :math:`\phi(x) = K(x, Z) R`, with Z the landmarks and K
    the exact kernel. Other networks do the same at each activation, with landmarks
    among the patches of the sample and the kernels of that layer.

    Attributes:
      landmarks: "rpcholesky" chooses landmarks by randomly pivoted Cholesky, and
        "uniform" uniformly at random.
      oversample: the number of landmarks as a multiple of the columns, >= 1. The
        principal directions on the sample are kept.
      normalize: whether all rows of the sample count alike in the choice of landmarks
        and directions, because their kernels are divided by their norms. None means
        that they do for fully connected networks, where long examples would take all,
        and not layer by layer, where dark patches matter less.

    `init` takes the sample, an array of examples like those to come. A few hundred
    images are enough. With fewer examples or patches than columns, the remaining
    columns are zero, and `init` warns.

    Cost: with c columns and s = oversample c landmarks, O(s (d + c)) operations for
    each example, and O(N s^2) in `init`, where N <= max(4096, 2 s) examples are drawn
    uniformly. Layer by layer this is the cost of each pixel, with d the size of a patch
    of the features.

    Guarantee: for fully connected networks :math:`K - \Phi\Phi^\top` is positive
    semidefinite for any examples, and zero on the landmarks if oversample is 1. The
    features are biased toward zero and depend on the sample. Gradients by x and by
    scales are right where x and y are landmarks. Elsewhere they are those of the
    projected kernel, which are off most for near duplicates.

    Source: Williams and Seeger (2000); Chen, Epperly, Tropp and Webber, arXiv
    2207.06503.
    """

    needs_sample: ClassVar[bool] = True
    takes_scales: ClassVar[bool] = True

    landmarks: str = "rpcholesky"
    oversample: float = 3.0
    normalize: bool | None = None

    def __post_init__(self) -> None:
        set_checked(self, check_choice, "landmarks", choices=("rpcholesky", "uniform"))
        set_checked(self, check_number, "oversample", least=1)
        if self.normalize is not None:
            set_checked(self, check_choice, "normalize", choices=(True, False))


@dataclasses.dataclass(frozen=True)
class Auto(Method):
    """The method that the library chooses without data, for a small kernel error.

    It is `VarianceReduced` with the objective "kernel" where the kernel is a function
    of the cosine. Elsewhere each layer adds noise, and the objective is "regression" up
    to 383 columns, or for flat examples 127 for each input. Flat examples have
    `NTKSketch` up to 6 columns for each input, and from 128 on `NTKRandomFeatures` if
    an activation is not linear on both sides of 0. Where the method does not support
    the network, another one of these takes its place.

    The choice never depends on a sample, so that `plan` and `init` agree. The plan
    states the method that is used. `jax_ntk_sketch.choose` chooses with data.
    """


@dataclasses.dataclass(frozen=True)
class Exact(Method):
    """The kernel of the batch itself, factored at every activation: a test oracle.

    Features depend on the whole batch, so that only features computed together have
    the right inner products. `num_features` is ignored.

    Cost: cubic in the batch size.
    """

    batch_dependent: ClassVar[bool] = True
    takes_scales: ClassVar[bool] = True


METHODS: dict[str, type[Method]] = {
    "auto": Auto,
    "ntk_sketch": NTKSketch,
    "ntk_random_features": NTKRandomFeatures,
    "one_pass": OnePass,
    "variance_reduced": VarianceReduced,
    "nystrom": Nystrom,
    "exact": Exact,
}


def from_name(method: "str | Method") -> Method:
    """Return the record of a method that is given by name or as a record.

    Raises:
      ValueError: the name is unknown.
      TypeError: `method` is neither a string nor a record.

    >>> from jax_ntk_sketch import methods
    >>> methods.from_name("one_pass").degree
    8
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(
            "method must be a string or a record of jax_ntk_sketch.methods, "
            f"got {method!r}"
        )
    if method not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"method must be one of {known}, got {method!r}")
    return METHODS[method]()
