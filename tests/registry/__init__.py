"""Every sketch, direction and feature map; `contract.py` has what all of them keep."""

from registry.case import (
    DIM,
    KINDS,
    Case,
    apply,
    error,
    features,
    init,
    jit_once,
    quick_compilation,
)
from registry.learned import LEARNED
from registry.maps import BOTH, CONVOLUTIONS, FEATURE_MAPS, NETS, SHALLOW
from registry.sketches import DIRECTION_CASES as RANDOM_FEATURES
from registry.sketches import PATCHES, SKETCHES, inner, step_kernel

ALL = [*SKETCHES, *PATCHES, *RANDOM_FEATURES, *FEATURE_MAPS, *CONVOLUTIONS, *LEARNED]

__all__ = [
    "ALL",
    "BOTH",
    "CONVOLUTIONS",
    "DIM",
    "FEATURE_MAPS",
    "KINDS",
    "LEARNED",
    "NETS",
    "PATCHES",
    "RANDOM_FEATURES",
    "SHALLOW",
    "SKETCHES",
    "Case",
    "apply",
    "error",
    "features",
    "init",
    "inner",
    "jit_once",
    "quick_compilation",
    "step_kernel",
]
