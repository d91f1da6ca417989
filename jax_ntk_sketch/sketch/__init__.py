"""Oblivious sketches: random linear maps that are drawn without looking at the data.

Each sketch is a frozen record of sizes with `init(key) -> params` and
`apply(params, x) -> sketch`, pure functions that run under `jit`, `vmap` and `grad`.
Parameters are pytrees of small integers. Vectors lie along the last axis; `PatchSRHT`
also slides a `Window` over the axes before it.
"""

from jax_ntk_sketch.sketch.count_sketch import OSNAP, CountSketch
from jax_ntk_sketch.sketch.hadamard import hadamard_transform
from jax_ntk_sketch.sketch.hashed_osnap import HashedOSNAP
from jax_ntk_sketch.sketch.patch_srht import PatchSRHT
from jax_ntk_sketch.sketch.poly_sketch import PolySketch
from jax_ntk_sketch.sketch.srht import SRHT
from jax_ntk_sketch.sketch.tensor_srht import TensorSRHT
from jax_ntk_sketch.sketch.window import Window

__all__ = [
    "OSNAP",
    "SRHT",
    "CountSketch",
    "HashedOSNAP",
    "PatchSRHT",
    "PolySketch",
    "TensorSRHT",
    "Window",
    "hadamard_transform",
]
