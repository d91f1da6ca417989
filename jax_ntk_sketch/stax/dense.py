"""The fully connected layer."""

import dataclasses

from jax_ntk_sketch._checks import set_sizes
from jax_ntk_sketch.stax.base import Layer, set_axes, set_weights


@dataclasses.dataclass(frozen=True, repr=False)
class Dense(Layer):
    r"""A fully connected layer, :math:`W x / \sqrt{d} + b`.

    Inputs (n, ..., d) have outputs (n, ..., out_dim). Weights and biases are
    independent normal with standard deviations `W_std` and `b_std` in the "ntk"
    parameterization.

    Args:
      out_dim: the width of the finite network; in the "ntk" parameterization the
        kernels of infinite width do not depend on it.
      W_std: the standard deviation of the weights, >= 0.
      b_std: the standard deviation of the biases, >= 0; None for no biases. With
        "standard" biases of deviation 0 are trained, and enter the NTK.
      batch_axis: must be 0.
      channel_axis: -1, or 1 for channels first.
      parameterization: "ntk" or "standard". In the latter the NTK depends on the
        widths of the finite network, whose parameters carry the scales `W_std` and
        `b_std`.
      s: two factors >= 1 that multiply the widths of the input and of the output in the
        finite network with "standard". As in Neural Tangents, "ntk" does not use them.

    Raises:
      TypeError: `out_dim`, `s` or an axis are not integers, or a deviation is not a
        number.
      ValueError: an argument is out of range; an axis is another one.

    >>> from jax_ntk_sketch import stax
    >>> stax.Dense(512, W_std=1.4, b_std=0.1)
    stax.Dense(512, W_std=1.4, b_std=0.1)

    Source: Sohl-Dickstein et al., arXiv 2001.07301, for "standard".
    """

    out_dim: int
    W_std: float = 1.0
    b_std: float | None = None
    batch_axis: int = 0
    channel_axis: int = -1
    parameterization: str = "ntk"
    s: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        set_sizes(self, "out_dim")
        set_axes(self)
        set_weights(self)
