"""CONTRIBUTING.md's worked example, and what it says follows from it."""

import pathlib
import re
import subprocess
import sys

PATH = pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md"

# The records are those of the example; the rest is what the text promises.
AFTER = """
stax.Scale, stax.Square = Scale, Square
assert eval(repr(net)) == net == stax.from_json(stax.to_json(net))
assert "Scale(0.5)" in str(fmap.plan(x))
images = jax.random.normal(jax.random.key(1), (6, 4, 4, 2))
conv = stax.Conv(8, (3, 3), padding="SAME", W_std=1.1, b_std=0.2)
image_net = stax.serial(conv, Scale(2.0), stax.Relu(), Scale(0.5), conv, stax.Relu(),
                        stax.GlobalAvgPool())
deep = stax.serial(stax.Dense(8), Square(), stax.Dense(8), Scale(3.0), Square())
for net, x, *methods in (
    (net, x, "ntk_random_features", "ntk_sketch", "variance_reduced", "nystrom"),
    (image_net, images, "ntk_random_features"),
    (deep, x),
):
    k = to_stax(net)[2](x, None, "ntk")
    for method in ("exact", *methods):
        fmap = jns.feature_map(net, num_features=2048, method=method)
        phi = jax.jit(fmap.apply)(fmap.init(jax.random.key(1), x), x)
        error = jns.validation.relative_error(k, phi @ phi.T)
        assert error < (1e-4 if method == "exact" else 0.15), (net, method, error)
"""


def test_worked_example():
    """In a process of its own: it registers records."""
    blocks = re.findall(r"^```python\n(.*?)^```", PATH.read_text(), re.S | re.M)
    assert len(blocks) == 5
    code = "\n".join(blocks) + AFTER
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_files_that_it_names_exist():
    root = PATH.parent
    for name in re.findall(r"`([\w/]+\.py)`", PATH.read_text()):
        places = (root, root / "jax_ntk_sketch")
        assert any((place / name).exists() for place in places), name
