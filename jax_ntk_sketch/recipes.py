"""Networks of the literature, as records of `jax_ntk_sketch.stax`."""

from jax_ntk_sketch import stax

__all__ = ["cntk", "conv1d", "gntk", "myrtle", "wide_resnet"]

# Convolutions at each of the three resolutions.
_MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}
_RELU = stax.Relu()


def myrtle(
    depth: int = 5,
    *,
    activation: stax.Activation = _RELU,
    W_std: float = 2**0.5,
    b_std: float | None = None,
    width: int = 512,
    out_dim: int = 10,
) -> stax.Serial:
    """The Myrtle network of 5, 7 or 10 layers.

    3 x 3 convolutions with zero padding, each with an activation, at three resolutions;
    2 x 2 average pools between them, the average over all that is left at the end (on
    images of 32 x 32 pixels: the three last 2 x 2 pools of the original), `Dense`.

    Args:
      depth: 5, 7 or 10.
      activation: a record, `Relu` by default. `stax.ExpNormalized()` is the normalised
        Gaussian; variances stay as they are with `W_std=1.0` then.
      W_std, b_std: of all layers.
      width: channels of the finite network; kernels do not depend on it.
      out_dim: outputs of the finite network.

    Returns:
      A `stax.Serial` for images (n, h, w, c) of at least 4 x 4 pixels.

    Raises:
      TypeError: `activation` is no record of an activation.
      ValueError: another depth.

    Source: Shankar et al., "Neural Kernels Without Tangents", arXiv 2003.02237, which
    has both activations; Han et al., arXiv 2209.04121, Section 5.

    >>> sum(isinstance(layer, stax.Conv) for layer in stax.walk(myrtle(7)))
    6
    >>> myrtle(5, activation=stax.ExpNormalized(), W_std=1.0).layers[1]
    stax.ExpNormalized()
    """
    if depth not in _MYRTLE:
        raise ValueError(f"myrtle: depth must be 5, 7 or 10, got {depth!r}")
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
    _check_count("cntk", "depth", depth)
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
    """The network of the graph neural tangent kernel.

    Blocks of a sum over the edges into each node (with a loop from the node to itself,
    as `jax_ntk_sketch.graphs.pad` adds) and fully connected layers with `Relu`; at the
    end the sum over the nodes and `Dense` of `W_std` 1.

    Args:
      num_blocks: >= 1.
      mlp_depth: fully connected layers in each block, R of the paper, >= 1.
      readout: "sum" over nodes, or "mean".
      implementation: of `stax.Aggregate`: "SPARSE" for a list of edges, or "DENSE".
      W_std, b_std: of the layers in blocks. With biases, padded nodes need a mask.
      width: channels of the finite network; kernels do not depend on it.
      out_dim: outputs of the finite network.

    Returns:
      A `stax.Serial` for graphs (n, nodes, channels).

    Raises:
      ValueError: a number that is no positive integer; another readout.

    Source: Du et al., arXiv 1905.13192, Section 3. Its scaling by degrees are weights
    (`pad(..., normalize=True)`); its kernel is that of the outputs times channels, as
    inputs are divided by their root here.

    >>> gntk(1, 2).layers[0]
    stax.Aggregate(implementation='SPARSE')
    """
    for name, value in (("num_blocks", num_blocks), ("mlp_depth", mlp_depth)):
        _check_count("gntk", name, value)
    pools = {"sum": stax.GlobalSumPool(), "mean": stax.GlobalAvgPool()}
    if readout not in pools:
        raise ValueError(f'gntk: readout must be "sum" or "mean", got {readout!r}')
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
    """Convolutions along a signal with `Relu`, and global average pooling.

    Args:
      depth: convolutions, >= 1.
      filter_size: steps that a filter sees, >= 1; ends are filled up with zeros.
      strides: of the first convolution.
      pool: steps that are averaged behind every convolution but the last; 1: none.
      W_std, b_std: of all layers.
      width: channels of the finite network; kernels do not depend on it.
      out_dim: outputs of the finite network.

    Returns:
      A `stax.Serial` for signals (n, steps, channels).

    Raises:
      ValueError: a number that is no positive integer.

    >>> len(conv1d(3, pool=2).layers)
    10
    """
    numbers = (
        ("depth", depth),
        ("filter_size", filter_size),
        ("strides", strides),
        ("pool", pool),
    )
    for name, value in numbers:
        _check_count("conv1d", name, value)

    def block(step: int) -> tuple[stax.Layer, ...]:
        conv = stax.Conv(width, (filter_size,), (step,), "SAME", W_std, b_std)
        return conv, stax.Relu()

    between = (stax.AvgPool((pool,), (pool,)),) if pool > 1 else ()
    layers = block(strides)
    for _ in range(depth - 1):
        layers += between + block(1)
    head = (stax.GlobalAvgPool(), stax.Dense(out_dim, W_std, b_std))
    return stax.serial(*layers, *head)


def wide_resnet(
    block_size: int = 4,
    k: int = 1,
    num_classes: int = 10,
    *,
    W_std: float = 2**0.5,
    b_std: float | None = None,
) -> stax.Serial:
    """The wide residual network of 6 `block_size` + 4 layers.

    A 3 x 3 convolution; three groups of residual blocks with 16 k, 32 k and 64 k
    channels, the last two beginning with strides of 2; the average over all positions;
    `Dense`. A block adds `Relu`, convolution, `Relu`, convolution to its input, or to a
    convolution of it where a group begins. There is no batch normalisation.

    Args:
      block_size: residual blocks in each group, >= 1.
      k: multiplies the channels of the finite network, >= 1; kernels do not depend on
        it.
      num_classes: outputs of the finite network.
      W_std, b_std: of all layers; 1 and None in the example of Neural Tangents.

    Returns:
      A `stax.Serial` for images (n, h, w, c).

    Raises:
      ValueError: `block_size` or `k` is no positive integer.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", arXiv 1605.07146; without
    normalisation as the example of Neural Tangents, arXiv 1912.02803.

    >>> sum(isinstance(x, stax.Conv) for x in stax.walk(wide_resnet(2), into_branches=True))
    16
    """
    for name, value in (("block_size", block_size), ("k", k)):
        _check_count("wide_resnet", name, value)

    def conv(channels: int, stride: int = 1) -> stax.Conv:
        return stax.Conv(channels, (3, 3), (stride,) * 2, "SAME", W_std, b_std)

    def block(channels: int, shortcut: stax.Layer, stride: int = 1) -> stax.Serial:
        first, second = conv(channels, stride), conv(channels)
        path = stax.serial(stax.Relu(), first, stax.Relu(), second)
        branches = stax.parallel(path, shortcut)
        return stax.serial(stax.FanOut(2), branches, stax.FanInSum())

    layers: list[stax.Layer] = [conv(16)]
    for channels, stride in ((16 * k, 1), (32 * k, 2), (64 * k, 2)):
        layers.append(block(channels, conv(channels, stride), stride))
        layers += [block(channels, stax.Identity())] * (block_size - 1)
    head = (stax.GlobalAvgPool(), stax.Dense(num_classes, W_std, b_std))
    return stax.serial(*layers, *head)


def _check_count(owner: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {name} must be a positive integer, got {value!r}")
