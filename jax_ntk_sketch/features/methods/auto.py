"""Method "auto": the rule that chooses a method."""

import functools

from jax_ntk_sketch import stax
from jax_ntk_sketch.features.methods.nystrom.network import replaces_network
from jax_ntk_sketch.methods import Auto, Method, Nystrom, VarianceReduced


@functools.singledispatch
def resolve_method(method: Method, net: stax.Layer, has_sample: bool) -> Method:
    """Return the method that is used: the method that "auto" stands for, or `method`.

    Args:
      method: the record that the user chose.
      net: the network.
      has_sample: whether there are at least as many examples to learn from as columns.
    """
    return method


@resolve_method.register
def resolve_auto(method: Auto, net: stax.Layer, has_sample: bool) -> Method:
    """Return landmarks for a fully connected network with a sample, else our method."""
    if has_sample and replaces_network(net):
        return Nystrom()
    return VarianceReduced()
