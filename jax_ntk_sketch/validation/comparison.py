"""Errors of a random feature map against the exact kernel, with error bars."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jax_ntk_sketch.validation import measures
from jax_ntk_sketch.validation.report import Comparison, Estimate, KernelErrors

__all__ = ["compare"]

_KINDS = ("ntk", "nngp")


class _FeatureMap(Protocol):
    """What `compare` uses of a feature map."""

    @property
    def get(self) -> Any: ...

    def init(self, key: Any, example: Any) -> Any: ...

    def apply(self, params: Any, x: Any) -> Any: ...


def compare(
    fmap: _FeatureMap,
    kernel_fn: Callable[..., Any],
    x: ArrayLike,
    *,
    key: Array,
    num_seeds: int = 5,
    reg: float = 1e-3,
    get: str | tuple[str, ...] | None = None,
    sample: ArrayLike | None = None,
    label: str = "",
) -> Comparison:
    r"""Compares :math:`\Phi \Phi^\top` with the exact kernel K on the rows of x.

    Of each kernel asked for, over independent draws of the features: the relative
    Frobenius error, the same after double centring, the largest entry's error and
    the spectral error at `reg` (see `jax_ntk_sketch.validation.measures`).

    Args:
      fmap: a feature map: `init(key, example) -> params`, `apply(params, x) ->
        features`, `get`.
      kernel_fn: the exact kernel, called once as `kernel_fn(x, None, get)`, as in
        Neural Tangents. Returns (n, n), or an object with attributes named in `get`.
      x: (n, ...) finite inputs. A few hundred to a few thousand rows do.
      key: a JAX random key, split once into one per seed.
      num_seeds: independent draws, >= 1; with 1 there is no standard error.
      reg: penalty per example in the spectral error, >= 0.
      get: "ntk", "nngp" or a tuple of both; default `fmap.get`.
      sample: what `init` gets as its example, for methods that learn from data;
        default x.
      label: a name for tables and plots.

    Returns:
      `Comparison`.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, `get` that the
        map does not give, kernels or features of the wrong shape or not finite.
      numpy.linalg.LinAlgError: K + reg n I is not positive definite.

    Cost: O(n^2 num_features + n^3) flops per seed and kernel, in float64; about
    40 n^2 bytes on the host (1 GB at n = 5000) besides the features.

    >>> import jax, types
    >>> linear = types.SimpleNamespace(  # W x with standard normal W
    ...     get="ntk",
    ...     init=lambda key, x: jax.random.normal(key, (x.shape[1], 400)) / 20,
    ...     apply=lambda w, x: x @ w,
    ... )
    >>> x = jax.random.normal(jax.random.key(0), (30, 5))
    >>> kernel_fn = lambda x1, x2, get: x1 @ x1.T
    >>> report = compare(linear, kernel_fn, x, key=jax.random.key(1))
    >>> 0.05 < report.ntk.relative.mean < 0.2
    True
    """
    if isinstance(num_seeds, bool) or not isinstance(num_seeds, int | np.integer):
        raise TypeError(f"compare: num_seeds must be an integer, got {num_seeds!r}")
    if num_seeds < 1:
        raise ValueError(f"compare: num_seeds must be at least 1, got {num_seeds}")
    kinds = _kinds(fmap.get, get)
    x = jnp.asarray(x)
    if x.ndim < 2 or len(x) < 2:
        raise ValueError(
            f"compare: x must have shape (n, ...), n at least 2; got {x.shape}"
        )
    bad = _bad_rows(x)
    if len(bad):
        raise ValueError(f"compare: rows {_some(bad)} of x are NaN or infinite")
    n = len(x)
    result = kernel_fn(x, None, kinds[0] if len(kinds) == 1 else kinds)
    exact = _read("what kernel_fn returns", result, kinds)
    for kind, matrix in exact.items():
        if matrix.shape != (n, n) or not np.isfinite(matrix).all():
            raise ValueError(
                f"compare: kernel_fn must return a finite ({n}, {n}) matrix for "
                f"{kind!r}; got shape {matrix.shape}"
                + (", not finite" if matrix.shape == (n, n) else "")
            )
    apply = jax.jit(fmap.apply)
    errors: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    width = 0
    for seed, seed_key in enumerate(jax.random.split(key, num_seeds)):
        params = fmap.init(seed_key, x if sample is None else sample)
        features = _read("the features", apply(params, x), kinds)
        for kind, phi in features.items():
            if phi.ndim != 2 or len(phi) != n:
                raise ValueError(
                    f"compare: features must have shape ({n}, m), got {phi.shape}"
                )
            bad = _bad_rows(phi)
            if len(bad):
                raise ValueError(
                    f"compare: {kind} features of seed {seed} are NaN or infinite in "
                    f"rows {_some(bad)}"
                )
            K, K_hat = exact[kind], phi @ phi.T
            errors[kind].append(
                (
                    measures.relative_error(K, K_hat),
                    measures.centered_relative_error(K, K_hat),
                    measures.max_abs_error(K, K_hat),
                    measures.spectral_error(K, K_hat, reg),
                )
            )
            width = phi.shape[1]
    summary = {
        kind: KernelErrors(
            *(Estimate(values) for values in zip(*errors[kind], strict=True))
        )
        for kind in kinds
    }
    return Comparison(
        num_features=width,
        num_examples=n,
        num_seeds=int(num_seeds),
        reg=float(reg),
        ntk=summary.get("ntk"),
        nngp=summary.get("nngp"),
        label=label,
    )


def _kinds(given: Any, wanted: Any) -> tuple[str, ...]:
    has = (given,) if isinstance(given, str) else tuple(given)
    kinds = has if wanted is None else wanted
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in _KINDS or kind not in has:
            raise ValueError(
                f"compare: get must be among {has}, what the feature map was made "
                f"for; got {kind!r}"
            )
    if not kinds:
        raise ValueError("compare: get is empty; ask for 'ntk', 'nngp' or both")
    return kinds


def _read(what: str, result: Any, kinds: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Matrices by kind, from one array or from an object with attributes."""
    if len(kinds) > 1 and not all(hasattr(result, kind) for kind in kinds):
        raise TypeError(
            f"compare: {what} must have the attributes {kinds}, since get asks for "
            f"both; got {type(result).__name__}"
        )
    return {
        kind: np.asarray(getattr(result, kind, result), np.float64) for kind in kinds
    }


def _bad_rows(array: Any) -> np.ndarray:
    xp = jnp if isinstance(array, jax.Array) else np
    finite = xp.isfinite(array).reshape(len(array), -1).all(axis=1)
    return np.flatnonzero(~np.asarray(finite))


def _some(rows: np.ndarray) -> str:
    return ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
