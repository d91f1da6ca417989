"""Makes `tests/helpers.py` importable from every test file; compiles quickly."""

import importlib.metadata
import os
import pathlib
import sys

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
