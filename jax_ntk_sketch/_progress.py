"""A progress bar for long loops: tqdm where installed, plain lines otherwise.

It writes to standard error only, so that what a program prints stays clean, and
by default only where somebody looks: when standard error is a terminal.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["progress"]

T = TypeVar("T")

# Seconds between two plain lines.
_INTERVAL = 10.0


def progress(
    iterable: Iterable[T],
    description: str,
    total: int | None = None,
    enabled: bool | None = None,
) -> Iterator[T]:
    """Yields the items of `iterable` and shows on stderr how far it got.

    Args:
      iterable: what to loop over; consumed one item at a time.
      description: a few words before the bar.
      total: number of items; None for `len(iterable)` where it has one.
      enabled: True to show always, False never, None (default) to show when
        standard error is a terminal.

    Returns:
      An iterator over the same items.

    >>> [2 * i for i in progress(range(3), "doubling", enabled=False)]
    [0, 2, 4]
    """
    if enabled is None:
        enabled = sys.stderr is not None and sys.stderr.isatty()
    if not enabled:
        return iter(iterable)
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    try:
        from tqdm import tqdm
    except ImportError:
        return _lines(iterable, description, total)
    return iter(tqdm(iterable, desc=description, total=total, file=sys.stderr))


def _lines(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    """One line at the start, one every `_INTERVAL` seconds, one at the end."""
    of_total = "" if total is None else f"/{total}"
    start = last = time.monotonic()
    count = 0
    print(f"{description}: 0{of_total}", file=sys.stderr, flush=True)
    for item in iterable:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= _INTERVAL and count != total:
            last = now
            print(
                f"{description}: {count}{of_total} ({now - start:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    elapsed = time.monotonic() - start
    print(f"{description}: {count} done ({elapsed:.1f} s)", file=sys.stderr, flush=True)
