"""PolySketch: all tensor powers of a vector from one binary tree of TensorSRHTs."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import (
    check_choice,
    check_input,
    check_key,
    check_size,
    set_sizes,
)
from jax_ntk_sketch._typing import Array, ArrayLike, Key, PyTree
from jax_ntk_sketch.sketch.count_sketch import OSNAP, CountSketch
from jax_ntk_sketch.sketch.srht import SRHT, SignedHadamardRows
from jax_ntk_sketch.sketch.tensor_srht import TensorSRHT

# The names of the sketches that leaves apply.
LEAVES = ("identity", "srht", "osnap", "count_sketch")


@dataclasses.dataclass(frozen=True)
class PolySketch:
    r"""Sketches of :math:`x^{\otimes j}` for each j = 0..p, from one pass over a tree.

    The tree has p leaves and an independent TensorSRHT at each inner node. A node over
    the leaves a+1..b carries the powers 1..b-a of x. It takes the lower powers from its
    left child as they are. The higher ones are products of its left child's full power
    with the powers of its right child. Any p is allowed, not only powers of two.

    The published tree feeds a fixed unit vector to the unused leaves instead. That adds
    noise and work and estimates the same powers.

    Args:
      input_dim: d, the size of the vectors.
      degree: p >= 1, the highest power.
      output_dim: m, the columns of each power, or one size for each of the degrees
        1..p. A degree of size 0 is not returned and, if no other needs it, not
        computed.
      width: columns of the products inside the tree; by default the largest of
        `output_dim`. The noise of a high degree is about that of its inner nodes at
        this width plus that of its last node at its own size.
      leaf: the sketch that the leaves apply to x: "identity" (none, the least noise),
        or an independent "srht", "osnap" or "count_sketch" to `width` columns. The last
        two touch only the nonzeros of x.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is out of its range, `output_dim` does not have p sizes, or
        `leaf` is not a known name.

    Cost: about :math:`(p/2) \log_2 2p` Hadamard transforms of size `width`.
    Guarantee: unbiased,
    :math:`E\langle S_j x, S_j y\rangle = \langle x, y\rangle^j`, with relative
    variance that grows linearly with j (about 2/m a product).
    Source: Ahle et al., arXiv 1909.01410; its use here: Zandieh, arXiv 2104.00415.

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch.sketch import PolySketch
    >>> sketch = PolySketch(10, degree=3, output_dim=32)
    >>> params = sketch.init(jax.random.key(0))
    >>> [z.shape for z in sketch.apply(params, jnp.ones((5, 10)))]
    [(5, 1), (5, 32), (5, 32), (5, 32)]
    """

    input_dim: int
    degree: int
    output_dim: int | tuple[int, ...]
    width: int | None = None
    leaf: str = "identity"

    def __post_init__(self) -> None:
        set_sizes(self, "input_dim", "degree")
        if isinstance(self.output_dim, Sequence):
            sizes = tuple(
                check_size("PolySketch", "output_dim", size, least=0)
                for size in self.output_dim
            )
            object.__setattr__(self, "output_dim", sizes)
            if len(sizes) != self.degree:
                raise ValueError(
                    f"PolySketch: output_dim must have one size for each of the "
                    f"degrees 1..{self.degree}, got {len(sizes)} sizes"
                )
        else:
            set_sizes(self, "output_dim")
        if self.width is not None:
            set_sizes(self, "width")
        check_choice("PolySketch", "leaf", self.leaf, LEAVES)

    @property
    def output_dims(self) -> tuple[int, ...]:
        """Columns of the degrees 0..p: 1, then those asked for."""
        if isinstance(self.output_dim, int):
            return (1,) + (self.output_dim,) * self.degree
        return (1, *self.output_dim)

    @property
    def inner_width(self) -> int:
        """Columns of the products inside the tree."""
        return self.width or max(*self.output_dims, 1)

    @property
    def flops(self) -> int:
        """Floating-point operations per vector."""
        linear = 0 if self._linear is None else self._linear.flops
        return linear + _tree(self).flops

    @property
    def _linear(self) -> OSNAP | SRHT | None:
        """The sketch that makes the columns of degree 1; None where x itself does."""
        size = self.output_dims[1]
        if size == 0 or (self.leaf == "identity" and size == self.input_dim):
            return None
        return _leaf_sketch(self.leaf, self.input_dim, size) or SRHT(
            self.input_dim, size
        )

    def init(self, key: Key) -> dict[str, PyTree]:
        """Draw the randomness of each node."""
        linear_key, tree_key = jax.random.split(check_key("PolySketch", key))
        linear = self._linear
        return {
            "linear": {} if linear is None else linear.init(linear_key),
            "tree": _tree(self).init(tree_key),
        }

    def apply(self, params: dict[str, PyTree], x: ArrayLike) -> tuple[Array, ...]:
        """Sketch the powers of `x` `(..., d)` to p + 1 arrays `(..., m_j)`.

        The power of degree 0 is a column of ones.
        """
        x = check_input("PolySketch", "x", x, self.input_dim)
        powers = _tree(self).apply(params["tree"], x)
        if self._linear is not None:
            powers[1] = self._linear.apply(params["linear"], x)
        elif self.output_dims[1]:
            powers[1] = x
        out = [jnp.ones((*x.shape[:-1], 1), x.dtype)]
        for j, size in enumerate(self.output_dims[1:], start=1):
            empty = jnp.zeros((*x.shape[:-1], 0), x.dtype)
            out.append(_first_rows(powers[j], size) if size else empty)
        return tuple(out)


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A leaf of the tree: x itself, or an independent sketch of it."""

    sketch: OSNAP | SRHT | None
    input_dim: int

    def dim(self, degree: int) -> int:
        return self.input_dim if self.sketch is None else self.sketch.output_dim

    @property
    def flops(self) -> int:
        return 0 if self.sketch is None else self.sketch.flops

    def init(self, key: Key) -> PyTree:
        return () if self.sketch is None else self.sketch.init(key)

    def apply(self, params: PyTree, x: Array) -> dict[int, Array]:
        return {1: x if self.sketch is None else self.sketch.apply(params, x)}


@dataclasses.dataclass(frozen=True)
class _Node:
    """A node of the tree: products of the left child's full power with right powers.

    Attributes:
      left, right: the children.
      split: leaves below the left child, which is the degree of its full power.
      width: columns of inner products.
      rows: for each degree j of a product made here, (j, its number of rows).
    """

    left: "_Tree"
    right: "_Tree"
    split: int
    width: int
    rows: tuple[tuple[int, int], ...]

    def dim(self, degree: int) -> int:
        return self.left.dim(1) if degree == 1 else self.width

    @functools.cached_property
    def products(self) -> dict[int, TensorSRHT]:
        """The products made here, by degree."""
        left_dim = self.left.dim(self.split)
        return {
            j: TensorSRHT((left_dim, self.right.dim(j - self.split)), rows)
            for j, rows in self.rows
        }

    @property
    def shared(self) -> SignedHadamardRows:
        """The left factor, the same rows for each product of this node."""
        most_rows = max(rows for _, rows in self.rows)
        return SignedHadamardRows(self.left.dim(self.split), most_rows)

    @property
    def flops(self) -> int:
        right_factors = sum(
            product.factors[1].flops + 2 * product.output_dim
            for product in self.products.values()
        )
        return self.left.flops + self.right.flops + self.shared.flops + right_factors

    def init(self, key: Key) -> dict[str, PyTree]:
        left_key, right_key, shared_key, products_key = jax.random.split(key, 4)
        product_keys = jax.random.split(products_key, len(self.products))
        return {
            "left": self.left.init(left_key),
            "right": self.right.init(right_key),
            "shared": self.shared.init(shared_key),
            "products": [
                product.factors[1].init(k)
                for product, k in zip(self.products.values(), product_keys, strict=True)
            ],
        }

    def apply(self, params: dict[str, PyTree], x: Array) -> dict[int, Array]:
        powers = self.left.apply(params["left"], x)
        right = self.right.apply(params["right"], x)
        full = _as_factor(powers, self.split, self.width)
        shared = self.shared.apply(params["shared"], full)
        products = zip(self.products.items(), params["products"], strict=True)
        for (j, product), right_params in products:
            power = _as_factor(right, j - self.split, self.width)
            rows = product.factors[1].apply(right_params, power)
            scale = jnp.asarray(product.scale, x.dtype)
            powers[j] = shared[..., : product.output_dim] * rows * scale
        return powers


_Tree: TypeAlias = _Leaf | _Node


def _as_factor(powers: dict[int, Array], degree: int, width: int) -> Array:
    """Return a child's power as its parent uses it: a leaf whole, else `width` rows."""
    power = powers[degree]
    return power if degree == 1 else _first_rows(power, width)


def _first_rows(z: Array, size: int) -> Array:
    """Return the first `size` rows of the sketch `z`, scaled to be a sketch too."""
    if z.shape[-1] == size:
        return z
    return z[..., :size] * jnp.asarray(math.sqrt(z.shape[-1] / size), z.dtype)


def _leaf_sketch(name: str, input_dim: int, output_dim: int) -> OSNAP | SRHT | None:
    """Return the sketch of a leaf by its name; None is the identity."""
    if name == "identity":
        return None
    if name == "osnap":  # of its usual sparsity, where the output has that many rows
        return OSNAP(input_dim, output_dim, min(OSNAP.sparsity, output_dim))
    return (SRHT if name == "srht" else CountSketch)(input_dim, output_dim)


@functools.lru_cache(maxsize=256)
def _tree(sketch: PolySketch) -> _Tree:
    rows = {j: size for j, size in enumerate(sketch.output_dims) if j >= 2 and size}
    return _subtree(sketch, sketch.degree, rows)


def _subtree(sketch: PolySketch, leaves: int, rows: dict[int, int]) -> _Tree:
    """Return the subtree over `leaves` leaves that makes `rows[j]` rows of degree j."""
    if leaves == 1 or not any(j >= 2 for j in rows):
        leaf = _leaf_sketch(sketch.leaf, sketch.input_dim, sketch.inner_width)
        return _Leaf(leaf, sketch.input_dim)
    split = (leaves + 1) // 2
    low = {j: size for j, size in rows.items() if j <= split}
    high = {j: size for j, size in rows.items() if j > split}
    width = sketch.inner_width
    if not high:
        return _subtree(sketch, split, low)
    low[split] = max(low.get(split, 0), width)
    left = _subtree(sketch, split, low)
    right = _subtree(sketch, leaves - split, {j - split: width for j in high})
    return _Node(left, right, split, width, tuple(high.items()))
