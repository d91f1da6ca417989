"""Make `tests/` importable, compile quickly, and bound the memory of a worker."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import pathlib
import sys

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

# A worker keeps every program that it compiles. Without a limit it grows to 6 GB.
MEMORY_LIMIT = 1.2e9
STATM = pathlib.Path("/proc/self/statm")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Forget compiled programs when the process has grown large."""
    if not STATM.exists():
        return
    resident = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident < MEMORY_LIMIT:
        return
    import jax

    jax.clear_caches()
    gc.collect()
    # The allocator of glibc keeps what is freed until it is asked to return it.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
