"""Sums over the edges of graphs, which are an input besides the examples."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import lift
from jax_ntk_sketch._typing import Array, PyTree, Shape
from jax_ntk_sketch.features.graph_inputs import describe, zero_masked
from jax_ntk_sketch.features.state import (
    Features,
    Spec,
    after_weighted_sum,
    mix_positions,
)
from jax_ntk_sketch.features.step import Context, Step, layer_rule, linear_step


@layer_rule.register
def aggregate_steps(layer: stax.Aggregate, spec: Spec, context: Context) -> list[Step]:
    """With P the weights of the edges, NNGP' = P1' NNGP P2 and NTK' = P1' NTK P2.

    On features these are sums over edges. The norms are sums over all pairs of
    neighbors, so that they are computed from the features.

    Raises:
      ValueError: there are no nodes, or `aggregate_axis` is not an axis of nodes.
    """
    axes = _node_axes(layer, spec)
    sizes = tuple(spec.shape[axis] for axis in axes)
    nodes = math.prod(sizes)
    out = after_weighted_sum(spec, layer.signed)
    dense = layer.implementation == "DENSE"
    front = tuple(range(1, 1 + len(axes)))
    places = tuple(1 + axis for axis in axes)

    def apply(
        params: PyTree,
        f: Features,
        pattern: PyTree = None,
        mask: Array | None = None,
    ) -> Features:
        if dense:
            weights = _dense_weights(layer, pattern, f.nngp.shape[0], sizes)
        else:
            edges = _edges(layer, pattern, f.nngp.shape[0], sizes)

        def aggregate(x: Array, squared: bool = False) -> Array:
            """Return the sums for x (n, *shape, c), with weights or their squares."""
            x = jnp.moveaxis(zero_masked(x, mask), places, front)
            rows = x.reshape(x.shape[0], nodes, math.prod(x.shape[1:]) // nodes)
            if dense:
                w = weights.astype(x.dtype)
                w = w**2 if squared else w
                precision = jax.lax.Precision.HIGHEST
                rows = jnp.einsum("nij,nic->njc", w, rows, precision=precision)
            else:
                rows = _sum_over_edges(rows, _squared(edges) if squared else edges)
            return jnp.moveaxis(rows.reshape(x.shape), front, places)

        def aggregate_squared(x: Array) -> Array:
            return aggregate(x, squared=True)

        return mix_positions(spec, f, aggregate, aggregate_squared)

    columns = spec.nngp_dim + spec.ntk_dim
    name, flops = repr(layer), 2 * spec.nngp_dim * spec.pixels
    if dense:
        flops += 2 * nodes * columns * spec.pixels
    else:
        name += f", and {2 * columns} flops and {columns} elements per edge"
    return [
        linear_step(
            name,
            spec,
            out,
            apply,
            work_elements=nodes**2 if dense else 0,
            flops=flops,
            extra_inputs=("pattern", "mask"),
        )
    ]


def _node_axes(layer: stax.Aggregate, spec: Spec) -> tuple[int, ...]:
    """Return which of the spatial axes are the nodes."""
    if not spec.shape:
        raise ValueError(
            f"{layer!r} needs an axis of nodes, got none; examples must be graphs "
            "(nodes, channels), and Flatten or a global pooling layer removes the axis"
        )
    axes = layer.aggregate_axis
    if axes is None:
        return tuple(range(len(spec.shape)))
    axes = (axes,) if isinstance(axes, int) else axes
    ndim = len(spec.shape) + 2
    channels = layer.channel_axis % ndim
    numbers = sorted({axis % ndim for axis in axes if -ndim < axis < ndim})
    if len(numbers) < len(axes) or channels in numbers or 0 in numbers:
        raise ValueError(
            f"{layer!r}: aggregate_axis must be different axes of examples with {ndim} "
            f"axes, other than the batch, 0, and the channels, {channels}"
        )
    return tuple(axis - 1 - (axis > channels) for axis in numbers)


def _dense_weights(
    layer: stax.Aggregate, pattern: PyTree, n: int, sizes: Shape
) -> Array:
    """Return the weights (n, nodes, nodes)."""
    shape = (n, *sizes, *sizes)
    if not hasattr(pattern, "shape") or pattern.shape != shape:
        raise ValueError(
            f"{layer!r}: pattern must be one array of weights, {shape}, got "
            f"{describe(pattern)}"
            '; a list of edges needs implementation="SPARSE"'
        )
    nodes = math.prod(sizes)
    return _check_signs(layer, jnp.asarray(pattern).reshape(n, nodes, nodes))


class _Edges(NamedTuple):
    """The edges of n graphs.

    Attributes:
      senders, receivers: (n, edges), numbers of nodes. Both are -1 in padding. A sender
        that is not a node has the number of nodes, and sends NaN.
      weights: (n, edges), or None for 1.
    """

    senders: Array
    receivers: Array
    weights: Array | None


def _edges(layer: stax.Aggregate, pattern: PyTree, n: int, sizes: Shape) -> _Edges:
    """Return the edges of a pattern, with one number for each node."""
    index, weights = pattern, None
    if isinstance(pattern, tuple | list) and len(pattern) == 2:
        index, weights = pattern
    shape: Shape = getattr(index, "shape", ())
    rank = len(sizes)
    if rank == 1 and len(shape) == 3:
        shape = (*shape[:2], 1, *shape[2:])
    fits = len(shape) == 4 and (shape[0], *shape[2:]) == (n, rank, 2)
    if not fits or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            f"{layer!r}: pattern must be integers ({n}, edges, "
            f"{'' if rank == 1 else f'{rank}, '}2), or a pair of them and their "
            f"weights ({n}, edges), got {describe(pattern)}"
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
    outside = (index >= lift(limits, index)).any((2, 3)) & ~padding
    if not isinstance(outside, jax.core.Tracer) and outside.any():
        raise ValueError(
            f"{layer!r}: pattern must name nodes below {sizes}, got {int(index.max())}"
        )
    if weights is not None:
        weights = _check_signs(layer, jnp.asarray(weights))
        weights = jnp.where(outside, jnp.nan, weights)
    strides = [math.prod(sizes[i + 1 :]) for i in range(rank)]
    by_axis = jnp.asarray(strides, index.dtype)[:, None]
    node = jnp.sum(index * lift(by_axis, index), axis=2)
    node = jnp.where(padding[..., None], -1, node)
    nowhere = jnp.asarray([math.prod(sizes), 0], index.dtype)
    node = jnp.where(outside[..., None], lift(nowhere, node), node)
    return _Edges(node[..., 0], node[..., 1], weights)


def _sum_over_edges(x: Array, edges: _Edges) -> Array:
    """Return the sums for x (n, nodes, c), with the nodes of all graphs as one axis."""
    n, nodes, c = x.shape
    senders, receivers, weights = edges
    first = jnp.arange(n)[:, None] * nodes
    source = jnp.where(senders < nodes, first + jnp.maximum(senders, 0), n * nodes)
    # Padding sends to no node.
    target = jnp.where(receivers < 0, n * nodes, first + receivers)
    rows = x.reshape(n * nodes, c)
    sent = rows.at[source.reshape(-1)].get(mode="fill", fill_value=jnp.nan)
    if weights is not None:
        sent = sent * weights.reshape(-1, 1).astype(x.dtype)
    out = jax.ops.segment_sum(sent, target.reshape(-1), num_segments=n * nodes)
    return out.reshape(x.shape)


def _squared(edges: _Edges) -> _Edges:
    """Return edges whose total weight between two nodes is the square of the total.

    Each weight is multiplied by the total for its two nodes, which several edges may
    join.
    """
    senders, receivers, weights = edges
    if weights is None:
        weights = jnp.ones(senders.shape)

    def totals(senders: Array, receivers: Array, weights: Array) -> Array:
        order = jnp.lexsort((senders, receivers))
        ends = jnp.stack([senders, receivers])[:, order]
        group = jnp.cumsum((ends != jnp.roll(ends, 1, axis=1)).any(0))
        total = jax.ops.segment_sum(weights[order], group, len(order) + 1)
        return jnp.zeros_like(weights).at[order].set(total[group])

    total = jax.vmap(totals)(senders, receivers, weights)
    return _Edges(senders, receivers, weights * total)


def _check_signs(layer: stax.Aggregate, weights: Array) -> Array:
    """Return the weights, with NaN for negative ones if these are not allowed."""
    signed = (jnp.signedinteger, jnp.floating)
    if layer.signed or not any(jnp.issubdtype(weights.dtype, kind) for kind in signed):
        return weights
    negative = weights < 0
    if not isinstance(negative, jax.core.Tracer) and negative.any():
        raise ValueError(
            f"{layer!r}: pattern must not have negative weights, got "
            f"{float(weights.min()):g}; use Aggregate(..., signed=True) for them"
        )
    weights = weights.astype(jnp.result_type(weights, float))
    return jnp.where(negative, jnp.nan, weights)
