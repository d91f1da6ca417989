"""The cost of a feature map, known before anything is allocated."""

import dataclasses
import math
from collections.abc import Iterable

from jax_ntk_sketch._typing import Shape
from jax_ntk_sketch._units import format_bytes

__all__ = ["Plan", "PlanRow"]


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One step of a feature map.

    Attributes:
      name: the kernel, the position of the step, and what the step does.
      nngp_features, ntk_features: columns of the features that the step returns.
      param_bytes: bytes of the parameters of the step.
      flops: floating-point operations per example.
      live_elements: numbers in memory at once per example while the step runs.
      bias: the largest bias of a kernel value, over the kernel of a unit vector with
        itself; None where no formula is known.
    """

    name: str
    nngp_features: int
    ntk_features: int
    param_bytes: int
    flops: int
    live_elements: int
    bias: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes, operations, memory and known errors of a feature map; `str` is a table.

    Attributes:
      rows: one row for each step.
      method: the method's record, as text. For "auto" it is the method that is used.
      input_shape: the shape of one example.
      num_features: columns of the features, of all kernels together.
      batch_size: examples that `apply` works on at a time.
      num_examples: examples in memory, as input and as features.
      fit_bytes: peak bytes while parameters are learned from data; 0 if none are.
      relative_error: the expected error of the kernel matrix in the Frobenius norm over
        the norm of the matrix. It is one number for each kernel: a float, or a tuple if
        `get` is a tuple. The formula averages over the cosines of the examples that
        `plan` was given, or over cosines spread evenly on [0, 0.9] if it was given a
        shape. None where the method has no formula;
        `jax_ntk_sketch.validation.expected_error` then measures the error.
      bias: the largest bias of a kernel value, over the kernel of a unit vector with
        itself. It is one number for each kernel, as `relative_error` is; None where the
        method has no formula.
      input_elements: numbers in memory per example as input; None for the product of
        `input_shape`.
    """

    rows: tuple[PlanRow, ...]
    method: str
    input_shape: Shape
    num_features: int
    batch_size: int
    num_examples: int
    fit_bytes: int = 0
    relative_error: float | tuple[float, ...] | None = None
    bias: float | tuple[float, ...] | None = None
    input_elements: int | None = None

    @property
    def param_bytes(self) -> int:
        """The bytes of all parameters."""
        return sum(row.param_bytes for row in self.rows)

    @property
    def flops(self) -> int:
        """The floating-point operations per example."""
        return sum(row.flops for row in self.rows)

    @property
    def live_elements(self) -> int:
        """The numbers in memory at once in the largest step, for one batch."""
        return max(row.live_elements for row in self.rows) * self.batch_size

    @property
    def peak_bytes(self) -> int:
        """The estimated peak bytes of one call of `apply` in float32.

        They hold all inputs and features, the parameters, and what one batch needs in
        the largest step. Compilers fuse and keep different arrays, so that the estimate
        is right within a factor of 2. Python, JAX and compiled code need about 0.4 GiB
        in addition.
        """
        inputs = self.input_elements
        if inputs is None:
            inputs = math.prod(self.input_shape)
        kept = self.num_examples * (inputs + self.num_features)
        return 4 * (kept + self.live_elements) + self.param_bytes

    def __str__(self) -> str:
        head = ("step", "nngp", "ntk", "parameters", "flops/example", "live/example")
        table = [head] + [
            (
                row.name,
                str(row.nngp_features),
                str(row.ntk_features),
                format_bytes(row.param_bytes),
                f"{row.flops:,}",
                f"{row.live_elements:,}",
            )
            for row in self.rows
        ]
        first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([name.ljust(first), *map(str.rjust, cells, others)])
            for name, *cells in table
        ]
        lines.insert(1, "-" * len(lines[0]))
        learning = (
            f"; to learn them, peak {format_bytes(self.fit_bytes)}"
            if self.fit_bytes
            else ""
        )
        return "\n".join(
            [
                f"{self.method}: inputs {self.input_shape} -> {self.num_features} "
                "features",
                *lines,
                f"total: parameters {format_bytes(self.param_bytes)}, "
                f"{self.flops:,} flops/example, peak {format_bytes(self.peak_bytes)} "
                f"({self.num_examples} examples in float32, {self.batch_size} at a "
                f"time){learning}",
                *_line("expected relative error of the kernel", self.relative_error),
                *_line("bias of the kernel, at most", self.bias),
            ]
        )


def _line(title: str, values: float | tuple[float, ...] | None) -> list[str]:
    if values is None:
        return []
    numbers: Iterable[float] = values if isinstance(values, tuple) else (values,)
    return [f"{title}: {', '.join(f'{number:.2g}' for number in numbers)}"]
