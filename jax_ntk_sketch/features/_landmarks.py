"""`landmark_features`: landmark features of any kernel that is given as a function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_key, check_size
from jax_ntk_sketch.kernels import rpcholesky
from jax_ntk_sketch.kernels.nystrom import inverse_sqrt

__all__ = ["LandmarkFeatureMap", "landmark_features"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LandmarkFeatureMap:
    """Features of a kernel by landmarks, made by `landmark_features`; a pytree of two arrays.

    Attributes:
      landmarks: (m, *shape).
      root: (m, m), with `root @ root.T` the inverse of the landmarks' kernel.
      kernel_fn: `kernel_fn(x1, x2, get)`; static.
      get: "ntk" or "nngp", what is asked of `kernel_fn`; static.
    """

    landmarks: jax.Array
    root: jax.Array
    kernel_fn: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    get: str = dataclasses.field(metadata={"static": True})

    def apply(self, x: Any) -> jax.Array:
        """Maps examples `(n, *shape)` to features `(n, m)`; pure, one kernel call.

        Raises:
          ValueError: an example has another shape than the landmarks.
        """
        x = jnp.asarray(x)
        if x.shape[1:] != self.landmarks.shape[1:] or not x.ndim:
            raise ValueError(
                f"landmark_features: x must have shape (n, *{self.landmarks.shape[1:]}), as the "
                f"landmarks have, got {x.shape}"
            )
        k = _kernel(self.kernel_fn, x, self.landmarks, self.get)
        return jnp.matmul(k, self.root, precision=jax.lax.Precision.HIGHEST)


def landmark_features(
    kernel_fn: Callable[..., Any],
    landmarks: Any,
    *,
    get: str = "ntk",
    num_features: int | None = None,
    key: jax.Array | None = None,
) -> LandmarkFeatureMap:
    r"""Features :math:`K(x, Z) K(Z, Z)^{-1/2}` of any kernel, with landmarks Z.

    For networks beyond this package's `stax`: any `kernel_fn` of Neural Tangents.

    Args:
      kernel_fn: `kernel_fn(x1, x2, get)` is the kernel matrix `(n1, n2)` of two
        batches, x2 None for x1 itself: the third value of a Neural Tangents layer, or
        anything with these arguments. Compile it with `jax.jit(kernel_fn,
        static_argnums=2)`.
      landmarks: examples Z `(m, *shape)`, real.
      get: "ntk" or "nngp".
      num_features: choose so many of the `landmarks`, by randomly pivoted Cholesky, in
        place of all of them; needs a `key`.
      key: a PRNG key.

    Returns:
      `LandmarkFeatureMap`; its `apply(x)` has m (`num_features`) columns, dtype of the
      kernel's.

    Raises:
      TypeError, ValueError: a bad argument, named; a `kernel_fn` whose values are no
        kernel matrix: of another shape, not finite, not symmetric, or not positive
        semidefinite. (Values are not looked at under `jax.jit`.)

    Cost: m^2 / 2 kernel values here, n m in `apply`, O(m^3 + n m^2) operations. With
    `num_features`, s of m: m s values, and m more for the diagonal, one by one.

    Guarantee: the features' inner products are exact at the landmarks, and never
    larger than the kernel, in the order of positive semidefinite matrices.
    Source: Williams and Seeger (2000); arXiv 2207.06503.

    >>> def kernel_fn(x1, x2, get):
    ...     return (1 + x1 @ (x1 if x2 is None else x2).T) ** 2
    >>> features = landmark_features(kernel_fn, jnp.eye(3))
    >>> phi = features.apply(jnp.eye(3)[:2])
    >>> (phi @ phi.T).round(3)
    Array([[4., 1.],
           [1., 4.]], dtype=float32)
    """
    if not callable(kernel_fn):
        raise TypeError(
            "landmark_features: kernel_fn must be a function kernel_fn(x1, x2, get), got "
            f"{type(kernel_fn).__name__}; to_stax(net)[2] of "
            "jax_ntk_sketch.interop.neural_tangents is one"
        )
    if get not in ("ntk", "nngp"):
        raise ValueError(f'landmark_features: get must be "ntk" or "nngp", got {get!r}')
    z = jnp.asarray(landmarks)
    if z.ndim < 2 or not z.size or jnp.iscomplexobj(z):
        raise ValueError(
            "landmark_features: landmarks must be real examples (m, *shape), at least one, got "
            f"shape {z.shape} and dtype {z.dtype}"
        )
    z = z.astype(jnp.result_type(z, float))
    if num_features is not None:
        num = check_size("landmark_features", "num_features", num_features)
        if key is None:
            raise TypeError(
                "landmark_features: num_features needs a key to choose landmarks with"
            )
        if num > len(z):
            raise ValueError(
                f"landmark_features: num_features must be at most the {len(z)} landmarks to "
                f"choose from, got {num}"
            )
        z = z[_choose(check_key("landmark_features", key), kernel_fn, z, get, num)]
    k = _kernel(kernel_fn, z, None, get)
    _check_psd(k)
    return LandmarkFeatureMap(z, inverse_sqrt(k), kernel_fn, get)


def _choose(
    key: jax.Array, kernel_fn: Callable[..., Any], z: jax.Array, get: str, num: int
) -> jax.Array:
    def own(one: jax.Array) -> jax.Array:
        return _kernel(kernel_fn, one[None], None, get)[0, 0]

    def column(index: jax.Array) -> jax.Array:
        return _kernel(kernel_fn, z, z[index], get)

    return rpcholesky(key, column, jax.lax.map(own, z), num)


def _kernel(
    kernel_fn: Callable[..., Any], x1: jax.Array, x2: jax.Array | None, get: str
) -> jax.Array:
    k = jnp.asarray(kernel_fn(x1, x2, get))
    wanted = len(x1), len(x1 if x2 is None else x2)
    if k.shape != wanted:
        raise ValueError(
            f"landmark_features: kernel_fn(x1, x2, {get!r}) must return {wanted} kernel values "
            f"for {wanted[0]} and {wanted[1]} examples, got shape {k.shape}: end the "
            "network with Flatten or global pooling and Dense"
        )
    return k.astype(jnp.promote_types(k.dtype, jnp.float32))


def _check_psd(k: jax.Array) -> None:
    """Says what is wrong with the kernel of the landmarks, where its values are known.

    Raises:
      ValueError: not finite, not symmetric, or with a negative eigenvalue that is more
        than rounding error.
    """
    if isinstance(k, jax.core.Tracer):
        return
    if not jnp.isfinite(k).all():
        raise ValueError(
            "landmark_features: the kernel of the landmarks is not finite: look for NaN or "
            "infinity in them"
        )
    # The NTK's own diagonal may be off by the root of the rounding error.
    largest = jnp.abs(k).max()
    slack = 10 * float(jnp.finfo(k.dtype).eps) ** 0.5
    if jnp.abs(k - k.T).max() > slack * largest:
        raise ValueError(
            "landmark_features: kernel_fn is not symmetric: k(x1, x2) and k(x2, x1) differ by "
            f"{float(jnp.abs(k - k.T).max()):.1g}"
        )
    least = float(jnp.linalg.eigvalsh((k + k.T) / 2)[0])
    if least < -slack * float(jnp.trace(k)):
        raise ValueError(
            "landmark_features: kernel_fn is not positive semidefinite: on the landmarks its "
            f"least eigenvalue is {least:.2g}"
        )
