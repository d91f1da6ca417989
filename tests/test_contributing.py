"""CONTRIBUTING.md's worked examples run, and what its text promises follows."""

import ast
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

PATH = pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md"
TEXT = PATH.read_text()
PACKAGE = PATH.parent / "jax_ntk_sketch"

# Code for after the example of a layer: "repr, JSON, plans and every method follow".
AFTER_LAYER = """
import __main__
assert eval(repr(net)) == net == stax.from_json(stax.to_json(net))
assert "Scale(0.5)" in str(fmap.plan(x))
images = jax.random.normal(jax.random.key(1), (6, 4, 4, 2))
conv = stax.Conv(8, (3, 3), padding="SAME", W_std=1.1, b_std=0.2)
image_net = stax.serial(conv, Scale(2.0), stax.Relu(), Scale(0.5), conv, stax.Relu(),
                        stax.GlobalAvgPool())
deep = stax.serial(stax.Dense(8), Square(), stax.Dense(8), Scale(3.0), Square())
for net, x, *names in (
    (net, x, "ntk_random_features", "ntk_sketch", "variance_reduced", "nystrom"),
    (image_net, images, "ntk_random_features"),
    (deep, x),
):
    k = to_stax(net)[2](x, None, "ntk")
    for method in ("exact", *names):
        fmap = jns.feature_map(net, num_features=2048, method=method)
        phi = jax.jit(fmap.apply)(fmap.init(jax.random.key(1), x, sample=x), x)
        error = jns.validation.relative_error(k, phi @ phi.T)
        assert error < (1e-4 if method == "exact" else 0.15), (net, method, error)
"""

# Code for after the example of a method: other layers and activations follow.
AFTER_METHOD = """
conv = stax.Conv(8, (3, 3), padding="SAME", W_std=1.1, b_std=0.2)
image_net = stax.serial(conv, stax.Relu(), conv, stax.Gelu(), stax.GlobalAvgPool())
images = jax.random.normal(jax.random.key(1), (6, 4, 4, 2))
method = GaussianFeatures(nngp_fraction=0.25)
fmap = jns.feature_map(image_net, num_features=2048, method=method)
assert "Gaussian features" in str(fmap.plan(images))
phi = jax.jit(fmap.apply)(fmap.init(jax.random.key(1), images.shape[1:]), images)
k = to_stax(image_net)[2](images, None, "ntk")
assert phi.shape == (6, 2048)
assert jns.validation.relative_error(k, phi @ phi.T) < 0.2
dropout = stax.serial(stax.Dense(4), stax.Relu(), stax.Dropout(0.5), stax.Dense(4),
                      stax.Relu(), stax.Dense(1))
try:
    jns.feature_map(dropout, num_features=64, method=method).plan((3,))
except ValueError as error:
    assert "does not support networks with Dropout" in str(error)
else:
    raise AssertionError
"""


def blocks(heading: str) -> str:
    """Return the code of a section."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", section, re.S | re.M))


@pytest.mark.parametrize("example", ["layer", "method"])
def test_worked_example(example):
    """The example runs in a new process, because it registers records."""
    code = blocks("Adding a layer")
    if example == "layer":
        code += AFTER_LAYER
    else:
        code += blocks("Adding a method") + AFTER_METHOD
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_files_that_it_names_exist():
    root = PATH.parent
    places = (root, root / "jax_ntk_sketch", root / "jax_ntk_sketch" / "features")
    written_by_the_reader = {"features/methods/gaussian_features.py"}
    for name in set(re.findall(r"`([\w/]+\.py)`", TEXT)) - written_by_the_reader:
        assert any((place / name).exists() for place in places), name


def rooms() -> list[tuple[set[str], str]]:
    """Return the rows of the table of rooms: the rooms, and what they may import."""
    table = TEXT.split("| room |")[1].split("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return [(set(re.findall(r"`(\w+)`", row[0])), row[2]) for row in rows]


def test_rooms_that_it_names_exist():
    found = {path.stem for path in PACKAGE.iterdir()}
    named = set().union(*(names for names, _ in rooms()))
    assert named == found - {"__init__", "__main__", "__pycache__", "py"}


def imports(room: str) -> set[str]:
    """Return the rooms from which a room imports."""
    path = PACKAGE / room
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    found = set()
    for node in (n for file in files for n in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.ImportFrom) and node.module == "jax_ntk_sketch":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("jax_ntk"):
            found |= {*node.module.split(".")[1:2]}
    return found & {path.stem for path in PACKAGE.iterdir()}


def test_rooms_import_what_the_table_allows():
    ground, above = rooms()[0][0], set()
    for names, text in rooms():
        allowed = names | set(re.findall(r"`(\w+)`", text))
        if "the ground" in text:
            allowed |= ground
        if "all rows above" in text:
            allowed |= above
        for name in names:
            assert imports(name) <= allowed, (name, imports(name) - allowed)
        above |= names


def test_breaks_are_of_lines_that_exist():
    """Each break on purpose replaces a text that its file has once."""
    path = PATH.parent / ".ci" / "breaks.py"
    for one in runpy.run_path(str(path))["BREAKS"]:
        assert (PATH.parent / one.file).read_text().count(one.old) == 1, one.what
        for name in one.tests.split():
            assert (PATH.parent / f"tests/test_{name}.py").is_file(), one.what
