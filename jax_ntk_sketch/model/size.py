"""The number of columns that time and memory allow."""

import dataclasses
import math
from collections.abc import Callable

from jax_ntk_sketch._files import machine_bytes
from jax_ntk_sketch._numerics import seconds_per_flop
from jax_ntk_sketch._units import format_bytes

# Sizes that are tried besides the largest.
_SIZES = [2**power for power in range(4, 16)]

# What estimates of time may be off by, and what the machine may give to others.
_SHARE_OF_SECONDS, _SHARE_OF_MEMORY = 1 / 3, 1 / 2

# The most rows that are left out one by one, and the bytes of their features.
_MOST_LEFT_OUT, _BYTES_LEFT_OUT = 20_000, 2**29

# Seconds of an operation of the reduction to tridiagonal form, of float64 products,
# and of an eigendecomposition, over those of float32 products.
_REDUCTION, _DOUBLE, _EIGEN = 8, 2.5, 20

# How often the leave-one-out errors are computed, and of how many rows until the
# penalty is known.
_EVALUATIONS, MOST_COMPARED = 5, 4096

# Bytes of the interpreter, of compiled programs and of a choice.
_BASE = 2**30

# The most bytes of the rows that maps learn from.
BYTES_OF_ROWS = 2**29

# Seconds of a choice, most of them of compilation: of maps of rows, and of images.
_CHOICE, _CHOICE_OF_IMAGES = 25, 90

# Operations of convolutions take so many times as long as those of large products.
SLOWER = 2.5


@dataclasses.dataclass(frozen=True)
class Work:
    """What a fit takes.

    Attributes:
      columns: the number of features.
      seconds: an estimate, within a factor of about 3.
      num_bytes: the peak.
    """

    columns: int
    seconds: float
    num_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.columns} columns take about {self.seconds:.0f} s and "
            f"{format_bytes(self.num_bytes)}"
        )


def seconds_of(flops: float) -> float:
    """Return the seconds of the features of all rows, over the share of the budget."""
    return SLOWER * flops * seconds_per_flop() / _SHARE_OF_SECONDS


def num_left_out(n: int, columns: int) -> int:
    """Return how many rows are left out one by one."""
    return max(1, min(n, _MOST_LEFT_OUT, _BYTES_LEFT_OUT // (4 * columns)))


def work(
    n: int,
    d: int,
    t: int,
    m: int,
    landmarks: int,
    flops: float,
) -> Work:
    """Return what a fit of n rows with d numbers, t targets and m columns takes.

    Args:
      landmarks: rows that the map keeps; 0 if it learns nothing.
      flops: operations for the features of one row.
    """
    left_out = num_left_out(n, m)
    compared = _EVALUATIONS * min(left_out, MOST_COMPARED) + left_out
    leave_out = (_EVALUATIONS + 1) * m**3 / 3 + compared * m**2
    solve = _REDUCTION * 4 / 3 * m**3 + _DOUBLE * leave_out
    learn = 0.0
    sample = min(n, max(4096, 2 * landmarks))
    if landmarks:
        learn = 4 * sample * landmarks**2 + 3 * landmarks**3
        learn += _EIGEN * landmarks**3 if landmarks > m else 0
    operations = (n + left_out) * flops + 4 * n * m**2 + solve + learn
    seconds = 5 + operations * seconds_per_flop()
    if landmarks < n:
        seconds += _CHOICE if landmarks else _CHOICE_OF_IMAGES
    squares = 8 * (m + t + 1) ** 2 + 40 * m**2
    learned = 4 * (sample * (d + 4 * landmarks + m) + 6 * landmarks**2)
    peak = max(learned if landmarks else 0, squares + 16 * left_out * m)
    return Work(m, seconds, int(_BASE + peak + min(4 * n * d, BYTES_OF_ROWS)))


def largest(
    of_columns: Callable[[int], Work],
    most: int,
    seconds: float,
    max_memory: int | None,
) -> Work:
    """Return the work of the most columns within the budgets.

    Args:
      of_columns: the work for a number of columns.
      most: the most columns, which are tried too.
      seconds: the budget of time.
      max_memory: the budget of memory in bytes; None for half of the machine's.

    Raises:
      ValueError: not even 16 columns fit in the memory.
    """
    memory = max_memory or _SHARE_OF_MEMORY * (machine_bytes() or math.inf)
    sizes = [*(size for size in _SIZES if size < most), most]
    works = [of_columns(size) for size in sizes]
    fitting = [one for one in works if one.num_bytes <= memory]
    if not fitting:
        raise ValueError(
            f"fit: max_memory must be at least {works[0].num_bytes}, got "
            f"{memory:.0f}; that is what {works[0].columns} columns take"
        )
    quick = [one for one in fitting if one.seconds <= _SHARE_OF_SECONDS * seconds]
    return quick[-1] if quick else fitting[0]
