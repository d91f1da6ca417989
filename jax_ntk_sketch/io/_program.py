"""Feature maps with Python functions, stored as compiled programs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jax_ntk_sketch import methods
from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch._numerics import in_batches, known_size
from jax_ntk_sketch._plan import Plan, PlanRow
from jax_ntk_sketch._protocol import FeatureMap, KernelFeatures, as_kinds, in_order
from jax_ntk_sketch._typing import (
    Array,
    ArrayLike,
    Examples,
    Get,
    Key,
    Kind,
    PyTree,
    Shape,
)
from jax_ntk_sketch.features._maps import check_shape, plan_sizes
from jax_ntk_sketch.features._transform import apply_in_parts

_PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Stored(methods.Method):
    """The method of a map that was loaded as a program."""


@dataclasses.dataclass(frozen=True, repr=False)
class ProgramFeatureMap:
    """A feature map that `load` read as a program, because it had Python functions.

    Attributes:
      text: the `repr` of the map that was saved.
      num_features: the number of columns of the features of each kernel.
      get: "ntk", "nngp" or a tuple of both.
      input_shape: the shape of one example.
      batch_size: the number of examples that the program takes.
      row: the cost of the map, by the names of `PlanRow`.
      program: a function of the list of parameters and (batch_size, *input_shape)
        float32 examples, as `jax.export` serializes it.
    """

    text: str
    num_features: int
    get: Get
    input_shape: Shape
    batch_size: int
    row: PlanRow
    program: bytes

    def __post_init__(self) -> None:
        for name in ("num_features", "batch_size"):
            check_size("load", name, getattr(self, name))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kernels that `get` asks for, as a tuple."""
        return as_kinds(self.get)

    @property
    def method(self) -> methods.Method:
        """A record without arguments."""
        return Stored()

    def __repr__(self) -> str:
        return f"<program of {self.text}>"

    def init(self, key: Key, example: Shape | Examples, **named: Any) -> NoReturn:
        """Raise, because parameters of a program cannot be drawn again.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "init: a feature map that was loaded as a program has the parameters of "
            f"its file only; make {self.text} again for others"
        )

    def apply(
        self, params: list[Array], x: ArrayLike, *, batch_size: int | None = None
    ) -> Array | KernelFeatures:
        """Return the features of examples.

        Args:
          params: the parameters of the file.
          x: real, `(n, *input_shape)`; converted to float32.
          batch_size: an upper limit of the examples that are worked on at a time. The
            program works on as many as it was compiled for, which may be more.

        Returns:
          `(n, num_features)` float32; two of them if `get` is a tuple.

        Raises:
          ValueError: x has another shape, or params are those of another file.
        """
        x = check_shape("apply", x, self.input_shape, "for which the map was saved")
        remedy, size = f"export apply of {self.text} itself", self.batch_size
        n = known_size("apply of a stored program", "examples", x.shape[0], remedy)
        rest = -n % size if n else size
        rows = jnp.pad(x.astype(jnp.float32), [(0, rest)] + [(0, 0)] * (x.ndim - 1))
        arrays = in_batches(lambda x: _called(self.program)(params, x), rows, size)
        arrays = [phi[:n] for phi in arrays]
        return in_order(self.kinds, dict(zip(self.kinds, arrays, strict=True)))

    def plan(
        self, example: Shape | Examples, *, batch_size: int | None = None, **named: Any
    ) -> Plan:
        """Return sizes, operations and bytes, before anything is allocated.

        Args:
          example: the shape of one example, or examples.
          batch_size: as `apply` takes it.
        """
        shape, count, batch = plan_sizes("plan", example, batch_size)
        return Plan(
            rows=(self.row,),
            method=repr(self.method),
            input_shape=shape,
            num_features=self.num_features * len(self.kinds),
            batch_size=batch,
            num_examples=max(count, batch),
        )


def export_map(
    fmap: FeatureMap, params: PyTree, shape: Shape
) -> tuple[ProgramFeatureMap, list[Array]]:
    """Return a map and its parameters as a program and a list of arrays.

    Raises:
      ValueError, TypeError: the map cannot be exported.
    """
    if fmap.method.batch_dependent:
        raise ValueError("its features depend on the whole batch")
    plan = fmap.plan(shape, batch_size=1)
    size = plan.choose_batch_size(2**30)
    leaves, tree = jax.tree.flatten(params)

    def run(leaves: list[Array], x: Array) -> list[Array]:
        phi = apply_in_parts(fmap, None, jax.tree.unflatten(tree, leaves), x, {})
        if not isinstance(phi, KernelFeatures):
            return [phi]
        return [getattr(phi, kind) for kind in fmap.kinds]

    specs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    x = jax.ShapeDtypeStruct((size, *shape), np.float32)
    program = export.export(jax.jit(run), platforms=_PLATFORMS)(specs, x).serialize()
    row = PlanRow(
        "stored program",
        nngp_features=fmap.num_features * ("nngp" in fmap.kinds),
        ntk_features=fmap.num_features * ("ntk" in fmap.kinds),
        param_bytes=plan.param_bytes,
        flops=plan.flops,
        live_elements=plan.live_elements,
    )
    stored = ProgramFeatureMap(
        repr(fmap), fmap.num_features, fmap.get, shape, size, row, bytes(program)
    )
    return stored, leaves


@functools.lru_cache(maxsize=16)
def _called(program: bytes) -> Callable[..., list[Array]]:
    return export.deserialize(bytearray(program)).call
