"""What is done to the inputs before they are featurised.

Each step is a pure pair: `..._fit` looks at training examples once and returns a
small pytree of arrays, `..._apply` uses it on any examples, under `jit` and `vmap`.
Fit on training examples only, also when a part of them is held out to choose a
regularisation: whatever is fitted on test images has seen the test set.

For convolutional kernels on natural images the usual pipeline is

>>> import jax, jax.numpy as jnp
>>> images = jax.random.uniform(jax.random.key(0), (200, 4, 4, 3))
>>> train, test = images[:150], images[150:]
>>> params = zca_fit(standardize_examples(train), reg=0.1)
>>> zca_apply(params, standardize_examples(test)).shape
(50, 4, 4, 3)
"""

from jax_ntk_sketch.preprocessing.columns import (
    ColumnStandardization,
    standardize_columns_apply,
    standardize_columns_fit,
    standardize_columns_from_covariance,
)
from jax_ntk_sketch.preprocessing.covariance import (
    CovarianceState,
    covariance_init,
    covariance_merge,
    covariance_update,
)
from jax_ntk_sketch.preprocessing.examples import standardize_examples
from jax_ntk_sketch.preprocessing.zca import (
    ZCAParams,
    zca_apply,
    zca_fit,
    zca_from_covariance,
)

__all__ = [
    "ColumnStandardization",
    "CovarianceState",
    "ZCAParams",
    "covariance_init",
    "covariance_merge",
    "covariance_update",
    "standardize_columns_apply",
    "standardize_columns_fit",
    "standardize_columns_from_covariance",
    "standardize_examples",
    "zca_apply",
    "zca_fit",
    "zca_from_covariance",
]
