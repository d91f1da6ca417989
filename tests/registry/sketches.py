"""The oblivious sketches and the directions of random features."""

import dataclasses
import functools
import math

import numpy as np
from references import (
    cosines,
    kappa0,
    window_matrices,
)

from jax_ntk_sketch import random_features as random_features
from jax_ntk_sketch import sketch
from jax_ntk_sketch._numerics import next_power_of_two
from jax_ntk_sketch.random_features.directions import DIRECTIONS, NormalLengths
from registry.case import DIM, Case


def inner(x):
    x = np.asarray(x, np.float64)
    return x @ x.T


def one_term(x):
    """m times the variance of CountSketch, of which all other formulas are made."""
    square = np.square(np.asarray(x, np.float64))
    norms = square.sum(1)
    return np.outer(norms, norms) + inner(x) ** 2 - 2 * square @ square.T


def osnap_variance(x, blocks):
    return one_term(x) * sum(1 / size for size in blocks) / len(blocks) ** 2


def rows_moments(x, rows):
    """E A_i A_j of the products A_i = (r_i x)(r_i y), for rows r of entries ±1.

    Rows of one rotation cannot coincide, which makes them negatively correlated.
    """
    size = next_power_of_two(x.shape[1])
    i, j = np.indices((rows, rows))
    same, one = i == j, i // size == j // size
    factor = same - (one & ~same) / max(size - 1, 1)
    return inner(x)[..., None, None] ** 2 + factor * one_term(x)[..., None, None]


def srht_variance(x, rows):
    return rows_moments(x, rows).mean((-1, -2)) - inner(x) ** 2


def tensor_srht_variance(x, rows):
    products = rows_moments(x[:, :2], rows) * rows_moments(x[:, 2:], rows)
    return products.mean((-1, -2)) - tensor(x)[0] ** 2


def tensor(x):
    return [inner(x[:, :2]) * inner(x[:, 2:])]


def powers(x, degrees):
    return [inner(x) ** j for j in degrees]


def _sketches() -> list[Case]:
    def case(name, record, kernel, large, variance=None, zero=True):
        columns = getattr(record, "output_dims", (record.output_dim,))
        return Case(name, record, columns, kernel, large, variance, zero=zero)

    big, partial = 10**6, functools.partial
    linear = partial(powers, degrees=(1,))
    cases = [
        case(
            "CountSketch",
            sketch.CountSketch(DIM, 7),
            linear,
            sketch.CountSketch(784, big),
            partial(osnap_variance, blocks=(7,)),
        ),
        case(
            "OSNAP",
            sketch.OSNAP(DIM, 7, sparsity=3),
            linear,
            sketch.OSNAP(784, big),
            partial(osnap_variance, blocks=(2, 2, 3)),
        ),
        case(
            "HashedOSNAP",
            sketch.HashedOSNAP(DIM, 7, sparsity=3),
            linear,
            sketch.HashedOSNAP(784, big),
            partial(osnap_variance, blocks=(2, 2, 3)),
        ),
        case(
            "SRHT",
            sketch.SRHT(DIM, 5),
            linear,
            sketch.SRHT(784, big),
            partial(srht_variance, rows=5),
        ),
        case(
            "SRHT-stacked",
            sketch.SRHT(DIM, 19),
            linear,
            sketch.SRHT(784, big),
            partial(srht_variance, rows=19),
        ),
        case(
            "TensorSRHT",
            sketch.TensorSRHT((2, 4), 11),
            tensor,
            sketch.TensorSRHT((784, 9), big),
            partial(tensor_srht_variance, rows=11),
        ),
    ]
    for name, arguments in {
        "PolySketch-3": (3, 13),
        "PolySketch-5-osnap": (5, (3, 0, 9, 11, 5), 12, "osnap"),
        "PolySketch-2-srht": (2, (7, 9), 10, "srht"),
    }.items():
        record = sketch.PolySketch(DIM, *arguments)
        degree, leaf = record.degree, record.leaf
        large = sketch.PolySketch(784, degree, big // degree, leaf=leaf)
        exact = partial(_powers_of, sizes=record.output_dims)
        cases.append(case(name, record, exact, large, zero=False))
    return cases


def _patches() -> list[Case]:
    cases = []
    for name, (window, channels, output_dim, bias) in _PATCHES.items():
        record = sketch.PatchSRHT(window, channels, output_dim, bias)
        shape = PATCH_SHAPES[window]
        positions = math.prod(window.output_shape(shape[:-1]))
        case = Case(
            name,
            record,
            (positions * output_dim,),
            functools.partial(patch_kernel, record),
            dataclasses.replace(record, output_dim=10**6),
            zero=not bias,
            shape=shape,
        )
        cases.append(case)
    return cases


LINE = sketch.Window((4,), padding="SAME")
PLANE = sketch.Window((2, 3), (1, 2), "CIRCULAR")
VOLUME = sketch.Window((3, 1, 3), None, "SAME", (2, 1, 1))
PATCH_SHAPES = {LINE: (3, 2), PLANE: (2, 3, 1), VOLUME: (3, 1, 2, 1)}
_PATCHES = {
    "PatchSRHT-1": (LINE, 2, 5, 0.0),
    "PatchSRHT-2-bias": (PLANE, 1, 5, 0.7),
    "PatchSRHT-3": (VOLUME, 1, 5, 0.0),
    "PatchSRHT-whole": (LINE, 2, 11, 0.5),
}


def patch_kernel(record, x):
    """Summed over the positions."""
    shape, window = PATCH_SHAPES[record.window], record.window
    m = window_matrices(
        window.shape, window.strides, window.padding, shape[:-1], window.dilation
    )
    pixels = x.reshape(len(x), -1, shape[-1])
    patches = np.einsum("o...p,npc->n...oc", m, pixels).reshape(len(x), -1)
    return [inner(patches) + math.prod(m.shape[1:-1]) * record.bias**2]


def _powers_of(x, sizes):
    return [inner(x) ** j if m else 0 * inner(x) for j, m in enumerate(sizes)]


def step_kernel(x):
    product, alpha = cosines(inner(x))
    return (product > 0) * kappa0(alpha) / 2


def direction_variance(x, num, sphere):
    norms = np.square(np.asarray(x, np.float64)).sum(1)
    fourth = np.outer(norms, norms) + 2 * inner(x) ** 2
    return num * (fourth * (DIM / (DIM + 2) if sphere else 1) - inner(x) ** 2)


def _random_features() -> list[Case]:
    cases, num = [], 11
    for name, directions in DIRECTIONS.items():
        record = directions(DIM, num)
        variance = functools.partial(
            direction_variance, num=num, sphere=name == "sphere"
        )
        # Elsewhere directions depend on each other, and there are no formulas.
        known = name in ("gaussian", "sphere")
        cases.append(
            Case(
                f"{type(record).__name__}-{name}",
                record,
                (num,),
                lambda x: [num * inner(x)],
                directions(784, 10**6),
                variance if known else None,
            )
        )
    return cases


def _more_directions() -> list[Case]:
    """Directions of patches, normal lengths, and zonal features."""
    window = sketch.Window((4,), padding="SAME")
    patches = random_features.HadamardPatchDirections(window, 2, 11, 0.5)
    lengths = NormalLengths(DIRECTIONS["hadamard"](DIM, 11))
    weights = (0.0, 0.0, 0.5, -0.3)
    zonal = random_features.ZonalFeatures(DIM, 13, weights)
    return [
        Case("HadamardPatchDirections", patches, (33,), zero=False, shape=(3, 2)),
        Case("NormalLengths", lengths, (11,), lambda x: [11 * inner(x)], slack=0.005),
        Case("ZonalFeatures", zonal, (13,), zero=False),
    ]


SKETCHES = _sketches()
PATCHES = _patches()
DIRECTION_CASES = _random_features() + _more_directions()
