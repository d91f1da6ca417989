"""Errors with error bars: as text and as JSON."""

import dataclasses
import json
import math

import numpy as np

from jax_ntk_sketch._typing import KINDS, Kind

# The columns of tables, by the fields of `KernelErrors`.
TITLES = {
    "relative": "relative",
    "centered": "centered",
    "max_abs": "largest entry",
    "spectral": "spectral",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its standard error.

    Attributes:
      values: one finite number for each seed.

    >>> from jax_ntk_sketch.validation.report import Estimate
    >>> Estimate((1.0, 2.0, 3.0)).mean, str(Estimate((1.0, 2.0, 3.0)))
    (2.0, '2.0 ± 0.6')
    >>> str(Estimate((0.25,)))
    '0.25'
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        values = tuple(map(float, self.values))
        if not values or not all(map(math.isfinite, values)):
            raise ValueError(f"Estimate: values must be finite numbers, got {values}")
        object.__setattr__(self, "values", values)

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.values))

    @property
    def standard_error(self) -> float | None:
        """The standard error of the mean; None if there is one seed."""
        count = len(self.values)
        return float(np.std(self.values, ddof=1)) / count**0.5 if count > 1 else None

    def __str__(self) -> str:
        error = self.standard_error
        if not error or error < 1e-12 * abs(self.mean):  # equal up to rounding
            return f"{self.mean:.4g}"
        if max(abs(self.mean), error) < 1e-4:
            return f"{self.mean:.1e} ± {error:.0e}"
        # The error has one digit, and the mean has as many decimals.
        places = min(max(-int(f"{error:.0e}".partition("e")[2]), 0), 6)
        return f"{self.mean:.{places}f} ± {error:.{places}f}"


@dataclasses.dataclass(frozen=True)
class KernelErrors:
    """The errors of one kernel; `jax_ntk_sketch.validation.measures` defines them.

    Attributes:
      relative: the relative Frobenius error.
      centered: the relative Frobenius error of the doubly centered kernels.
      max_abs: the largest error of an entry over the largest entry.
      spectral: the smallest ε with (1-ε)(K+λI) ⪯ K_hat+λI ⪯ (1+ε)(K+λI), λ = reg n.
    """

    relative: Estimate
    centered: Estimate
    max_abs: Estimate
    spectral: Estimate


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The errors of a feature map, which `compare` returns.

    Attributes:
      num_features: columns of the features.
      num_examples: the number of examples that were compared.
      num_seeds: independent draws of the features.
      reg: the penalty per example of the spectral error.
      ntk, nngp: the errors of each kernel; None if it was not compared.
      label: a name for tables and plots.
      method: the method that was measured, as text.

    >>> from jax_ntk_sketch.validation.report import Comparison, Estimate, KernelErrors
    >>> errors = KernelErrors(*[Estimate((0.1, 0.2))] * 4)
    >>> report = Comparison(64, 10, 2, 1e-3, ntk=errors, label="sketch")
    >>> print(report)
    method  num_features  kernel  relative     centered     largest entry  spectral
    sketch  64            ntk     0.15 ± 0.05  0.15 ± 0.05  0.15 ± 0.05    0.15 ± 0.05
    10 examples; mean ± standard error over 2 seeds; spectral error at reg = 0.001.
    """

    num_features: int
    num_examples: int
    num_seeds: int
    reg: float
    ntk: KernelErrors | None = None
    nngp: KernelErrors | None = None
    label: str = ""
    method: str = ""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kernels that were compared."""
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)

    def __str__(self) -> str:
        """Return an aligned table with a line for each kernel."""
        label = [self.label] if self.label else []
        rows = [["method"] * len(label) + ["num_features", "kernel", *TITLES.values()]]
        for kind in self.kinds:
            errors = [str(getattr(getattr(self, kind), name)) for name in TITLES]
            rows.append([*label, str(self.num_features), kind, *errors])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        one = self.num_seeds == 1
        note = (
            f"{self.num_examples} examples; "
            f"{'no standard error' if one else 'mean ± standard error'} over "
            f"{self.num_seeds} seed{'' if one else 's'}; "
            f"spectral error at reg = {self.reg:g}."
            + (f"\nMeasured: {self.method}." if self.method else "")
        )
        return "\n".join([*lines, note])

    def to_json(self) -> str:
        """Return strict JSON: the value of every seed, means and standard errors."""
        data = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        for kind in self.kinds:
            data[kind] = {
                name: {
                    "mean": estimate.mean,
                    "standard_error": estimate.standard_error,
                    "values": list(estimate.values),
                }
                for name, estimate in vars(data[kind]).items()
            }
        return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)
