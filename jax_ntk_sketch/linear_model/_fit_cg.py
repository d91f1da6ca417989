r"""`fit_cg`: ridge regression by conjugate gradients, without a Gram matrix.

Each step is a pass over the data. It computes the features again, batch by batch, for
the product :math:`\Phi^\top \Phi v`. The preconditioner is a Nystrom approximation of
the Gram matrix, :math:`\Phi^\top\Phi \approx U \Lambda U^\top` of rank r, from one more
pass. With it the condition number is about that of the (r+1)-th eigenvalue plus the
penalty.

Sources: Hestenes and Stiefel (1952); for the preconditioner Frangella, Tropp and Udell,
Randomized Nystrom preconditioning, arXiv 2110.02820, Algorithms 2.1 and 5.1.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from numpy.typing import NDArray

from jax_ntk_sketch._checks import check_key, check_number, check_size
from jax_ntk_sketch._numerics import matmul, two_sum
from jax_ntk_sketch._progress import progress as with_progress
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import Array, Examples, Key, PyTree, Targets, Task
from jax_ntk_sketch.batches.reader import Nonfinite, Reader, warn_skipped
from jax_ntk_sketch.batches.source import Batches, open_source
from jax_ntk_sketch.features._transform import most_examples
from jax_ntk_sketch.linear_model._fitted import (
    CGInfo,
    FittedModel,
    Inputs,
    batch_features,
    check_one_kernel,
    first_shapes,
)
from jax_ntk_sketch.linear_model.model import RidgeInfo, make_model


def fit_cg(
    fmap: FeatureMap,
    params: PyTree,
    x: Examples | Batches,
    y: Targets = None,
    *,
    key: Key,
    reg: float,
    intercept: bool = True,
    sample_weight: Targets = None,
    num_classes: int | None = None,
    task: Task | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 100,
    rank: int = 256,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    nonfinite: Nonfinite = "raise",
    progress: bool | None = None,
    pattern: PyTree = None,
    mask: PyTree = None,
) -> FittedModel:
    r"""Fit ridge regression on features that are too many for their Gram matrix.

    The objective is that of `fit`. The same passes solve for all targets.

    Args:
      fmap, params, x, y, intercept, sample_weight, num_classes, task, batch_size,
        max_bytes, nonfinite, progress, pattern, mask: as `fit` takes them, but x must
        not be an iterator. One device computes all features.
      key: a PRNG key, for the random directions of the preconditioner.
      reg: one number > 0, of the scale that `fit` states.
      tolerance: in (0, 1), the accuracy of the predictions on the training examples. It
        is the root mean square difference from those of the exact weights over the
        standard deviation of the targets (over their root mean square without an
        intercept), for the worst target. The residual r bounds the difference,
        :math:`|\Phi A^{-1} r| \le |r| / (2 \sqrt{\lambda})`, often generously.
      max_steps: >= 1; each step is a pass over the data.
      rank: the rank of the preconditioner, >= 0; it is at most m.

    Returns:
      `FittedModel` whose `info` is a `CGInfo`. If the tolerance is not reached in
      `max_steps`, the last weights are returned and `info.converged` is False.

    Raises:
      TypeError: as `fit`, or `key` is not a PRNG key.
      ValueError: as `fit`, or one of `reg`, `tolerance`, `max_steps` and `rank` is out
        of range.

    Cost: one pass for each step and two more. A pass costs the features of n examples
    and 4 n m t flops, the preconditioner 2 n m `rank` flops. The memory is
    16 m (t + `rank`) bytes, and `max_bytes`.

    >>> import jax
    >>> import jax_ntk_sketch as jns
    >>> import numpy as np
    >>> from jax_ntk_sketch import linear_model, stax
    >>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=300)
    >>> params = fmap.init(jax.random.key(0), (4,))
    >>> x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    >>> fitted = linear_model.fit_cg(
    ...     fmap, params, x, x[:, 0], key=jax.random.key(1), reg=1e-3, rank=20)
    >>> fitted.info.converged, fitted.predict(x).shape
    (True, (200,))
    """
    check_one_kernel("fit_cg", fmap)
    key = check_key("fit_cg", key)
    reg = check_number("fit_cg", "reg", reg, above=0)
    check_number("fit_cg", "tolerance", tolerance, above=0, below=1)
    check_size("fit_cg", "max_steps", max_steps)
    check_size("fit_cg", "rank", rank, 0)
    extras, again = {"pattern": pattern, "mask": mask}, "each step reads it"
    source = open_source("fit_cg", x, y, sample_weight, extras, read_again=again)
    reader = Reader(
        source,
        batch_size=batch_size,
        num_classes=num_classes,
        task=task,
        nonfinite=nonfinite,
        most=functools.partial(most_examples, fmap, max_bytes),
    )
    passes = _Passes(fmap, params, reader, max_bytes, progress)
    m = passes.num_features
    omega = np.asarray(jax.random.normal(key, (m, min(rank, m))), np.float64)
    omega = np.linalg.qr(omega)[0] if omega.size else omega
    sums = passes.first(omega, intercept)
    warn_skipped("fit_cg", passes.skipped)
    n, mean = sums.examples, sums.mean
    shift = float(reg * n)

    def product(v: NDArray) -> NDArray:
        """Return (G + shift I) v with the centered Gram matrix G."""
        return passes.product(v) - n * np.outer(mean, mean @ v) + shift * v

    sketch = sums.sketch - n * np.outer(mean, mean @ omega)
    precondition = _preconditioner(sketch, omega, shift)
    right, size = sums.moments, np.linalg.norm(sums.moments, axis=0)
    size = np.where(size > 0, size, 1)
    w = np.zeros_like(right)
    r = right.copy()
    z = precondition(r)
    p, rz = z.copy(), (r * z).sum(axis=0)
    # |Phi A^-1 r| <= |r| / (2 sqrt(shift)) for A = Phi^T Phi + shift I.
    spread = 2 * np.sqrt(shift * np.where(sums.squares > 0, sums.squares, 1))
    residuals = [float((np.linalg.norm(r, axis=0) / size).max())]
    steps = with_progress(range(max_steps), "conjugate gradients", enabled=progress)
    for _ in steps:
        if (np.linalg.norm(r, axis=0) <= tolerance * spread).all():
            break
        q = product(p)
        curvature = (p * q).sum(axis=0)
        alpha = np.divide(rz, curvature, out=np.zeros_like(rz), where=curvature > 0)
        w += alpha * p
        r -= alpha * q
        z = precondition(r)
        new = (r * z).sum(axis=0)
        p = z + np.divide(new, rz, out=np.zeros_like(rz), where=rz > 0) * p
        rz = new
        residuals.append(float((np.linalg.norm(r, axis=0) / size).max()))
    dtype = passes.dtype
    w = np.asarray(w.astype(dtype), np.float64)
    image = product(w)
    left = np.linalg.norm(image - right, axis=0)
    residual, bound = float((left / size).max()), float((left / spread).max())
    info = CGInfo(
        np.array(residuals), residual, bound, bound <= 2 * tolerance, passes.count
    )
    bias = sums.target_mean - mean @ w
    squares = sums.squares.sum() + (w * (image - shift * w - 2 * right)).sum()
    solve_info = RidgeInfo(
        count=n, residual=residual, mse=max(squares, 0.0) / (n * right.shape[1])
    )
    model = make_model(
        w.astype(dtype),
        bias.astype(dtype),
        reg,
        solve_info,
        passes.num_targets,
        reader.classes,
    )
    return FittedModel(
        fmap,
        params,
        model,
        model,
        info=info,
        num_skipped=passes.skipped,
        feature_names=source.feature_names,
    )


class _FirstSums(NamedTuple):
    """Sums over the examples, centered if there is an intercept.

    Attributes:
      examples: the sum of the weights.
      mean: (m,), the mean features.
      target_mean: (t,).
      moments: (m, t), the features times the targets.
      sketch: (m, rank), the Gram matrix, not centered, times the test matrix.
      squares: (t,), the squared targets.
    """

    examples: float
    mean: NDArray
    target_mean: NDArray
    moments: NDArray
    sketch: NDArray
    squares: NDArray


class _Passes:
    """Products with the features of a reader's examples, batch by batch."""

    def __init__(
        self,
        fmap: FeatureMap,
        params: PyTree,
        reader: Reader,
        max_bytes: int | None,
        progress: bool | None,
    ) -> None:
        self.fmap, self.params, self.reader = fmap, params, reader
        self.max_bytes, self.progress = max_bytes, progress
        self.count = self.skipped = 0
        phi, self.num_targets = first_shapes(fmap, params, reader, max_bytes)
        self.num_features, self.dtype = phi.shape[1], phi.dtype

    def product(self, v: NDArray) -> NDArray:
        """Return Phi^T W Phi v."""
        return self._run(v, False)[0]

    def first(self, omega: NDArray, intercept: bool) -> _FirstSums:
        """Return the sums that the solve needs; the examples are checked."""
        sketch, sums = self._run(omega, True)
        m = self.num_features
        n = sums[-1, -1]
        if n <= 0:
            raise ValueError(
                "fit_cg: sample_weight must be positive for at least one example, got "
                "weight 0 for all examples"
            )
        mean, target_mean = sums[:m, -1] / n, sums[m:-1, -1] / n
        if not intercept:
            mean, target_mean = np.zeros_like(mean), np.zeros_like(target_mean)
        moments = sums[:m, :-1] - n * np.outer(mean, target_mean)
        squares = np.diagonal(sums[m:-1, :-1]) - n * target_mean**2
        return _FirstSums(n, mean, target_mean, moments, sketch, squares)

    def _run(self, v: NDArray, with_targets: bool) -> tuple[NDArray, NDArray]:
        """Return Phi^T W Phi v, and [Phi, y, 1]^T W [y, 1] if it is asked for."""
        right = jnp.asarray(v, self.dtype)
        total = carry = jnp.zeros_like(right)
        moments = np.zeros(())
        self.count += 1
        label = "moments and preconditioner"
        progress = self.progress if with_targets else False
        for batch in self.reader.batches(label=label, progress=progress):
            total, carry, phi, finite = _add(
                self.fmap,
                self.max_bytes,
                self.params,
                total,
                carry,
                right,
                batch.inputs,
            )
            if not with_targets:
                continue
            assert batch.y is not None
            self.skipped += self.reader.count_skipped(batch, finite)
            weight = batch.weight.astype(np.float64) * np.asarray(finite)
            y = batch.y.reshape(len(batch.y), -1)
            rows = np.concatenate([y, np.ones((len(y), 1))], axis=1, dtype=np.float64)
            left = np.concatenate([np.asarray(phi, np.float64), rows], axis=1)
            moments = moments + left.T @ (rows * weight[:, None])
        sums = np.asarray(total, np.float64) + np.asarray(carry, np.float64)
        return sums, moments


@functools.partial(jax.jit, static_argnums=(0, 1))
def _add(
    fmap: FeatureMap,
    max_bytes: int | None,
    params: PyTree,
    total: Array,
    carry: Array,
    v: Array,
    inputs: Inputs,
) -> tuple[Array, Array, Array, Array]:
    """Add phi^T W phi v to a sum; also return phi, and which of its rows are finite."""
    phi, weight, finite = batch_features(fmap, max_bytes, params, inputs)
    phi = phi.astype(v.dtype)
    rows = weight.astype(v.dtype)[:, None] * matmul(phi, v)
    total, error = two_sum(total, matmul(phi.T, rows))
    return total, carry + error, phi, finite


def _preconditioner(
    sketch: NDArray, omega: NDArray, shift: float
) -> Callable[[NDArray], NDArray]:
    """Return P^-1 for P = (U L U^T + shift I) / (l_r + shift); sketch = A omega."""
    if omega.shape[1] == 0:
        return np.copy
    nu = np.sqrt(len(omega)) * np.finfo(np.float32).eps * np.linalg.norm(sketch, 2)
    nu = max(nu, np.finfo(np.float64).tiny)
    sketch = sketch + nu * omega
    core = omega.T @ sketch
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    kept = values > 1e-12 * max(values[-1], 0)
    if not kept.any():
        return np.copy
    root = sketch @ (vectors[:, kept] / np.sqrt(values[kept]))
    u, s, _ = scipy.linalg.svd(root, full_matrices=False)
    eigenvalues = np.maximum(s**2 - nu, 0)
    scale = (eigenvalues[-1] + shift) / (eigenvalues + shift)

    def precondition(r: NDArray) -> NDArray:
        return r + u @ ((scale[:, None] - 1) * (u.T @ r))

    return precondition
