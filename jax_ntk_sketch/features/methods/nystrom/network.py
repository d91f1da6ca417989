r"""Method "nystrom" for fully connected networks: exact kernels with landmarks.

With landmarks z chosen from a sample and K the exact kernel of the network, the
features of an example x are :math:`K(x, z) R`. The columns of :math:`K_{zz}^{1/2} R`
are principal directions of the sample (`kernels.nystrom.principal_sqrt`), whose rows
are scaled first so that all count alike.
"""

import itertools
import math

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._numerics import at_least_float32, matmul
from jax_ntk_sketch._typing import Array, Key, PyTree
from jax_ntk_sketch.features.methods.nystrom import sampling
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import Context, Step, layer_by_layer, network_rule
from jax_ntk_sketch.kernels import supports_exact_kernel
from jax_ntk_sketch.kernels.exact import diagonal_kernels, pairwise_kernels
from jax_ntk_sketch.methods import Nystrom


@network_rule.register
def nystrom_network_steps(
    method: Nystrom, net: stax.Layer, spec: Spec, context: Context
) -> list[Step]:
    # Built in any case, because this finds mistakes in the network.
    steps_of_layers = layer_by_layer(net, spec, context)
    if not replaces_network(net):
        return steps_of_layers
    flattening, rest = _split_flattening(net)
    steps = layer_by_layer(flattening, spec, context)
    flat = steps[-1].single_spec if steps else spec
    if flat.shape:
        return steps_of_layers
    return [*steps, _kernel_step(method, rest, flat.nngp_dim, context)]


def replaces_network(net: stax.Layer) -> bool:
    """Return whether the method replaces `net`, on flat examples, by one step."""
    return _num_activations(net) > 0 and supports_exact_kernel(net)


def _num_activations(net: stax.Layer) -> int:
    layers = stax.walk(net, into_branches=True)
    return sum(isinstance(layer, stax.Activation) for layer in layers)


def _split_flattening(net: stax.Layer) -> tuple[stax.Serial, stax.Serial]:
    """Return the layers that only flatten the inputs, and the layers after them."""
    layers = list(stax.walk(net))
    flattening = list(
        itertools.takewhile(
            lambda layer: isinstance(layer, stax.Flatten | stax.Identity), layers
        )
    )
    return stax.serial(*flattening), stax.serial(*layers[len(flattening) :])


def _kernel_step(
    method: Nystrom, net: stax.Serial, input_dim: int, context: Context
) -> Step:
    """Return the step of the whole network: its exact kernel with the landmarks."""
    kind, columns = context.kind, context.max_columns
    num_landmarks = math.ceil(method.oversample * columns)

    def kernel(x: Array, z: Array | None = None) -> Array:
        return getattr(pairwise_kernels(net, x, z), kind)

    def init(key: Key) -> dict[str, Array]:
        return {
            "landmarks": jnp.zeros((num_landmarks, input_dim)),
            "root": jnp.zeros((num_landmarks, columns)),
        }

    @jax.jit
    def candidates(key: Key, x: Array) -> tuple[Array, Array]:
        rows = sampling.candidate_rows(key, len(x), num_landmarks)
        return sampling.padded(x[rows])

    # The part that takes seconds to compile, once for several numbers of rows.
    @jax.jit
    def learn(key: Key, x: Array, valid: Array) -> tuple[dict[str, Array], Array]:
        diagonal = getattr(diagonal_kernels(net, x), kind)
        found = sampling.learn_directions(
            method,
            key,
            lambda rows, others: kernel(x[rows], None if others is rows else x[others]),
            diagonal,
            valid,
            weights=sampling.weights(method.normalize is not False, diagonal),
            num_landmarks=min(num_landmarks, len(x)),
            columns=columns,
        )
        params = {"landmarks": x[found.chosen], "root": found.root}
        return sampling.pad_landmarks(params, num_landmarks), found.left_out

    def fit(key: Key, f: Features) -> dict[str, Array]:
        x = sampling.checked_sample(f, (columns,)).nngp
        candidates_key, landmarks_key = jax.random.split(key)
        params, left_out = learn(landmarks_key, *candidates(candidates_key, x))
        sampling.warn_left_out(left_out, min(num_landmarks, len(x)))
        return params

    def apply(params: dict[str, PyTree], f: Features) -> Features:
        x = at_least_float32(f.nngp)
        z, root = (params[name].astype(x.dtype) for name in ("landmarks", "root"))
        phi = matmul(kernel(x, z), root).astype(f.nngp.dtype)
        return Features.of_kind(kind, phi, f.nngp_diag)

    flops_per_entry = sampling.FLOPS_PER_KERNEL_ENTRY * _num_activations(net)
    return Step(
        name=f"kernel with {num_landmarks} landmarks",
        spec=Spec.of_kind(kind, columns),
        apply=apply,
        init=init,
        fit=fit,
        flops=(2 * input_dim + flops_per_entry + 2 * columns) * num_landmarks,
        live_elements=input_dim + 4 * num_landmarks + columns,
        fit_elements=sampling.max_candidates(num_landmarks)
        * (input_dim + 3 * num_landmarks + columns),
    )
