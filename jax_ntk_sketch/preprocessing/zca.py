r"""ZCA whitening: decorrelates the entries of examples and keeps images images.

With the covariance C of training examples and their mean,

.. math:: y = W (x - \bar x), \qquad W = (C + \epsilon I)^{-1/2}.

W is the symmetric one of all whitening matrices, so that y stays as close to x as
whitening permits: each pixel minus what its neighbours predict. A direction of
variance :math:`\lambda` has variance :math:`\lambda / (\lambda + \epsilon)` after.

When it matters. Convolutional kernels on natural images gain several points of
accuracy: without it a published Myrtle-5 kernel drops to about 76 % on CIFAR-10,
which users report as a bug. Fully connected kernels see the examples by their inner
products alone, which whitening with few examples erases (n <= d and
:math:`\epsilon = 0`: all of them, Wadia et al.). On small data they gain little or
lose: the NTK of three layers, trained on 3500 standardised CIFAR-10 images, had 47 %
right without ZCA, 31 % with reg = 0.1, 37 % with reg = 1. Compare on held-out
training images.

Pipeline: `zca_fit(standardize_examples(train))`, then `zca_apply` on both sets.

Choice of `reg`. Relative to the mean eigenvalue, 0.01 to 1 is a range to search for
images of 32x32x3. Shankar et al. add 1e-4 to eigenvalues of images of unit norm,
which are 1/3072 in the mean: 0.31 relative. (They leave the mean over examples in.)

Sources: Coates, Lee, Ng, "An analysis of single-layer networks in unsupervised
feature learning" (AISTATS 2011), section 3.1.2; Shankar et al., "Neural kernels
without tangents" (2020, arXiv 2003.02237); regularisation relative to the mean
eigenvalue: Lee et al., "Finite versus infinite neural networks: an empirical study"
(2020, arXiv 2007.15801); Wadia et al., "Whitening and second order optimization both
make information about the dataset unusable during training, and can reduce or
prevent generalization" (2021, arXiv 2008.07545).
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jax_ntk_sketch.preprocessing.checks import (
    check_examples,
    fitted_dtype,
    working_dtype,
)
from jax_ntk_sketch.preprocessing.covariance import CovarianceState, covariance_of

__all__ = ["ZCAParams", "zca_apply", "zca_fit", "zca_from_covariance"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("mean", "whitening", "eigenvalues", "reg"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, eq=False)
class ZCAParams:
    """A fitted whitening: arrays of one dtype.

    Attributes:
      mean: of the training examples, in their shape, d entries.
      whitening: (d, d), the symmetric matrix W; acts on flattened examples.
      eigenvalues: (d,), of the covariance (divided by n), largest first.
      reg: (), the number added to them, absolute.
    """

    mean: Array
    whitening: Array
    eigenvalues: Array
    reg: Array

    @property
    def variances(self) -> Array:
        """(d,): the variance of each principal direction after whitening, in [0, 1].

        Near 1: whitened. Near 0: left as noise that is not blown up.
        """
        return self.eigenvalues / (self.eigenvalues + self.reg)

    @property
    def effective_rank(self) -> Array:
        """(): how many directions are whitened, the sum of `variances`; at most d."""
        return jnp.sum(self.variances)


def zca_fit(
    x: ArrayLike,
    *,
    reg: float = 0.1,
    relative: bool = True,
    batch_size: int | None = None,
) -> ZCAParams:
    """Fits ZCA whitening to training examples.

    Args:
      x: training examples (n, *shape), n >= 2, any trailing shape (images NHWC or
        NCHW alike); real, integers (uint8) are converted to float as they are, 0..255.
        Never test examples. n <= d is fine where reg > 0.
      reg: >= 0, added to the eigenvalues; see the module's documentation for values.
      relative: whether `reg` is in units of the mean eigenvalue trace / d, so that it
        does not depend on the scale of x; else in squared units of x.
      batch_size: examples per float64 copy; None for copies of about 64 MB.

    Returns:
      `ZCAParams` in the dtype of x (float32 for coarser ones, the default float for
      integers).

    Raises:
      TypeError, ValueError: a traced or complex x; n < 2; NaN or infinite entries
        (the example is named); a negative reg; a covariance that is singular with
        `reg` added.

    Cost: n d^2 multiply-adds for the covariance and about 9 d^3 for its
    eigendecomposition, in float64 on the host: for d = 3072 on two cores 0.5 s per
    1000 examples and 20 to 30 s. Memory about 40 d^2 bytes (0.4 GB).

    Guarantee: W is exactly symmetric. In float64 the whitened training examples have
    the covariance with eigenvalues `variances` to 1e-10 or better; in float32 W is
    rounded once, and applying it errs by 1e-7 times sqrt((largest eigenvalue + reg) /
    (smallest + reg)). An entry that is constant becomes 0, to rounding.

    >>> x = jax.random.normal(jax.random.key(0), (500, 2))
    >>> x = x @ jnp.array([[3.0, 1.0], [0.0, 1.0]])
    >>> whitened = zca_apply(zca_fit(x, reg=0.0), x)
    >>> bool(jnp.allclose(jnp.cov(whitened.T, bias=True), jnp.eye(2), atol=1e-5))
    True
    """
    examples = check_examples("zca_fit", x)
    _check_reg("zca_fit", reg)
    state = covariance_of("zca_fit", examples, batch_size)
    return zca_from_covariance(
        state,
        reg=reg,
        relative=relative,
        dtype=working_dtype(examples),
    )


def zca_from_covariance(
    state: CovarianceState,
    *,
    reg: float = 0.1,
    relative: bool = True,
    dtype: Any = None,
) -> ZCAParams:
    """Whitening from a streamed covariance; see `zca_fit`.

    Args:
      state: from `covariance_init(shape)` and updates with 2 examples or more.
      reg, relative: as in `zca_fit`. Trying another `reg` repeats the
        eigendecomposition, not the pass over the data.
      dtype: float32 or float64; default JAX's default float.

    Returns:
      `ZCAParams`.

    Raises:
      TypeError, ValueError: as `zca_fit`.
    """
    owner = "zca_from_covariance"
    _check_reg(owner, reg)
    dtype = fitted_dtype(owner, dtype)
    if state.scatter.ndim != 2:
        raise ValueError(
            f"{owner}: the state keeps variances only; whitening needs "
            "covariance_init(..., diagonal=False)"
        )
    if state.count < 2:
        raise ValueError(
            f"{owner}: the state must have seen 2 examples or more, got "
            f"{int(state.count)}; covariance_update it first"
        )
    eigenvalues, vectors = np.linalg.eigh(state.covariance)
    d = len(eigenvalues)
    # The covariance has no negative ones: what is below 0 is rounding.
    eigenvalues = np.maximum(eigenvalues, 0.0)
    amount = reg * eigenvalues.mean() if relative else reg
    if eigenvalues[0] + amount <= d * np.finfo(np.float64).eps * eigenvalues[-1]:
        raise ValueError(_singular(owner, state, eigenvalues, reg))
    half = vectors * (eigenvalues + amount) ** -0.25
    return ZCAParams(
        mean=jnp.asarray(state.mean, dtype),
        whitening=jnp.asarray(half @ half.T, dtype),
        eigenvalues=jnp.asarray(eigenvalues[::-1], dtype),
        reg=jnp.asarray(amount, dtype),
    )


def zca_apply(params: ZCAParams, x: ArrayLike) -> Array:
    """Whitens examples: `(x - mean) @ whitening`, flattened inside.

    Args:
      params: `ZCAParams` fitted to examples of some shape.
      x: (n, *shape), that shape; real, integers as they are.

    Returns:
      The shape of x; its dtype, or that of `params` for integers. NaN spreads over
      its own example only.

    Raises:
      TypeError, ValueError: at trace time; complex x, another shape.

    Cost: 2 n d^2 flops at full precision of the dtype. d^2 + O(n d) numbers; apply to
    batches where x does not fit in memory.
    """
    x = jnp.asarray(check_examples("zca_apply", x, params.mean.shape))
    out = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else params.mean.dtype
    rows = (x - params.mean).reshape(len(x), params.mean.size)
    # Large and small directions nearly cancel in x; TF32 would keep 3 digits of that.
    rows = jnp.matmul(rows, params.whitening, precision=jax.lax.Precision.HIGHEST)
    return rows.reshape(x.shape).astype(out)


def _check_reg(owner: str, reg: float) -> None:
    try:
        valid = not isinstance(reg, bool | str) and math.isfinite(reg) and reg >= 0
    except TypeError:
        raise TypeError(f"{owner}: reg must be a number, got {reg!r}") from None
    if not valid:
        raise ValueError(f"{owner}: reg must be a finite number >= 0, got {reg!r}")


def _singular(
    owner: str, state: CovarianceState, eigenvalues: np.ndarray, reg: float
) -> str:
    """What is wrong with a covariance that cannot be inverted, and what to do."""
    n, d = int(state.count), len(eigenvalues)
    if eigenvalues[-1] == 0:
        return (
            f"{owner}: all {n} examples are equal, there is nothing to whiten; "
            "check the data, or give reg > 0 with relative=False"
        )
    rank = int((eigenvalues > d * np.finfo(np.float64).eps * eigenvalues[-1]).sum())
    return (
        f"{owner}: with reg = {reg} the covariance is singular: rank {rank} of {d} "
        f"from {n} examples (constant or dependent entries, or too few examples; "
        "standardised examples lose one rank). Use reg > 0, 0.1 with relative=True say"
    )
