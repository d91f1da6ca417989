"""JPEG archives, images for convolutions, and the limits of `load`."""

import io
import struct
import sys

import numpy as np
import pytest

from jax_ntk_sketch import data

# JPEG archives


def jpeg_arrays(seed=0, n=(6, 4), size=(10, 8), mode="RGB", quality=95):
    """Smooth images, so that JPEG keeps them nearly, as an archive's arrays."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(seed)
    arrays, originals = {}, {}
    for part, count in zip(("train", "test"), n, strict=True):
        files, x = [], []
        for _ in range(count):
            low = image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
            picture = low.resize(size, image.Resampling.BILINEAR).convert(mode)
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality, subsampling=0)
            files.append(file.getvalue())
            x.append(np.asarray(picture))
        arrays[f"jpeg_{part}"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"offsets_{part}"] = np.cumsum([0, *map(len, files)])
        arrays[f"y_{part}"] = np.arange(count, dtype=np.uint8) % 3
        originals[part] = np.stack(x)
    return arrays, originals


def save(path, arrays):
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("mode", "shape"), [("RGB", (8, 10, 3)), ("L", (8, 10))], ids=["colour", "grey"]
)
def test_jpeg_archive(tmp_path, mode, shape):
    arrays, originals = jpeg_arrays(mode=mode)
    path = save(tmp_path / "photos.npz", arrays)
    d = data.load(path)
    assert d.x_train.shape == (6, *shape) and d.x_test.shape == (4, *shape)
    assert d.x_train.dtype == np.float32 and (d.name, d.pixels) == ("photos", True)
    assert np.abs(255 * d.x_train - originals["train"]).mean() < 3
    assert np.abs(255 * d.x_test - originals["test"]).mean() < 3
    assert d.y_train.tolist() == [0, 1, 2, 0, 1, 2] and d.y_train.dtype == np.int64
    assert d.images().x_train.shape == (6, 8, 10, 3 if mode == "RGB" else 1)


def test_jpeg_archive_decodes_only_what_is_drawn(tmp_path):
    arrays, _ = jpeg_arrays(n=(20, 10))
    path = save(tmp_path / "photos.npz", arrays)
    everything = data.load_jpeg_npz(path)
    seen = []

    def progress(rows, words):
        seen.append((words, len(rows)))
        return rows

    some = data.load(path, num_train=5, num_test=3, seed=4, progress=progress)
    expected = everything.take(5, 3, seed=4)
    for part in ("x_train", "y_train", "x_test", "y_test", "notes"):
        np.testing.assert_array_equal(getattr(some, part), getattr(expected, part))
    assert seen == [("decoding train images", 5), ("decoding test images", 3)]
    # Images that are not drawn are not looked at, so they may be damaged.
    drawn = {x.tobytes() for x in some.x_train}
    keep = [x.tobytes() in drawn for x in everything.x_train]
    offsets = arrays["offsets_train"]
    jpeg = arrays["jpeg_train"].copy()
    for i in np.flatnonzero(~np.array(keep)):
        jpeg[offsets[i] : offsets[i + 1]] = 0
    path = save(tmp_path / "photos.npz", arrays | {"jpeg_train": jpeg})
    again = data.load_jpeg_npz(path, num_train=5, num_test=3, seed=4)
    np.testing.assert_array_equal(again.x_train, some.x_train)
    with pytest.raises(ValueError, match=r"train image \d+ is not a sound JPEG"):
        data.load_jpeg_npz(path)
    with pytest.raises(ValueError, match="num_train must be at least 1, got 0"):
        data.load_jpeg_npz(path, num_train=0)


def test_jpeg_archive_without_pillow(tmp_path, monkeypatch):
    path = save(tmp_path / "photos.npz", jpeg_arrays()[0])
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs Pillow.*pip install pillow"):
        data.load(path)


def shifted(offsets, i, by):
    offsets = offsets.copy()
    offsets[i] += by
    return offsets


@pytest.mark.parametrize(
    ("key", "change", "match"),
    [
        ("offsets_train", lambda o: shifted(o, -1, 1), r"runs from 0 to \d+; it must"),
        ("offsets_train", lambda o: shifted(o, 0, 1), "runs from 1 to"),
        ("offsets_test", lambda o: shifted(o, 1, 10**6), "does not rise after entry 1"),
        ("offsets_test", lambda o: shifted(o, 2, -(10**6)), "not rise after entry 1"),
        ("offsets_test", lambda o: o[[0, 1, 1, 3, 4]], "not rise after entry 1"),
        ("offsets_train", lambda o: shifted(o, 2, 1), "train image 2 is not a sound"),
        (
            "offsets_train",
            lambda o: o.astype(float),
            r"integers \(n \+ 1,\), got float",
        ),
        ("offsets_train", lambda o: o[:1], r"integers \(n \+ 1,\)"),
        ("offsets_train", lambda o: o[:-1], "is for 5 images but .*y_train has shape"),
        ("y_test", lambda y: y[:, None], r"y_test has shape \(4, 1\)"),
        ("y_test", lambda y: y + 0.5, "y_test: classification needs whole numbers"),
        ("jpeg_test", lambda j: j.astype(np.int16), r"uint8 \(bytes,\), got int16"),
        ("jpeg_test", lambda j: j[None], r"uint8 \(bytes,\), got uint8 \(1, "),
        ("jpeg_test", lambda j: j[:-9], "offsets_test runs from 0 to"),
        ("jpeg_train", lambda j: j ^ 1, "train image 0 is not a sound JPEG file"),
    ],
)
def test_jpeg_archive_refuses(tmp_path, key, change, match):
    arrays, _ = jpeg_arrays()
    path = save(tmp_path / "bad.npz", arrays | {key: change(arrays[key])})
    with pytest.raises(ValueError, match=match):
        data.load(path)


def test_jpeg_archives_of_other_things(tmp_path):
    arrays, _ = jpeg_arrays()
    path = tmp_path / "bad.npz"
    save(path, {k: v for k, v in arrays.items() if k != "offsets_test"})
    with pytest.raises(
        ValueError, match=r"no array 'offsets_test'.*expected jpeg_train"
    ):
        data.load(path)
    save(path, arrays)
    with pytest.raises(
        ValueError, match="holds JPEG files; read it with load_jpeg_npz"
    ):
        data.load_npz(path)
    with pytest.raises(ValueError, match="JPEG archives hold labels"):
        data.load(path, task="regression")
    with pytest.raises(ValueError, match=r"target .* is for tables"):
        data.load(path, "y")
    other, _ = jpeg_arrays(size=(12, 8))
    test_part = {k: v for k, v in other.items() if k.endswith("test")}
    save(path, arrays | test_part)
    with pytest.raises(
        ValueError, match=r"examples of x_train have shape \(8, 10, 3\)"
    ):
        data.load(path)
    # Two sizes, or another format, inside one part.
    both = [arrays["jpeg_train"], other["jpeg_train"]]
    offsets = [arrays["offsets_train"], len(both[0]) + other["offsets_train"][1:]]
    mixed = {
        "jpeg_train": np.concatenate(both),
        "offsets_train": np.concatenate(offsets),
        "y_train": np.arange(12) % 2,
    }
    save(path, arrays | mixed)
    with pytest.raises(
        ValueError, match=r"train image 6 is \(12, 8\) RGB, the first o"
    ):
        data.load(path)
    image = pytest.importorskip("PIL.Image")
    for kind, colour, match in (
        ("PNG", "RGB", "train image 0 is not a sound JPEG"),
        ("JPEG", "CMYK", "train image 0 has mode CMYK"),
    ):
        file = io.BytesIO()
        image.new(colour, (10, 8)).save(file, kind)
        raw = np.frombuffer(file.getvalue(), np.uint8)
        one = {"jpeg_train": raw, "offsets_train": np.array([0, len(raw)])}
        save(path, arrays | one | {"y_train": np.zeros(1, int)})
        with pytest.raises(ValueError, match=match):
            data.load(path)


# Images for convolutions, and limits of load


def test_images_gives_grey_images_a_channel():
    digits = data.load_digits()
    d = digits.images()
    assert d.x_train.shape == (1438, 8, 8, 1) and d.x_test.shape == (359, 8, 8, 1)
    np.testing.assert_array_equal(d.x_test[..., 0], digits.x_test)
    assert d.notes[-1] == "images of shape (8, 8) given one channel"
    assert d.images() is d
    flat = digits.flattened()
    with pytest.raises(ValueError, match=r"examples of shape \(64,\) are not images"):
        flat.images()
    x, y = np.ones((2, 3, 3, 3, 1)), np.arange(2)
    with pytest.raises(ValueError, match=r"\(3, 3, 3, 1\) are not images"):
        data.Dataset(x, y, x, y, "volumes", "regression").images()


def test_images_of_archives_and_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    y = np.arange(10) % 3
    parts = {"x_train": x[:7], "y_train": y[:7], "x_test": x[7:], "y_test": y[7:]}
    extra = {"train_index": np.arange(7, dtype=np.int32)}
    d = data.load(save(tmp_path / "a.npz", parts | extra)).images()
    assert d.x_train.shape == (7, 32, 32, 3) and d.x_train.max() <= 1
    for part, rows in (("train", slice(0, 7)), ("t10k", slice(7, 10))):
        for kind, array in (("images-idx3", x[..., 0]), ("labels-idx1", y)):
            array = array[rows].astype(np.uint8)
            header = bytes([0, 0, 8, array.ndim])
            header += struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    d = data.load(tmp_path).images()
    assert d.x_train.shape == (7, 32, 32, 1)
    np.testing.assert_array_equal(np.round(255 * d.x_test[..., 0]), x[7:, ..., 0])


def test_load_with_limits_is_take(tmp_path):
    path = save(tmp_path / "a.npz", {"x": np.arange(30.0)[:, None], "y": np.arange(30)})
    whole, some = data.load(path, seed=2), data.load(path, num_train=9, seed=2)
    expected = whole.take(9, None, seed=2)
    np.testing.assert_array_equal(some.x_train, expected.x_train)
    np.testing.assert_array_equal(some.x_test, whole.x_test)
    assert some.notes == expected.notes
