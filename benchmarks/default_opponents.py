"""Features of the maps of another version of the library, for `default.py`.

`default.py` starts it with that version on the path. It reads requests from standard
input, one JSON object a line, and answers each with a line:

    {"rows": "rows.npz", "num_fitting": 99, "kind": "relu", "depth": 2,
     "map": "OnePass(4)", "columns": 256, "seed": 0, "out": "phi.npy"}

The array "x", and "pattern" if there is one, become features. The first rows are those
that maps learn from. A map "compress OnePass(4)" has eight times as many columns before
it is compressed. It uses nothing of the benchmarks, because their functions change.
"""

import json
import sys

import jax
import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, recipes, stax


def network(kind: str, depth: int) -> stax.Layer:
    """Return the network of a set: "relu", "cntk" or "gntk"."""
    if kind == "relu":
        dense = stax.Dense(1, W_std=2**0.5)
        return stax.serial(*[dense, stax.Relu()] * depth, dense)
    return recipes.cntk(depth) if kind == "cntk" else recipes.gntk(depth)


def features(request: dict) -> None:
    """Write the features of a request."""
    with np.load(request["rows"]) as file:
        x = file["x"]
        extras = {name: file[name] for name in file.files if name != "x"}
    n = request["num_fitting"]
    fitting = x[:n], {name: a[:n] for name, a in extras.items()}
    words, columns = request["map"].split(" ", 1), request["columns"]
    compressed = words[0] == "compress"
    name = words[1] if compressed else request["map"]
    method = eval(name, vars(methods))
    wide = 8 * columns if compressed else columns
    net = network(request["kind"], request["depth"])
    fmap = jns.feature_map(net, num_features=wide, method=method)
    key = jax.random.key(request["seed"])
    # In this version the examples of `init` are those that maps learn from.
    params = fmap.init(key, fitting[0], **fitting[1])
    if compressed:
        if extras:
            raise ValueError("compress does not take graphs")
        fmap, params = jns.compress(fmap, params, fitting[0], num_features=columns)
    np.save(request["out"], jns.transform(fmap, params, x, **extras))


def main() -> None:
    last = None
    for line in sys.stdin:
        request = json.loads(line)
        # Draws of one map share compiled functions.
        cell = {k: v for k, v in request.items() if k not in ("rows", "out", "seed")}
        if cell != last:
            jax.clear_caches()
        last = cell
        try:
            features(request)
            answer = {"error": None}
        except ValueError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
