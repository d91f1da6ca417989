r"""Attention (arXiv 2006.10540): features mixed over the positions of one example.

With "linear" scaling the weights G of an example are a function of its own kernel
between positions. With K and Theta the kernels of two examples,

    NNGP' = W^2 G1 K G2' + b^2,     NTK' = W^2 G1 Theta G2' + b^2 + 2 (NNGP' - b^2),

and features phi of K become W G phi. With products divided by the square root of the
width, and the identity for a mechanism,

    NNGP'_ij = W^2 K_ij sum_pq K_pq^2 + b^2,

a product of kernels, one of which is summed over positions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import evaluate_eagerly, is_zero, matmul
from jax_ntk_sketch._typing import Array, PyTree, Shape
from jax_ntk_sketch.features.graph_inputs import check_mask
from jax_ntk_sketch.features.layers._spatial import check_spatial
from jax_ntk_sketch.features.products import Product
from jax_ntk_sketch.features.state import (
    ExactColumns,
    Features,
    Spec,
    after_weighted_sum,
    by_position,
    dropout_variance,
    with_constant,
    with_feature_norms,
)
from jax_ntk_sketch.features.step import Context, Step, layer_rule, linear_step
from jax_ntk_sketch.sketch.random_map import init_each

# The score of a masked key before the exponential.
_MASKED_SCORE = -1e20

_MECHANISMS: dict[str, Callable[[Array], Array]] = {
    "SOFTMAX": lambda x: jax.nn.softmax(x, axis=-1),
    "IDENTITY": lambda x: x,
    "ABS": jnp.abs,
    "RELU": jax.nn.relu,
}


@layer_rule.register
def global_self_attention_steps(
    layer: stax.GlobalSelfAttention, spec: Spec, context: Context
) -> list[Step]:
    """Return the step of the layer, which depends on the scaling of the products.

    Raises:
      ValueError: there are no positions; the kernel has no closed form; the embeddings
        have no covariance.
    """
    check_spatial(layer, spec)
    if layer.linear_scaling:
        return [_linear_scaling_step(layer, spec, context)]
    if layer.attention_mechanism == "IDENTITY":
        return [_sqrt_scaling_step(layer, spec, context)]
    raise ValueError(
        f'{layer!r}: attention_mechanism must be "IDENTITY" with linear_scaling=False, '
        "because other kernels have no closed form; use that, or linear_scaling=True"
    )


def _linear_scaling_step(
    layer: stax.GlobalSelfAttention, spec: Spec, context: Context
) -> Step:
    """Return the step that mixes features by weights that depend on the example."""
    keys = _Embedded.of(layer, spec)
    values = keys if layer.val_pos_emb else _Embedded.none()
    score_scale = layer.W_query_std * layer.W_key_std
    std = layer.W_out_std * layer.W_value_std
    mechanism = _MECHANISMS[layer.attention_mechanism]

    def attention_weights(f: Features, mask: Array | None) -> Array:
        """Return G (n, positions, positions), of queries and keys."""
        rows = by_position(f.nngp)
        covariance = jnp.einsum("nia,nja->nij", rows, rows, precision="highest")
        variance = f.nngp_diag.reshape(rows.shape[0], spec.pixels, 1)
        same = jnp.eye(spec.pixels, dtype=bool)
        covariance = jnp.where(same, variance, covariance)
        scores = score_scale * keys.covariance(covariance)
        if mask is None:
            return mechanism(scores)
        exists = mask.reshape(rows.shape[0], 1, spec.pixels)
        if layer.attention_mechanism == "SOFTMAX":
            return mechanism(jnp.where(exists, scores, _MASKED_SCORE))
        return jnp.where(exists, mechanism(scores), 0)

    bias = int(not is_zero(layer.b_std))
    nngp_dim, ntk_dim = spec.nngp_dim + values.columns, spec.ntk_dim + values.columns
    after = after_weighted_sum(spec, layer.attention_mechanism == "IDENTITY")
    mixed = after.exact_columns
    exact = mixed._replace(constants=(*mixed.constants, *[nngp_dim] * bias))
    if context.wants_ntk:
        # The NTK features get the bias, and then the mixed NNGP features without it.
        exact = exact._replace(
            ntk_constants=(*mixed.ntk_constants, *[ntk_dim] * bias)
        ).with_nngp_appended(ntk_dim + bias, mixed)
    out = dataclasses.replace(
        after,
        nngp_dim=nngp_dim + bias,
        ntk_dim=ntk_dim + bias + nngp_dim if context.wants_ntk else 0,
        gaussian=True,
        before_activations=False,
        exact_columns=exact,
        finite_channels=layer.n_chan_out,
    )

    def apply(params: PyTree, f: Features, mask: Array | None = None) -> Features:
        check_mask(mask, (f.nngp.shape[0], *spec.shape))
        g = attention_weights(f, mask)

        def mix(x: Array) -> Array:
            return (std * matmul(g.astype(x.dtype), by_position(x))).reshape(x.shape)

        nngp = mix(values.features(f.nngp))
        ntk = f.ntk
        if context.wants_ntk:
            # The weights of the values and those of the output are trained.
            ntk = with_constant(mix(values.features(f.ntk)), layer.b_std)
            ntk = jnp.concatenate([ntk, math.sqrt(2) * nngp], axis=-1)
        extra: Array | float = 0.0
        if spec.after_dropout:
            lost = dropout_variance(f).reshape(g.shape[0], spec.pixels, 1)
            dropped = values.weight * lost
            extra = jnp.matmul((std * g) ** 2, dropped).reshape(f.nngp_diag.shape)
        return with_feature_norms(with_constant(nngp, layer.b_std), ntk, extra)

    pixels = spec.pixels
    columns = 2 * spec.nngp_dim + spec.ntk_dim + 2 * values.columns + 3
    return linear_step(
        repr(layer),
        spec,
        out,
        apply,
        work_elements=2 * pixels**2,
        flops=2 * pixels**2 * columns,
        extra_inputs=("mask",),
    )


def _sqrt_scaling_step(
    layer: stax.GlobalSelfAttention, spec: Spec, context: Context
) -> Step:
    """Return the step of a product of three kernels, two of which are summed."""
    keys = _Embedded.of(layer, spec)
    values = keys if layer.val_pos_emb else _Embedded.none()
    std = layer.W_query_std * layer.W_key_std * layer.W_out_std * layer.W_value_std
    bias = int(not is_zero(layer.b_std))
    parts = _products(spec, context, keys.columns, values.columns)
    nngp_dim = parts["nngp"].columns
    ntk_dim = sum(parts[name].columns for name in ("ntk1", "ntk2") if name in parts)
    out = dataclasses.replace(
        spec,
        nngp_dim=nngp_dim + bias,
        ntk_dim=ntk_dim + bias if context.wants_ntk else 0,
        gaussian=True,
        min_cosine=-1.0,
        norms_from_features=True,
        before_activations=False,
        exact_columns=ExactColumns(),
        finite_channels=layer.n_chan_out,
    )

    def apply(params: PyTree, f: Features, mask: Array | None = None) -> Features:
        check_mask(mask, (f.nngp.shape[0], *spec.shape))
        exists = 1.0 if mask is None else mask[..., None].astype(f.nngp.dtype)

        def product(name: str, x: Array, y: Array) -> Array:
            return parts[name].apply(params[name], x, y)

        def sum_over_positions(x: Array) -> Array:
            """Return the sum at each of the positions."""
            axes = tuple(range(1, x.ndim - 1))
            return jnp.broadcast_to((exists * x).sum(axes, keepdims=True), x.shape)

        phi, v = keys.features(f.nngp), values.features(f.nngp)
        u = sum_over_positions(product("sum", phi, v))
        nngp = std * product("nngp", u, phi)
        ntk = f.ntk
        if context.wants_ntk:
            psi, psi_v = keys.features(f.ntk), values.features(f.ntk)
            trained = [product("sum1", phi, psi_v), product("sum2", v, psi)]
            trained = [*map(sum_over_positions, trained), 2 * u]
            first = product("ntk1", jnp.concatenate(trained, axis=-1), phi)
            second = product("ntk2", u, psi)
            ntk = jnp.concatenate([std * first, std * second], axis=-1)
            ntk = with_constant(ntk, layer.b_std)
        extra: Array | float = 0.0
        if spec.after_dropout:
            norm2 = jnp.sum(f.nngp**2, axis=-1)
            without, with_dropped = (
                keys.variance(q) * values.variance(q) for q in (norm2, f.nngp_diag)
            )
            dropped = sum_over_positions((with_dropped - without)[..., None])[..., 0]
            extra = std**2 * (jnp.sum(u**2, axis=-1) + dropped)
            extra = extra * keys.variance(f.nngp_diag) - jnp.sum(nngp**2, axis=-1)
        return with_feature_norms(with_constant(nngp, layer.b_std), ntk, extra)

    return linear_step(
        repr(layer),
        spec,
        out,
        apply,
        work_elements=spec.pixels * 4 * context.sketch_columns,
        init=functools.partial(init_each, parts),
        flops=spec.pixels * sum(part.flops for part in parts.values()),
        extra_inputs=("mask",),
    )


def _products(
    spec: Spec, context: Context, key_columns: int, value_columns: int
) -> dict[str, Product]:
    """Return the products of features in the order in which they are computed.

    Args:
      spec: the features before.
      context: the context.
      key_columns, value_columns: the columns of the embeddings of keys and values.
    """
    max_columns = context.sketch_columns
    half, batch_columns = max(1, max_columns // 2), context.columns_of_batch(spec)

    def product(left: int, right: int, max_columns: int) -> Product:
        return Product(left, right, max_columns, batch_columns)

    keys, values = spec.nngp_dim + key_columns, spec.nngp_dim + value_columns
    parts = {"sum": product(keys, values, max_columns)}
    total = parts["sum"].columns
    parts["nngp"] = product(total, keys, max_columns)
    if context.wants_ntk:
        ntk_keys, ntk_values = spec.ntk_dim + key_columns, spec.ntk_dim + value_columns
        parts["sum1"] = product(keys, ntk_values, half)
        parts["sum2"] = product(values, ntk_keys, half)
        totals = total + parts["sum1"].columns + parts["sum2"].columns
        parts["ntk1"] = product(totals, keys, half)
        parts["ntk2"] = product(total, ntk_keys, half)
    return parts


class _Embedded(NamedTuple):
    """A weighted sum of a kernel and the kernel of embeddings of the positions.

    Attributes:
      weight: the weight of the kernel of the features.
      between: the weighted covariances of the embeddings, (positions, positions).
      root: features of these, (*shape, r); None without embeddings.
    """

    weight: float
    between: np.ndarray | float
    root: np.ndarray | None

    @classmethod
    def none(cls) -> "_Embedded":
        """Return the kernel alone."""
        return cls(1.0, 0.0, None)

    @classmethod
    def of(cls, layer: stax.GlobalSelfAttention, spec: Spec) -> "_Embedded":
        """Return the sum that a layer defines."""
        if layer.pos_emb_type == "NONE":
            return cls.none()
        weight, embedding_weight = 1.0, layer.W_pos_emb_std**2
        if layer.pos_emb_type == "CONCAT":
            channels = layer.n_chan_pos_emb or spec.finite_channels
            weight = spec.finite_channels / (spec.finite_channels + channels)
            embedding_weight *= 1 - weight
        between = embedding_weight * _embedding_covariances(layer, spec.shape)
        values, vectors = np.linalg.eigh(between)
        smallest = values[0] / max(abs(values).max(), 1e-30)
        if smallest < -1e-5:
            raise ValueError(
                f"{layer!r}: pos_emb_decay_fn must give covariances between positions, "
                f"but their smallest eigenvalue is {smallest:.2g} times the largest"
            )
        keep = values > 1e-7 * values[-1]
        root = vectors[:, keep] * np.sqrt(values[keep])
        return cls(weight, between, root.reshape(*spec.shape, -1))

    @property
    def columns(self) -> int:
        """The columns of the embeddings."""
        return 0 if self.root is None else self.root.shape[-1]

    def covariance(self, covariance: Array) -> Array:
        """Return the sum between the positions of each example, (n, p, p)."""
        between = jnp.asarray(self.between, covariance.dtype)
        return self.weight * covariance + between

    def variance(self, variance: Array) -> Array:
        """Return the sum at each position, (n, *shape)."""
        if self.root is None:
            return variance
        squares = jnp.asarray(np.sum(self.root**2, axis=-1), variance.dtype)
        return self.weight * variance + squares

    def features(self, x: Array) -> Array:
        """Return features of the sum from features x (n, *shape, c) of the kernel."""
        if self.root is None:
            return x
        root = jnp.asarray(self.root, x.dtype)
        root = jnp.broadcast_to(root, (*x.shape[:-1], self.columns))
        return jnp.concatenate([math.sqrt(self.weight) * x, root], axis=-1)


def _embedding_covariances(layer: stax.GlobalSelfAttention, shape: Shape) -> np.ndarray:
    """Return the covariances of the embeddings, (positions, positions)."""
    decay = layer.pos_emb_decay_fn
    if decay is None:
        return np.eye(math.prod(shape))
    places = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)
    differences = np.abs(places[:, None] - places[None]).astype(float)
    distance = (differences**layer.pos_emb_p_norm).sum(-1)
    between = evaluate_eagerly(
        lambda: np.asarray(decay(jnp.asarray(distance)), np.float64)
    )
    if between.shape != distance.shape:
        raise ValueError(
            f"{layer!r}: pos_emb_decay_fn must be elementwise, got shape "
            f"{between.shape} for distances of shape {distance.shape}"
        )
    return between
