r"""Attention (arXiv 2006.10540): features mixed over the positions of one example.

With "linear" scaling the weights G of an example are a function of its own kernel
between positions, so that with K of two examples

    NNGP' = W^2 G1 K G2' + b^2,     NTK' = W^2 G1 Theta G2' + b^2 + 2 (NNGP' - b^2),

and features phi of K become W G phi. With the root, and the identity for a mechanism,

    NNGP'_ij = W^2 K_ij sum_pq K_pq^2 + b^2,

a product of kernels, one of them summed over positions.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import evaluate_eagerly
from jax_ntk_sketch.features.layers._spatial import check_spatial
from jax_ntk_sketch.features.layers.graph import check_mask
from jax_ntk_sketch.features.patches import sketch_width
from jax_ntk_sketch.features.products import Product
from jax_ntk_sketch.features.state import (
    ExactColumns,
    Features,
    Spec,
    after_weighted_sum,
    constant_column,
    dropout_variance,
    with_feature_norms,
)
from jax_ntk_sketch.features.step import Context, Step, layer_rule

__all__: list[str] = []

# Of what is masked, before the exponential.
_NEVER = -1e20

_MECHANISMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "SOFTMAX": lambda x: jax.nn.softmax(x, axis=-1),
    "IDENTITY": lambda x: x,
    "ABS": jnp.abs,
    "RELU": jax.nn.relu,
}


@layer_rule.register
def global_self_attention_steps(
    layer: stax.GlobalSelfAttention, spec: Spec, context: Context
) -> list[Step]:
    check_spatial(layer, spec)
    if layer.linear_scaling:
        return [_linear(layer, spec, context)]
    if layer.attention_mechanism == "IDENTITY":
        return [_root(layer, spec, context)]
    raise ValueError(
        f"{layer!r}: with linear_scaling=False there is no closed form but for "
        'attention_mechanism="IDENTITY"; use that, or linear_scaling=True'
    )


def _linear(layer: stax.GlobalSelfAttention, spec: Spec, context: Context) -> Step:
    """Weights are a function of the example; they mix its features."""
    embedded = _Embedded.of(layer, spec)
    values = embedded if layer.val_pos_emb else _Embedded.none()
    product = layer.W_query_std * layer.W_key_std
    std = layer.W_out_std * layer.W_value_std
    softmax = layer.attention_mechanism == "SOFTMAX"
    mechanism = _MECHANISMS[layer.attention_mechanism]

    def weights(f: Features, mask: jax.Array | None) -> jax.Array:
        """(n, positions, positions), of queries and keys."""
        rows = _rows(f.nngp)
        cov = jnp.einsum("nia,nja->nij", rows, rows, precision="highest")
        norm2 = f.nngp_diag.reshape(len(rows), -1, 1)
        cov = jnp.where(jnp.eye(spec.pixels, dtype=bool), norm2, cov)
        scores = product * embedded.covariance(cov)
        if mask is None:
            return mechanism(scores)
        keys = mask.reshape(len(rows), 1, -1)
        if softmax:
            return mechanism(jnp.where(keys, scores, _NEVER))
        return jnp.where(keys, mechanism(scores), 0)

    bias = int(bool(layer.b_std))
    columns, mixed = spec.nngp_dim + values.columns, spec.ntk_dim + values.columns
    after = after_weighted_sum(spec, layer.attention_mechanism == "IDENTITY")
    c = after.exact_columns
    carried = c._replace(constants=(*c.constants, *[columns] * bias))
    if context.wants_ntk:
        carried = carried._replace(
            ntk_constants=(
                *c.ntk_constants,
                *[mixed] * bias,
                *(mixed + bias + i for i in c.constants),
            ),
            ntk_linears=(*c.ntk_linears, *(mixed + bias + i for i in c.linears)),
        )
    out = dataclasses.replace(
        after,
        nngp_dim=columns + bias,
        ntk_dim=mixed + bias + columns if context.wants_ntk else 0,
        gaussian=True,
        before_activations=False,
        exact_columns=carried,
        finite_channels=layer.n_chan_out,
    )

    def apply(params: Any, f: Features, mask: jax.Array | None = None) -> Features:
        if mask is not None:
            check_mask(mask, (len(f.nngp), *spec.shape))
        g = weights(f, mask)

        def mix(x: jax.Array) -> jax.Array:
            rows = std * jnp.matmul(g.astype(x.dtype), _rows(x), precision="highest")
            return rows.reshape(x.shape)

        nngp = mix(values.features(f.nngp))
        ones = [constant_column(nngp, layer.b_std)] if layer.b_std else []
        ntk = f.ntk
        if context.wants_ntk:
            # The values' weights and those of the output are trained.
            trained = [mix(values.features(f.ntk)), *ones, math.sqrt(2) * nngp]
            ntk = jnp.concatenate(trained, axis=-1)
        more: jax.Array | float = 0.0
        if spec.after_dropout:
            more = values.weight * dropout_variance(f).reshape(len(g), -1, 1)
            more = jnp.matmul((std * g) ** 2, more).reshape(f.nngp_diag.shape)
        return with_feature_norms(jnp.concatenate([nngp, *ones], axis=-1), ntk, more)

    pixels = spec.pixels
    flops = 2 * pixels**2 * (2 * spec.nngp_dim + spec.ntk_dim + 2 * values.columns + 3)
    floats = spec.live_elements() + out.live_elements() + 2 * pixels**2
    return Step(
        name=repr(layer),
        spec=out,
        apply=apply,
        flops=flops,
        live_elements=floats,
        extra_inputs=("mask",),
    )


def _root(layer: stax.GlobalSelfAttention, spec: Spec, context: Context) -> Step:
    """The identity of products over the root of the width: kernels multiply."""
    embedded = _Embedded.of(layer, spec)
    values = embedded if layer.val_pos_emb else _Embedded.none()
    std = layer.W_query_std * layer.W_key_std * layer.W_out_std * layer.W_value_std
    bias = int(bool(layer.b_std))
    width = sketch_width(context)
    half = max(1, width // 2)

    def at(left: int, right: int, most: int) -> Product:
        return Product.at(left, right, most, spec, context)

    a, b = spec.nngp_dim + embedded.columns, spec.nngp_dim + values.columns
    parts = {"sum": at(a, b, width)}
    total = parts["sum"].columns
    parts["nngp"] = at(total, a, width)
    if context.wants_ntk:
        ntk_a, ntk_b = spec.ntk_dim + embedded.columns, spec.ntk_dim + values.columns
        parts["sum1"], parts["sum2"] = at(a, ntk_b, half), at(b, ntk_a, half)
        every = total + parts["sum1"].columns + parts["sum2"].columns
        parts["ntk1"], parts["ntk2"] = at(every, a, half), at(total, ntk_a, half)
    nngp = parts["nngp"].columns
    ntk = sum(parts[name].columns for name in ("ntk1", "ntk2") if name in parts)
    out = dataclasses.replace(
        spec,
        nngp_dim=nngp + bias,
        ntk_dim=ntk + bias if context.wants_ntk else 0,
        gaussian=True,
        min_cosine=-1.0,
        norms_from_features=True,
        before_activations=False,
        exact_columns=ExactColumns(),
        finite_channels=layer.n_chan_out,
    )

    def init(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, len(parts))
        pairs = zip(parts.items(), keys, strict=True)
        return {name: part.init(k) for (name, part), k in pairs}

    def apply(params: Any, f: Features, mask: jax.Array | None = None) -> Features:
        if mask is not None:
            check_mask(mask, (len(f.nngp), *spec.shape))
        there = 1.0 if mask is None else mask[..., None].astype(f.nngp.dtype)

        def times(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
            return parts[name].apply(params[name], x, y)

        def over(x: jax.Array) -> jax.Array:
            """The sum over positions, at each of them."""
            axes = tuple(range(1, x.ndim - 1))
            return jnp.broadcast_to((there * x).sum(axes, keepdims=True), x.shape)

        phi, v = embedded.features(f.nngp), values.features(f.nngp)
        u = over(times("sum", phi, v))
        nngp = std * times("nngp", u, phi)
        ones = [constant_column(nngp, layer.b_std)] if layer.b_std else []
        ntk = f.ntk
        if context.wants_ntk:
            psi, psi_v = embedded.features(f.ntk), values.features(f.ntk)
            trained = [times("sum1", phi, psi_v), times("sum2", v, psi)]
            trained = [*map(over, trained), 2 * u]
            first = times("ntk1", jnp.concatenate(trained, axis=-1), phi)
            second = times("ntk2", u, psi)
            ntk = jnp.concatenate([std * first, std * second, *ones], axis=-1)
        more: jax.Array | float = 0.0
        if spec.after_dropout:
            own = jnp.sum(f.nngp**2, axis=-1)
            once, twice = (
                embedded.variance(q) * values.variance(q) for q in (own, f.nngp_diag)
            )
            dot = jnp.sum(u**2, axis=-1) + over((twice - once)[..., None])[..., 0]
            more = std**2 * dot * embedded.variance(f.nngp_diag)
            more = more - jnp.sum(nngp**2, axis=-1)
        return with_feature_norms(jnp.concatenate([nngp, *ones], axis=-1), ntk, more)

    flops = spec.pixels * sum(part.flops for part in parts.values())
    floats = spec.live_elements() + out.live_elements() + spec.pixels * 4 * width
    return Step(
        name=repr(layer),
        spec=out,
        apply=apply,
        init=init,
        flops=flops,
        live_elements=floats,
        extra_inputs=("mask",),
    )


class _Embedded(NamedTuple):
    """A kernel and that of random embeddings of the positions, weighted.

    Attributes:
      weight: of the features' kernel.
      between: covariances of positions, (positions, positions), weighted.
      root: features of these, (*shape, r).
    """

    weight: float
    between: np.ndarray | float
    root: np.ndarray | None

    @classmethod
    def none(cls) -> "_Embedded":
        return cls(1.0, 0.0, None)

    @classmethod
    def of(cls, layer: stax.GlobalSelfAttention, spec: Spec) -> "_Embedded":
        if layer.pos_emb_type == "NONE":
            return cls.none()
        weight, other = 1.0, layer.W_pos_emb_std**2
        if layer.pos_emb_type == "CONCAT":
            channels = layer.n_chan_pos_emb or spec.finite_channels
            weight = spec.finite_channels / (spec.finite_channels + channels)
            other *= 1 - weight
        between = other * _covariances(layer, spec.shape)
        values, vectors = np.linalg.eigh(between)
        least = values[0] / max(abs(values).max(), 1e-30)
        if least < -1e-5:
            raise ValueError(
                f"{layer!r}: pos_emb_decay_fn must give covariances between positions, "
                f"but their least eigenvalue is {least:.2g} of the largest"
            )
        keep = values > 1e-7 * values[-1]
        root = vectors[:, keep] * np.sqrt(values[keep])
        return cls(weight, between, root.reshape(*spec.shape, -1))

    @property
    def columns(self) -> int:
        return 0 if self.root is None else self.root.shape[-1]

    def covariance(self, cov: jax.Array) -> jax.Array:
        """Between the positions of each example, (n, positions, positions)."""
        return self.weight * cov + jnp.asarray(self.between, cov.dtype)

    def variance(self, norm2: jax.Array) -> jax.Array:
        """Of each position, (n, *shape)."""
        if self.root is None:
            return norm2
        own = jnp.asarray(np.sum(self.root**2, axis=-1), norm2.dtype)
        return self.weight * norm2 + own

    def features(self, x: jax.Array) -> jax.Array:
        """x (n, *shape, c) and the columns of the positions, side by side."""
        if self.root is None:
            return x
        root = jnp.asarray(self.root, x.dtype)
        root = jnp.broadcast_to(root, (*x.shape[:-1], self.columns))
        return jnp.concatenate([math.sqrt(self.weight) * x, root], axis=-1)


def _covariances(layer: stax.GlobalSelfAttention, shape: tuple[int, ...]) -> np.ndarray:
    """Of the embeddings of positions, (positions, positions)."""
    decay = layer.pos_emb_decay_fn
    if decay is None:
        return np.eye(math.prod(shape))
    places = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)
    apart = np.abs(places[:, None] - places[None]).astype(float)
    distance = (apart**layer.pos_emb_p_norm).sum(-1)
    between = evaluate_eagerly(
        lambda: np.asarray(decay(jnp.asarray(distance)), np.float64)
    )
    if between.shape != distance.shape:
        raise ValueError(
            f"{layer!r}: pos_emb_decay_fn must be elementwise, but takes "
            f"{distance.shape} to {between.shape}"
        )
    return between


def _rows(x: jax.Array) -> jax.Array:
    """(n, *shape, c) to (n, positions, c)."""
    return x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])
