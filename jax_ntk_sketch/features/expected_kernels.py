"""The kernels that features have in the mean, with infinitely many columns.

They are followed through a network in NumPy, for examples that are the same at all
positions. Layers of images and graphs then act as fully connected ones do: averages
change nothing. A method whose features are biased has a rule for an activation.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch.features.layers.activations import (
    cached_dual,
    duals,
    min_cosine_after,
    on_host,
)
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.methods import Method
from jax_ntk_sketch.stax.combinators import follow

# Columns after an activation. From some hundreds on their number does not matter.
_MANY_COLUMNS = 512


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The expected kernels of n examples, at one position of each.

    Attributes:
      nngp, ntk: (n, n).
      variances: the variances that the features state (`Features.nngp_diag`), (n,).
      constants, ntk_constants: the inner products of the constant columns, (n, n).
      channels: the channels of the finite network.
      dim: the columns of the NNGP features.
      min_cosine, from_features, after_dropout: as in `Spec`.
    """

    nngp: np.ndarray
    ntk: np.ndarray
    variances: np.ndarray
    constants: np.ndarray
    ntk_constants: np.ndarray
    channels: int
    dim: int
    min_cosine: float = -1.0
    from_features: bool = False
    after_dropout: bool = False

    @classmethod
    def of_inputs(cls, nngp: np.ndarray, channels: int) -> "Kernels":
        """Return the kernels of examples with these mean products."""
        zero = np.zeros_like(nngp)
        return cls(nngp, zero, np.diagonal(nngp), zero, zero, channels, channels)

    def through(
        self,
        dual: DualActivation,
        value: np.ndarray,
        slope: np.ndarray,
        variances: np.ndarray,
    ) -> "Kernels":
        """Return the kernels after an activation, given its dual kernels (n, n)."""
        return dataclasses.replace(
            self,
            nngp=value,
            ntk=self.ntk * slope,
            variances=variances,
            constants=np.zeros_like(value),
            ntk_constants=np.zeros_like(value),
            dim=_MANY_COLUMNS,
            min_cosine=min_cosine_after(dual, self.min_cosine),
        )


@functools.singledispatch
def after_activation(
    method: Method | None, dual: DualActivation, k: Kernels
) -> Kernels:
    """Return the expected kernels after an activation; None is the exact kernel.

    A method without a rule is unbiased.
    """
    value, slope, same, same_slope = on_host(
        functools.partial(duals, dual), k.nngp, k.variances
    )
    if not k.after_dropout:
        np.fill_diagonal(value, same)
        np.fill_diagonal(slope, same_slope)
    return k.through(dual, value, slope, same)


def after_network(net: stax.Layer, k: Kernels, method: Method | None) -> Kernels:
    """Return the expected kernels after a network."""
    return follow(net, k, lambda layer, k: _after_layer(layer, k, method))


@functools.singledispatch
def _after_layer(layer: stax.Layer, k: Any, method: Method | None) -> Any:
    """Return the expected kernels after a layer; by default it changes nothing."""
    return k


@_after_layer.register
def _activation(layer: stax.Activation, k: Kernels, method: Method | None) -> Kernels:
    return after_activation(method, cached_dual(layer), k)


@_after_layer.register(stax.Dense)
@_after_layer.register(stax.Conv)
@_after_layer.register(stax.ConvTranspose)
@_after_layer.register(stax.ConvLocal)
def _after_linear(layer: Any, k: Kernels, method: Method | None) -> Kernels:
    square, bias = layer.W_std**2, (layer.b_std or 0.0) ** 2
    channels = getattr(layer, "out_dim", getattr(layer, "out_chan", 1))
    # How often the NNGP kernel before is in the NTK, and the gradient of the bias.
    multiple, ntk_bias, widths = square, bias, (1, 1)
    size = math.prod(getattr(layer, "filter_shape", ()))
    if getattr(layer, "parameterization", "ntk") == "standard":
        widths = layer.s
        ntk_bias = float(layer.b_std is not None)
        multiple = k.channels / widths[0] * size
    return dataclasses.replace(
        k,
        nngp=square * k.nngp + bias,
        ntk=square * k.ntk + multiple * k.nngp + ntk_bias,
        variances=square * k.variances + bias,
        constants=square * k.constants + bias,
        ntk_constants=square * k.ntk_constants + multiple * k.constants + ntk_bias,
        channels=channels * widths[1],
        dim=k.dim * size + int(bias > 0),
    )


@_after_layer.register
def _after_attention(
    layer: stax.GlobalSelfAttention, k: Kernels, method: Method | None
) -> Kernels:
    """Return the kernels after values are averaged, whatever the weights are."""
    square, bias = (layer.W_out_std * layer.W_value_std) ** 2, (layer.b_std or 0) ** 2
    return dataclasses.replace(
        k,
        nngp=square * k.nngp + bias,
        ntk=square * (k.ntk + 2 * k.nngp) + bias,
        variances=square * k.variances + bias,
        constants=square * k.constants + bias,
        ntk_constants=square * (k.ntk_constants + 2 * k.constants) + bias,
        channels=layer.n_chan_out,
        from_features=True,
    )


@_after_layer.register(stax.AvgPool)
@_after_layer.register(stax.GlobalAvgPool)
@_after_layer.register(stax.GlobalSumPool)
@_after_layer.register(stax.Aggregate)
@_after_layer.register(stax.ImageResize)
def _after_average(layer: stax.Layer, k: Kernels, method: Method | None) -> Kernels:
    norm2 = np.diagonal(k.nngp)
    variances = norm2
    if k.after_dropout and isinstance(layer, stax.AvgPool):
        # What is dropped at different positions is independent.
        dropped = np.maximum(k.variances - norm2, 0)
        variances = norm2 + dropped / math.prod(layer.window_shape)
    return dataclasses.replace(
        k,
        variances=variances,
        from_features=True,
        min_cosine=min(k.min_cosine, 0.0),
    )


@_after_layer.register
def _after_sum_pool(layer: stax.SumPool, k: Kernels, method: Method | None) -> Kernels:
    size = float(math.prod(layer.window_shape)) ** 2
    return _scaled(_after_average(layer, k, method), np.full(len(k.nngp), size))


@_after_layer.register
def _after_layer_norm(
    layer: stax.LayerNorm, k: Kernels, method: Method | None
) -> Kernels:
    return _scaled(k, 1 / (k.variances + layer.eps))


@_after_layer.register
def _after_dropout(layer: stax.Dropout, k: Kernels, method: Method | None) -> Kernels:
    if layer.mode == "test" or layer.rate == 1:
        return k
    return dataclasses.replace(
        k, variances=k.variances / layer.rate, after_dropout=True
    )


@_after_layer.register
def _after_fan_in_sum(
    layer: stax.FanInSum, k: list[Kernels], method: Method | None
) -> Kernels:
    return _weighted_sum(k, [1.0] * len(k))


@_after_layer.register
def _after_fan_in_concat(
    layer: stax.FanInConcat, k: list[Kernels], method: Method | None
) -> Kernels:
    total = sum(one.channels for one in k)
    joined = _weighted_sum(k, [one.channels / total for one in k])
    return dataclasses.replace(joined, channels=total)


@_after_layer.register
def _after_fan_in_prod(
    layer: stax.FanInProd, k: list[Kernels], method: Method | None
) -> Kernels:
    def product(first: Kernels, second: Kernels) -> Kernels:
        zero = np.zeros_like(first.nngp)
        return dataclasses.replace(
            first,
            nngp=first.nngp * second.nngp,
            ntk=first.ntk * second.nngp + first.nngp * second.ntk,
            variances=first.variances * second.variances,
            constants=zero,
            ntk_constants=zero,
            min_cosine=-1.0,
            from_features=first.from_features or second.from_features,
            after_dropout=first.after_dropout or second.after_dropout,
        )

    return functools.reduce(product, k)


def _weighted_sum(k: list[Kernels], weights: list[float]) -> Kernels:
    def total(name: str) -> np.ndarray:
        return sum(w * getattr(one, name) for w, one in zip(weights, k, strict=True))

    return dataclasses.replace(
        k[0],
        nngp=total("nngp"),
        ntk=total("ntk"),
        variances=total("variances"),
        constants=total("constants"),
        ntk_constants=total("ntk_constants"),
        min_cosine=min(0.0, *(one.min_cosine for one in k)),
        from_features=any(one.from_features for one in k),
        after_dropout=any(one.after_dropout for one in k),
    )


def _scaled(k: Kernels, squares: np.ndarray) -> Kernels:
    """Return the kernels of features that are multiplied by the roots of `squares`."""
    outer = np.sqrt(np.outer(squares, squares))
    return dataclasses.replace(
        k,
        nngp=k.nngp * outer,
        ntk=k.ntk * outer,
        variances=k.variances * squares,
        constants=k.constants * outer,
        ntk_constants=k.ntk_constants * outer,
    )
