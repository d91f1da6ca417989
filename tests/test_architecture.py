"""The rooms of the package: which imports which, and that importing it does nothing.

CONTRIBUTING.md states for each room what it may import, and `test_contributing.py`
compares. Here are the rules that hold for all rooms.
"""

import ast
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "jax_ntk_sketch"
FILES = sorted(ROOT.rglob("*.py"))
NAME = "jax_ntk_sketch"

# The rooms, from the bottom up: each imports from those before it.
ROOMS = (
    # The ground: types, numbers with units, checks, arithmetic, files, progress bars.
    *("_typing", "_units", "_numerics", "_arrays", "_checks", "_files"),
    *("_tensor_file", "_progress", "_traced_memory"),
    # The language.
    *("stax", "methods", "recipes"),
    # What is known of every feature map.
    *("_plan", "_protocol"),
    # Mathematics that knows no network, or only the records of one.
    *("kernels", "sketch", "random_features"),
    # Examples, and devices.
    *("graphs", "batches", "sharding", "preprocessing", "data"),
    # Feature maps, and what a user does with them.
    *("features", "linear_model", "validation", "selection"),
    *("interop", "io", "model"),
    # The public names, and the command line.
    *("__init__", "cli", "__main__"),
)


def room(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path):
    """Yield the modules that a file imports, wherever in it, with full dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == NAME:
                yield from (f"{NAME}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def of_package(path):
    """Yield the dotted names of the imports within the package, without its name."""
    for name in imports(path):
        if name.startswith(f"{NAME}."):
            yield name.removeprefix(f"{NAME}.")


def test_all_rooms_are_in_the_order():
    assert {room(path) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    allowed = {*ROOMS[: ROOMS.index(room(path)) + 1]}
    if "__init__" in allowed:  # above the public names, which functions have too
        allowed |= {*importlib.import_module(NAME).__all__, "__version__"}
    for name in of_package(path):
        assert name.split(".")[0] in allowed, f"{path} imports {name}"


def test_users_of_features_know_no_network():
    """They see arrays, the protocol of feature maps, and `transform` of many examples.

    `validation` draws maps of its own, and builds on no rule of a layer or a method.
    """
    allowed = {
        "sharding": set(),
        "linear_model": {"_transform"},
        "validation": {*"_feature_map _landmarks _compress _transform build".split()},
    }
    for path in FILES:
        for name in of_package(path) if room(path) in allowed else ():
            top, *rest = name.split(".")
            assert room(path) == "validation" or top not in ("stax", "methods"), path
            assert top != "features" or rest[0] in allowed[room(path)], (path, name)


def test_modules_are_not_hidden_by_functions():
    """`import jax_ntk_sketch.a.b as b` is a module for every module a.b."""
    for path in FILES:
        parts = [NAME, *path.relative_to(ROOT).with_suffix("").parts]
        if parts[-1] in ("__init__", "__main__"):
            continue
        *parent, child = parts
        module = importlib.import_module(".".join(parts))
        package = importlib.import_module(".".join(parent))
        assert getattr(package, child) is module, ".".join(parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_belong(path):
    places = {
        "neural_tangents": {"interop"},
        "sklearn": {"interop", "data"},
        "matplotlib": {"validation", "cli"},
        "PIL": set(),
        "pandas": {"data"},
        "tqdm": {"_progress"},
        "tensorflow": set(),
        "tf2jax": set(),
        "optax": {"linear_model"},
    }
    for name in imports(path):
        top = name.split(".")[0]
        if top in places:
            assert room(path) in places[top], f"{path} imports {name}"
    # At the level of the module: only what is always installed.
    for node in ast.parse(path.read_text()).body:
        names = ()
        if isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = (str(node.module),)
        tops = {name.split(".")[0] for name in names}
        assert not tops & set(places), ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 500


def test_import_computes_nothing():
    """No backend is initialized, no flag changed, and nothing slow is imported.

    SciPy's parts take a quarter of the time in which JAX is imported, and its
    optimizers as much as JAX; SciPy imports a part when it is used.
    """
    code = f"""
import sys
import jax
before = jax.config.values.copy()
import {NAME}
for part in ("linalg", "sparse", "optimize", "stats", "spatial", "special"):
    assert "scipy." + part not in sys.modules, part
import {NAME}.__main__
from jax._src import xla_bridge
assert not xla_bridge._backends, xla_bridge._backends
assert jax.config.values == before
for name in ("neural_tangents", "sklearn", "matplotlib", "optax", "tensorflow", "PIL",
             "pandas", "tqdm"):
    assert name not in sys.modules, name
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_times_are_read_from_a_clock_that_nobody_sets():
    """A clock set back gave "solve -205198.6 s"."""
    wall = {path.name for path in FILES if "time.time()" in path.read_text()}
    # Ages of files, and tqdm's own clock.
    assert wall == {"_files.py", "_progress.py"}
