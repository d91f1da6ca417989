"""Attention between all positions."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax_ntk_sketch.stax.base import Layer, positive_int, scale, set_axes, set_field

__all__ = ["GlobalSelfAttention"]

_MECHANISMS = ("SOFTMAX", "IDENTITY", "ABS", "RELU")
_EMBEDDINGS = ("NONE", "SUM", "CONCAT")


@dataclasses.dataclass(frozen=True, repr=False)
class GlobalSelfAttention(Layer):
    r"""Self-attention of infinitely many heads, as in `neural_tangents.stax`.

    Outputs at a position are a mean of the values at all positions j, weighted by
    :math:`G_{ij} = \zeta(\langle q_i, k_j \rangle)`. With `linear_scaling` the weights
    converge to a function of the example's own kernel between its positions, so that
    features are mixed by an array that depends on these features alone: exactly, for
    every method. Without, and "IDENTITY", kernels are cubic in those of the input, and
    sketched; other mechanisms then have no closed form (the record has a finite network
    only).

    Cost: the square of the positions.

    Args:
      n_chan_out, n_chan_key, n_chan_val, n_heads: widths of the finite network.
      linear_scaling: True: keys are the queries, and products are divided by
        `n_chan_key`; False: both are independent, and products divided by its root.
      W_key_std, W_value_std, W_query_std, W_out_std: of the weights, >= 0.
      b_std: of the biases of the output, >= 0; None for none.
      attention_mechanism: "SOFTMAX", "IDENTITY", "ABS" or "RELU".
      pos_emb_type: random embeddings of the positions: "NONE", "SUM" or "CONCAT".
      pos_emb_p_norm: of the distances between positions, summed over axes to this
        power.
      pos_emb_decay_fn: such distances to covariances of the embeddings, in `jax.numpy`;
        None: those of different positions are independent.
      n_chan_pos_emb: channels of embeddings in "CONCAT"; None: as many as the input
        has. They weigh them.
      W_pos_emb_std: scale of the embeddings, >= 0.
      val_pos_emb: whether values have embeddings too.
      batch_axis: 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError, ValueError: an argument of the wrong type or range, named.

    Source: Hron et al., arXiv 2006.10540.
    """

    n_chan_out: int
    n_chan_key: int
    n_chan_val: int
    n_heads: int
    linear_scaling: bool = True
    W_key_std: float = 1.0
    W_value_std: float = 1.0
    W_query_std: float = 1.0
    W_out_std: float = 1.0
    b_std: float | None = None
    attention_mechanism: str = "SOFTMAX"
    pos_emb_type: str = "NONE"
    pos_emb_p_norm: float = 2.0
    pos_emb_decay_fn: Callable | None = None
    n_chan_pos_emb: int | None = None
    W_pos_emb_std: float = 1.0
    val_pos_emb: bool = False
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        for name in ("n_chan_out", "n_chan_key", "n_chan_val", "n_heads"):
            set_field(self, name, positive_int(self, name, getattr(self, name)))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float:
                set_field(self, field.name, scale(self, field.name, value))
            elif field.type is bool and not isinstance(value, bool):
                raise TypeError(
                    f"GlobalSelfAttention: {field.name} must be True or False, got "
                    f"{value!r}"
                )
        if self.b_std is not None:
            set_field(self, "b_std", scale(self, "b_std", self.b_std))
        _set_choice(self, "attention_mechanism", _MECHANISMS)
        _set_choice(self, "pos_emb_type", _EMBEDDINGS)
        if self.pos_emb_decay_fn is not None and not callable(self.pos_emb_decay_fn):
            raise TypeError(
                "GlobalSelfAttention: pos_emb_decay_fn must be a function, got "
                f"{self.pos_emb_decay_fn!r}"
            )
        if self.n_chan_pos_emb is not None:
            number = positive_int(self, "n_chan_pos_emb", self.n_chan_pos_emb)
            set_field(self, "n_chan_pos_emb", number)
            if self.pos_emb_type != "CONCAT":
                raise ValueError(
                    'GlobalSelfAttention: n_chan_pos_emb is for pos_emb_type="CONCAT", '
                    f"got {number} with {self.pos_emb_type!r}"
                )
        set_axes(self)


def _set_choice(record: Layer, name: str, known: tuple[str, ...]) -> None:
    value: Any = getattr(record, name)
    value = getattr(value, "name", value)  # of Neural Tangents' enumeration
    if value not in known:
        raise ValueError(
            f"{type(record).__name__}: {name} must be one of "
            f"{', '.join(map(repr, known))}, got {value!r}"
        )
    set_field(record, name, value)
