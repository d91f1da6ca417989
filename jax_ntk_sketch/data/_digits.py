"""The handwritten digits that come with scikit-learn."""

import numpy as np

from jax_ntk_sketch.data._dataset import Arrays, Dataset, to_dataset


def load_digits(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Return scikit-learn's digits: 1797 gray images of 8x8 pixels, 10 classes.

    Pixel values 0..16 are divided by 16. The images are part of scikit-learn, so no
    network access is needed.

    Args:
      test_fraction: the part of the images to test on, in (0, 1).
      seed: the seed of the split.

    Returns:
      `Dataset` with x of shape (n, 8, 8), float32, and integer labels.

    Raises:
      ImportError: scikit-learn is not installed.

    >>> from jax_ntk_sketch import data
    >>> data.load_digits()
    Dataset('digits', classification, x_train (1438, 8, 8), x_test (359, 8, 8))
    """
    arrays = read_digits()
    return to_dataset(arrays, test_fraction=test_fraction, seed=seed)


def read_digits() -> Arrays:
    """Return all digits, in their order."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "the digits data come with scikit-learn, which is not installed; "
            'pip install "jax_ntk_sketch[sklearn]", or give data of your own'
        ) from error
    digits = datasets.load_digits()
    x = digits.images.astype(np.float32) / 16
    note = "pixel values divided by 16"
    y = digits.target.astype(np.int64)
    return Arrays("digits", x, y, pixels=True, notes=(note,))
