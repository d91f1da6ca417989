"""What a fit takes, said and checked before it is allocated."""

import dataclasses
import pathlib
import shutil

import jax

from jax_ntk_sketch.cli.arguments import UsageError
from jax_ntk_sketch.cli.memory import available, gigabytes

__all__ = ["Cost", "require_disk", "require_memory"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes of a fit of m features to t targets, with float32 features.

    Attributes:
      num_features: m.
      num_targets: t.
      folds: 0 or k.
      num_regs: r.
      batch_bytes: of a batch and the parameters, by the feature map's plan.
      learn_bytes: peak of learning the parameters from data, 0 where nothing is.
    """

    num_features: int
    num_targets: int
    folds: int
    num_regs: int
    batch_bytes: int
    learn_bytes: int = 0

    @property
    def _square(self) -> int:
        return (self.num_features + self.num_targets + 1) ** 2

    @property
    def sums(self) -> int:
        """The sums of all folds, 8 (m + t + 1)^2 bytes each; also the checkpoint's."""
        return 8 * self._square * max(1, self.folds)

    @property
    def adding(self) -> int:
        """A batch: its features, and their products in double precision."""
        return self.batch_bytes + 16 * self._square

    @property
    def solving(self) -> int:
        """The Gram matrix in float64 and its reduction; folds merged; all weights."""
        merged = 16 * self._square if self.folds else 0
        weights = 32 * self.num_features * self.num_targets * self.num_regs
        return 24 * self.num_features**2 + merged + weights

    @property
    def peak(self) -> int:
        """The most of it at a time."""
        return max(self.sums + max(self.adding, self.solving), self.learn_bytes)

    def __str__(self) -> str:
        folds = f" of {self.folds} folds" if self.folds else ""
        return (
            f"sums{folds} {gigabytes(self.sums)}, a batch {gigabytes(self.adding)}, "
            f"then the solve {gigabytes(self.solving)}"
        )

    def affordable(self, memory: int) -> int:
        """About the most features that `memory` bytes are enough for."""
        per_square = self.peak / self.num_features**2
        return int((memory / per_square) ** 0.5)


def require_memory(cost: Cost) -> int | None:
    """The bytes that are free for a fit, None if unknown.

    Raises:
      UsageError: it takes more, on the host or on the device.
    """
    free = available()
    if free is not None and cost.peak > free:
        raise UsageError(_too_many(cost, cost.peak, free, "of memory"))
    if jax.default_backend() != "cpu":
        stats = jax.devices()[0].memory_stats() or {}
        limit = stats.get("bytes_limit")
        needed = cost.sums + cost.adding
        if limit is not None and needed > limit:
            raise UsageError(_too_many(cost, needed, limit, "on the device"))
    return free


def _too_many(cost: Cost, needed: int, free: int, where: str) -> str:
    folds = ", or fewer --folds (0 is generalised cross-validation)"
    return (
        f"--features {cost.num_features} takes about {gigabytes(needed)} {where} "
        f"({cost}) and {gigabytes(free)} are free; lower --features to "
        f"{cost.affordable(free)} or so{folds if cost.folds else ''}, or use "
        "jax_ntk_sketch.linear_model.fit_cg in Python, which keeps no such sums"
    )


def require_disk(folder: pathlib.Path, model: int, checkpoint: int) -> str | None:
    """A warning if checkpoints do not fit on the disk; None if all does.

    Raises:
      UsageError: the model does not.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if model > free:
        raise UsageError(
            f"--save: the model takes {gigabytes(model)} and {gigabytes(free)} are "
            f"free in {folder}"
        )
    # While one is written the one before is kept.
    if 2 * checkpoint + model > free:
        return (
            f"two checkpoints of {gigabytes(checkpoint)} do not fit in {folder} "
            f"({gigabytes(free)} free): without them a fit that is killed begins again"
        )
    return None
