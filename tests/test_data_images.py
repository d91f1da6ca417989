"""CIFAR's versions."""

import os
import pickle

import numpy as np
import pytest
from cifar_files import (
    FIVE,
    PIXELS,
    RNG,
    batch_of,
    check,
    images,
    python2,
    python3,
    rows_of,
    tar,
    write_cifar10,
)

from jax_ntk_sketch import data
from jax_ntk_sketch.data.safe_pickle import read_pickle

# CIFAR, python version


@pytest.mark.parametrize("where", ["", "cifar-10-batches-py"])
def test_cifar10_folder_or_its_parent(tmp_path, where):
    written = write_cifar10(tmp_path / where)
    d = data.load(tmp_path)
    check(d, written)
    assert d.name == "CIFAR-10" and d.images() is d
    assert d.notes[1].startswith("15 of CIFAR-10's 50000 train images")
    assert d.flattened().x_train.shape == (15, PIXELS)


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "renamed"])
def test_cifar10_archive_is_read_and_nothing_extracted(tmp_path, name):
    written = write_cifar10(tmp_path / "source")
    files = sorted((tmp_path / "source").iterdir(), reverse=True)
    folder = tmp_path / "archive"
    folder.mkdir()
    path = tar(
        folder / name,
        [(f"cifar-10-batches-py/{file.name}", file.read_bytes()) for file in files],
    )
    check(data.load(path), written)
    assert os.listdir(folder) == [name]
    if name != "renamed":  # beside the archive, as other libraries keep it
        check(data.load(folder), written)


def test_channels_are_planes_of_a_row(tmp_path):
    """A hand-made image: red above, a green pixel in row 1, column 2, blue corner."""
    row = np.zeros(PIXELS, np.uint8)
    row[: 16 * 32] = 255  # the red plane's first sixteen lines
    row[1024 + 1 * 32 + 2] = 51
    row[3071] = 102
    record = bytes([7]) + row.tobytes()
    expected = np.zeros((32, 32, 3), np.float32)
    expected[:16, :, 0] = 1
    expected[1, 2, 1] = 0.2
    expected[31, 31, 2] = 0.4
    raw = python2({b"data": np.stack([row, row]), b"labels": [7, 7]})
    for name, content in (("data_batch_1", raw), ("data_batch_1.bin", record)):
        path = tmp_path / name
        path.write_bytes(2 * content if name.endswith("bin") else content)
        d = data.load(path)
        np.testing.assert_allclose(d.x_train[0], expected, rtol=1e-6)
        assert d.y_train.tolist() == [7]


@pytest.mark.parametrize(
    "write",
    [
        python2,
        lambda batch: python2(batch, b"numpy._core.multiarray"),
        python3(2),
        python3(3),
        python3(4),
    ],
    ids=["python2", "python2-new-numpy", "python3-2", "python3-3", "python3-4"],
)
def test_pickles_of_every_writer_are_read(write):
    x, batch = batch_of(300)  # more than 256 objects: long memo opcodes
    raw = write(batch)
    assert pickle.loads(raw, encoding="bytes").keys() == batch.keys()
    read = read_pickle(raw, "here")
    assert [*read] == [key.decode() for key in batch]
    np.testing.assert_array_equal(read["data"], rows_of(x))
    assert read["data"].dtype == np.uint8
    assert {k: v for k, v in read.items() if k != "data"} == {
        key.decode(): value for key, value in batch.items() if key != b"data"
    }


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "<f4", ">f8", "<u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_in_pickles(dtype, order):
    array = np.asarray(RNG.integers(0, 100, (5, 3)).astype(dtype), order=order)
    for protocol in (2, 3, 4):
        read = read_pickle(pickle.dumps({"a": array}, protocol=protocol), "here")["a"]
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype.newbyteorder("=") and read.dtype.isnative


def test_cifar10_incomplete(tmp_path):
    written = write_cifar10(tmp_path)
    for i in (2, 4):
        (tmp_path / f"data_batch_{i}").unlink()
    d = data.load(tmp_path)
    check(d, written, [FIVE[0], FIVE[2], FIVE[4]])
    assert d.notes[1] == (
        "9 of CIFAR-10's 50000 train images; missing: data_batch_2, data_batch_4"
    )
    (tmp_path / "test_batch").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no test_batch; .*downloaded"):
        data.load(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "test_batch")
    for i in (1, 3, 5):
        (tmp_path / f"data_batch_{i}").unlink()
    with pytest.raises(FileNotFoundError, match="no data_batch_1, data_batch_2"):
        data.load(tmp_path)


def test_full_size_batches_have_no_note(tmp_path):
    x = np.zeros((10000, PIXELS), np.uint8)
    labels = [0, 9] * 5000
    raw = python2({b"data": x, b"labels": labels})
    for name in (*FIVE[:2], "test_batch"):
        (tmp_path / name).write_bytes(raw)
    d = data.load(tmp_path, num_train=30, num_test=20)
    assert d.notes[1].startswith("20000 of CIFAR-10's 50000 train images; missing: d")
    assert d.notes[2:] == (
        "30 of 20000 train rows drawn with seed 0",
        "20 of 10000 test rows drawn with seed 0",
    )


def test_one_batch_is_split(tmp_path):
    write_cifar10(tmp_path, n=10)
    d = data.load(tmp_path / "data_batch_3", seed=1)
    assert d.x_train.shape == (8, 32, 32, 3) and d.x_test.shape == (2, 32, 32, 3)
    assert d.name == "data_batch_3" and "2 of 10 rows held out" in d.notes[-1]


def test_cifar100(tmp_path):
    kinds = (("fine_labels", 100), ("coarse_labels", 20))
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    batches = {name: batch_of(5, seed=90, kinds=kinds) for name in ("train", "test")}
    for name, (_, batch) in batches.items():
        (folder / name).write_bytes(python2(batch))
    written = {k: (x, batch[b"fine_labels"]) for k, (x, batch) in batches.items()}
    check(data.load(tmp_path), written, ["train"], "test")
    written = {k: (x, batch[b"coarse_labels"]) for k, (x, batch) in batches.items()}
    check(data.load_cifar(folder, coarse=True), written, ["train"], "test")
    assert data.load(folder).name == "CIFAR-100"


def test_binary_versions(tmp_path):
    ten, hundred = tmp_path / "cifar-10-batches-bin", tmp_path / "100"
    ten.mkdir()
    hundred.mkdir()
    x, y = images(4), np.array([0, 3, 9, 5], np.uint8)
    records = np.column_stack([y, rows_of(x)]).tobytes()
    for name in (*FIVE, "test_batch"):
        (ten / f"{name}.bin").write_bytes(records)
    written = {f"{name}.bin": (x, y.tolist()) for name in (*FIVE, "test_batch")}
    names = [f"{name}.bin" for name in FIVE]
    check(data.load(tmp_path), written, names, "test_batch.bin")
    assert data.load(ten / "data_batch_1.bin").x_train.shape == (3, 32, 32, 3)
    records = np.column_stack([y, 11 * y, rows_of(x)]).tobytes()
    for name in ("train.bin", "test.bin"):
        (hundred / name).write_bytes(records)
    fine = {name: (x, (11 * y).tolist()) for name in ("train.bin", "test.bin")}
    check(data.load(hundred), fine, ["train.bin"], "test.bin")
    assert data.load_cifar(hundred, coarse=True).y_test.tolist() == y.tolist()
    with pytest.raises(ValueError, match="coarse labels are CIFAR-100's"):
        data.load_cifar(ten, coarse=True)
    (ten / "data_batch_2.bin").write_bytes(records[:-1])
    with pytest.raises(ValueError, match="not a whole number of records of 3073"):
        data.load(ten)
    (ten / "other.bin").write_bytes(records)
    with pytest.raises(ValueError, match="not a binary batch by its name, one of data"):
        data.load(ten / "other.bin")


# CIFAR that is wrong

GOOD = batch_of(3)[1]
ROWS = GOOD[b"data"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({b"labels": [0, 10, 1]}, r"label 10 of image 1 is not one of 0\.\.9"),
        ({b"labels": [0, 1, -1]}, "label -1 of image 2"),
        ({b"labels": [0, 1]}, "3 images but 2 labels"),
        ({b"labels": [0, 1, b"2"]}, "labels must be a list of integers"),
        ({b"labels": b"012"}, "labels must be a list of integers"),
        ({b"labels": np.array([0.0, 1, 2])}, "labels must be a list of integers"),
        ({b"data": ROWS[:, :-1]}, r"uint8 array \(n, 3072\), got \(\(3, 3071\)"),
        ({b"data": ROWS.astype(np.int64)}, r"uint8 array \(n, 3072\), got .*int64"),
        ({b"data": ROWS[:0], b"labels": []}, r"uint8 array .*got \(\(0, 3072\)"),
        ({b"data": [1, 2, 3]}, "uint8 array .*'list'"),
        ({b"data": ROWS[0]}, r"uint8 array .*got \(\(3072,\)"),
    ],
)
def test_cifar_batch_refuses(tmp_path, change, match):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(python2(GOOD | change))
    with pytest.raises(ValueError, match=match) as caught:
        data.load(tmp_path)
    assert "data_batch_2" in str(caught.value)


def test_cifar_batch_without_its_keys(tmp_path):
    path = tmp_path / "data_batch_1"
    path.write_bytes(python2({b"data": ROWS}))
    with pytest.raises(ValueError, match="no 'fine_labels'; found data"):
        data.load(path)
    path.write_bytes(python2({b"labels": [1]}))
    with pytest.raises(ValueError, match="no 'data'; found labels"):
        data.load(path)
    path.write_bytes(python2(GOOD))
    with pytest.raises(ValueError, match="CIFAR batches hold labels"):
        data.load(path, task="regression")
    with pytest.raises(ValueError, match=r"target .* is for tables"):
        data.load(path, "label")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        data.load_cifar(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no CIFAR batches; expected data_ba"):
        data.load_cifar(tmp_path / "empty")
    with pytest.raises(
        FileNotFoundError, match=r"neither MNIST's idx files .* nor CIFA"
    ):
        data.load(tmp_path / "empty")


def test_cifar_ambiguous_folders(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(ValueError, match="holds cifar-10-batches-py, cifar-100-python"):
        data.load(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    (folder / "test_batch.bin").write_bytes(bytes(3073))
    with pytest.raises(ValueError, match="mixes the files of"):
        data.load(folder)
