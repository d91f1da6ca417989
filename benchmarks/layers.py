"""The coverage of Neural Tangents' `stax` by layers and methods: `LAYERS.md`.

    python benchmarks/layers.py            # prints the table, in half an hour
    python benchmarks/layers.py --write    # and puts it into LAYERS.md
    python benchmarks/layers.py --only Gelu Conv

Each public name of `neural_tangents.stax` is tried in a small network. For each method
the table has the larger of both kernels' relative errors between different examples,
against Neural Tangents' own `kernel_fn`, as root mean square over keys.
"""

import functools
import warnings

import common
import jax
import jax.numpy as jnp
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import neural_tangents as jnt

LAYERS = common.FOLDER / "LAYERS.md"
SECTION = "layers"
METHODS = (
    "exact", "ntk_random_features", "ntk_sketch", "variance_reduced", "nystrom",
)  # fmt: skip
BOTH = ("nngp", "ntk")
EXAMPLES, NODES = 16, 5

# Names that are not layers, and what takes their place.
BY_HAND = "for layers written by hand; CONTRIBUTING.md shows how to add one here"
HELPERS = {
    "AggregateImplementation": 'strings: `"DENSE"`, `"SPARSE"`',
    "AttentionMechanism": 'strings: `"SOFTMAX"`, `"IDENTITY"`, `"ABS"`, `"RELU"`',
    "Bool": "a type",
    "MaskedArray": "`fmap.apply(..., mask=)` for padded graphs",
    "Padding": 'strings: `"SAME"`, `"VALID"`, `"CIRCULAR"`',
    "PositionalEmbedding": 'strings: `"NONE"`, `"SUM"`, `"CONCAT"`',
    **dict.fromkeys(
        ("Diagonal", "layer", "requires", "supports_masking", "unmask_fn"), BY_HAND
    ),
}


def dense(b_std: float | None = 0.2) -> stax.Dense:
    """Return a dense layer."""
    return stax.Dense(4, 1.2, b_std)


def conv() -> stax.Conv:
    """Return a convolution of 3 x 3 pixels."""
    return stax.Conv(4, (3, 3), None, "SAME", 1.1, 0.1)


RELU, MEAN, FLAT = stax.Relu(), stax.GlobalAvgPool(), stax.Flatten()
IDENTITY = stax.Identity()
VECTOR, IMAGE, GRAPH = (10,), (4, 4, 2), (NODES, 3)


def branches(join: stax.Layer, *more: stax.Layer) -> tuple[stax.Layer, ...]:
    """Return a nonlinear and a linear branch, both Gaussian, and what joins them."""
    pair = stax.parallel(stax.serial(dense(), RELU, dense()), dense())
    return dense(), RELU, stax.FanOut(2), pair, join, *more


def spatial(layer: stax.Layer) -> tuple[tuple[int, ...], tuple[stax.Layer, ...]]:
    """Return a network for images, with the layer in the middle."""
    return IMAGE, (conv(), RELU, layer, conv(), RELU, MEAN, dense())


# For each name the shape of an example, and the layers of a network.
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


def public_names() -> list[str]:
    """Return the public names of their `stax`, sorted without regard to case."""
    module = jnt.load().stax
    return sorted((x for x in dir(module) if not x.startswith("_")), key=str.lower)


def network(name: str) -> tuple[tuple[int, ...], stax.Serial] | None:
    """Return the shape of one example and the network that a name is tried in."""
    if name in NETWORKS:
        shape, layers = NETWORKS[name]
        return shape, stax.serial(*layers)
    layer = ACTIVATIONS.get(name) or getattr(stax, name, None)
    if isinstance(layer, type) and issubclass(layer, stax.Activation):
        layer = layer()
    if isinstance(layer, stax.Activation):
        return VECTOR, stax.serial(dense(), layer, dense())
    return None


def inputs(shape: tuple[int, ...], n: int, seed: int) -> tuple[jax.Array, dict]:
    """Return examples, and for graphs the pattern of their edges."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(0.2 + rng.standard_normal((n, *shape)), jnp.float32)
    if shape != GRAPH:
        return x, {}
    return x, {"pattern": jnp.asarray(rng.integers(0, NODES, (n, 8, 2)))}


def exact_kernels(shape: tuple[int, ...], net: stax.Serial) -> list[np.ndarray]:
    """Return their kernels of the first half of the examples with the second."""
    x, extra = inputs(shape, EXAMPLES, 0)
    half = EXAMPLES // 2
    pairs = {key: (v[:half], v[half:]) for key, v in extra.items()}
    out = jnt.to_stax(net)[2](x[:half], x[half:], BOTH, **pairs)
    return [np.asarray(k, np.float64) for k in out]


def errors(
    shape: tuple[int, ...],
    net: stax.Serial,
    exact: list[np.ndarray],
    method: str,
    num_features: int,
    keys: int,
) -> np.ndarray:
    """Return the relative errors of both kernels, root mean square over keys."""
    fmap = jns.feature_map(net, num_features=num_features, get=BOTH, method=method)
    x, extra = inputs(shape, EXAMPLES, 0)
    # Landmarks come from other examples, of images from their patches.
    sample, sample_extra = inputs(shape, 256 if shape == VECTOR else 32, 1)

    # Compilation is most of the time.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def features(key: jax.Array) -> jns.KernelFeatures:
        params = fmap.init(key, shape, sample=sample, **sample_extra)
        return fmap.apply(params, x, **extra)

    draws = [features(key) for key in jax.random.split(jax.random.key(0), keys)]
    half, out = EXAMPLES // 2, []
    for kind, k in zip(BOTH, exact, strict=True):
        z = np.asarray([getattr(draw, kind) for draw in draws], np.float64)
        grams = z[:, :half] @ z[:, half:].mT
        square = np.mean(np.sum((grams - k) ** 2, axis=(1, 2)))
        # The NTK after Sign is zero.
        out.append(np.sqrt(square / (np.sum(k**2) or 1.0)))
    return np.array(out)


def cell(value: float, method: str) -> str:
    """Return the table's text for an error."""
    if method == "exact":
        return "yes" if value < 1e-4 else f"**off by {value:.1e}**"
    return f"{value:.3f}"


def row(name: str, args: common.Options, refusals: dict[str, int]) -> list[str]:
    """Return the table's row: errors, or the number of the message that refuses."""
    out, empty = [f"`{name}`"], len(args.methods) - 1
    if name in HELPERS:
        return [*out, f"not a layer: {HELPERS[name]}", *[""] * empty]
    found = network(name)
    if found is None:
        try:
            getattr(stax, name)
        except AttributeError as refusal:
            number = refusals.setdefault(str(refusal), len(refusals) + 1)
            return [*out, f"no [{number}]", *["no"] * empty]
        raise SystemExit(f"{name} has a record, but no network in {__file__}")
    shape, net = found
    exact = exact_kernels(shape, net)
    for method in args.methods:
        m, keys = (1, 1) if method == "exact" else (args.num_features, args.keys)
        try:
            found_errors = errors(shape, net, exact, method, m, keys)
            out.append(cell(found_errors.max(), method))
        except ValueError as refusal:
            number = refusals.setdefault(str(refusal), len(refusals) + 1)
            out.append(f"no [{number}]")
    return out


def coverage(args: common.Options) -> None:
    """Print the table, and with --write put it into LAYERS.md."""
    if args.write and (args.only or tuple(args.methods) != METHODS):
        raise SystemExit(
            "--write needs the complete table; leave out --only and --methods"
        )
    names = public_names()
    if unknown := set(args.only) - set(names):
        raise SystemExit(f"not in neural_tangents.stax: {', '.join(sorted(unknown))}")
    # Neural Tangents warns of each numerical activation and fan-in.
    warnings.simplefilter("ignore")
    rows: list[list[str]] = []
    refusals: dict[str, int] = {}
    for name in args.only or names:
        rows.append(row(name, args, refusals))
        print(" | ".join(rows[-1]), flush=True)
    notes = "\n".join(f"[{i}] {text}\n" for text, i in refusals.items())
    text = f"{common.markdown(('name', *args.methods), rows)}\n\n{notes}".strip()
    print(f"\n{text}")
    if args.write:
        text = f"{common.provenance(args)}\n\n{text}"
        common.replace_section(LAYERS, SECTION, text)


if __name__ == "__main__":
    common.main(
        __doc__,
        {"coverage": coverage},
        only=([], "these names only"),
        methods=(list(METHODS), "methods", METHODS),
        num_features=(2048, "features"),
        keys=(3, "draws of each map"),
    )
