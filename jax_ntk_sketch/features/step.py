"""The step that one layer becomes, and the three functions that find it.

`layer_rule` dispatches on the layer, `activation_rule` on the method at an activation,
and `network_rule` on the method for a network as a whole.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch.features.state import Spec
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.methods import Method


@dataclasses.dataclass(frozen=True)
class Context:
    """What every rule is told.

    Attributes:
      method: the approximation method.
      ntk: whether the NTK is wanted, or the NNGP kernel alone.
      width: columns that a nonlinear layer may return, NNGP and NTK together.
      batch: examples in the batch, for methods whose features depend on it.
      channel_axis: of the input, counted with the batch axis; features have their
        channels last whatever it is.
    """

    method: Method
    ntk: bool
    width: int
    batch: int = 1
    channel_axis: int = -1


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a feature map: pure functions and what they cost per example.

    Attributes:
      name: for the plan.
      spec: of the features that it returns.
      init: key to parameters; a step without randomness has none. Where there is a
        `fit`, only their shapes and dtypes are right.
      fit: (key, features of a sample) to parameters, for steps that learn from data.
      error: cosines of the NNGP features that enter, (...), to the kernel of unit
        vectors there and the mean square of its error, of steps whose noise is known in
        closed form.
      apply: (parameters, features) to features, and by keyword what it `takes`; called
        by `run`.
      flops: floating-point operations.
      floats: numbers alive at once while it runs, inputs and outputs included.
      fit_floats: numbers alive at once while `fit` runs, besides its input.
      bias: gives the largest bias of the kernels of unit vectors, for the plan.
      takes: names of the arrays beside x that `apply` and `fit` read, such as
        "pattern"; a step made of others takes what they take (`taken`).
    """

    name: str
    spec: Any  # a Spec, or Branches
    apply: Callable[..., Any]
    init: Callable[[jax.Array], Any] = lambda key: ()
    flops: int = 0
    floats: int = 0
    fit: Callable[..., Any] | None = None
    error: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    fit_floats: int = 0
    bias: Callable[[], str] | None = None
    takes: tuple[str, ...] = ()

    def run(self, params: Any, f: Any, **inputs: Any) -> Any:
        """Features of the next step; of the `inputs` it is given what it takes."""
        return self.apply(params, f, **self._own(inputs))

    def learn(self, key: jax.Array, f: Any, **inputs: Any) -> Any:
        """Parameters: by `fit` where there is one, else by `init`."""
        if self.fit is None:
            return self.init(key)
        return self.fit(key, f, **self._own(inputs))

    def _own(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: inputs[name] for name in self.takes if name in inputs}


def extra_inputs(stages: Iterable[Step]) -> tuple[str, ...]:
    """What these steps take together, each name once."""
    return tuple(dict.fromkeys(name for stage in stages for name in stage.takes))


@functools.singledispatch
def layer_rule(layer: stax.Layer, spec: Any, context: Context) -> list[Step]:
    """The stages of one layer; one implementation per record type, in this package.

    Raises:
      TypeError: there is none for this record.
      ValueError: the layer cannot follow what precedes it, or the method does not
        support it.
    """
    raise TypeError(
        f"no feature rule for the layer {layer!r}; supported layers are "
        + ", ".join(sorted(t.__name__ for t in layer_rule.registry if t is not object))
    )


@functools.singledispatch
def accepts_patches(method: Method, spec: Spec, context: Context) -> bool:
    """Whether the method's `nonlinear` reads such patches from their image."""
    return False


@functools.singledispatch
def activation_rule(
    method: Method, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    """The stage of an activation; one implementation per layer-by-layer method.

    It returns at most `context.width` columns, NNGP and NTK together (NNGP alone
    where the NTK is not wanted), or the least that it can.
    """
    raise TypeError(f"method {method!r} has no rule for activations")


def layer_by_layer(net: stax.Layer, spec: Spec, context: Context) -> list[Step]:
    """The stages of `net`, layer by layer."""
    return layer_rule(stax.serial(net), spec, context)


@functools.singledispatch
def network_rule(
    method: Method, net: stax.Layer, spec: Spec, context: Context
) -> list[Step]:
    """The stages between input and output; by default those of each layer in turn.

    Methods that read the network as a whole register an implementation of their own.
    """
    return layer_by_layer(net, spec, context)
