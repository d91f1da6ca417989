"""What is done to images before they are featurised, and why."""

import argparse
import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from jax_ntk_sketch import preprocessing
from jax_ntk_sketch._progress import progress
from jax_ntk_sketch.cli.arguments import number, usage_errors
from jax_ntk_sketch.data import Dataset

__all__ = ["add_preprocessing_arguments", "chosen_steps", "preprocess"]

# Images per call, so that large sets are not copied whole.
_BATCH = 500

# Numbers per image up to which colour images are whitened unasked: the decomposition
# takes half a minute at 3072 and grows with the cube.
_MOST_UNASKED = 4096

_WHY = {
    "zca": (
        "Neighbouring pixels of natural images are nearly equal; whitening makes them "
        "comparable, which convolutional kernels need: without it a published Myrtle-5 "
        "kernel has about 76 % right on CIFAR-10. With few training images it can "
        "cost accuracy, which --no-zca shows."
    ),
    "standardized": (
        "Standardising takes brightness and contrast out of each image. Whitening "
        "(--zca) gains several points of accuracy on natural images where training "
        "images are many, and can cost some where they are few."
    ),
    "raw": (
        "Pixels are taken as they are. Grey digits need no more; natural images do: "
        "--zca standardises each and whitens."
    ),
}


def add_preprocessing_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `preprocess` reads."""
    group = parser.add_argument_group("preprocessing")
    group.add_argument(
        "--zca",
        action=argparse.BooleanOptionalAction,
        help="ZCA whitening, fitted to the training images; if not given, done to "
        f"colour images of up to {_MOST_UNASKED} numbers",
    )
    group.add_argument(
        "--zca-reg",
        type=number(),
        default=0.1,
        metavar="R",
        help="added to the eigenvalues, in units of their mean; 0.01 to 1 to search",
    )
    group.add_argument(
        "--standardize",
        action=argparse.BooleanOptionalAction,
        help="give each image mean 0, deviation 1, first; if not given, done with "
        "ZCA and to colour images",
    )


def chosen_steps(shape: tuple[int, ...], args: argparse.Namespace) -> tuple[bool, bool]:
    """Whether images (h, w, c) are whitened, and standardised first."""
    colour = shape[-1] > 1
    zca, standardize = args.zca, args.standardize
    if zca is None:
        zca = colour and int(np.prod(shape)) <= _MOST_UNASKED
    if standardize is None:
        standardize = zca or colour
    return zca, standardize


def preprocess(data: Dataset, args: argparse.Namespace) -> tuple[Dataset, str]:
    """Images (n, h, w, c) as the options say, and a sentence on why.

    Cost: with ZCA, see `jax_ntk_sketch.preprocessing.zca_fit`.
    """
    shape = data.x_train.shape[1:]
    size = int(np.prod(shape))
    zca, standardize = chosen_steps(shape, args)
    show = False if args.no_progress else None
    x_train, x_test, notes = data.x_train, data.x_test, list(data.notes)
    if standardize:
        step = jax.jit(preprocessing.standardize_examples)
        x_train = _in_batches(step, x_train, "standardising", show)
        x_test = _in_batches(step, x_test, "standardising", show)
        notes.append("each image standardised to mean 0, deviation 1")
    if zca:
        # The cube is of the decomposition, the other of the covariance.
        seconds = 30 * (size / 3072) ** 3 + len(x_train) * size**2 / 2e10
        print(f"Fitting ZCA to {size} numbers, about {seconds:.0f} s", flush=True)
        with usage_errors():
            params = preprocessing.zca_fit(x_train, reg=args.zca_reg)
        step = jax.jit(lambda x: preprocessing.zca_apply(params, x))
        x_train = _in_batches(step, x_train, "whitening", show)
        x_test = _in_batches(step, x_test, "whitening", show)
        rank = float(params.effective_rank)
        notes.append(
            f"ZCA whitening fitted to the training images, reg = {args.zca_reg:g} of "
            f"the mean eigenvalue, {rank:.0f} of {size} directions whitened"
        )
    done = "zca" if zca else "standardized" if standardize else "raw"
    data = dataclasses.replace(data, x_train=x_train, x_test=x_test, notes=tuple(notes))
    return data, _WHY[done]


def _in_batches(
    step: Callable, x: np.ndarray, label: str, show: bool | None
) -> np.ndarray:
    out = np.empty_like(x)
    starts = range(0, len(x), _BATCH)
    for start in progress(starts, label, enabled=show):
        out[start : start + _BATCH] = step(x[start : start + _BATCH])
    return out
