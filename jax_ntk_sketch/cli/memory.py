"""How much memory the process has taken."""

import sys

__all__ = ["mebibytes", "peak_resident"]


def peak_resident() -> int | None:
    """The most bytes that were resident since the process started; None if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def mebibytes(count: int | None) -> str:
    """Bytes for a table.

    >>> mebibytes(3 * 2**19), mebibytes(2**28), mebibytes(None)
    ('1.5', '256', '?')
    """
    if count is None:
        return "?"
    size = count / 2**20
    return f"{size:.1f}" if size < 10 else f"{size:.0f}"
