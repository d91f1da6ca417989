"""`compare`: the errors of a feature map against the exact kernel, with error bars."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._arrays import to_jax
from jax_ntk_sketch._checks import check_key, check_size
from jax_ntk_sketch._protocol import FeatureMap, as_kinds, check_feature_map
from jax_ntk_sketch._typing import (
    Array,
    ArrayLike,
    Examples,
    Get,
    KernelFn,
    Key,
    Kind,
    PyTree,
)
from jax_ntk_sketch.features._transform import check_work, transform
from jax_ntk_sketch.validation import measures
from jax_ntk_sketch.validation._exact_kernel import ExactKernel
from jax_ntk_sketch.validation.report import Comparison, Estimate, KernelErrors


def compare(
    fmap: FeatureMap,
    kernel_fn: KernelFn,
    x: ArrayLike,
    *,
    key: Key | None = None,
    num_seeds: int | None = None,
    params: PyTree = None,
    sample: Examples | None = None,
    reg: float = 1e-3,
    get: Get | None = None,
    max_bytes: int | None = None,
    label: str = "",
) -> Comparison:
    r"""Compare :math:`\Phi \Phi^\top` with the exact kernel K on the rows of x.

    The features are drawn several times, or `params` are measured. For each kernel and
    draw four errors are computed: the relative Frobenius error, the same after double
    centering, the largest error of an entry, and the spectral error at `reg` (see
    `jax_ntk_sketch.validation.measures`).

    Args:
      fmap: a feature map.
      kernel_fn: the exact kernel, called once as `kernel_fn(x, None, get)`, as in
        Neural Tangents. It returns (n, n), or an object with the attributes that `get`
        names. It is traced before, to learn how much memory it takes. If that is more
        than `max_bytes`, it is compiled and called for blocks of k examples, as
        `kernel_fn(x[:k], None, get)` and `kernel_fn(x[:k], x[k:2*k], get)`.
      x: (n, ...), finite, n >= 2. A few hundred to a few thousand rows are enough.
      key: a PRNG key, which is split once for each draw. It is required unless `params`
        are given.
      num_seeds: independent draws, >= 1, by default 5; with 1 there is no standard
        error.
      params: the parameters that `fmap.init` returned, to measure this one draw.
      sample: the examples that `init` is given, for maps that learn from data. The
        error on these examples themselves is below that on others.
      reg: the penalty per example in the spectral error, >= 0.
      get: "ntk", "nngp" or a tuple of both; by default `fmap.get`.
      max_bytes: the bytes that examples in work may take besides the parameters, >= 1,
        in calls of `kernel_fn` and of `fmap.apply`. By default they are 256 MiB on a
        CPU, and elsewhere a quarter of the device's memory; or what one example takes,
        if that is more.
      label: a name for tables and plots.

    Returns:
      `Comparison`.

    Raises:
      TypeError: `num_seeds` is not an integer; `key` is missing or is not a PRNG key;
        `kernel_fn` returns no attributes although two kernels are compared.
      ValueError: a number is out of range; `params` are given together with `key`,
        `num_seeds` or `sample`; the map needs a `sample` and there is none; `get` is
        not among the kernels of the map; a kernel or the features have the wrong shape
        or are not finite; one example takes more than `max_bytes`, or than all memory.
      numpy.linalg.LinAlgError: K + reg n I is not positive definite.

    Cost: O(n^2 num_features + n^3) operations per draw and kernel, in float64; about
    40 n^2 bytes on the host in addition to the features.

    >>> import jax
    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import kernels, stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> def kernel_fn(x1, x2, get):
    ...     return kernels.exact_kernel(net, x1, x2, get=get)
    >>> fmap = jns.feature_map(net, num_features=256, method="ntk_random_features")
    >>> x = jax.random.normal(jax.random.key(0), (30, 5))
    >>> report = jns.validation.compare(fmap, kernel_fn, x, key=jax.random.key(1))
    >>> 0.01 < report.ntk.relative.mean < 0.3
    True
    """
    check_feature_map("compare", fmap)
    keys = _keys(key, num_seeds, params, sample)
    kinds = _kinds(fmap.get, get)
    x = to_jax("compare", "x", x)
    if x.ndim < 2 or len(x) < 2:
        raise ValueError(
            f"compare: x must have shape (n, ...), n at least 2; got {x.shape}"
        )
    bad = _bad_rows(x)
    if len(bad):
        raise ValueError(
            f"compare: x must be finite, but its rows {_first(bad)} are not"
        )
    n = len(x)
    if not fmap.method.batch_dependent:
        check_work("compare", fmap, x, max_bytes, 1)
    asked = kinds[0] if len(kinds) == 1 else kinds

    def function(x1: Array, x2: Array | None) -> dict[Kind, Array]:
        return _by_kind("kernel_fn", kernel_fn(x1, x2, asked), kinds)

    exact = ExactKernel(function, max_bytes)(x)
    for kind, matrix in exact.items():
        if matrix.shape != (n, n) or not np.isfinite(matrix).all():
            found = ", not finite" if matrix.shape == (n, n) else ""
            raise ValueError(
                f"compare: kernel_fn must return a finite ({n}, {n}) matrix for "
                f"{kind!r}, got shape {matrix.shape}{found}"
            )
    shape = x.shape[1:]
    named = {} if max_bytes is None or sample is None else {"max_bytes": max_bytes}
    errors: dict[Kind, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    width = 0
    for seed, own in enumerate(keys):
        drawn = params if own is None else fmap.init(own, shape, sample=sample, **named)
        result = features(fmap, drawn, x, max_bytes)
        rows = _by_kind("fmap.apply", result, kinds)
        for kind in kinds:
            phi = np.asarray(rows[kind], np.float64)
            _check_features(seed, kind, phi)
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
        num_seeds=len(keys),
        reg=float(reg),
        ntk=summary.get("ntk"),
        nngp=summary.get("nngp"),
        label=label,
        method=fmap.plan(shape).method,
    )


def features(
    fmap: FeatureMap, params: PyTree, x: ArrayLike, max_bytes: int | None
) -> PyTree:
    """Return the features of examples, of which as many are in work as fit."""
    if fmap.method.batch_dependent:
        return fmap.apply(params, x)
    return transform(fmap, params, x, max_bytes=max_bytes, progress=False)


def _keys(
    key: Key | None, num_seeds: int | None, params: PyTree, sample: Examples | None
) -> list[Key | None]:
    """Return a key for each draw, or None for the draw that is given."""
    if params is None:
        if key is None:
            raise TypeError(
                "compare: key must be a JAX PRNG key, got None; make one with "
                "jax.random.key(seed), or give params to measure one draw"
            )
        count = 5 if num_seeds is None else num_seeds
        count = check_size("compare", "num_seeds", count)
        return list(jax.random.split(check_key("compare", key), count))
    for name, value in (("key", key), ("num_seeds", num_seeds), ("sample", sample)):
        if value is not None:
            raise ValueError(
                f"compare: {name} must be None if params are given, which are not "
                f"drawn again; got a {type(value).__name__}"
            )
    return [None]


def _kinds(supported: Get, get: Get | None) -> tuple[Kind, ...]:
    """Return the kernels to compare, which must be among those of the map."""
    kinds = as_kinds(supported if get is None else get)
    if not kinds or not set(kinds) <= set(as_kinds(supported)):
        raise ValueError(
            f"compare: get must be among {as_kinds(supported)}, the kernels of fmap, "
            f"got {get!r}"
        )
    return kinds


def _by_kind(owner: str, result: PyTree, kinds: tuple[Kind, ...]) -> dict[Kind, Array]:
    """Return matrices by kernel, from an array or from an object with attributes."""
    if len(kinds) > 1 and not all(hasattr(result, kind) for kind in kinds):
        raise TypeError(
            f"compare: {owner} must return an object with the attributes {kinds}, "
            f"since get asks for both kernels, got {type(result).__name__}"
        )
    matrices: dict[Kind, Any] = {kind: getattr(result, kind, result) for kind in kinds}
    return matrices


def _check_features(seed: int, kind: Kind, phi: NDArray) -> None:
    bad = _bad_rows(phi)
    if len(bad):
        raise ValueError(
            f"compare: {kind} features must be finite, but those of seed {seed} are "
            f"not in rows {_first(bad)}"
        )


def _bad_rows(array: Array | NDArray) -> NDArray:
    xp = jnp if isinstance(array, jax.Array) else np
    finite = xp.isfinite(array).reshape(len(array), -1).all(axis=1)
    return np.flatnonzero(~np.asarray(finite))


def _first(rows: NDArray) -> str:
    return ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
