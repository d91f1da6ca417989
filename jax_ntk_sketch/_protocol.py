"""`FeatureMap`: what all feature maps have in common."""

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jax_ntk_sketch._plan import Plan
from jax_ntk_sketch._typing import Array, Examples, Get, Key, Kind, PyTree, Shape
from jax_ntk_sketch.methods import Method


class NNGPFirst(NamedTuple):
    """The features of both kernels, in the order of `get=("nngp", "ntk")`."""

    nngp: Array
    ntk: Array


class NTKFirst(NamedTuple):
    """The features of both kernels, in the order of `get=("ntk", "nngp")`."""

    ntk: Array
    nngp: Array


# The features of both kernels, each `(n, num_features)`, in the order asked for.
KernelFeatures: TypeAlias = NNGPFirst | NTKFirst


def in_order(kinds: tuple[Kind, ...], arrays: Mapping[Kind, Any]) -> Any:
    """Return the one array, or both as `KernelFeatures` in the order of `kinds`.

    >>> from jax_ntk_sketch._protocol import in_order
    >>> in_order(("ntk", "nngp"), {"nngp": 1, "ntk": 2})
    NTKFirst(ntk=2, nngp=1)
    """
    if len(kinds) == 1:
        return arrays[kinds[0]]
    first = NNGPFirst if kinds[0] == "nngp" else NTKFirst
    return first(nngp=arrays["nngp"], ntk=arrays["ntk"])


@runtime_checkable
class FeatureMap(Protocol):
    """A frozen, hashable record with three functions: `init`, `apply` and `plan`.

    The maps of a network (`jax_ntk_sketch.feature_map`), of a kernel
    (`landmark_features`), of sparse examples (`with_sparse_inputs`) and compressed maps
    (`compress`) are feature maps. Each can be given to `transform`, to `compress`, to
    the fits of `linear_model` and to `validation.compare`. So can any other record that
    has these attributes.

    Attributes:
      num_features: the number of columns of the features of each kernel.
      get: "ntk", "nngp" or a tuple of both.
      kinds: the kernels that `get` asks for, as a tuple.
      method: the record of `jax_ntk_sketch.methods` that states what the map needs.
    """

    @property
    def num_features(self) -> int: ...

    @property
    def get(self) -> Get: ...

    @property
    def kinds(self) -> tuple[Kind, ...]: ...

    @property
    def method(self) -> Method: ...

    def init(
        self,
        key: Key,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
    ) -> PyTree:
        """Return parameters, drawn at random or learned from a sample.

        Args:
          key: a PRNG key.
          example: the shape of one example, or examples of which only the shape counts.
          sample: examples to learn from, for maps that learn from data.
        """
        ...

    def apply(
        self, params: PyTree, x: Examples, *, batch_size: int | None = None
    ) -> Array | KernelFeatures:
        """Return the features of examples.

        Args:
          params: the parameters that `init` returned.
          x: n examples.
          batch_size: examples that are worked on at a time; by default all.

        Returns:
          `(n, num_features)`; `KernelFeatures` of two such arrays if `get` is a tuple.
        """
        ...

    def plan(
        self,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
        batch_size: int | None = None,
    ) -> Plan:
        """Return sizes, operations and bytes, before anything is allocated.

        Args:
          example: the shape of one example, or examples of which only the shape counts.
          sample: the examples that `init` will be given.
          batch_size: examples that `apply` works on at a time; by default all.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Origin:
    """What parameters were made for.

    Parameters of different sizes can have equal shapes, because sketches pad. `apply`
    compares this record with the map and with the examples. In a pytree of parameters
    it is the key of a dictionary: it is static, and libraries that save pytrees find
    nothing but dictionaries, lists, tuples and arrays.

    Attributes:
      input_shape: the shape of one example.
      output_dim: the columns that the parameters were made for.

    >>> from jax_ntk_sketch._protocol import Origin
    >>> Origin((28, 28, 1), 64).node()
    {'(28, 28, 1) to 64': ()}
    >>> Origin.of({"origin": {"(28, 28, 1) to 64": ()}})
    Origin(input_shape=(28, 28, 1), output_dim=64)
    """

    input_shape: Shape
    output_dim: int

    def node(self) -> PyTree:
        """Return a pytree without arrays that states the record."""
        return {f"{self.input_shape} to {self.output_dim}": ()}

    @classmethod
    def of(cls, params: PyTree) -> "Origin | None":
        """Return the record in a dictionary of parameters; None if there is none."""
        node = params.get("origin") if isinstance(params, dict) else None
        text = next(iter(node), None) if isinstance(node, dict) else None
        if not isinstance(text, str) or not re.fullmatch(r"\([\d, ]*\) to \d+", text):
            return None
        shape, _, size = text.partition(" to ")
        return cls(ast.literal_eval(shape), int(size))


def as_kinds(get: Get) -> tuple[Kind, ...]:
    """Return the kernels that `get` asks for, as a tuple.

    >>> from jax_ntk_sketch._protocol import as_kinds
    >>> as_kinds("ntk"), as_kinds(("nngp", "ntk"))
    (('ntk',), ('nngp', 'ntk'))
    """
    return get if isinstance(get, tuple) else (get,)


def check_feature_map(owner: str, fmap: object, name: str = "fmap") -> None:
    """Check that an argument is a feature map.

    Raises:
      TypeError: it is not.
    """
    if not isinstance(fmap, FeatureMap):
        raise TypeError(
            f"{owner}: {name} must be a feature map, for example one made by "
            f"jax_ntk_sketch.feature_map, got {type(fmap).__name__}"
        )
