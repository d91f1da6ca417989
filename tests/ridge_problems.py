"""Ridge problems and their direct solutions."""

import numpy as np

from jax_ntk_sketch import linear_model as lm


def data(n=300, m=12, t=2, seed=0, dtype=np.float32):
    """Features with a mean, as ReLU features have, and noisy targets."""
    rng = np.random.default_rng(seed)
    phi = np.maximum(rng.standard_normal((n, m)) + 0.5, 0)
    y = phi @ rng.standard_normal((m, t)) + 2 + 0.1 * rng.standard_normal((n, t))
    return phi.astype(dtype), y.astype(dtype)


def with_condition(n, m, condition, seed=0, dtype=np.float32):
    """Features whose Gram matrix has this condition number."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((n, m)))
    v, _ = np.linalg.qr(rng.standard_normal((m, m)))
    values = np.sqrt(n) * np.geomspace(1, condition**-0.5, m)
    return (u * values @ v.T).astype(dtype)


def direct(phi, y, reg, intercept=True, weight=None):
    """Weights and intercept in float64 by a QR of the augmented least squares."""
    phi, y = phi.astype(np.float64), y.astype(np.float64)
    weight = np.ones(len(phi)) if weight is None else weight
    n, m = weight.sum(), phi.shape[1]
    mean = weight @ phi / n if intercept else np.zeros(m)
    y_mean = weight @ y / n if intercept else np.zeros(y.shape[1])
    root = np.sqrt(weight)[:, None]
    a = np.vstack([root * (phi - mean), np.sqrt(reg * n) * np.eye(m)])
    b = np.vstack([root * (y - y_mean), np.zeros((m, y.shape[1]))])
    w = np.linalg.lstsq(a, b, rcond=None)[0]
    return w, y_mean - mean @ w


def stream(phi, y, sizes, **kwargs):
    """The state after batches of the given sizes."""
    targets = None if y.ndim == 1 else y.shape[1]
    state = lm.ridge_init(phi.shape[1], targets, dtype=phi.dtype)
    for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
        rows = slice(stop - size, stop)
        extra = {k: v[rows] for k, v in kwargs.items()}
        state = lm.ridge_update(state, phi[rows], y[rows], **extra)
    assert stop == len(phi)
    return state


def sums(state):
    return np.asarray(state.total, np.float64) + np.asarray(state.carry, np.float64)


def difference(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)
