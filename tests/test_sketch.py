"""Oblivious sketches: the contract, exact identities, exact moments, bad input."""

import dataclasses
import itertools
import math
import re

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
import scipy.linalg
import scipy.stats
from helpers import x64

from jax_ntk_sketch import sketch
from jax_ntk_sketch._numerics import next_power_of_two
from jax_ntk_sketch.sketch import hadamard_transform


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


@pytest.mark.long_cases(*contract.SLOW_CHECKS)
@pytest.mark.quick_cases("CountSketch-noth", "CountSketch-comp", "SRHT-exp")
@pytest.mark.parametrize("rule", contract.CHECKS)
@pytest.mark.parametrize("case", registry.SKETCHES, ids=str)
def test_contract(rule, case):
    getattr(contract, rule)(case)


# Exact identities.


@pytest.mark.parametrize("size", [1, 2, 8, 64, 128, 1024, 2048])
def test_hadamard_transform(size):
    x = np.random.default_rng(0).normal(size=(2, 3, size))
    with x64():
        y = hadamard_transform(jnp.asarray(x))
        assert y.dtype == np.float64
        matrix = scipy.linalg.hadamard(size) / np.sqrt(size)
        np.testing.assert_allclose(y, x @ matrix, atol=1e-13 * np.sqrt(size))
        np.testing.assert_allclose(hadamard_transform(y), x, atol=1e-13 * np.sqrt(size))
    single = hadamard_transform(x.astype(np.float32))
    np.testing.assert_allclose(single, y, atol=1e-5)


def test_next_power_of_two():
    sizes = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 784: 1024, 1024: 1024, 1025: 2048}
    assert {n: next_power_of_two(n) for n in sizes} == sizes


def matrix_of(record, key=0, dim=None):
    """The linear map (d, m) of a sketch, in float64."""
    with x64():
        eye = jnp.eye(dim or record.input_dim, dtype=np.float64)
        return np.asarray(record.apply(record.init(jax.random.key(key)), eye))


@pytest.mark.parametrize(("dim", "out"), [(1, 1), (1, 3), (5, 8), (5, 24), (8, 8)])
def test_full_srht_is_an_isometry(dim, out):
    s = matrix_of(sketch.SRHT(dim, out))
    np.testing.assert_allclose(s @ s.T, np.eye(dim), atol=1e-14)


def test_srht_rows_are_orthogonal_signs():
    s = matrix_of(sketch.SRHT(8, 5))
    np.testing.assert_allclose(np.abs(s), 5**-0.5, rtol=1e-14)
    np.testing.assert_allclose(s.T @ s, 8 / 5 * np.eye(5), atol=1e-14)


@pytest.mark.parametrize(("out", "sparsity"), [(7, 1), (8, 2), (7, 3), (4, 4)])
def test_osnap_is_a_sparse_sign_matrix(out, sparsity):
    s = matrix_of(sketch.OSNAP(50, out, sparsity))
    edges = [i * out // sparsity for i in range(sparsity + 1)]
    for start, stop in itertools.pairwise(edges):
        block = s[:, start:stop]
        assert ((block != 0).sum(1) == 1).all()
        np.testing.assert_allclose(np.abs(block[block != 0]), sparsity**-0.5)
    if sparsity == 1:
        np.testing.assert_array_equal(s, matrix_of(sketch.CountSketch(50, out)))


def test_count_sketch_is_uniform():
    """Buckets and signs, and pairs of neighbouring coordinates, by chi-square."""
    params = sketch.CountSketch(40_000, 3).init(jax.random.key(0))
    cell = 2 * params["bucket"][0] + (params["sign"][0] > 0)
    assert scipy.stats.chisquare(np.bincount(cell, minlength=6)).pvalue > 1e-3
    pairs = 6 * cell[::2] + cell[1::2]
    assert scipy.stats.chisquare(np.bincount(pairs, minlength=36)).pvalue > 1e-3


def test_poly_sketch_low_degrees_are_exact():
    record = sketch.PolySketch(6, 3, (6, 0, 4))
    x = contract.X
    one, first, second, third = record.apply(record.init(jax.random.key(0)), x)
    np.testing.assert_array_equal(one, np.ones((5, 1)))
    np.testing.assert_array_equal(first, x)
    assert second.shape == (5, 0) and third.shape == (5, 4)


@pytest.mark.parametrize("degree", [1, 2, 3, 6, 7, 8])
def test_poly_sketch_is_homogeneous_of_each_degree(degree):
    record = sketch.PolySketch(6, degree, 5)
    params = record.init(jax.random.key(0))
    powers = record.apply(params, contract.X)
    halves = record.apply(params, contract.X / 2)
    assert len(powers) == degree + 1
    for j, (z, half) in enumerate(zip(powers, halves, strict=True)):
        np.testing.assert_allclose(half, z * 0.5**j, rtol=1e-5, atol=1e-9)


def test_poly_sketch_computes_nothing_that_nobody_asked_for():
    """No node of its tree for degrees above the highest that has columns."""
    short = sketch.PolySketch(6, 2, 5)
    long = sketch.PolySketch(6, 8, (5, 5, 0, 0, 0, 0, 0, 0), width=5)
    assert long.flops == short.flops
    count = [len(jax.tree.leaves(s.init(jax.random.key(0)))) for s in (short, long)]
    assert count[0] == count[1]


# Exact moments: mean and variance over all values that the parameters can have.


def sign_vectors(n):
    return np.array(list(itertools.product((-1, 1), repeat=n)), np.int8)


def all_count_sketches(dim, out):
    buckets = np.array(list(itertools.product(range(out), repeat=dim)), np.int32)
    pairs = itertools.product(buckets, sign_vectors(dim))
    b, s = (np.array(a) for a in zip(*pairs, strict=True))
    return {"bucket": b[:, None], "sign": s[:, None]}


def all_rotations(dim):
    size = next_power_of_two(dim)
    orders = np.array(list(itertools.permutations(range(size))), np.int32)
    pairs = itertools.product(orders, sign_vectors(size))
    order, sign = (np.array(a) for a in zip(*pairs, strict=True))
    sign = np.where(order < dim, sign, 0).astype(np.int8)
    return {"order": np.minimum(order, dim - 1), "sign": sign[:, None]}


def all_pairs(params):
    """Two independent draws, each uniform over the leading axis."""
    n = len(jax.tree.leaves(params)[0])
    first, second = np.divmod(np.arange(n * n), n)
    return tuple(
        jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in (first, second)
    )


def all_products(f, params, *xs):
    """<S x, S y> over all draws, in float64."""
    with x64():
        out = registry.jit_once(jax.vmap(lambda p: f(p, *map(jnp.asarray, xs))))(params)
    return np.asarray(out)


def one_term(x, y):
    """m times the variance of CountSketch: what all sketches here are made of."""
    return x @ x * (y @ y) + (x @ y) ** 2 - 2 * (x * x) @ (y * y)


def srht_variance(x, y, out):
    size = next_power_of_two(len(x))
    left = out % size  # rows of the last rotation; the full ones are exact
    return left * (size - left) * one_term(x, y) / (max(size - 1, 1) * out**2)


def tensor_srht_variance(u, u2, v, v2, out):
    """For `out` not above either padded size: rows without replacement in both."""
    variances, covariances = [], []
    for a, b in ((u, u2), (v, v2)):
        square, one = (a @ b) ** 2, one_term(a, b)
        variances.append(square + one)
        covariances.append(square - one / (next_power_of_two(len(a)) - 1))
    second = math.prod(variances) / out + (1 - 1 / out) * math.prod(covariances)
    return second - (u @ u2 * (v @ v2)) ** 2


RNG = np.random.default_rng(5)
U, U2, V, V2 = (RNG.normal(size=3) for _ in range(4))


def check_moments(values, mean, variance):
    np.testing.assert_allclose(values.mean(), mean, rtol=1e-12)
    np.testing.assert_allclose(values.var(), variance, rtol=1e-11)


def test_exact_moments_of_count_sketch():
    record = sketch.CountSketch(3, 2)
    values = all_products(
        lambda p, x, y: record.apply(p, x) @ record.apply(p, y),
        all_count_sketches(3, 2),
        U,
        V,
    )
    check_moments(values, U @ V, one_term(U, V) / 2)


@pytest.mark.parametrize("out", [1, 2, 3])
def test_exact_moments_of_srht(out):
    """The first rows after a permutation are as good as sampled rows."""
    record = sketch.SRHT(3, out)
    values = all_products(
        lambda p, x, y: record.apply(p, x) @ record.apply(p, y),
        all_rotations(3),
        U,
        V,
    )
    check_moments(values, U @ V, srht_variance(U, V, out))


def test_exact_moments_of_tensor_srht():
    record = sketch.TensorSRHT((3, 3), 3)
    values = all_products(
        lambda p, u, v, u2, v2: record.apply(p, u, v) @ record.apply(p, u2, v2),
        all_pairs(all_rotations(3)),
        U,
        V,
        U2,
        V2,
    )
    exact = tensor_srht_variance(U, U2, V, V2, 3)
    check_moments(values, U @ U2 * (V @ V2), exact)


# Bad input.


def bad(make, message, error=ValueError):
    return pytest.param(make, error, message, id=message[:40])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        bad(lambda: sketch.CountSketch(0, 4), "CountSketch: input_dim .* >= 1, got 0"),
        bad(lambda: sketch.CountSketch(4, 2.5), "output_dim .* an integer", TypeError),
        bad(lambda: sketch.OSNAP(4, 3, 4), "OSNAP: sparsity must be at most .* got 4"),
        bad(lambda: sketch.OSNAP(4, 3, 0), "OSNAP: sparsity .* >= 1, got 0"),
        bad(lambda: sketch.SRHT(4, True), "SRHT: output_dim .* got True"),
        bad(lambda: sketch.SRHT("4", 1), "SRHT: input_dim .* integer", TypeError),
        bad(lambda: sketch.TensorSRHT((4,), 3), "input_dims must be two sizes"),
        bad(lambda: sketch.TensorSRHT((4, -1), 3), "TensorSRHT: input_dims .* got -1"),
        bad(lambda: sketch.PolySketch(4, 0, 3), "PolySketch: degree .* >= 1"),
        bad(lambda: sketch.PolySketch(4, 2, (3,)), "degrees 1..2, got 1 sizes"),
        bad(lambda: sketch.PolySketch(4, 2, (3, -1)), "output_dim .* >= 0, got -1"),
        bad(lambda: sketch.PolySketch(4, 2, 0), "PolySketch: output_dim .* >= 1"),
        bad(lambda: sketch.PolySketch(4, 2, 3, width=0), "PolySketch: width .* >= 1"),
        bad(lambda: sketch.PolySketch(4, 2, 3, leaf="x"), "PolySketch: leaf .* one of"),
        bad(lambda: hadamard_transform(jnp.ones(6)), "power of two, got 6"),
    ],
)
def test_bad_sizes(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.long_cases("PolySketch-2", "PolySketch-5", "TensorSRHT")
@pytest.mark.parametrize("case", registry.SKETCHES, ids=str)
def test_bad_keys_and_inputs(case):
    record, name = case.record, re.escape(type(case.record).__name__)
    params = record.init(jax.random.key(0))
    for key, error, message in (
        (0, TypeError, rf"{name}: key must be a JAX PRNG key, got 0; make one"),
        (None, TypeError, rf"{name}: key must be a JAX PRNG key"),
        (np.arange(2.0), TypeError, rf"{name}: key .* got an array of float64"),
        (
            np.arange(3, dtype=np.uint32),
            TypeError,
            rf"{name}: .* not a legacy PRNG key",
        ),
        (jax.random.split(jax.random.key(0)), ValueError, "use jax.vmap for a batch"),
        (jax.random.key_data(jax.random.split(jax.random.key(0))), ValueError, "vmap"),
    ):
        with pytest.raises(error, match=message):
            record.init(key)

    def run(x):
        return registry.apply(case.of(record), params, x)

    if not isinstance(record, sketch.TensorSRHT):
        for x in (np.ones((2, 5)), np.ones(7), np.float32(1)):
            with pytest.raises(
                ValueError, match=f"{name}: the last axis of x .* size 6"
            ):
                run(x)
    with pytest.raises(TypeError, match=f"{name}: . must be real, got complex64"):
        run(np.ones((2, 6), np.complex64))
    # Integers and booleans are numbers.
    ints = np.arange(12).reshape(2, 6) - 4
    for x in (ints, ints.astype(np.int8), ints > 0):
        for z, exact in zip(
            jax.tree.leaves(run(x)),
            jax.tree.leaves(run(x.astype(np.float32))),
            strict=True,
        ):
            assert z.dtype == np.float32
            np.testing.assert_array_equal(z, exact)


@pytest.mark.parametrize("case", registry.SKETCHES, ids=str)
def test_sizes_may_be_numpy_integers(case):
    record = case.record
    fields = {
        f.name: np.int64(value)
        for f in dataclasses.fields(record)
        if f.init and isinstance(value := getattr(record, f.name), int)
    }
    other = dataclasses.replace(record, **fields)
    assert other == record and hash(other) == hash(record)
    jax.eval_shape(other.init, jax.random.key(0))
    assert other.flops == record.flops > 0
