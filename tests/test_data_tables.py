"""Text tables, Parquet and Feather, sound ones and faulty ones."""

import gzip
import sys

import numpy as np
import pytest

from jax_ntk_sketch import data
from jax_ntk_sketch.data._tables import read_table


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


TABLE = "a,b,y\n" + "".join(f"{i},{i * i},{i / 2}\n" for i in range(10))


@pytest.mark.parametrize("target", ["y", "2", 2, -1, "-1"])
def test_table_target_by_name_or_index(tmp_path, target):
    loaded = data.load(write(tmp_path / "t.csv", TABLE), target)
    assert loaded.task == "regression" and loaded.columns == ("a", "b")
    np.testing.assert_array_equal(loaded.x_train[:, 0] / 2, loaded.y_train)
    np.testing.assert_array_equal(loaded.x_test[:, 0] ** 2, loaded.x_test[:, 1])
    assert len(loaded.x_train) == 8


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
@pytest.mark.parametrize("header", [True, False])
def test_table_header_separator_and_class_names(tmp_path, separator, header):
    rows = ["a,b,kind"] * header + [f"{i},1.5,{'xy'[i % 2]}" for i in range(6)]
    text = "\ufeff" + "\r\n\r\n".join(rows).replace(",", separator)
    arrays = read_table(write(tmp_path / "t.csv", text), "kind" if header else -1)
    assert arrays.y.tolist() == list("xyxyxy")
    np.testing.assert_array_equal(arrays.x, [[i, 1.5] for i in range(6)])
    assert arrays.columns == (("a", "b") if header else ("0", "1"))


@pytest.mark.parametrize(
    ("text", "x", "columns"),
    [
        (",a,y\n0,1,2\n1,3,4\n", [[1], [3]], ("a",)),
        ("a,2020,y\n1,2,3\n4,5,6\n", [[1, 2], [4, 5]], ("a", "2020")),
        ("\n\n a , b ,y\n1, 2 ,3\n", [[1, 2]], ("a", "b")),
        ("a,y\n1e3,2\n-.5,1\n", [[1000], [-0.5]], ("a",)),
        ("a,y\nTrue,2\nFalse,1\n", [[1], [0]], ("a",)),
        # Names of rows, as R writes them.
        ('"a","y"\n"1",5,2\n"2",3,4\n', [[5], [3]], ("a",)),
        ("a,y\nrome,5,2\nparis,3,4\n", [[5], [3]], ("a",)),
        # Decimal commas, where they do not separate cells.
        ("a;b;y\n1,5;2;3,25\n-4,5;3;6\n", [[1.5, 2], [-4.5, 3]], ("a", "b")),
        ("a\tb\ty\n1,5\t2\t3\n", [[1.5, 2]], ("a", "b")),
        ("a|b|y\n1|2|3\n", [[1, 2]], ("a", "b")),
        # Comments, also with the names.
        ("# by me\n# again, me\na,b,y\n1,2,3\n", [[1, 2]], ("a", "b")),
        ("# a b y\n1 2 3\n4 5 6\n", [[1, 2], [4, 5]], ("a", "b")),
        ("#a,b,y\n1,2,3\n", [[1, 2]], ("a", "b")),
        # Empty rows, and separators at the end of lines.
        ("a,b,y\n1,2,3\n,,\n4,5,6\n , ,\n", [[1, 2], [4, 5]], ("a", "b")),
        ("a\tb\ty\n1\t2\t3\n\t\t\n", [[1, 2]], ("a", "b")),
        ("a,b,y,\n1,2,3,\n4,5,6,\n", [[1, 2], [4, 5]], ("a", "b")),
        ("a,b,y\n1,2,3,\n4,5,6,\n", [[1, 2], [4, 5]], ("a", "b")),
    ],
)
def test_tables_as_people_have_them(tmp_path, text, x, columns):
    arrays = read_table(write(tmp_path / "t.csv", text), "y")
    np.testing.assert_array_equal(arrays.x, x)
    assert arrays.columns == columns
    left_out = any("has no name" in note for note in arrays.notes)
    assert left_out == (
        text[0] == "," or "1,5,2" in text.replace('"', "") or "rome" in text
    )


def test_table_integer_targets_are_labels_unless_asked(tmp_path):
    path = write(tmp_path / "t.csv", TABLE)
    assert data.load(path, "b").task == "classification"
    assert data.load(path, "b", task="regression").task == "regression"


def test_table_columns_are_matched_by_name(tmp_path):
    path = write(tmp_path / "t.csv", "id,b,a\n7,1,2\n8,3,4\n")
    arrays = read_table(path, "y", columns=("a", "b"))
    np.testing.assert_array_equal(arrays.x, [[2, 1], [4, 3]])
    assert arrays.y is None
    assert arrays.notes == ("columns left out, unknown to the model: 'id'",)
    with pytest.raises(ValueError, match="missing here: 'c'; the table has 'id', 'b'"):
        read_table(path, columns=("a", "c"))


def test_compressed_and_parquet_tables(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    one = read_table(tmp_path / "t.csv.gz", "y")
    frame = pandas.DataFrame(one.x, columns=["a", "b"]).assign(y=one.y)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_feather(tmp_path / "t.feather")
    for name in ("t.parquet", "t.feather"):
        two = read_table(tmp_path / name, "y")
        np.testing.assert_array_equal(two.x, one.x)
        np.testing.assert_array_equal(two.y, one.y)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(TABLE.encode())[:-9])
    with pytest.raises(ValueError, match="cannot be read as a table"):
        read_table(tmp_path / "t.csv.gz", "y")


@pytest.mark.parametrize(
    ("text", "target", "match"),
    [
        ("", "y", "cannot be read as a table"),
        ("a,y\n", "y", "the table has no rows"),
        (TABLE, "z", "no column 'z' for the target; the columns are 'a', 'b', 'y'"),
        (TABLE, "3", "no column '3'"),
        ("1,2\n3,4\n", "y", "no column 'y' for the target; the columns are '0', '1'"),
        ("a,a\n1,2\n3,4\n", "a", "several columns are called 'a'"),
        ("y\n1\n2\n", "y", "no columns besides the target 'y'"),
        ("a,y\n1,2\n3\n", "y", "row 1 has no target, column 'y'"),
        ("a,y\n1,2\n3,4,5\n", "y", "cannot be read as a table"),
        ("a,y\n1,2,3\n3,4,5\n", "y", "cannot be read as a table"),
        ("a,y\n1,2\n\nbad,4\n", "y", "row 1, column 'a' is 'bad', expected a number"),
        ("1,2\n,4\n", 1, "row 1, column '0' is empty or NaN"),
        ("a,y\n1,2\ninf,3\n", "y", "row 1, column 'a' is inf"),
        ("a,y\n1,2\n1,\n", "y", "row 1 has no target"),
        ('a,y\n"1,5",2\n', "y", "column 'a' is '1,5', .* with decimal points"),
        ("a;y\n1,5;2\n2.5;3\n", "y", "row 0, column 'a' is '1,5', expected a number"),
        ("a,y\n1,2\n1,3 # c\n", "y", "row 1, column 'y' is '3 # c', expected a number"),
        ("a,y\n1,2\n1,?\n1,4\n", "y", "row 1, column 'y' is '\\?', expected a number"),
        ("a,y\n1,no\n1,NA\n", "y", "row 1 has no target, .* such as NA"),
        ("a,y\n2020-01-01,2\n", "y", "row 0, column 'a' is '2020-01-01'"),
    ],
)
def test_table_refuses(tmp_path, text, target, match):
    with pytest.raises(ValueError, match=match):
        read_table(write(tmp_path / "t.csv", text), target)


@pytest.mark.parametrize(
    "encoding, packed",
    [("utf-8", True), ("utf-8-sig", False), ("latin-1", True), ("utf-16", False)],
)
def test_encodings_and_compression_are_found(tmp_path, encoding, packed):
    raw = "größe,b,y\n1,2,3\n".encode(encoding)
    path = tmp_path / "table.csv"  # whatever its name says
    path.write_bytes(gzip.compress(raw) if packed else raw)
    arrays = read_table(path, "y")
    assert arrays.columns == ("größe", "b") and arrays.x.tolist() == [[1, 2]]
    assert any("Latin-1" in note for note in arrays.notes) == (encoding == "latin-1")


def test_names_that_are_numbers_are_known_by_the_target(tmp_path):
    path = write(tmp_path / "t.csv", "2019,2020,2021\n1,2,3\n4,5,6\n")
    arrays = read_table(path, "2021")
    assert arrays.columns == ("2019", "2020") and arrays.y.tolist() == [3, 6]
    assert read_table(path, "2").y.tolist() == [2021, 3, 6]  # an index
    again = read_table(path, columns=("2020", "2019"))
    assert again.x.tolist() == [[2, 1], [5, 4]]
    plain = read_table(write(tmp_path / "p.csv", "0,1,5\n1,2,3\n"), columns=("0", "1"))
    assert plain.x.tolist() == [[0, 1], [1, 2]]


def test_labels_stay_integers_beside_empty_rows(tmp_path):
    loaded = data.load(write(tmp_path / "t.csv", "a,y\n1,0\n2,1\n3,1\n,\n"), "y")
    assert loaded.task == "classification"
    assert "empty rows were left out, 1 of them" in loaded.notes


def test_tables_that_are_no_text_or_lack_what_they_need(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    for contents, match in (
        (b"PK\x03\x04 and so on", "it is an archive or an Excel file"),
        (b"\x1f\x8b and so on", "cannot be read as a table"),
        (b"\xff\xfea", "cannot be read as a table"),
        (b"a,\x00y\n1,2\n", "t.csv"),
    ):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=match):
            read_table(path, "y")
    with pytest.raises(ValueError, match="a table needs a target column"):
        data.load(write(path, TABLE))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install .*\[tables\]"):
        data.load(path, "y")
