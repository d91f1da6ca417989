"""Reasons for names of Neural Tangents that have no record here."""

REASONS = {
    "Kernel": (
        "here features flow between layers, not kernels; see "
        "jax_ntk_sketch.features.Features"
    ),
    "unmask_fn": (
        "entries are not masked by a constant; padded graphs are given as "
        "fmap.apply(params, x, pattern=..., mask=...)"
    ),
}
