"""What a feature map costs, known before anything is allocated."""

import dataclasses
import math

import numpy as np

__all__ = ["Plan", "PlanRow"]


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One step of a feature map.

    Attributes:
      name: kernel, position and what is done.
      nngp, ntk: columns of the features that it returns.
      param_bytes: bytes of its random parameters.
      flops: floating-point operations per example.
      floats: numbers alive at once per example while it runs.
    """

    name: str
    nngp: int
    ntk: int
    param_bytes: int
    flops: int
    floats: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes, operations and bytes of a feature map; `str` is a table.

    Attributes:
      rows: one for each step.
      method: the method's record, as text.
      input_shape: of one example.
      num_features: columns of the features, of all kernels together.
      batch_size: examples that are worked on at a time.
      num_examples: examples in memory, as input and as features.
      fit_bytes: peak bytes of learning the parameters from data; 0 where nothing is.
      relative_error: the expected Frobenius error of the kernel over its norm, of each
        kernel, from variance formulas; None where there is none in closed form
        (`jax_ntk_sketch.expected_error` measures it). For the cosines of the array that
        `plan` was given, or for cosines spread evenly over [0, 0.9].
      input_floats: numbers in memory per example as input, where these are not those of
        `input_shape`.
    """

    rows: tuple[PlanRow, ...]
    method: str
    input_shape: tuple[int, ...]
    num_features: int
    batch_size: int
    num_examples: int
    fit_bytes: int = 0
    relative_error: float | tuple[float, ...] | None = None
    input_floats: int | None = None

    @property
    def param_bytes(self) -> int:
        """Bytes of all random parameters."""
        return sum(row.param_bytes for row in self.rows)

    @property
    def flops(self) -> int:
        """Floating-point operations per example."""
        return sum(row.flops for row in self.rows)

    @property
    def peak_bytes(self) -> int:
        """Estimated peak bytes of one call of `apply` in float32.

        All inputs and features, the parameters, and what one batch needs in the largest
        step; compilers differ by what they fuse or keep, within a factor of 2 where it
        was measured. Python, JAX and compiled code take some 0.4 GB besides.
        """
        inputs = self.input_floats
        if inputs is None:
            inputs = math.prod(self.input_shape)
        kept = self.num_examples * (inputs + self.num_features)
        return 4 * (kept + self.batch_floats) + self.param_bytes

    @property
    def batch_floats(self) -> int:
        """Numbers alive in the largest step for one batch."""
        return max(row.floats for row in self.rows) * self.batch_size

    def _error_lines(self) -> list[str]:
        if self.relative_error is None:
            return []
        errors = np.atleast_1d(self.relative_error)
        text = ", ".join(f"{error:.2g}" for error in errors)
        return [f"expected relative error of the kernel: {text}"]

    def __str__(self) -> str:
        head = ("step", "nngp", "ntk", "parameters", "flops/example", "floats/example")
        table = [head] + [
            (
                row.name,
                str(row.nngp),
                str(row.ntk),
                _bytes(row.param_bytes),
                f"{row.flops:,}",
                f"{row.floats:,}",
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = [
            line[0].ljust(widths[0])
            + "".join(
                f"  {cell.rjust(w)}"
                for cell, w in zip(line[1:], widths[1:], strict=True)
            )
            for line in table
        ]
        learning = (
            f"; to learn them, peak {_bytes(self.fit_bytes)}" if self.fit_bytes else ""
        )
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join(
            [
                f"{self.method}: inputs {self.input_shape} -> {self.num_features} "
                "features",
                *lines,
                f"total: parameters {_bytes(self.param_bytes)}, "
                f"{self.flops:,} flops/example, peak {_bytes(self.peak_bytes)} "
                f"({self.num_examples} examples in float32, {self.batch_size} at a "
                f"time){learning}",
                *self._error_lines(),
            ]
        )


def _bytes(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1024 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"
