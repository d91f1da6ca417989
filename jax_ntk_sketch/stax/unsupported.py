"""Layers of Neural Tangents that have no record here, and why."""

__all__ = ["REASONS"]

REASONS = {
    "Kernel": (
        "kernels between layers are features here; see jax_ntk_sketch.rules.Features"
    ),
    "unmask_fn": (
        "entries are not masked by a constant here; padded graphs have "
        "fmap.apply(params, x, pattern=..., mask=...)"
    ),
}
