"""The format of models and checkpoints: whole files, of the size that they declare."""

import concurrent.futures
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jax_ntk_sketch import _tensor_file


def test_arrays_are_read_as_they_were(tmp_path):
    """Of every dtype, also without elements, strided, and of the other byte order."""
    arrays = {
        "scalar": np.array(3),
        "empty": np.zeros((0, 4), np.int8),
        "strided": np.arange(6.0).reshape(2, 3)[:, ::2],
        "flags": np.array([True, False]),
        "half": np.asarray(jnp.ones(3, jnp.bfloat16)),
        "big": np.arange(3, dtype=">u4"),
    }
    _tensor_file.write(tmp_path / "file", "test", {"a": [1, None]}, arrays)
    kind, description, found = _tensor_file.read(tmp_path / "file", "file", "")
    assert (kind, description) == ("test", {"a": [1, None]})
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=")
    with pytest.raises(TypeError, match="x must hold numbers, got <U1"):
        _tensor_file.write(tmp_path / "file", "test", {}, {"x": np.array(["a"])})


def test_readers_never_see_a_part_of_a_file(tmp_path):
    """Two threads write one path, while this one reads it."""
    path = tmp_path / "model.jns"

    def write(number):
        for _ in range(60):
            arrays = {"a": np.full(20_000, number)}
            _tensor_file.write(path, "test", {"number": number}, arrays)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        write(0)
        jobs = [pool.submit(write, number) for number in (1, 2)]
        reads = 0
        while not all(job.done() for job in jobs):
            _, description, arrays = _tensor_file.read(path, "test", "")
            assert (arrays["a"] == description["number"]).all()
            reads += 1
        for job in jobs:
            job.result()
    assert reads > 5 and [*tmp_path.iterdir()] == [path]


def test_hostile_files_take_little_memory(tmp_path):
    """Sizes are compared with the file before anything is allocated."""
    path = tmp_path / "model.jns"
    deep = b'{"__metadata__": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"
    shape = json.dumps({"format": "jax_ntk_sketch", "version": "2", "sha256": "0" * 64})
    entry = '"a": {"dtype": "F64", "shape": %s, "data_offsets": [0, %d]}'
    texts = [(1 << 40).to_bytes(8, "little") + b"{}", b"\xff" * 8, deep]
    for size, stop in (([10**12], 8 * 10**12), ([0, 10**17, 10**17], 0), ([-1], -8)):
        text = f'{{"__metadata__": {shape}, {entry % (size, stop)}}}'.encode()
        texts.append(text)
    for text in texts:
        if text.startswith(b"{"):
            text = len(text).to_bytes(8, "little") + text
        path.write_bytes(text)
        with pytest.raises(ValueError, match="is not a file, or it is damaged"):
            _tensor_file.read(path, "file", "")
