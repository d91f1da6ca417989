"""Helpers of methods that replace a whole network by one step.

Such a step returns the features of one kernel only, and no columns of the other one.
"""

from jax_ntk_sketch._typing import Array, Kind
from jax_ntk_sketch.features.state import Features, Spec
from jax_ntk_sketch.features.step import Context

__all__ = ["features_of", "spec_of", "wanted_kind"]


def wanted_kind(context: Context) -> Kind:
    """Return the kernel whose features are wanted at the end of the network."""
    return "ntk" if context.wants_ntk else "nngp"


def spec_of(kind: Kind, columns: int) -> Spec:
    """Return the spec of `columns` features of one kernel."""
    return Spec(0, columns) if kind == "ntk" else Spec(columns, 0)


def features_of(kind: Kind, phi: Array, nngp_diag: Array) -> Features:
    """Return features `phi` (n, columns) of one kernel, and none of the other."""
    empty = phi[..., :0]
    nngp, ntk = (empty, phi) if kind == "ntk" else (phi, empty)
    return Features(nngp, ntk, nngp_diag)
