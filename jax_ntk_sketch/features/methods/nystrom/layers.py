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
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_ntk_sketch._numerics import at_least_float32, lift, matmul, safe_sqrt
from jax_ntk_sketch._typing import Array, Key, Shape
from jax_ntk_sketch.features.methods.nystrom import sampling
from jax_ntk_sketch.features.patches import Patches
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import Context, Step, accepts_patches, activation_rule
from jax_ntk_sketch.kernels import DualActivation
from jax_ntk_sketch.kernels.nystrom import principal_sqrt
from jax_ntk_sketch.methods import Nystrom

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
    columns = context.max_columns
    nngp_columns, ntk_columns, per_kernel = columns, 0, float(columns)
    if context.wants_ntk:
        nngp_columns = max(1, round(_NNGP_SHARE * columns))
        ntk_columns = max(1, columns - nngp_columns)
        per_kernel = columns / 2
    num = math.ceil(method.oversample * per_kernel)
    num = max(num, nngp_columns, ntk_columns)
    layer = _LandmarkLayer(
        method=method,
        dual=dual,
        spec=spec,
        x_patches=Patches.of(spec, "nngp"),
        y_patches=Patches.of(spec, "ntk"),
        num_landmarks=num,
        nngp_columns=nngp_columns,
        ntk_columns=ntk_columns,
    )

    dims, kinds = layer.x_patches.dim + layer.y_patches.dim, 2 if ntk_columns else 1
    flops = num * (2 * dims + kinds * sampling.FLOPS_PER_KERNEL_ENTRY + 2 * columns)
    elements = spec.live_elements() + spec.pixels * (4 * kinds * num + columns)
    return Step(
        name=f"{num} landmarks",
        spec=Spec(nngp_columns, ntk_columns),
        apply=layer.apply,
        init=layer.init,
        fit=layer.fit,
        flops=spec.pixels * flops,
        live_elements=elements,
        fit_elements=sampling.max_candidates(num) * (dims + 4 * num + columns),
    )


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
    """The functions of the step of one activation.

    Attributes:
      method: the method.
      dual: the activation.
      spec: the features before the activation.
      x_patches, y_patches: how x and y are read from them.
      num_landmarks: the number of landmarks, of both kernels together.
      nngp_columns, ntk_columns: columns of the features after the activation.
    """

    method: Nystrom
    dual: DualActivation
    spec: Spec
    x_patches: Patches
    y_patches: Patches
    num_landmarks: int
    nngp_columns: int
    ntk_columns: int

    def init(self, key: Key) -> dict[str, Array]:
        """Return parameters of zeros, with the shapes of those that `learn` returns."""
        columns: dict[str, Shape] = {
            "nngp_landmarks": (self.x_patches.dim,),
            "nngp_diag": (),
            "nngp_root": (self.nngp_columns,),
        }
        if self.ntk_columns:
            columns["ntk_landmarks"] = (self.y_patches.dim,)
            columns["ntk_root"] = (self.ntk_columns,)
        num = self.num_landmarks
        return {name: jnp.zeros((num, *shape)) for name, shape in columns.items()}

    def fit(self, key: Key, f: Features) -> dict[str, Array]:
        """Choose landmarks among the positions of a sample, and find R1 and R0."""
        columns = (self.nngp_columns, self.ntk_columns)
        f = sampling.checked_sample(f, columns)
        candidates_key, landmarks_key = jax.random.split(key)
        rows = self._candidates(candidates_key, f)
        params, left_out = self._learn(landmarks_key, *rows)
        sampling.warn_left_out(left_out, self.num_landmarks)
        return params

    @functools.partial(jax.jit, static_argnums=0)
    def _candidates(self, key: Key, f: Features) -> tuple[_Rows, Array]:
        n = f.nngp_diag.size
        index = sampling.candidate_rows(key, n, self.num_landmarks)
        return sampling.padded(self._rows(f, index))

    # The part that takes seconds to compile, once for several numbers of rows.
    @functools.partial(jax.jit, static_argnums=0)
    def _learn(
        self, key: Key, rows: _Rows, valid: Array
    ) -> tuple[dict[str, Array], Array]:
        normalize = bool(self.method.normalize)
        diagonals = self._diagonals(rows)
        of_each = [sampling.weights(normalize, d) for d in diagonals]
        # Of the NTK after the next Dense or Conv.
        diagonal = diagonals[0] + diagonals[1]
        of_sum = sampling.weights(normalize, diagonal)

        def columns(index: Array) -> list[Array]:
            pair = self._kernels(rows, rows.take(index))
            return [sampling.masked(k, valid, valid[index]) for k in pair]

        def column(index: Array) -> Array:
            nngp, ntk = columns(index)
            return of_sum[:, None] * (nngp + ntk) * of_sum[None, index]

        num = min(self.num_landmarks, len(rows.x))
        chosen = sampling.choose_landmarks(
            self.method, key, column, of_sum**2 * diagonal, num, valid
        )
        landmarks, kept = rows.take(chosen), valid[chosen]
        grams = [sampling.masked(k, kept, kept) for k in self._kernels(landmarks)]
        roots, left_out = [], jnp.zeros((), jnp.int32)
        for k, gram, w, number in zip(
            columns(chosen),
            grams,
            of_each,
            (self.nngp_columns, self.ntk_columns),
            strict=True,
        ):
            if number:
                of_landmarks = w[None, chosen]
                k = w[:, None] * k * of_landmarks
                gram = of_landmarks.T * gram * of_landmarks
                root, part = principal_sqrt(k, gram, number)
                roots.append(of_landmarks.T * root)
                left_out = jnp.maximum(left_out, part)
        params = {
            "nngp_landmarks": landmarks.x,
            "nngp_diag": landmarks.nngp_diag,
            "nngp_root": roots[0],
        }
        if self.ntk_columns:
            params |= {"ntk_landmarks": landmarks.y, "ntk_root": roots[1]}
        return sampling.pad_landmarks(params, self.num_landmarks), left_out

    def apply(self, params: dict[str, Array], f: Features) -> Features:
        """Return the features after the activation."""
        dtype, f = f.nngp.dtype, Features(*map(at_least_float32, f))
        params = {name: array.astype(f.nngp.dtype) for name, array in params.items()}
        z = params["nngp_landmarks"]
        z_variances = self._variances(params["nngp_diag"], jnp.sum(z**2, axis=-1))
        norm2 = self.x_patches.squared_norms(f.nngp)
        variances = self._variances(f.nngp_diag, norm2)
        products = self.x_patches.inner_products(f.nngp, z)
        kernel, slopes = _dual_kernels(self.dual, products, variances, z_variances)
        nngp = matmul(kernel, params["nngp_root"])
        ntk = nngp[..., :0]
        if self.ntk_columns:
            slopes *= self.y_patches.inner_products(f.ntk, params["ntk_landmarks"])
            ntk = matmul(slopes, params["ntk_root"])
        nngp_diag = self.dual.diagonal(variances.value)[0]
        if self.spec.norms_from_features and not self.spec.after_dropout:
            nngp_diag = jnp.sum(nngp**2, axis=-1)
        return Features(*(array.astype(dtype) for array in (nngp, ntk, nngp_diag)))

    def _variances(self, nngp_diag: Array, norm2: Array) -> _Variances:
        """Return the variances of positions from their exact and own square norms."""
        if not self.spec.after_dropout:
            return _Variances(nngp_diag, norm2)
        # No cosine is 1, not even that of an example and itself.
        variance = jnp.maximum(nngp_diag, norm2)
        return _Variances(variance, variance)

    def _rows(self, f: Features, index: Array) -> _Rows:
        """Return the features of the positions `index` of a sample."""
        nngp_diag = f.nngp_diag.reshape(-1)[index]
        x = self.x_patches.take(f.nngp, index)
        norm2 = jnp.sum(x**2, axis=-1)
        y = self.y_patches.take(f.ntk, index) if self.ntk_columns else x[:, :0]
        return _Rows(x, y, norm2, nngp_diag, self._variances(nngp_diag, norm2))

    def _kernels(
        self, rows: _Rows, columns: _Rows | None = None
    ) -> tuple[Array, Array]:
        """Return the NNGP kernel after the activation, and the tensor product's.

        Without `columns`, both are between the rows and themselves.
        """
        second = rows if columns is None else columns
        # After Dropout a position and itself are treated as two positions.
        z = (
            None
            if columns is None and not self.spec.after_dropout
            else second.variances
        )
        products = matmul(rows.x, second.x.T)
        kernel, slopes = _dual_kernels(self.dual, products, rows.variances, z)
        return kernel, matmul(rows.y, second.y.T) * slopes

    def _diagonals(self, rows: _Rows) -> tuple[Array, Array]:
        """Return what `_kernels` returns, of each row with itself."""
        q = rows.variances
        value, slope = self.dual.diagonal(q.value)[0], self.dual.diagonal(q.slope)[1]
        if self.spec.after_dropout:
            value, slope = self.dual.covariances(rows.norm2, q.value, q.value)
        return value, jnp.sum(rows.y**2, axis=-1) * slope


def _dual_kernels(
    dual: DualActivation, products: Array, x: _Variances, z: _Variances | None
) -> tuple[Array, Array]:
    """Return k and k' of features with inner products `products` (..., m).

    x (...) and z (m,) are the variances; z is None where both sides are the same.
    """
    q_z = x.value if z is None else z.value
    most = safe_sqrt(x.value)[..., None] * lift(safe_sqrt(q_z), products)
    clipped = jnp.clip(products, -most, most)
    kernel, _ = dual.kernels(clipped, x.value, None if z is None else z.value)
    _, slopes = dual.kernels(products, x.slope, None if z is None else z.slope)
    return kernel, slopes
