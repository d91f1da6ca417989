"""Every example in a docstring, and the README's, runs as it is written."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import jax
import jax.numpy as jnp
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
    module = importlib.import_module(name)
    names = {"jax": jax, "jnp": jnp, "np": np, "jns": jns}
    result = doctest.testmod(module, extraglobs=names, optionflags=FLAGS)
    assert result.failed == 0


def test_most_modules_have_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = sum(
        any(test.examples for test in finder.find(importlib.import_module(name)))
        for name in MODULES
    )
    assert with_examples >= len(MODULES) / 3


def test_readme():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.S | re.M)
    results: list[dict] = []
    for block in blocks:
        results.append({})
        exec(compile(block, str(README), "exec"), results[-1])
    vectors, images, layers, scale = results
    phi, x = vectors["phi"], vectors["x"]
    exact = vectors["kernel_fn"](x, None, "ntk")
    assert jns.validation.relative_error(exact, phi @ phi.T) < 0.1
    digits = images["digits"]
    phi = jns.transform(images["fmap"], images["params"], digits.x_test)
    right = images["model"].predict_class(phi) == digits.y_test
    assert np.mean(np.asarray(right)) > 0.9
    graphs, whole = layers["graphs"], jnt.to_stax(layers["fmap"].net)[2]
    edges = graphs.pattern[:1], graphs.pattern[1:]
    exact = whole(graphs.x[:1], graphs.x[1:], "ntk", pattern=edges)
    phi = layers["phi"]
    assert jns.validation.relative_error(exact, phi[:1] @ phi[1:].T) < 0.3
    digits = scale["digits"]
    right = scale["fitted"].predict_class(digits.x_test) == digits.y_test
    assert np.mean(right) > 0.95
