"""The approximation methods: records of their hyper-parameters, no arrays.

A method is given to `jax_ntk_sketch.feature_map` as a record of this module or, for
its defaults, by name: "ntk_sketch", "ntk_random_features", "one_pass", "nystrom",
"exact", or "auto". What a method does to each layer is in `jax_ntk_sketch.rules`.
"""

import dataclasses
from typing import ClassVar

__all__ = [
    "METHODS",
    "Auto",
    "Exact",
    "Method",
    "NTKRandomFeatures",
    "NTKSketch",
    "Nystrom",
    "OnePass",
    "VarianceReduced",
    "from_name",
]


@dataclasses.dataclass(frozen=True)
class Method:
    """Base of the method records.

    Attributes:
      needs_sample: whether `init` learns from examples, given as `sample=`.
      batch_dependent: whether the features of an example depend on the batch that it
        is in; such features are comparable within one call of `apply` only.
      oversample_width: how many columns a step may have before the final compression,
        as a multiple of `num_features`; 1 means that nothing is compressed.
      max_layer_width: the largest number of columns of an activation that is tried, as
        a multiple of the columns that the network may have at its output.
    """

    needs_sample: ClassVar[bool] = False
    batch_dependent: ClassVar[bool] = False
    # Without a Dense at the end, the NTK is a part of the columns of an activation.
    max_layer_width: ClassVar[int] = 2

    @property
    def oversample_width(self) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class NTKSketch(Method):
    r"""The layer-by-layer sketch: polynomials of the arc-cosine kernels, PolySketch.

    At each `Relu`, with :math:`\hat\phi` the NNGP features divided by their known norm:
    :math:`\phi' = \bigoplus_i \sqrt{c_i} Z_i` and
    :math:`\dot\phi = \bigoplus_i \sqrt{b_i} Z_i`, where :math:`Z_i` sketches
    :math:`\hat\phi^{\otimes i}` and c, b are coefficients of kappa1 and kappa0; the NTK
    features become a TensorSRHT of :math:`\psi \otimes \dot\phi`.

    Attributes:
      degree: degree of the polynomial for kappa1, >= 1.
      derivative_degree: degree of the polynomial for kappa0, >= 1.
      coefficients: "taylor", the truncated power series, or "fit", nonnegative least
        squares on the cosines that the layer can reach (a smaller largest error, but
        a larger one where most cosines are; measured on MNIST the series is better).
      leaf: leaves of the PolySketch, see `jax_ntk_sketch.sketch.PolySketch`.
      oversample: columns before the final compression, as a multiple of
        `num_features`, >= 1; at 1 nothing is compressed. Behind flat layers exact
        columns never are: constants and, where they are at most half of
        `num_features`, those that are linear in the input.

    Bias: the error of the polynomials, and O(1/num_features) from each further layer.
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
        _check_int(self, "degree", least=1)
        _check_int(self, "derivative_degree", least=1)
        _check_choice(self, "coefficients", ("fit", "taylor"))
        _check_choice(self, "leaf", ("identity", "srht", "osnap", "count_sketch"))
        if not self.oversample >= 1:
            raise ValueError(
                f"NTKSketch: oversample must be >= 1, got {self.oversample!r}"
            )

    @property
    def oversample_width(self) -> float:
        return self.oversample


@dataclasses.dataclass(frozen=True)
class NTKRandomFeatures(Method):
    r"""Random features of kappa1 and kappa0, and a sketch of their tensor product.

    At each `Relu`: :math:`\phi' = m_1^{-1/2} \mathrm{relu}(W\phi)` and :math:`\psi'`
    estimates :math:`\psi \otimes \mathrm{step}(W_0\phi)`.

    Attributes:
      directions: rows of W: "gaussian", independent normal; "sphere", the leverage
        variant, lengths fixed; "orthogonal", Haar blocks; "hadamard", signs and
        Hadamard transforms, the fastest and within error bars the most accurate.
      antithetic: use each direction of W twice, as w and -w, which makes the linear
        half of kappa1 exact where blocks of directions are full.
      product: how :math:`\psi \otimes \mathrm{step}(W_0\phi)` is reduced:
        "tensor_srht", the published TensorSRHT; or "direct", each step feature times
        one random projection of :math:`\psi`, which is the same with the first of the
        two transforms left out (random features need no second mixing): less noise
        and less work.
      nngp_fraction: part of the columns that :math:`\phi'` gets, in (0, 1).

    Bias: none for one hidden layer ("hadamard" directions: negligible, see
    `jax_ntk_sketch.random_features`); O(1/num_features) from each further layer.
    Source: arXiv 2106.07880, Algorithm 2 and Section 3.2.
    """

    directions: str = "hadamard"
    antithetic: bool = True
    product: str = "direct"
    nngp_fraction: float = 0.5

    def __post_init__(self) -> None:
        _check_choice(
            self, "directions", ("gaussian", "sphere", "orthogonal", "hadamard")
        )
        _check_choice(self, "product", ("direct", "tensor_srht"))
        if not 0 < self.nngp_fraction < 1:
            raise ValueError(
                "NTKRandomFeatures: nngp_fraction must be between 0 and 1, got "
                f"{self.nngp_fraction!r}"
            )


@dataclasses.dataclass(frozen=True)
class OnePass(Method):
    r"""One nonnegative polynomial for the whole network, one PolySketch.

    The kernel of a fully connected network without biases between its `Relu` layers
    is :math:`|x||y| f(\cos)` of the (bias-augmented) inputs; f is fitted by a
    polynomial, the constant is one exact column, the linear part is exact where
    columns allow, and each higher power is sketched.

    Attributes:
      degree: degree of the polynomial, >= 1.
      coefficients: the polynomial: "fit", nonnegative least squares on [-1, 1], or
        "taylor", the truncated power series.
      leaf: leaves of the PolySketch, see `jax_ntk_sketch.sketch.PolySketch`.
      min_cosine: the polynomial is fitted on cosines in [min_cosine, 1]; 0 is right for
        nonnegative inputs, such as images that are not centered.

    Bias: the error of the polynomial, which the plan reports; otherwise unbiased.
    Source: the experiments of arXiv 2106.07880.
    """

    degree: int = 8
    coefficients: str = "fit"
    leaf: str = "identity"
    min_cosine: float = -1.0

    def __post_init__(self) -> None:
        _check_int(self, "degree", least=1)
        if not -1 <= self.min_cosine < 1:
            raise ValueError(
                f"OnePass: min_cosine must be in [-1, 1), got {self.min_cosine!r}"
            )
        _check_choice(self, "coefficients", ("fit", "taylor"))
        _check_choice(self, "leaf", ("identity", "srht", "osnap", "count_sketch"))


@dataclasses.dataclass(frozen=True)
class VarianceReduced(Method):
    r"""What is known exactly is carried exactly; the rest has zonal features.

    Where the kernel is a function of the cosine (fully connected, no biases between
    `Relu` layers) the whole network is one step: an exact constant, the linear part
    exact or by few rows, and features :math:`f(w \cdot u)` of rotated directions, with
    f in Gegenbauer polynomials of alternating signs. Elsewhere, convolutions included,
    it goes layer by layer: a constant channel and the channels that are linear in the
    input stay exact, both arc-cosine kernels are expanded around the cosine of the
    constant channels, and the remainder is zonal.

    Attributes:
      objective: what the columns are spent on: "regression", so that a linear model on
        the features predicts as the exact kernel machine does; or "kernel", so that
        their inner products are closest to the kernel.
      min_cosine: for objective "kernel", the least cosine of two inputs on which
        columns are spent; None for -2 / sqrt(d), below which random directions of d
        dimensions hardly fall. -1 gives centered data of low rank less bias, 0 gives
        images less noise.

    Bias: for a function of the cosine that of the truncated series, which the plan
    states, largest for (near) duplicates; directions themselves are unbiased. Layer by
    layer also that of coefficients g(a) g(a') in place of a function of a a', and of
    degrees above 6; the plan bounds both for each `Relu`, over all pairs of unit
    vectors (the bound is that of a constant image and one without any mean; measured
    on CIFAR-10 the bias is a tenth of it). Variance: `kernels.ZonalFit.variance`, to
    within 10 %.
    Source: Schoenberg (1942) for zonal expansions; the exact low degrees are those of
    :math:`\kappa_1(\alpha) = \alpha/2 + E|w\cdot u||w\cdot v|/2`.
    """

    objective: str = "regression"
    min_cosine: float | None = None

    def __post_init__(self) -> None:
        _check_choice(self, "objective", ("regression", "kernel"))
        if self.min_cosine is not None and not -1 <= self.min_cosine < 0.9:
            raise ValueError(
                "VarianceReduced: min_cosine must be in [-1, 0.9), got "
                f"{self.min_cosine!r}"
            )


@dataclasses.dataclass(frozen=True)
class Nystrom(Method):
    r"""Projections on landmarks: examples, or patches of them, of a given sample.

    Fully connected networks (`Dense`, `Relu`, `LayerNorm`, `Identity`, and `Flatten`
    first): with Z the landmarks, :math:`\phi(x) = K(x, Z) R`, K the exact kernel. Other
    networks: likewise at each `Relu`, with landmarks among the sample's patches and the
    kernels of that layer.

    Attributes:
      landmarks: how they are chosen: "rpcholesky", randomly pivoted Cholesky (Chen,
        Epperly, Tropp, Webber 2022), or "uniform".
      oversample: landmarks over columns, >= 1. Of so many the principal directions on
        the sample are kept. With 3 in place of 1, predictions from 1024 columns on
        MNIST are 28 to 40% nearer to the exact kernel machine's, and three
        convolutions on images have half the error.

    `init` takes the sample, an array of examples like those to come; a few hundred
    images are enough. With fewer examples (patches) than columns the others are
    zero.

    Cost: with c columns, fully connected, s = oversample c landmarks: O(s (d + c))
    operations per example; `init` O(N s^2) with N the examples, at most
    max(4096, 2 s) of them, chosen uniformly. Layer by layer the same for each pixel, d
    the size of a patch of the features.

    Guarantee: fully connected, the features' inner products are nowhere larger than the
    kernel: :math:`K - \Phi\Phi^\top` is positive semidefinite for any examples, and
    zero on landmarks if oversample is 1. They are biased towards zero, unlike
    those of other methods, and depend on the sample.
    Source: Williams and Seeger (2000); arXiv 2207.06503.
    """

    needs_sample: ClassVar[bool] = True

    landmarks: str = "rpcholesky"
    oversample: float = 3.0

    def __post_init__(self) -> None:
        _check_choice(self, "landmarks", ("rpcholesky", "uniform"))
        if not 1 <= self.oversample < float("inf"):
            raise ValueError(
                f"Nystrom: oversample must be finite and >= 1, got {self.oversample!r}"
            )


@dataclasses.dataclass(frozen=True)
class Auto(Method):
    """`Nystrom` where a sample allows it, else `VarianceReduced`; the plan says which.

    With a shape, or fewer examples than columns, `init` draws "variance_reduced". With
    an array of at least `num_features` examples a fully connected network gets
    "nystrom", whose features are the better regressor at equal size. Images do not:
    their landmarks are asked for by name.
    """


@dataclasses.dataclass(frozen=True)
class Exact(Method):
    """The batch's own kernel, factored at every nonlinear layer: a test oracle.

    Features depend on the whole batch: only features computed together have the
    right inner products. `num_features` is ignored; cost is cubic in the batch.
    """

    batch_dependent: ClassVar[bool] = True


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
    """The record of a method given by name (with its defaults) or as a record.

    Raises:
      ValueError: an unknown name.
      TypeError: neither a string nor a record.
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


def _check_int(record: Method, name: str, least: int) -> None:
    value = getattr(record, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{type(record).__name__}: {name} must be an integer >= {least}, "
            f"got {value!r}"
        )


def _check_choice(record: Method, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(record, name)
    if value not in choices:
        raise ValueError(
            f"{type(record).__name__}: {name} must be one of "
            f"{', '.join(map(repr, choices))}, got {value!r}"
        )
