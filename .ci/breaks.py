"""Break the package on purpose, one line at a time, and name the quick test that fails.

    python .ci/breaks.py [NUMBER ...]

Each break is applied to a copy of the checkout, in which the quick tests of the files
that are named beside it run. A break that no test notices makes the exit status 1.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYERS = "jax_ntk_sketch/features/layers/"
METHODS = "jax_ntk_sketch/features/methods/"


class Break(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    tests: str  # file names without "test_"


BREAKS = [
    Break(
        "a sign in the rule of Conv",
        LAYERS + "conv.py", "[..., 0] + b_std**2", "[..., 0] - b_std**2",
        "convolution",
    ),
    Break(
        "a wrong normalization in Flatten",
        LAYERS + "shape.py", "spec.pixels**-0.5", "spec.pixels**-1.0",
        "convolution",
    ),
    Break(
        "NNGP and NTK features swapped",
        "jax_ntk_sketch/features/_feature_map.py",
        "in_order(self.kinds, out)", "in_order(self.kinds[::-1], out)",
        "feature_map",
    ),
    Break(
        "an off-by-one in the reader of arrays",
        "jax_ntk_sketch/batches/source.py",
        "self.all.slice(start, start + size)",
        "self.all.slice(start, start + size - 1)",
        "reader transform",
    ),
    Break(
        "a stale number in README",
        "README.md", "0.0878 ±", "0.0778 ±",
        "readme",
    ),
    Break(
        "a missing bias in Dense",
        LAYERS + "dense.py", "variance + layer.b_std**2", "variance",
        "exact branches",
    ),
    Break(
        "a wrong stride of a pool",
        LAYERS + "pool.py", "layer.window_shape, layer.strides,",
        "layer.window_shape, None,",
        "convolution",
    ),
    Break(
        "a wrong scale of random features",
        METHODS + "ntk_random_features.py",
        "nngp_columns**-0.5", "(nngp_columns + 1) ** -0.5",
        "feature_map",
    ),
    Break(
        "a ridge penalty without the number of examples",
        "jax_ntk_sketch/linear_model/ridge.py",
        "np.atleast_1d(penalties * n)", "np.atleast_1d(penalties)",
        "ridge fit_ridge",
    ),
    Break(
        "a constant of variance_reduced without its root",
        METHODS + "variance_reduced/network.py",
        "norm * math.sqrt(fit.constant)", "norm * fit.constant",
        "variance_reduced feature_map",
    ),
    Break(
        "Dropout that multiplies by the rate",
        LAYERS + "normalization.py", "f.nngp_diag / layer.rate",
        "f.nngp_diag * layer.rate",
        "parameterization",
    ),
    Break(
        "attention without the factor of its trained weights",
        LAYERS + "attention.py", "math.sqrt(2) * nngp", "nngp",
        "attention",
    ),
    Break(
        "edges of graphs to the wrong end",
        LAYERS + "graph.py", "_Edges(node[..., 0], node[..., 1], weights)",
        "_Edges(node[..., 1], node[..., 0], weights)",
        "graphs",
    ),
    Break(
        "a sketch whose powers are not rescaled",
        METHODS + "ntk_sketch.py", "(power.shape[-1] / size) ** 0.5", "1.0",
        "feature_map",
    ),
    Break(
        "gradient flow with the time halved",
        "jax_ntk_sketch/linear_model/_flow.py",
        "jnp.exp(-factor * self.reg * tau)", "jnp.exp(-factor * self.reg * tau / 2)",
        "predict",
    ),
    Break(
        "a fit that resumes one batch too late",
        "jax_ntk_sketch/linear_model/_pass.py",
        'if self.batches_done == description.get("batches"):',
        'if self.batches_done == description.get("batches") + 1:',
        "fit reader",
    ),
]  # fmt: skip


def first_failure(one: Break, folder: pathlib.Path) -> str | None:
    """Return the first quick test that fails with the break, or None."""
    path = folder / one.file
    text = path.read_text()
    if one.old not in text:
        raise ValueError(f"{one.what}: {one.file} does not hold {one.old!r}")
    path.write_text(text.replace(one.old, one.new))
    files = [f"tests/test_{name}.py" for name in one.tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    path.write_text(text)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else None


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:]] or range(1, len(BREAKS) + 1)
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name) / "copy"
        ignore = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, folder, ignore=ignore)
        for number in numbers:
            one = BREAKS[number - 1]
            found = first_failure(one, folder)
            missed += found is None
            print(f"{number}. {one.what}: {found or 'NOT NOTICED'}", flush=True)
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
