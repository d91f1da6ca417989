"""Tables as rows of numbers: levels, missing cells, and columns by name."""

import numpy as np
import pytest

from jax_ntk_sketch.model.table import Table

pandas = pytest.importorskip("pandas")


def frame(n=60):
    rng = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "size": rng.normal(size=n),
            "color": rng.choice(["red", "green", "blue"], n),
            "grade": pandas.Categorical(rng.integers(1, 4, n)),
            "sold": rng.integers(0, 2, n).astype(bool),
        }
    )


def test_levels_become_codes_and_numbers_stay():
    x = frame()
    table = Table.learned(x, "raise")
    assert [column.levels for column in table.columns] == [
        None,
        ("blue", "green", "red"),
        ("1", "2", "3"),
        None,
    ]
    found = table("predict", x)
    assert found.shape == (60, table.width) == (60, 8)
    np.testing.assert_array_equal(found[:, 0], x["size"])
    np.testing.assert_array_equal(found[:, 3], x["color"] == "red")
    np.testing.assert_array_equal(found[:, 5], x["grade"] == 2)
    assert Table.restored(table.saved()) == table


def test_columns_are_found_by_name():
    x = frame()
    table = Table.learned(x, "raise")
    other = x[["sold", "grade", "size", "color"]].assign(more=1)
    np.testing.assert_array_equal(table("predict", other), table("predict", x))
    with pytest.raises(ValueError, match="without 'size'"):
        table("predict", x.drop(columns="size"))


def test_missing_cells_are_named_or_imputed():
    x = frame()
    x.loc[[3, 5], "size"] = np.nan
    x.loc[7, "color"] = None
    with pytest.raises(ValueError, match=r"column 'size' of x .* got 2, .* row 3"):
        Table.learned(x, "raise")
    with pytest.raises(ValueError, match="column 'color'"):
        Table.learned(x.drop(columns="size"), "raise")
    table = Table.learned(x, "impute")
    found = table("predict", x)
    assert found[3, 0] == np.nanmedian(x["size"])
    assert not found[7, 1:4].any()
    full = Table.learned(frame(), "raise")
    with pytest.raises(ValueError, match="row 3"):
        full("predict", x)
    x["size"] = np.nan
    with pytest.raises(ValueError, match="all its cells are missing"):
        Table.learned(x, "impute")


def test_unknown_levels_are_none_of_the_known_ones():
    x = frame()
    table = Table.learned(x, "raise")
    with pytest.warns(RuntimeWarning, match="'pink'"):
        found = table("predict", x.assign(color="pink"))
    assert not found[:, 1:4].any()


def test_what_is_neither_number_nor_category_is_refused():
    x = frame().assign(when=pandas.Timestamp("2020-01-01"))
    with pytest.raises(TypeError, match=r"column 'when' .* dates"):
        Table.learned(x, "raise")
    x["when"] = [f"note {i}" for i in range(60)]
    with pytest.raises(ValueError, match="60 different texts"):
        Table.learned(x, "raise")
    table = Table.learned(frame(), "raise")
    with pytest.raises(TypeError, match="'size' of x must hold numbers"):
        table("predict", frame().assign(size="big"))


def test_arrays_of_text_are_tables_and_those_of_numbers_are_not():
    x = np.array([["a", 1.0], ["b", 2.0], ["a", 3.0]], object)
    table = Table.learned(x, "raise")
    np.testing.assert_array_equal(
        table("predict", x), [[1, 0, 1], [0, 1, 2], [1, 0, 3]]
    )
    np.testing.assert_array_equal(table("predict", x.tolist()), table("predict", x))
    assert Table.learned(x.tolist(), "raise") == table
    assert Table.learned(np.zeros((3, 2)), "raise") is None
    assert Table.learned(np.zeros((3, 2, 2)), "raise") is None


def test_other_libraries_have_tables():
    polars = pytest.importorskip("polars")
    x = polars.DataFrame({"a": [1.0, None, 3.0], "b": ["u", "v", None]})
    table = Table.learned(x, "impute")
    np.testing.assert_array_equal(
        table("predict", x), [[1, 1, 0], [2, 0, 1], [3, 0, 0]]
    )
