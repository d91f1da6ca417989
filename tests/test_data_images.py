"""CIFAR's versions, and files made to do harm."""

import collections
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from jax_ntk_sketch import data
from jax_ntk_sketch.data.safe_pickle import read_pickle

RNG = np.random.default_rng(0)
PIXELS = 3072
FIVE = [f"data_batch_{i}" for i in range(1, 6)]


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def rows_of(x):
    """Rows as CIFAR keeps them, the red, the green and the blue plane of each."""
    return np.stack(
        [np.concatenate([image[..., c].ravel() for c in range(3)]) for image in x]
    )


def python2(batch, module=b"numpy.core.multiarray"):
    """The bytes that Python 2's cPickle writes (protocol 2), opcode by opcode."""
    memo = iter(range(256 * 256))

    def put():
        i = next(memo)
        return b"q" + bytes([i]) if i < 256 else b"r" + struct.pack("<I", i)

    def text(s):
        if len(s) < 256:
            return b"U" + bytes([len(s)]) + s + put()
        return b"T" + struct.pack("<I", len(s)) + s + put()

    def integer(i):
        if 0 <= i < 256:
            return b"K" + bytes([i])
        return (
            b"M" + struct.pack("<H", i)
            if 0 <= i < 2**16
            else struct.pack("<ci", b"J", i)
        )

    def array(a):
        out = b"c" + module + b"\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
        out += (
            integer(0) + b"\x85" + put() + text(b"b") + b"\x87" + put() + b"R" + put()
        )
        shape = b"".join(integer(size) for size in a.shape)
        out += b"(" + integer(1) + shape + (b"\x86" if a.ndim == 2 else b"\x85") + put()
        out += b"cnumpy\ndtype\n" + put() + text(a.dtype.str[1:].encode())
        out += integer(0) + integer(1) + b"\x87" + put() + b"R" + put()
        out += b"(" + integer(3) + text(a.dtype.str[:1].encode()) + b"NNN"
        out += integer(-1) + integer(-1) + integer(0) + b"t" + put() + b"b"
        return out + b"\x89" + text(a.tobytes()) + b"t" + put() + b"b"

    def value(v):
        if isinstance(v, bytes):
            return text(v)
        if isinstance(v, int):
            return integer(v)
        if isinstance(v, np.ndarray):
            return array(v)
        return b"]" + put() + b"(" + b"".join(map(value, v)) + b"e"

    items = b"".join(text(k) + value(v) for k, v in batch.items())
    return b"\x80\x02}" + put() + b"(" + items + b"u."


def python3(protocol):
    return lambda batch: pickle.dumps(batch, protocol=protocol)


def batch_of(n, seed=0, kinds=(("labels", 10),)):
    """Images, and the dict of a python batch with them."""
    x = images(n, seed)
    batch = {b"batch_label": b"training batch 1 of 5"}
    for kind, classes in kinds:
        batch[kind.encode()] = [(i + seed) % classes for i in range(n)]
    batch |= {b"data": rows_of(x), b"filenames": [b"%d.png" % i for i in range(n)]}
    return x, batch


def write_cifar10(folder, names=(*FIVE, "test_batch"), n=3):
    """A folder of batches; all their images and labels, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name in names:
        x, batch = batch_of(n, seed=len(name) + ord(name[-1]))
        (folder / name).write_bytes(python2(batch))
        written[name] = x, batch[b"labels"]
    (folder / "batches.meta").write_bytes(python2({b"label_names": [b"airplane"]}))
    return written


def check(d, written, train=FIVE, test="test_batch"):
    x = np.concatenate([written[name][0] for name in train])
    np.testing.assert_array_equal(d.x_train, x.astype(np.float32) / np.float32(255))
    assert d.x_train.dtype == np.float32 and d.y_train.dtype == np.int64
    assert d.y_train.tolist() == [y for name in train for y in written[name][1]]
    np.testing.assert_array_equal(np.round(d.x_test * 255), written[test][0])
    assert d.y_test.tolist() == written[test][1]
    assert d.pixels and d.task == "classification"
    assert d.notes[0] == "8-bit values divided by 255"


def tar(path, files, mode="w:gz"):
    """An archive of (name, bytes) pairs, or of ready `TarInfo`s."""
    with tarfile.open(path, mode) as archive:
        for name, raw in files:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


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


# Pickles made to do harm


class Call:
    """Pickled as a call, as an attacker writes it."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def reconstruct_with(code, state):
    """A pickle of an array with a dtype of one's choice."""
    head = b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n"
    head += b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85cnumpy\ndtype\n"
    dtype = b"U" + bytes([len(code)]) + code + b"K\x00K\x01\x87R" + state
    return head + dtype + b"\x89U\x08" + bytes(8) + b"tbs."


PLAIN = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
FIELDS = PLAIN.replace(b"NNN", b"NU\x01a}", 1)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_that_call_are_refused_and_not_run(tmp_path, protocol):
    trace = tmp_path / "was run"
    for trap in (
        Call(os.system, f"touch '{trace}'"),
        Call(eval, f"open({str(trace)!r}, 'w')"),
        Call(exec, f"open({str(trace)!r}, 'w')"),
        Call(open, str(trace), "w"),
        np.array([Call(open, str(trace), "w"), 1], object),
        os.path.join,
        collections.OrderedDict(a=1),
    ):
        raw = pickle.dumps({"data": trap, "labels": [1]}, protocol=protocol)
        (tmp_path / "data_batch_1").write_bytes(raw)
        with pytest.raises(ValueError, match="nothing in a pickle is ever run"):
            data.load_cifar(tmp_path / "data_batch_1")
        assert not trace.exists()
    pickle.loads(pickle.dumps(Call(open, str(trace), "w"), protocol=protocol))
    assert trace.exists()  # the trap does work


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"\x80\x02cos\nsystem\nU\x02ls\x85R.", "asks for 'os.system'"),
        (b"\x80\x02c__builtin__\neval\nU\x011\x85R.", "asks for '__builtin__.eval'"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "asks for 'builtins.eval'"),
        (b"\x80\x02cnumpy\nload\n.", "asks for 'numpy.load'"),
        (
            b"\x80\x02cnumpy.core\nmultiarray._reconstruct\n.",
            "asks for 'numpy.core.mul",
        ),
        (b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.mro.x\x93.", "asks for 'numpy.dtype.mro"),
        (b"\x80\x02(ios\nsystem\n.", "uses opcode INST"),
        (b"\x80\x02(cnumpy\ndtype\no.", "uses opcode OBJ"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "uses opcode NEWOBJ"),
        (b"\x80\x02\x82\x01.", "uses opcode EXT1"),
        (b"\x80\x02U\x01aQ.", "uses opcode BINPERSID"),
        (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "calls numpy.ndarray as no array"),
        (b"\x80\x02U\x06systemK\x05\x85R.", "calls bytes as no array does"),
        (
            b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
            "enc",
        ),
        (b"\x80\x02}U\x01a}b.", "sets the state of a bytes"),
        (b"\x80\x02}K\x01K\x02s.", "keys are not text"),
        (reconstruct_with(b"O8", PLAIN), "array of dtype 'O8'"),
        (reconstruct_with(b"V8", PLAIN), "array of dtype 'V8'"),
        (reconstruct_with(b"M8", PLAIN), "array of dtype 'M8'"),
        (reconstruct_with(b"u8,O", PLAIN), "array of dtype 'u8,O'"),
        (reconstruct_with(b"u8", FIELDS), "structured dtype"),
        (reconstruct_with(b"u8", b""), "entries are not plain numbers"),
        (reconstruct_with(b"u4", PLAIN), r"8 bytes for an array \(1,\) of uint32"),
    ],
)
def test_pickle_refuses(raw, match):
    with pytest.raises(ValueError, match=match):
        read_pickle(raw, "here")


def test_the_crafted_array_is_sound_but_for_its_dtype():
    read = read_pickle(reconstruct_with(b"u8", PLAIN), "here")
    np.testing.assert_array_equal(read["data"], np.zeros(1, np.uint64))


def test_pickle_that_is_no_dict_or_refers_to_itself():
    with pytest.raises(ValueError, match="here: the pickle holds a list, expected a d"):
        read_pickle(pickle.dumps([1]), "here")
    nested = [1]
    for _ in range(100):  # 2^100 entries if anything followed the references
        nested = [nested, nested]
    nested.append(nested)
    read = read_pickle(pickle.dumps({"labels": nested}, protocol=2), "here")
    assert len(read["labels"]) == 3
    key = (1,)
    for _ in range(100):
        key = (key, key)
    raw = pickle.dumps({"labels": key}, protocol=2)
    # The same tuple as a key, whose hash would take 2^100 steps.
    crafted = raw.replace(b"X\x06\x00\x00\x00labels", b"", 1)[:-2] + b"K\x01s."
    with pytest.raises(ValueError, match="keys are not text"):
        read_pickle(crafted, "here")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools'
@pytest.mark.parametrize("write", [python2, python3(2), python3(4)])
def test_truncated_and_damaged_pickles(write):
    """Cut anywhere, or with any byte changed: a value or a ValueError, no more."""
    small = {b"data": np.arange(4, dtype=np.uint8), b"labels": [1, 300], b"n": b"x.png"}
    raw = write(small)
    for size in range(len(raw)):
        with pytest.raises(ValueError, match=r"here: "):
            read_pickle(raw[:size], "here")
    rng = np.random.default_rng(1)
    for _ in range(2000):
        damaged = bytearray(raw)
        for i in rng.integers(len(raw), size=rng.integers(1, 4)):
            damaged[i] = rng.integers(256)
        try:
            assert isinstance(read_pickle(bytes(damaged), "here"), dict)
        except ValueError as error:
            assert "here: " in str(error)


# Archives that are wrong


def test_archives_refused(tmp_path):
    raw = python2(GOOD)
    path = tmp_path / "cifar.tar.gz"
    for name in ("../../data_batch_1", "/etc/data_batch_1", "a/../../data_batch_1"):
        tar(path, [("cifar/test_batch", raw), (name, raw)])
        with pytest.raises(ValueError, match=r"points outside of the archive"):
            data.load(path)
    assert os.listdir(tmp_path) == ["cifar.tar.gz"]
    assert not (tmp_path.parent.parent / "data_batch_1").exists()
    link = tarfile.TarInfo("cifar/data_batch_1")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar(path, [("cifar/test_batch", raw), (link, b"")])
    with pytest.raises(ValueError, match="'cifar/data_batch_1' is a link"):
        data.load(path)
    tar(path, [("a/test_batch", raw), ("b/test_batch", raw)])
    with pytest.raises(ValueError, match="two files called test_batch"):
        data.load(path)
    tar(path, [("a/readme.html", b"<html>")])
    with pytest.raises(FileNotFoundError, match="no CIFAR batches"):
        data.load(path)
    tar(path, [("a/data_batch_1", raw)])
    with pytest.raises(FileNotFoundError, match="no test_batch"):
        data.load(path)
    big = tarfile.TarInfo("a/test_batch")
    tar(path, [(big, b"")])
    with tarfile.open(tmp_path / "plain.tar", "w") as archive:
        big.size = 2**40
        archive.fileobj.write(big.tobuf())
    with pytest.raises(ValueError, match="more than any batch of CIFAR"):
        data.load(tmp_path / "plain.tar")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_truncated_and_damaged_archives(tmp_path):
    raw = python2(GOOD)
    names = ["cifar-10-batches-py/" + name for name in (*FIVE, "test_batch")]
    path = tar(tmp_path / "cifar.tar.gz", [(name, raw) for name in names])
    whole = path.read_bytes()
    assert len(data.load(path).x_train) == 15
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 200, len(whole) - 4):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged or truncated archive"):
            data.load(path)
    for i in range(20, len(whole), 997):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        with pytest.raises((ValueError, FileNotFoundError), match=r"cifar\.tar\.gz"):
            data.load(path)
