"""Attention between all positions."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax_ntk_sketch._checks import (
    check_choice,
    check_flag,
    check_number,
    set_checked,
    set_sizes,
)
from jax_ntk_sketch._typing import Array
from jax_ntk_sketch.stax.base import Layer, check_callable, set_axes

_MECHANISMS = ("SOFTMAX", "IDENTITY", "ABS", "RELU")
_EMBEDDINGS = ("NONE", "SUM", "CONCAT")


@dataclasses.dataclass(frozen=True, repr=False)
class GlobalSelfAttention(Layer):
    r"""Self-attention of infinitely many heads.

    Inputs (n, *spatial, c) have outputs (n, *spatial, n_chan_out). The output at
    position i is a linear function of the values at all positions j, weighted by
    :math:`G_{ij} = \zeta(\langle q_i, k_j \rangle)`.

    With `linear_scaling` the weights converge to a function of the kernel of the
    example between its positions. Features are mixed by these weights, which is exact
    for every method. Without it and with "IDENTITY", kernels are cubic in the kernel of
    the input, and features are sketched. Other mechanisms have no closed form without
    `linear_scaling`, and their records have finite networks only.

    Args:
      n_chan_out, n_chan_key, n_chan_val, n_heads: widths of the finite network.
      linear_scaling: True for keys that are the queries, and products divided by
        `n_chan_key`. False for independent keys, and products divided by its square
        root.
      W_key_std, W_value_std, W_query_std, W_out_std: the standard deviations of the
        weights, >= 0.
      b_std: the standard deviation of the biases of the output, >= 0; None for no
        biases.
      attention_mechanism: the function ζ: "SOFTMAX", "IDENTITY", "ABS" or "RELU".
      pos_emb_type: random embeddings of the positions: "NONE", "SUM" or "CONCAT".
      pos_emb_p_norm: the power p of the distance of two positions, which is the sum of
        |differences|^p over the spatial axes.
      pos_emb_decay_fn: the covariance of two embeddings as an elementwise function of
        their distance, in `jax.numpy`. None for independent embeddings.
      n_chan_pos_emb: the channels of the embeddings with "CONCAT", which weight their
        kernel; None for the channels of the input.
      W_pos_emb_std: the scale of the embeddings, >= 0.
      val_pos_emb: whether values have embeddings too.
      batch_axis: must be 0.
      channel_axis: -1, or 1 for channels first.

    Raises:
      TypeError: a width is not an integer, a deviation not a number, a flag not a bool,
        or `pos_emb_decay_fn` not a function.
      ValueError: an argument is out of range or unknown; `n_chan_pos_emb` is given
        without "CONCAT".

    Cost: quadratic in the number of positions.

    >>> from jax_ntk_sketch import stax
    >>> attention = stax.GlobalSelfAttention(64, 64, 64, 8, pos_emb_type="SUM")
    >>> net = stax.serial(stax.Conv(64, (3,)), attention, stax.GlobalAvgPool())

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
    pos_emb_decay_fn: Callable[[Array], Array] | None = None
    n_chan_pos_emb: int | None = None
    W_pos_emb_std: float = 1.0
    val_pos_emb: bool = False
    batch_axis: int = 0
    channel_axis: int = -1

    def __post_init__(self) -> None:
        widths = ("n_chan_out", "n_chan_key", "n_chan_val", "n_heads", "n_chan_pos_emb")
        set_sizes(self, *widths)
        numbers = [f.name for f in dataclasses.fields(self) if f.type is float]
        set_checked(self, check_number, *numbers, "b_std", least=0)
        set_checked(self, check_flag, "linear_scaling", "val_pos_emb")
        set_checked(self, _check_name, "attention_mechanism", choices=_MECHANISMS)
        set_checked(self, _check_name, "pos_emb_type", choices=_EMBEDDINGS)
        set_checked(self, check_callable, "pos_emb_decay_fn")
        if self.n_chan_pos_emb is not None and self.pos_emb_type != "CONCAT":
            raise ValueError(
                "GlobalSelfAttention: n_chan_pos_emb must be None if pos_emb_type is "
                f'not "CONCAT", got {self.n_chan_pos_emb} with {self.pos_emb_type!r}'
            )
        set_axes(self)


def _check_name(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return one of the choices, also for a member of an enumeration of that name."""
    return check_choice(owner, name, getattr(value, "name", value), choices)
