"""Sums over the edges of graphs, which are an input beside the examples."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch.features.state import (
    Features,
    Spec,
    after_weighted_sum,
    dropout_variance,
    with_feature_norms,
)
from jax_ntk_sketch.features.step import Context, Step, layer_rule

__all__ = ["check_inputs", "check_mask"]


# Layers that mix nodes, or change their number.
_MIXING = (
    stax.AvgPool,
    stax.SumPool,
    stax.Flatten,
    stax.ConvLocal,
    stax.ConvTranspose,
    stax.ImageResize,
    stax.Index,
)


@layer_rule.register
def aggregate_steps(layer: stax.Aggregate, spec: Spec, context: Context) -> list[Step]:
    """NNGP' = P1' NNGP P2 and the NTK likewise: the same sum over edges of features.

    The norms, sums over all pairs of neighbours, are then the features' own.
    """
    axes = _node_axes(layer, spec)
    sizes = tuple(spec.shape[axis] for axis in axes)
    nodes = math.prod(sizes)
    out = after_weighted_sum(spec, layer.signed)
    dense = layer.implementation == "DENSE"
    front = tuple(range(1, 1 + len(axes)))
    back = tuple(1 + axis for axis in axes)

    def apply(params, f: Features, pattern: Any = None) -> Features:
        if dense:
            weights = _dense(layer, pattern, len(f.nngp), sizes)
        else:
            edges = _edges(layer, pattern, len(f.nngp), sizes)

        def spread(x: jax.Array, squares: bool = False) -> jax.Array:
            """The sums for x (n, *shape, c), its nodes as one axis meanwhile.

            With the weights of the pairs of nodes, or with their squares.
            """
            x = jnp.moveaxis(x, back, front)
            rows = x.reshape(len(x), nodes, -1)
            if dense:
                own = weights.astype(x.dtype)
                rows = jnp.einsum(
                    "nij,nic->njc",
                    own**2 if squares else own,
                    rows,
                    precision=jax.lax.Precision.HIGHEST,
                )
            else:
                rows = _sum_over_edges(rows, *(_squared(*edges) if squares else edges))
            return jnp.moveaxis(rows.reshape(x.shape), front, back)

        nngp, ntk = spread(f.nngp), spread(f.ntk) if spec.ntk_dim else f.ntk
        more = (
            spread(dropout_variance(f)[..., None], True)[..., 0]
            if spec.after_dropout
            else 0.0
        )
        return with_feature_norms(nngp, ntk, more)

    columns = spec.nngp_dim + spec.ntk_dim
    name, flops = repr(layer), 2 * spec.nngp_dim * spec.pixels
    if dense:
        flops += 2 * nodes * columns * spec.pixels
    else:
        name += f", and {2 * columns} flops and {columns} floats per edge"
    floats = 2 * spec.live_elements() + (nodes**2 if dense else 0)
    return [
        Step(
            name=name,
            spec=out,
            apply=apply,
            flops=flops,
            live_elements=floats,
            extra_inputs=("pattern",),
        )
    ]


def _node_axes(layer: stax.Aggregate, spec: Spec) -> tuple[int, ...]:
    """Which of the spatial axes are the nodes."""
    if not spec.shape:
        raise ValueError(
            f"{layer!r} needs an axis of nodes, but there is none: examples must be "
            "graphs (nodes, channels), and Flatten or a global pooling layer removes "
            "the axis"
        )
    if layer.aggregate_axis is None:
        return tuple(range(len(spec.shape)))
    axes = layer.aggregate_axis
    axes = (axes,) if isinstance(axes, int) else axes
    ndim = len(spec.shape) + 2
    channels = layer.channel_axis % ndim
    numbers = sorted({axis % ndim for axis in axes if -ndim < axis < ndim})
    if len(numbers) < len(axes) or channels in numbers or 0 in numbers:
        raise ValueError(
            f"{layer!r}: aggregate_axis must be different axes other than those of the "
            f"batch, 0, and of the channels, {channels}, of examples with {ndim} axes"
        )
    return tuple(axis - 1 - (axis > channels) for axis in numbers)


def _dense(
    layer: stax.Aggregate, pattern: Any, n: int, sizes: tuple[int, ...]
) -> jax.Array:
    """Weights (n, nodes, nodes)."""
    wanted = (n, *sizes, *sizes)
    if not hasattr(pattern, "shape") or pattern.shape != wanted:
        raise ValueError(
            f"{layer!r}: pattern must be one array of weights, {wanted}, got "
            f"{_described(pattern)}"
            '; a list of edges needs implementation="SPARSE"'
        )
    nodes = math.prod(sizes)
    return _signs(layer, jnp.asarray(pattern).reshape(n, nodes, nodes))


def _edges(
    layer: stax.Aggregate, pattern: Any, n: int, sizes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Senders and receivers (n, edges), -1 in padding, and weights or None."""
    weights = None
    index = pattern
    if isinstance(pattern, tuple | list) and len(pattern) == 2:
        index, weights = pattern
    shape: tuple[int, ...] = getattr(index, "shape", ())
    rank = len(sizes)
    if rank == 1 and len(shape) == 3:
        shape = (*shape[:2], 1, *shape[2:])
    fits = len(shape) == 4 and (shape[0], *shape[2:]) == (n, rank, 2)
    if not fits or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            f"{layer!r}: pattern must be integers ({n}, edges, "
            f"{'' if rank == 1 else f'{rank}, '}2), or a pair of them and their "
            f"weights ({n}, edges), got {_described(pattern)}"
            '; an array of weights needs implementation="DENSE"'
        )
    if weights is not None and jnp.shape(weights) != shape[:2]:
        raise ValueError(
            f"{layer!r}: the weights of the pattern must have shape {shape[:2]} as its "
            f"edges have, got {jnp.shape(weights)}"
        )
    index = jnp.asarray(index).reshape(shape)
    limits = jnp.asarray(sizes, index.dtype)[:, None]
    padding = (index < 0).any((2, 3))
    outside = (index >= limits).any((2, 3)) & ~padding
    if not isinstance(outside, jax.core.Tracer) and outside.any():
        raise ValueError(
            f"{layer!r}: pattern names nodes that are not among the {sizes}"
        )
    if weights is not None:
        weights = _signs(layer, jnp.asarray(weights))
        weights = jnp.where(outside, jnp.nan, weights)
    strides = [math.prod(sizes[i + 1 :]) for i in range(rank)]
    number = jnp.sum(index * jnp.asarray(strides, index.dtype)[:, None], axis=2)
    number = jnp.where(padding[..., None], -1, number)
    # Out of range: NaN is what the sender sends, to any node of the example.
    number = jnp.where(outside[..., None], jnp.array([math.prod(sizes), 0]), number)
    return number[..., 0], number[..., 1], weights


def _sum_over_edges(
    x: jax.Array, senders: jax.Array, receivers: jax.Array, weights: jax.Array | None
) -> jax.Array:
    """Sums over the edges for x (n, nodes, c), all graphs as one."""
    n, nodes, c = x.shape
    first = jnp.arange(n)[:, None] * nodes
    inside = senders < nodes
    source = jnp.where(inside, first + jnp.maximum(senders, 0), n * nodes)
    # What pads is sent nowhere.
    target = jnp.where(receivers < 0, n * nodes, first + receivers)
    rows = x.reshape(n * nodes, c)
    sent = rows.at[source.reshape(-1)].get(mode="fill", fill_value=jnp.nan)
    if weights is not None:
        # Before the product: what pads may have any weight.
        sent = sent * weights.reshape(-1, 1).astype(x.dtype)
    out = jax.ops.segment_sum(sent, target.reshape(-1), num_segments=n * nodes)
    return out.reshape(x.shape)


def _squared(
    senders: jax.Array, receivers: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Edges whose weights between two nodes sum to the square of what they did.

    Each is multiplied by the sum for its two nodes, which several edges may join.
    """
    if weights is None:
        weights = jnp.ones(senders.shape)

    def sums(senders: jax.Array, receivers: jax.Array, weights: jax.Array) -> jax.Array:
        order = jnp.lexsort((senders, receivers))
        ends = jnp.stack([senders, receivers])[:, order]
        group = jnp.cumsum((ends != jnp.roll(ends, 1, axis=1)).any(0))
        total = jax.ops.segment_sum(weights[order], group, len(order) + 1)
        return jnp.zeros_like(weights).at[order].set(total[group])

    return senders, receivers, weights * jax.vmap(sums)(senders, receivers, weights)


def _signs(layer: stax.Aggregate, weights: jax.Array) -> jax.Array:
    """The weights, NaN where they are negative and must not be."""
    if layer.signed or not jnp.issubdtype(weights.dtype, jnp.signedinteger):
        if layer.signed or not jnp.issubdtype(weights.dtype, jnp.floating):
            return weights
    negative = weights < 0
    if not isinstance(negative, jax.core.Tracer) and negative.any():
        raise ValueError(
            f"{layer!r}: the pattern has negative weights; where that is meant, say "
            "Aggregate(..., signed=True)"
        )
    weights = weights.astype(jnp.result_type(weights, float))
    return jnp.where(negative, jnp.nan, weights)


def check_mask(mask: jax.Array, wanted: tuple[int, ...]) -> None:
    """Says what a mask must be.

    Raises:
      ValueError: it has another shape, or another dtype than bool.
    """
    if mask.shape != wanted or mask.dtype != bool:
        raise ValueError(
            f"mask must be a bool for each node, {wanted}, True where it exists; got "
            f"{_described(mask)}"
        )


def check_inputs(
    owner: str,
    net: stax.Layer,
    takes: tuple[str, ...],
    x: jax.Array,
    given: dict[str, Any],
) -> dict[str, Any]:
    """The arrays beside x that were given, as JAX arrays.

    Args:
      owner: who was called.
      net: the network.
      takes: what its stages take.
      x: (n, ...).
      given: by name, None where nothing was given.

    Raises:
      ValueError: one that the network cannot use, or lacks; one for other than n
        examples.
    """
    if "pattern" in takes and given["pattern"] is None:
        raise ValueError(
            f"{owner}: the network has stax.Aggregate, which sums over the edges of "
            "graphs: give pattern=, their edges"
        )
    inputs = {}
    for name, value in given.items():
        if value is None:
            continue
        if name not in takes:
            needed = {
                "pattern": "stax.Aggregate",
                "mask": "stax.GlobalSumPool or stax.GlobalAvgPool",
            }
            raise ValueError(
                f"{owner}: {name} was given, but the network has no {needed[name]}, "
                f"which would use it; leave it out"
            )
        value = jax.tree.map(jnp.asarray, value)
        for leaf in jax.tree.leaves(value):
            if leaf.shape[:1] != (len(x),):
                raise ValueError(
                    f"{owner}: {name} must have the {len(x)} examples of x along its "
                    f"first axis, got {_described(value)}"
                )
        inputs[name] = value
    if "mask" in inputs:
        _check_masked(owner, net)
    return inputs


def _check_masked(owner: str, net: stax.Layer) -> None:
    """A mask is right where nodes meet along edges and in the global pool only."""
    for layer in stax.walk(net):
        if isinstance(layer, stax.GlobalAvgPool | stax.GlobalSumPool):
            break
        size = math.prod(getattr(layer, "filter_shape", (1,)))
        size *= math.prod(getattr(layer, "strides", None) or (1,))
        if size > 1 or isinstance(layer, _MIXING):
            raise ValueError(
                f"{owner}: mask is for the nodes of graphs, which meet in "
                f"stax.Aggregate and global pooling only, but the network has {layer!r}"
            )


def _described(value: Any) -> str:
    parts = value if isinstance(value, tuple | list) else [value]
    return " and ".join(
        f"{getattr(part, 'dtype', type(part).__name__)} {getattr(part, 'shape', '')}"
        for part in parts
    )
