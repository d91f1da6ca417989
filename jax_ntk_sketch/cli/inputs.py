"""Preprocessing as the options name it, and the examples that maps learn from."""

import argparse
import math

from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import Key, PyTree, Shape
from jax_ntk_sketch.batches.prepared import Prepared
from jax_ntk_sketch.preprocessing.inputs import Inputs

# Examples that landmarks are chosen from; at least two for each feature.
_CANDIDATES = 4096

# Numbers per image up to which color images are whitened unasked: the decomposition
# takes half a minute at 3072 and grows with the cube.
_MAX_WHITENED = 4096


def inputs_from_options(
    example: Shape, pixels: bool, args: argparse.Namespace
) -> Inputs:
    """Return the steps that the options name, for examples of a shape.

    Raises:
      ValueError: the examples are not images, or the options do not fit them.
    """
    columns, images = args.standardize_columns, args.standardize_images
    if args.network == "fc":
        if images or args.zca:
            raise ValueError("--zca and --standardize-images are for image networks")
        columns = not pixels if columns is None else columns
        return Inputs((math.prod(example),), pixels, columns)
    if columns:
        raise ValueError("--standardize-columns is for --network fc")
    if len(example) not in (2, 3):
        raise ValueError(
            f"--network {args.network} needs images (n, height, width) or (n, "
            f"height, width, channels); these examples have shape {example}"
        )
    shape = example if len(example) == 3 else (*example, 1)
    color = shape[-1] > 1
    zca = args.zca
    if zca is None:
        zca = color and math.prod(shape) <= _MAX_WHITENED
    images = zca or color if images is None else images
    return Inputs(shape, pixels, False, images, args.zca_reg if zca else None)


def init_from(fmap: FeatureMap, key: Key, x: Prepared) -> PyTree:
    """Return the parameters of a map, which may learn from some of the examples."""
    sample = None
    if fmap.method.needs_sample:
        sample = x.spaced(num_candidates(fmap))
    return fmap.init(key, x.shape[1:], sample=sample)


def num_candidates(fmap: FeatureMap) -> int:
    """Return the number of examples that a map learns from, if there are enough."""
    return max(_CANDIDATES, 2 * fmap.num_features)
