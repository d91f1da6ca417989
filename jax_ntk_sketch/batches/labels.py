"""Class labels: what they are, and the numbers that a regression fits."""

import warnings
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch._arrays import check_real
from jax_ntk_sketch._typing import Dtype, Task

# The label of a class.
Label: TypeAlias = int | str

# More labels than this may be numbers, and so may labels that hardly repeat.
_MANY = 100
_FEW_EXAMPLES = 20


def is_text(y: NDArray) -> bool:
    """Return whether targets are text."""
    if y.dtype.kind == "O":
        return y.size > 0 and all(isinstance(value, str) for value in y.ravel())
    return y.dtype.kind in "SUT"


def are_labels(y: NDArray, task: Task | None) -> bool:
    """Return whether targets are class labels."""
    if task is not None:
        return task == "classification"
    return y.ndim == 1 and (y.dtype.kind in "bui" or is_text(y))


def check_targets(owner: str, y: NDArray, task: Task | None) -> NDArray:
    """Return targets that are numbers (n,) or (n, t), or labels (n,).

    Labels are integers or text; whole numbers become integers if `task` asks for it.

    Raises:
      TypeError: they are of another kind.
      ValueError: they have another shape, or a label is not a whole number.
    """
    labels = are_labels(y, task)
    if y.ndim != 1 and (labels or y.ndim != 2):
        shapes = "(n,), because it holds labels" if labels else "(n,) or (n, t)"
        raise ValueError(f"{owner}: y must have shape {shapes}, got {y.shape}")
    if labels and is_text(y):
        return y.astype(str)
    hint = "; class labels are integers or text, without missing ones"
    check_real(owner, "y", y.dtype, hint)
    if labels and y.dtype.kind not in "bui":
        whole = y == np.round(y)
        if not whole.all():
            raise ValueError(
                f"{owner}: y must hold whole numbers or text as labels, got "
                f'{y[~whole][0]}; to regress on numbers, give task="regression"'
            )
        return y.astype(np.int64)
    return y


def find_classes(owner: str, y: NDArray, task: Task | None) -> tuple[Label, ...]:
    """Return the different labels in order; booleans are always 0 and 1.

    There is a warning if numbers may have been meant.
    """
    if y.dtype.kind == "b":
        return 0, 1
    classes: tuple[Label, ...] = tuple(np.unique(y).tolist())
    n, k = len(y), len(classes)
    many = k > _MANY or (n >= _FEW_EXAMPLES and 2 * k > n)
    if task is None and (many or k == 1):
        count = f"{k} classes" if many else "one class only"
        warnings.warn(
            f"{owner}: y holds labels of {count} in {n} examples, from {classes[0]!r} "
            f'to {classes[-1]!r}; to regress on them as numbers, give task="regression"'
            ', and task="classification" if they are classes',
            RuntimeWarning,
            stacklevel=4,
        )
    return classes


def centered_codes(
    where: str, y: NDArray, classes: tuple[Label, ...], dtype: Dtype
) -> NDArray:
    """Return one-hot codes (n, k) less 1/k.

    Raises:
      ValueError: a label is not one of the classes.
    """
    k = len(classes)
    known = np.asarray(classes)
    if (known.dtype.kind == "U") != (y.dtype.kind == "U"):
        raise TypeError(
            f"{where}: y must hold labels like {classes[0]!r}, got {y[0].item()!r}"
        )
    numbers = np.minimum(np.searchsorted(known, y), k - 1)
    outside = y[known[numbers] != y]
    if len(outside):
        raise ValueError(
            f"{where}: y must hold labels from {_shown(classes)}, got "
            f"{outside[0].item()!r}; labels are numbered by "
            "numpy.unique(y, return_inverse=True)[1]"
        )
    # A regression without intercept starts from no class if the codes have mean 0.
    real = np.float64 if dtype == np.float64 else np.float32
    codes = np.full((len(y), k), -real(1 / k))
    codes[np.arange(len(y)), numbers] += real(1)
    return codes


def decoder(classes: tuple[Label, ...]) -> Callable[[NDArray], NDArray] | None:
    """Return the function from numbers of classes to labels; None if they are equal."""
    if classes == tuple(range(len(classes))):
        return None
    return np.asarray(classes).__getitem__


def _shown(classes: tuple[Label, ...]) -> str:
    if decoder(classes) is None:
        return f"0 to {len(classes) - 1}"
    return ", ".join(map(repr, classes[:8])) + ", ..." * (len(classes) > 8)
