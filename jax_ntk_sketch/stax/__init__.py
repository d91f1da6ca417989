"""The language of architectures: networks as immutable data.

Layers have the names of `neural_tangents.stax`. Each is a frozen record that can be
printed, compared, hashed and saved, and holds no arrays. `jax_ntk_sketch.feature_map`
reads a network as features, `jax_ntk_sketch.interop.neural_tangents.to_stax` as an
exact kernel and a finite network, and `jax_ntk_sketch.kernels` as power series.

Arguments have the names, the meanings and the order of Neural Tangents;
`benchmarks/LAYERS.md` lists two that are additional. Examples lie along the first axis,
and channels along the last if a layer does not state another axis.

>>> from jax_ntk_sketch import stax
>>> net = stax.serial(stax.Dense(512, W_std=2.0), stax.Relu(), stax.Dense(1))
>>> net
stax.serial(stax.Dense(512, W_std=2.0), stax.Relu(), stax.Dense(1))
>>> eval(repr(net)) == net == stax.from_json(stax.to_json(net))
True
"""

from jax_ntk_sketch.stax.activations import (
    ABRelu,
    Abs,
    Activation,
    Cos,
    Erf,
    Exp,
    ExpNormalized,
    Gabor,
    Gaussian,
    Gelu,
    Hermite,
    LeakyRelu,
    Monomial,
    Polynomial,
    Rbf,
    RectifiedMonomial,
    Relu,
    Sigmoid_like,
    Sign,
    Sin,
)
from jax_ntk_sketch.stax.attention import GlobalSelfAttention
from jax_ntk_sketch.stax.base import Layer, Serial, from_json, serial, to_json, walk
from jax_ntk_sketch.stax.combinators import (
    FanIn,
    FanInConcat,
    FanInProd,
    FanInSum,
    FanOut,
    Parallel,
    parallel,
    repeat,
)
from jax_ntk_sketch.stax.conv import Conv, ConvLocal, ConvTranspose
from jax_ntk_sketch.stax.dense import Dense
from jax_ntk_sketch.stax.elementwise import Elementwise, ElementwiseNumerical
from jax_ntk_sketch.stax.graph import Aggregate
from jax_ntk_sketch.stax.normalization import Dropout, LayerNorm
from jax_ntk_sketch.stax.pool import AvgPool, GlobalAvgPool, GlobalSumPool, SumPool
from jax_ntk_sketch.stax.shape import (
    DotGeneral,
    Flatten,
    Identity,
    ImageResize,
    Index,
    Slice,
)
from jax_ntk_sketch.stax.unsupported import REASONS as _REASONS

__all__ = [
    "ABRelu",
    "Abs",
    "Activation",
    "Aggregate",
    "AvgPool",
    "Conv",
    "ConvLocal",
    "ConvTranspose",
    "Cos",
    "Dense",
    "DotGeneral",
    "Dropout",
    "Elementwise",
    "ElementwiseNumerical",
    "Erf",
    "Exp",
    "ExpNormalized",
    "FanIn",
    "FanInConcat",
    "FanInProd",
    "FanInSum",
    "FanOut",
    "Flatten",
    "Gabor",
    "Gaussian",
    "Gelu",
    "GlobalAvgPool",
    "GlobalSelfAttention",
    "GlobalSumPool",
    "Hermite",
    "Identity",
    "ImageResize",
    "Index",
    "Layer",
    "LayerNorm",
    "LeakyRelu",
    "Monomial",
    "Parallel",
    "Polynomial",
    "Rbf",
    "RectifiedMonomial",
    "Relu",
    "Serial",
    "Sigmoid_like",
    "Sign",
    "Sin",
    "Slice",
    "SumPool",
    "from_json",
    "parallel",
    "repeat",
    "serial",
    "to_json",
    "walk",
]


def __getattr__(name: str) -> object:
    if name in _REASONS:
        raise AttributeError(f"stax.{name} is not supported: {_REASONS[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
