"""What every sketch, random feature and feature map keeps; one test file runs

@pytest.mark.parametrize("rule", contract.CHECKS)
@pytest.mark.parametrize("case", registry.SKETCHES, ids=str)
def test_contract(rule, case):
    getattr(contract, rule)(case)
"""

import copy
import dataclasses
import functools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import x64
from jax import export
from registry import DIM, Case, apply, features, init, jit_once

# They compile functions of their own, or run without compiling.
SLOW_CHECKS = (
    "nothing_within_is_nan",
    "compiled_calls_transfer_nothing",
    "exported_for_any_batch_and_platform",
)
CHECKS = (
    "shapes_zeros_and_determinism",
    "jit_and_vmap_over_keys_equal_a_loop",
    "vmap_over_examples_equals_a_loop",
    "moments_of_gram_matrices_are_exact",
    "gradients_are_finite",
    "dtypes_are_kept",
    "no_retrace_and_equal_records",
    "a_million_columns_by_shape_alone",
    "legacy_keys_are_keys",
    "no_key_is_used_twice",
    "strict_modes_are_no_obstacle",
    *SLOW_CHECKS,
)
# Relative to the largest entry: one rounding of every operation, and some more.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
# Probability that a correct case fails its test of the mean, were seeds not fixed.
ALARM = 1e-4


def examples(n: int = 5) -> np.ndarray:
    """Rows of different lengths; the last two are a copy of the first and zero."""
    x = np.random.default_rng(0).normal(size=(n, DIM)).astype(np.float32)
    x *= np.linspace(0.3, 2, n)[:, None]
    x[-2], x[-1] = x[0], 0
    return x


X = examples()
KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 1500)


@functools.lru_cache(maxsize=2)
def prepared(case: Case):
    """Parameters, drawn outside `jit`, and compiled `apply`: shared by all rules."""
    params = init(case, KEYS[0])
    return params, jit_once(functools.partial(apply, case))


@functools.lru_cache(maxsize=2)
def sampled(case: Case) -> list[np.ndarray]:
    """Every output for many keys, (seeds, n, columns), under `jit` and `vmap`."""
    one = functools.partial(features, case)
    if case.traced_init:
        out = jit_once(jax.vmap(one, (0, None)))(KEYS[: case.seeds], X)
    else:
        draws = [one(key, X) for key in KEYS[: case.seeds]]
        out = [np.stack(z) for z in zip(*draws, strict=True)]
    return [np.asarray(z) for z in out]


def assert_close(actual, desired, dtype="float32"):
    actual, desired = jax.tree.leaves(actual), jax.tree.leaves(desired)
    for a, b in zip(actual, desired, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        atol = TOLERANCE[dtype] * np.max(np.abs(b), initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def assert_mean(samples, exact, alarm=ALARM, slack=0.0, rounding=1e-5):
    """The mean over the first axis is `exact`, by t-tests of all entries at once.

    Args:
      samples: (seeds, ...), independent.
      exact: (...), the expectation.
      alarm: probability that it fails though all is well (Bonferroni).
      slack: a bias of this size, relative to the largest entry, is let through.
      rounding: likewise, for what single precision does.
    """
    samples = np.asarray(samples, np.float64)
    exact = np.asarray(exact, np.float64)
    seeds = len(samples)
    assert seeds >= 200
    error = np.abs(samples.mean(0) - exact)
    sigma = samples.std(0, ddof=1) / math.sqrt(seeds)
    limit = scipy.stats.t.isf(alarm / (2 * max(exact.size, 1)), seeds - 1)
    allowed = limit * sigma + (slack + rounding) * np.max(np.abs(exact), initial=0)
    worst = np.max((error - allowed) / np.maximum(sigma, 1e-30), initial=-np.inf)
    assert (error <= allowed).all(), f"{worst + limit:.1f} standard errors off"


def shapes_zeros_and_determinism(case: Case):
    params, run = prepared(case)
    out = jax.tree.leaves(run(params, X))
    assert [z.shape for z in out] == [(len(X), size) for size in case.columns]
    check_plain(params)
    for z in out:
        assert np.isfinite(z).all()
        assert not case.zero or not np.any(z[-1])
        if not case.from_batch:
            np.testing.assert_array_equal(z[0], z[-2])
    same = init(case, KEYS[0])
    jax.tree.map(np.testing.assert_array_equal, same, params)
    for z, again in zip(out, jax.tree.leaves(run(same, X)), strict=True):
        np.testing.assert_array_equal(z, again)
    if any(leaf.size for leaf in jax.tree.leaves(params)):
        # Every key its own features. (The column of ones of degree 0 has no key.)
        for z in sampled(case):
            assert z.shape[2] <= 1 or len(np.unique(z[:4], axis=0)) == 4


def check_plain(params):
    """Libraries that save pytrees know these nodes, and no array without entries."""
    if isinstance(params, dict):
        assert all(isinstance(key, str) for key in params)
        params = list(params.values())
    if type(params) in (list, tuple):
        for part in params:
            check_plain(part)
    else:
        assert isinstance(params, jax.Array) and params.size


def jit_and_vmap_over_keys_equal_a_loop(case: Case):
    _, run = prepared(case)
    out = sampled(case)

    def seen(leaves):
        """Factors of a singular kernel amplify rounding: of them the kernel counts."""
        return [z @ z.T for z in map(np.asarray, leaves)] if case.from_batch else leaves

    for i in (0, 1):
        params = init(case, KEYS[i])
        eager = seen(jax.tree.leaves(apply(case, params, X)))
        assert_close(seen([z[i] for z in out]), eager)
        assert_close(seen(jax.tree.leaves(run(params, X))), eager)


def vmap_over_examples_equals_a_loop(case: Case):
    params, run = prepared(case)
    batches = np.stack([X, 1.5 * X[::-1] + 0.1 * X[1]])
    mapped = jax.vmap(functools.partial(apply, case), (None, 0))
    out = jax.tree.leaves(jit_once(mapped)(params, batches))
    for i, batch in enumerate(batches):
        assert_close([z[i] for z in out], run(params, batch))


def moments_of_gram_matrices_are_exact(case: Case):
    """Mean and, where there is a formula, variance of every entry."""
    if case.kernel is None:
        return
    grams = [np.einsum("sim,sjm->sij", z, z, dtype=float) for z in sampled(case)]
    for gram, exact in zip(grams, case.kernel(X), strict=True):
        assert_mean(gram, exact, slack=case.slack)
    if case.variance is not None:
        squares = np.square(grams[0] - case.kernel(X)[0])
        assert_mean(squares, case.variance(X), rounding=1e-4)


def gradients_are_finite(case: Case):
    """With respect to x, also where rows coincide and at zero."""
    weights = np.random.default_rng(1).normal(size=(len(X), len(X)))

    def loss(params, x):
        outs = jax.tree.leaves(apply(case, params, x))
        return sum(jnp.sum(weights.astype(x.dtype) * (z @ z.T)) for z in outs)

    slope = jit_once(jax.grad(loss, argnums=1))
    for x in (X, np.zeros_like(X)):
        assert np.isfinite(slope(prepared(case)[0], x)).all()


def dtypes_are_kept(case: Case):
    params, run = prepared(case)
    leaves = jax.tree.leaves(params)
    assert all(leaf.dtype in (np.int8, np.int32, np.float32) for leaf in leaves)
    single = jax.tree.leaves(run(params, X))
    for dtype in (jnp.float16, jnp.bfloat16):
        for z in jax.tree.leaves(run(params, X.astype(dtype))):
            assert z.dtype == dtype
            assert np.isfinite(z.astype(np.float32)).all()
    with x64():
        double = jax.tree.leaves(run(params, X.astype(np.float64)))
        kept = jax.tree.leaves(run(params, X))
    for z32, z64, z in zip(single, double, kept, strict=True):
        assert (z32.dtype, z64.dtype, z.dtype) == ("float32", "float64", "float32")
        z32, z64 = np.asarray(z32), np.asarray(z64)
        if case.from_batch:  # unique up to a rotation, and steep where rows coincide
            np.testing.assert_allclose(z32 @ z32.T, z64 @ z64.T, atol=1e-3)
        else:
            assert_close(z32, z64)


def no_retrace_and_equal_records(case: Case):
    record = case.record
    copies = (copy.deepcopy(record), dataclasses.replace(record))
    for other in (*copies, pickle.loads(pickle.dumps(record))):
        assert other == record and hash(other) == hash(record)
    traces = []

    @functools.partial(jit_once, static_argnums=0)
    def run(record, params, x):
        traces.append(record)
        return apply(case.of(record), params, x)

    run(record, prepared(case)[0], X)
    run(copies[0], init(case, KEYS[1]), 1 - X)
    assert len(traces) == 1


def a_million_columns_by_shape_alone(case: Case):
    record = case.large
    if record is None:
        return
    dims = getattr(record, "input_dims", (getattr(record, "input_dim", DIM),))

    def run(key, *xs):
        if isinstance(dims, tuple) and len(xs) == 2:
            return record.apply(record.init(key), *xs)
        return features(case.of(record), key, *xs)

    xs = [jax.ShapeDtypeStruct((3, dim), np.float32) for dim in dims]
    shapes = jax.tree.leaves(jax.eval_shape(run, KEY, *xs))
    assert all(z.shape[0] == 3 for z in shapes)
    assert case.from_batch or sum(z.shape[1] for z in shapes) >= 10**6


def legacy_keys_are_keys(case: Case):
    legacy = init(case, jax.random.key_data(KEYS[0]))
    jax.tree.map(np.testing.assert_array_equal, legacy, prepared(case)[0])


def strict_modes_are_no_obstacle(case: Case):
    """Ranks and dtypes are promoted by nobody, and no tracer is kept."""
    x = jax.ShapeDtypeStruct(examples().shape, np.float32)
    modes = (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.checking_leaks(),
    )
    params = None if case.traced_init else prepared(case)[0]
    for mode in modes:
        with mode:
            # A function of its own, because a trace would be remembered.
            jax.eval_shape(
                lambda key, x: jax.tree.leaves(
                    apply(case, init(case, key) if params is None else params, x)
                ),
                KEYS[0],
                x,
            )


def nothing_within_is_nan(case: Case):
    """JAX's own check of each operation, also of those that `where` would hide."""
    params, _ = prepared(case)

    def total(x):
        return sum(jnp.sum(z) for z in jax.tree.leaves(apply(case, params, x)))

    with jax.debug_nans(True):
        init(case, KEYS[0])
        jax.grad(total)(jnp.asarray(X))


def compiled_calls_transfer_nothing(case: Case):
    """What is on the device suffices, when a function is traced too."""
    key, x = jax.device_put((KEYS[0], X))
    params, _ = prepared(case)
    with jax.transfer_guard("disallow"):
        if case.traced_init:
            params = jit_once(functools.partial(init, case))(key)
        jit_once(functools.partial(apply, case))(params, x)


def exported_for_any_batch_and_platform(case: Case):
    """As a program, read back from its bytes."""
    params, run = prepared(case)
    program = exported(functools.partial(apply, case), params, X)
    for x in (X[:1], X):
        assert_close(program(params, x), run(params, x))


def exported(run, params, *examples):
    """Return `run(params, *examples)` for any number of examples, exported and read."""
    pytest.importorskip("flatbuffers")
    (n,) = export.symbolic_shape("n")
    like = jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape, z.dtype), params)
    rows = [jax.ShapeDtypeStruct((n, *z.shape[1:]), z.dtype) for z in examples]
    # Named tuples have no form in files.
    leaves = jax.jit(lambda *args: jax.tree.leaves(run(*args)))
    program = export.export(leaves, platforms=("cpu", "cuda", "tpu"))(like, *rows)
    return export.deserialize(program.serialize()).call


def no_key_is_used_twice(case: Case):
    """JAX's own checker; statistics cannot see what reuse does to unlike draws."""
    record = case.record
    if isinstance(getattr(record, "get", None), tuple):
        # Both kernels use the same keys on purpose, each of them once.
        record = dataclasses.replace(record, get="ntk")
    draw = functools.partial(init, case.of(record))
    with jax.debug_key_reuse(True):
        if case.traced_init:
            jax.eval_shape(draw, jax.random.key(11))
        else:
            draw(jax.random.key(11))
