"""The choice of a feature map for data: all kinds of maps, weighed on a sample."""

from jax_ntk_sketch.selection._choose import choose, weigh
from jax_ntk_sketch.selection.weighed import Weighed, WeighedMap

__all__ = ["Weighed", "WeighedMap", "choose", "weigh"]
