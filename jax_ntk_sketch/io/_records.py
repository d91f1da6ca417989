"""Feature maps and parameters as JSON and named arrays, and back."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch import methods, stax
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import PyTree
from jax_ntk_sketch.features._compress import CompressedFeatureMap
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap, feature_map
from jax_ntk_sketch.features._sparse_inputs import SparseFeatureMap

# Anything that JSON can hold.
Data = Any

# The maps that records describe, by the names of what makes them.
_MAPS: dict[str, tuple[type, Callable[..., FeatureMap]]] = {
    "feature_map": (NetworkFeatureMap, feature_map),
    "compress": (CompressedFeatureMap, CompressedFeatureMap),
    "with_sparse_inputs": (SparseFeatureMap, SparseFeatureMap),
}


def record_to_data(record: object) -> Data:
    """Return the JSON of a map, a network, a method, or one of their fields.

    Raises:
      TypeError: it has a Python function, or is a record of another package, which
        would have to be imported to read it.
    """
    if isinstance(record, stax.Layer):
        data = json.loads(stax.to_json(record))
        for name in _layer_names(data):
            if "." in name:
                raise TypeError(f"the layer {name} is not one of this library")
        return {"network": data}
    if isinstance(record, methods.Method):
        for name, method in methods.METHODS.items():
            if type(record) is method and _is_ours(method):
                return {"method": name, **dataclasses.asdict(record)}
    for name, (kind, _) in _MAPS.items():
        if type(record) is kind:
            fields = dataclasses.fields(record)  # type: ignore[arg-type]
            values = {f.name: record_to_data(getattr(record, f.name)) for f in fields}
            return {"map": name, **values}
    if isinstance(record, tuple):
        return [record_to_data(item) for item in record]
    if record is None or isinstance(record, str | int | float):
        return record
    raise TypeError(f"{record!r} is not a record of this library")


def record_from_data(data: Data) -> Any:
    """Return what `record_to_data` described.

    Raises:
      KeyError, TypeError, ValueError: there is no such record.
    """
    if isinstance(data, list):
        return tuple(map(record_from_data, data))
    if not isinstance(data, dict):
        return data
    if "network" in data:
        return stax.from_json(json.dumps(data["network"]))
    make: Callable[..., Any]
    if "method" in data and "map" not in data:
        make = methods.METHODS[data["method"]]
        return make(**{k: v for k, v in data.items() if k != "method"})
    make = _MAPS[data["map"]][1]
    return make(**{k: record_from_data(v) for k, v in data.items() if k != "map"})


def tree_to_data(tree: PyTree, arrays: dict[str, NDArray], name: str) -> Data:
    """Return the JSON of a pytree, and add its arrays to `arrays` under their paths.

    Raises:
      TypeError: it has other nodes than dictionaries, lists, tuples and arrays.
    """
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        parts = {k: tree_to_data(v, arrays, f"{name}/{k}") for k, v in tree.items()}
        return {"dict": parts}
    if type(tree) in (list, tuple):
        items = [tree_to_data(v, arrays, f"{name}/{i}") for i, v in enumerate(tree)]
        return {type(tree).__name__: items}
    if not isinstance(tree, jax.Array | np.ndarray) or name in arrays:
        raise TypeError(
            "save: params must be dictionaries, lists and tuples of arrays, got "
            f"{type(tree).__name__} at {name}"
        )
    arrays[name] = np.asarray(tree)
    return name


def tree_from_data(data: Data, arrays: dict[str, NDArray]) -> PyTree:
    """Return the pytree that `tree_to_data` described.

    Raises:
      KeyError, TypeError, ValueError: the arrays are not those of the pytree.
    """
    if isinstance(data, str):
        return to_device(data, arrays[data])
    ((kind, content),) = data.items()
    if kind == "dict":
        return {key: tree_from_data(value, arrays) for key, value in content.items()}
    items = [tree_from_data(value, arrays) for value in content]
    return {"list": list, "tuple": tuple}[kind](items)


def to_device(name: str, array: NDArray) -> jax.Array:
    """Return an array of a file as an array of JAX, of the same dtype.

    Raises:
      ValueError: JAX would round it.
    """
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{name} has dtype {array.dtype}, which needs "
            'jax.config.update("jax_enable_x64", True)'
        )
    return jnp.asarray(array)


def _layer_names(data: Data) -> list[str]:
    """Return the names of all layers of a network as JSON."""
    if isinstance(data, list):
        return [name for item in data for name in _layer_names(item)]
    if not isinstance(data, dict):
        return []
    return [data["layer"], *_layer_names([*data.values()])]


def _is_ours(record: type) -> bool:
    return record.__module__.startswith(f"{__name__.split('.')[0]}.")
