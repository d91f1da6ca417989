"""Networks of the literature, as records of `jax_ntk_sketch.stax`.

In all of them `W_std` and `b_std` are the standard deviations of the weights and the
biases of each layer; `b_std=None` stands for no biases. `width` is the number of
channels, and `out_dim` that of outputs, of the finite network. Kernels and features do
not depend on these two.
"""

from jax_ntk_sketch import stax
from jax_ntk_sketch._checks import check_choice, check_size

__all__ = ["cntk", "conv1d", "gntk", "myrtle", "wide_resnet"]

# The number of convolutions at each of the three resolutions, by depth.
_MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}


def myrtle(
    depth: int = 5,
    *,
    activation: stax.Activation = stax.Relu(),  # noqa: B008
    W_std: float = 2**0.5,
    b_std: float | None = None,
    width: int = 512,
    out_dim: int = 10,
) -> stax.Serial:
    """Return the Myrtle network of 5, 7 or 10 layers.

    It has convolutions of 3 x 3 pixels with zero padding, each with an activation, at
    three resolutions with 2 x 2 average pools between them. Global average pooling and
    `Dense` follow. On images of 32 x 32 pixels this pooling is the same as the last
    three 2 x 2 pools of the original.

    Args:
      depth: 5, 7 or 10.
      activation: a record. With the normalized Gaussian, `stax.ExpNormalized()`, use
        `W_std=1.0`, which leaves variances as they are.
      W_std, b_std, width, out_dim: see the module.

    Returns:
      A network for images (n, h, w, c) of at least 4 x 4 pixels.

    Raises:
      TypeError: `activation` is not a record of an activation.
      ValueError: `depth` is another number.

    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import stax
    >>> net = jns.recipes.myrtle(7)
    >>> sum(isinstance(layer, stax.Conv) for layer in stax.walk(net))
    6
    >>> jns.recipes.myrtle(5, activation=stax.ExpNormalized(), W_std=1.0).layers[1]
    stax.ExpNormalized()

    Source: Shankar et al., arXiv 2003.02237, for both activations; Han et al., arXiv
    2209.04121, Section 5.
    """
    check_choice("myrtle", "depth", depth, tuple(_MYRTLE))
    if not isinstance(activation, stax.Activation):
        raise TypeError(
            "myrtle: activation must be a record such as stax.Relu() or "
            f"stax.ExpNormalized(), got {activation!r}"
        )
    block = (stax.Conv(width, (3, 3), None, "SAME", W_std, b_std), activation)
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
    """Return convolutions of 3 x 3 pixels with `Relu`, and global average pooling.

    Args:
      depth: the number of convolutions, at least 1.
      pool: whether 2 x 2 average pools are between them. Without pools and with three
        convolutions, this is the network of the experiments of Zandieh et al.
      W_std, b_std, width, out_dim: see the module.

    Returns:
      A network for images (n, h, w, c).

    Raises:
      TypeError: `depth` is not an integer.
      ValueError: `depth` is less than 1.

    >>> import jax_ntk_sketch as jns
    >>> len(jns.recipes.cntk(1).layers)
    4

    Source: Zandieh et al., arXiv 2106.07880, Section 5, and arXiv 2104.00415, Section
      5.
    """
    depth = check_size("cntk", "depth", depth)
    block = (stax.Conv(width, (3, 3), None, "SAME", W_std, b_std), stax.Relu())
    between = (stax.AvgPool((2, 2), (2, 2)),) if pool else ()
    head = (stax.GlobalAvgPool(), stax.Dense(out_dim, W_std, b_std))
    return stax.serial(*(block + between) * (depth - 1), *block, *head)


def gntk(
    num_blocks: int = 2,
    mlp_depth: int = 1,
    *,
    readout: str = "sum",
    implementation: str = "SPARSE",
    W_std: float = 2**0.5,
    b_std: float | None = None,
    width: int = 512,
    out_dim: int = 1,
) -> stax.Serial:
    """Return the network of the graph neural tangent kernel.

    Each block sums over the edges into each node, which include a loop if
    `jax_ntk_sketch.graphs.pad` made them, and has fully connected layers with `Relu`.
    At the end there are a sum over the nodes and `Dense` with `W_std` 1.

    Args:
      num_blocks: the number of blocks, at least 1.
      mlp_depth: the number of fully connected layers in each block, at least 1.
      readout: "sum" over nodes, or "mean".
      implementation: "SPARSE" for a list of edges or "DENSE", as in `stax.Aggregate`.
      W_std, b_std, width, out_dim: see the module. With biases, padded nodes need a
        mask.

    Returns:
      A network for graphs (n, nodes, channels).

    Raises:
      TypeError: a number is not an integer.
      ValueError: a number is less than 1; `readout` or `implementation` is unknown.

    >>> import jax_ntk_sketch as jns
    >>> jns.recipes.gntk(1, 2).layers[0]
    stax.Aggregate(implementation='SPARSE')

    Source: Du et al., arXiv 1905.13192, Section 3. Its scaling by degrees is
    `graphs.pad(..., normalize=True)`. Its kernel is that of these outputs times the
    number of input channels.
    """
    num_blocks = check_size("gntk", "num_blocks", num_blocks)
    mlp_depth = check_size("gntk", "mlp_depth", mlp_depth)
    pools = {"sum": stax.GlobalSumPool(), "mean": stax.GlobalAvgPool()}
    check_choice("gntk", "readout", readout, tuple(pools))
    connected = (stax.Dense(width, W_std, b_std), stax.Relu()) * mlp_depth
    block = (stax.Aggregate(implementation=implementation), *connected)
    return stax.serial(*block * num_blocks, pools[readout], stax.Dense(out_dim))


def conv1d(
    depth: int = 2,
    filter_size: int = 5,
    *,
    strides: int = 1,
    pool: int = 1,
    W_std: float = 2**0.5,
    b_std: float | None = None,
    width: int = 512,
    out_dim: int = 1,
) -> stax.Serial:
    """Return convolutions along a signal with `Relu`, and global average pooling.

    Args:
      depth: the number of convolutions, at least 1.
      filter_size: the number of steps that a filter covers, at least 1. The ends are
        padded with zeros.
      strides: the stride of the first convolution, at least 1.
      pool: the number of steps that are averaged after each convolution except for the
        last; 1 for no pools.
      W_std, b_std, width, out_dim: see the module.

    Returns:
      A network for signals (n, steps, channels).

    Raises:
      TypeError: a number is not an integer.
      ValueError: a number is less than 1.

    >>> import jax_ntk_sketch as jns
    >>> len(jns.recipes.conv1d(3, pool=2).layers)
    10
    """
    depth = check_size("conv1d", "depth", depth)
    filter_size = check_size("conv1d", "filter_size", filter_size)
    strides = check_size("conv1d", "strides", strides)
    pool = check_size("conv1d", "pool", pool)

    def block(stride: int) -> tuple[stax.Layer, ...]:
        conv = stax.Conv(width, (filter_size,), (stride,), "SAME", W_std, b_std)
        return conv, stax.Relu()

    between = (stax.AvgPool((pool,), (pool,)),) if pool > 1 else ()
    layers = block(strides)
    for _ in range(depth - 1):
        layers += between + block(1)
    head = (stax.GlobalAvgPool(), stax.Dense(out_dim, W_std, b_std))
    return stax.serial(*layers, *head)


def wide_resnet(
    blocks_per_group: int = 4,
    width_factor: int = 1,
    *,
    W_std: float = 2**0.5,
    b_std: float | None = None,
    out_dim: int = 10,
) -> stax.Serial:
    """Return the wide residual network of 6 `blocks_per_group` + 4 layers.

    It has a 3 x 3 convolution and three groups of residual blocks with 16, 32 and 64
    times `width_factor` channels. The second and the third group begin with strides of
    2. Global average pooling and `Dense` follow. A block adds `Relu`, convolution,
    `Relu`, convolution to its input, or to a convolution of its input if it is the
    first of a group. There is no batch normalization.

    Args:
      blocks_per_group: the number of residual blocks in each group, at least 1.
      width_factor: multiplies the channels of the finite network, at least 1.
      W_std, b_std, out_dim: see the module.

    Returns:
      A network for images (n, h, w, c).

    Raises:
      TypeError: a number is not an integer.
      ValueError: a number is less than 1.

    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import stax
    >>> layers = stax.walk(jns.recipes.wide_resnet(2), into_branches=True)
    >>> sum(isinstance(layer, stax.Conv) for layer in layers)
    16

    Source: Zagoruyko and Komodakis, arXiv 1605.07146; without normalization as in the
    example of Neural Tangents, arXiv 1912.02803, which has `W_std` 1.
    """
    num_blocks = check_size("wide_resnet", "blocks_per_group", blocks_per_group)
    factor = check_size("wide_resnet", "width_factor", width_factor)

    def conv(channels: int, stride: int = 1) -> stax.Conv:
        return stax.Conv(channels, (3, 3), (stride,) * 2, "SAME", W_std, b_std)

    def block(channels: int, shortcut: stax.Layer, stride: int = 1) -> stax.Serial:
        first, second = conv(channels, stride), conv(channels)
        path = stax.serial(stax.Relu(), first, stax.Relu(), second)
        branches = stax.parallel(path, shortcut)
        return stax.serial(stax.FanOut(2), branches, stax.FanInSum())

    layers: list[stax.Layer] = [conv(16)]
    for channels, stride in ((16 * factor, 1), (32 * factor, 2), (64 * factor, 2)):
        layers.append(block(channels, conv(channels, stride), stride))
        layers += [block(channels, stax.Identity())] * (num_blocks - 1)
    head = (stax.GlobalAvgPool(), stax.Dense(out_dim, W_std, b_std))
    return stax.serial(*layers, *head)
