"""The handwritten digits that come with scikit-learn."""

import numpy as np

from jax_ntk_sketch.data.dataset import Dataset, split_rows

__all__ = ["load_digits"]


def load_digits(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """scikit-learn's bundled digits: 1797 grey images of 8x8, 10 classes.

    Pixel values 0..16 are divided by 16. Needs no network access.

    Args:
      test_fraction: part of the images to test on, in (0, 1).
      seed: of the split.

    Returns:
      `Dataset` with x of shape (n, 8, 8), float32, and integer labels.

    Raises:
      ImportError: scikit-learn is not installed.

    >>> load_digits()
    Dataset('digits', classification, x_train (1438, 8, 8), x_test (359, 8, 8))
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "the digits data come with scikit-learn, which is not installed; "
            "pip install scikit-learn, or give data of your own"
        ) from error
    digits = datasets.load_digits()
    x = digits.images.astype(np.float32) / 16
    y = digits.target.astype(np.int64)
    train, test = split_rows(len(x), test_fraction, seed, "digits")
    notes = (
        "pixel values divided by 16",
        f"{len(test)} of {len(x)} rows held out as test, seed {seed}",
    )
    return Dataset(
        x[train],
        y[train],
        x[test],
        y[test],
        "digits",
        "classification",
        pixels=True,
        notes=notes,
    )
