r"""The sums of all devices, by one reduction that keeps the digits of each.

A device d holds :math:`T_d + C_d`, float32 matrices whose sum has twice float32's
digits (`gram`). Adding the :math:`T_d` in float32 would lose them. But each is a Gram
matrix, and so is their sum G, whence by Cauchy and Schwarz

.. math:: \sum_d |T_{d,ij}| \le \sqrt{G_{ii} G_{jj}} \le 2^{e_i + e_j}.

Round :math:`T_d` to multiples of :math:`2^{e_i + e_j - 22}`: sums of these are integers
of at most 24 bits in that unit, which float32 adds without error, in any order. What
the rounding left is :math:`2^{-23}` as large; it is added with the :math:`C_d`.

Source: the splitting is the one of `gram`, after Ozaki, Ogita, Oishi, Rump (2012).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ntk_sketch.linear_model.gram import two_sum
from jax_ntk_sketch.linear_model.ridge import RidgeState
from jax_ntk_sketch.sharding import axis_name

__all__ = ["reduce_over", "ridge_psum"]


def ridge_psum(state: RidgeState, axis: str) -> RidgeState:
    r"""The state of the examples of all devices, inside `jax.shard_map` or `vmap`.

    As `ridge_merge` of all of them, to 1e-13 or so of :math:`\sqrt{G_{ii} G_{jj}}`.

    Args:
      state: that of this device.
      axis: the name of the mesh's axis.

    Returns:
      `RidgeState`, the same on all devices.

    Cost: one `psum` of the state, 8 (m + t + 1)^2 bytes in float32, and one of its
    diagonal.

    >>> from jax_ntk_sketch.linear_model import ridge_init, ridge_update
    >>> def device(phi, y):
    ...     return ridge_psum(ridge_update(ridge_init(3, None), phi, y), "data")
    >>> phi = jax.random.normal(jax.random.key(0), (2, 50, 3))
    >>> states = jax.vmap(device, axis_name="data")(phi, phi[..., 0])
    >>> [float(count) for count in states.count]
    [100.0, 100.0]
    """
    total, carry = state.total, state.carry
    # Zeros on the diagonal go with zeros in their row; any small exponent does.
    diagonal = jax.lax.psum(jnp.diagonal(total), axis)
    _, exponent = jnp.frexp(jnp.where(diagonal > 0, diagonal, 1e-30))
    half = (exponent + 1) // 2
    bits = jnp.finfo(total.dtype).nmant - 1
    # Not below what float32 holds of the rest.
    power = jnp.maximum(half[:, None] + half - bits, -100)
    step = jnp.ldexp(jnp.ones((), total.dtype), power)
    high = jnp.round(total / step) * step
    high, low = jax.lax.psum((high, (total - high) + carry), axis)
    total, carry = two_sum(high, low)
    return dataclasses.replace(state, total=total, carry=carry)


def reduce_over(mesh: Mesh, state: RidgeState) -> RidgeState:
    """The state of all devices of all processes, from one of each device.

    Args:
      mesh: of all.
      state: total and carry (k, size, size), a row on each of this process's k devices.
    """
    rows = NamedSharding(mesh, PartitionSpec(axis_name("reduce_over", mesh)))

    def everywhere(mine: jax.Array) -> jax.Array:
        shape = (mesh.size, *mine.shape[1:])
        shards = [shard.data for shard in mine.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, rows, shards)

    out = _reduce(mesh, jax.tree.map(everywhere, state))
    return jax.tree.map(lambda a: a.addressable_data(0), out)


@functools.partial(jax.jit, static_argnums=0)
def _reduce(mesh: Mesh, states: RidgeState) -> RidgeState:
    axis = axis_name("reduce_over", mesh)
    run = jax.shard_map(
        lambda s: ridge_psum(jax.tree.map(lambda a: a[0], s), axis),
        mesh=mesh,
        in_specs=PartitionSpec(axis),
        out_specs=PartitionSpec(),
    )
    return run(states)
