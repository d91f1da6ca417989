r"""Ridge regression by conjugate gradients, for Gram matrices that do not fit.

Nothing of size m x m is formed: each step is a pass over the data, whose features are
made again batch by batch, for the product :math:`\Phi^\top \Phi v`. The preconditioner
is a Nystrom approximation of the Gram matrix from one more pass,
:math:`\Phi^\top\Phi \approx U \Lambda U^\top` of rank r, so that the condition number
is about that of the (r+1)-th eigenvalue and the penalty.

Source: Hestenes and Stiefel (1952); the preconditioner is that of Frangella, Tropp and
Udell, Randomized Nystrom preconditioning, arXiv 2110.02820, Algorithms 2.1 and 5.1.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from jax_ntk_sketch._numerics import matmul, two_sum
from jax_ntk_sketch._progress import progress as with_progress
from jax_ntk_sketch.batches.reader import (
    Source,
    check_options,
    features,
    features_like,
    warn_skipped,
)
from jax_ntk_sketch.linear_model._fit import FittedModel
from jax_ntk_sketch.linear_model.model import RidgeInfo, RidgeModel
from jax_ntk_sketch.linear_model.ridge import check_reg, ridge_penalty

__all__ = ["CGHistory", "fit_cg"]


class CGHistory(NamedTuple):
    """How conjugate gradients went.

    Attributes:
      residuals: after 0, 1, ... steps, the largest of the targets' residuals relative
        to their right-hand sides, as the recurrence has them.
      residual: the same of the weights that were returned, from a pass of its own.
      bound: on the distance of their predictions from those of the exact weights, see
        `fit_cg`, from that same pass.
      converged: whether `bound` is at most twice the tolerance.
      passes: over the data, in all.
    """

    residuals: np.ndarray
    residual: float
    bound: float
    converged: bool
    passes: int


def fit_cg(
    fmap: Any,
    params: Any,
    data: Any,
    y: Any = None,
    *,
    reg: float,
    intercept: bool = True,
    sample_weight: Any = None,
    num_classes: int | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 100,
    rank: int = 256,
    key: jax.Array | None = None,
    batch_size: int = 1024,
    nonfinite: str = "raise",
    progress: bool | None = None,
) -> tuple[FittedModel, CGHistory]:
    r"""Ridge regression on features too many for their Gram matrix.

    Minimises what `fit` does. All targets are solved for in the same passes.

    Args:
      fmap, params, data, y, intercept, sample_weight, num_classes, batch_size,
        nonfinite, progress: as `fit`; data that can be read once only are refused.
        There is no `mesh`: one device makes all features.
      reg: one number > 0.
      tolerance: in (0, 1), of the predictions on the training examples: root mean
        square difference from those of the exact weights, over the targets' standard
        deviation (without intercept, over their root mean square), the largest of
        the targets'. It is bounded from above by the residual r,
        :math:`|\Phi A^{-1} r| \le |r| / (2 \sqrt{\lambda})`, often generously.
      max_steps: >= 1; each a pass over the data.
      rank: of the preconditioner, >= 0; m at most.
      key: for the preconditioner; by default `jax.random.key(0)`.

    Returns:
      `FittedModel` and `CGHistory`; look at its `converged`.

    Raises:
      TypeError, ValueError: as `fit`; `reg`, `tolerance` or data that do not do.

    Where the tolerance is not reached in `max_steps`, the last weights are returned
    with a flag that says so, not an error.

    Cost: two passes, one a step and one to check: features of n examples each, and
    4 n m t flops; the preconditioner 2 n m `rank`, and 16 m (t + `rank`) bytes.

    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=300)
    >>> x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    >>> params = fmap.init(jax.random.key(0), (4,))
    >>> fitted, history = fit_cg(fmap, params, x, x[:, 0], reg=1e-3, rank=20)
    >>> history.converged, fitted.predict(x).shape
    (True, (200,))
    """
    check_options("fit_cg", fmap, nonfinite, batch_size=batch_size, max_steps=max_steps)
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 0:
        raise ValueError(f"fit_cg: rank must be an integer >= 0, got {rank!r}")
    penalty = check_reg("fit_cg", reg)
    if penalty.ndim or penalty <= 0:
        raise ValueError(f"fit_cg: reg must be one number > 0, got {reg!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"fit_cg: tolerance must be in (0, 1), got {tolerance!r}")
    source = Source("fit_cg", data, y, sample_weight, num_classes, batch_size)
    if source.once:
        raise ValueError(
            "fit_cg: data is an iterator, which is used up after one pass, but "
            "conjugate gradients take many; give a list, an array or an object with "
            "__iter__"
        )
    passes = _Passes(fmap, params, source, nonfinite, progress)
    key = jax.random.key(0) if key is None else key
    m = passes.num_features
    omega = np.asarray(jax.random.normal(key, (m, min(rank, m))), np.float64)
    omega = np.linalg.qr(omega)[0] if omega.size else omega
    sums = passes.first(omega, intercept)
    warn_skipped("fit_cg", passes.skipped)
    n, mean = sums.examples, sums.mean
    shift = float(ridge_penalty(penalty, n))

    def product(v: np.ndarray) -> np.ndarray:
        """(G + shift I) v with the centred Gram matrix G."""
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
    history = CGHistory(
        np.array(residuals), residual, bound, bound <= 2 * tolerance, passes.passes
    )
    bias = sums.target_mean - mean @ w
    flat = passes.flat
    squares = sums.squares.sum() + (w * (image - shift * w - 2 * right)).sum()
    model = RidgeModel(
        weights=jnp.asarray(w[:, 0] if flat else w, dtype),
        intercept=jnp.asarray(bias[0] if flat else bias, dtype),
        reg=np.array(float(penalty)),
        info=RidgeInfo(
            count=n,
            residual=residual,
            mse=max(squares, 0.0) / (n * right.shape[1]),
        ),
        num_targets=None if flat else right.shape[1],
        num_classes=source.num_classes,
    )
    return FittedModel(fmap, params, model, model, None, passes.skipped), history


class _First(NamedTuple):
    examples: float
    mean: np.ndarray
    target_mean: np.ndarray
    moments: np.ndarray
    sketch: np.ndarray
    squares: np.ndarray


class _Passes:
    """Products with the features of a source, batch by batch."""

    def __init__(
        self,
        fmap: Any,
        params: Any,
        source: Source,
        nonfinite: str,
        progress: bool | None,
    ) -> None:
        self.fmap, self.params, self.source = fmap, params, source
        self.nonfinite, self.progress = nonfinite, progress
        self.passes = self.skipped = 0
        chunk = next(source.chunks(), None)
        if chunk is None:
            raise ValueError("fit_cg: there are no examples")
        phi = features_like(fmap, params, chunk.x)
        self.num_features, self.dtype = phi.shape[1], phi.dtype
        self.flat = chunk.y.ndim == 1

    def _run(self, v: np.ndarray, with_targets: bool) -> tuple[np.ndarray, Any]:
        """Sums over the data of [phi]^T [phi v], and of [phi, y, 1]^T [y, 1]."""
        right = jnp.asarray(v, self.dtype)
        total = carry = jnp.zeros_like(right)
        others: Any = 0.0
        self.passes += 1
        chunks = self.source.chunks()
        if with_targets:
            label = "moments and preconditioner"
            chunks = with_progress(chunks, label, self.source.count(), self.progress)
        for chunk in chunks:
            y = chunk.y.reshape(len(chunk.y), -1)
            total, carry, phi, finite = _add(
                self.fmap, self.params, total, carry, right, chunk.x, chunk.weight
            )
            if not with_targets:
                continue
            self.skipped += chunk.skipped("fit_cg", finite, self.nonfinite)
            weight = chunk.weight.astype(np.float64) * np.asarray(finite)
            rows = np.concatenate([y, np.ones((len(y), 1))], axis=1, dtype=np.float64)
            left = np.concatenate([np.asarray(phi, np.float64), rows], axis=1)
            others = others + left.T @ (rows * weight[:, None])
        sums = np.asarray(total, np.float64) + np.asarray(carry, np.float64)
        return sums, others

    def product(self, v: np.ndarray) -> np.ndarray:
        """Phi^T W Phi v."""
        return self._run(v, False)[0]

    def first(self, omega: np.ndarray, intercept: bool) -> _First:
        """Moments, counts and the sketch of the Gram matrix; the data are checked."""
        sketch, sums = self._run(omega, True)
        m = self.num_features
        n = sums[-1, -1]
        if n <= 0:
            raise ValueError("fit_cg: all examples have weight 0")
        mean, target_mean = sums[:m, -1] / n, sums[m:-1, -1] / n
        if not intercept:
            mean, target_mean = np.zeros_like(mean), np.zeros_like(target_mean)
        moments = sums[:m, :-1] - n * np.outer(mean, target_mean)
        squares = np.diagonal(sums[m:-1, :-1]) - n * target_mean**2
        return _First(n, mean, target_mean, moments, sketch, squares)


@functools.partial(jax.jit, static_argnums=0)
def _add(
    fmap: Any,
    params: Any,
    total: jax.Array,
    carry: jax.Array,
    v: jax.Array,
    x: Any,
    weight: Any,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Adds phi^T W phi v; also phi, and which of its rows are finite."""
    phi, weight, finite = features(fmap, params, x, weight)
    phi = phi.astype(v.dtype)
    rows = weight.astype(v.dtype)[:, None] * matmul(phi, v)
    total, error = two_sum(total, matmul(phi.T, rows))
    return total, carry + error, phi, finite


def _preconditioner(sketch: np.ndarray, omega: np.ndarray, shift: float) -> Any:
    """P^-1 with P = (U L U^T + shift I) / (l_r + shift), from sketch = A omega."""
    if omega.shape[1] == 0:
        return lambda r: r.copy()
    nu = np.sqrt(len(omega)) * np.finfo(np.float32).eps * np.linalg.norm(sketch, 2)
    nu = max(nu, np.finfo(np.float64).tiny)
    sketch = sketch + nu * omega
    core = omega.T @ sketch
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    kept = values > 1e-12 * max(values[-1], 0)
    if not kept.any():
        return lambda r: r.copy()
    root = sketch @ (vectors[:, kept] / np.sqrt(values[kept]))
    u, s, _ = scipy.linalg.svd(root, full_matrices=False)
    eigenvalues = np.maximum(s**2 - nu, 0)
    scale = (eigenvalues[-1] + shift) / (eigenvalues + shift)

    def apply(r: np.ndarray) -> np.ndarray:
        along = u.T @ r
        return r + u @ ((scale[:, None] - 1) * along)

    return apply
