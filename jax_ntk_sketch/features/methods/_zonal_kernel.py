r"""Fully connected networks whose kernel is a function of the cosine of two inputs.

Let N be the product of the norms of the NNGP features of two examples before the first
`Relu`, and alpha their cosine. If no layer between two `Relu` layers has a bias, the
kernel of the network is N f(alpha) + c.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch.features.expected_kernels import Kernels, after_network
from jax_ntk_sketch.features.state import Spec
from jax_ntk_sketch.features.step import Context, Step, layer_by_layer
from jax_ntk_sketch.kernels.power_series import relu_block_series, relu_block_values
from jax_ntk_sketch.methods import Method


@dataclasses.dataclass(frozen=True)
class ZonalKernel:
    r"""The kernel :math:`N f(\alpha) + c` of a network.

    Attributes:
      kind: "nngp" or "ntk".
      prefix: the linear layers before the first `Relu`.
      block: the layers from the first `Relu` on, without the biases after the last one.
      ntk_multiple: the NTK before the first `Relu`, as a multiple of the NNGP kernel.
      constant: c, from biases after the last `Relu`.
    """

    kind: Kind
    prefix: stax.Serial
    block: tuple[stax.Layer, ...]
    ntk_multiple: int
    constant: float

    def function(self, alpha: np.ndarray) -> np.ndarray:
        """Return f at cosines in [-1, 1], any shape."""
        values = relu_block_values(self.block, alpha)
        if self.kind == "nngp":
            return values.nngp
        entering = self.ntk_multiple * alpha
        return values.ntk_additive + entering * values.ntk_multiplicative

    def of_inputs(
        self, k: Kernels, function: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Return the kernel (n, n) of inputs with another function in place of f."""
        entering = after_network(self.prefix, k, None)
        norms = np.sqrt(np.outer(entering.variances, entering.variances))
        alpha = np.divide(
            entering.nngp, norms, where=norms > 0, out=np.zeros_like(norms)
        )
        return norms * function(np.clip(alpha, -1, 1)) + self.constant

    def series(self, degree: int) -> np.ndarray:
        """Return the coefficients >= 0 of f's power series, powers 0..degree."""
        series = relu_block_series(self.block, degree)
        if self.kind == "nngp":
            return np.array(series.nngp)
        shifted = np.concatenate([[0.0], series.ntk_multiplicative[:-1]])
        return series.ntk_additive + self.ntk_multiple * shifted


def why_not_zonal(net: stax.Layer, kind: Kind) -> str | None:
    """Return why `zonal_kernel` cannot read `net`, for errors; None if it can.

    The reason continues a sentence that begins with the name of a method.
    """
    layers = list(stax.walk(net))
    for layer in layers:
        if not isinstance(layer, stax.Dense | stax.Relu | stax.Identity | stax.Flatten):
            return (
                "is for fully connected networks of Dense, Relu and Identity layers, "
                f"got {layer!r}"
            )
        if getattr(layer, "parameterization", "ntk") != "ntk":
            return f'is for parameterization="ntk", got {layer!r}'
    prefix, block, suffix = _split_at_relus(layers)
    if any(isinstance(layer, stax.Flatten) for layer in (*block, *suffix)):
        return "is for flat examples (begin with Flatten), got Flatten after a Relu"
    dense = [layer for layer in prefix if isinstance(layer, stax.Dense)]
    for layer in (*dense[1:], *block) if kind == "ntk" and block else block:
        if isinstance(layer, stax.Dense) and layer.b_std:
            return (
                "needs a kernel that depends on the cosine alone: only the first Dense "
                "layer and those after the last Relu may have a bias, got "
                f"{layer!r} between them (b_std=None there is supported)"
            )
    return None


def zonal_kernel(net: stax.Layer, kind: Kind) -> ZonalKernel | None:
    """Read a network for which `why_not_zonal` is None; None if it has no `Relu`."""
    prefix, block, suffix = _split_at_relus(list(stax.walk(net)))
    if not block:
        return None
    unbiased: list[stax.Layer] = []
    nngp_constant, ntk_constant = 0.0, 0.0
    for layer in suffix:
        if isinstance(layer, stax.Dense):
            square = layer.W_std**2
            nngp_constant = square * nngp_constant + (layer.b_std or 0.0) ** 2
            ntk_constant = square * ntk_constant + nngp_constant
            layer = dataclasses.replace(layer, b_std=None)
        unbiased.append(layer)
    return ZonalKernel(
        kind,
        prefix=stax.serial(*prefix),
        block=(*block, *unbiased),
        # If only the first Dense has a bias, each Dense before the first Relu adds the
        # NNGP kernel once to the NTK, so that the entering NTK is a multiple of it.
        ntk_multiple=sum(isinstance(layer, stax.Dense) for layer in prefix),
        constant=ntk_constant if kind == "ntk" else nngp_constant,
    )


def _split_at_relus(
    layers: list[stax.Layer],
) -> tuple[list[stax.Layer], list[stax.Layer], list[stax.Layer]]:
    """Return the layers before the first `Relu`, to the last one, and after it."""
    relus = [i for i, layer in enumerate(layers) if isinstance(layer, stax.Relu)]
    if not relus:
        return layers, [], []
    return layers[: relus[0]], layers[relus[0] : relus[-1] + 1], layers[relus[-1] + 1 :]


def zonal_steps(
    method: Method,
    net: stax.Layer,
    spec: Spec,
    context: Context,
    last_step: Callable[[ZonalKernel, int, int], Step],
) -> list[Step]:
    """Return the linear layers before the first `Relu`, and one step of all others.

    A network that `zonal_kernel` cannot read has its steps layer by layer.

    Args:
      method, net, spec, context: as for `network_rule`.
      last_step: takes the kernel, the columns that enter, and `context.max_columns`.

    Raises:
      ValueError: there is no linear layer, or examples still have spatial axes.
    """
    supported = why_not_zonal(net, context.kind) is None
    kernel = zonal_kernel(net, context.kind) if supported else None
    if kernel is None:
        return layer_by_layer(net, spec, context)
    steps = layer_by_layer(
        kernel.prefix, spec, dataclasses.replace(context, wants_ntk=False)
    )
    if not (steps and steps[-1].single_spec.gaussian):
        raise ValueError(
            "feature_map: Relu must follow a linear layer such as Dense, but it is the "
            "first layer of net"
        )
    entering = steps[-1].single_spec
    if entering.shape:
        raise ValueError(
            f"feature_map: {method} is for flat examples, but the first Relu still has "
            f"spatial axes, of sizes {entering.shape}; begin with Flatten"
        )
    return [*steps, last_step(kernel, entering.nngp_dim, context.max_columns)]
