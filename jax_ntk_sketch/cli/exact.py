"""The exact side of the job: kernel matrices, and kernel ridge regression."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jax_ntk_sketch._progress import progress
from jax_ntk_sketch.cli.arguments import UsageError
from jax_ntk_sketch.cli.ridge import Targets, fit_kernel

__all__ = [
    "RELATIVE_REGS",
    "ExactFit",
    "Kernel",
    "fit_exact",
    "kernel_bytes",
    "require_memory",
]

# Candidates for reg, relative to the mean of the kernel's diagonal.
RELATIVE_REGS = tuple(10.0**power for power in range(-6, 1))

# Rows per block: a kernel holds about ten temporaries of the size of its block.
_BLOCK = 2000


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel with the seconds that compiling and running it took.

    Args:
      function: `function(x1, x2) -> (n1, n2)`; None as `x2` means `x1` itself.
      block: most rows per call; None for thousands.
    """

    function: Callable
    block: int | None = None
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"compile": 0.0, "run": 0.0}
    )

    def symmetric(
        self,
        x: np.ndarray,
        *,
        announce: Callable[[float], None] | None = None,
        show: bool | None = False,
    ) -> np.ndarray:
        """The kernel of all pairs of rows, (n, n) float64 on the host.

        Blocks above the diagonal are mirrored. Those on it are asked for with
        `x2 = None`: single precision gets cosines of 1 right only then.

        Args:
          x: (n, ...).
          announce: told, after the first of several blocks, how many seconds the
            others will take.
          show: whether a progress bar is shown; None for where somebody looks.
        """
        blocks = self._blocks(x)
        size, n = len(blocks[0]), len(x)
        out = np.empty((len(blocks) * size,) * 2)
        diagonal = self._compile(lambda a: self.function(a, None), blocks[0])
        pair = None
        if len(blocks) > 1:
            pair = self._compile(self.function, blocks[0], blocks[1])
        places = [(i, j) for i in range(len(blocks)) for j in range(i + 1)]
        for i, j in progress(places, "exact kernel, blocks", enabled=show):
            rows = slice(i * size, (i + 1) * size)
            if i == j:
                out[rows, rows] = self._run(diagonal, blocks[i])
            else:
                columns = slice(j * size, (j + 1) * size)
                out[rows, columns] = self._run(pair, blocks[i], blocks[j])
                out[columns, rows] = out[rows, columns].T
            if announce and i == 0 and len(places) > 1:
                announce(self.seconds["run"] * (len(places) - 1))
        return out[:n, :n]

    def cross(self, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
        """The kernel between two sets of rows, (n1, n2) float64 on the host."""
        blocks1, blocks2 = self._blocks(x1), self._blocks(x2)
        compiled = self._compile(self.function, blocks1[0], blocks2[0])
        rows = [
            np.concatenate([self._run(compiled, a, b) for b in blocks2], axis=1)
            for a in blocks1
        ]
        return np.concatenate(rows)[: len(x1), : len(x2)]

    def _compile(self, function: Callable, *arrays: np.ndarray) -> Callable:
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*arrays).compile()
        self.seconds["compile"] += time.perf_counter() - start
        return compiled

    def _run(self, compiled, *arrays: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        out = np.asarray(compiled(*arrays), np.float64)
        self.seconds["run"] += time.perf_counter() - start
        return out

    def _blocks(self, x: np.ndarray) -> list[np.ndarray]:
        """Blocks of one size, so that one compiled function serves all of them.

        The last is filled up with repeated rows.
        """
        count = -(-len(x) // (self.block or _BLOCK))
        size = -(-len(x) // count)
        rows = np.minimum(np.arange(count * size), len(x) - 1)
        return list(x[rows].reshape(count, size, *x.shape[1:]))


@dataclasses.dataclass(frozen=True)
class ExactFit:
    """Exact kernel ridge regression, fitted and applied."""

    predictions: np.ndarray  # codes of the test rows, (n_test, k)
    reg: float
    regs: list[float]  # the candidates
    seconds: dict[str, float]


def fit_exact(
    kernel: Kernel, targets: Targets, regs: Sequence[float] | None
) -> ExactFit:
    """Exact kernel ridge regression on the data of `targets`.

    Args:
      kernel: of the network.
      targets: and with them the data.
      regs: candidates; None for `RELATIVE_REGS` times the mean of the kernel's
        diagonal.

    Returns:
      An `ExactFit`.

    Cost: as `fit_kernel`, and the kernel of all pairs.
    """
    data = targets.data
    matrix = kernel.symmetric(data.x_train)
    cross = kernel.cross(data.x_test, data.x_train)
    start = time.perf_counter()
    if regs is None:
        scale = float(np.diag(matrix).mean()) or 1.0
        regs = [scale * value for value in RELATIVE_REGS]
    predictions, reg = fit_kernel(matrix, cross, targets, regs)
    seconds = {
        "compile": kernel.seconds["compile"],
        "kernel": kernel.seconds["run"],
        "fit": time.perf_counter() - start,
    }
    return ExactFit(predictions, reg, list(regs), seconds)


def kernel_bytes(n: int) -> int:
    """Bytes of an n x n float64 matrix."""
    return 8 * n * n


def require_memory(n: int) -> None:
    """Raises UsageError if exact regression on n rows cannot fit into memory."""
    needed = 3 * kernel_bytes(n)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if needed > memory:
        raise UsageError(
            f"exact regression on {n} rows takes about {needed / 1e9:.1f} GB and this "
            f"machine has {memory / 1e9:.1f} GB; lower --num-train"
        )
