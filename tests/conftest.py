"""Makes `tests/helpers.py` importable from every test file; compiles quickly."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

# Most programs run once here, and compiling them takes most of the time: a third less
# without XLA's optimisations. Set XLA_FLAGS, empty say, to test with them.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
