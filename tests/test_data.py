"""Loaders: what they read, and every way in which a file can be wrong."""

import gzip
import io
import struct
import sys

import numpy as np
import pytest

from jax_ntk_sketch import _progress as progress_module
from jax_ntk_sketch import data
from jax_ntk_sketch._progress import progress

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 5, 4), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 20).astype(np.uint8)
X = RNG.normal(size=(20, 3)).astype(np.float32)
Y = RNG.normal(size=20)


def idx_bytes(array: np.ndarray, code: int = 0x08) -> bytes:
    header = bytes([0, 0, code, array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def write(path, text):
    path.write_text(text)
    return path


# Dataset


def test_digits_is_the_same_split_every_time():
    first, second = data.load_digits(), data.load_digits()
    np.testing.assert_array_equal(first.x_test, second.x_test)
    assert first.x_train.shape == (1438, 8, 8) and first.x_train.dtype == np.float32
    assert first.x_train.min() == 0 and first.x_train.max() == 1
    assert first.task == "classification" and first.classes.tolist() == list(range(10))
    other = data.load_digits(seed=1)
    assert not np.array_equal(first.x_test, other.x_test)


def test_digits_without_sklearn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        data.load_digits()


def test_split_is_a_partition(tmp_path):
    x = np.arange(50.0)[:, None]
    loaded = data.load(write_npz(tmp_path / "a.npz", x=x, y=x[:, 0]), seed=3)
    both = np.concatenate([loaded.x_train, loaded.x_test])[:, 0]
    assert len(loaded.x_test) == 10
    np.testing.assert_array_equal(np.sort(both), x[:, 0])
    # Rows and targets stay together.
    np.testing.assert_array_equal(loaded.x_test[:, 0], loaded.y_test)
    assert any("held out" in note for note in loaded.notes)


def test_flattened_and_take_keep_rows_together():
    x = np.arange(24.0).reshape(6, 2, 2)
    y = np.arange(6)
    d = data.Dataset(x, y, x, y, "x", "classification")
    flat = d.flattened()
    np.testing.assert_array_equal(flat.x_train, x.reshape(6, 4))
    assert "flattened to (4,)" in flat.notes[0]
    few = flat.take(3, 100, seed=1)
    assert few.x_train.shape == (3, 4) and few.x_test.shape == (6, 4)
    np.testing.assert_array_equal(few.x_train[:, 0], 4 * few.y_train)
    assert len(set(few.y_train.tolist())) == 3
    assert few.notes[1:] == ("3 of 6 train rows drawn with seed 1",)
    with pytest.raises(ValueError, match="num_test must be at least 1"):
        flat.take(3, 0)


def test_standardized_uses_training_rows_and_survives_constant_columns():
    x = np.column_stack([X, np.full(20, 0.1)])
    d = data.Dataset(x[:15], Y[:15], x[15:], Y[15:], "x", "regression")
    s = d.standardized()
    np.testing.assert_allclose(s.x_train.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(s.x_train.std(0), [1, 1, 1, 0], atol=1e-12)
    expected = (x[15:, :3] - x[:15, :3].mean(0)) / x[:15, :3].std(0)
    np.testing.assert_allclose(s.x_test[:, :3], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"task": "ranking"}, "task must be one of classification, regression"),
        ({"x_train": X[0]}, r"x_train must have shape \(n, ...\)"),
        ({"y_train": Y[:7]}, "x_train has 20 rows but y_train has 7"),
        ({"x_test": X[:0], "y_test": Y[:0]}, "x_test is empty"),
        ({"x_test": X[:, :2]}, r"x_train have shape \(3,\), those of x_test \(2,\)"),
        ({"y_test": np.ones((20, 2))}, "must agree after the first axis"),
        ({"task": "classification", "y_train": Y[:, None]}, "for classification"),
    ],
)
def test_dataset_refuses(change, match):
    fields = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}
    fields |= {"name": "toy", "task": "regression"} | change
    with pytest.raises(ValueError, match=match):
        data.Dataset(**fields)


# npz


def test_npz_with_parts_scales_pixels(tmp_path):
    path = write_npz(
        tmp_path / "toy.npz",
        x_train=IMAGES[:15],
        y_train=LABELS[:15],
        x_test=IMAGES[15:],
        y_test=LABELS[15:],
    )
    d = data.load(path)
    np.testing.assert_array_equal(d.x_train, IMAGES[:15].astype(np.float32) / 255)
    np.testing.assert_array_equal(d.y_test, LABELS[15:])
    assert (d.name, d.task, d.pixels) == ("toy", "classification", True)
    assert d.notes == ("8-bit values divided by 255",)


@pytest.mark.parametrize("name", ["x", "X"])
def test_npz_with_test_mask(tmp_path, name):
    mask = RNG.random((20, 10)) < 0.3
    path = write_npz(tmp_path / "uci.npz", **{name: X}, y=Y, test_mask=mask)
    for k in (0, 4):
        d = data.load(path, split=k)
        np.testing.assert_array_equal(d.x_train, X[~mask[:, k]])
        np.testing.assert_array_equal(d.y_test, Y[mask[:, k]])
        assert d.task == "regression"
    with pytest.raises(ValueError, match=r"split must be in 0\.\.9"):
        data.load(path, split=10)


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
    ],
)
def test_task_is_told_by_the_targets(tmp_path, y, task, expected):
    d = data.load(write_npz(tmp_path / "a.npz", x=X, y=y), task=task)
    assert d.task == expected
    if expected == "classification":
        assert d.y_train.ndim == 1 and set(d.classes) == set(d.y_train) | set(d.y_test)


def test_many_distinct_integers_are_numbers(tmp_path):
    x = np.zeros((300, 2))
    for count, task in ((100, "classification"), (101, "regression")):
        path = write_npz(tmp_path / "a.npz", x=x, y=np.arange(300) % count)
        assert data.load(path).task == task


BAD_X = X.copy()
BAD_X[7, 2] = np.nan
BAD_IMAGES = IMAGES.astype(np.float32)
BAD_IMAGES[3, 1, 2] = np.inf


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": X}, "no array 'y'; found x"),
        ({"a": X}, "no array 'X'; found a; expected x_train"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "must come together"),
        ({"x_train": X}, "no array 'y_train'"),
        ({"x": X, "y": Y[:3]}, "x has 20 rows but y has 3"),
        ({"x": X, "y": Y[:3], "test_mask": Y > 0}, "x has 20 rows but y has 3"),
        ({"x": X, "y": Y, "test_mask": Y}, "test_mask must be bool"),
        ({"x": X, "y": Y, "test_mask": Y[:4] > 0}, "test_mask must be bool"),
        ({"x": X, "y": Y, "test_mask": Y > 9e9}, "x_test is empty"),
        ({"x": BAD_X, "y": Y}, "x: row 7, column 2 is nan"),
        ({"x": BAD_X, "y": Y, "test_mask": Y > 0}, "x: row 7, column 2 is nan"),
        ({"x": BAD_IMAGES, "y": Y}, r"row 3, column \(1, 2\) is inf"),
        ({"x": X, "y": BAD_X[:, 2]}, "y: row 7 is nan"),
        ({"x": X.astype(complex), "y": Y}, "real numbers, got dtype complex128"),
        ({"x": X.astype(str), "y": Y}, "x must hold real numbers, got dtype <U"),
        ({"x": X, "y": Y[:, None, None]}, r"shape \(n,\) or \(n, k\)"),
        ({"x": X, "y": Y.astype(complex)}, "numbers or labels, got dtype complex"),
        ({"x": X[:1], "y": Y[:1]}, "1 rows cannot be split"),
        (
            {"x_train": IMAGES, "y_train": Y, "x_test": IMAGES / 255.0, "y_test": Y},
            "only one of x_train and x_test holds 8-bit",
        ),
        ({"x": np.array([{}, 1], object), "y": Y}, "without pickle"),
    ],
)
def test_npz_refuses(tmp_path, arrays, match):
    path = write_npz(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=match):
        data.load(path)


def test_npz_task_errors(tmp_path):
    path = write_npz(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(ValueError, match="whole numbers or text as labels"):
        data.load(path, task="classification")
    with pytest.raises(ValueError, match="task must be one of"):
        data.load(path, task="sorting")
    with pytest.raises(ValueError, match=r"test_fraction must be in \(0, 1\)"):
        data.load(path, test_fraction=1.0)
    path = write_npz(tmp_path / "b.npz", x=X, y=LABELS.astype(str))
    with pytest.raises(ValueError, match="regression needs numbers"):
        data.load(path, task="regression")


def test_npz_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    path = write_npz(tmp_path / "trap.npz", x=np.array([Trap()], object), y=Y)
    with pytest.raises(ValueError, match="without pickle"):
        data.load(path)


def test_npz_damaged(tmp_path):
    path = write_npz(tmp_path / "a.npz", x=X, y=Y)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="not a NumPy archive"):
        data.load(path)
    path.write_bytes(whole.replace(X.tobytes(), X.tobytes()[::-1]))
    with pytest.raises(ValueError, match="cannot be read as a NumPy archive"):
        data.load(path)


# idx


@pytest.fixture(params=[False, True], ids=["plain", "gzip"])
def mnist_folder(request, tmp_path):
    for part, rows in (("train", slice(0, 15)), ("t10k", slice(15, 20))):
        for kind, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            raw = idx_bytes(array[rows])
            name = f"{part}-{kind}-ubyte"
            if request.param:
                raw, name = gzip.compress(raw), f"{name}.gz"
            (tmp_path / name).write_bytes(raw)
    return tmp_path


def test_idx_folder(mnist_folder):
    d = data.load(mnist_folder)
    np.testing.assert_array_equal(d.x_train, IMAGES[:15].astype(np.float32) / 255)
    np.testing.assert_array_equal(d.x_test, IMAGES[15:].astype(np.float32) / 255)
    np.testing.assert_array_equal(d.y_train, LABELS[:15])
    np.testing.assert_array_equal(d.y_test, LABELS[15:])
    assert d.pixels and d.task == "classification"


def test_idx_images_file_finds_its_labels(mnist_folder):
    (path,) = mnist_folder.glob("train-images*")
    d = data.load(path)
    assert len(d.x_train) == 12 and len(d.x_test) == 3
    pairs = {(x.tobytes(), y) for x, y in zip(d.x_train, d.y_train, strict=True)}
    scaled = IMAGES.astype(np.float32) / 255
    assert pairs < {(x.tobytes(), y) for x, y in zip(scaled, LABELS, strict=True)}
    (labels,) = mnist_folder.glob("train-labels*")
    with pytest.raises(ValueError, match="give the images file"):
        data.load(labels)
    with pytest.raises(ValueError, match="idx files hold labels"):
        data.load(path, task="regression")
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"labels file .* is not beside it"):
        data.load(path)


@pytest.mark.parametrize(
    ("code", "dtype"),
    [
        (0x08, "u1"),
        (0x09, "i1"),
        (0x0B, ">i2"),
        (0x0C, ">i4"),
        (0x0D, ">f4"),
        (0x0E, ">f8"),
    ],
)
def test_idx_types(tmp_path, code, dtype):
    array = np.arange(-6 if dtype != "u1" else 0, 6).astype(dtype).reshape(-1, 2)
    (tmp_path / "a").write_bytes(idx_bytes(array, code))
    read = data.read_idx(tmp_path / "a")
    np.testing.assert_array_equal(read, array)
    assert read.dtype.isnative and read.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "not an idx file: it begins with nothing"),
        (b"\x00\x01\x08\x01" + bytes(8), "not an idx file: it begins with 00 01"),
        (b"\x00\x00\x07\x01" + bytes(8), "not an idx file"),
        (b"\x00\x00\x08\x03\x00\x00", "truncated idx header, 6 of 16 bytes"),
        (idx_bytes(IMAGES)[:-1], "truncated idx file, 415 bytes .* says 416"),
        (idx_bytes(IMAGES) + b"\0", "too long idx file"),
        (gzip.compress(idx_bytes(IMAGES))[:-20], "damaged or truncated gzip"),
        (gzip.compress(idx_bytes(IMAGES)[:-1]), "truncated idx file"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, "truncated idx file, 12 bytes"),
    ],
)
def test_idx_refuses(tmp_path, raw, match):
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(ValueError, match=match):
        data.read_idx(tmp_path / "a")


def test_idx_counts_must_agree(mnist_folder):
    (labels,) = mnist_folder.glob("t10k-labels*")
    labels.write_bytes(idx_bytes(LABELS[:4]))
    with pytest.raises(ValueError, match="t10k: 5 images but 4 labels"):
        data.load(mnist_folder)
    labels.write_bytes(idx_bytes(IMAGES[15:]))
    with pytest.raises(ValueError, match=r"labels \(n,\)"):
        data.load(mnist_folder)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"no t10k-labels.*downloaded"):
        data.load(mnist_folder)


# CSV

TABLE = "a,b,y\n" + "".join(f"{i},{i * i},{i / 2}\n" for i in range(10))


@pytest.mark.parametrize("target", ["y", "2", 2, -1, "-1"])
def test_csv_target_by_name_or_index(tmp_path, target):
    d = data.load(write(tmp_path / "t.csv", TABLE), target)
    assert d.task == "regression" and d.x_train.shape == (8, 2)
    np.testing.assert_array_equal(d.x_train[:, 0] / 2, d.y_train)
    np.testing.assert_array_equal(d.x_test[:, 0] ** 2, d.x_test[:, 1])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_csv_header_delimiter_and_class_names(tmp_path, delimiter, header):
    rows = ["a,b,kind"] * header + [f"{i},1.5,{'xy'[i % 2]}" for i in range(6)]
    text = "\ufeff" + "\r\n\r\n".join(rows).replace(",", delimiter)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    d = data.load(tmp_path / "t.csv", "kind" if header else -1)
    assert d.task == "classification" and d.classes.tolist() == ["x", "y"]
    assert len(d.x_train) + len(d.x_test) == 6
    assert (np.array(["x", "y"])[d.x_train[:, 0].astype(int) % 2] == d.y_train).all()


def test_csv_integer_targets_are_labels_unless_told(tmp_path):
    path = write(tmp_path / "t.csv", TABLE)
    assert data.load(path, "b").task == "classification"
    assert data.load(path, "b", task="regression").task == "regression"


@pytest.mark.parametrize(
    ("text", "target", "match"),
    [
        ("", "y", "is empty"),
        ("a,y\n", "y", "a header but no rows"),
        (TABLE, "z", "no column 'z' for target; columns: a, b, y"),
        (TABLE, "3", "target 3 is not one of 3 columns"),
        ("1,2\n3,4\n", "y", r"no column 'y' .* 0\.\.1 \(no header\)"),
        ("a,a\n1,2\n3,4\n", "a", "target 'a' names 2 columns"),
        ("y\n1\n2\n", "y", "one column only"),
        ("a,y\n1,2\n3\n", "y", "line 3: 1 cells where the first line has 2"),
        ("a,y\n1,2\n\nbad,4\n", "y", r"row 1 \(line 4\), column 'a' is 'bad'"),
        ("1,2\n,4\n", 1, r"row 1 \(line 2\), column 0 is empty"),
        ("a,y\n1,2\nnan,4\n", "y", r"row 1 \(line 3\), column 'a' is nan"),
        ("a,y\n1,2\n3,oops\n", "y", r"row 1 \(line 3\), column 'y' is 'oops'"),
        ("a,y\n1,2.5\n3,inf\n", "y", "column 'y' is inf"),
        (TABLE, None, "needs target"),
    ],
)
def test_csv_refuses(tmp_path, text, target, match):
    with pytest.raises(ValueError, match=match):
        data.load(write(tmp_path / "t.csv", text), target)


def test_csv_that_is_binary(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00a,b\n")
    with pytest.raises(ValueError, match="not a text table"):
        data.load(tmp_path / "t.csv", 0)


# load


def test_load_tells_kinds_by_content(tmp_path):
    write_npz(tmp_path / "a.npz", x=X, y=Y).rename(tmp_path / "archive")
    assert data.load(tmp_path / "archive").task == "regression"
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        data.load(tmp_path / "nothing.npz")
    with pytest.raises(ValueError, match="unknown kind of file"):
        data.load(write(tmp_path / "a.pdf", "%PDF-1.4"))
    with pytest.raises(ValueError, match=r"target \('y'\) is for tables"):
        data.load(tmp_path / "archive", "y")
    with pytest.raises(ValueError, match="is not a file"):
        data.load_npz(tmp_path)


# progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("tqdm", [True, False])
def test_progress_shows_on_terminals_or_when_forced(monkeypatch, tqdm):
    if not tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
        monkeypatch.setattr(progress_module, "_INTERVAL", 0.0)
    for stream, enabled, shown in (
        (io.StringIO(), None, False),
        (Terminal(), None, True),
        (io.StringIO(), True, True),
        (Terminal(), False, False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress(range(3), "counting", enabled=enabled)) == [0, 1, 2]
        text = stream.getvalue()
        assert ("counting" in text and "3" in text) == shown
        assert shown or not text
        if shown and not tqdm:
            assert text.splitlines()[0] == "counting: 0/3"
            assert text.splitlines()[1].startswith("counting: 1/3 (")


def test_progress_of_a_generator_has_no_total(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress((i for i in range(2)), "x", enabled=True)) == [0, 1]
    assert sys.stderr.getvalue().startswith("x: 0\nx: 2 done")


def test_a_table_to_predict_has_all_rows_in_order(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n1,2,x\n3,4,y\n")
    x, y = data.read_csv(path, "c")
    assert x.tolist() == [[1, 2], [3, 4]] and y.tolist() == ["x", "y"]
    path.write_text("1\n3\n")
    x, y = data.read_csv(path, None)
    assert x.tolist() == [[1], [3]] and y is None
