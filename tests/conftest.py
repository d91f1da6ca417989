"""Make `tests/` importable, compile quickly, and bound the memory of a worker."""

import collections
import contextlib
import ctypes
import gc
import importlib.metadata
import os
import pathlib
import sys
import zlib

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

# Most programs run once here, and compiling them takes most of the time: half as long
# without XLA's optimisations and, where there still is a choice, with its older code
# generator. Set XLA_FLAGS, empty say, to test with them.
FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) <= (0, 10):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

LONG = "long: statistics over many seeds, whole grids, processes; `pytest -m long`"
LONG_CASES = "long_cases(*words): other cases whose name holds one of them are long"
QUICK_CASES = "quick_cases(*words): cases whose name holds one of the words are quick"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", LONG)
    config.addinivalue_line("markers", LONG_CASES)
    config.addinivalue_line("markers", QUICK_CASES)
    config.pluginmanager.register(MemoryLimit())


def names_case(item: pytest.Item, case: str, marker: str) -> bool:
    """Return whether a word of the marker is in the name of the case."""
    return any(word in case for mark in item.iter_markers(marker) for word in mark.args)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as long the cases of a grid that show no new value of a parameter.

    A test with several parameters runs on their whole product. The quick suite takes
    of it enough cases to see every value of every parameter once. A fixed hash orders
    the cases, so that a value does not always meet the first value of the others.
    """
    seen: dict[str, set[tuple[str, int]]] = collections.defaultdict(set)
    for item in sorted(items, key=lambda item: zlib.crc32(item.nodeid.encode())):
        case = getattr(item, "callspec", None)
        if case is None or item.get_closest_marker("long"):
            continue
        quick = names_case(item, case.id, "quick_cases")
        if not quick and names_case(item, case.id, "long_cases"):
            item.add_marker(pytest.mark.long)
            continue
        values = {(name, id(value)) for name, value in case.params.items()}
        function = item.nodeid.partition("[")[0]
        if values <= seen[function] and not quick:
            item.add_marker(pytest.mark.long)
        seen[function] |= values


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep the tests of a file together, since they share compiled programs."""
    from xdist.scheduler import LoadFileScheduling

    # The default starts files of few tests last, and these take the longest. One worker
    # would end minutes before the other.
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


# A worker keeps every program that it compiles. Without a limit it grows to 6 GB. What
# is left when programs are forgotten grows slowly, and the limit stays above it: were
# they forgotten after each test, each would compile all anew.
MEMORY_LIMIT, MEMORY_GROWTH = 0.9e9, 0.35e9
STATM = pathlib.Path("/proc/self/statm")


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class MemoryLimit:
    """Forgets compiled programs when the process has grown large."""

    def __init__(self) -> None:
        self.limit = MEMORY_LIMIT

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        if not STATM.exists() or resident_bytes() < self.limit:
            return
        import jax

        jax.clear_caches()
        gc.collect()
        # The allocator of glibc keeps what is freed until it is asked to return it.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.limit = max(MEMORY_LIMIT, resident_bytes() + MEMORY_GROWTH)
