"""A fitted model as one file of arrays, without pickle."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch.linear_model import checkpoint
from jax_ntk_sketch.linear_model._fit import FittedModel
from jax_ntk_sketch.linear_model.model import RidgeInfo, RidgeModel

__all__ = ["is_model", "load_metadata", "load_model", "save_model"]

_MODEL = ("weights", "intercept", "reg")
_WHAT = "jax_ntk_sketch model"
_NOTES = "notes."
_READING: dict[str, Any] = {
    "kind": "model of this library",
    "advice": "give the file that save_model wrote",
}


def save_model(
    path: str | os.PathLike,
    fitted: FittedModel,
    *,
    notes: Mapping[str, Any] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the chosen model, the parameters and the feature map's description.

    The file is written beside `path` and renamed, so that a failure leaves an old one
    as it was. Models of other values of `reg` and errors of folds are not kept.

    Args:
      path: of an `.npz` file; its folder is created.
      fitted: what `fit`, `fit_cg` or `fit_gradient` returned.
      notes: what else is to be known, the preprocessing say; anything of JSON.
      arrays: that belong to the notes, by name; `load_metadata` returns both.

    Raises:
      OSError: the file cannot be written.
      TypeError: parameters that are no dictionaries, lists and tuples of arrays.

    >>> import jax_ntk_sketch as jns, tempfile
    >>> from jax_ntk_sketch import linear_model, stax
    >>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=20)
    >>> x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    >>> params = fmap.init(jax.random.key(0), (3,))
    >>> fitted = linear_model.fit(fmap, params, x, x[:, 0], reg=1e-3)
    >>> path = tempfile.mkdtemp() + "/model.npz"
    >>> save_model(path, fitted)
    >>> bool((load_model(path, fmap).predict(x) == fitted.predict(x)).all())
    True
    """
    model = fitted.model
    kept_arrays: dict[str, np.ndarray] = {}
    structure = _encode(fitted.params, "params", kept_arrays)
    kept = str(jax.tree.structure(_decode(structure, kept_arrays)))
    if kept != str(jax.tree.structure(fitted.params)):
        raise TypeError(
            "save_model: params must be dictionaries, lists and tuples of arrays, got "
            f"{jax.tree.structure(fitted.params)}"
        )
    for name in _MODEL:
        kept_arrays[name] = np.asarray(getattr(model, name))
    for name, value in model.info._asdict().items():
        kept_arrays[f"info.{name}"] = np.asarray(value)
    for name, array in (arrays or {}).items():
        kept_arrays[_NOTES + name] = np.asarray(array)
    about = {
        "what": _WHAT,
        "feature map": repr(fitted.fmap),
        "params": structure,
        "num_targets": model.num_targets,
        "num_classes": model.num_classes,
        "skipped": fitted.skipped,
        "notes": dict(notes or {}),
    }
    checkpoint.save(path, kept_arrays, about)


def is_model(path: str | os.PathLike) -> bool:
    """Whether `save_model` wrote the file, by its description."""
    return checkpoint.describe(path).get("what") == _WHAT


def load_metadata(
    path: str | os.PathLike,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The notes that `save_model` was given, and their arrays.

    Args:
      path: the file.

    Raises:
      FileNotFoundError, ValueError: as `load_model`.
    """
    arrays, about = checkpoint.load(path, **_READING)
    if about.get("what") != _WHAT:
        raise ValueError(
            f"{path} is no {_READING['kind']} (a checkpoint of its fit, perhaps); "
            f"{_READING['advice']}"
        )
    own = {
        name.removeprefix(_NOTES): array
        for name, array in arrays.items()
        if name.startswith(_NOTES)
    }
    return about["notes"], own


def load_model(path: str | os.PathLike, fmap: Any) -> FittedModel:
    """What `save_model` wrote, for the feature map that it was fitted with.

    Args:
      path: the file.
      fmap: an equal feature map; an architecture is not rebuilt from a file.

    Returns:
      `FittedModel`, whose predictions are bitwise those of the one saved.

    Raises:
      FileNotFoundError: there is none.
      ValueError: another kind of file, a damaged one, or another feature map.
    """
    wanted = {"what": _WHAT, "feature map": repr(fmap)}
    arrays, about = checkpoint.load(path, wanted, **_READING)
    info = RidgeInfo(*(arrays[f"info.{name}"] for name in RidgeInfo._fields))
    weights, intercept, reg = (arrays[name] for name in _MODEL)
    model = RidgeModel(
        weights=jnp.asarray(weights),
        intercept=jnp.asarray(intercept),
        reg=reg,
        info=info,
        num_targets=about["num_targets"],
        num_classes=about["num_classes"],
    )
    params = _decode(about["params"], arrays)
    return FittedModel(fmap, params, model, model, None, about["skipped"])


def _encode(tree: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """The containers of a pytree as JSON; its arrays go to `arrays`, by name."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {"dict": {k: _encode(tree[k], f"{name}.{k}", arrays) for k in tree}}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        items = [_encode(part, f"{name}.{i}", arrays) for i, part in enumerate(tree)]
        return {kind: items}
    arrays[name] = np.asarray(tree)
    return name


def _decode(structure: Any, arrays: dict[str, np.ndarray]) -> Any:
    if structure is None:
        return None
    if isinstance(structure, str):
        return jnp.asarray(arrays[structure])
    ((kind, items),) = structure.items()
    if kind == "dict":
        return {key: _decode(part, arrays) for key, part in items.items()}
    parts = [_decode(part, arrays) for part in items]
    return parts if kind == "list" else tuple(parts)
