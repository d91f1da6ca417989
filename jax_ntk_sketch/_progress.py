"""Progress of long loops: a bar of tqdm if it is installed, plain lines otherwise.

It is written to standard error, by default only if that is a terminal, so that the
output of a program stays clean.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

# Seconds between two plain lines.
_INTERVAL = 10.0


def progress(
    iterable: Iterable[T],
    description: str,
    total: int | None = None,
    enabled: bool | None = None,
) -> Iterator[T]:
    """Yield the items of `iterable` and show on stderr how many are done.

    Args:
      iterable: the items; they are taken one at a time.
      description: a few words before the bar.
      total: the number of items; None for `len(iterable)`, if it has a length.
      enabled: True to show progress, False not to, None (default) to show it if stderr
        is a terminal.

    Returns:
      An iterator over the same items.

    >>> from jax_ntk_sketch._progress import progress
    >>> [2 * i for i in progress(range(3), "doubling", enabled=False)]
    [0, 2, 4]
    """
    if not is_shown(enabled):
        return iter(iterable)
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    try:
        import tqdm  # noqa: F401
    except ImportError:
        return _lines(iterable, description, total)
    return _bar(iterable, description, total)


def is_shown(enabled: bool | None) -> bool:
    """Return whether to show progress: by default where stderr is a terminal."""
    if enabled is None:
        return sys.stderr is not None and sys.stderr.isatty()
    return enabled


def _bar(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    from tqdm import tqdm

    with tqdm(desc=description, total=total, file=sys.stderr) as bar:
        for item in iterable:
            yield item
            if bar.n == 0:
                # The first item compiles: the estimate begins after it.
                bar.n = bar.initial = bar.last_print_n = 1
                bar.start_t = bar.last_print_t = time.time()
                bar.refresh()
            else:
                bar.update()


def _lines(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    """Write a line at the start, every `_INTERVAL` seconds, and at the end."""
    of_total = "" if total is None else f"/{total}"
    start = last = time.monotonic()
    count = 0

    def show(text: str) -> None:
        print(f"{description}: {count}{text}", file=sys.stderr, flush=True)

    show(of_total)
    for item in iterable:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= _INTERVAL and count != total:
            last = now
            show(f"{of_total} ({now - start:.0f} s)")
    show(f" done ({time.monotonic() - start:.1f} s)")
