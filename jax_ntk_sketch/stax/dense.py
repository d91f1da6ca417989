"""The fully connected layer."""

import dataclasses

from jax_ntk_sketch.stax.base import (
    Layer,
    positive_int,
    scale,
    set_field,
    set_parameterization,
)


@dataclasses.dataclass(frozen=True, repr=False)
class Dense(Layer):
    r"""A fully connected layer, :math:`W x / \sqrt{d} + b`.

    Weights and biases are independent normal with standard deviations `W_std` and
    `b_std` ("ntk" parameterization), as in `neural_tangents.stax.Dense`.

    Args:
      out_dim: width of the finite network; infinite-width kernels do not depend
        on it.
      W_std: standard deviation of the weights, >= 0.
      b_std: standard deviation of the biases, >= 0; None for no bias.
      parameterization: "ntk" or "standard", as in Neural Tangents: in the latter the
        NTK depends on the widths of the finite network, and the network's parameters
        carry the scales `W_std` and `b_std`.
      s: for "standard": the factors by which the widths of the input and of the output
        are multiplied in the finite network.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.

    Source: Sohl-Dickstein et al., arXiv 2001.07301, for "standard".
    """

    out_dim: int
    W_std: float = 1.0
    b_std: float | None = None
    parameterization: str = "ntk"
    s: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        set_field(self, "out_dim", positive_int(self, "out_dim", self.out_dim))
        set_field(self, "W_std", scale(self, "W_std", self.W_std))
        if self.b_std is not None:
            set_field(self, "b_std", scale(self, "b_std", self.b_std))
        set_parameterization(self)
