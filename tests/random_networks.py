"""Random networks, methods and arrays, from the number of a draw.

    python tests/random_networks.py FIRST NUMBER

runs the checks of many draws and prints those that fail. `test_random_networks.py` runs
some of them.
"""

import functools
import sys
import traceback
import warnings
from typing import NamedTuple

import jax
import numpy as np
from kinds_of_arrays import KINDS

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.features._steps_of import steps_of

ACTIVATIONS = (
    stax.Relu(), stax.Relu(do_stabilize=True), stax.LeakyRelu(0.2), stax.Abs(),
    stax.Erf(), stax.Gelu(), stax.Sin(), stax.Cos(b=0.3), stax.Rbf(0.7), stax.Sign(),
    stax.Gaussian(), stax.Sigmoid_like(), stax.ExpNormalized(0.5), stax.Hermite(2),
    stax.RectifiedMonomial(2), stax.Monomial(2), stax.ABRelu(-0.5, 1.0),
)  # fmt: skip
OSCILLATING = (stax.Sin, stax.Cos, stax.Rbf, stax.ExpNormalized, stax.Gaussian)
SHAPES = (
    (1,),
    (2,),
    (7,),
    (16,),
    (5, 2),
    (1, 1, 1),
    (4, 4, 3),
    (5, 3, 1),
    (2, 3, 2, 2),
)
METHODS = (
    "auto", "exact", "ntk_random_features", "ntk_sketch", "one_pass",
    "variance_reduced", "nystrom",
)  # fmt: skip
GETS = ("ntk", "nngp", ("nngp", "ntk"))
COLUMNS = (16, 33, 64, 127)
SCALES = (1e-6, 0.1, 1.0, 10.0, 1e4)


class Draw(NamedTuple):
    """A map and the examples that it is tried on."""

    fmap: jns.FeatureMap
    x: np.ndarray
    rng: np.random.Generator


def activation(rng: np.random.Generator) -> stax.Layer:
    return ACTIVATIONS[rng.integers(len(ACTIVATIONS))]


def dense(rng: np.random.Generator, out_dim: int = 3) -> stax.Layer:
    b_std = (None, 0.0, 0.3)[rng.integers(3)]
    return stax.Dense(out_dim, round(rng.uniform(0.5, 2), 2), b_std)


def conv(rng: np.random.Generator, spatial: tuple[int, ...]) -> stax.Layer:
    window = tuple(int(rng.integers(1, min(size, 3) + 1)) for size in spatial)
    strides = tuple(int(rng.integers(1, 3)) for _ in spatial)
    padding = ("SAME", "VALID", "CIRCULAR")[rng.integers(3)]
    b_std = (None, 0.2)[rng.integers(2)]
    record = stax.Conv if rng.random() < 0.8 else stax.ConvLocal
    return record(3, window, strides, padding, round(rng.uniform(0.7, 1.6), 2), b_std)


def pool(rng: np.random.Generator, spatial: tuple[int, ...]) -> stax.Layer:
    window = tuple(int(rng.integers(1, min(size, 2) + 1)) for size in spatial)
    record = stax.AvgPool if rng.random() < 0.5 else stax.SumPool
    return record(window, window, ("SAME", "VALID")[rng.integers(2)])


def branches(rng: np.random.Generator) -> stax.Layer:
    join = (stax.FanInSum(), stax.FanInConcat(-1), stax.FanInProd())[rng.integers(3)]
    parts = [stax.serial(dense(rng, 4), activation(rng)), dense(rng, 4)]
    return stax.serial(stax.FanOut(2), stax.parallel(*parts), join)


def network(rng: np.random.Generator, shape: tuple[int, ...]) -> stax.Layer:
    """Return a network of one to three hidden layers that takes examples of `shape`."""
    layers: list[stax.Layer] = []
    spatial = shape[:-1]
    if spatial and rng.random() < 0.3:
        layers.append(stax.Flatten())
        spatial = ()
    for _ in range(rng.choice((1, 2, 3), p=(0.5, 0.35, 0.15))):
        if spatial:
            # A window of 1 fits whatever is left of the pixels.
            first = not layers
            sizes = spatial if first else (1,) * len(spatial)
            layers.append(conv(rng, sizes))
        elif rng.random() < 0.2:
            layers.append(branches(rng))
        else:
            layers.append(dense(rng))
        if rng.random() < 0.1 and isinstance(layers[-1], stax.Dense | stax.Conv):
            layers.append(stax.LayerNorm())
        layers.append(activation(rng))
        kind = rng.random()
        if kind < 0.1:
            layers.append(stax.Dropout(0.7))
        elif kind < 0.25 and spatial:
            layers.append(pool(rng, (1,) * len(spatial)))
    if spatial:
        ends = (stax.Flatten(), stax.GlobalAvgPool(), stax.GlobalSumPool())
        layers.append(ends[rng.integers(3)])
    return (
        stax.serial(*layers, dense(rng)) if rng.random() < 0.8 else stax.serial(*layers)
    )


def draw(number: int) -> Draw | None:
    """Return the draw of a number, or None if its method does not take its network."""
    rng = np.random.default_rng(number)
    shape = SHAPES[rng.integers(len(SHAPES))]
    net = network(rng, shape)
    fmap = jns.feature_map(
        net,
        num_features=COLUMNS[rng.integers(len(COLUMNS))],
        get=GETS[rng.integers(3)],
        method=METHODS[rng.integers(len(METHODS))],
    )
    scale = SCALES[rng.integers(len(SCALES))]
    if any(isinstance(layer, OSCILLATING) for layer in stax.walk(net)):
        # Rounding is as large as a period of the function at large inputs.
        scale = min(scale, 1.0)
    x = rng.standard_normal((5, *shape))
    dtype = ("float32", "float32", "float16", "int8")[rng.integers(4)]
    if dtype == "float16":
        # Squares of 1e-6 are below its smallest number.
        scale = max(scale, 0.1)
    x = (x * scale).astype(dtype)
    try:
        for kind in fmap.kinds:
            steps_of(fmap.resolve(shape), kind, shape)
    except ValueError:
        return None
    return Draw(fmap, x, rng)


def close(a, b, others, name: str, tolerance: float, floor: float) -> None:
    """Features a and b have the same inner products, with a pair of others.

    Near cosine 1 the features themselves are as steep as a square root. The floor is
    the error that is allowed where all products are zero.
    """
    for p, q, *z in zip(*map(jax.tree.leaves, (a, b, *others)), strict=True):
        p, q, *z = (np.asarray(array, np.float64) for array in (p, q, *z))
        assert p.shape == q.shape, (name, p.shape, q.shape)
        off = np.abs(p @ z[0].T - q @ z[1].T).max(initial=0)
        largest = np.sum(z[1] ** 2, axis=-1).max(initial=0)
        assert off <= tolerance * largest + floor, (name, off)


def check(number: int, eagerly: bool | None = None) -> str:
    """Check the invariants of a draw; return what was drawn.

    One draw in five also checks what compiles each operation by itself and takes
    most of the time: `init` with its warnings, and other kinds of arrays.
    """
    if eagerly is None:
        eagerly = number % 5 == 0
    drawn = draw(number)
    if drawn is None:
        return f"{number}: refused"
    fmap, x, rng = drawn
    exact = fmap.method == jns.methods.Exact()
    sample = rng.standard_normal((160, *x.shape[1:])).astype(np.float32)
    learns = fmap.method == jns.methods.Nystrom()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extra = {"sample": sample} if learns else {}
        key = jax.random.key(number)
        if learns or eagerly:
            params = fmap.init(key, x.shape[1:], **extra)
        else:
            params = jax.jit(lambda key: fmap.init(key, x.shape[1:]))(key)
    leaves = jax.tree.leaves(params)
    if eagerly and not learns:
        plan = fmap.plan(x.shape[1:])
        assert plan.param_bytes == sum(leaf.nbytes for leaf in leaves)
    assert all(leaf.size for leaf in leaves), "an array of size zero"
    run = jax.jit(fmap.apply)
    phi = run(params, x)
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype("float32")
    for z in jax.tree.leaves(phi):
        assert z.dtype == dtype, z.dtype
        assert exact or z.shape == (len(x), fmap.num_features), z.shape
        assert dtype == "float16" or np.isfinite(z).all(), "not finite"
    assert getattr(phi, "_fields", fmap.get) == fmap.get
    if not all(np.isfinite(z).all() for z in jax.tree.leaves(phi)):
        return f"{number}: overflow of float16"
    tolerance = 3e-2 if dtype == "float16" else 1e-4
    if learns and dtype != "float16":
        tolerance = 1e-3  # the root of a nearly singular kernel amplifies rounding

    def same(name: str, other, rows=slice(None)) -> None:
        part = jax.tree.map(lambda z: z[rows], phi)
        # The Cholesky factor of a singular kernel turns with its rounding.
        others = (other, part) if exact else (phi, phi)
        close(other, part, others, name, tolerance, 0 if x.any() else 1e-12)

    for name, kind in KINDS.items() if eagerly else ():
        same(name, fmap.apply(params, kind(x)))
    net = fmap.net
    assert eval(repr(net)) == net == stax.from_json(stax.to_json(net))
    if exact:
        return f"{number}: {fmap}"
    order = rng.permutation(len(x))
    same("order", run(params, x[order]), order)
    same("batch_size", jax.jit(functools.partial(fmap.apply, batch_size=2))(params, x))
    same("one example", run(params, x[:1]), slice(1))
    if eagerly:
        same("none", fmap.apply(params, x[:0]), slice(0))
        same("transform", jns.transform(fmap, params, x, batch_size=2))
    return f"{number}: {fmap}"


def about(number: int) -> str:
    """Return a line on a draw."""
    drawn = draw(number)
    return f"{drawn.fmap} {drawn.x.dtype} {drawn.x.shape}" if drawn else "refused"


def main() -> None:
    first, number = map(int, sys.argv[1:])
    refused = failed = 0
    for seed in range(first, first + number):
        try:
            refused += check(seed).endswith("refused")
        except Exception as error:
            failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            name = f"{type(error).__name__} in {where.name}"
            print(f"{seed}: {name}: {error}; {about(seed)}")
            sys.stdout.flush()
        if seed % 10 == 0:
            jax.clear_caches()
    print(f"{number} draws, {refused} refused, {failed} failed")


if __name__ == "__main__":
    main()
