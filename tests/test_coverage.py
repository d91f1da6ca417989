"""The README's table of layers is the one that the code gives, as far as is quick."""

import pathlib
import re
import sys
from types import SimpleNamespace

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import layers  # noqa: E402

TEXT = layers.README.read_text().split(layers.MARKERS[0])[1].split(layers.MARKERS[1])[0]
LINES = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if "|" in line]
TABLE = {row[0].strip("`"): [cell.strip(" |") for cell in row[1:]] for row in LINES[2:]}
NOTES = dict(re.findall(r"^\[(\d+)\] (.*)$", TEXT, re.M))


def options(methods=layers.METHODS):
    return SimpleNamespace(methods=methods, sizes=[64], keys=1)


def test_every_public_name_of_neural_tangents_has_a_row():
    assert list(TABLE) == layers.theirs()
    assert LINES[0] == ["name", *layers.METHODS]


def test_rows_are_errors_or_reasons():
    assert sum(cells[0] == "yes" for cells in TABLE.values()) >= 40
    for name, (first, *rest) in TABLE.items():
        if layers.network(name) is None:
            refusals = []
            row = layers.row(name, options(), refusals, {})
            for i, text in enumerate(refusals, 1):
                number = re.fullmatch(r"no \[(\d+)\]", first)[1]
                assert NOTES[number] == text
                row = [cell.replace(f"[{i}]", f"[{number}]") for cell in row]
            assert [first, *filter(None, rest)] == [*filter(None, row[1:])]
        else:
            assert first == "yes", name
            assert len(rest) == 4, name
            for cell in rest:
                assert re.fullmatch(r"\.\d{3}|no \[\d+\]", cell), (name, cell)


@pytest.mark.parametrize("name", ["Dropout", "LayerNorm", "Sign"])
def test_a_row_made_again(name):
    refusals, chosen = [], options(("exact", "variance_reduced"))
    _, exact, *rest = layers.row(name, chosen, refusals, {})
    assert exact == "yes"
    if refusals:
        number = re.fullmatch(r"no \[(\d+)\]", TABLE[name][3])[1]
        assert NOTES[number] == refusals[0] and rest == ["no [1]"]
    else:
        assert re.fullmatch(r"\.\d{3}", rest[0])


def test_an_exact_method_that_is_off_is_said_to_be():
    assert layers.cell(2e-4, "exact") == "**off by 2.0e-04**"
    assert layers.cell(2e-4, "ntk_sketch") == ".000"


def test_what_has_a_record_needs_a_network(monkeypatch):
    monkeypatch.delitem(layers.NETWORKS, "Conv")
    with pytest.raises(SystemExit, match="Conv has a record, but no network"):
        layers.row("Conv", options(), [], {})


def test_the_readme_keeps_what_is_around(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{layers.MARKERS[0]}\nold\n{layers.MARKERS[1]}\nafter")
    monkeypatch.setattr(layers, "README", path)
    layers.put("new")
    assert path.read_text() == (
        f"before\n{layers.MARKERS[0]}\nnew\n{layers.MARKERS[1]}\nafter"
    )
