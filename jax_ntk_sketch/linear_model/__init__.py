"""What a user does with features: linear models on arrays."""

from jax_ntk_sketch.linear_model._fit import fit
from jax_ntk_sketch.linear_model._fit_cg import fit_cg
from jax_ntk_sketch.linear_model._fit_gradient import fit_gradient
from jax_ntk_sketch.linear_model._fit_ridge import fit_ridge
from jax_ntk_sketch.linear_model._fitted import CGInfo, FittedModel, GradientInfo
from jax_ntk_sketch.linear_model._multihost import ridge_psum
from jax_ntk_sketch.linear_model.cross_validation import (
    CrossValidation,
    ridge_cross_validate,
)
from jax_ntk_sketch.linear_model.gradient_flow import (
    EnsemblePrediction,
    Gaussian,
    gradient_descent_mse,
    gradient_descent_mse_ensemble,
)
from jax_ntk_sketch.linear_model.io import load_metadata, load_model, save_model
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
    "CGInfo",
    "CrossValidation",
    "EnsemblePrediction",
    "FittedModel",
    "Gaussian",
    "GradientInfo",
    "RidgeInfo",
    "RidgeModel",
    "RidgeState",
    "fit",
    "fit_cg",
    "fit_gradient",
    "fit_ridge",
    "gradient_descent_mse",
    "gradient_descent_mse_ensemble",
    "load_metadata",
    "load_model",
    "ridge_cross_validate",
    "ridge_init",
    "ridge_merge",
    "ridge_penalty",
    "ridge_psum",
    "ridge_solve",
    "ridge_update",
    "save_model",
]
