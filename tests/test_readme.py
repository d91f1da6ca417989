"""A figure of the README is a figure of benchmarks/RESULTS.md.

Two conventions make this checkable. A table with measurements follows a comment
`<!-- results: SECTION -->`, and is a part of a table of that section: each of its rows
agrees with a row there, in all columns. A number in prose is the text of a link to the
heading in RESULTS.md under which it stands. No other number with a decimal point or a
unit is allowed outside of code.
"""

import hashlib
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import common  # noqa: E402

from jax_ntk_sketch.cli import main  # noqa: E402

README = (ROOT / "README.md").read_text()
RESULTS = common.RESULTS.read_text()
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?"
MEASURED = r"\d\.\d|\d ?(?:%|ms\b|s\b|min|GiB|MiB|MB|GB|times\b)"
# Numbers that measure nothing.
EXEMPT = ("Python 3.11", "Apache-2.0")


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(text: str) -> dict[str, str]:
    """Return the text under each heading, by its anchor."""
    parts = re.split(r"^#+ (.*)$", text, flags=re.M)
    return {slug(h): body for h, body in zip(parts[1::2], parts[2::2], strict=True)}


def prose(text: str) -> str:
    """Return a text without code blocks and code."""
    return re.sub(r"```.*?^```|`[^`]*`|\$\$.*?\$\$", "", text, flags=re.S | re.M)


def stale_tables(text: str) -> list[str]:
    """Return the rows of measured tables that RESULTS.md does not have."""
    out = []
    for name, table in re.findall(r"<!-- results: (\S+) -->\n((?:\|.*\n)+)", text):
        (rows,) = common.read_tables(table)
        known = common.read_tables(common.read_section(common.RESULTS, name))
        for row in rows:
            if not any(row.items() <= k.items() for rows in known for k in rows):
                out.append(f"{name}: {row}")
    return out


def stale_links(text: str) -> list[str]:
    """Return the numbers that do not stand under the heading that they link to."""
    known, out = headings(RESULTS), []
    for label, anchor in re.findall(
        r"\[([^]]*)\]\(benchmarks/RESULTS.md#([^)]*)\)", text
    ):
        numbers = re.findall(NUMBER, known.get(anchor, ""))
        missing = [n for n in re.findall(NUMBER, label) if n not in numbers]
        if missing or anchor not in known:
            out.append(f"{label} -> {anchor}")
    return out


def unmarked_numbers(text: str) -> list[str]:
    """Return the numbers in prose that are not linked to their measurement."""
    text = re.sub(r"<!-- results: \S+ -->\n(\|.*\n)+", "", prose(text))
    text = re.sub(r"\[[^]]*\]\([^)]*\)", "", text)
    for phrase in EXEMPT:
        text = text.replace(phrase, "")
    return [line for line in text.splitlines() if re.search(MEASURED, line)]


def test_figures_are_those_of_the_results():
    assert not stale_tables(README)
    assert not stale_links(README)
    assert not unmarked_numbers(README)


def test_readme_has_measurements():
    assert len(re.findall("<!-- results: ", README)) >= 2
    assert len(re.findall(r"\]\(benchmarks/RESULTS.md#", README)) >= 5


@pytest.mark.parametrize(
    "old, new, find",
    [
        ("| 0.0878 ± 0.0003 |", "| 0.0877 ± 0.0003 |", stale_tables),
        ("| 18,700 | 5,500 |", "| 18,800 | 5,500 |", stale_tables),
        ("[0.0331](", "[0.0332](", stale_links),
        ("#all-of-mnist)", "#all-of-mnist-twice)", stale_links),
        ("## Not supported", "It is 3.5 times as fast.\n\n## Not supported", None),
        ("## Not supported", "It takes 3 minutes.\n\n## Not supported", None),
    ],
)
def test_a_stale_figure_is_found(old, new, find):
    assert old in README
    assert (find or unmarked_numbers)(README.replace(old, new, 1))


def test_the_picture_is_drawn_from_the_results():
    name = "fully_connected-accuracy"
    rows = common.read_tables(common.read_section(common.RESULTS, name))[0]
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    assert f"<dc:description>{digest}<" in (ROOT / "benchmarks/error.svg").read_text()


def test_links_lead_to_files_and_headings():
    anchors = {
        "README.md": headings(README),
        "benchmarks/RESULTS.md": headings(RESULTS),
    }
    for target in re.findall(r"\]\((?!http)([^)]*)\)", README):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).is_file(), target
        if anchor:
            assert anchor in anchors[path or "README.md"], target


def test_options_of_commands_exist(capsys):
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    commands = re.findall(r"python -m jax_ntk_sketch (\w+)([^#`\n]*)", text)
    assert {name for name, _ in commands} == {"compare", "fit", "predict"}
    for name, options in commands:
        assert main([name, "--help"]) == 0
        known = re.findall(r"--[\w-]+", capsys.readouterr().out)
        assert set(re.findall(r"--[\w-]+", options)) <= set(known)


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_sections_of_results_state_where_they_come_from():
    for name in re.findall(r"<!-- begin: (\S+) -->", RESULTS):
        section = common.read_section(common.RESULTS, name)
        assert re.match(r"- Command: `python benchmarks/\w+\.py ", section), name
        script = section.split("benchmarks/")[1].split()[0]
        assert (ROOT / "benchmarks" / script).is_file(), name
        assert re.search(r"^- Measured: .*202\d-\d\d-\d\d; .*JAX \d", section, re.M), (
            name
        )


def test_a_section_is_replaced_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "RESULTS.md"
    begin, end = common.markers("one")
    path.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    common.replace_section(path, "one", "new")
    assert path.read_text() == f"before\n{begin}\nnew\n{end}\nafter\n"
    common.replace_section(path, "two", "text")
    assert common.read_section(path, "two") == "text"
    assert common.read_section(path, "one") == "new"


def test_tables_of_records():
    records = [
        {"m": 1, "method": "a", "error": 0.25},
        {"m": 1, "method": "b", "error": None},
        {"m": 2, "method": "b", "error": 0.5},
    ]
    text = common.wide_table(records, "m", "{m}", "{method}", "{error:.2f}")
    assert common.read_tables(text) == [
        [{"m": "1", "a": "0.25", "b": ""}, {"m": "2", "a": "", "b": "0.50"}]
    ]
    text = common.table(records, "m | error", "{m} | {error:.1f}")
    assert common.read_tables(text)[0][1] == {"m": "1", "error": ""}
