"""What a user does with features: linear models on arrays."""

from jax_ntk_sketch.linear_model.arrays import fit_ridge
from jax_ntk_sketch.linear_model.cg import CGHistory, fit_cg
from jax_ntk_sketch.linear_model.cross_validation import (
    CrossValidation,
    ridge_cross_validate,
)
from jax_ntk_sketch.linear_model.gradient import fit_gradient
from jax_ntk_sketch.linear_model.model import RidgeInfo, RidgeModel
from jax_ntk_sketch.linear_model.predict import (
    Gaussian,
    Gaussians,
    gradient_descent_mse,
    gradient_descent_mse_ensemble,
)
from jax_ntk_sketch.linear_model.reduction import ridge_psum
from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    ridge_init,
    ridge_merge,
    ridge_penalty,
    ridge_solve,
    ridge_update,
)
from jax_ntk_sketch.linear_model.saving import load_model, load_notes, save_model
from jax_ntk_sketch.linear_model.stream import FittedModel, fit

__all__ = [
    "CGHistory",
    "CrossValidation",
    "FittedModel",
    "Gaussian",
    "Gaussians",
    "RidgeInfo",
    "RidgeModel",
    "RidgeState",
    "fit",
    "fit_cg",
    "fit_gradient",
    "fit_ridge",
    "gradient_descent_mse",
    "gradient_descent_mse_ensemble",
    "load_model",
    "load_notes",
    "ridge_cross_validate",
    "ridge_init",
    "ridge_merge",
    "ridge_penalty",
    "ridge_psum",
    "ridge_solve",
    "ridge_update",
    "save_model",
]
