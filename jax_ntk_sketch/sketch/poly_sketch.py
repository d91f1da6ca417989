"""PolySketch: all tensor powers of a vector from one binary tree of TensorSRHTs."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch._checks import check_input, check_key, check_size, set_sizes
from jax_ntk_sketch.sketch.count_sketch import OSNAP, CountSketch
from jax_ntk_sketch.sketch.srht import SRHT, SignedHadamardRows
from jax_ntk_sketch.sketch.tensor_srht import TensorSRHT

__all__ = ["PolySketch"]

_LEAVES = ("identity", "count_sketch", "osnap", "srht")


@dataclasses.dataclass(frozen=True)
class PolySketch:
    r"""Sketches :math:`x^{\otimes j}` for every j = 0..p from one pass over a tree.

    The tree has p leaves and an independent TensorSRHT at every inner node. A node
    over the leaves a+1..b carries the powers 1..b-a of x: the lower ones are handed
    up from its left child as they are, the higher ones are products of its left
    child's full power with the powers of its right child. (The published tree feeds
    a fixed unit vector to the unused leaves instead, which adds noise and work and
    estimates the same powers.) Any p is allowed, not only powers of two.

    Args:
      input_dim: d, the size of the vectors.
      degree: p >= 1, the highest power.
      output_dim: m, the columns of each power, or one size for each of the degrees
        1..p; a degree of size 0 is neither returned nor, if no other needs it,
        computed.
      width: columns of the products inside the tree; by default the largest of
        `output_dim`. The noise of a high degree is about that of its inner nodes at
        this width plus that of its last node at its own size.
      leaf: what the leaves do to x: "identity" (nothing, the least noise), or an
        independent "srht", "osnap" or "count_sketch" to `width` columns; the last two
        touch only the nonzeros of x.

    Raises:
      TypeError, ValueError: a size or name out of range, named.

    Cost: about :math:`(p/2) \log_2 2p` Hadamard transforms of size `width`.
    Guarantee: unbiased,
    :math:`E\langle S_j x, S_j y\rangle = \langle x, y\rangle^j`, with relative
    variance that grows linearly with j (about 2/m a product).
    Source: Ahle et al., arXiv 1909.01410; its use here: Zandieh, arXiv 2104.00415.

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
        if self.leaf not in _LEAVES:
            raise ValueError(
                f"PolySketch: leaf must be one of {', '.join(map(repr, _LEAVES))}, "
                f"got {self.leaf!r}"
            )

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
        head = 0 if self._head is None else self._head.flops
        return head + _tree(self).flops

    @property
    def _head(self) -> OSNAP | SRHT | None:
        """What makes the columns of degree 1: nothing where x itself does."""
        size = self.output_dims[1]
        if size == 0 or (self.leaf == "identity" and size == self.input_dim):
            return None
        return _leaf(self.leaf, self.input_dim, size) or SRHT(self.input_dim, size)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draws the randomness of every node."""
        head_key, tree_key = jax.random.split(check_key("PolySketch", key))
        head = self._head
        return {
            "head": {} if head is None else head.init(head_key),
            "tree": _tree(self).init(tree_key),
        }

    def apply(self, params: dict[str, Any], x: Any) -> tuple[jax.Array, ...]:
        """The powers of `x` `(..., d)`: a tuple of p + 1 arrays `(..., m_j)`.

        The entry of degree 0 is a column of ones.
        """
        x = check_input("PolySketch", "x", x, self.input_dim)
        powers = _tree(self).apply(params["tree"], x)
        if self._head is not None:
            powers[1] = self._head.apply(params["head"], x)
        elif self.output_dims[1]:
            powers[1] = x
        out = [jnp.ones((*x.shape[:-1], 1), x.dtype)]
        for j, size in enumerate(self.output_dims[1:], start=1):
            empty = jnp.zeros((*x.shape[:-1], 0), x.dtype)
            out.append(_first_rows(powers[j], size) if size else empty)
        return tuple(out)


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """x itself, or an independent sketch of it."""

    sketch: OSNAP | SRHT | None
    input_dim: int

    def dim(self, degree: int) -> int:
        return self.input_dim if self.sketch is None else self.sketch.output_dim

    @property
    def flops(self) -> int:
        return 0 if self.sketch is None else self.sketch.flops

    def init(self, key: jax.Array) -> Any:
        return () if self.sketch is None else self.sketch.init(key)

    def apply(self, params: Any, x: jax.Array) -> dict[int, jax.Array]:
        return {1: x if self.sketch is None else self.sketch.apply(params, x)}


@dataclasses.dataclass(frozen=True)
class _Node:
    """Products of the left child's full power with powers of the right child.

    `rows[j]` is the number of rows of the product of degree j made here.
    """

    left: "_Leaf | _Node"
    right: "_Leaf | _Node"
    split: int  # leaves below the left child, so the degree of its full power
    width: int
    rows: tuple[tuple[int, int], ...]

    def dim(self, degree: int) -> int:
        return self.left.dim(1) if degree == 1 else self.width

    @functools.cached_property
    def products(self) -> dict[int, TensorSRHT]:
        return {
            j: TensorSRHT(
                (self.left.dim(self.split), self.right.dim(j - self.split)), rows
            )
            for j, rows in self.rows
        }

    @property
    def shared(self) -> SignedHadamardRows:
        """The left factor, the same rows for every product of this node."""
        return SignedHadamardRows(
            self.left.dim(self.split), max(rows for _, rows in self.rows)
        )

    @property
    def flops(self) -> int:
        own = (p.factors[1].flops + 2 * p.output_dim for p in self.products.values())
        return self.left.flops + self.right.flops + self.shared.flops + sum(own)

    def init(self, key: jax.Array) -> dict[str, Any]:
        left_key, right_key, shared_key, own_key = jax.random.split(key, 4)
        own_keys = jax.random.split(own_key, len(self.products))
        return {
            "left": self.left.init(left_key),
            "right": self.right.init(right_key),
            "shared": self.shared.init(shared_key),
            "own": [
                p.factors[1].init(k)
                for p, k in zip(self.products.values(), own_keys, strict=True)
            ],
        }

    def apply(self, params: dict[str, Any], x: jax.Array) -> dict[int, jax.Array]:
        powers = self.left.apply(params["left"], x)
        right = self.right.apply(params["right"], x)
        full = _inner(powers, self.split, self.width)
        shared = self.shared.apply(params["shared"], full)
        for (j, product), own in zip(self.products.items(), params["own"], strict=True):
            other = _inner(right, j - self.split, self.width)
            rows = product.factors[1].apply(own, other)
            scale = jnp.asarray(product.scale, x.dtype)
            powers[j] = shared[..., : product.output_dim] * rows * scale
        return powers


def _inner(powers: dict[int, jax.Array], degree: int, width: int) -> jax.Array:
    """A child's power as its parent uses it: a leaf whole, a product's first rows."""
    power = powers[degree]
    return power if degree == 1 else _first_rows(power, width)


def _first_rows(z: jax.Array, size: int) -> jax.Array:
    """The sketch that the first `size` rows of the sketch `z` are by themselves."""
    if z.shape[-1] == size:
        return z
    return z[..., :size] * jnp.asarray(math.sqrt(z.shape[-1] / size), z.dtype)


def _leaf(name: str, input_dim: int, output_dim: int) -> OSNAP | SRHT | None:
    """The sketch of a leaf by its name; None is the identity."""
    if name == "identity":
        return None
    if name == "osnap":  # of its usual sparsity, where there is room for it
        usual = OSNAP.sparsity
        return OSNAP(input_dim, output_dim, min(usual, output_dim))
    return (SRHT if name == "srht" else CountSketch)(input_dim, output_dim)


@functools.lru_cache(maxsize=256)
def _tree(sketch: PolySketch) -> "_Leaf | _Node":
    wanted = {j: size for j, size in enumerate(sketch.output_dims) if j >= 2 and size}
    return _grow(sketch, sketch.degree, wanted)


def _grow(sketch: PolySketch, leaves: int, wanted: dict[int, int]) -> "_Leaf | _Node":
    """The subtree over `leaves` leaves that makes `wanted` (degree -> rows)."""
    if leaves == 1 or not any(j >= 2 for j in wanted):
        leaf = _leaf(sketch.leaf, sketch.input_dim, sketch.inner_width)
        return _Leaf(leaf, sketch.input_dim)
    split = (leaves + 1) // 2
    below = {j: rows for j, rows in wanted.items() if j <= split}
    above = {j: rows for j, rows in wanted.items() if j > split}
    width = sketch.inner_width
    if not above:
        return _grow(sketch, split, below)
    below[split] = max(below.get(split, 0), width)
    left = _grow(sketch, split, below)
    right = _grow(sketch, leaves - split, {j - split: width for j in above})
    return _Node(left, right, split, width, tuple(above.items()))
