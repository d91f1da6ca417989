"""Batches of CIFAR as their author's program writes them, for tests that read files."""

import pickle
import struct

import numpy as np

FIVE = [f"data_batch_{i}" for i in range(1, 6)]


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def rows_of(x):
    """Return rows as CIFAR keeps them: the red, the green and the blue plane."""
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


def batch_of(n, seed=0, key="labels", num_classes=10):
    """Return images and the dictionary of a Python batch with them."""
    x = images(n, seed)
    labels = [(i + seed) % num_classes for i in range(n)]
    names = [b"%d.png" % i for i in range(n)]
    batch = {b"batch_label": b"a", key.encode(): labels, b"data": rows_of(x)}
    return x, batch | {b"filenames": names}


def python3(protocol):
    return lambda batch: pickle.dumps(batch, protocol=protocol)


def python2(batch, module=b"numpy.core.multiarray"):
    """Return what Python 2's cPickle writes (protocol 2), opcode by opcode."""

    def text(s):
        return b"T" + struct.pack("<I", len(s)) + s

    def integer(i):
        return b"J" + struct.pack("<i", i)

    def array(a):
        shape = b"".join(map(integer, a.shape)) + b"\x86"
        return (
            b"c" + module + b"\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85"
            + text(b"b") + b"\x87R(" + integer(1) + shape + b"cnumpy\ndtype\n"
            + text(a.dtype.str[1:].encode()) + integer(0) + integer(1) + b"\x87R("
            + integer(3) + text(a.dtype.str[:1].encode()) + b"NNN" + integer(-1)
            + integer(-1) + integer(0) + b"tb\x89" + text(a.tobytes()) + b"tb"
        )  # fmt: skip

    def value(v):
        if isinstance(v, bytes):
            return text(v)
        if isinstance(v, int):
            return integer(v)
        if isinstance(v, np.ndarray):
            return array(v)
        return b"](" + b"".join(map(value, v)) + b"e"

    items = b"".join(text(k) + value(v) for k, v in batch.items())
    return b"\x80\x02}(" + items + b"u."


def write_cifar10(folder, n=3, names=(*FIVE, "test_batch")):
    """Write batches of n images; return images and labels by name of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for seed, name in enumerate(names):
        x, batch = batch_of(n, seed)
        (folder / name).write_bytes(python2(batch))
        written[name] = x, batch[b"labels"]
    return written
