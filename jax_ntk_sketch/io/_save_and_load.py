"""`save` and `load`."""

import dataclasses
import os
from typing import Any, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

import jax_ntk_sketch
from jax_ntk_sketch import _tensor_file
from jax_ntk_sketch._plan import PlanRow
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._tensor_file import Description
from jax_ntk_sketch._typing import PyTree, Shape
from jax_ntk_sketch.io._fingerprint import are_close, fingerprint, input_shape
from jax_ntk_sketch.io._program import ProgramFeatureMap, export_map
from jax_ntk_sketch.io._records import (
    record_from_data,
    record_to_data,
    to_device,
    tree_from_data,
    tree_to_data,
)
from jax_ntk_sketch.linear_model import FittedModel, RidgeModel
from jax_ntk_sketch.linear_model.model import RidgeInfo, model_to_arrays
from jax_ntk_sketch.preprocessing.inputs import Inputs

# What a file holds: a fitted model, a map with its parameters, or a linear model.
Thing: TypeAlias = FittedModel | RidgeModel | tuple[FeatureMap, PyTree]

_KINDS = "fitted model", "feature map", "linear model"
_REMEDY = "give a file that jax_ntk_sketch.io.save wrote"
# The user's arrays have names of their own.
_USER_ARRAY = "metadata/"
_STEPS = "preprocessing/"


def save(path: str | os.PathLike, thing: Thing) -> None:
    """Write a model or a feature map to a file that describes itself.

    The file is written atomically: if the write fails, an old file stays as it was. Of
    a fitted model, the models of other values of `reg` and the errors of folds are not
    written.

    Args:
      path: the file; its folder is created.
      thing: a `FittedModel` of `fit`, `fit_cg` or `fit_gradient`; a `RidgeModel` of
        `fit_ridge` or `ridge_solve`; or a pair `(fmap, params)`.

    Raises:
      OSError: the file cannot be written.
      TypeError: `thing` is something else; or the feature map can be written neither as
        a record nor as a program. The message names the part.
      ValueError: the model is not finite, or the parameters are those of another map.

    Cost: that of one compilation of the features, and the bytes of the arrays.
    """
    arrays: dict[str, NDArray] = {}
    versions = {"jax_ntk_sketch": jax_ntk_sketch.__version__, "jax": jax.__version__}
    description: Description = {"written by": versions | {"numpy": np.__version__}}
    if isinstance(thing, FittedModel):
        kind = "fitted model"
        description |= _map_to_data(thing.fmap, thing.params, arrays)
        description |= _model_to_data("save", thing.best, arrays)
        _check_columns("save", thing.best, thing.fmap)
        description["skipped"] = thing.num_skipped
        description["feature_names"] = thing.feature_names
        description["preprocessing"] = _steps_to_data(thing.preprocessing, arrays)
        description["metadata"] = dict(thing.metadata)
        for name, array in thing.arrays.items():
            arrays[_USER_ARRAY + name] = np.asarray(array)
    elif isinstance(thing, RidgeModel):
        kind = "linear model"
        description |= _model_to_data("save", thing, arrays)
    elif isinstance(thing, tuple) and isinstance(thing[0], FeatureMap):
        kind = "feature map"
        description |= _map_to_data(*thing, arrays)
    else:
        raise TypeError(
            "save: thing must be a FittedModel, a RidgeModel or a pair (fmap, params), "
            f"got {type(thing).__name__}"
        )
    _tensor_file.write(path, kind, description, arrays)


def load(path: str | os.PathLike) -> Any:
    """Return what `save` wrote.

    Args:
      path: the file.

    Returns:
      A `FittedModel`, a `RidgeModel` or a pair `(fmap, params)`. Predictions are
      bitwise those of the saved model, on the same machine and with the same versions
      of the libraries. A map that was written as a program has no `init`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of another kind, it is damaged, or this version of the
        library computes other features than the one that wrote the file.

    Cost: that of one compilation of the features, and the bytes of the file.
    """
    kind, description, arrays = _tensor_file.read(path, "model file", _REMEDY)
    if kind not in _KINDS:
        raise ValueError(f"{path} is a {kind} and not a model; {_REMEDY}")
    try:
        return _thing_from_data(kind, description, arrays)
    except _OtherFeatures as error:
        raise ValueError(f"{path}: {error}") from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:500]
        raise ValueError(
            f"{path} does not describe a {kind} of this library ({reason}); {_REMEDY}"
        ) from error


class _OtherFeatures(Exception):
    """This library computes other features than the one that wrote a file."""


def _thing_from_data(
    kind: str, description: Description, arrays: dict[str, NDArray]
) -> Thing:
    if kind == "linear model":
        return _model_from_data(description, arrays)
    fmap, params = _map_from_data(description, arrays)
    if kind == "feature map":
        return fmap, params
    model = _model_from_data(description, arrays)
    _check_columns("load", model, fmap)
    return FittedModel(
        fmap,
        params,
        model,
        model,
        num_skipped=int(description["skipped"]),
        feature_names=_names(description["feature_names"]),
        preprocessing=_steps_from_data(
            description["preprocessing"], arrays, input_shape(fmap, params)
        ),
        metadata=dict(description["metadata"]),
        arrays=_with_prefix(_USER_ARRAY, arrays),
    )


def _map_to_data(
    fmap: FeatureMap, params: PyTree, arrays: dict[str, NDArray]
) -> Description:
    """Return the JSON of a map and its parameters, and add their arrays."""
    try:
        record = None if isinstance(fmap, ProgramFeatureMap) else record_to_data(fmap)
    except TypeError as error:
        record = None
        try:
            fmap, params = export_map(fmap, params, input_shape(fmap, params))
        except Exception as reason:  # whatever a function of the user raises
            raise TypeError(
                f"save: {fmap!r} cannot be written. It is not a record of this library "
                f"only ({error}), and it cannot be exported as a program ({reason})"
            ) from reason
    if isinstance(fmap, ProgramFeatureMap):
        fields = dataclasses.asdict(fmap)
        arrays["program"] = np.frombuffer(fields.pop("program"), np.uint8)
        record = {"program": fields}
    tree = tree_to_data(params, arrays, "params")
    arrays["fingerprint"] = fingerprint(fmap, params)
    return {"feature map": record, "params": tree}


def _map_from_data(
    description: Description, arrays: dict[str, NDArray]
) -> tuple[FeatureMap, PyTree]:
    """Return the map and its parameters, whose features are those that were saved."""
    record = description["feature map"]
    if "program" in record:
        fields = {k: _tuples(v) for k, v in record["program"].items()}
        fields["row"] = PlanRow(**fields["row"])
        fmap: Any = ProgramFeatureMap(**fields, program=arrays["program"].tobytes())
    else:
        fmap = record_from_data(record)
    params = tree_from_data(description["params"], arrays)
    if not are_close(arrays["fingerprint"], fingerprint(fmap, params)):
        versions = description["written by"]
        raise _OtherFeatures(
            f"jax_ntk_sketch {versions['jax_ntk_sketch']} wrote the file with other "
            f"features than version {jax_ntk_sketch.__version__} computes from it, so "
            "that the weights do not belong to them; load it with that version, or fit "
            "again"
        )
    return fmap, params


def _steps_to_data(steps: object, arrays: dict[str, NDArray]) -> Any:
    """Return the JSON of preprocessing, and add its arrays."""
    if steps is None:
        return None
    if not isinstance(steps, Inputs):
        raise TypeError(
            "save: preprocessing must be that of the command line or None, got "
            f"{type(steps).__name__}; apply it before the fit and before predict"
        )
    fields, learned = steps.saved()
    arrays |= {_STEPS + name: array for name, array in learned.items()}
    return fields


def _steps_from_data(
    fields: Any, arrays: dict[str, NDArray], shape: Shape
) -> Inputs | None:
    """Return the preprocessing to examples of this shape."""
    if fields is None:
        return None
    steps = Inputs.restored(fields, _with_prefix(_STEPS, arrays))
    if steps.shape != shape or not np.isfinite(steps(np.zeros((1, *shape)))).all():
        raise ValueError(f"preprocessing must give finite examples of shape {shape}")
    return steps


def _with_prefix(prefix: str, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """Return the arrays whose names have a prefix, without it."""
    named = (
        (n.removeprefix(prefix), a) for n, a in arrays.items() if n.startswith(prefix)
    )
    return dict(named)


def _names(names: list | None) -> Any:
    """Return different names or numbers as a tuple."""
    if names is None:
        return None
    if len(set(names)) < len(names):
        raise ValueError("labels and names of columns must differ")
    return tuple(names)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _model_to_data(
    owner: str, model: RidgeModel, arrays: dict[str, NDArray]
) -> Description:
    _check_model(owner, model)
    arrays |= {f"model/{k}": v for k, v in model_to_arrays(model).items()}
    return {"num_targets": model.num_targets, "classes": model.classes}


def _model_from_data(
    description: Description, arrays: dict[str, NDArray]
) -> RidgeModel:
    names = "weights", "intercept"
    weights, intercept = (to_device(n, arrays[f"model/{n}"]) for n in names)
    model = RidgeModel(
        weights,
        intercept,
        arrays["model/reg"],
        RidgeInfo(*(arrays[f"model/info.{name}"] for name in RidgeInfo._fields)),
        description["num_targets"],
        _names(description["classes"]),
    )
    _check_model("load", model)
    return model


def _check_model(owner: str, model: RidgeModel) -> None:
    """Check the shapes, the labels and the numbers of a linear model.

    Raises:
      ValueError: they do not fit together, or are not finite.
    """
    t, shape, lead = model.num_targets, np.shape(model.weights), np.shape(model.reg)
    tail = () if t is None else (t,)
    if (
        len(lead) > 1
        or shape != (*lead, *shape[len(lead) : len(lead) + 1], *tail)
        or np.shape(model.intercept) != (*lead, *tail)
        or len(shape) == len(lead + tail)
    ):
        raise ValueError(
            f"{owner}: model must have weights (m, t) and intercepts (t,), got {shape} "
            f"and {np.shape(model.intercept)} for t = {t} and {lead} values of reg"
        )
    if model.classes is not None and (
        len(model.classes) != t or len({type(label) for label in model.classes}) > 1
    ):
        raise ValueError(
            f"{owner}: model must have {t} labels, integers or text, got "
            f"{model.classes[:5]}"
        )
    for name in ("weights", "intercept", "reg"):
        if not np.isfinite(getattr(model, name)).all():
            raise ValueError(
                f"{owner}: {name} of the model must be finite, got NaN or infinity"
            )


def _check_columns(owner: str, model: RidgeModel, fmap: FeatureMap) -> None:
    """Check that a model has one weight for each feature, and one value of reg.

    Raises:
      ValueError: it has another number.
    """
    shape = np.shape(model.weights)
    if np.ndim(model.reg) or shape[0] != fmap.num_features:
        raise ValueError(
            f"{owner}: model must have one weight for each of {fmap.num_features} "
            f"features, got weights of shape {shape}"
        )
