"""`save` and `load`."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

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

# The named arrays of a file, and what one adds to them.
Arrays: TypeAlias = dict[str, NDArray]


class Codec(NamedTuple):
    """How things of one kind are written and read.

    Attributes:
      kind: what a file of them is called.
      accepts: whether a thing is of this kind.
      to_data: returns the JSON of a thing, and adds its arrays.
      from_data: returns the thing again. It may raise what `load` lists.
    """

    kind: str
    accepts: Callable[[Any], bool]
    to_data: Callable[[Any, Arrays], Description]
    from_data: Callable[[Description, Arrays], Any]


_CODECS: dict[str, Codec] = {}


def register(codec: Codec) -> None:
    """Let `save` and `load` know a kind of things."""
    _CODECS[codec.kind] = codec


_REMEDY = "give a file that jax_ntk_sketch.io.save wrote"
# The user's arrays have names of their own.
_USER_ARRAY = "metadata/"
_STEPS = "preprocessing/"


def save(path: str | os.PathLike, thing: Any) -> None:
    """Write a model or a feature map to a file that describes itself.

    The file is written atomically: if the write fails, an old file stays as it was. Of
    a fitted model, the models of other values of `reg`, the errors of folds and the
    sums are not written.

    Args:
      path: the file; its folder is created.
      thing: a `Model` of `jax_ntk_sketch.fit`; a `FittedModel` of `fit`, `fit_cg` or
        `fit_gradient`; a `RidgeModel` of `fit_ridge` or `ridge_solve`; or a pair
        `(fmap, params)`.

    Raises:
      OSError: the file cannot be written.
      TypeError: `thing` is something else; or the feature map can be written neither as
        a record nor as a program. The message names the part.
      ValueError: the model is not finite, or the parameters are those of another map.

    Cost: that of one compilation of the features, and the bytes of the arrays.
    """
    codec = next((codec for codec in _CODECS.values() if codec.accepts(thing)), None)
    if codec is None:
        raise TypeError(
            "save: thing must be a Model, a FittedModel, a RidgeModel or a pair (fmap, "
            f"params), got {type(thing).__name__}"
        )
    arrays: Arrays = {}
    versions = {"jax_ntk_sketch": jax_ntk_sketch.__version__, "jax": jax.__version__}
    description: Description = {"written by": versions | {"numpy": np.__version__}}
    description |= codec.to_data(thing, arrays)
    _tensor_file.write(path, codec.kind, description, arrays)


def load(path: str | os.PathLike) -> Any:
    """Return what `save` wrote.

    Args:
      path: the file.

    Returns:
      A `Model`, a `FittedModel`, a `RidgeModel` or a pair `(fmap, params)`. Predictions
      are bitwise those of the saved model, on the same machine and with the same
      versions of the libraries. A map that was written as a program has no `init`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of another kind, it is damaged, or this version of the
        library computes other features than the one that wrote the file.

    Cost: that of one compilation of the features, and the bytes of the file.
    """
    kind, description, arrays = _tensor_file.read(path, "model file", _REMEDY)
    if kind not in _CODECS:
        raise ValueError(f"{path} is a {kind} and not a model; {_REMEDY}")
    try:
        return _CODECS[kind].from_data(description, arrays)
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


def fitted_to_data(fitted: FittedModel, arrays: Arrays) -> Description:
    """Return the JSON of a fitted model, and add its arrays."""
    description = _map_to_data(fitted.fmap, fitted.params, arrays)
    description |= _model_to_data(fitted.best, arrays)
    _check_columns("save", fitted.best, fitted.fmap)
    description["skipped"] = fitted.num_skipped
    description["feature_names"] = fitted.feature_names
    description["preprocessing"] = _steps_to_data(fitted.preprocessing, arrays)
    description["metadata"] = dict(fitted.metadata)
    for name, array in fitted.arrays.items():
        arrays[_USER_ARRAY + name] = np.asarray(array)
    return description


def fitted_from_data(description: Description, arrays: Arrays) -> FittedModel:
    """Return the fitted model that `fitted_to_data` described."""
    fmap, params = _map_from_data(description, arrays)
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
        arrays=with_prefix(_USER_ARRAY, arrays),
    )


def _map_to_data(fmap: FeatureMap, params: PyTree, arrays: Arrays) -> Description:
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
    description: Description, arrays: Arrays
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


def _steps_to_data(steps: object, arrays: Arrays) -> Any:
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


def _steps_from_data(fields: Any, arrays: Arrays, shape: Shape) -> Inputs | None:
    """Return the preprocessing to examples of this shape."""
    if fields is None:
        return None
    steps = Inputs.restored(fields, with_prefix(_STEPS, arrays))
    if steps.shape != shape or not np.isfinite(steps(np.zeros((1, *shape)))).all():
        raise ValueError(f"preprocessing must give finite examples of shape {shape}")
    return steps


def with_prefix(prefix: str, arrays: Arrays) -> dict[str, NDArray]:
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


def _model_to_data(model: RidgeModel, arrays: Arrays) -> Description:
    _check_model("save", model)
    arrays |= {f"model/{k}": v for k, v in model_to_arrays(model).items()}
    return {"num_targets": model.num_targets, "classes": model.classes}


def _model_from_data(description: Description, arrays: Arrays) -> RidgeModel:
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


def _is_map_with_params(thing: Any) -> bool:
    return isinstance(thing, tuple) and isinstance(thing[0], FeatureMap)


register(
    Codec(
        "fitted model",
        lambda thing: isinstance(thing, FittedModel),
        fitted_to_data,
        fitted_from_data,
    )
)
register(
    Codec(
        "linear model",
        lambda thing: isinstance(thing, RidgeModel),
        _model_to_data,
        _model_from_data,
    )
)
register(
    Codec(
        "feature map",
        _is_map_with_params,
        lambda pair, arrays: _map_to_data(pair[0], pair[1], arrays),
        _map_from_data,
    )
)
