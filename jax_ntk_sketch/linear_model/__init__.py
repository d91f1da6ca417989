r"""Linear models on features.

| function | reads | use it for |
| --- | --- | --- |
| `fit` | examples, once | data of any size; resumes after interruption; several hosts |
| `fit_cg` | examples, once per step | features too many for their Gram matrix |
| `fit_gradient` | examples, once per epoch | other losses than the squared error |
| `fit_ridge` | features, once | features that are computed already |
| `ridge_init`, `ridge_update`, ... | features, batch by batch | loops of your own |
| `gradient_descent_mse` | features or sums | predictions at a time of training |

Ridge regression minimizes, in all of these functions,

.. math:: \frac1n \|\Phi w + b - y\|_F^2 + \mathrm{reg}\,\|w\|_F^2.

The intercept b is not penalized. Multiplied by n, the penalty is
:math:`\lambda \|w\|^2` with :math:`\lambda = \mathrm{reg} \cdot n`. The kernel form of
the problem has the matrix :math:`K + \lambda I` with :math:`K \approx \Phi\Phi^\top`.

The library has three units of penalty, each the usual one of its field:

| argument | unit | added to the diagonal |
| --- | --- | --- |
| `reg` of fits, `ridge_solve`, `spectral_error` | per example | reg n, to K |
| `diag_reg` of `gradient_descent_mse` | mean diagonal | diag_reg tr(K) / n, to K |
| `reg` of `preprocessing.zca_fit` | mean eigenvalue | reg tr(C) / d, to C |

K is the kernel of n examples, or the Gram matrix of their features. C is the covariance
of d entries. `diag_reg` is the convention of Neural Tangents. With
`diag_reg_absolute_scale=True` the number `diag_reg` itself is added, as is `reg` itself
with `relative=False` in `zca_fit`. The example has the same penalty in two units:

>>> import jax
>>> import jax.numpy as jnp
>>> from jax_ntk_sketch import linear_model
>>> phi = jax.random.normal(jax.random.key(0), (30, 5))
>>> y = phi[:, 0] ** 2
>>> model = linear_model.fit_ridge(phi, y, reg=0.1, intercept=False)
>>> diag_reg = 0.1 * 30 / jnp.mean(jnp.sum(phi**2, axis=1))
>>> predict_fn = linear_model.gradient_descent_mse(phi, y, diag_reg=diag_reg)
>>> trained = predict_fn(fx_train_0=None, fx_test_0=0.0, phi_test=phi)
>>> bool(jnp.allclose(trained, model.predict(phi), atol=1e-5))
True
"""

from jax_ntk_sketch.linear_model._fit import fit
from jax_ntk_sketch.linear_model._fit_cg import fit_cg
from jax_ntk_sketch.linear_model._fit_gradient import fit_gradient
from jax_ntk_sketch.linear_model._fit_ridge import fit_ridge
from jax_ntk_sketch.linear_model._fitted import FittedModel
from jax_ntk_sketch.linear_model._multihost import ridge_psum
from jax_ntk_sketch.linear_model.cross_validation import ridge_cross_validate
from jax_ntk_sketch.linear_model.gradient_flow import (
    gradient_descent_mse,
    gradient_descent_mse_ensemble,
)
from jax_ntk_sketch.linear_model.model import RidgeModel
from jax_ntk_sketch.linear_model.ridge import (
    RidgeState,
    ridge_init,
    ridge_merge,
    ridge_solve,
    ridge_update,
)

__all__ = [
    "FittedModel",
    "RidgeModel",
    "RidgeState",
    "fit",
    "fit_cg",
    "fit_gradient",
    "fit_ridge",
    "gradient_descent_mse",
    "gradient_descent_mse_ensemble",
    "ridge_cross_validate",
    "ridge_init",
    "ridge_merge",
    "ridge_psum",
    "ridge_solve",
    "ridge_update",
]
