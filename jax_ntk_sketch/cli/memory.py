"""How much memory the process takes."""

import contextlib
import ctypes
import os
import pathlib
import sys

__all__ = ["PeakGrowth", "available", "gigabytes", "mebibytes", "peak_resident"]

_PROC = pathlib.Path("/proc/self")
_CGROUP = pathlib.Path("/sys/fs/cgroup")


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


def available() -> int | None:
    """Bytes that the process could still take without swapping; None if unknown.

    What Linux says is available, or less where a container has a limit.
    """
    known = []
    try:
        for line in (_PROC.parent / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                known.append(1024 * int(line.split()[1]))
    except OSError:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    # A container's limit is "max" where there is none.
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        known.append(limit - int((_CGROUP / "memory.current").read_text()))
    return min(known, default=None)


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


def gigabytes(count: int | None) -> str:
    """Bytes for a sentence.

    >>> gigabytes(537_000_000), gigabytes(12_345), gigabytes(None)
    ('0.54 GB', '0.01 MB', 'unknown')
    """
    if count is None:
        return "unknown"
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def mebibytes(count: int | None) -> str:
    """Bytes for a table.

    >>> mebibytes(3 * 2**19), mebibytes(2**28), mebibytes(None)
    ('1.5', '256', '?')
    """
    if count is None:
        return "?"
    size = count / 2**20
    return f"{size:.1f}" if size < 10 else f"{size:.0f}"
