"""Maps that learn from data, maps of maps, and networks on graphs and sequences."""

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax
from jax_ntk_sketch.features._compress import CompressedFeatureMap
from registry.case import DIM, Case
from registry.maps import BIASED, BOTH, DEEP, IMAGE, ROOT2, SHALLOW

SAMPLE = 60
GRAPH = stax.serial(
    stax.Aggregate(implementation="SPARSE"), stax.Dense(4, ROOT2), stax.Relu(),
    stax.Aggregate(implementation="SPARSE"), stax.Dense(4, ROOT2), stax.Relu(),
    stax.GlobalSumPool(), stax.Dense(1),
)  # fmt: skip
EDGES = ((0, 1), (1, 0), (1, 2), (2, 1), (0, 0), (1, 1), (2, 2))
TEXT = stax.serial(
    stax.Conv(4, (2,), None, "SAME", ROOT2), stax.Relu(),
    stax.GlobalSelfAttention(4, 4, 4, 1, linear_scaling=True), stax.GlobalAvgPool(),
    stax.Dense(1),
)  # fmt: skip
DROPPED = stax.serial(
    stax.Dense(4, ROOT2), stax.Relu(), stax.Dropout(0.7), stax.Dense(4), stax.Relu(),
    stax.Dense(1),
)  # fmt: skip
SEQUENCE = (3, 2)


def _network(name, net, method, num, *, get="ntk", **known) -> Case:
    fmap = jns.feature_map(net, num_features=num, get=get, method=method)
    columns = (num,) * (1 if isinstance(get, str) else 2)
    return Case(name, fmap, columns, **known)


def _networks() -> list[Case]:
    graph = {"shape": SEQUENCE, "edges": EDGES}
    names = ("ntk_random_features", "ntk_sketch", "variance_reduced")
    cases = [_network(f"graph-{m}", GRAPH, m, 61, **graph) for m in names]
    cases += [_network(f"attention-{m}", TEXT, m, 61, shape=SEQUENCE) for m in names]
    cases += [_network(f"dropout-{m}", DROPPED, m, 47) for m in names]
    uniform = methods.Nystrom(landmarks="uniform", oversample=1)
    learned = {"sample": SAMPLE, "zero": False}
    cases += [
        _network("nystrom-biased", BIASED, "nystrom", 12, get=BOTH, **learned),
        _network("nystrom-uniform", DEEP, uniform, 12, sample=SAMPLE),
        _network("nystrom-image", IMAGE, "nystrom", 14, sample=9, shape=(2, 3, 1)),
    ]
    return cases


def _maps_of_maps() -> list[Case]:
    def base(num: int, dim: int = DIM) -> jns.FeatureMap:
        return jns.feature_map(SHALLOW, num_features=num, method="ntk_random_features")

    compressed = CompressedFeatureMap(base(64), 12)
    sparse = jns.with_sparse_inputs(base(40), sketch_dim=16)
    return [
        Case("compressed", compressed, (12,), sample=SAMPLE, traced_init=False),
        Case("sparse", sparse, (40,)),
    ]


LEARNED = _networks() + _maps_of_maps()
