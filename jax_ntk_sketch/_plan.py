"""The cost of a feature map, known before anything is allocated."""

import dataclasses
import math

import jax

from jax_ntk_sketch._checks import check_size
from jax_ntk_sketch._files import machine_bytes
from jax_ntk_sketch._numerics import last_power_of_two
from jax_ntk_sketch._typing import Shape
from jax_ntk_sketch._units import format_bytes

# The largest batch that is chosen. Beyond 128 examples, a CPU's caches no longer hold
# what one step needs.
_LARGEST_BATCH_ON_CPU = 128
_LARGEST_BATCH_ELSEWHERE = 1024

# What may be alive at a time on a CPU. Convolutional features of 1 or 2 images of 9 MB
# each were 2 to 5 times faster than those of 64.
_CACHE_BYTES = 2**24

# What features in work may take if the device does not state its memory.
_UNKNOWN_DEVICE_BYTES = 2**31


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def memory_budget(max_bytes: int | None = None) -> int:
    """Return the bytes that examples in work may take, the caller's or the default.

    By default they are 256 MiB on a CPU. Elsewhere they are a quarter of the device's
    memory, because the data, the sums of a fit and its solution need the rest. If the
    device does not state its memory, they are 2 GiB.
    """
    if max_bytes is not None:
        return max_bytes
    if _on_cpu():
        return 2**28
    limit = _device_bytes()
    return limit // 4 if limit else _UNKNOWN_DEVICE_BYTES


def check_max_bytes(
    owner: str, max_bytes: int | None, needed: int, what: str, remedy: str
) -> int:
    """Return the bytes that examples in work may take, the caller's or the default.

    Args:
      owner: the function to name in the message.
      max_bytes: the caller's number; None for the default.
      needed: the least bytes that the work takes.
      what: what takes them, in the message.
      remedy: what to do if they are too many.

    Raises:
      TypeError: `max_bytes` is not an integer.
      ValueError: the work takes more than `max_bytes`; or more than all memory that
        the device has, if the caller names no number.
    """
    if max_bytes is not None:
        if check_size(owner, "max_bytes", max_bytes) < needed:
            raise ValueError(
                f"{owner}: max_bytes must be at least {needed}, which is what {what} "
                f"takes, got {max_bytes}; raise max_bytes or {remedy}"
            )
        return max_bytes
    limit = machine_bytes() if _on_cpu() else _device_bytes()
    if limit and needed > limit:
        raise ValueError(
            f"{owner}: {what} takes {needed} bytes, and the device has {limit}; "
            f"{remedy}, or give max_bytes if there are more"
        )
    return memory_budget()


def _device_bytes() -> int:
    """Return the memory that the device states; 0 if it states none."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0))


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One step of a feature map.

    Attributes:
      name: the kernel, the position of the step, and what the step does.
      nngp_features, ntk_features: columns of the features that the step returns.
      param_bytes: bytes of the parameters of the step.
      flops: floating-point operations per example.
      live_elements: numbers in memory at once per example while the step runs.
    """

    name: str
    nngp_features: int
    ntk_features: int
    param_bytes: int
    flops: int
    live_elements: int


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
      bias: the part of the error that more columns do not remove, in the same norm. It
        is one number for each kernel, as `relative_error` is; None for maps that are
        not of `feature_map`. It is that of the examples that `plan` was given, or of
        pairs with unit variance and cosines evenly in [0, 0.9]. Examples that are
        single numbers are evenly spaced. Images and graphs count as examples that are
        the same at all positions.
      input_elements: numbers in memory per example as input; None for the product of
        `input_shape`.
      traced_elements: numbers in memory at once per example as JAX traces the whole
        map, operation by operation; 0 if that is not known.
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
    traced_elements: int = 0

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
        """The numbers in memory at once for one batch, as traced, or of one step."""
        largest = max(row.live_elements for row in self.rows)
        return (self.traced_elements or largest) * self.batch_size

    @property
    def peak_bytes(self) -> int:
        """The estimated peak bytes of one call of `apply` in float32.

        They hold all inputs and features, the parameters, and what one batch needs in
        the largest step. Compilers fuse and keep different arrays, so that the estimate
        is right within a factor of 2. Python, JAX and compiled code need about 0.4 GiB
        in addition.
        """
        kept = self.num_examples * (self.num_inputs + self.num_features)
        return 4 * (kept + self.live_elements) + self.param_bytes

    @property
    def num_inputs(self) -> int:
        """The numbers in memory per example as input."""
        if self.input_elements is not None:
            return self.input_elements
        return math.prod(self.input_shape)

    def work_bytes(self, itemsize: int = 4) -> int:
        """Return the estimated bytes of one batch in a pass over many examples.

        They are two copies of the inputs and features of `num_examples`, because one
        batch is written or summed while the next one is computed. To these come twice
        the `live_elements`, because compilers change the order of operations. The
        parameters, sums and data are not counted.

        Args:
          itemsize: the bytes of a number, 8 for float64.
        """
        kept = 2 * self.num_examples * (self.num_inputs + self.num_features)
        return itemsize * (kept + 2 * self.live_elements)

    def choose_batch_size(
        self, num_examples: int, max_bytes: int | None = None, itemsize: int = 4
    ) -> int:
        """Return the largest power of two whose `work_bytes` stay within `max_bytes`.

        Args:
          num_examples: how many examples there are, >= 0; the batch size is at most
            the next power of two.
          max_bytes: the bytes that examples in work may take besides the parameters,
            >= 1. By default they are 256 MiB on a CPU, and elsewhere a quarter of the
            device's memory; or what one example takes, if that is more.
          itemsize: the bytes of a number, 8 for float64.

        Returns:
          The batch size, at most 128 on a CPU and at most 1024 elsewhere.

        Raises:
          TypeError: `max_bytes` is not an integer.
          ValueError: one example takes more than `max_bytes`, or more than all memory
            if there is no `max_bytes`.

        >>> import jax_ntk_sketch as jns
        >>> from jax_ntk_sketch import stax
        >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
        >>> jns.feature_map(net, num_features=64).plan((784,)).choose_batch_size(6)
        8
        """
        one = self.with_sizes(1, 1)
        max_bytes = one.check_work("Plan.choose_batch_size", max_bytes, itemsize)
        largest = _LARGEST_BATCH_ON_CPU if _on_cpu() else _LARGEST_BATCH_ELSEWHERE
        size = 1
        while size < min(largest, num_examples):
            if self.with_sizes(2 * size, 2 * size).work_bytes(itemsize) > max_bytes:
                break
            size *= 2
        return size

    def limit_batch_size(self, max_bytes: int | None, itemsize: int = 4) -> int:
        """Return the largest power of two whose inputs and features take half of it.

        The other half is for what the steps need, and for one example at least.
        """
        limit = memory_budget(max_bytes)
        step = self.with_sizes(0, 1).work_bytes(itemsize)
        each = self.with_sizes(1, 0).work_bytes(itemsize)
        return last_power_of_two(min(limit // 2, limit - step) // each)

    def rows_in_work(self, max_bytes: int | None = None, itemsize: int = 4) -> int:
        """Return how many of `num_examples` to work on at a time.

        It is the largest power of two, at least 1, whose `work_bytes` stay within
        `max_bytes`, or the default. On a CPU what they need also fits in the caches.
        """
        limit = memory_budget(max_bytes)
        each = 2 * itemsize * self.with_sizes(1, 1).live_elements
        limit -= self.with_sizes(self.num_examples, 0).work_bytes(itemsize)
        if _on_cpu():
            limit = min(limit, 2 * _CACHE_BYTES)
        return min(self.num_examples, last_power_of_two(limit // each))

    def check_work(self, owner: str, max_bytes: int | None, itemsize: int = 4) -> int:
        """Return `max_bytes`, or the default, if one example of the batch fits.

        Raises:
          TypeError, ValueError: as `check_max_bytes`.
        """
        n = self.num_examples
        needed = self.with_sizes(n, 1).work_bytes(itemsize)
        what, remedy = "one example", "lower num_features"
        if n > 1:
            what, remedy = f"one example in a batch of {n}", "lower batch_size"
        return check_max_bytes(owner, max_bytes, needed, what, remedy)

    def with_sizes(self, num_examples: int, batch_size: int) -> "Plan":
        """Return the plan for other numbers of examples in memory and in work."""
        return dataclasses.replace(
            self, num_examples=num_examples, batch_size=batch_size
        )

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
        lines.insert(
            0,
            f"{self.method}: inputs {self.input_shape} -> {self.num_features} features",
        )
        lines.append(
            f"total: parameters {format_bytes(self.param_bytes)}, "
            f"{self.flops:,} flops/example, peak {format_bytes(self.peak_bytes)} "
            f"({self.num_examples} example{'' if self.num_examples == 1 else 's'} "
            f"in float32, {self.batch_size} at a time){learning}"
        )
        error = "expected relative error of the kernel"
        for title, values, text in (
            (error, self.relative_error, "{:.2g}".format),
            ("bias, which more columns do not remove", self.bias, "{:.2g}".format),
        ):
            if values is not None:
                numbers = values if isinstance(values, tuple) else (values,)
                lines.append(f"{title}: {', '.join(map(text, numbers))}")
        return "\n".join(lines)
