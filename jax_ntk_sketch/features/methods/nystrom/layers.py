r"""Method "nystrom", layer by layer: landmarks among the patches of a sample.

At an activation with dual kernels k and k', let x be the NNGP features of a position
(of a patch after a convolution) and y its NTK features. Landmarks are pairs (z, w) of
such features at chosen positions of a sample. The features after the activation are

    x' = k(<x, z>, |x|^2, |z|^2) R1
    y' = <y, w> k'(<x, z>, |x|^2, |z|^2) R0

with one column of each kernel for each landmark. The matrices R1 and R0 hold principal
directions of the features of the sample. The tensor product in y' is never formed nor
sketched.

Each position has two variances in place of |x|^2: one for k and one for k'. For k it is
the NNGP kernel of the position with itself, where that is known exactly, so that k is
right between different examples. k' is infinitely steep at cosine 1 and needs the
cosines of the features, so its variance is |x|^2.
"""

import dataclasses
import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_ntk_sketch._numerics import at_least_float32, matmul, safe_sqrt
from jax_ntk_sketch._typing import Array, Key, Shape
from jax_ntk_sketch.features.methods.nystrom.landmarks import (
    FLOPS_PER_KERNEL_ENTRY,
    candidate_rows,
    check_sample,
    choose_landmarks,
    max_candidates,
)
from jax_ntk_sketch.features.state import Features, PatchWindow, Spec
from jax_ntk_sketch.features.step import Context, Step, accepts_patches, activation_rule
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.kernels.nystrom import principal_sqrt
from jax_ntk_sketch.methods import Nystrom
from jax_ntk_sketch.sketch import Window

# The NNGP features' share of the columns, where both kernels are wanted. From a quarter
# to a half NTK errors hardly differ; the number of landmarks is what counts.
_NNGP_SHARE = 0.4


@accepts_patches.register
def nystrom_accepts_patches(method: Nystrom, spec: Spec, context: Context) -> bool:
    return True


@activation_rule.register
def nystrom_step(
    method: Nystrom, dual: DualActivation, spec: Spec, context: Context
) -> Step:
    sizes = _choose_sizes(method, spec, context)
    patches = _patch_window(spec)
    layer = _LandmarkLayer(
        method=method,
        dual=dual,
        sizes=sizes,
        window=patches.window,
        bias=patches.nngp_bias,
        ntk_bias=patches.ntk_bias,
        after_dropout=spec.after_dropout,
        norms_from_features=spec.norms_from_features,
    )

    def fit(key: Key, f: Features) -> dict[str, Array]:
        check_sample(f)
        return layer.learn(key, Features(*map(at_least_float32, f)))

    num, dims = sizes.num_landmarks, sizes.nngp_dim + sizes.ntk_dim
    kinds, columns = 2 if context.wants_ntk else 1, context.max_columns
    flops = num * (2 * dims + kinds * FLOPS_PER_KERNEL_ENTRY + 2 * columns)
    elements = spec.live_elements() + spec.pixels * (4 * kinds * num + columns)
    return Step(
        name=f"{num} landmarks",
        spec=Spec(sizes.nngp_columns, sizes.ntk_columns),
        apply=layer.apply,
        init=layer.init,
        fit=fit,
        flops=spec.pixels * flops,
        live_elements=elements,
        fit_elements=max_candidates(num) * (dims + 4 * num + columns),
    )


class _Sizes(NamedTuple):
    """The sizes of a layer.

    Attributes:
      num_landmarks: the number of landmarks, of both kernels together.
      nngp_dim, ntk_dim: coordinates of a landmark: of z and of w.
      nngp_columns, ntk_columns: columns of the features after the activation.
    """

    num_landmarks: int
    nngp_dim: int
    ntk_dim: int
    nngp_columns: int
    ntk_columns: int


def _choose_sizes(method: Nystrom, spec: Spec, context: Context) -> _Sizes:
    columns, patches = context.max_columns, _patch_window(spec)
    nngp_columns, ntk_columns, per_kernel = columns, 0, float(columns)
    if context.wants_ntk:
        nngp_columns = max(1, round(_NNGP_SHARE * columns))
        ntk_columns = max(1, columns - nngp_columns)
        per_kernel = columns / 2
    num_landmarks = math.ceil(method.oversample * per_kernel)
    return _Sizes(
        num_landmarks=max(num_landmarks, nngp_columns, ntk_columns),
        nngp_dim=patches.window.patch_dim(spec.nngp_dim, patches.nngp_bias),
        ntk_dim=patches.window.patch_dim(spec.ntk_dim, patches.ntk_bias),
        nngp_columns=nngp_columns,
        ntk_columns=ntk_columns,
    )


def _patch_window(spec: Spec) -> PatchWindow:
    """Return the window of the patches; without one, each position is a patch."""
    return spec.patches or PatchWindow(Window((1,) * len(spec.shape)))


class _Variances(NamedTuple):
    """The variances of positions, for k (`value`) and for k' (`slope`)."""

    value: Array
    slope: Array


class _Rows(NamedTuple):
    """Features of some positions of a sample, one row for each.

    Attributes:
      x: NNGP features, (n, nngp_dim).
      y: NTK features, (n, ntk_dim), or (n, 0) where the NTK is not wanted.
      norm2: |x|^2, (n,).
      nngp_diag: the NNGP kernel of each position with itself, (n,).
      variances: (n,) each.
    """

    x: Array
    y: Array
    norm2: Array
    nngp_diag: Array
    variances: _Variances

    def take(self, index: Array) -> "_Rows":
        """Return some of the rows."""
        return jax.tree.map(lambda array: array[index], self)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _LandmarkLayer:
    """The functions of the step of one activation; `Spec` describes the fields."""

    method: Nystrom
    dual: DualActivation
    sizes: _Sizes
    window: Window
    bias: float
    ntk_bias: float
    after_dropout: bool
    norms_from_features: bool

    def init(self, key: Key) -> dict[str, Array]:
        """Return parameters of zeros, with the shapes of those that `learn` returns."""
        num = self.sizes.num_landmarks
        shapes: dict[str, Shape] = {
            "nngp_landmarks": (num, self.sizes.nngp_dim),
            "nngp_diag": (num,),
            "nngp_root": (num, self.sizes.nngp_columns),
        }
        if self.sizes.ntk_columns:
            shapes["ntk_landmarks"] = (num, self.sizes.ntk_dim)
            shapes["ntk_root"] = (num, self.sizes.ntk_columns)
        return {name: jnp.zeros(shape) for name, shape in shapes.items()}

    @functools.partial(jax.jit, static_argnums=0)
    def learn(self, key: Key, f: Features) -> dict[str, Array]:
        """Choose landmarks among the positions of a sample, and find R1 and R0."""
        candidates_key, landmarks_key = jax.random.split(key)
        num_landmarks = self.sizes.num_landmarks
        rows = self._rows(
            f, candidate_rows(candidates_key, f.nngp_diag.size, num_landmarks)
        )

        def column(index: Array) -> Array:
            nngp, ntk = self._kernels(rows, rows.take(index))
            return nngp + ntk  # the NTK after the next Dense or Conv

        num = min(num_landmarks, len(rows.x))
        diagonal = self._diagonal(rows)
        landmarks = rows.take(
            choose_landmarks(self.method, landmarks_key, column, diagonal, num)
        )
        nngp, ntk = self._kernels(rows, landmarks)
        nngp_gram, ntk_gram = self._kernels(landmarks)
        params = {
            "nngp_landmarks": landmarks.x,
            "nngp_diag": landmarks.nngp_diag,
            "nngp_root": principal_sqrt(nngp, nngp_gram, self.sizes.nngp_columns),
        }
        if self.sizes.ntk_columns:
            params["ntk_landmarks"] = landmarks.y
            params["ntk_root"] = principal_sqrt(ntk, ntk_gram, self.sizes.ntk_columns)
        # With a small sample some landmarks are not used.
        return {
            name: jnp.pad(array, [(0, num_landmarks - num), (0, 0)][: array.ndim])
            for name, array in params.items()
        }

    def apply(self, params: dict[str, Array], f: Features) -> Features:
        """Return the features after the activation."""
        dtype, f = f.nngp.dtype, Features(*map(at_least_float32, f))
        params = {name: array.astype(f.nngp.dtype) for name, array in params.items()}
        z = params["nngp_landmarks"]
        z_variances = self._variances(params["nngp_diag"], jnp.sum(z**2, axis=-1))
        squares = jnp.sum(f.nngp**2, axis=-1, keepdims=True)
        variances = self._variances(
            f.nngp_diag, self.window.sum(squares)[..., 0] + self.bias**2
        )
        products = _patch_products(self.window, self.bias, f.nngp, z)
        kernel, slopes = _dual_kernels(self.dual, products, variances, z_variances)
        nngp = _row_products(kernel, params["nngp_root"].T)
        ntk = nngp[..., :0]
        if self.sizes.ntk_columns:
            w = params["ntk_landmarks"]
            slopes *= _patch_products(self.window, self.ntk_bias, f.ntk, w)
            ntk = _row_products(slopes, params["ntk_root"].T)
        nngp_diag = self.dual.diagonal(variances.value)[0]
        if self.norms_from_features and not self.after_dropout:
            nngp_diag = jnp.sum(nngp**2, axis=-1)
        return Features(*(array.astype(dtype) for array in (nngp, ntk, nngp_diag)))

    def _variances(self, nngp_diag: Array, norm2: Array) -> _Variances:
        """Return the variances of positions from their exact and own square norms."""
        if not self.after_dropout:
            return _Variances(nngp_diag, norm2)
        # No cosine is 1, not even that of an example and itself.
        variance = jnp.maximum(nngp_diag, norm2)
        return _Variances(variance, variance)

    def _rows(self, f: Features, index: Array) -> _Rows:
        """Return the features of the positions `index` of a sample."""
        nngp_diag = f.nngp_diag.reshape(-1)[index]
        x = _take_patches(self.window, self.bias, f.nngp, index)
        norm2 = jnp.sum(x**2, axis=-1)
        y = x[:, :0]
        if self.sizes.ntk_columns:
            y = _take_patches(self.window, self.ntk_bias, f.ntk, index)
        return _Rows(x, y, norm2, nngp_diag, self._variances(nngp_diag, norm2))

    def _kernels(
        self, rows: _Rows, columns: _Rows | None = None
    ) -> tuple[Array, Array]:
        """Return the NNGP kernel after the activation, and the tensor product's.

        Without `columns`, both are between the rows and themselves.
        """
        second = rows if columns is None else columns
        # After Dropout a position and itself are treated as two positions.
        z = None if columns is None and not self.after_dropout else second.variances
        products = _row_products(rows.x, second.x)
        kernel, slopes = _dual_kernels(self.dual, products, rows.variances, z)
        return kernel, _row_products(rows.y, second.y) * slopes

    def _diagonal(self, rows: _Rows) -> Array:
        """Return the sum of both kernels of each row with itself."""
        q = rows.variances
        value, slope = self.dual.diagonal(q.value)[0], self.dual.diagonal(q.slope)[1]
        if self.after_dropout:
            value, slope = self.dual.covariances(rows.norm2, q.value, q.value)
        return value + jnp.sum(rows.y**2, axis=-1) * slope


def _dual_kernels(
    dual: DualActivation, products: Array, x: _Variances, z: _Variances | None
) -> tuple[Array, Array]:
    """Return k and k' of features with inner products `products` (..., m).

    x (...) and z (m,) are the variances; z is None where both sides are the same.
    """
    q_z = x.value if z is None else z.value
    most = safe_sqrt(x.value)[..., None] * safe_sqrt(q_z)
    clipped = jnp.clip(products, -most, most)
    kernel, _ = dual.kernels(clipped, x.value, None if z is None else z.value)
    _, slopes = dual.kernels(products, x.slope, None if z is None else z.slope)
    return kernel, slopes


def _row_products(a: Array, b: Array) -> Array:
    """Return the inner products of rows of a (..., k) and b (m, k), (..., m)."""
    return matmul(a, b.T)


def _patch_products(window: Window, bias: float, x: Array, z: Array) -> Array:
    """Return inner products of all patches of x (n, *spatial, c) with z (m, p).

    They are a sum over the offsets in the window, so that patches are not formed.
    """
    c = x.shape[-1]
    parts = [bias * z[:, -1]] if bias else []
    for i, pixels in enumerate(window.shifts(x)):
        parts.append(_row_products(pixels, z[:, i * c : (i + 1) * c]))
    return functools.reduce(operator.add, parts)


def _take_patches(window: Window, bias: float, x: Array, index: Array) -> Array:
    """Return some patches of all images `x` (n, *spatial, c), (len(index), p)."""
    *axes, c = x.shape
    # The numbers of the pixels in each patch; 0 is the border.
    pixels = jnp.arange(1, 1 + math.prod(axes)).reshape(*axes, 1)
    numbers = window.patches(pixels).reshape(-1, window.size)[index]
    rows = jnp.concatenate([jnp.zeros((1, c), x.dtype), x.reshape(-1, c)])
    parts = [rows[numbers].reshape(len(index), -1)]
    if bias:
        parts.append(jnp.full((len(index), 1), bias, x.dtype))
    return jnp.concatenate(parts, axis=-1)
