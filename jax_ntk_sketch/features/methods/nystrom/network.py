"""Method "nystrom" for fully connected networks: exact kernels against landmarks."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import at_least_float32
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import Context, Step, layer_by_layer, network_rule
from jax_ntk_sketch.kernels import rpcholesky, supports_exact_kernel
from jax_ntk_sketch.kernels.exact import diagonal_kernels, pairwise_kernels
from jax_ntk_sketch.kernels.nystrom import choose_uniform, principal_sqrt
from jax_ntk_sketch.methods import Nystrom

# Operations per entry of a kernel that a Relu takes: the arc-cosine functions.
FLOPS_PER_KERNEL_ENTRY = 30

# Landmarks are chosen among so many of a sample, or twice as many as them if more.
_CANDIDATES = 4096


@network_rule.register
def nystrom_network_steps(
    method: Nystrom, net: stax.Layer, spec: Spec, context: Context
) -> list[Step]:
    by_layers = layer_by_layer(
        net, spec, context
    )  # which also finds mistakes in the network
    if not is_fully_connected(net):
        return by_layers
    first, rest = _flattening(net)
    flat = layer_by_layer(first, spec, context)
    spec = flat[-1].single_spec if flat else spec
    if spec.shape:
        return by_layers
    return [*flat, _kernel_stage(method, rest, spec, context)]


def is_fully_connected(net: stax.Layer) -> bool:
    """Whether the exact kernel of flat examples can be read off `net`, with a Relu."""
    _, rest = _flattening(net)
    layers = stax.walk(rest, into_branches=True)
    nonlinear = any(isinstance(layer, stax.Activation) for layer in layers)
    return nonlinear and supports_exact_kernel(rest)


def _flattening(net: stax.Layer) -> tuple[stax.Serial, stax.Serial]:
    """What only flattens the inputs, and the layers behind it."""
    layers = list(stax.walk(net))
    flat = list(
        itertools.takewhile(
            lambda x: isinstance(x, stax.Flatten | stax.Identity), layers
        )
    )
    return stax.serial(*flat), stax.serial(*layers[len(flat) :])


def _kernel_stage(
    method: Nystrom, net: stax.Serial, spec: Spec, context: Context
) -> Step:
    """All of the network at once: its exact kernel with the landmarks."""
    d, m = spec.nngp_dim, context.max_columns
    slots = math.ceil(method.oversample * m)
    kind = "ntk" if context.wants_ntk else "nngp"

    def kernel(x: jax.Array, z: jax.Array | None = None) -> jax.Array:
        return getattr(pairwise_kernels(net, x, z), kind)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"landmarks": jnp.zeros((slots, d)), "root": jnp.zeros((slots, m))}

    @jax.jit
    def learn(key: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        first, second = jax.random.split(key)
        x = x[candidates(first, len(x), slots)]
        own = getattr(diagonal_kernels(net, x), kind)
        num = min(slots, len(x))
        z = x[choose(method, second, lambda i: kernel(x, x[i]), own, num)]
        # A small sample leaves landmarks that are not used.
        more = [(0, slots - num), (0, 0)]
        root = principal_sqrt(kernel(x, z), kernel(z), m)
        return {"landmarks": jnp.pad(z, more), "root": jnp.pad(root, more)}

    def fit(key: jax.Array, f: Features) -> dict[str, jax.Array]:
        check_sample(f)
        return learn(key, at_least_float32(f.nngp))

    def apply(params: Any, f: Features) -> Features:
        x = at_least_float32(f.nngp)
        z, root = (params[name].astype(x.dtype) for name in ("landmarks", "root"))
        phi = jnp.matmul(kernel(x, z), root, precision=jax.lax.Precision.HIGHEST)
        phi = phi.astype(f.nngp.dtype)
        both = (phi[:, :0], phi) if context.wants_ntk else (phi, phi[:, :0])
        return Features(*both, f.nngp_diag)

    nonlinear = sum(
        isinstance(layer, stax.Activation)
        for layer in stax.walk(net, into_branches=True)
    )
    return Step(
        name=f"kernel with {slots} landmarks",
        spec=Spec(0, m) if context.wants_ntk else Spec(m, 0),
        apply=apply,
        init=init,
        flops=(2 * d + FLOPS_PER_KERNEL_ENTRY * nonlinear + 2 * m) * slots,
        live_elements=d + 4 * slots + m,
        fit=fit,
        fit_elements=most_candidates(slots) * (d + 3 * slots + m),
    )


def most_candidates(slots: int) -> int:
    """Among how many examples `slots` landmarks are chosen at most."""
    return max(_CANDIDATES, 2 * slots)


def candidates(key: jax.Array, n: int, slots: int) -> jax.Array:
    """Indices of the examples among which `slots` landmarks are chosen."""
    most = most_candidates(slots)
    return jnp.arange(n) if n <= most else choose_uniform(key, n, most)


def choose(
    method: Nystrom,
    key: jax.Array,
    column: Callable[[jax.Array], jax.Array],
    own: jax.Array,
    num: int,
) -> jax.Array:
    """Indices of `num` landmarks; see `rpcholesky` for the arguments."""
    if num == len(own):
        return jnp.arange(num)
    if method.landmarks == "uniform":
        return choose_uniform(key, len(own), num)
    return rpcholesky(key, column, own, num)


def check_sample(f: Features) -> None:
    """Checks the features of a sample, their values only where they are known.

    Raises:
      ValueError: no example, or one that is not finite.
    """
    if not len(f.nngp):
        raise ValueError(
            "NetworkFeatureMap.init: example must hold at least one example"
        )
    if isinstance(f.nngp, jax.core.Tracer):
        return
    bad = ~jnp.isfinite(f.nngp).reshape(len(f.nngp), -1).all(1)
    if bad.any():
        raise ValueError(
            "NetworkFeatureMap.init: example must be finite, but its row "
            f"{int(bad.argmax())} has a NaN, an infinity or overflows; leave it out"
        )
