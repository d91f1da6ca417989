"""Windows over images, and sketches of what lies below them."""

import functools
import itertools
import math

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from references import window_matrices

from jax_ntk_sketch import random_features, sketch
from jax_ntk_sketch.sketch import PatchSRHT, Window

KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


@pytest.mark.long_cases(*contract.SLOW_CHECKS)
@pytest.mark.parametrize("rule", contract.CHECKS)
@pytest.mark.parametrize("case", registry.PATCHES, ids=str)
def test_contract(rule, case):
    getattr(contract, rule)(case)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Windows against jax.lax.

GEOMETRIES = [
    ((7,), (3,), None, None),
    ((8,), (2,), (3,), None),
    ((9,), (3,), (2,), (2,)),
    ((5, 6), (3, 2), None, None),
    ((5, 6), (2, 4), (2, 3), None),
    ((7, 6), (2, 3), (1, 2), (3, 1)),
    ((4, 3, 5), (2, 1, 3), (2, 1, 1), (1, 2, 2)),
]


@pytest.mark.parametrize("padding", ["VALID", "SAME", "CIRCULAR"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_windows_are_those_of_lax(geometry, padding):
    spatial, shape, strides, dilation = geometry
    window = Window(shape, strides, padding, dilation)
    rank, x = len(shape), normal(2, *spatial, 3)
    ones = (1,) * rank
    wide, pads = x, padding
    if padding == "CIRCULAR":  # which lax has not: wrapped where "SAME" has zeros
        reach = [
            (n - 1) * gap + 1 for n, gap in zip(shape, dilation or ones, strict=True)
        ]
        borders = jax.lax.padtype_to_pads(spatial, reach, strides or ones, "SAME")
        wide, pads = np.pad(x, [(0, 0), *borders, (0, 0)], "wrap"), "VALID"
    letters = "DHW"[-rank:]
    patches = jax.lax.conv_general_dilated_patches(
        wide,
        shape,
        strides or ones,
        pads,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        precision=jax.lax.Precision.HIGHEST,
    )
    # lax has the channels outside, we have the pixels outside.
    positions = patches.shape[1:-1]
    patches = patches.reshape(2, *positions, 3, -1).swapaxes(-1, -2)
    ours = np.asarray(window.patches(jnp.asarray(x)))
    assert window.output_shape(spatial) == positions == ours.shape[1:-1]
    np.testing.assert_array_equal(ours, patches.reshape(ours.shape))
    shifts = window.shifts(jnp.asarray(x))
    assert len(shifts) == window.size == len(window.offsets) == math.prod(shape)
    np.testing.assert_array_equal(np.stack(shifts, -2), patches)
    total = jax.lax.reduce_window(
        wide,
        np.float32(0),
        jax.lax.add,
        (1, *shape, 1),
        (1, *(strides or ones), 1),
        pads,
        window_dilation=(1, *(dilation or ones), 1),
    )
    np.testing.assert_allclose(window.sum(jnp.asarray(x)), total, rtol=0, atol=1e-5)
    # And against the matrices that the tests' own kernels are made of.
    m = window_matrices(shape, strides, padding, spatial, dilation)
    by_matrix = np.einsum("o...p,npc->n...oc", m, x.reshape(2, -1, 3))
    np.testing.assert_array_equal(ours.reshape(by_matrix.shape), by_matrix)


def test_circular_windows_wider_than_the_image():
    x = jnp.arange(3.0)[:, None]
    window = Window((8,), padding="CIRCULAR")
    total = window.sum(x[None])[0, :, 0]
    index = (np.arange(3)[:, None] + np.arange(8) - 3) % 3
    np.testing.assert_array_equal(total, index.sum(1))


def test_properties_of_windows():
    assert Window((1, 1)).trivial and Window((1, 1), (1, 1), "SAME").trivial
    assert not Window((1, 1), (2, 1)).trivial and not Window((1, 2)).trivial
    window = Window((2, 3), (3, 1), "SAME", (1, 2))
    assert window.axis(1) == Window((1, 3), (1, 1), "SAME", (1, 2))
    assert (window.size, window.rank) == (6, 2)
    assert window.offsets == list(itertools.product(range(2), range(3)))


# PatchSRHT, exactly.

RECORDS = {
    "1-D": PatchSRHT(Window((5,), (2,), "SAME"), 20, 32),
    "2-D": PatchSRHT(Window((3, 3), padding="SAME"), 8, 24, 0.5),
    "3-D": PatchSRHT(Window((2, 2, 3), padding="CIRCULAR"), 3, 8),
    "wide": PatchSRHT(Window((2, 3)), 100, 16),
    "small": PatchSRHT(Window((2, 2), (1, 2)), 3, 40, 0.7),
    "axis by axis": PatchSRHT(Window((6, 7), padding="SAME"), 5, 32, 0.3),
    "axis by axis, strides": PatchSRHT(Window((4, 4, 3), (2, 1, 1), "SAME"), 2, 16),
}


def image(record, n=3, seed=0):
    return normal(n, *(6, 5, 4)[: record.window.rank], record.channels, seed=seed)


@pytest.mark.long
@pytest.mark.parametrize("name", RECORDS)
def test_patch_sketches_are_affine_and_local(name):
    """A x + bias with a matrix that is the same at each position and for each image."""
    record = RECORDS[name]
    params, x = record.init(KEY), image(record)
    apply = registry.jit_once(record.apply)
    window = record.window
    positions = window.output_shape(x.shape[1:-1])
    out = apply(params, x)
    assert out.shape == (3, *positions, record.output_dim)
    zero = apply(params, 0 * x)
    contract.assert_close(
        apply(params, 2 * x - 0.5 * x[::-1]) - zero,
        2 * (out - zero) - 0.5 * (out - zero)[::-1],
    )
    np.testing.assert_allclose(
        np.square(zero).sum(-1), record.bias**2, rtol=1e-5, atol=1e-12
    )
    contract.assert_close(apply(params, x[:1]), out[:1])
    # The matrix, from one patch alone: an image as large as the window, unpadded.
    alone = PatchSRHT(Window(window.shape), *_sizes(record))
    dim = window.size * record.channels
    unit = np.eye(dim, dtype=np.float32).reshape(dim, *window.shape, record.channels)
    matrix = np.asarray(alone.apply(params, unit)).reshape(dim, -1)
    base = np.asarray(alone.apply(params, 0 * unit[:1])).reshape(-1)
    patches = np.asarray(window.patches(jnp.asarray(x)))
    contract.assert_close(patches @ (matrix - base) + base, out)


def _sizes(record):
    return record.channels, record.output_dim, record.bias


@pytest.mark.long
@pytest.mark.parametrize("name", RECORDS)
def test_sizes_jit_and_vmap(name):
    record = RECORDS[name]
    x = image(record)
    keys = jax.random.split(KEY, 2)

    def run(key, x):
        return record.apply(record.init(key), x)

    both = registry.jit_once(jax.vmap(run, (0, None)))(keys, x)
    for out, key in zip(both, keys, strict=True):
        contract.assert_close(out, run(key, x))
    assert len(set(np.asarray(both[:, 0]).ravel()[:4])) > 1
    params = record.init(KEY)
    by_image = jax.vmap(record.apply, (None, 0))(params, x)
    contract.assert_close(by_image, record.apply(params, x))
    assert record.patch_dim == record.window.size * record.channels + bool(record.bias)
    assert 0 < record.flops < 4 * record.patch_dim * max(record.output_dim, 64)


def test_small_patches_are_concatenated():
    """Then the sketch is an SRHT of the patches, and exact where it is full."""
    for bias in (0.0, 0.7):
        window = Window((2, 2), padding="SAME")
        record = PatchSRHT(window, 3, 32, bias)
        x, params = normal(2, 4, 3, 3), record.init(KEY)
        patches = np.asarray(window.patches(jnp.asarray(x)))
        if bias:
            patches = np.pad(patches, [(0, 0)] * 3 + [(0, 1)], constant_values=bias)
        out = record.apply(params, x)
        srht = sketch.SRHT(patches.shape[-1], 32)
        contract.assert_close(out, srht.apply(params, patches))
        gram = out.reshape(-1, 32) @ out.reshape(-1, 32).T
        patches = patches.reshape(-1, patches.shape[-1])
        contract.assert_close(gram, patches @ patches.T)


def test_hadamard_directions_are_patch_sketches_of_length_root_m():
    window = Window((3, 3), padding="SAME")
    directions = random_features.HadamardPatchDirections(window, 8, 24, 0.5)
    x = normal(2, 4, 4, 8)
    record = PatchSRHT(window, 8, 24, 0.5)
    params = directions.init(KEY)
    contract.assert_close(
        directions.apply(params, x), 24**0.5 * record.apply(params, x)
    )


# PatchSRHT, statistically.

SEEDS = 4000


def products(record, x, seeds=SEEDS):
    """Inner products of the sketches of two positions (seeds,) for each pair."""

    def one(key):
        z = record.apply(record.init(key), x).reshape(-1, record.output_dim)
        return z @ z.T

    return np.asarray(
        registry.jit_once(jax.vmap(one))(jax.random.split(KEY, seeds)), np.float64
    )


def patch_products(record, x):
    p = np.asarray(record.window.patches(jnp.asarray(x)), np.float64)
    p = p.reshape(-1, p.shape[-1])
    return p @ p.T + record.bias**2


# Sketches whose variance is compared with what they promise.
STATISTICS = {
    "2-D, 64 channels": PatchSRHT(Window((3, 3)), 64, 64),
    "2-D, wide": PatchSRHT(Window((2, 3)), 70, 16),
    "1-D": PatchSRHT(Window((4,)), 12, 16),
    "2-D": PatchSRHT(Window((3, 3)), 16, 32, 0.5),
    "3-D": PatchSRHT(Window((2, 3, 2)), 4, 16),
    "axis by axis": PatchSRHT(Window((6, 6)), 16, 16),
    "axis by axis, 3-D": PatchSRHT(Window((3, 4, 3)), 2, 16, 0.4),
}


def two_positions(record, smooth):
    """An image with two windows, whose pixels are independent or nearly equal."""
    shape = list(record.window.shape)
    shape[-1] += 1
    channels = normal(*[1] * len(shape), record.channels)
    noise = normal(*shape, record.channels, seed=1)
    return channels + 0.05 * noise if smooth else noise


@functools.lru_cache(maxsize=1)
def patch_moments(name, smooth):
    record = STATISTICS[name]
    x = two_positions(record, smooth)
    samples, exact = products(record, x), patch_products(record, x)
    assert samples.shape[1:] == (2, 2)
    return samples, exact


@pytest.mark.parametrize("smooth", [False, True], ids=["rough", "smooth"])
@pytest.mark.parametrize("name", STATISTICS)
def test_patch_sketches_are_unbiased(name, smooth):
    """False alarm rate 1e-4 for all entries together."""
    contract.assert_mean(*patch_moments(name, smooth))


@pytest.mark.parametrize("smooth", [False, True], ids=["rough", "smooth"])
@pytest.mark.parametrize("name", STATISTICS)
def test_variance_of_patch_sketches_is_two_over_m(name, smooth):
    """At most (|x|² |y|² + <x, y>²)/m, as of a CountSketch of dense vectors.

    Folding axis by axis may double it.
    """
    samples, exact = patch_moments(name, smooth)
    norms = np.diagonal(exact)
    record = STATISTICS[name]
    scale = (np.outer(norms, norms) + exact**2) / record.output_dim
    ratio = samples.var(0, ddof=1) / scale
    # The sample variance itself has a relative error of about sqrt(12/seeds) = 0.05.
    assert ratio.max() < (2.5 if name.startswith("axis") else 1.25), ratio
