"""How features pass through each family of layers: one rule per layer and method."""

from jax_ntk_sketch.rules import (
    activation,
    carried,
    exact,
    graph,
    linear,
    nystrom,
    nystrom_layers,
    one_pass,
    patches,
    pipeline,
    positions,
    sampled,
    sketched,
    spatial,
    stage,
    variance_reduced,
    zonal,
)
from jax_ntk_sketch.rules.pipeline import stages
from jax_ntk_sketch.rules.stage import Context, Features, Spec, Stage, rule

__all__ = [
    "Context",
    "Features",
    "Spec",
    "Stage",
    "activation",
    "carried",
    "exact",
    "graph",
    "linear",
    "nystrom",
    "nystrom_layers",
    "one_pass",
    "patches",
    "pipeline",
    "positions",
    "rule",
    "sampled",
    "sketched",
    "spatial",
    "stage",
    "stages",
    "variance_reduced",
    "zonal",
]
