"""Exported programs of maps with more than one input, and what cannot be exported.

The contract exports `apply` of every sketch and of every map in the registry.
"""

import jax
import numpy as np
import pytest
from contract import assert_close, exported
from jax import export
from registry import SHALLOW, jit_once
from registry.learned import EDGES, GRAPH, SEQUENCE

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt

pytest.importorskip("flatbuffers")
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 6)).astype(np.float32)


def exact_kernel(x1, x2, get):
    return jns.kernels.exact_kernel(SHALLOW, x1, x2, get=get)


KERNELS = {"ours": exact_kernel, "theirs": jnt.to_stax(SHALLOW)[2]}


@pytest.mark.long_cases("theirs")
@pytest.mark.parametrize("name", KERNELS)
def test_landmarks_of_any_kernel(name):
    fmap = jns.landmark_features(KERNELS[name], num_features=5)
    params = fmap.init(KEY, (6,), sample=X)
    program = exported(fmap.apply, params, X)
    for x in (X[:1], X):
        assert_close(program(params, x), jit_once(fmap.apply)(params, x))


def test_patterns_and_masks():
    fmap = jns.feature_map(GRAPH, num_features=40, method="ntk_random_features")
    params = fmap.init(KEY, SEQUENCE)

    def run(params, x, pattern, mask):
        return fmap.apply(params, x, pattern=pattern, mask=mask)

    x = X.reshape(7, *SEQUENCE)
    pattern = np.tile(np.array(EDGES, np.int32), (7, 1, 1))
    mask = np.arange(21).reshape(7, 3) % 4 > 0
    program = exported(run, params, x, pattern, mask)
    for n in (1, 7):
        inputs = x[:n], pattern[:n], mask[:n]
        assert_close(program(params, *inputs), jit_once(run)(params, *inputs))


@pytest.mark.long
def test_compressed_images():
    net = stax.serial(stax.Conv(4, (2, 2)), stax.Relu(), stax.GlobalAvgPool())
    net = stax.serial(net, stax.Dense(1))
    x = RNG.normal(size=(9, 3, 3, 1)).astype(np.float32)
    base = jns.feature_map(net, num_features=40, method="ntk_sketch")
    fmap = jns.CompressedFeatureMap(base, 8)
    params = fmap.init(KEY, x.shape[1:], sample=x)
    program = exported(fmap.apply, params, x)
    for rows in (x[:1], x):
        assert_close(program(params, rows), jit_once(fmap.apply)(params, rows))


def test_sparse_rows_with_a_fixed_number_of_entries():
    base = jns.feature_map(SHALLOW, num_features=40, method="ntk_random_features")
    fmap, d = jns.with_sparse_inputs(base, sketch_dim=16), 1000
    params = fmap.init(KEY, (d,))
    lists = [[3, 999], [], [0, 1, 2, 5, 7]], [[1.0, 2.0], [], [5.0, 1, 1, 1, 1]]
    x = jns.SparseRows.from_lists(*lists, d)
    entries = x.indices, x.rows, x.values

    def run(params, like):
        (params, indices, rows, values), shape = params, (like.shape[0], d)
        return fmap.apply(params, jns.SparseRows(indices, rows, values, shape))

    program = exported(run, (params, *entries), X)
    (found,) = program((params, *entries), X[:3])
    assert_close(found, fmap.apply(params, x))
    k = export.symbolic_shape("k")
    any_number = [jax.ShapeDtypeStruct(k, z.dtype) for z in entries]
    message = "HashedOSNAP: the number of entries must be known, got k; export with"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, (params, *any_number), X)


def test_batches_need_a_known_number_of_examples():
    fmap = jns.feature_map(SHALLOW, num_features=40, method="ntk_random_features")
    message = "apply with batch_size: the number of examples must be known, got n; exp"
    with pytest.raises(ValueError, match=message):
        exported(lambda p, x: fmap.apply(p, x, batch_size=2), fmap.init(KEY, (6,)), X)
