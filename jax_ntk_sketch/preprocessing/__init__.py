"""Preprocessing of examples, before a feature map.

Each step is a pair of pure functions. `..._fit` reads the training examples once and
returns a small pytree of arrays. `..._apply` transforms any examples, also under `jit`
and `vmap`. Fit on training examples only, even if some of them are later held out to
choose a penalty: a step that is fitted on test images has seen the test set.

| step | statistics of | functions |
| --- | --- | --- |
| standardize examples | each example | `standardize_examples`, no fit |
| standardize columns | each column or channel | `standardize_columns_...` |
| ZCA whitening | all pairs of entries | `zca_fit`, `zca_apply` |

The fits read batches of anything that has a length, a shape, a dtype and slices, so
that the training examples may be a memory map.

Convolutional kernels on natural images usually need two steps:

>>> import jax
>>> from jax_ntk_sketch.preprocessing import standardize_examples, zca_apply, zca_fit
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
)
from jax_ntk_sketch.preprocessing.examples import standardize_examples
from jax_ntk_sketch.preprocessing.zca import ZCAParams, zca_apply, zca_fit

__all__ = [
    "ColumnStandardization",
    "ZCAParams",
    "standardize_columns_apply",
    "standardize_columns_fit",
    "standardize_examples",
    "zca_apply",
    "zca_fit",
]
