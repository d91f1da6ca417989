"""The reader: positions, dtypes, padding, names of what is wrong."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jax_ntk_sketch._arrays import to_jax
from jax_ntk_sketch._checks import check_examples
from jax_ntk_sketch.batches.reader import Reader
from jax_ntk_sketch.batches.source import ArraySource, open_source

RNG = np.random.default_rng(0)
X = RNG.standard_normal((10, 3)).astype(np.float32)
Y = RNG.standard_normal((10, 2))


def read(x, y=None, *, weight=None, extras=None, order=None, **options):
    """The rows of all batches, without padding, and the batches."""
    if y is None:
        source = ArraySource("job", x, weight=weight, extras=extras)
    else:
        source = ArraySource("job", x, y, weight, extras)
    reader = Reader(source, **{"batch_size": 4, **options})
    batches = list(reader.batches(order=order))
    rows = [batch.x[: len(batch.numbers)] for batch in batches]
    return np.concatenate(rows), batches


def stream(batches, **options):
    reader = Reader(open_source("job", batches, None, None, {}), **options)
    return list(reader.batches())


def test_batches_have_one_size_and_every_example_once():
    rows, batches = read(X, Y)
    np.testing.assert_array_equal(rows, X)
    assert [batch.x.shape for batch in batches] == [(4, 3)] * 3
    assert [batch.numbers.tolist() for batch in batches][-1] == [8, 9]
    last = batches[-1]
    assert last.weight.tolist() == [1, 1, 0, 0]
    assert not last.x[2:].any() and not last.y[2:].any()
    np.testing.assert_array_equal(last.y[:2], Y[8:])
    assert read(X, pad=False)[1][-1].x.shape == (2, 3)
    assert read(X, num_devices=2)[1][0].x.shape == (8, 3)


def test_full_batches_are_not_copied():
    assert np.shares_memory(read(X)[1][0].x, X)


def test_an_index_is_a_position():
    """Also in tables, whose own index is of labels."""
    pandas = pytest.importorskip("pandas")
    index = RNG.permutation(10)
    table = pandas.DataFrame(X, index=index)
    y = pandas.Series(Y[:, 0], index=index)
    weight = pandas.Series(np.arange(10.0), index=index)
    order = RNG.permutation(10)
    for x in (table, jnp.asarray(X), list(X), X.tolist(), scipy.sparse.csr_array(X)):
        source = ArraySource("job", x, y, weight)
        reader = Reader(source, batch_size=4)
        for batches in (reader.batches(), reader.batches(order=order)):
            for batch in batches:
                rows = batch.numbers
                found = batch.x
                if hasattr(found, "to_scipy"):
                    found = found.to_scipy().toarray()
                np.testing.assert_allclose(found[: len(rows)], X[rows], rtol=1e-6)
                np.testing.assert_array_equal(batch.y[: len(rows)], Y[rows, 0])
                np.testing.assert_array_equal(batch.weight[: len(rows)], rows)


@pytest.mark.parametrize("dtype", [">f4", "f8", "longdouble", "f2", "u1", "i8", "?"])
def test_every_real_dtype_is_read(dtype):
    x = (10 * np.abs(X)).astype(dtype)
    rows, _ = read(x)
    assert rows.dtype == jax.dtypes.canonicalize_dtype(rows.dtype)
    np.testing.assert_array_equal(rows, x.astype(rows.dtype))
    assert read(x, dtype=np.float64)[0].dtype == np.float64


def frame(library, x):
    return library.DataFrame(dict(zip("abc", x.T, strict=True)))


class OnlyDLPack:
    def __init__(self, array):
        self.__dlpack__ = array.__dlpack__
        self.__dlpack_device__ = array.__dlpack_device__


KEY = jax.random.key(0)
REVERSED = np.arange(10)[::-1]
KINDS = {
    "list": (None, lambda _, a: a.tolist()),
    "list of arrays": (None, lambda _, a: list(a)),
    "read-only": (None, lambda _, a: np.broadcast_to(a, (1, *a.shape))[0]),
    "not contiguous": (None, lambda _, a: np.repeat(a, 2, axis=0)[::2]),
    "Fortran": (None, lambda _, a: np.asfortranarray(a)),
    "big-endian": (None, lambda _, a: a.astype(a.dtype.newbyteorder(">"))),
    "longdouble": (None, lambda _, a: a.astype(np.longdouble)),
    "memoryview": (None, lambda _, a: memoryview(a)),
    "jax": (None, lambda _, a: jnp.asarray(a)),
    "deque": (None, lambda _, a: collections.deque(a)),
    "DLPack": (None, lambda _, a: OnlyDLPack(a)),
    "pandas": ("pandas", lambda pd, a: frame(pd, a).set_index(REVERSED)),
    "nullable": ("pandas", lambda pd, a: frame(pd, a).astype("Float32")),
    "mixed": ("pandas", lambda pd, a: frame(pd, a).astype({"a": "Float32"})),
    "records": ("pandas", lambda pd, a: frame(pd, a).to_records(index=False)),
    "arrow": ("pyarrow", lambda pa, a: pa.table(list(a.T), names=list("abc"))),
    "polars": ("polars", frame),
    "xarray": ("xarray", lambda xr, a: xr.DataArray(a, {"n": REVERSED}, ("n", "d"))),
    "torch": ("torch", lambda torch, a: torch.tensor(a).requires_grad_()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_other_libraries(kind):
    module, make = KINDS[kind]
    x = make(module and pytest.importorskip(module), X)
    np.testing.assert_array_equal(read(x)[0], X)
    np.testing.assert_array_equal(read(x, order=REVERSED)[0][:4], X[6:])
    np.testing.assert_array_equal(to_jax("job", "x", x), X)
    assert check_examples("job", x, (3,)).shape == X.shape
    np.testing.assert_array_equal(read(X, x)[1][0].y, X[:4])


@pytest.mark.parametrize("name", ["float8_e4m3fn", "bfloat16", "int4", "uint4"])
def test_dtypes_of_accelerators(name):
    x = jnp.asarray(np.arange(30).reshape(10, 3) % 5, name)
    for array in (x, np.asarray(x)):
        rows, _ = read(array)
        np.testing.assert_array_equal(
            rows.astype(int), np.arange(30).reshape(10, 3) % 5
        )
        assert (to_jax("job", "x", array) + jnp.float32(0)).dtype == jnp.float32


@pytest.mark.parametrize("module", ["pandas", "polars", "xarray", "torch"])
def test_one_column_of_other_libraries(module):
    library = pytest.importorskip(module)
    make = {"xarray": "DataArray", "torch": "tensor"}.get(module, "Series")
    column = getattr(library, make)
    weight = column(np.arange(10))
    batch = read(X, column(Y[:, 0]), weight=weight)[1][0]
    np.testing.assert_array_equal(batch.y, Y[:4, 0])
    np.testing.assert_array_equal(batch.weight, range(4))
    labels = read(X, column(np.arange(10) % 3))[1][0].y
    np.testing.assert_allclose(labels, np.eye(3)[[0, 1, 2, 0]] - 1 / 3, rtol=1e-6)


def test_missing_cells_and_columns_without_numbers():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1, None, 3], "b": [True, False, True]})
    table["a"] = table["a"].astype("Int64")
    with pytest.raises(ValueError, match=r"x must be finite, got NaN .* example 1 "):
        read(table)
    np.testing.assert_array_equal(read(table.iloc[::2])[0], [[1, 1], [3, 1]])
    for column in (["u", "v", "w"], pandas.date_range("2020-01-01", periods=3)):
        with pytest.raises(TypeError, match="column 'c' of x must hold real numbers"):
            read(table.assign(a=1, c=column))


def test_targets():
    labels = np.array([0, 2, 1, 1, 2, 0, 0, 1, 2, 2], np.uint8)
    batch = read(X, labels)[1][0]
    np.testing.assert_allclose(batch.y, np.eye(3)[labels[:4]] - 1 / 3, rtol=1e-6)
    assert batch.y.dtype == np.float32
    (batch,) = stream([(X, labels)], num_classes=4)
    assert batch.y.shape == (1024, 4)
    assert read(X, labels > 0)[1][0].y.shape == (4, 2)
    # Numbers, if they are said to be.
    numbers = read(X, labels, task="regression")[1][0].y
    np.testing.assert_array_equal(numbers, labels[:4])
    (batch,) = stream([(X, labels)], task="regression")
    np.testing.assert_array_equal(batch.y[:10], labels)
    whole = read(X, labels.astype(float), task="classification")[1][0].y
    np.testing.assert_allclose(whole, np.eye(3)[labels[:4]] - 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    "labels",
    [
        ["rose", "lily", "iris"],
        np.array(["rose", "lily", "iris"], object),
        np.array([b"rose", b"lily", b"iris"]),
        [-1, 1, 0],
        np.array([7, 10**9, 255], np.uint64),
        np.array([255, 0, 1], np.uint8),
        np.array([127, -128, 1], np.int8),
    ],
)
def test_labels_are_what_they_are(labels):
    labels = np.array(labels)[[0, 1, 2, 0, 1, 2, 0, 1, 2, 0]]
    source = ArraySource("job", X, labels)
    reader = Reader(source)
    wanted, numbers = np.unique(labels.astype(str), return_inverse=True)
    if labels.dtype.kind not in "OSU":
        wanted, numbers = np.unique(labels, return_inverse=True)
    assert reader.classes == tuple(wanted.tolist())
    (batch,) = reader.batches()
    np.testing.assert_array_equal(batch.y[:10].argmax(axis=1), numbers)


def test_labels_that_may_be_numbers():
    x, counts = np.zeros((200, 1), np.float32), np.arange(200) // 2
    for y, match in (
        (np.arange(200), "200 classes in 200 examples, from 0 to 199"),
        (np.arange(20), "20 classes in 20 examples"),
        (np.full(20, 3), "one class only in 20 examples, from 3 to 3"),
    ):
        with pytest.warns(RuntimeWarning, match=f"^job: y holds labels of .*{match}"):
            Reader(ArraySource("job", x[: len(y)], y), task=None)
        for task in ("classification", "regression"):
            Reader(ArraySource("job", x[: len(y)], y), task=task)
    Reader(ArraySource("job", x, counts // 2))


def test_the_default_size():
    assert Reader(ArraySource("job", X)).size == 1024
    large = np.broadcast_to(np.zeros(1, np.float32), (3, 2**18))
    assert Reader(ArraySource("job", large)).size == 64
    assert Reader(ArraySource("job", large), dtype=np.float64).size == 32
    batches = [(large, np.zeros(3))]
    assert Reader(open_source("job", iter(batches), None, None, {})).size == 64


def test_batches_of_any_kind():
    pattern = RNG.integers(0, 3, (10, 5, 2))
    weight = np.arange(10.0)
    whole = {"x": X, "y": Y, "weight": weight, "pattern": pattern, "mask": None}
    (batch,) = stream([whole], batch_size=16)
    np.testing.assert_array_equal(batch.extras["pattern"][:10], pattern)
    assert not batch.extras["pattern"][10:].any() and "mask" not in batch.extras
    parts = [(X[:7], Y[:7], weight[:7]), (X[7:], Y[7:], weight[7:])]
    for batches in (parts, iter(parts)):
        found = stream(batches, batch_size=4)
        assert [b.numbers.tolist() for b in found] == [
            [0, 1, 2, 3], [4, 5, 6], [7, 8, 9],
        ]  # fmt: skip
        np.testing.assert_array_equal(found[1].weight, [4, 5, 6, 0])
    # Looking at the first batch does not use it up.
    reader = Reader(open_source("job", iter(parts), None, None, {}), batch_size=4)
    np.testing.assert_array_equal(reader.first().x, X[:4])
    assert reader.template().x.shape == (4, 3)
    assert [b.numbers[0] for b in reader.batches()] == [0, 4, 7]


def rows_of(source, size=4, passes=2):
    """x and y of all examples, the same in each pass."""
    reader = Reader(open_source("job", source, None, None, {}), batch_size=size)
    assert reader.first().x is not None
    found = []
    for _ in range(passes):
        batches = list(reader.batches())
        assert max(len(batch.numbers) for batch in batches) <= size
        parts = [(b.x[: len(b.numbers)], b.y[: len(b.numbers)]) for b in batches]
        found.append([np.concatenate(part) for part in zip(*parts, strict=True)])
    for x, y in found:
        np.testing.assert_array_equal(x, X)
        np.testing.assert_allclose(y, Y, rtol=1e-6)


def named_batches():
    for rows in (slice(0, 6), slice(6, 7), slice(7, 10)):
        yield {"x": X[rows], "y": Y[rows].tolist()}


def test_a_function_gives_each_pass_its_iterator():
    rows_of(named_batches)
    rows_of(lambda: list(named_batches()))
    rows_of(named_batches(), passes=1)
    used = named_batches()
    with pytest.raises(TypeError, match=r"a new iterable of batches .*one that was re"):
        rows_of(lambda: used)
    lengths = iter([10, 10, 7])
    with pytest.raises(ValueError, match="got 7 examples after a pass of 10"):
        rows_of(lambda: [(X[:n], Y[:n]) for n in (next(lengths),)])
    with pytest.raises(TypeError, match=r"got one target, 1\.0; put the examples into"):
        rows_of([{"x": X[0], "y": 1.0}])
    with pytest.raises(TypeError, match="each time, got int"):
        rows_of(lambda: 3)


def test_data_sets_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()})
    for source in (
        dataset,
        dataset.with_format("numpy"),
        dataset.to_iterable_dataset(),
    ):
        rows_of(source)
    rows_of(lambda: dataset.with_format("numpy").iter(batch_size=7))
    np.testing.assert_array_equal(read(dataset["x"])[0], X)
    named = dataset.add_column("id", list(range(10)))
    with pytest.raises(TypeError, match=r"got \['id', 'x', 'y'\]"):
        rows_of(named)


def test_loaders_of_grain():
    grain = pytest.importorskip("grain")
    examples = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]
    dataset = grain.MapDataset.source(examples)
    rows_of(dataset.batch(3))
    rows_of(dataset.to_iter_dataset().batch(4))
    rows_of(iter(dataset.batch(4)), passes=1)
    loader = grain.DataLoader(
        data_source=dataset,
        sampler=grain.samplers.SequentialSampler(10),
        operations=[grain.transforms.Batch(4)],
    )
    rows_of(loader)


def test_loaders_of_torch():
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    rows_of(torch.utils.data.DataLoader(pairs, batch_size=3))
    named = [{"x": x, "y": y} for x, y in pairs]
    rows_of(torch.utils.data.DataLoader(named, batch_size=6))


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_not_finite_is_named_or_skipped(shuffled):
    order = RNG.permutation(10) if shuffled else None
    x, y, edges = X.copy(), Y.copy(), np.ones((10, 4), np.float32)
    x[7, 1], y[2, 0], edges[5, 3] = np.nan, np.inf, -np.inf
    call = dict(order=order, batch_size=10, nonfinite="raise")
    for arrays, name, number, entry in (
        ((x, Y, {}), "x", 7, r"\(1,\)"),
        ((X, y, {}), "y", 2, r"\(0,\)"),
        ((X, Y, {"pattern": (X, edges)}), "pattern", 5, r"\(3,\)"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"^job: {name} must be finite, .* in example {number} .*{entry}; .*"
            'nonfinite="skip"',
        ):
            read(*arrays[:2], extras=arrays[2], **call)
    call["nonfinite"] = "skip"
    _, (batch,) = read(x, y, extras={"pattern": (X, edges)}, **call)
    assert sorted(batch.numbers[~batch.finite]) == [2, 5, 7] and batch.num_skipped == 3
    for array in (batch.x, batch.y, batch.weight, *batch.extras["pattern"]):
        assert np.isfinite(array).all() and not array[~batch.finite].any()
    x[3:] = np.inf
    with pytest.raises(
        ValueError, match=r"in examples 3, 4, 5, 6, 7 and 2 more .*repair or remove"
    ):
        read(x, batch_size=10)


def test_features_that_are_not_finite():
    reader = Reader(ArraySource("job", X), batch_size=4, nonfinite="raise")
    batch = list(reader.batches())[1]
    finite = jnp.array([True, True, False, True])
    with pytest.raises(ValueError, match=r"job: the features of x .* in example 6 "):
        reader.count_skipped(batch, finite)
    assert reader.count_skipped(batch, jnp.ones(4, bool)) == 0
    reader = Reader(ArraySource("job", X), batch_size=4, nonfinite="skip")
    assert reader.count_skipped(batch, finite) == 1
    # Features of the padding do not count.
    *_, last = reader.batches()
    assert reader.count_skipped(last, jnp.arange(4) < 2) == 0


class Lazy:
    """Something with a length and slices, which stays where it is."""

    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        return self.array[rows]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: read(np.ma.masked_array(X)), TypeError, "must not be a masked array"),
        (lambda: read([np.ma.masked_array(X[0])]), TypeError, "not be a masked array"),
        (lambda: read(Lazy(np.ma.masked_array(X))), TypeError, "not be a masked array"),
        (lambda: read(X, np.ma.masked_array(Y)), TypeError, "y must not be a masked"),
        (lambda: read(list(map(set, X))), TypeError, r"dtype object; .* numpy\.stack"),
        (
            lambda: read(X.astype(int).astype("m8[s]")),
            TypeError,
            "got dtype timedelta64",
        ),
        (lambda: read(jax.random.split(KEY, (9, 3))), TypeError, "got dtype key<fry>"),
        (lambda: to_jax("job", "x", KEY), TypeError, "job: x must hold real numbers"),
        (lambda: read(iter(X)), TypeError, "x must hold n examples, got <"),
        (lambda: read({"a": X}), TypeError, "x must be one array or table, got dict"),
        (lambda: read([[1.0], [1.0, 2.0]]), ValueError, "x must be rows of one shape"),
        (lambda: jax.jit(lambda x: read(x)[0])(X), TypeError, "must not be traced"),
        (lambda: read(3.0), TypeError, "must hold n examples, got 3.0"),
        (lambda: read(X[:, 0]), ValueError, r"n examples, \(n, d\) .* shape \(4,\)"),
        (lambda: read(X.astype(complex)), TypeError, "real numbers, got .*complex128"),
        (lambda: read(X.astype(str)), TypeError, "real numbers, got dtype <U"),
        (lambda: read(X, [*"ababab", *[None] * 4]), TypeError, "without missing ones"),
        (
            lambda: stream([(X, ["a"] * 10)], num_classes=2),
            TypeError,
            "like 0, got 'a'",
        ),
        (
            lambda: read(X, Y[:, 0], task="classification"),
            ValueError,
            "whole numbers or",
        ),
        (lambda: read(X, Y[:, 0], task="other"), ValueError, "task must be one of"),
        (
            lambda: read(X, Y, task="regression", num_classes=3),
            ValueError,
            "num_classes must be None for a regression, got 3",
        ),
        (lambda: read(X, Y[:, :, None]), ValueError, r"y must have shape \(n,\) or"),
        (lambda: read(X, Y[1:]), ValueError, "x and y must have one length, got 10"),
        (lambda: read(X, Y, weight=np.ones(9)), ValueError, r"\(10,\), got \(9,\)"),
        (lambda: read(X, Y, weight=-np.ones(10)), ValueError, "weights must be finite"),
        (lambda: read(X, extras={"mask": X[1:]}), ValueError, "mask must have the 10"),
        (lambda: read(X, Y, num_classes=2), TypeError, "y must be labels of shape"),
        (lambda: read(X, np.arange(10), num_classes=9), ValueError, "0 to 8, got 9"),
        (lambda: read(X, -np.arange(10), num_classes=2), ValueError, "0 to 1, got -1"),
        (lambda: read(X, Y, num_classes=1), ValueError, "num_classes must be an integ"),
        (lambda: read(X, batch_size=0), ValueError, "job: batch_size must be an integ"),
        (lambda: read(X, nonfinite="drop"), ValueError, "nonfinite must be one of"),
        (lambda: stream([(X, [0] * 10)]), ValueError, "num_classes must be given with"),
        (lambda: stream([(X, Y[1:])]), ValueError, "x of batch 0 and y must have one"),
        (lambda: stream([X]), TypeError, r"batch 0 must be \(x, y\), .* got ndarray"),
        (lambda: stream([{"x": X, "z": Y}]), TypeError, r"got \['x', 'z'\]"),
        (lambda: stream(3), TypeError, "or a function that returns one, got int"),
        (
            lambda: stream([(X, Y), (X[:, :2], Y)]),
            ValueError,
            r"examples 10 to 19: x must have shape \(3,\) .* got shape \(2,\)",
        ),
        (
            lambda: stream([(X, Y), {"x": X, "y": Y, "mask": X}]),
            ValueError,
            r"examples 10 to 19: mask must have shapes \[\], .*",
        ),
        (
            lambda: read(scipy.sparse.csr_array(X), num_devices=1),
            ValueError,
            "mesh splits dense examples only",
        ),
    ],
)
def test_mistakes(call, error, match):
    with pytest.raises(error, match=match):
        call()
