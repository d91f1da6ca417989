"""benchmarks/LAYERS.md has a row for each name, and rows are what the code gives."""

import inspect
import pathlib
import re
import sys
from types import SimpleNamespace

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import common  # noqa: E402
import layers  # noqa: E402

from jax_ntk_sketch import stax  # noqa: E402
from jax_ntk_sketch.interop import neural_tangents as jnt  # noqa: E402

TEXT = common.read_section(layers.LAYERS, layers.SECTION)
(ROWS,) = common.read_tables(TEXT)
TABLE = {row["name"].strip("`"): list(row.values())[1:] for row in ROWS}
NOTES = dict(re.findall(r"^\[(\d+)\] (.*)$", TEXT, re.M))
OPTIONS = SimpleNamespace(methods=layers.METHODS, num_features=64, keys=1)


def test_every_public_name_of_neural_tangents_has_a_row():
    assert list(TABLE) == layers.public_names()
    assert list(ROWS[0]) == ["name", *layers.METHODS]


def test_rows_are_errors_or_reasons():
    assert sum(cells[0] == "yes" for cells in TABLE.values()) >= 40
    for name, cells in TABLE.items():
        if layers.network(name) is None:
            refusals = []
            row = layers.row(name, OPTIONS, refusals)
            for i, text in enumerate(refusals, 1):
                number = re.fullmatch(r"no \[(\d+)\]", cells[0])[1]
                assert NOTES[number] == text
                row = [cell.replace(f"[{i}]", f"[{number}]") for cell in row]
            assert cells == row[1:], name
        else:
            assert cells[0] == "yes", name
            for cell in cells[1:]:
                assert re.fullmatch(r"0\.\d{3}|no \[\d+\]", cell), (name, cell)


@pytest.mark.long_cases("Dropout", "LayerNorm")
@pytest.mark.parametrize("name", ["Dropout", "LayerNorm", "Sign"])
def test_a_row_is_measured_again(name):
    """One draw has about the error of the three draws in the table."""
    options = SimpleNamespace(
        methods=("exact", "variance_reduced"), num_features=2048, keys=1
    )
    refusals = []
    _, exact, found = layers.row(name, options, refusals)
    assert exact == "yes"
    assert re.fullmatch(r"0\.\d{3}", found) and not refusals
    assert 0.3 < float(found) / float(TABLE[name][3]) < 3


def test_an_exact_method_that_is_inexact_is_marked():
    assert layers.cell(2e-4, "exact") == "**off by 2.0e-04**"
    assert layers.cell(2e-4, "ntk_sketch") == "0.000"


def test_a_record_needs_a_network(monkeypatch):
    monkeypatch.delitem(layers.NETWORKS, "Conv")
    with pytest.raises(SystemExit, match="Conv has a record, but no network"):
        layers.row("Conv", OPTIONS, [])


def test_differences_of_arguments_are_listed():
    (listed,) = common.read_tables(layers.LAYERS.read_text().split("## Differences")[1])
    found = []
    for name in layers.public_names():
        layer, original = getattr(stax, name, None), getattr(jnt.load().stax, name)
        if not callable(layer) or name == "Slice":
            continue
        ours, theirs = (
            list(inspect.signature(f).parameters) for f in (layer, original)
        )
        missing = [f"`{x}`" for x in theirs if x not in ours]
        more = [f"`{x}`" for x in ours if x not in theirs]
        common_names = [x for x in ours if x in theirs]
        assert common_names == [x for x in theirs if x in ours], name
        if missing or more:
            row = {"layer": f"`{name}`", "missing": ", ".join(missing)}
            found.append({**row, "additional": ", ".join(more)})
    assert listed == found
