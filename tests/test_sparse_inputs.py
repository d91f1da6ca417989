"""Sparse examples: the features of dense ones, at the cost of their nonzeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from contract import assert_mean
from helpers import x64
from registry import jit_once

import jax_ntk_sketch as jns
from jax_ntk_sketch import SparseRows, sketch, stax

NET = stax.serial(stax.Dense(8, 1.4), stax.Relu(), stax.Dense(1))
BIASED = stax.serial(stax.Dense(8, 1.4, 0.5), stax.Relu(), stax.Dense(1, 1.0, 0.3))
DIM, COLUMNS = 300, 64
KEY = jax.random.key(0)
METHODS = ("one_pass", "ntk_sketch", "variance_reduced", "nystrom", "auto")


def sparse(n=12, d=DIM, dtype=np.float32, density=0.05):
    """Rows of different lengths; the last two are empty."""
    x = scipy.sparse.random_array(
        (n, d), density=density, rng=np.random.default_rng(0), dtype=np.float64
    ).tolil()
    x[-2:] = 0
    return (x.tocsr() - 0.3 * (x.tocsr() > 0.5)).astype(dtype)


X = sparse()


def mapped(method="variance_reduced", net=NET, num_features=24, get="ntk", **options):
    fmap = jns.feature_map(net, num_features=num_features, get=get, method=method)
    return jns.with_sparse_inputs(fmap, sketch_dim=COLUMNS, **options)


FMAP = mapped()
PARAMS = FMAP.init(KEY, (DIM,))
PHI = np.asarray(jit_once(FMAP.apply)(PARAMS, X.toarray()))


def close(a, b, tolerance=2e-6):
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(b))
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, atol=tolerance * scale), a, b
    )


@pytest.mark.parametrize("method", METHODS)
def test_sparse_equals_dense(method):
    learns = method == "nystrom"
    fmap = mapped(method, num_features=12, exact_norms=method != "one_pass")
    params = fmap.init(KEY, (DIM,), sample=X)
    run = jit_once(fmap.apply)
    dense = run(params, X.toarray())
    assert dense.shape == (12, 12) and np.asarray(dense).any()
    tolerance = 2e-4 if learns else 2e-6  # a square root of a nearly singular matrix
    close(run(params, SparseRows.from_scipy(X)), dense, tolerance)
    if learns:
        gram = dense @ dense.T
        dense = run(fmap.init(KEY, (DIM,), sample=X.toarray()), X.toarray())
        close(dense @ dense.T, gram, 1e-3)


def test_scipy_outside_jit_and_batches():
    close(FMAP.apply(PARAMS, X), PHI)
    close(FMAP.apply(PARAMS, X, batch_size=5), PHI)


def test_sparse_equals_dense_in_float64():
    with x64():
        x = sparse(dtype=np.float64)
        fmap = mapped("variance_reduced", BIASED, get=("nngp", "ntk"))
        params = fmap.init(KEY, (DIM,))
        run = jit_once(fmap.apply)
        phi = run(params, SparseRows.from_scipy(x))
        assert phi.ntk.dtype == np.float64
        close(phi, run(params, x.toarray()), 1e-14)


def test_is_the_base_map_of_the_sketch():
    """The features are those of `base` on rows whose inner products are <x, y> / d."""
    z = FMAP._sketched(PARAMS, jnp.asarray(X.toarray()))
    close(FMAP.base.apply(PARAMS["base"], z), PHI)
    norms = np.asarray((z**2).sum(1)) / COLUMNS
    np.testing.assert_allclose(norms, (X**2).sum(1) / DIM, rtol=1e-5)
    osnap = sketch.HashedOSNAP(DIM, COLUMNS)
    plain = osnap.apply(PARAMS["hash"], X.toarray()) * (COLUMNS / DIM) ** 0.5
    raw = mapped(exact_norms=False)._sketched(PARAMS, jnp.asarray(X.toarray()))
    np.testing.assert_allclose(raw, plain, rtol=1e-6)
    cosines = (raw * z).sum(1) ** 2 - (raw**2).sum(1) * (z**2).sum(1)
    np.testing.assert_allclose(cosines, 0, atol=1e-4)


def test_the_diagonal_is_exact_with_biases():
    """Norms and the first layer's scale and bias come through the sketch."""
    fmap = mapped("exact", BIASED, get="nngp")
    params = fmap.init(KEY, (DIM,))
    got = (fmap.apply(params, X) ** 2).sum(1)
    nngp0 = 1.4**2 * (X**2).sum(1) / DIM + 0.5**2
    np.testing.assert_allclose(got, nngp0 / 2 + 0.3**2, rtol=1e-5)


def test_kernel_approaches_the_exact_one():
    exact = mapped("exact")
    dense = jns.feature_map(NET, num_features=1, method="exact")
    x = sparse(40, 2000, density=0.1)
    phi = dense.apply(dense.init(KEY, (2000,)), x.toarray())
    kernel = np.asarray(phi @ phi.T)
    errors = []
    for columns in (64, 1024):
        fmap = jns.with_sparse_inputs(exact.base, sketch_dim=columns)
        grams = []
        run = jit_once(fmap.apply)
        for key in jax.random.split(KEY, 5):
            psi = run(fmap.init(key, (2000,)), SparseRows.from_scipy(x))
            grams.append(np.linalg.norm(psi @ psi.T - kernel) / np.linalg.norm(kernel))
        errors.append(np.mean(grams))
    assert errors[1] < 0.1
    # An error of c^(-1/2): a quarter.
    assert 0.18 < errors[1] / errors[0] < 0.35


def test_sketch_is_unbiased_with_bounded_variance_and_by_blocks():
    """On dimension 10^9, and where coordinates are hashed in several blocks."""
    rng = np.random.default_rng(1)
    osnap = sketch.HashedOSNAP(10**9, 32, sparsity=4)
    indices = np.tile(rng.integers(0, 10**9, 50), 2).astype(np.int32)
    values = rng.normal(size=100).astype(np.float32)
    rows = np.repeat(np.arange(2, dtype=np.int32), 50)

    def one(key):
        params = osnap.init(key)
        z = osnap.apply_sparse(params, indices, rows, values, num_rows=2)
        return jnp.stack([z[0] @ z[1], z[0] @ z[0]])

    got = np.asarray(jit_once(jax.vmap(one))(jax.random.split(KEY, 4000)), np.float64)
    x, y = values[:50].astype(np.float64), values[50:].astype(np.float64)
    assert_mean(got, np.array([x @ y, x @ x]))
    square = (x * x) @ (y * y)
    variance = ((x @ x) * (y @ y) + (x @ y) ** 2 - 2 * square) / 32
    assert_mean((got[:, :1] - x @ y) ** 2, np.array([variance]), rounding=1e-4)
    assert variance < ((x @ x) * (y @ y) + (x @ y) ** 2) / 32
    # So are sums over several blocks, in any order.
    k = 2**15 + 77
    indices, rows = rng.integers(0, 10**9, k), rng.integers(0, 3, k)
    values = rng.integers(-9, 9, k).astype(np.float32)  # sums without rounding
    one = functools.partial(osnap.apply_sparse, osnap.init(KEY), num_rows=3)
    parts = [one(*(z[i::5] for z in (indices, rows, values))) for i in range(5)]
    np.testing.assert_array_equal(one(indices, rows, values), sum(parts))
    # Beyond a block the entries are the same as one by one, and they differ.
    params, many = osnap.init(KEY), np.arange(2**15 + 77, dtype=np.int32)
    whole = osnap.entries(params, many)
    tail = osnap.entries(params, many[-100:])
    for name in ("bucket", "sign"):
        np.testing.assert_array_equal(whole[name][:, -100:], tail[name])
    assert len(np.unique(np.asarray(whole["bucket"]) // 8, axis=1)[:, 0]) == 4
    for block, bucket in enumerate(np.asarray(whole["bucket"])):
        counts = np.bincount(bucket, minlength=32)[8 * block : 8 * block + 8]
        assert counts.sum() == len(many)
        assert abs(counts / len(many) * 8 - 1).max() < 0.06  # four standard errors


def test_same_features_whatever_the_default_generator():
    old = jax.config.jax_default_prng_impl
    params = PARAMS["hash"]
    osnap = sketch.HashedOSNAP(DIM, COLUMNS)
    want = osnap.apply(params, X.toarray())
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        np.testing.assert_array_equal(osnap.apply(params, X.toarray()), want)
    finally:
        jax.config.update("jax_default_prng_impl", old)
    # Known bits: parameters that were saved keep their meaning.
    seed = {"seed": jnp.array([[1, 2]], jnp.int32)}
    two = sketch.HashedOSNAP(10**6, 1000, 2)
    entries = two.entries(seed, np.array([0, 10**6 - 1], np.int32))
    key = jax.random.wrap_key_data(jnp.array([1, 2], jnp.uint32), impl="threefry2x32")
    for column, i in enumerate((0, 10**6 - 1)):
        words = np.asarray(jax.random.key_data(jax.random.fold_in(key, i)))
        wanted = (words >> 1) % 500 + np.array([0, 500])
        np.testing.assert_array_equal(entries["bucket"][:, column], wanted)


@pytest.mark.long
def test_vmap_over_keys_and_gradients():
    rows = SparseRows.from_scipy(X)

    def gram(key, values):
        x = SparseRows(rows.indices, rows.rows, values, rows.shape)
        return FMAP.apply(FMAP.init(key, (DIM,)), x)

    keys = jax.random.split(KEY, 3)
    out = jit_once(jax.vmap(gram, (0, None)))(keys, rows.values)
    for key, phi in zip(keys, out, strict=True):
        close(phi, gram(key, rows.values))
    assert not np.allclose(out[0], out[1])
    slope = jit_once(jax.grad(lambda v: jnp.sum(gram(KEY, v)[:, :3])))(rows.values)
    params = FMAP.init(KEY, (DIM,))
    dense = jax.grad(lambda x: jnp.sum(FMAP.apply(params, x)[:, :3]))
    full = np.asarray(jit_once(dense)(X.toarray()))
    k = X.nnz
    places = rows.rows[:k], rows.indices[:k]
    np.testing.assert_allclose(slope[:k], full[places], atol=1e-5 * np.abs(full).max())
    assert not np.any(slope[k:]) and np.isfinite(full).all()


def test_nothing_has_the_size_of_the_dimension():
    d = 10**9
    entries = jax.ShapeDtypeStruct((64,), np.int32)
    x = SparseRows(entries, entries, jax.ShapeDtypeStruct((64,), np.float32), (8, d))
    params = FMAP.init(KEY, (d,))
    assert list(params["origin"]) == [f"({d},) to {FMAP.sketch_dim}"]
    held = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert held == sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    text = str(jax.make_jaxpr(FMAP.apply)(params, x))
    assert str(d) not in text
    phi = FMAP.apply(
        params, SparseRows.from_lists([[0, d - 1], [5]], [[1.0, 2.0], [3.0]], d)
    )
    assert phi.shape == (2, 24) and np.asarray(phi).any()


def test_batches_of_similar_nonzeros_are_not_compiled_again():
    traces = []

    @jax.jit
    def run(params, x):
        traces.append(x.nnz)
        return FMAP.apply(params, x)

    for count in (100, 90, 128, 65):
        rng = np.random.default_rng(count)
        x = scipy.sparse.coo_array(
            (np.ones(count), (rng.integers(0, 8, count), np.arange(count))), (8, DIM)
        )
        close(run(PARAMS, SparseRows.from_scipy(x)), FMAP.apply(PARAMS, x.toarray()))
    assert traces == [128]


def test_empty_rows_and_matrices():
    assert np.isfinite(PHI).all() and not PHI[-2:].any()
    for x in (X[:0], scipy.sparse.csr_array((3, DIM)), SparseRows.from_scipy(X)[:0]):
        phi = FMAP.apply(PARAMS, x)
        assert phi.shape == (x.shape[0], 24) and not np.asarray(phi).any()
    nothing = SparseRows.from_lists([[], []], [[], []], DIM)
    assert nothing.shape == (2, DIM) and nothing.dtype == np.float32
    assert FMAP.apply(PARAMS, nothing).shape == (2, 24)


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
def test_every_format(kind):
    for x in (X.asformat(kind), getattr(scipy.sparse, f"{kind}_matrix")(X)):
        close(FMAP.apply(PARAMS, x), PHI)


def test_lists_duplicates_and_slices():
    got = SparseRows.from_lists([[7, 2, 7], [], [299]], [[1, 2, 3], [], [4]], DIM)
    dense = np.zeros((3, DIM), int)
    dense[0, [2, 7]], dense[2, 299] = (2, 4), 4
    np.testing.assert_array_equal(got.to_scipy().toarray(), dense)
    assert got.dtype.kind == "i" and FMAP.apply(PARAMS, got).dtype == np.float32
    close(FMAP.apply(PARAMS, got), FMAP.apply(PARAMS, dense))
    close(FMAP.apply(PARAMS, dense > 0), FMAP.apply(PARAMS, got.to_scipy() > 0))
    unsorted = scipy.sparse.csr_array(
        (np.array([1.0, 2, 3, 4]), np.array([7, 2, 7, 299]), np.array([0, 3, 3, 4])),
        (3, DIM),
    )
    close(FMAP.apply(PARAMS, unsorted), FMAP.apply(PARAMS, dense))
    assert not unsorted.has_canonical_format and unsorted.nnz == 4  # left alone
    rows = SparseRows.from_scipy(X)
    assert len(rows) == 12 and rows.dtype == np.float32
    for part in (slice(2, 7), slice(8, None), slice(0, 0), np.array([5, 1, 5])):
        np.testing.assert_array_equal(
            rows[part].to_scipy().toarray(), X[part].toarray()
        )
    with pytest.raises(TypeError, match=r"slice .* got 3; use x\[i : i \+ 1\]"):
        rows[3]


def test_bad_sparse_arrays():
    make = SparseRows.from_lists
    with pytest.raises(ValueError, match=r"index -1 of example 1 .* outside 0\.\.299"):
        make([[3], [4, -1]], [[1.0], [1.0, 1.0]], DIM)
    with pytest.raises(ValueError, match=r"index 300 of example 0 .* outside 0\.\.299"):
        make([[300]], [[1.0]], DIM)
    with pytest.raises(ValueError, match="must have one length, got 2 and 1"):
        make([[3], [4]], [[1.0]], DIM)
    with pytest.raises(
        ValueError, match=r"example 1 must be flat .* got shapes \(2,\)"
    ):
        make([[3], [4, 5]], [[1.0], [1.0]], DIM)
    with pytest.raises(TypeError, match="must be integers, got float64 in example 0"):
        make([[3.5]], [[1.0]], DIM)
    with pytest.raises(ValueError, match=r"d from 1 to 2\^31 - 1, got \(1, 2147483648"):
        make([[3]], [[1.0]], 2**31)
    with pytest.raises(TypeError, match="must be real, got dtype complex"):
        SparseRows.from_scipy(X.astype(complex))
    with pytest.raises(TypeError, match="sparse array or matrix, got ndarray"):
        SparseRows.from_scipy(X.toarray())
    broken = X.copy()
    broken.indices[0] = DIM
    with pytest.raises(ValueError, match=r"index 300 of example 0 of x is outside"):
        FMAP.apply(PARAMS, broken)
    with pytest.raises(ValueError, match=r"one shape \(k,\)"):
        FMAP.apply(
            PARAMS, SparseRows(np.zeros(3, int), np.zeros(2, int), 1.0, (2, DIM))
        )


def test_bad_use_of_the_map():
    with pytest.raises(ValueError, match=r"must have shape \(n, 300\) .* 299"):
        FMAP.apply(PARAMS, X[:, :299])
    with pytest.raises(ValueError, match=r"must have shape \(n, 300\) .* 299"):
        FMAP.apply(PARAMS, X[:, :299].toarray())
    with pytest.raises(ValueError, match=r"x\[None\]"):
        FMAP.apply(PARAMS, np.ones(DIM))
    with pytest.raises(ValueError, match=r"example must be \(d,\)"):
        FMAP.init(KEY, (3, 4))
    with pytest.raises(ValueError, match=r"sketch_dim must be 64, .* sketch_dim=65"):
        jns.with_sparse_inputs(FMAP.base, sketch_dim=65).apply(PARAMS, X)
    plain = FMAP.base
    for run in (
        lambda: plain.init(KEY, X),
        lambda: plain.plan(X),
        lambda: plain.apply(plain.init(KEY, (DIM,)), X),
        lambda: plain.apply(PARAMS["base"], SparseRows.from_scipy(X)),
        lambda: jns.transform(plain, PARAMS["base"], X),
    ):
        with pytest.raises(
            TypeError, match=r"wrap the map, jax_ntk_sketch.with_sparse_inputs"
        ):
            run()
    image = jns.feature_map(jns.recipes.cntk(2), num_features=32)
    with pytest.raises(
        ValueError, match=r"with_sparse_inputs: fmap must take flat .*Conv"
    ):
        jns.with_sparse_inputs(image)
    with pytest.raises(TypeError, match="already"):
        jns.with_sparse_inputs(FMAP)
    with pytest.raises(TypeError, match="fmap must be a feature map"):
        jns.with_sparse_inputs(NET)
    with pytest.raises(
        ValueError, match="sparsity must not exceed sketch_dim = 64, got 65"
    ):
        mapped(sparsity=65)
    with pytest.raises(TypeError, match="exact_norms must be a bool"):
        mapped(exact_norms=1)
    with pytest.raises(ValueError, match=r"at most 2\^31 - 1"):
        FMAP.init(KEY, (2**31,))


def test_record_and_plan():
    assert mapped() == FMAP and hash(mapped()) == hash(FMAP)
    namespace = {**vars(jns), **vars(jns.methods)}
    assert eval(repr(FMAP), namespace) == FMAP
    plan = FMAP.plan(SparseRows.from_scipy(X))
    assert plan.num_features == 24 and plan.num_examples == 12
    assert plan.param_bytes == sum(p.nbytes for p in jax.tree.leaves(PARAMS))
    huge, small = (FMAP.plan(x).peak_bytes for x in (_wide(10**9), _wide(10**3)))
    assert huge == small  # of nonzeros, not of d
    assert FMAP.plan((10**6,)).peak_bytes > 10**7  # dense


def _wide(d):
    return SparseRows.from_lists([[0, 3]] * 5, [[1.0, 2.0]] * 5, d)
