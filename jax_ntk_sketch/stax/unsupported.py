"""Layers of Neural Tangents that have no record here, and why."""

__all__ = ["REASONS"]

REASONS = {
    "GlobalSelfAttention": (
        "its weights are a function of the kernel between all pairs of positions, "
        "which no linear map of features is; with weights that are known, "
        'stax.Aggregate(implementation="DENSE") attends'
    ),
    "DotGeneral": (
        "it holds an array, and records are data without arrays; multiply the inputs "
        "before, or give stax.Aggregate the array as its pattern"
    ),
    "Kernel": (
        "kernels between layers are features here; see jax_ntk_sketch.rules.Features"
    ),
    "unmask_fn": (
        "entries are not masked by a constant here; padded graphs have "
        "fmap.apply(params, x, pattern=..., mask=...)"
    ),
}
