"""Every example in a docstring, and the README's, runs as it is written."""

import doctest
import importlib
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import numpy as np
import pytest

import jax_ntk_sketch as jns
from jax_ntk_sketch.interop import neural_tangents as jnt

README = pathlib.Path(__file__).parent.parent / "README.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(jns.__path__, "jax_ntk_sketch.")
    if not info.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    """Examples have no names but those that they import, so that they can be pasted."""
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in doctest.DocTestFinder().find(module, globs={"__name__": "__main__"}):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_most_modules_have_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = sum(
        any(test.examples for test in finder.find(importlib.import_module(name)))
        for name in MODULES
    )
    assert with_examples >= len(MODULES) / 3


def readme_blocks() -> list[tuple[str, str]]:
    """Return README's Python, each block with the text that it prints."""
    block = r"^```python\n(.*?)^```(?:\n\n```text\n(.*?)^```)?"
    return re.findall(block, README.read_text(), re.S | re.M)


def run_readme(index: int) -> dict:
    """Run a block of README, and return its names."""
    names: dict = {}
    exec(compile(readme_blocks()[index][0], str(README), "exec"), names)
    return names


def test_readme_quickstart():
    """It is run as a user would, and prints what README prints, to two percent."""
    block, expected = readme_blocks()[0]
    command = [sys.executable, "-c", block]
    environment = {name: os.environ[name] for name in os.environ if name != "XLA_FLAGS"}
    options = dict(cwd=README.parent, env=environment, text=True)
    printed = subprocess.check_output(command, **options)
    number = r"\d+\.\d+"
    assert re.sub(number, "#", printed.strip()) == re.sub(number, "#", expected.strip())
    pairs = (map(float, re.findall(number, text)) for text in (printed, expected))
    np.testing.assert_allclose(*map(list, pairs), rtol=0.02)


@pytest.mark.long
def test_readme_images():
    names = run_readme(2)
    test = names["digits"]
    phi = jns.transform(names["fmap"], names["params"], test.x_test)
    assert np.mean(names["model"].predict_class(phi) == test.y_test) > 0.9


@pytest.mark.long
def test_readme_graphs():
    names = run_readme(3)
    batch, kernel_fn = names["graphs"], jnt.to_stax(names["fmap"].net)[2]
    pattern = batch.pattern[:1], batch.pattern[1:]
    exact = kernel_fn(batch.x[:1], batch.x[1:], "ntk", pattern=pattern)
    phi = names["phi"]
    assert jns.validation.relative_error(exact, phi[:1] @ phi[1:].T) < 0.3


def test_readme_activation():
    assert run_readme(4)["phi"].shape == (3, 1024)


@pytest.mark.long
def test_readme_fit():
    names = run_readme(1)
    assert len(readme_blocks()) == 5
    assert np.mean(names["labels"] == names["digits"].y_test) > 0.97
    assert names["model"].error.value < 0.03
