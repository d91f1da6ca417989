"""`Model` as JSON and arrays, and back."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch.io._save_and_load import (
    Codec,
    fitted_from_data,
    fitted_to_data,
    register,
    with_prefix,
)
from jax_ntk_sketch.model.error_estimate import ErrorEstimate
from jax_ntk_sketch.model.leave_one_out import Spread
from jax_ntk_sketch.model.model import Model, Uncertainty
from jax_ntk_sketch.model.size import Work
from jax_ntk_sketch.model.table import Table

# The arrays of the uncertainty, by name.
_SPREAD = "uncertainty/"


def to_data(model: Model, arrays: dict[str, NDArray]) -> dict[str, Any]:
    """Return the JSON of a model, and add its arrays."""
    own, spread = model.uncertainty, model.uncertainty.spread
    parts = {
        "mean": spread.mean,
        # Half of it is zeros.
        "root": spread.root[np.tril_indices(len(spread.root))],
        "noise": own.noise,
        "quantiles": own.quantiles,
    }
    if model.scale is not None:
        parts["scale"] = model.scale
    arrays |= {_SPREAD + name: np.asarray(array) for name, array in parts.items()}
    return fitted_to_data(model.fitted, arrays) | {
        "table": model.table and model.table.saved(),
        "error": dataclasses.asdict(model.error),
        "work": dataclasses.asdict(model.work),
        "seconds": model.seconds,
        "sentences": list(model.sentences),
        "uncertainty": {
            "penalty": own.penalty,
            "temperature": own.temperature,
            "total": spread.total,
        },
    }


def from_data(description: dict[str, Any], arrays: dict[str, NDArray]) -> Model:
    """Return the model that `to_data` described.

    Raises:
      ValueError: arrays do not fit together.
    """
    fitted = fitted_from_data(description, arrays)
    parts = with_prefix(_SPREAD, arrays)
    m, t = fitted.fmap.num_features, fitted.best.num_targets or 1
    shapes = {
        "mean": (m,),
        "root": (m * (m + 1) // 2,),
        "noise": (t,),
        "quantiles": (len(parts["quantiles"]), t),
        "scale": (2, t),
    }
    for name, array in parts.items():
        if array.shape != shapes[name]:
            raise ValueError(f"{name} must have shape {shapes[name]}")
    if (fitted.best.classes is None) != ("scale" in parts):
        raise ValueError("a model of numbers must have their scale")
    root = np.zeros((m, m))
    root[np.tril_indices(m)] = parts["root"]
    own, table = description["uncertainty"], description["table"]
    return Model(
        fitted=fitted,
        table=None if table is None else Table.restored(table),
        scale=parts.get("scale"),
        error=ErrorEstimate(**description["error"]),
        uncertainty=Uncertainty(
            Spread(parts["mean"], root, float(own["total"])),
            float(own["penalty"]),
            parts["noise"],
            parts["quantiles"],
            float(own["temperature"]),
        ),
        work=Work(**description["work"]),
        seconds=float(description["seconds"]),
        sentences=tuple(map(str, description["sentences"])),
    )


register(Codec("model", lambda thing: isinstance(thing, Model), to_data, from_data))
