"""The package's layers: who may import whom, and that importing it does nothing."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "jax_ntk_sketch"
FILES = sorted(ROOT.rglob("*.py"))
NAME = "jax_ntk_sketch"

# What the modules of each part may import of the package; a part may import itself.
ALLOWED = {
    "stax": set(),
    "methods": set(),
    "plan": set(),
    "progress": set(),
    "graphs": set(),
    "data": {"graphs"},
    "preprocessing": set(),
    "recipes": {"stax"},
    "kernels": {"stax"},
    "sketch": set(),
    "random_features": {"sketch", "kernels"},
    "rules": {"stax", "methods", "kernels", "sketch", "random_features"},
    "sparse_rows": {"sketch"},
    "feature_map": {"stax", "methods", "plan", "rules", "sketch", "sparse_rows"},
    "with_sparse_inputs": {"feature_map", "methods", "plan", "sketch", "sparse_rows"},
    "nystrom": {"kernels", "sketch"},
    "prediction": {"feature_map", "methods", "sketch", "stax"},
    "principal": {"linear_model"},
    "compress": {
        "feature_map",
        "methods",
        "plan",
        "principal",
        "progress",
        "sketch",
        "sparse_rows",
        "transform",
    },
    "sharding": {"methods"},
    "transform": {
        "feature_map",
        "methods",
        "progress",
        "sharding",
        "sketch",
        "sparse_rows",
    },
    "linear_model": {"progress", "sharding", "sparse_rows", "transform"},
    "validation": {"linear_model"},
    "interop": {"stax", "kernels"},
}


def part(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path):
    """Modules imported by a file, wherever in it, with full dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == NAME:
                yield from (f"{NAME}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    if part(path) not in ALLOWED:
        assert part(path) in {"__init__", "__main__", "cli"}
        return
    allowed = ALLOWED[part(path)] | {part(path)}
    for name in imports(path):
        root, _, rest = name.partition(".")
        if root == NAME and rest:
            assert rest.split(".")[0] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_belong(path):
    places = {
        "neural_tangents": {"interop"},
        "sklearn": {"interop", "data"},
        "matplotlib": {"validation", "cli"},
        "PIL": {"data"},
        "tensorflow": set(),
        "tf2jax": set(),
        "optax": {"linear_model"},
    }
    for name in imports(path):
        root = name.split(".")[0]
        if root in places:
            assert part(path) in places[root], f"{path} imports {name}"
    # At module level: only what is always installed.
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            roots = [alias.name.split(".")[0] for alias in node.names]
        else:
            roots = [str(node.module).split(".")[0]]
        assert not set(roots) & set(places), ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 500


def test_import_computes_nothing():
    """No backend is initialised and no flag flipped by importing the package."""
    code = f"""
import jax
before = jax.config.values.copy()
import {NAME}, {NAME}.__main__
from jax._src import xla_bridge
assert not xla_bridge._backends, xla_bridge._backends
assert jax.config.values == before
import sys
for name in ("neural_tangents", "sklearn", "matplotlib", "optax", "tensorflow", "PIL"):
    assert name not in sys.modules, name
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
