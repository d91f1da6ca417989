"""Fully connected networks whose kernel is a function of the cosine of two inputs."""

import dataclasses

import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch.features.state import Spec
from jax_ntk_sketch.features.step import Context, Step, layer_by_layer
from jax_ntk_sketch.kernels.power_series import relu_block_series, relu_block_values
from jax_ntk_sketch.methods import Method

__all__ = ["ZonalKernel", "before_relu", "is_zonal", "zonal_kernel"]


@dataclasses.dataclass(frozen=True)
class ZonalKernel:
    r"""The kernel of a network as :math:`N f(\cos) + c` of linear features.

    Attributes:
      prefix: the linear layers before the first Relu; N and cos are those of their
        NNGP features.
      block: the layers from there to the output, without the biases behind the last
        Relu.
      ntk: whether it is the NTK, or the NNGP kernel.
      multiple: of the NNGP kernel, that the NTK is before the first Relu.
      constant: c, from biases after the last Relu.
    """

    prefix: stax.Serial
    block: tuple[stax.Layer, ...]
    ntk: bool
    multiple: int
    constant: float

    def function(self, alpha: np.ndarray) -> np.ndarray:
        """f on cosines in [-1, 1]."""
        values = relu_block_values(list(self.block), alpha)
        if not self.ntk:
            return values.nngp
        return values.ntk_additive + self.multiple * alpha * values.ntk_multiplicative

    def series(self, degree: int) -> np.ndarray:
        """Coefficients of f's power series, powers 0..degree, >= 0."""
        series = relu_block_series(list(self.block), degree)
        if not self.ntk:
            return np.array(series.nngp)
        shifted = np.concatenate([[0.0], series.ntk_multiplicative[:-1]])
        return series.ntk_additive + self.multiple * shifted


def zonal_kernel(net: stax.Layer, ntk: bool, name: str) -> ZonalKernel | None:
    """Reads `net` as a `ZonalKernel`; None for a network without a Relu.

    Args:
      net: the network.
      ntk: for the NTK, or for the NNGP kernel.
      name: of the method, for the errors.

    Raises:
      ValueError: the network has biases where the kernel is then no function of the
        cosine, or layers other than Dense, Relu and Identity.
    """
    instead = f'method "{name}" %s; use method="variance_reduced" or "ntk_sketch"'
    layers = list(stax.walk(net))
    for layer in layers:
        if not isinstance(layer, stax.Dense | stax.Relu | stax.Identity | stax.Flatten):
            what = f"is for fully connected networks, got the layer {layer!r}"
            raise ValueError(instead % what)
        if getattr(layer, "parameterization", "ntk") != "ntk":
            what = f'is for parameterization="ntk", got {layer!r}'
            raise ValueError(instead % what)
    relus = [i for i, layer in enumerate(layers) if isinstance(layer, stax.Relu)]
    if not relus:
        return None
    for layer in layers[relus[0] :]:
        if isinstance(layer, stax.Flatten):
            what = "is for flat examples (begin with Flatten)"
            raise ValueError(instead % what)
    prefix, block = layers[: relus[0]], layers[relus[0] : relus[-1] + 1]
    dense = [layer for layer in prefix if isinstance(layer, stax.Dense)]
    for layer in [*dense[1:], *block] if ntk else block:
        if isinstance(layer, stax.Dense) and layer.b_std:
            what = (
                "needs a kernel that depends on the cosine alone, so it supports "
                "biases only on the first Dense layer and behind the last Relu; "
                f"{layer!r} has one elsewhere (b_std=None there would do)"
            )
            raise ValueError(instead % what)
    suffix: list[stax.Layer] = []
    nngp_constant, ntk_constant = 0.0, 0.0
    for layer in layers[relus[-1] + 1 :]:
        if isinstance(layer, stax.Dense):
            square = layer.W_std**2
            nngp_constant = square * nngp_constant + (layer.b_std or 0.0) ** 2
            ntk_constant = square * ntk_constant + nngp_constant
            layer = dataclasses.replace(layer, b_std=None)
        suffix.append(layer)
    return ZonalKernel(
        stax.serial(*prefix),
        (*block, *suffix),
        ntk,
        # Without biases but the first, each Dense before the first Relu adds the NNGP
        # kernel once more to the NTK, so that the entering NTK is a multiple of it.
        len(dense),
        ntk_constant if ntk else nngp_constant,
    )


def is_zonal(net: stax.Layer, ntk: bool) -> bool:
    """Whether `zonal_kernel` can read `net`, and there is a Relu."""
    try:
        return zonal_kernel(net, ntk, "one_pass") is not None
    except ValueError:
        return False


def before_relu(
    method: Method, kernel: ZonalKernel, spec: Spec, context: Context
) -> list[Step]:
    """The stages of the linear layers before the first Relu."""
    stages = layer_by_layer(
        kernel.prefix, spec, dataclasses.replace(context, wants_ntk=False)
    )
    if not (stages and stages[-1].single_spec.gaussian):
        raise ValueError("Relu must follow a linear layer such as Dense")
    if stages[-1].single_spec.shape:
        raise ValueError(
            f"{method} is for flat examples, but the first Relu still has spatial "
            f"axes, of sizes {stages[-1].single_spec.shape}: begin with Flatten"
        )
    return stages
