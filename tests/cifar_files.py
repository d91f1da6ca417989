"""CIFAR as its versions keep it, for tests that read files."""

import io
import pickle
import struct
import tarfile

import numpy as np

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
