"""What a user does with features: linear models on arrays."""

from jax_ntk_sketch.linear_model.fit import fit_ridge
from jax_ntk_sketch.linear_model.model import RidgeInfo, RidgeModel
from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    ridge_init,
    ridge_merge,
    ridge_penalty,
    ridge_solve,
    ridge_update,
)

__all__ = [
    "RidgeInfo",
    "RidgeModel",
    "RidgeState",
    "fit_ridge",
    "ridge_init",
    "ridge_merge",
    "ridge_penalty",
    "ridge_solve",
    "ridge_update",
]
