"""Networks of the literature, as records of `jax_ntk_sketch.stax`."""

from jax_ntk_sketch import stax

__all__ = ["cntk", "myrtle"]

# Convolutions at each of the three resolutions.
_MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}


def myrtle(
    depth: int = 5,
    *,
    W_std: float = 2**0.5,
    b_std: float | None = None,
    width: int = 512,
    out_dim: int = 10,
) -> stax.Serial:
    """The Myrtle network of 5, 7 or 10 layers.

    3 x 3 convolutions with zero padding, each with `Relu`, at three resolutions; 2 x 2
    average pools between them, the average over all that is left at the end (on images
    of 32 x 32 pixels: the three last 2 x 2 pools of the original), `Dense`.

    Args:
      depth: 5, 7 or 10.
      W_std, b_std: of all layers.
      width: channels of the finite network; kernels do not depend on it.
      out_dim: outputs of the finite network.

    Returns:
      A `stax.Serial` for images (n, h, w, c) of at least 4 x 4 pixels.

    Raises:
      ValueError: another depth.

    Source: Shankar et al., "Neural Kernels Without Tangents", arXiv 2003.02237.

    >>> sum(isinstance(layer, stax.Conv) for layer in stax.walk(myrtle(7)))
    6
    """
    if depth not in _MYRTLE:
        raise ValueError(f"myrtle: depth must be 5, 7 or 10, got {depth!r}")
    block = (stax.Conv(width, (3, 3), None, "SAME", W_std, b_std), stax.Relu())
    pool = (stax.AvgPool((2, 2), (2, 2)),)
    first, second, third = (block * count for count in _MYRTLE[depth])
    head = (stax.GlobalAvgPool(), stax.Dense(out_dim, W_std, b_std))
    return stax.serial(*first, *pool, *second, *pool, *third, *head)


def cntk(
    depth: int = 3,
    *,
    pool: bool = True,
    W_std: float = 2**0.5,
    b_std: float | None = None,
    width: int = 512,
    out_dim: int = 10,
) -> stax.Serial:
    """Convolutions of 3 x 3 pixels with `Relu`, and global average pooling.

    The network of the CNTK experiments of Zandieh et al. with three layers.

    Args:
      depth: convolutions, >= 1.
      pool: 2 x 2 average pools between them; without, the network of the experiments,
        which works at full resolution throughout.
      W_std, b_std: of all layers.
      width: channels of the finite network; kernels do not depend on it.
      out_dim: outputs of the finite network.

    Returns:
      A `stax.Serial` for images (n, h, w, c).

    Raises:
      ValueError: `depth` is no positive integer.

    Source: arXiv 2106.07880, Section 5; arXiv 2104.00415, Section 5.

    >>> len(cntk(1).layers)
    4
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(f"cntk: depth must be a positive integer, got {depth!r}")
    block = (stax.Conv(width, (3, 3), None, "SAME", W_std, b_std), stax.Relu())
    between = (stax.AvgPool((2, 2), (2, 2)),) if pool else ()
    head = (stax.GlobalAvgPool(), stax.Dense(out_dim, W_std, b_std))
    return stax.serial(*(block + between) * (depth - 1), *block, *head)
