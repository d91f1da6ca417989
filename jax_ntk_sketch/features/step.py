"""`Step`, which a layer becomes, and the functions that find the steps of a network.

`layer_rule` dispatches on the layer, `activation_rule` on the method at an activation,
and `network_rule` on the method for a network as a whole.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import in_batches
from jax_ntk_sketch._plan import PlanRow
from jax_ntk_sketch._typing import Key, Kind, PyTree
from jax_ntk_sketch.features.state import AnyFeatures, Branches, Features, Spec
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.methods import Method

# The most examples of a sample that a step works on at a time, and the bytes that they
# may take if they are several.
_SAMPLE_BATCH, _SAMPLE_BYTES = 32, 2**26

# Parameters from a key alone.
Init = Callable[[Key], PyTree]


@dataclasses.dataclass(frozen=True)
class Context:
    """The settings that every rule gets besides the layer and the features before.

    Attributes:
      method: the approximation method.
      wants_ntk: whether the NTK is wanted, or the NNGP kernel alone.
      max_columns: how many columns an activation may return, NNGP and NTK together.
      batch_size: the examples of a batch, for methods whose features depend on it.
      channel_axis: the axis of the channels in the input, counted with the batch axis;
        features have their channels on the last axis.
    """

    method: Method
    wants_ntk: bool
    max_columns: int
    batch_size: int = 1
    channel_axis: int = -1

    @property
    def kind(self) -> Kind:
        """The kernel whose features are wanted at the end of the network."""
        return "ntk" if self.wants_ntk else "nngp"

    @property
    def keeps_all_columns(self) -> bool:
        """Whether linear layers keep all columns, or sketch them if they are too many.

        Sketches are random, which a method whose features depend on the batch is not.
        """
        return self.method.batch_dependent

    @property
    def sketch_columns(self) -> int:
        """The columns that a sketch of the features of one kernel has."""
        return max(1, self.max_columns // 2 if self.wants_ntk else self.max_columns)

    def columns_of_batch(self, spec: Spec) -> int:
        """Return the columns of features with one for each position of the batch.

        It is 0 for methods whose features do not depend on the batch.
        """
        return self.batch_size * spec.pixels if self.method.batch_dependent else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a feature map: pure functions and what they cost per example.

    Attributes:
      name: the name in the plan.
      spec: what is known of the features that the step returns.
      apply: takes parameters and features, and by keyword the `extra_inputs`, and
        returns features; it is called by `run`.
      init: takes a key and returns parameters; a step without randomness has none.
        Where there is a `fit`, only their shapes and dtypes are right.
      fit: takes a key, the features of a sample and the `extra_inputs`, and returns
        parameters, for steps that learn from data.
      flops: floating-point operations.
      live_elements: numbers in memory at once while the step runs, its inputs and
        outputs included.
      fit_elements: numbers in memory at once while `fit` runs, besides its input.
      mean: takes the `Kernels` of inputs and returns the expected kernel of the whole
        network, (n, n), for the step of a network that is read as a whole.
      error: takes cosines of the NNGP features that enter, and returns the kernel of
        unit vectors there and the mean square of its error; None where the noise is
        not known in closed form.
      extra_inputs: names of the arrays besides x that `apply` and `fit` read, such as
        "pattern".
    """

    name: str
    spec: Spec | Branches
    apply: Callable[..., PyTree]
    init: Init = lambda key: ()
    fit: Callable[..., PyTree] | None = None
    flops: int = 0
    live_elements: int = 0
    fit_elements: int = 0
    mean: Callable[[Any], np.ndarray] | None = None
    error: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    extra_inputs: tuple[str, ...] = ()

    @property
    def single_spec(self) -> Spec:
        """The spec, of a step that does not return branches."""
        assert isinstance(self.spec, Spec)
        return self.spec

    def run(self, params: PyTree, f: AnyFeatures, **inputs: PyTree) -> PyTree:
        """Return the features after this step.

        Args:
          params: the parameters, as returned by `init` or `learn`.
          f: the `Features` before this step, or a list of them in branches.
          **inputs: all extra inputs of the map; the step reads its own.
        """
        return self.apply(params, f, **self._select(inputs))

    @property
    def sample_batch(self) -> int:
        """How many examples of a sample the step works on at a time."""
        fitting = _SAMPLE_BYTES // (4 * max(self.live_elements, 1))
        return max(1, min(_SAMPLE_BATCH, fitting))

    @functools.cached_property
    def run_on_sample(self) -> Callable[..., PyTree]:
        """`run(params, f, inputs)` of a sample, some of its examples at a time.

        It is one compiled function, which lives as long as this step.
        """

        def run(params: PyTree, f: AnyFeatures, inputs: dict[str, PyTree]) -> PyTree:
            def run_rows(rows: tuple[AnyFeatures, dict[str, PyTree]]) -> PyTree:
                return self.run(params, rows[0], **rows[1])

            return in_batches(run_rows, (f, inputs), self.sample_batch)

        return jax.jit(run)

    def learn(self, key: Key, f: AnyFeatures, **inputs: PyTree) -> PyTree:
        """Return parameters, from `fit` if the step has one, else from `init`."""
        if self.fit is None:
            return self.init(key)
        return self.fit(key, f, **self._select(inputs))

    def plan_row(self, name: str) -> PlanRow:
        """Return the row of the plan, without allocating the parameters."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return PlanRow(
            name=name,
            nngp_features=self.spec.nngp_dim,
            ntk_features=self.spec.ntk_dim,
            param_bytes=sum(
                math.prod(leaf.shape) * leaf.dtype.itemsize
                for leaf in jax.tree.leaves(shapes)
            ),
            flops=self.flops,
            live_elements=self.live_elements,
        )

    def _select(self, inputs: dict[str, PyTree]) -> dict[str, PyTree]:
        return {name: inputs[name] for name in self.extra_inputs if name in inputs}


def linear_step(
    name: str,
    before: Spec,
    after: Spec,
    apply: Callable[..., Features],
    *,
    work_elements: int = 0,
    **fields: Any,
) -> Step:
    """Return a step whose input and output are in memory at once.

    Args:
      name: the name in the plan.
      before, after: what is known of its input and its output.
      apply: the function of the step.
      work_elements: how many more numbers are in memory.
      **fields: further fields of `Step`.
    """
    elements = before.live_elements() + after.live_elements() + work_elements
    return Step(name=name, spec=after, apply=apply, live_elements=elements, **fields)


def extra_inputs(steps: Iterable[Step]) -> tuple[str, ...]:
    """Return the names of all extra inputs of the steps, each name once."""
    return tuple(dict.fromkeys(name for step in steps for name in step.extra_inputs))


@functools.singledispatch
def layer_rule(
    layer: stax.Layer, spec: Spec | Branches, context: Context
) -> list[Step]:
    """Return the steps of one layer; each record type has an implementation.

    Raises:
      TypeError: this type of record has no implementation.
      ValueError: the layer cannot follow the layers before it, or the method does not
        support it.
    """
    raise TypeError(
        "feature_map: net must be made of layers that have a feature rule ("
        + ", ".join(sorted(t.__name__ for t in layer_rule.registry if t is not object))
        + f"), got {layer!r}; give a record a rule with @layer_rule.register"
    )


@functools.singledispatch
def accepts_patches(method: Method, spec: Spec, context: Context) -> bool:
    """Return whether the method's `activation_rule` reads patches from their image."""
    return False


@functools.singledispatch
def activation_rule(
    method: Method, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    """Return the step of an activation; each layer-by-layer method implements it.

    The step returns at most `context.max_columns` columns, NNGP and NTK together (NNGP
    alone if the NTK is not wanted), or as few as the method can.
    """
    raise TypeError(
        "feature_map: method must have a rule for activations, got "
        f"{method!r}; give it one with @activation_rule.register"
    )


def layer_by_layer(net: stax.Layer, spec: Spec, context: Context) -> list[Step]:
    """Return the steps of `net`, layer by layer."""
    return layer_rule(stax.serial(net), spec, context)


@functools.singledispatch
def network_rule(
    method: Method, net: stax.Layer, spec: Spec, context: Context
) -> list[Step]:
    """Return the steps between input and output; by default those of each layer.

    A method that reads the network as a whole registers an implementation.
    """
    return layer_by_layer(net, spec, context)
