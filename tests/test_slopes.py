"""Errors of random features fall as 1 / sqrt(columns), whatever the layer.

The networks are those of `benchmarks/layers.py`.
"""

import numpy as np
import pytest
from test_layer_table import layers

from jax_ntk_sketch import stax
from jax_ntk_sketch.validation.measures import loglog_slope

KEYS = 64
# Names of one thing twice, and of what the other networks consist of.
SAME = {
    "ElementwiseNumerical", "FanOut", "GlobalSumPool", "Identity", "Slice", "parallel",
    "repeat", "serial",
}  # fmt: skip
NAMES = [
    name
    for name in layers.public_names()
    if layers.network(name) is not None and name not in SAME
]
# exp(x) is lognormal: its mean square takes thousands of keys to be seen.
EASIER = {"Exp": stax.Exp(1.0, 0.3)}


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_random_features_have_the_rate_of_monte_carlo(name, monkeypatch):
    monkeypatch.setattr(layers, "EXAMPLES", 8)
    if name in EASIER:
        monkeypatch.setitem(layers.ACTIVATIONS, name, EASIER[name])
    shape, net = layers.network(name)
    # Linear parts of vectors are kept exactly where there are columns enough.
    sizes = (256, 4096) if shape == layers.VECTOR else (64, 1024)
    wanted = layers.exact_kernels(shape, net)
    found = np.array(
        [
            layers.errors(shape, net, wanted, "ntk_random_features", m, KEYS)
            for m in sizes
        ]
    )
    for kernel, error in zip(wanted, found.T, strict=True):
        if not kernel.any():  # the NTK behind Sign
            assert not error.any()
            continue
        assert -0.65 <= loglog_slope(sizes, error) <= -0.4, error
