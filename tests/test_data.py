"""Datasets, NumPy archives, idx files and tables, sound ones and faulty ones."""

import functools
import gzip
import os
import struct
import sys
import zipfile

import numpy as np
import pytest

from jax_ntk_sketch import data
from jax_ntk_sketch.data._idx import read_idx_file
from jax_ntk_sketch.data._npz import read_array

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 5, 4), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 20).astype(np.uint8)
X = RNG.normal(size=(20, 3)).astype(np.float32)
Y = RNG.normal(size=20)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


# Datasets


def test_digits_is_the_same_split_every_time():
    first, second = data.load_digits(), data.load_digits()
    np.testing.assert_array_equal(first.x_test, second.x_test)
    assert first.x_train.shape == (1438, 8, 8) and first.x_train.dtype == np.float32
    assert first.x_train.min() == 0 and first.x_train.max() == 1
    assert first.task == "classification" and first.pixels
    assert not np.array_equal(first.x_test, data.load_digits(seed=1).x_test)
    gray = first.images()
    np.testing.assert_array_equal(gray.x_test[..., 0], first.x_test)
    assert gray.images() is gray


def test_digits_without_sklearn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install .*\[sklearn\]"):
        data.load_digits()


def test_split_and_take_keep_rows_together(tmp_path):
    x = np.arange(50.0)[:, None]
    loaded = data.load(save(tmp_path / "a.npz", x=x, y=x[:, 0]), seed=3)
    both = np.concatenate([loaded.x_train, loaded.x_test])[:, 0]
    assert len(loaded.x_test) == 10
    np.testing.assert_array_equal(np.sort(both), x[:, 0])
    np.testing.assert_array_equal(loaded.x_test[:, 0], loaded.y_test)
    few = data.load(tmp_path / "a.npz", seed=3, num_train=7, num_test=100)
    assert len(few.x_train) == 7 and len(few.x_test) == 10
    np.testing.assert_array_equal(few.x_train[:, 0], few.y_train)
    assert len(set(few.y_train) & set(loaded.y_train)) == 7
    assert few.notes[-1] == "7 of 40 train rows drawn with seed 3"
    with pytest.raises(ValueError, match="num_test must be an integer >= 1"):
        loaded.take(3, 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"task": "ranking"}, "task must be one of 'classification', 'regression'"),
        ({"x_train": X[0]}, r"x_train must have shape \(n, ...\)"),
        ({"y_train": Y[:7]}, "x_train has 20 rows but y_train has 7"),
        ({"x_test": X[:, :2]}, r"rows of one shape, got \(20, 3\) and \(20, 2\)"),
        ({"y_test": np.ones((20, 2))}, r"rows of one shape, got \(20,\) and \(20, 2\)"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "rows of one shape"),
        ({"task": "classification", "y_train": Y[:, None]}, "for classification"),
    ],
)
def test_dataset_refuses(change, match):
    fields = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}
    with pytest.raises(ValueError, match=match):
        data.Dataset(**fields | {"name": "toy", "task": "regression"} | change)


def test_tables_are_not_images():
    with pytest.raises(ValueError, match=r"examples of shape \(3,\) are not images"):
        data.Dataset(X, Y, X, Y, "toy", "regression").images()


# NumPy archives


def test_npz_with_parts_scales_pixels(tmp_path):
    parts = dict(x_train=IMAGES[:15], y_train=LABELS[:15])
    path = save(tmp_path / "toy.npz", **parts, x_test=IMAGES[15:], y_test=LABELS[15:])
    loaded = data.load(path)
    expected = IMAGES[:15].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(loaded.x_train, expected)
    np.testing.assert_array_equal(loaded.y_test, LABELS[15:])
    assert (loaded.name, loaded.task, loaded.pixels) == ("toy", "classification", True)
    assert loaded.notes == ("8-bit values divided by 255",)


@pytest.mark.parametrize("name", ["x", "X"])
def test_npz_with_test_mask(tmp_path, name):
    mask = RNG.random((20, 10)) < 0.3
    path = save(tmp_path / "uci.npz", **{name: X}, y=Y, test_mask=mask)
    for k in (0, 4):
        loaded = data.load(path, test_mask_column=k)
        np.testing.assert_array_equal(loaded.x_train, X[~mask[:, k]])
        np.testing.assert_array_equal(loaded.y_test, Y[mask[:, k]])
        assert loaded.task == "regression"
    with pytest.raises(ValueError, match=r"test_mask_column must be in 0\.\.9"):
        data.load(path, test_mask_column=10)


@pytest.mark.parametrize(
    ("y", "task", "expected"),
    [
        (LABELS, None, "classification"),
        (LABELS.astype(float), None, "regression"),
        (LABELS.astype(float), "classification", "classification"),
        (LABELS, "regression", "regression"),
        (LABELS > 1, None, "classification"),
        (LABELS.astype(str), None, "classification"),
        (LABELS[:, None], None, "classification"),
        (np.stack([Y, Y], 1), None, "regression"),
        (np.arange(20) * 10**6, None, "classification"),
    ],
)
def test_the_targets_say_the_task(tmp_path, y, task, expected):
    loaded = data.load(save(tmp_path / "a.npz", x=X, y=y), task=task)
    assert loaded.task == expected


def test_many_distinct_integers_are_numbers(tmp_path):
    x = np.zeros((300, 2))
    for count, task in ((100, "classification"), (101, "regression")):
        path = save(tmp_path / "a.npz", x=x, y=np.arange(300) % count)
        assert data.load(path).task == task


BAD_X = X.copy()
BAD_X[7, 2] = np.nan
BAD_IMAGES = IMAGES.astype(np.float32)
BAD_IMAGES[3, 1, 2] = np.inf


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": X}, "no array 'y'; found x"),
        ({"a": X}, "no array 'x'; found a; expected x_train"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "test part: there are no targets"),
        ({"x_train": X}, "no array 'y_train'"),
        ({"x": X, "y": Y[:3]}, "x has 20 rows but y has 3"),
        ({"x": X, "y": Y[:3], "test_mask": Y > 0}, r"got \[3, 20\] rows and bool"),
        ({"x": X, "y": Y, "test_mask": Y}, r"got \[20\] rows and float64"),
        ({"x": BAD_X, "y": Y}, "x: row 7, column 2 is nan"),
        ({"x": BAD_X, "y": Y, "test_mask": Y > 0}, "x: row 7, column 2 is nan"),
        ({"x": BAD_IMAGES, "y": Y}, "row 3, column 1, column 2 is inf"),
        ({"x": X, "y": BAD_X[:, 2]}, "y: row 7 is nan"),
        ({"x": X.astype(complex), "y": Y}, "real numbers, got dtype complex128"),
        ({"x": X.astype(str), "y": Y}, "x must hold real numbers, got dtype <U"),
        ({"x": X, "y": Y[:, None, None]}, r"shape \(n,\) or \(n, t\)"),
        ({"x": X[:1], "y": Y[:1]}, "1 rows cannot be split"),
        ({"x": np.float32(1), "y": Y}, "x must hold an array of rows, got one float32"),
        ({"x": X, "y": np.float64(1)}, "y must hold an array of rows, got one float64"),
        (
            {"x": X, "y": Y, "test_mask": np.True_},
            "test_mask must hold an array",
        ),
        (
            {"x": Y, "y": Y},
            r"x must have shape \(n, ...\), got \(20,\); save n",
        ),
        ({"x_train": X, "y_train": Y, "y_test": Y}, "no array 'x_test'; found x_train"),
        (
            {"x_train": IMAGES, "y_train": Y, "x_test": IMAGES / 255.0, "y_test": Y},
            "only one of x and x_test holds 8-bit",
        ),
        ({"x": np.array([{}, 1], object), "y": Y}, "without pickle"),
        ({"x": np.array([Trap()], object), "y": Y}, "without pickle"),
    ],
)
def test_npz_refuses(tmp_path, arrays, match):
    with pytest.raises(ValueError, match=match):
        data.load(save(tmp_path / "bad.npz", **arrays))


def test_npz_task_errors(tmp_path):
    path = save(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(ValueError, match="whole numbers or text as labels"):
        data.load(path, task="classification")
    with pytest.raises(ValueError, match="task must be one of"):
        data.load(path, task="sorting")
    with pytest.raises(ValueError, match=r"test_fraction must be finite and > 0"):
        data.load(path, test_fraction=1.0)
    with pytest.raises(ValueError, match=r"target column .* is for tables"):
        data.load(path, "y")
    path = save(tmp_path / "b.npz", x=X, y=LABELS.astype(str))
    with pytest.raises(ValueError, match="regression needs numbers"):
        data.load(path, task="regression")


def test_damaged_archives_and_arrays(tmp_path):
    path = save(tmp_path / "a.npz", x=X, y=Y)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="cannot be read as a NumPy archive"):
        data.load(path)
    path.write_bytes(whole.replace(X.tobytes(), X.tobytes()[::-1]))
    with pytest.raises(ValueError, match="cannot be read as a NumPy archive"):
        data.load(path)
    np.save(tmp_path / "trap.npy", np.array([Trap()], object))
    with pytest.raises(ValueError, match=r"is not a \.npy file"):
        read_array(tmp_path / "trap.npy")
    with pytest.raises(ValueError, match="holds several arrays"):
        read_array(save(tmp_path / "b.npz", x=X))


def npy_header(shape, descr="'<f4'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "contents",
    [
        npy_header((10**12, 3)),
        npy_header("(10, 3").replace(b"}", b"("),
        npy_header("[" * 5000 + "]" * 5000),
        npy_header((-1, 3)),
        npy_header((4, 3), "'|O'"),
        b"\x93NUMPY",
        b"",
    ],
)
def test_hostile_headers(tmp_path, contents):
    (tmp_path / "a.npy").write_bytes(contents)
    with pytest.raises(ValueError, match=r"a\.npy is not a \.npy file"):
        read_array(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", contents)
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as a NumPy archive"):
        data.load(tmp_path / "a.npz")


def test_what_does_not_fit_in_memory_is_not_read(tmp_path, monkeypatch):
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2000}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros((1000, 3)), y=np.ones(1000))
    raw = gzip.compress(idx_bytes(np.zeros((100, 5, 5), np.uint8)))
    (tmp_path / "idx").write_bytes(raw)
    graphs = dict(
        y=[0], n_nodes=[80], n_edges=[0], node_tag=np.arange(80, dtype=np.int8),
        edge_i=np.zeros(0, int), edge_j=np.zeros(0, int),
    )  # fmt: skip
    np.savez(tmp_path / "graphs.npz", **graphs)
    for load, name in (
        (data.load, "zeros.npz"),
        (read_idx_file, "idx"),
        (data.load_graphs, "graphs.npz"),
    ):
        with pytest.raises(
            ValueError, match=f"{name} takes .* of memory, and there are"
        ):
            load(tmp_path / name)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["npz", "npy", "idx", "idx.gz", "csv"])
def test_damaged_files_give_one_error(tmp_path, kind):
    """What is read of a damaged file is an error with its name, or an array."""
    rng = np.random.default_rng(0)
    path, load = tmp_path / f"file.{kind}", data.load
    if kind == "npz":
        np.savez_compressed(path, x=X, y=Y, test_mask=Y > 0)
    elif kind == "npy":
        np.save(path, X)
        load = read_array
    elif kind == "csv":
        np.savetxt(path, np.c_[X, Y], delimiter=",", header="a,b,c,y", comments="")
        load = functools.partial(data.load, target="y")
    else:
        raw, load = idx_bytes(IMAGES), read_idx_file
        path.write_bytes(gzip.compress(raw) if kind == "idx.gz" else raw)
    whole = path.read_bytes()
    errors = 0
    for _ in range(300):
        raw = bytearray(whole)
        for place in rng.integers(0, len(raw), rng.integers(1, 5)):
            raw[place] = rng.integers(0, 256)
        raw = raw[: rng.integers(0, len(raw))] if rng.random() < 0.3 else raw
        path.write_bytes(raw)
        try:
            load(path)
        except ValueError as error:
            errors += 1
            assert "file" in str(error)  # the name
    assert errors > 100 or kind == "npy"


def test_unknown_kinds(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        data.load(tmp_path / "nothing.npz")
    with pytest.raises(FileNotFoundError, match="unknown kind of data"):
        data.load(tmp_path)
    with pytest.raises(ValueError, match=r"unknown kind of data; expected a table"):
        data.load(write(tmp_path / "a.pdf", "%PDF"))


# idx files


def idx_bytes(array, code=0x08):
    header = bytes([0, 0, code, array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(params=[False, True], ids=["plain", "gzip"])
def mnist_folder(request, tmp_path):
    for part, rows in (("train", slice(0, 15)), ("t10k", slice(15, 20))):
        for kind, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            raw, name = idx_bytes(array[rows]), f"{part}-{kind}-ubyte"
            if request.param:
                raw, name = gzip.compress(raw), f"{name}.gz"
            (tmp_path / name).write_bytes(raw)
    return tmp_path


def test_idx_folder(mnist_folder):
    loaded = data.load(mnist_folder)
    np.testing.assert_array_equal(np.round(255 * loaded.x_train), IMAGES[:15])
    np.testing.assert_array_equal(np.round(255 * loaded.x_test), IMAGES[15:])
    np.testing.assert_array_equal(loaded.y_train, LABELS[:15])
    np.testing.assert_array_equal(loaded.y_test, LABELS[15:])
    assert loaded.pixels and loaded.task == "classification"
    (labels,) = mnist_folder.glob("train-labels*")
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"no train-labels.*downloaded"):
        data.load(mnist_folder)


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")],
)
def test_idx_types(tmp_path, code, dtype):
    array = np.arange(0 if dtype == "u1" else -6, 6).astype(dtype).reshape(-1, 2)
    (tmp_path / "a").write_bytes(idx_bytes(array, code))
    found = read_idx_file(tmp_path / "a")
    np.testing.assert_array_equal(found, array)
    assert found.dtype.isnative and found.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "not an idx file: it begins with nothing"),
        (b"\x00\x01\x08\x01" + bytes(8), "not an idx file: it begins with 00 01"),
        (b"\x00\x00\x07\x01" + bytes(8), "not an idx file"),
        (b"\x00\x00\x08\x03\x00\x00", "truncated idx header, 6 of 16 bytes"),
        (idx_bytes(IMAGES)[:-1], "truncated idx file, 415 bytes .* states 416"),
        (idx_bytes(IMAGES) + b"\0", "too long idx file"),
        (gzip.compress(idx_bytes(IMAGES))[:-20], "damaged or truncated gzip"),
        (gzip.compress(idx_bytes(IMAGES)[:-1]), "truncated idx file"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, "truncated idx file, 12 bytes"),
    ],
)
def test_idx_refuses(tmp_path, raw, match):
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(ValueError, match=match):
        read_idx_file(tmp_path / "a")


def test_idx_counts_must_agree(mnist_folder):
    (labels,) = mnist_folder.glob("t10k-labels*")
    labels.write_bytes(idx_bytes(LABELS[:4]))
    with pytest.raises(ValueError, match="5 images but 4 labels"):
        data.load(mnist_folder)
    labels.write_bytes(idx_bytes(IMAGES[15:]))
    with pytest.raises(ValueError, match=r"labels \(n,\)"):
        data.load(mnist_folder)
