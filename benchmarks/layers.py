"""What of Neural Tangents' `stax` there is here, by trying it: the README's table.

    python benchmarks/layers.py            # prints the table, half an hour
    python benchmarks/layers.py --write    # and puts it into the README
    python benchmarks/layers.py --only Gelu Conv

For every public name of `neural_tangents.stax` a small network, and for each method the
largest of both kernels' relative errors between different examples, off Neural
Tangents' own `kernel_fn`: root mean square over keys, at the last of `--sizes`. Of
several sizes the slopes of the errors, on logarithmic scales, are printed too.
"""

import argparse
import functools
import pathlib
import warnings
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt

README = pathlib.Path(__file__).parent.parent / "README.md"
MARKERS = "<!-- layers: begin -->", "<!-- layers: end -->"
METHODS = (
    "exact", "ntk_random_features", "ntk_sketch", "variance_reduced", "nystrom",
)  # fmt: skip
BOTH = ("nngp", "ntk")
EXAMPLES, NODES = 16, 5

# Names that are not layers, and what takes their place.
HELPERS = {
    "AggregateImplementation": 'strings: `"DENSE"`, `"SPARSE"`',
    "AttentionMechanism": 'strings: `"SOFTMAX"`, `"IDENTITY"`, `"ABS"`, `"RELU"`',
    "Bool": "a type",
    "Diagonal": "of layers written by hand",
    "MaskedArray": "`fmap.apply(..., mask=)` for padded graphs",
    "Padding": 'strings: `"SAME"`, `"VALID"`, `"CIRCULAR"`',
    "PositionalEmbedding": 'strings: `"NONE"`, `"SUM"`, `"CONCAT"`',
    "layer": "of layers written by hand; here CONTRIBUTING.md",
    "requires": "of layers written by hand",
    "supports_masking": "of layers written by hand",
    "unmask_fn": "of layers written by hand",
}


def dense(b_std: float | None = 0.2) -> stax.Dense:
    return stax.Dense(4, 1.2, b_std)


def conv() -> stax.Conv:
    return stax.Conv(4, (3, 3), None, "SAME", 1.1, 0.1)


RELU, MEAN, FLAT = stax.Relu(), stax.GlobalAvgPool(), stax.Flatten()
IDENTITY = stax.Identity()
VECTOR, IMAGE, GRAPH = (10,), (4, 4, 2), (NODES, 3)


def branches(join: stax.Layer, *more: stax.Layer) -> tuple[stax.Layer, ...]:
    """One nonlinear branch beside a linear one; both Gaussian."""
    pair = stax.parallel(stax.serial(dense(), RELU, dense()), dense())
    return dense(), RELU, stax.FanOut(2), pair, join, *more


def spatial(layer: stax.Layer, *before: stax.Layer) -> tuple[Any, ...]:
    return IMAGE, (conv(), RELU, *before, layer, conv(), RELU, MEAN, dense())


# A network for each name: the shape of an example, and layers.
NETWORKS: dict[str, tuple[tuple[int, ...], tuple[stax.Layer, ...]]] = {
    "Aggregate": (
        GRAPH,
        (
            stax.Aggregate(implementation="SPARSE"), dense(), RELU,
            stax.Aggregate(implementation="SPARSE"), dense(), RELU, MEAN,
        ),
    ),
    "AvgPool": spatial(stax.AvgPool((2, 2))),
    "Conv": spatial(conv()),
    "ConvLocal": spatial(stax.ConvLocal(4, (2, 2), None, "SAME", 1.1, 0.1)),
    "ConvTranspose": spatial(stax.ConvTranspose(4, (2, 2), (2, 2), "SAME", 1.1, 0.1)),
    "Dense": (VECTOR, (dense(), RELU, dense(), RELU, dense())),
    "DotGeneral": (
        IMAGE,
        (
            conv(), RELU,
            stax.DotGeneral(
                rhs=(1.0, -0.5, 0.3, 0.2), dimension_numbers=(((1,), (0,)), ((), ()))
            ),
            dense(), RELU, MEAN, dense(),
        ),
    ),
    "Dropout": (VECTOR, (dense(), RELU, stax.Dropout(0.8), dense(), RELU, dense())),
    "FanInConcat": (VECTOR, branches(stax.FanInConcat(), dense(), RELU, dense())),
    "FanInProd": (VECTOR, branches(stax.FanInProd(), dense(), RELU, dense())),
    "FanInSum": (VECTOR, branches(stax.FanInSum(), RELU, dense())),
    "FanOut": (VECTOR, branches(stax.FanInSum())),
    "Flatten": (IMAGE, (conv(), RELU, conv(), RELU, FLAT, dense())),
    "GlobalAvgPool": (IMAGE, (conv(), RELU, conv(), RELU, stax.GlobalAvgPool())),
    "GlobalSelfAttention": spatial(stax.GlobalSelfAttention(4, 4, 4, 2, b_std=0.1)),
    "GlobalSumPool": (IMAGE, (conv(), RELU, conv(), RELU, stax.GlobalSumPool())),
    "Identity": (VECTOR, (dense(), RELU, IDENTITY, dense())),
    "ImageResize": spatial(stax.ImageResize((-1, 3, 5, -1), "linear")),
    "Index": spatial(stax.Index(stax.Slice[:, 1:, ::2])),
    "LayerNorm": (VECTOR, (dense(), RELU, dense(), stax.LayerNorm(), RELU, dense())),
    "Slice": spatial(stax.Index(stax.Slice[:, 1:, ::2])),
    "SumPool": spatial(stax.SumPool((2, 2))),
    "parallel": (VECTOR, branches(stax.FanInSum())),
    "repeat": (VECTOR, (stax.repeat(stax.serial(dense(), RELU), 2), dense())),
    "serial": (VECTOR, (stax.serial(dense(), RELU), dense())),
}  # fmt: skip

ACTIVATIONS = {
    "Elementwise": stax.Elementwise(jnp.tanh),
    "ElementwiseNumerical": stax.ElementwiseNumerical(jnp.tanh, 60),
    "ABRelu": stax.ABRelu(0.3, -1.2),
    "Hermite": stax.Hermite(3),
    "LeakyRelu": stax.LeakyRelu(0.1),
    "Monomial": stax.Monomial(3),
    "Polynomial": stax.Polynomial((0.5, -1.0, 0.3)),
    "RectifiedMonomial": stax.RectifiedMonomial(2),
}


def theirs() -> list[str]:
    """The public names of their `stax`, sorted without regard to case."""
    module = jnt.load().stax
    return sorted((x for x in dir(module) if not x.startswith("_")), key=str.lower)


def network(name: str) -> tuple[tuple[int, ...], stax.Serial] | None:
    """The shape of one example and the network that a name is tried in."""
    if name in NETWORKS:
        shape, layers = NETWORKS[name]
        return shape, stax.serial(*layers)
    layer = ACTIVATIONS.get(name) or getattr(stax, name, None)
    if isinstance(layer, type) and issubclass(layer, stax.Activation):
        layer = layer()
    if isinstance(layer, stax.Activation):
        return VECTOR, stax.serial(dense(), layer, dense())
    return None


def inputs(shape: tuple[int, ...], n: int, seed: int) -> tuple[Any, dict[str, Any]]:
    """Examples, and the pattern of edges where they are graphs."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(0.2 + rng.standard_normal((n, *shape)), jnp.float32)
    if shape != GRAPH:
        return x, {}
    return x, {"pattern": jnp.asarray(rng.integers(0, NODES, (n, 8, 2)))}


def exact_kernels(shape: tuple[int, ...], net: stax.Serial) -> list[np.ndarray]:
    """Their kernels of the first half of the examples with the second."""
    x, beside = inputs(shape, EXAMPLES, 0)
    half = EXAMPLES // 2
    pairs = {key: (v[:half], v[half:]) for key, v in beside.items()}
    out = jnt.to_stax(net)[2](x[:half], x[half:], BOTH, **pairs)
    return [np.asarray(k, np.float64) for k in out]


def errors(
    shape: tuple[int, ...],
    net: stax.Serial,
    wanted: list[np.ndarray],
    method: str,
    num_features: int,
    keys: int,
) -> np.ndarray:
    """Relative errors, root mean square over keys: (2, 2).

    Of both kernels, against the exact ones and against the mean over keys, which leaves
    out what no number of columns averages, the degrees above a method's own.
    """
    fmap = jns.feature_map(net, num_features=num_features, get=BOTH, method=method)
    x, beside = inputs(shape, EXAMPLES, 0)
    # Landmarks come from other examples, of images from their patches.
    sample, beside_sample = inputs(shape, 256 if shape == VECTOR else 32, 1)

    # Compilation is most of the time.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def features(key):
        return fmap.apply(fmap.init(key, sample, **beside_sample), x, **beside)

    outs = [features(key) for key in jax.random.split(jax.random.key(0), keys)]
    half, relative = EXAMPLES // 2, []
    for kind, k in zip(BOTH, wanted, strict=True):
        z = np.asarray([getattr(out, kind) for out in outs], np.float64)
        grams = z[:, :half] @ z[:, half:].mT
        square = np.mean(np.sum((grams - k) ** 2, axis=(1, 2)))
        spread = np.sum(np.var(grams, axis=0, ddof=min(1, keys - 1)))
        # The NTK behind Sign is zero.
        relative.append(np.sqrt(np.array([square, spread]) / (np.sum(k**2) or 1.0)))
    return np.array(relative)


def cell(value: float, method: str) -> str:
    if method == "exact":
        return "yes" if value < 1e-4 else f"**off by {value:.1e}**"
    return f"{value:.3f}".lstrip("0")


def row(name: str, args: Any, refusals: list[str], slopes: dict) -> list[str]:
    """The table's row: errors, or why not; texts of refusals are numbered."""
    empty = len(args.methods) - 1
    if name in HELPERS:
        return [f"`{name}`", f"not a layer: {HELPERS[name]}", *[""] * empty]
    found = network(name)
    if found is None:
        try:
            getattr(stax, name)
        except AttributeError as refusal:
            reason = str(refusal)
        else:
            raise SystemExit(f"{name} has a record, but no network in {__file__}")
        return [f"`{name}`", f"no [{number(refusals, reason)}]", *["no"] * empty]
    shape, net = found
    wanted = exact_kernels(shape, net)
    out = [f"`{name}`"]
    for method in args.methods:
        exact = method == "exact"
        sizes, keys = ([1], 1) if exact else (args.sizes, args.keys)
        try:
            found = [errors(shape, net, wanted, method, m, keys) for m in sizes]
        except ValueError as refusal:
            out.append(f"no [{number(refusals, str(refusal))}]")
            continue
        out.append(cell(found[-1][:, 0].max(), method))
        if len(sizes) > 1:
            slopes[name, method] = [
                jns.validation.loglog_slope(sizes, column) if column.all() else None
                for column in np.array(found).reshape(len(sizes), -1).T
            ]
    return out


def number(refusals: list[str], text: str) -> int:
    if text not in refusals:
        refusals.append(text)
    return refusals.index(text) + 1


def put(text: str) -> None:
    """Between the README's markers."""
    before, after = README.read_text().split(MARKERS[0])
    after = after.split(MARKERS[1])[1]
    part = README.with_suffix(".part")
    part.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}")
    part.replace(README)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--only", nargs="+", metavar="NAME", help="these names only")
    options.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    options.add_argument(
        "--sizes", nargs="+", type=int, default=[2048], help="columns, growing"
    )
    options.add_argument("--keys", type=int, default=3)
    options.add_argument("--write", action="store_true", help="into README.md")
    args = options.parse_args()
    if args.write and (args.only or tuple(args.methods) != METHODS):
        raise SystemExit("--write takes the whole table: leave --only and --methods")
    names = theirs()
    if unknown := set(args.only or ()) - set(names):
        raise SystemExit(f"not in neural_tangents.stax: {', '.join(sorted(unknown))}")
    # Neural Tangents warns of each numerical activation and fan-in.
    warnings.simplefilter("ignore")
    rows: list[list[str]] = []
    refusals: list[str] = []
    slopes: dict[tuple[str, str], list[float | None]] = {}
    for name in args.only or names:
        rows.append(row(name, args, refusals, slopes))
        print(" | ".join(rows[-1]), flush=True)
    notes = "\n".join(f"[{i}] {text}\n" for i, text in enumerate(refusals, 1))
    text = f"{common.markdown(('name', *args.methods), rows)}\n\n{notes}"
    print(f"\n{text}")
    if slopes:
        print("Slopes of log error over", *args.sizes, "columns")
        lines = [
            (name, method, *("" if s is None else f"{s:.2f}" for s in pair))
            for (name, method), pair in slopes.items()
        ]
        kinds = [f"{kind}{what}" for kind in BOTH for what in ("", ", own mean")]
        print(common.markdown(("name", "method", *kinds), lines))
    if args.write:
        put(text)


if __name__ == "__main__":
    main()
