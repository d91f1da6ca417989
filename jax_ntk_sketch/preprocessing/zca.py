r"""ZCA whitening, which decorrelates the entries of examples and keeps images images.

With the mean and the covariance C of the training examples,

.. math:: y = W (x - \bar x), \qquad W = (C + \epsilon I)^{-1/2}.

W is the symmetric one of all whitening matrices, so that y stays as close to x as
whitening permits. Each pixel loses the part that its neighbors predict. A direction of
variance :math:`\lambda` has variance :math:`\lambda / (\lambda + \epsilon)` afterwards.

When to use it. Convolutional kernels on natural images gain several points of accuracy
from whitening. Fully connected kernels see the examples only through their inner
products. Whitening with few examples erases these: all of them if n <= d and
:math:`\epsilon = 0` (Wadia et al.). Fully connected kernels on small data therefore
gain little or lose. Compare both on held-out training images.

How to choose `reg`. For images of 32x32x3, search from 0.01 to 1 (relative to the mean
eigenvalue). Shankar et al. add 1e-4 to the eigenvalues of images of unit norm, whose
mean is 1/3072; this is 0.31 in relative units. They do not subtract the mean of the
examples.

Sources:
  Coates, Lee, Ng, "An analysis of single-layer networks in unsupervised feature
  learning" (AISTATS 2011), section 3.1.2.
  Shankar et al., "Neural kernels without tangents" (2020, arXiv 2003.02237).
  Lee et al., "Finite versus infinite neural networks: an empirical study" (2020, arXiv
  2007.15801), for `reg` relative to the mean eigenvalue.
  Wadia et al., "Whitening and second order optimization both make information about
  the dataset unusable during training, and can reduce or prevent generalization"
  (2021, arXiv 2008.07545).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch._arrays import to_jax
from jax_ntk_sketch._checks import check_examples, check_number
from jax_ntk_sketch._numerics import matmul, working_dtype
from jax_ntk_sketch._typing import Array, ArrayLike, Examples
from jax_ntk_sketch.batches.reader import Nonfinite
from jax_ntk_sketch.preprocessing.covariance import read_moments


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("mean", "whitening", "eigenvalues", "reg"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, eq=False)
class ZCAParams:
    """A fitted whitening: arrays of one dtype.

    Attributes:
      mean: the mean of the training examples, of the shape of one example, d entries.
      whitening: (d, d), the symmetric matrix W, which acts on flattened examples.
      eigenvalues: (d,), the eigenvalues of the covariance, largest first.
      reg: (), the number that was added to the eigenvalues, in squared units of x.
    """

    mean: Array
    whitening: Array
    eigenvalues: Array
    reg: Array

    @property
    def whitened_fraction(self) -> Array:
        r"""Return :math:`\lambda / (\lambda + \epsilon)` of each direction; (d,).

        It is the variance of that principal direction after whitening, in [0, 1]. A
        direction near 1 is whitened. A direction near 0 is treated as noise and is not
        amplified.
        """
        return self.eigenvalues / (self.eigenvalues + self.reg)

    @property
    def effective_rank(self) -> Array:
        """Return the number of whitened directions, the sum of `whitened_fraction`."""
        return jnp.sum(self.whitened_fraction)


def zca_fit(
    x: Examples,
    *,
    reg: float = 0.1,
    relative: bool = True,
    batch_size: int | None = None,
    nonfinite: Nonfinite = "raise",
) -> ZCAParams:
    """Return the ZCA whitening of training examples.

    Args:
      x: training examples (n, *shape), n >= 2, real. Any trailing shape works, NHWC and
        NCHW alike. Integers such as uint8 pixels are not rescaled. With reg > 0, n may
        be smaller than d.
      reg: a number >= 0 that is added to the eigenvalues; the docstring of the module
        helps to choose it.
      relative: whether `reg` is in units of the mean eigenvalue, trace / d, so that it
        does not depend on the scale of x; otherwise it is in squared units of x.
      batch_size: the number of examples in a float64 copy, >= 1. By default 1024, or
        fewer if they take more than 64 MiB.
      nonfinite: "raise" to raise an error that names examples with NaN or infinity;
        "skip" to leave them out, with a warning.

    Returns:
      `ZCAParams` in the dtype of x. It is float32 if x is coarser, and the default
      float if x holds integers.

    Raises:
      TypeError: x is complex or traced, or `reg` or `batch_size` is not a number.
      ValueError: x has another shape or fewer than two examples; an example has NaN or
        infinite entries (the message names it); `reg` is negative or not finite;
        `batch_size` is smaller than 1; or the covariance is singular with `reg` added.

    Cost: n d^2 multiply-adds for the covariance and about 9 d^3 flops for its
    eigendecomposition, in float64 on the host. About 40 d^2 bytes of memory, 360 MiB
    for images of 32x32x3.

    Guarantee: W is exactly symmetric. In float64 the covariance of the whitened
    training examples has the eigenvalues `whitened_fraction` to 1e-10. In float32 W is
    rounded once. Applying it has an error of 1e-7 times sqrt((largest eigenvalue + reg)
    / (smallest eigenvalue + reg)). A constant entry becomes 0 up to rounding.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jax_ntk_sketch import preprocessing
    >>> x = jax.random.normal(jax.random.key(0), (500, 2))
    >>> x = x @ jnp.array([[3.0, 1.0], [0.0, 1.0]])
    >>> params = preprocessing.zca_fit(x, reg=0.0)
    >>> whitened = preprocessing.zca_apply(params, x)
    >>> bool(jnp.allclose(jnp.cov(whitened.T, bias=True), jnp.eye(2), atol=1e-5))
    True
    """
    owner = "zca_fit"
    examples = check_examples(owner, x)
    # Before the long pass over the data.
    reg = check_number(owner, "reg", reg, least=0)
    moments = read_moments(owner, examples, batch_size=batch_size, nonfinite=nonfinite)
    eigenvalues, vectors = np.linalg.eigh(moments.covariance)
    d = len(eigenvalues)
    # A covariance has no negative eigenvalues; those below 0 are rounding errors.
    eigenvalues = np.maximum(eigenvalues, 0.0)
    amount = reg * eigenvalues.mean() if relative else reg
    if eigenvalues[0] + amount <= d * np.finfo(np.float64).eps * eigenvalues[-1]:
        raise ValueError(_singular_message(owner, moments.num_rows, eigenvalues, reg))
    dtype = working_dtype(examples.dtype)
    # W as the product of a matrix and its transpose is exactly symmetric.
    half = vectors * (eigenvalues + amount) ** -0.25
    return ZCAParams(
        mean=jnp.asarray(moments.mean, dtype),
        whitening=jnp.asarray(half @ half.T, dtype),
        eigenvalues=jnp.asarray(eigenvalues[::-1], dtype),
        reg=jnp.asarray(amount, dtype),
    )


def zca_apply(params: ZCAParams, x: ArrayLike) -> Array:
    """Return whitened examples, `(x - mean) @ whitening` of flattened examples.

    Args:
      params: `ZCAParams` of examples of some shape.
      x: (n, *shape) with that shape, real. Integers are not rescaled.

    Returns:
      An array of the shape of x. Its dtype is that of x, or that of `params` if x holds
      integers. NaN spreads over its own example only.

    Raises:
      TypeError: x is complex.
      ValueError: the examples have another shape.

    Cost: 2 n d^2 flops at the full precision of the dtype, and d^2 + O(n d) numbers.
    Apply it to batches if x does not fit in memory.
    """
    x = to_jax("zca_apply", "x", check_examples("zca_apply", x, params.mean.shape))
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else params.mean.dtype
    rows = (x - params.mean).reshape(len(x), params.mean.size)
    # Large and small directions nearly cancel in x; TF32 would keep 3 digits of that.
    return matmul(rows, params.whitening).reshape(x.shape).astype(dtype)


def _singular_message(owner: str, n: int, eigenvalues: np.ndarray, reg: float) -> str:
    """Return the error message for a covariance that cannot be inverted."""
    d = len(eigenvalues)
    if eigenvalues[-1] == 0:
        return (
            f"{owner}: the examples must differ, got {n} equal examples; check the "
            "data, or give reg > 0 with relative=False"
        )
    rank = int((eigenvalues > d * np.finfo(np.float64).eps * eigenvalues[-1]).sum())
    return (
        f"{owner}: reg must make the covariance invertible, got reg = {reg:g} and a "
        f"covariance of rank {rank} of {d} from {n} examples. Constant or dependent "
        "entries lower the rank, as do few examples and standardized ones. Use "
        "reg > 0, for example 0.1 with relative=True"
    )
