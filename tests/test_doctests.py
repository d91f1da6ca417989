"""Every example in a docstring, and the README's, runs as it is written."""

import contextlib
import doctest
import importlib
import io
import pathlib
import pkgutil
import re

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


def run_readme(block: str) -> tuple[dict, str]:
    """Run a block of README, and return its names and what it prints."""
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, str(README), "exec"), names)
    return names, printed.getvalue()


def check_printed(expected: str, printed: str) -> None:
    """Compare a printed text with README's, numbers to two percent."""
    number = r"\d+\.\d+"
    assert re.sub(number, "#", printed.strip()) == re.sub(number, "#", expected.strip())
    pairs = (map(float, re.findall(number, text)) for text in (printed, expected))
    np.testing.assert_allclose(*map(list, pairs), rtol=0.02)


def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the last block writes a file
    blocks = re.findall(
        r"^```python\n(.*?)^```(?:\n\n```text\n(.*?)^```)?",
        README.read_text(),
        re.S | re.M,
    )
    assert len(blocks) == 5 and blocks[0][1]
    results = []
    for block, expected in blocks:
        names, printed = run_readme(block)
        results.append(names)
        check_printed(expected, printed)
    digits, images, graphs, activation, large = results
    kernel_error = jns.validation.relative_error
    phi = digits["phi_test"]
    assert kernel_error(digits["exact"], phi @ phi.T) < 0.05
    test = images["digits"]
    phi = jns.transform(images["fmap"], images["params"], test.x_test)
    assert np.mean(images["model"].predict_class(phi) == test.y_test) > 0.9
    batch, kernel_fn = graphs["graphs"], jnt.to_stax(graphs["fmap"].net)[2]
    pattern = batch.pattern[:1], batch.pattern[1:]
    exact = kernel_fn(batch.x[:1], batch.x[1:], "ntk", pattern=pattern)
    phi = graphs["phi"]
    assert kernel_error(exact, phi[:1] @ phi[1:].T) < 0.3
    assert activation["phi"].shape == (3, 1024)
    test = large["digits"]
    assert np.mean(large["fitted"].predict_class(test.x_test) == test.y_test) > 0.95
