"""How much memory the process takes."""

import contextlib
import ctypes
import pathlib
import sys

__all__ = ["PeakGrowth", "mebibytes", "peak_resident"]

_PROC = pathlib.Path("/proc/self")


def peak_resident() -> int | None:
    """The most bytes that were resident in the process; None if unknown.

    Since its start, or since the last `PeakGrowth`.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class PeakGrowth:
    """How far above what was resident at its making the process has been since.

    It lets Linux count the peak anew; elsewhere the growth is not known.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        # What was freed but kept for later would hide growth.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            (_PROC / "clear_refs").write_text("5")
        except OSError:
            return
        # What is resident now is the peak of no time at all.
        self._before = peak_resident()

    def bytes(self) -> int | None:
        """The growth; None if unknown."""
        peak = peak_resident()
        if peak is None or self._before is None:
            return None
        return max(peak - self._before, 0)


def mebibytes(count: int | None) -> str:
    """Bytes for a table.

    >>> mebibytes(3 * 2**19), mebibytes(2**28), mebibytes(None)
    ('1.5', '256', '?')
    """
    if count is None:
        return "?"
    size = count / 2**20
    return f"{size:.1f}" if size < 10 else f"{size:.0f}"
