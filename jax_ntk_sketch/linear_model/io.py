"""Fitted models in files of arrays, without pickle."""

import ast
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._protocol import FeatureMap, Origin
from jax_ntk_sketch._typing import PyTree
from jax_ntk_sketch.linear_model import checkpoint
from jax_ntk_sketch.linear_model._fitted import FittedModel
from jax_ntk_sketch.linear_model.model import model_from_arrays, model_to_arrays

_FORMAT = "jax_ntk_sketch model"
# The user's arrays have names of their own.
_USER_ARRAY = "metadata."
_ORIGIN = "Origin"


def save_model(
    path: str | os.PathLike,
    fitted: FittedModel,
    *,
    metadata: Mapping[str, Any] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a fitted model: the weights, the parameters and the name of the map.

    The file is written atomically: if the write fails, an old file stays as it was. The
    models of other values of `reg` and the errors of folds are not saved.

    Args:
      path: an `.npz` file; its folder is created.
      fitted: what `fit`, `fit_cg` or `fit_gradient` returned.
      metadata: anything that JSON can hold, for example the preprocessing; by default
        those of `fitted`.
      arrays: arrays that belong to the metadata, by name; by default those of `fitted`.

    Raises:
      OSError: the file cannot be written.
      TypeError: the parameters are not dictionaries, lists and tuples of arrays, or the
        metadata are not JSON.

    >>> import pathlib, tempfile
    >>> import jax
    >>> import numpy as np
    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import linear_model, stax
    >>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=20)
    >>> x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    >>> params = fmap.init(jax.random.key(0), (3,))
    >>> fitted = linear_model.fit(fmap, params, x, x[:, 0], reg=1e-3)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.npz"
    >>> linear_model.save_model(path, fitted)
    >>> loaded = linear_model.load_model(path, fmap)
    >>> bool((loaded.predict(x) == fitted.predict(x)).all())
    True
    """
    model = fitted.best
    leaves, _ = jax.tree_util.tree_flatten_with_path(fitted.params)
    parts = {_leaf_name(key): np.asarray(leaf) for key, leaf in leaves}
    parts |= model_to_arrays(model)
    metadata = fitted.metadata if metadata is None else metadata
    for name, array in (fitted.arrays if arrays is None else arrays).items():
        parts[_USER_ARRAY + name] = np.asarray(array)
    header = {
        "format": _FORMAT,
        "feature map": repr(fitted.fmap),
        "params": _structure_literal(fitted.params),
        "num_targets": model.num_targets,
        "classes": model.classes,
        "skipped": fitted.num_skipped,
        "feature_names": fitted.feature_names,
        "metadata": dict(metadata),
    }
    checkpoint.save(path, parts, header)


def is_model(path: str | os.PathLike) -> bool:
    """Return whether `save_model` wrote the file."""
    return checkpoint.read_metadata(path).get("format") == _FORMAT


def load_model(
    path: str | os.PathLike, fmap: FeatureMap | Callable[[dict[str, Any]], FeatureMap]
) -> FittedModel:
    """Return the model that `save_model` wrote.

    Args:
      path: the file.
      fmap: a feature map equal to the one that was fitted. Or a function that makes it
        from the metadata of the file, which does not hold the map itself.

    Returns:
      `FittedModel`, whose predictions are bitwise those of the saved one. It has the
      metadata and the arrays that `save_model` was given.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of another kind or of another feature map, or it is
        damaged.
    """
    kind, remedy = "model of this library", "give the file that save_model wrote"
    arrays, header = checkpoint.load(path, kind=kind, remedy=remedy)
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is not a {kind} but another file of this library, for example a "
            f"checkpoint of a fit; {remedy}"
        )
    if not isinstance(fmap, FeatureMap):
        fmap = fmap(header["metadata"])
    checkpoint.check_run(path, header, {"feature map": repr(fmap)})
    names, classes = header["feature_names"], header["classes"]
    classes = None if classes is None else tuple(classes)
    model = model_from_arrays(arrays, header["num_targets"], classes)
    structure = jax.tree.map(
        _read_origin, ast.literal_eval(header["params"]), is_leaf=_is_origin
    )
    params = jax.tree_util.tree_map_with_path(
        lambda key, _: jnp.asarray(arrays[_leaf_name(key)]), structure
    )
    return FittedModel(
        fmap,
        params,
        model,
        model,
        num_skipped=header["skipped"],
        feature_names=names and tuple(names),
        metadata=header["metadata"],
        arrays={
            name.removeprefix(_USER_ARRAY): array
            for name, array in arrays.items()
            if name.startswith(_USER_ARRAY)
        },
    )


def _leaf_name(key: tuple[Any, ...]) -> str:
    return f"params{jax.tree_util.keystr(key)}"


def _structure_literal(params: PyTree) -> str:
    """Return a Python literal of the structure of `params`, with 0 for each array.

    An `Origin` has no arrays; a dictionary of its fields, by its name, stands for it.
    """
    literal = repr(
        jax.tree.map(
            lambda leaf: (
                {_ORIGIN: dataclasses.asdict(leaf)} if isinstance(leaf, Origin) else 0
            ),
            params,
            is_leaf=lambda node: isinstance(node, Origin),
        )
    )
    structure: object = jax.tree.structure(params)
    try:
        tree = jax.tree.map(_read_origin, ast.literal_eval(literal), is_leaf=_is_origin)
        if structure == jax.tree.structure(tree):
            return literal
    except ValueError:  # a record, which is not a literal
        pass
    raise TypeError(
        "save_model: params must be dictionaries, lists and tuples of arrays, got "
        f"{structure}"
    )


def _is_origin(node: PyTree) -> bool:
    return isinstance(node, dict) and set(node) == {_ORIGIN}


def _read_origin(node: PyTree) -> PyTree:
    return Origin(**node[_ORIGIN]) if _is_origin(node) else node
