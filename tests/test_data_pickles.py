"""Files made to do harm: nothing in them is run."""

import collections
import os
import pickle
import tarfile

import numpy as np
import pytest
from cifar_files import FIVE, batch_of, python2, python3, tar

from jax_ntk_sketch import data
from jax_ntk_sketch.data.safe_pickle import read_pickle

GOOD = batch_of(3)[1]


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
