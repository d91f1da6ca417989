"""Feature maps as exported programs of any batch size, for every platform."""

import jax
import numpy as np
import pytest
from jax import export

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax

pytest.importorskip("flatbuffers")
DENSE = stax.Dense(4, 2**0.5)
FLAT = stax.serial(DENSE, stax.Relu(), DENSE, stax.Relu(), stax.Dense(1))
IMAGE = stax.serial(
    stax.Conv(4, (2, 2), None, "SAME", 1.4, 0.1), stax.Relu(),
    stax.AvgPool((2, 2), (2, 2)), stax.Conv(3, (1, 1)), stax.Relu(),
    stax.GlobalAvgPool(), stax.Dense(1),
)  # fmt: skip
METHODS = (
    "ntk_random_features", "ntk_sketch", "variance_reduced", "nystrom", "one_pass",
)  # fmt: skip
GRID = [("flat", method) for method in METHODS]
GRID += [("image", method) for method in METHODS[:-1]]


@pytest.mark.long_cases("image", "nystrom", "one_pass")
@pytest.mark.parametrize("name, method", GRID)
def test_any_number_of_examples(name, method):
    net, shape = {"flat": (FLAT, (6,)), "image": (IMAGE, (4, 4, 1))}[name]
    fmap = jns.feature_map(net, num_features=64, method=method)
    x = np.random.default_rng(0).normal(size=(70, *shape)).astype(np.float32)
    params = fmap.init(jax.random.key(0), shape, sample=x)
    leaves, tree = jax.tree.flatten(params)

    def run(leaves, x):
        return fmap.apply(tree.unflatten(leaves), x)

    (n,) = export.symbolic_shape("n")
    specs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    inputs = jax.ShapeDtypeStruct((n, *shape), np.float32)
    platforms = ("cpu", "cuda", "tpu")
    program = export.export(jax.jit(run), platforms=platforms)(specs, inputs)
    program = export.deserialize(program.serialize())
    for rows in (x[:1], x[:5]):
        wanted = jax.jit(fmap.apply)(params, rows)
        np.testing.assert_allclose(program.call(leaves, rows), wanted, atol=1e-5)
