"""CIFAR as it is distributed, and files that are damaged or made to do harm."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from cifar_files import FIVE, batch_of, python2, python3, rows_of, write_cifar10

from jax_ntk_sketch import data
from jax_ntk_sketch.data._cifar import _BatchUnpickler, read_batch

X, GOOD = batch_of(3)


def read(raw):
    return read_batch(raw, "here", "labels", 10)


def tar(path, entries):
    """Write an archive of (name or member, contents)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in entries:
            member = (
                name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            )
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def check(loaded, written, train=FIVE):
    x = np.concatenate([written[name][0] for name in train])
    np.testing.assert_array_equal(np.round(255 * loaded.x_train), x)
    np.testing.assert_array_equal(
        loaded.y_train, np.concatenate([written[name][1] for name in train])
    )
    np.testing.assert_array_equal(
        np.round(255 * loaded.x_test), written["test_batch"][0]
    )
    assert loaded.task == "classification" and loaded.pixels


@pytest.mark.parametrize("where", ["", "cifar-10-batches-py"])
def test_folder_or_its_parent(tmp_path, where):
    written = write_cifar10(tmp_path / where)
    loaded = data.load(tmp_path)
    check(loaded, written)
    assert loaded.name == "CIFAR-10" and loaded.images() is loaded


def test_archive_is_read_and_nothing_is_extracted(tmp_path):
    written = write_cifar10(tmp_path / "source")
    folder = tmp_path / "archive"
    folder.mkdir()
    files = sorted((tmp_path / "source").iterdir(), reverse=True)
    entries = [(f"cifar-10-batches-py/{f.name}", f.read_bytes()) for f in files]
    entries.append(("cifar-10-batches-py/readme.html", b"<html>"))
    path = tar(folder / "cifar-10-python.tar.gz", entries)
    check(data.load(path), written)
    check(data.load(folder), written)
    assert os.listdir(folder) == [path.name]


def test_channels_are_planes_of_a_row(tmp_path):
    """A red upper half, a green pixel in row 1 and column 2, and a blue corner."""
    row = np.zeros(3072, np.uint8)
    row[: 16 * 32] = 255
    row[1024 + 1 * 32 + 2] = 51
    row[3071] = 102
    expected = np.zeros((32, 32, 3), np.uint8)
    expected[:16, :, 0] = 255
    expected[1, 2, 1] = 51
    expected[31, 31, 2] = 102
    x, y = read(python2({b"data": row[None], b"labels": [7]}))
    np.testing.assert_array_equal(x[0], expected)
    assert y.tolist() == [7]


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
    x, batch = batch_of(20)
    raw = write(batch)
    assert pickle.loads(raw, encoding="bytes").keys() == batch.keys()
    read_x, y = read(raw)
    np.testing.assert_array_equal(read_x, x)
    assert y.tolist() == batch[b"labels"]
    fortran = batch | {b"data": np.asfortranarray(rows_of(x))}
    np.testing.assert_array_equal(read(write(fortran))[0], x)


def test_missing_batches_are_noted_or_named(tmp_path):
    written = write_cifar10(tmp_path, names=(FIVE[0], FIVE[2], "test_batch"))
    loaded = data.load(tmp_path)
    check(loaded, written, [FIVE[0], FIVE[2]])
    assert loaded.notes[0] == (
        "without the batches data_batch_2, data_batch_4, data_batch_5"
    )
    for name in (FIVE[0], FIVE[2]):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected data_batch_1.*downloaded"):
        data.load(tmp_path)


def test_cifar100(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    x, batch = batch_of(5, 90, "fine_labels", 100)
    for name in ("train", "test"):
        (folder / name).write_bytes(python2(batch))
    loaded = data.load(tmp_path)
    np.testing.assert_array_equal(np.round(255 * loaded.x_test), x)
    assert loaded.y_train.tolist() == [90, 91, 92, 93, 94]


# Files that are wrong


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({b"labels": [0, 10, 1]}, r"list of 3 integers in 0\.\.9"),
        ({b"labels": [0, 1, -1]}, "list of 3 integers"),
        ({b"labels": [0, 1]}, "list of 3 integers"),
        ({b"labels": [0, 1, b"2"]}, "list of 3 integers"),
        ({b"labels": b"012"}, "list of 3 integers"),
        ({b"data": GOOD[b"data"][:, :-1]}, r"uint8 array \(n, 3072\), got uint8"),
        ({b"data": GOOD[b"data"].astype(int)}, r"uint8 array \(n, 3072\), got int64"),
        ({b"data": GOOD[b"data"][:0], b"labels": []}, r"got uint8 \(0, 3072\)"),
        ({b"data": [1, 2, 3]}, "here is not a batch of CIFAR"),
    ],
)
def test_batch_refuses(change, match):
    with pytest.raises(ValueError, match=match):
        read(python2(GOOD | change))


class Call:
    """An object that a pickle makes by calling something."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "trap",
    [
        Call(os.system, "touch harm"),
        Call(exec, "open('harm', 'w').close()"),
        Call(eval, "open('harm', 'w').close()"),
        Call(getattr, "text", "upper"),
        Call(np.fromfile, "harm"),
        Call(pickle.loads, pickle.dumps(1)),
        np.float64(1.0),
        os.PathLike,
    ],
    ids=["system", "exec", "eval", "getattr", "fromfile", "loads", "scalar", "class"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_pickle_runs_code(tmp_path, monkeypatch, trap, protocol):
    monkeypatch.chdir(tmp_path)
    raw = pickle.dumps(GOOD | {b"labels": trap}, protocol)
    with pytest.raises(ValueError, match="here is not a batch of CIFAR"):
        read(raw)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cnumpy\ndtype\n}(X\x01\x00\x00\x00aK\x01ub",  # sets attributes of a callable
        b"cnumpy\ndtype\nN}X\x0c\x00\x00\x00__defaults__)s\x86b",
        b"cnumpy.core.multiarray\n_reconstruct\n)R}X\x05\x00\x00\x00valueK\x01sb",
        b"cnumpy\ndtype\n(X\x01\x00\x00\x00OK\x00K\x01tR",
        b"Pharm\n",  # a persistent reference
        b"\x82\x01",  # an extension
    ],
)
def test_crafted_opcodes_build_nothing_else(opcodes):
    """Whatever a pickle does, the next one is read as if it had not been."""
    with pytest.raises(ValueError, match="here is not a batch of CIFAR"):
        read(b"\x80\x02" + opcodes + b".")
    np.testing.assert_array_equal(read(python2(GOOD))[0], X)


@pytest.mark.parametrize("code", ["O", "O8", "V8", "M8[s]", "u1,O", "S3", "c16"])
def test_only_arrays_of_numbers_are_built(code):
    """A crafted dtype would make NumPy take bytes for addresses."""
    unpickler = _BatchUnpickler(io.BytesIO())
    dtype = unpickler.find_class("numpy", "dtype")(code, 0, 1)
    dtype.__setstate__((3, "|", None, None, None, 1, 1, 0))
    array = unpickler.find_class("numpy._core.multiarray", "_reconstruct")(
        None, 0, b"b"
    )
    with pytest.raises((pickle.UnpicklingError, ValueError, TypeError)):
        array.__setstate__((1, (2,), dtype, False, bytes(16)))
    assert not hasattr(array, "value")


@pytest.mark.parametrize("write", [python2, python3(2), python3(4)])
def test_truncated_and_damaged_pickles(write):
    """Cut anywhere, or with bytes changed: images or a ValueError, nothing else."""
    raw = write(GOOD)
    for size in (0, 1, 50, len(raw) // 2, len(raw) - 1):
        with pytest.raises(ValueError, match="here"):
            read(raw[:size])
    rng = np.random.default_rng(1)
    for _ in range(500):
        damaged = bytearray(raw)
        for i in rng.integers(200, size=rng.integers(1, 4)):
            damaged[-i if rng.integers(2) else i] = rng.integers(256)
        try:
            assert read(bytes(damaged))[0].shape == (3, 32, 32, 3)
        except ValueError as error:
            assert "here" in str(error)


def test_archives_refused(tmp_path):
    raw = python2(GOOD)
    path = tmp_path / "cifar.tar.gz"
    link = tarfile.TarInfo("cifar/data_batch_1")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar(path, [("cifar/test_batch", raw), (link, b"")])
    with pytest.raises(ValueError, match="'cifar/data_batch_1' is a link"):
        data.load(path)
    tar(path, [("../../test_batch", raw), ("/etc/data_batch_1", raw)])
    assert len(data.load(path).x_train) == 3  # by name, and nothing is written
    assert os.listdir(tmp_path) == [path.name]
    tar(path, [("a/readme.html", b"<html>")])
    with pytest.raises(FileNotFoundError, match="found none of them"):
        data.load(path)
    with tarfile.open(path, "w") as archive:
        big = tarfile.TarInfo("a/test_batch")
        big.size = 2**40
        archive.fileobj.write(big.tobuf())
    with pytest.raises(ValueError, match="more than any batch of CIFAR"):
        data.load(path)


def test_truncated_and_damaged_archives(tmp_path):
    entries = [(f"cifar/{name}", python2(GOOD)) for name in (*FIVE, "test_batch")]
    path = tar(tmp_path / "cifar.tar.gz", entries)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged or truncated archive"):
            data.load(path)
    for i in range(20, len(whole), 1997):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        with pytest.raises((ValueError, FileNotFoundError), match=r"cifar\.tar\.gz"):
            data.load(path)
