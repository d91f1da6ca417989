"""Features of the maps of another version of the library, for `default.py`.

`default.py` starts it with that version on the path. It reads requests from standard
input, one JSON object a line, and answers each with a line:

    {"rows": "x.npz", "depth": 2, "map": "OnePass(4)", "columns": 256, "seed": 0,
     "out": "features.npz"}

The arrays "x" and "x_test" become "phi" and "phi_test". A map "compress OnePass(4)" has
eight times as many columns before it is compressed. It uses nothing of the benchmarks,
because their functions change.
"""

import json
import sys

import jax
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, stax


def network(depth: int) -> stax.Layer:
    dense = stax.Dense(1, W_std=2**0.5)
    return stax.serial(*[dense, stax.Relu()] * depth, dense)


def features(request: dict) -> None:
    """Write the features of a request."""
    with np.load(request["rows"]) as file:
        x, x_test = file["x"], file["x_test"]
    words, columns = request["map"].split(" ", 1), request["columns"]
    compressed = words[0] == "compress"
    name = words[1] if compressed else request["map"]
    method = eval(name, vars(methods))
    wide = 8 * columns if compressed else columns
    fmap = jns.feature_map(network(request["depth"]), num_features=wide, method=method)
    key = jax.random.key(request["seed"])
    # In this version the examples of `init` are those that maps learn from.
    params = fmap.init(key, x)
    if compressed:
        fmap, params = jns.compress(fmap, params, x, num_features=columns)
    phi, phi_test = (jns.transform(fmap, params, z) for z in (x, x_test))
    np.savez(request["out"], phi=phi, phi_test=phi_test)


def main() -> None:
    for line in sys.stdin:
        try:
            features(json.loads(line))
            answer = {"error": None}
        except ValueError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
