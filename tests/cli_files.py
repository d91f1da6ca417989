"""Running the command line in this process, and files for it to read."""

import json

import numpy as np

import jax_ntk_sketch as jns
from jax_ntk_sketch.cli import main

# Sizes that all tests share, so that they share compiled programs too.
SMALL = ["--num-features", "16", "--depth", "1", "--method", "one_pass"]
SMALL += ["--batch-size", "30", "--no-progress"]


def run(*argv, code=0):
    assert main([str(word) for word in argv]) == code


def fitted(folder, *argv):
    """Fit and return the path of the model, and the report as a dictionary."""
    model, report = folder / "model.jns", folder / "report.json"
    run("fit", *SMALL, "--output", model, "--report-json", report, "--overwrite", *argv)
    return model, json.loads(report.read_text())


def weights(path):
    """Return the bytes of the weights in a model's file."""
    best = jns.io.load(path).best
    return np.asarray(best.weights).tobytes() + np.asarray(best.intercept).tobytes()


def check_mistake(capsys, argv, match):
    """Check that a command fails with one line that holds `match`."""
    run(*argv, code=2)
    printed = capsys.readouterr().err
    assert printed.startswith("python -m jax_ntk_sketch: error: ")
    assert match in printed and printed.count("\n") == 1, printed


def write_files(folder):
    """Write one task, classes of three by six columns, as files of every kind."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6)) * [1, 10, 100, 1, 1, 1] + [0, 0, 50, 0, 0, 0]
    y = np.digitize(x[:, 0], [-0.4, 0.4])
    arrays = dict(x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    np.savez(folder / "parts.npz", **arrays)
    np.savez(folder / "whole.npz", x=x, y=y)
    bad = x[:90].copy()
    bad[[7, 9], 3] = np.nan
    extra = dict(
        nan_x=bad,
        nan_y=np.where(np.arange(90) == 5, np.nan, y[:90]),
        short_y=y[:89],
        narrow=x[:90, :5],
        same_y=np.zeros(90, int),
        text_y=np.array(["low", "mid", "high"])[y[:90]],
        objects=np.array([{}, {}]),
    )
    for name, array in (arrays | extra).items():
        np.save(folder / f"{name}.npy", array)
    lines = [",a,b,c,d,e,f,kind"]
    for i, row in enumerate(x):
        cells = [*map(repr, row.tolist()), ("low", "mid", "high")[y[i]]]
        lines.append(f"{i}," + ",".join(cells))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    lines = ["extra,f,e,d,c,b,a"]
    lines += ["0," + ",".join(map(repr, row[::-1].tolist())) for row in x]
    (folder / "turned.csv").write_text("\n".join(lines) + "\n")
    (folder / "text.txt").write_text("no model\n")
    return folder
