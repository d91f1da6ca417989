"""The vocabulary of annotations: arrays, keys, shapes, parameters and kernels."""

import collections
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.typing

Array: TypeAlias = jax.Array
ArrayLike: TypeAlias = jax.typing.ArrayLike

# A typed PRNG key, made by `jax.random.key`; legacy `uint32` keys are accepted too.
Key: TypeAlias = jax.Array

Shape: TypeAlias = tuple[int, ...]
Dtype: TypeAlias = Any  # what `numpy.dtype` accepts

# Nested tuples, lists, dictionaries and records of arrays, such as parameters.
PyTree: TypeAlias = Any

# Many examples: an array, a memory map, sparse rows, or anything that NumPy can slice.
Examples: TypeAlias = Any

# One number or label, or one row of numbers, for each example: an array, a list, or
# anything that NumPy can slice.
Targets: TypeAlias = Any

# The kernels of a network, and what a user asks for: one of them or both.
Kind: TypeAlias = Literal["nngp", "ntk"]
KINDS: tuple[Kind, ...] = ("nngp", "ntk")
Get: TypeAlias = Kind | tuple[Kind, ...]

# What targets are: labels of classes, or numbers.
Task: TypeAlias = Literal["classification", "regression"]
TASKS: tuple[Task, ...] = ("classification", "regression")

# `kernel_fn(x1, x2, get)` as in Neural Tangents: a matrix (n1, n2), or several by name.
# x2 is None for x1 itself.
KernelFn: TypeAlias = Callable[[Any, Any, Any], Any]


@functools.cache
def kernels_tuple(kinds: tuple[Kind, ...]) -> Callable[..., Any]:
    """Return the named tuple with these fields, which is one type for equal `kinds`.

    JAX compares pytrees by type.
    """
    return collections.namedtuple("Kernels", kinds)
