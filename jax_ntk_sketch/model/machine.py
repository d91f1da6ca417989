"""The network, its kernel and the scaling of inputs, chosen where none is given."""

import dataclasses
import math

import numpy as np

from jax_ntk_sketch import recipes, stax
from jax_ntk_sketch._typing import KINDS, Kind
from jax_ntk_sketch.kernels import supports_exact_kernel
from jax_ntk_sketch.model import networks
from jax_ntk_sketch.model.training import Training, some_rows
from jax_ntk_sketch.preprocessing.inputs import Inputs
from jax_ntk_sketch.selection.rows import Rows, dense_coordinates

# Numbers per image up to which color images are whitened: the decomposition takes half
# a minute at 3072 and grows with the cube.
_MOST_WHITENED = 4096

# The fewest images for each of these numbers. Fewer ones are whitened in other ways
# than new ones, which leave-one-out errors do not see: 1000 CIFAR images had 0.47, and
# new ones 0.57.
_IMAGES_PER_NUMBER = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Machine:
    """The network, the kernel and the scaling of inputs that were settled on.

    Attributes:
      net: the network.
      get: its kernel.
      inputs: the steps between examples and the network; None for sparse examples and
        graphs.
      sentences: what was settled, and why.
    """

    net: stax.Layer
    get: Kind
    inputs: Inputs | None
    sentences: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """Whether the kernel of two examples is known, and cheap."""
        flat = self.inputs is None or len(self.inputs.shape) == 1
        return flat and supports_exact_kernel(self.net)


def settle(
    net: stax.Layer | None, get: Kind | None, data: Training, rng: np.random.Generator
) -> Machine:
    """Return the network, the kernel and the scaling of inputs."""
    if data.extras:
        net = recipes.gntk(2) if net is None else net
        return Machine(net, get or "ntk", None, (f"The network is {net!r}.",))
    if net is None and len(data.shape) > 1:
        net = recipes.cntk(3)
    if net is not None and len(data.shape) > 1 and not supports_exact_kernel(net):
        inputs = _image_inputs(data).learned(data.x)
        steps = f"The network is {net!r}.", *inputs.steps()
        return Machine(net, get or "ntk", inputs, steps)
    sentences: list[str] = []
    scaled: Inputs | None = None
    rows = some_rows(len(data), networks.MOST_ROWS, rng)
    codes, standard = data.codes[rows], networks.standard()
    judge = net if net is not None and supports_exact_kernel(net) else standard
    if data.is_sparse:
        own = Rows(data.x[rows], None, {})
        x = dense_coordinates(own, own.take(np.arange(0)))[0].x
    else:
        ways = networks.scalings(data.raw.prepare(data.x), data.raw)
        kind = get or "ntk"
        found = {
            name: networks.losses([judge], (kind,), way(data.x[rows]), codes)
            for name, way in ways.items()
        }
        name = min(found, key=lambda name: found[name][judge, kind])
        scaled, x = ways[name], ways[name](data.x[rows])
        sentences.append(f"Inputs are {name}.")
    if net is not None:
        sentences.append(f"The network is {net!r}.")
        return Machine(net, get or "ntk", scaled, tuple(sentences))
    kinds = KINDS if get is None else (get,)
    losses = networks.losses(networks.candidates(), kinds, x, codes)
    net, kind = min(losses, key=lambda pair: losses[pair])
    sentences.append(
        f"The network is {net!r} with its {kind} kernel, the best of {len(losses)} by "
        f"leave-one-out errors on {len(rows)} rows."
    )
    return Machine(net, kind, scaled, tuple(sentences))


def _image_inputs(data: Training) -> Inputs:
    """Return the steps for images: color ones are standardized and whitened."""
    if len(data.shape) > 3:
        raise ValueError(
            f"fit: x must hold images (n, height, width, channels), got {data.shape}"
        )
    shape = data.shape if len(data.shape) == 3 else (*data.shape, 1)
    color = shape[-1] > 1
    most = min(_MOST_WHITENED, len(data) // _IMAGES_PER_NUMBER)
    zca_reg = 0.1 if color and math.prod(shape) <= most else None
    return Inputs(shape, data.x.dtype == np.uint8, False, color, zca_reg)
